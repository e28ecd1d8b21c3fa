"""Which agents: find their files and folders, filter them, give each its output folder, cut the whole into shards."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from convert.agents.games import load_games
from convert.agents.identity import Identity, check_known
from convert.bulk.census import Census, explain_nothing, is_agent
from convert.errors import AtariConvertError, SelectionError, Unreachable
from convert.files.recognition import HEAD_SIZE
from convert.formats.atari_agents import FAMILIES, find_family
from convert.names import find_meant, normalise_name
from convert.sources import (
    AGENT_FOLDER,
    choose_identity,
    import_source,
    is_file_name,
    list_pattern_suffixes,
    locate,
    picks_up,
    recognise_folder,
    strip_suffix,
)
from convert.store import storage
from convert.store.storage import Found, is_url, normalise, path_of
from convert.targets import list_targets

FINAL_STEP = 50_000_000  # agent steps; the last checkpoint of a finished run of the release, at 200M frames


@dataclass(frozen=True, slots=True)
class Job:
    """One agent to convert.

    source: a local path or a URL.
    path: the source's path, ``/`` between parts: that of its zoo, or relative to what was searched. That of a file
        goes into the record; that of a folder has no suffix.
    out: the folder or URL that receives the agents' folders.
    identity: who the agent is.
    size: in bytes; 0 where a server did not tell.
    stamp: what tells this content of a remote source from another, such as its ETag; None where nothing does.
    problem: why this one cannot be converted, where its name alone tells; it fails when its turn comes.
    kind: of a folder, the source that reads it, such as ``agent-folder``; None of a file.
    is_named: whether a user gave the identity, so that it takes the place of what a folder tells.
    """

    source: str
    path: str
    out: str
    identity: Identity
    size: int = 0
    stamp: str | None = None
    problem: str | None = None
    kind: str | None = None
    is_named: bool = False

    @property
    def folder(self) -> str:
        """The agent's folder, a path or a URL."""
        return storage.join(self.out, self.path if self.kind else strip_suffix(self.path))

    def to_absolute(self) -> Job:
        """Return the job with absolute paths, which mean the same in every working folder."""
        source, out = (place if is_url(place) else os.path.abspath(place) for place in (self.source, self.out))
        return replace(self, source=source, out=out)


class Selectable(Protocol):
    """A job that can be filtered, and cut into shards by its size."""

    @property
    def identity(self) -> Identity:
        """Who the agent is."""

    @property
    def size(self) -> int:
        """How much work it is; 0 where that is not known."""


SelectableT = TypeVar("SelectableT", bound=Selectable)


@dataclass(frozen=True)
class Filter:
    """What to keep of what was found. An empty field keeps all; patterns are those of the shell (``Space*``).

    steps: of each run ``latest`` (the newest that was found), ``final`` (step 50,000,000), a range ``A:B`` (both
    included, either may be left out), or a step or a pattern of it.
    """

    families: tuple[str, ...] = ()
    games: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    steps: tuple[str, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        return not (self.families or self.games or self.seeds or self.steps)

    def __str__(self) -> str:
        """Return it as options of the command line."""
        options = {"--family": self.families, "--game": self.games, "--seed": self.seeds, "--steps": self.steps}
        return " ".join(f"{name} {value}" for name, values in options.items() for value in values)


_MAGIC = re.compile(r"[*?[]")
_MAGIC_HTTP = re.compile(r"[*[]")  # there, a question mark begins the query
_RANGE = re.compile(r"(\d*):(\d*)", re.ASCII)
_LONGEST_NAME = 2**15  # characters of a path or URL; Linux takes 4096 bytes, web servers about 8000
_STEP = re.compile(r"[\d*?\[\]!-]+", re.ASCII)


def find_jobs(
    sources: Iterable[str | Path],
    out: str | Path,
    identity: Identity | None = None,
    *,
    listed: Iterable[str] = (),
    anonymous: bool = False,
    artefact: str | None = None,
) -> list[Job]:
    """Return a job for each agent, in the order of their folders.

    A folder that a source recognises, such as that of a converted agent, is one agent. Any other folder is searched for
    checkpoints. Agents' folders below it are passed over, unless there is no checkpoint at all: then they are what it
    holds. The same goes for what a pattern matches.

    Args:
        sources: checkpoints, agents' folders, folders to search, and patterns of the shell; each a path or a URL.
        out: the folder or URL that receives the agents' folders.
        identity: who the agent is, for one source that does not tell.
        listed: lines, each a source or empty. What is named here and cannot be found fails when its turn comes, for
            one of thousands should not stop the rest.
        anonymous: read URLs without credentials.
        artefact: the target whose artefact is read of an agent's folder.

    Raises:
        SelectionError: no agent is found, a source does not exist, an identity is given for several or contradicts a
            path, two agents would share an output folder, one would be written where another is read, or a file's name
            leaves none.
        Unreachable: a source at a URL could not be listed, for the network failed.
        MissingExtra: what reads a source's URL, or writes to that of the output, is not installed.
    """
    named = [(normalise(str(source)), True) for source in sources]
    lines = (line.strip().removeprefix("\ufeff").strip() for line in listed)  # a byte order mark begins some files
    named += [(normalise(line), False) for line in lines if line]
    out = normalise(str(out))
    if is_url(out):
        storage.canonical_url(out)  # nothing could be written where it fails
    census = Census()

    def search(who: Identity | None) -> list[Job]:
        return [
            job
            for source, must_exist in named
            for job in _find_jobs_of(
                source, out, who, census, anonymous=anonymous, must_exist=must_exist, artefact=artefact
            )
        ]

    jobs = search(None)
    if identity and jobs:
        if len(found := {os.path.realpath(job.source) for job in jobs}) > 1:
            raise SelectionError(f"--identity is for one agent, found {len(found)}")
        jobs = search(identity)
    jobs = _drop_doubles(sorted(jobs, key=lambda job: job.path))
    if not jobs:
        explanation = explain_nothing(census, [source for source, _ in named])
        raise SelectionError(f"no checkpoint found: {explanation}")
    _refuse_overlaps(jobs)
    return jobs


def select_jobs(jobs: Sequence[SelectableT], wanted: Filter, shard: tuple[int, int] | None = None) -> list[SelectableT]:
    """Return the jobs that a filter keeps, or of these the part K of N; see `filter_jobs` and `take_shard`."""
    kept = list(jobs) if wanted.is_empty else filter_jobs(jobs, wanted)
    return take_shard(kept, shard) if shard else kept


def filter_jobs(jobs: Sequence[SelectableT], wanted: Filter) -> list[SelectableT]:
    """Return the jobs that a filter keeps. What is not known of an agent matches nothing that is asked of it.

    Raises:
        SelectionError: a family or game that the release does not have, steps that cannot be read, or nothing fits.
    """
    _check_filter(wanted)
    kept = [job for job in jobs if _matches(job.identity, wanted)]
    if wanted.steps:
        kept = _keep_steps(kept, wanted.steps)
    if not kept:
        found = _list_steps(jobs) if wanted.steps else _list_kinds(jobs)
        raise SelectionError(f"none of the agents found fits {wanted}: they are {found}")
    return kept


def _list_steps(jobs: Sequence[Selectable]) -> str:
    steps = dict.fromkeys(str(job.identity.step or "?") for job in jobs)
    return f"of the steps {', '.join(list(steps)[:5])}{' …' if len(steps) > 5 else ''}"


def _list_kinds(jobs: Sequence[Selectable]) -> str:
    kinds = dict.fromkeys(f"{find_family(job.identity) or '?'}/{job.identity.game or '?'}" for job in jobs)
    return ", ".join(list(kinds)[:5]) + (" …" if len(kinds) > 5 else "")


def _keep_steps(jobs: Sequence[SelectableT], wanted: tuple[str, ...]) -> list[SelectableT]:
    latest: dict[tuple[object, ...], int] = {}
    for job in jobs:
        latest[_run_of(job)] = max(latest.get(_run_of(job), 0), job.identity.step or 0)
    return [job for job in jobs if _has_step(job.identity.step, latest[_run_of(job)], wanted)]


def parse_shard(text: str) -> tuple[int, int]:
    """Return K and N of ``K/N``.

    Raises:
        ValueError: another form, or K is not one of 1 … N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"{text!r} is not K/N with K from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])


def take_shard(jobs: Sequence[SelectableT], shard: tuple[int, int]) -> list[SelectableT]:
    """Return part K of N of the jobs, by their sizes; the parts are disjoint and make up the whole.

    The jobs lie beside each other on a line, each as long as its size, and the line is cut into N equal pieces.
    A job belongs to the piece that holds its middle: no piece differs from another by more than the sizes of two jobs.
    """
    number, count = shard
    known = [job.size for job in jobs if job.size]
    typical = sum(known) // len(known) if known else 1  # what a server did not tell is like the rest
    total = sum(job.size or typical for job in jobs)
    taken = []
    before = 0
    for job in jobs:
        size = job.size or typical
        if (2 * before + size) * count // (2 * total) == number - 1:
            taken.append(job)
        before += size
    return taken


def _find_jobs_of(
    source: str,
    out: str,
    identity: Identity | None,
    census: Census,
    *,
    anonymous: bool,
    must_exist: bool,
    artefact: str | None,
) -> Iterator[Job]:
    """Yield a job for each agent of a source; one that fails for a source that is not as it must be."""
    try:
        _check_name(source)
    except SelectionError as error:
        if must_exist:
            raise
        yield _make_failing_job(source, out, error)
        return
    for found, base, kind in _find_agents(source, census, anonymous=anonymous, must_exist=must_exist):
        try:
            if kind:
                yield _make_folder_job(found.name, kind, base, out, identity, artefact)
            else:
                yield _make_job(found, base, out, identity)
        except SelectionError as error:
            if must_exist:
                raise
            yield _make_failing_job(found.name, out, error)


def _check_name(source: str) -> None:
    """Refuse what is no path or URL at all.

    Raises:
        SelectionError: it is not one.
    """
    if not source:
        raise SelectionError("'' is empty, expected a path or URL")
    if len(source) > _LONGEST_NAME:
        raise SelectionError(f"{_shorten(source)}: has {len(source)} characters, expected a path or URL")
    if "\0" in source:
        raise SelectionError(f"{_shorten(source)}: holds a NUL character, expected a path or URL")
    try:
        path_of(source)
    except ValueError as error:
        raise SelectionError(f"{_shorten(source)}: not a valid URL ({error})") from error


def _make_failing_job(source: str, out: str, error: SelectionError) -> Job:
    name = _shorten(source)
    return Job(name, name, out, Identity(), problem=str(error))


def _shorten(name: str) -> str:
    name = _printable(name).replace("\0", "\\x00")
    return name if len(name) <= 200 else f"{name[:200]}…"


# What was found, the folder that its path is relative to, and of a folder the source that reads it.
_Agent = tuple[Found, str, str | None]


def _find_agents(source: str, census: Census, *, anonymous: bool, must_exist: bool) -> Iterator[_Agent]:
    """Yield each agent; count what else a search meets."""
    try:
        yield from _find_at_url(source, census, anonymous=anonymous) if is_url(source) else _find_here(source, census)
    except (SelectionError, Unreachable):
        if must_exist:
            raise
        yield Found(source), os.path.dirname(source), None


def _find_here(source: str, census: Census) -> Iterator[_Agent]:
    if os.path.isdir(source):
        yield from _find_in_folder(source, os.path.dirname(os.path.abspath(source)), source, census)
    elif os.path.exists(source):
        yield _look_at(source), os.path.dirname(source), None
    elif _MAGIC.search(source) and (matches := sorted(glob.glob(source, recursive=True))):
        yield from _find_matches(matches, _fixed_part(source, _MAGIC), census)
    else:
        raise SelectionError(f"{source!r} does not exist{_explain_missing(source)}")


def _explain_missing(source: str) -> str:
    names = [target.name for target in list_targets()]
    meant = [normalise_name(source)] if normalise_name(source) in names else find_meant(source, ())
    if meant:
        return f", but looks like a target: name several targets with commas, such as --to …,{meant[0]}"
    return ": name a checkpoint, or a folder with checkpoints; atari-convert sources lists what is read"


def _find_matches(matches: list[str], base: str, census: Census) -> Iterator[_Agent]:
    """Yield the checkpoints among and below the matches of a pattern, or else the agents' folders there.

    What lies in an agent's folder belongs to it, whatever the pattern matches.

    Args:
        matches: the paths, sorted, so that a folder comes before what is in it.
        base: the folder that their paths are relative to.
        census: what counts the rest.
    """
    agents: dict[str, _Agent] = {}
    has_checkpoint = False
    for match in matches:
        if agents and any(str(parent) in agents for parent in Path(match).parents):
            continue
        if os.path.isdir(match):
            for found, above, kind in _find_in_folder(match, base, base, census):
                if kind:
                    agents.setdefault(str(Path(found.name)), (found, above, kind))
                else:
                    has_checkpoint = True
                    yield found, above, None
        elif _is_match(match):
            has_checkpoint = True
            yield _look_at(match), base, None
        else:
            census.add_files([match])
    if not has_checkpoint:
        yield from agents.values()


def _find_in_folder(folder: str, above: str, base: str, census: Census) -> Iterator[_Agent]:
    """Yield a folder itself, whose path is then relative to ``above``, or what a search below it finds."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        _refuse(error)
    kind = recognise_folder(Path(folder), names)
    if kind:
        yield Found(folder), above, kind
    else:
        yield from ((found, base, kind) for found, kind in _walk(folder, census, is_agent_itself=is_agent(names)))


def _find_at_url(source: str, census: Census, *, anonymous: bool) -> Iterator[_Agent]:
    magic = _MAGIC_HTTP if source.startswith(("http://", "https://")) else _MAGIC
    if magic.search(source):
        fixed = _fixed_part(source, magic)
        base = storage.canonical_url(fixed, anonymous=anonymous)
        matches = storage.find_matches(fixed, source.removeprefix(fixed), anonymous=anonymous)
        matches = [found for found in matches if _is_match(found.name, anonymous=anonymous)]
        if not matches:
            raise SelectionError(f"{source!r} matches no checkpoint: name one, or a folder of the release")
        yield from ((found, base, None) for found in matches)
    elif is_file_name(path_of(source)):
        yield Found(source), os.path.dirname(source), None
    else:
        base = storage.canonical_url(source, anonymous=anonymous)
        yield from ((found, base, None) for found in _walk_url(source, census, anonymous=anonymous))


def _fixed_part(pattern: str, magic: re.Pattern[str]) -> str:
    """Return the folder that all matches of a pattern lie below: its parts before the first with magic."""
    return "".join(magic.split(pattern, maxsplit=1)[0].rpartition("/")[:2])


def _walk(top: str, census: Census, *, is_agent_itself: bool) -> Iterator[tuple[Found, str | None]]:
    """Yield the checkpoints in and below a folder, or else the agents' folders below it, with what reads them.

    No artefact of a converted agent is a checkpoint, and none stands for an agent that has no readable record. Below
    another folder, such an agent fails when it is read.
    """
    agents: list[tuple[Found, str | None]] = []
    has_checkpoint = False
    for folder, folders, names in storage.walk_links(top, _refuse):
        inside = {*folders, *names}
        kind = recognise_folder(Path(folder), inside) or (AGENT_FOLDER if is_agent(inside) else None)
        if kind and folder != top:
            agents.append((Found(folder), kind))
            folders.clear()
            continue
        census.add_folder(folder, inside)
        census.add_files(f"{folder}/{name}" for name in names)
        for path in (str(Path(folder, name)) for name in names):
            if _is_checkpoint(path):
                has_checkpoint = True
                yield _look_at(path), None
    if not has_checkpoint and not is_agent_itself:
        yield from agents


def _look_at(path: str) -> Found:
    return Found(path, os.stat(path).st_size if os.path.exists(path) else 0)  # a link may lead nowhere


def _walk_url(top: str, census: Census, *, anonymous: bool) -> Iterator[Found]:
    """Yield the checkpoints in and below a folder at a URL, as `_walk` does."""
    for place, folders, files in storage.walk(top, anonymous=anonymous):
        inside = folders.keys() | files.keys()
        if is_agent(inside):
            census.add_folder(storage.join(top, place) if place else top, inside)
            if place:
                folders.clear()
                continue
        census.add_files(found.name for found in files.values())
        yield from (found for found in files.values() if _is_checkpoint(found.name, anonymous=anonymous))


def _is_checkpoint(name: str, *, anonymous: bool = False) -> bool:
    """Tell whether a search takes a file, a path or a URL, for a checkpoint."""
    return picks_up(path_of(name), partial(storage.read_head, name, HEAD_SIZE, anonymous=anonymous))


def _is_match(name: str, *, anonymous: bool = False) -> bool:
    """Tell the same of a file that a pattern of the user matches: there, the suffix of a checkpoint is enough."""
    return path_of(name).endswith(list_pattern_suffixes()) or _is_checkpoint(name, anonymous=anonymous)


def _refuse(error: OSError) -> NoReturn:
    raise SelectionError(f"{error.filename}: cannot be searched ({error.strerror})")


def _make_job(found: Found, base: str, out: str, identity: Identity | None) -> Job:
    name, base = path_of(found.name), path_of(base)
    place = name if is_url(name) else Path(name).absolute().as_posix()
    who = choose_identity(found.name, place, identity)
    path = locate(who)
    if path is None:
        path = name[len(base) :].lstrip("/") if is_url(name) else Path(name).relative_to(base).as_posix()
        if any(part in ("", ".", "..") for part in strip_suffix(path).split("/")):
            suffix = path.removeprefix(strip_suffix(path)) or "a suffix"
            raise SelectionError(f"{found.name}: its name without {suffix} is no name for a folder: rename it")
    return Job(_printable(found.name), _printable(path), out, who, found.size, found.stamp)


def _make_folder_job(
    folder: str, kind: str, base: str, out: str, identity: Identity | None, artefact: str | None
) -> Job:
    who = identity or _identify_folder(folder, kind, artefact)
    path = strip_suffix(locate(who) or os.path.relpath(folder, base or "."))
    if path.split("/")[0] in ("", ".", ".."):
        path = Path(folder).absolute().name
    if not path:
        raise SelectionError(f"{folder}: has no name for the agent's folder: name a folder below it")
    return Job(_printable(folder), _printable(path), out, who, kind=kind, is_named=identity is not None)


def _identify_folder(folder: str, kind: str, artefact: str | None) -> Identity:
    """Return who the agent in a folder is. Where that cannot be read, reading it in earnest will tell why."""
    try:
        identity: Identity = import_source(kind).identify(Path(folder), artefact)
    except AtariConvertError:
        return Identity()
    return identity


def _refuse_overlaps(jobs: list[Job]) -> None:
    """Refuse to write an agent where another one is read. Where it is itself read, its job fails.

    Raises:
        SelectionError: an agent's folder would be that of another one that is read, inside it, or around it.
    """
    read = {os.path.realpath(job.source): job.source for job in jobs if job.kind}
    if not read:
        return
    above = {str(parent): source for path, source in read.items() for parent in Path(path).parents}
    for job in jobs:
        written = os.path.realpath(job.folder.removeprefix("local://"))
        places = (written, *map(str, Path(written).parents))
        other = next((read[place] for place in places if place in read), above.get(written))
        if other not in (None, job.source):
            raise SelectionError(
                f"{job.source}: would be written to {job.folder}, but {other} is read: choose another --out"
            )


def _printable(name: str) -> str:
    """Return a name in UTF-8. One that was not has no place in a record: its job fails, by a name to be read."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _drop_doubles(jobs: list[Job]) -> list[Job]:
    """Return each job once. Jobs of one folder stand beside each other.

    Raises:
        SelectionError: two sources would share an output folder.
    """
    kept: list[Job] = []
    for job in jobs:
        if job.problem or not kept or kept[-1].problem or kept[-1].folder != job.folder:
            kept.append(job)
        elif os.path.realpath(kept[-1].source) != os.path.realpath(job.source):
            raise SelectionError(
                f"{kept[-1].source} and {job.source} would share the output folder {job.folder}: "
                "name one of them as SOURCE, or give each its own -o"
            )
    return kept


def _check_filter(wanted: Filter) -> None:
    try:
        for kind, names, known in (("family", wanted.families, FAMILIES), ("game", wanted.games, load_games())):
            for name in names:
                if not _MAGIC.search(name):
                    check_known(kind, name, list(known))
    except ValueError as error:
        raise SelectionError(str(error)) from error
    for steps in wanted.steps:
        limits = _RANGE.fullmatch(steps)
        if steps not in ("latest", "final") and not (limits or _STEP.fullmatch(steps)):
            raise SelectionError(f"--steps {steps!r} is not latest, final, A:B, a step or a pattern such as *000000")
        if limits and limits[1] and limits[2] and int(limits[1]) > int(limits[2]):
            raise SelectionError(f"--steps {steps} is empty: A:B means from A to B, both included")


def _matches(identity: Identity, wanted: Filter) -> bool:
    return (
        _fits(find_family(identity), wanted.families)
        and _fits(identity.game, wanted.games)
        and _fits(identity.seed, wanted.seeds)
    )


def _fits(value: object, patterns: tuple[str, ...]) -> bool:
    return not patterns or (value is not None and any(fnmatchcase(str(value), pattern) for pattern in patterns))


def _run_of(job: Selectable) -> tuple[object, ...]:
    identity = job.identity
    return identity.zoo, identity.algorithm, identity.protocol, identity.game, identity.seed


def _has_step(step: int | None, latest: int, wanted: tuple[str, ...]) -> bool:
    return step is not None and any(_is_step(step, latest, text) for text in wanted)


def _is_step(step: int, latest: int, wanted: str) -> bool:
    if wanted == "latest":
        return step == latest
    if wanted == "final":
        return step == FINAL_STEP
    if limits := _RANGE.fullmatch(wanted):
        return int(limits[1] or 0) <= step <= int(limits[2] or step)
    return fnmatchcase(str(step), wanted)
