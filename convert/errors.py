"""The errors that users see. Each message says the path, what was found, what was expected, what to do.

AtariConvertError
├ CheckpointError     the user's file
│ ├ UnreadableCheckpoint      not of any source, truncated, too large, not torch, wants to run code, no such file
│ ├ UnsupportedArchitecture   a network, but not one of its source's that can be converted
│ └ WeightMismatch            missing, unexpected, misshapen or non-finite weights, all named at once
├ TargetError         what was asked for, or where it should go
│ ├ UnknownTarget
│ ├ MissingExtra              says which ``pip install`` brings it
│ ├ UnsuitableTarget          its format cannot hold this agent
│ ├ OutputExists              something in the way that we did not write
│ ├ UnwritableOutput
│ ├ RuntimeUnavailable        a runtime lacks the device that was asked for, or fell back from it
│ └ UnreadableArtefact        a file of a target that is damaged, or that we did not write
├ SelectionError      what was named holds no checkpoint, or two that would share a folder
├ Unreachable         a URL whose server does not answer, or whose folder could not be listed, however often tried
├ InvalidArgument     an argument or an observation that is not what a function takes; a ValueError too
├ RecordError         an ``agent.json`` that is missing, damaged, or of another format
├ ProofError          a ``proof.json`` that is missing, damaged, or of another form
├ UnknownSource       no source has this name
├ BrokenPlugin        a module of another package that registers a source, and cannot be used
├ RoundTripError      our bug, never the user's file
├ TargetsFailed       at least one of several targets; the others are published
├ UnexpectedError     our bug as well, met in a run over many
├ WorkerDied          the process or node that converted an agent ended, more than once
└ CheckError          a check that could not be done
  ├ UnknownBackend
  ├ RomUnavailable
  └ ArtefactMissing
"""

from __future__ import annotations

from typing import Any

from convert.names import to_printable

_LONGEST = 600  # characters of a message
_START = 380  # of them where its middle is left out


def to_message(text: str) -> str:
    """Return a text as one line of printable characters, not too long: of a longer one, its start and its end."""
    line = to_printable(text)
    return line if len(line) <= _LONGEST else f"{line[:_START]} … {line[_START + 3 - _LONGEST :]}"


class AtariConvertError(Exception):
    """Base of every error that this project raises on purpose.

    Its message is one line of printable characters, whatever names of strangers are in it, and not too long: the
    start, which tells the path, and the end, which tells what to do, are kept.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(to_message(message))


class CheckpointError(AtariConvertError):
    """A checkpoint that cannot be converted."""


class UnreadableCheckpoint(CheckpointError):
    """The file cannot be read as a gzipped PyTorch checkpoint."""


class UnsupportedArchitecture(CheckpointError):
    """The file holds a network that is not a Nature-CNN of this release."""


class WeightMismatch(CheckpointError):
    """Weights are missing, unexpected, misshapen, or not finite."""


class TargetError(AtariConvertError):
    """A target that cannot be written."""


class UnknownTarget(TargetError):
    """No target has this name."""


class MissingExtra(TargetError):
    """A target whose framework is not installed."""


class UnsuitableTarget(TargetError):
    """A target whose format cannot hold this agent."""


class OutputExists(TargetError):
    """The output folder holds something that this tool did not write."""


class UnwritableOutput(TargetError):
    """The output folder cannot be written."""


class UnreadableArtefact(TargetError):
    """An artefact that is damaged, or that this tool did not write."""


class RuntimeUnavailable(TargetError):
    """A runtime lacks the device that was asked for, or answered from another one."""


class SelectionError(AtariConvertError):
    """What was named holds no checkpoint, or two that would share an output folder."""


class Unreachable(AtariConvertError):
    """The server of a URL does not answer, or a folder there could not be listed, however often it was tried."""


class InvalidArgument(AtariConvertError, ValueError):
    """An argument, such as an observation, is not what the function takes."""


class RecordError(AtariConvertError):
    """An ``agent.json`` that is missing, damaged, or of another format."""


class ProofError(AtariConvertError):
    """``proof.json`` is missing, damaged or of another form."""


class UnknownSource(AtariConvertError):
    """No source has this name."""


class BrokenPlugin(AtariConvertError):
    """A module that another package registers cannot be used."""


class RoundTripError(AtariConvertError):
    """What was written does not read back as the network that was meant: a bug of this tool."""


class TargetsFailed(AtariConvertError):
    """At least one of several targets failed.

    conversion: the `convert.pipeline.Conversion`, which says what was published and why each target failed.
    """

    def __init__(self, message: str, conversion: Any = None) -> None:
        # Unpickling calls the class with the message alone, and sets the attributes afterwards.
        super().__init__(message)
        self.conversion = conversion


class UnexpectedError(AtariConvertError):
    """An error that nobody foresaw, met in a run that goes on: a bug of this tool. Its cause is the error itself."""


class WorkerDied(AtariConvertError):
    """The process or node that converted an agent ended before it answered, each time it was tried."""


class CheckError(AtariConvertError):
    """A check that could not be done. A disagreement is a result, not an exception."""


class UnknownBackend(CheckError):
    """No backend has this name."""


class RomUnavailable(CheckError):
    """ale-py has no ROM of this name."""


class ArtefactMissing(CheckError):
    """An agent folder lacks an artefact, or the artefact differs from its checksum."""
