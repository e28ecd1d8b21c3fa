"""Run ``atari-check`` as ``python -m runtime_check``."""

from runtime_check.cli import main

if __name__ == "__main__":
    main(prog_name="python -m runtime_check")
