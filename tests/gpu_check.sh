#!/bin/sh
# Check the trained agents on a GPU, in true float32 and with TF32, backend by backend: sh tests/gpu_check.sh [OUT]
#
# From a checkout, without network, with whatever backends are installed. OUT (default: gpu-check) receives a report
# for each backend and precision, and summary.txt, the tables for docs/gpu.md. Exit code: 0 true float32 agrees;
# 1 it does not; 2 nothing could be measured.
set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:-gpu-check}
python=${PYTHON:-python3}
device=${DEVICE:-gpu}      # DEVICE=cpu tries the script where there is no GPU
episodes=${EPISODES:-16}
steps=${STEPS:-500}
backends=${BACKENDS:-reference onnxruntime flax tensorflow} # whose runtimes know GPUs; the reference is torch

mkdir -p "$out" || exit 2
[ -d "$out/converted" ] || "$python" -m convert tests/data/agents --to all --out "$out/converted" --quiet || exit 2
{
    date -u +%Y-%m-%d
    if command -v nvidia-smi >/dev/null; then nvidia-smi --query-gpu=name,driver_version --format=csv,noheader; fi
} >"$out/summary.txt"

verdict=2
for backend in $backends; do
    for precision in float32 tf32; do
        flag=
        [ "$precision" = tf32 ] && flag=--tf32
        # shellcheck disable=SC2086  # an empty flag is no argument
        "$python" -m runtime_check "$out/converted" --source tests/data/agents --backend "$backend" $flag \
            --device "$device" --episodes "$episodes" --max-steps "$steps" --verbose \
            --report "$out/$backend-$precision" >"$out/table.txt" 2>"$out/errors.txt"
        code=$?
        { printf '\n## %s, %s: exit %s\n\n' "$backend" "$precision" "$code"; cat "$out/table.txt" "$out/errors.txt"; } |
            tee -a "$out/summary.txt"
        # TF32 is there to be measured; true float32 has to agree.
        case $precision-$code in
            float32-1) verdict=1 ;;
            *-[01]) [ "$verdict" = 2 ] && verdict=0 ;;
        esac
    done
done
rm -f "$out/table.txt" "$out/errors.txt"
[ "$verdict" = 2 ] && echo "nothing could be measured: see $out/summary.txt" >&2
exit "$verdict"
