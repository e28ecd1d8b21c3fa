"""One agent, from its folder to the result: verify its files, open them, replay episodes, judge every answer."""

from __future__ import annotations

from pathlib import Path

from runtime_check.check.opening import open_backends
from runtime_check.check.options import Listeners, Options
from runtime_check.check.probes import probe_backends
from runtime_check.check.results import AgentResult, refuse_agent, to_result
from runtime_check.check.shadow import ShadowPlay, play_shadow
from runtime_check.check.solo import SoloPlay, play_solo
from runtime_check.check.sources import Sources
from runtime_check.check.verification import verify_agent

_DEFAULTS, _SILENT = Options(), Listeners()


def check_agent(
    folder: str | Path, source: str | Path | Sources, options: Options = _DEFAULTS, listeners: Listeners = _SILENT
) -> AgentResult:
    """Check the artefacts in an agent's folder against the checkpoint that they came from.

    Args:
        folder: the agent's folder, with its ``agent.json``.
        source: the checkpoint, or a folder with it in or below it, such as the root of the release.
        options: how to check.
        listeners: who follows the check.

    Returns:
        What was found. A disagreement is a result, not an exception: see `AgentResult.agrees`.

    Raises:
        RecordError: the folder has no readable ``agent.json``.
        CheckpointError: the checkpoint is not there.
        CheckError: the agent cannot be checked, for instance because its game is unknown.
        MissingExtra: a framework is not installed.
        RuntimeUnavailable: a GPU was asked for, and a runtime sees none.
    """
    case = verify_agent(Path(folder), source if isinstance(source, Sources) else Sources(Path(source)), options)
    if case.faults:
        return refuse_agent(case)
    candidates = probe_backends(case, open_backends(case, options), options)
    listeners.start(options.episodes * (options.shadow + options.solo * len(candidates)))
    shadow = play_shadow(case, candidates, options, listeners) if options.shadow else ShadowPlay(candidates)
    solo = play_solo(case, shadow, options, listeners) if options.solo else SoloPlay(shadow.candidates, shadow.exhibits)
    return to_result(case, shadow, solo)
