"""Who an agent is: what the layout of its release tells of it."""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import PurePosixPath

from convert.agents.games import load_games

LARGEST_NUMBER = 10**15 - 1  # of 15 digits, which every reader of JSON holds exactly


@dataclass(frozen=True)
class Family:
    """A family of the release: its folder, the algorithm that trained it, the protocol it was trained under."""

    name: str
    algorithm: str
    protocol: str


FAMILIES = {
    family.name: family
    for family in (
        Family("DQN_modern", "DQN", "modern"),
        Family("MDQN_modern", "M-DQN", "modern"),
        Family("C51_classic", "C51", "classic"),
        Family("DQN_classic_adam", "DQN", "classic"),
    )
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Where an agent stands in the release. What is not known is None. step: in agent steps, of 4 frames each."""

    family: str | None = None
    game: str | None = None
    seed: int | None = None
    step: int | None = None

    @property
    def is_complete(self) -> bool:
        return None not in (self.family, self.game, self.seed, self.step)

    @property
    def algorithm(self) -> str | None:
        return FAMILIES[self.family].algorithm if self.family else None

    @property
    def protocol(self) -> str | None:
        return FAMILIES[self.family].protocol if self.family else None

    @property
    def rom_id(self) -> str | None:
        return load_games()[self.game].rom_id if self.game else None

    @property
    def folder(self) -> PurePosixPath:
        """Its folder in the release and under the output, ``FAMILY/Game/seed/model_STEP``, when complete."""
        return PurePosixPath(f"{self.family}/{self.game}/{self.seed}/model_{self.step}")


_NUMBER = r"(0|[1-9]\d{0,14})"
_LAYOUT = re.compile(rf"(?:^|.*/)([^/]+)/([^/]+)/{_NUMBER}/model_{_NUMBER}\.gz", re.ASCII | re.DOTALL)


def identify(path: str) -> Identity:
    """Return the identity that a path in the release's layout tells; an empty one for any other path.

    Args:
        path: with ``/`` between its parts, such as ``…/DQN_modern/Pong/0/model_50000000.gz``.
    """
    match = _LAYOUT.fullmatch(path)
    if match is None or match[1] not in FAMILIES or match[2] not in load_games():
        return Identity()
    family, game = sys.intern(match[1]), sys.intern(match[2])  # thousands of agents share a few names
    return Identity(family, game, int(match[3]), int(match[4]))


def parse_identity(text: str) -> Identity:
    """Return the identity that ``FAMILY/Game[/SEED[/STEP]]`` tells.

    Raises:
        ValueError: another form, a family or a game that the release does not have.
    """
    parts = text.strip("/").split("/")
    if not 2 <= len(parts) <= 4 or not all(re.fullmatch(_NUMBER, part, re.ASCII) for part in parts[2:]):
        raise ValueError(f"{text!r} is not FAMILY/Game[/SEED[/STEP]], such as DQN_modern/Pong/0/50000000")
    check_known("family", parts[0], list(FAMILIES))
    check_known("game", parts[1], list(load_games()))
    seed, step, *_ = (*map(int, parts[2:]), None, None)
    return Identity(parts[0], parts[1], seed, step)


def check_known(kind: str, name: str, known: list[str]) -> None:
    """Raise unless the release has a family or game of this name.

    Raises:
        ValueError: it has none; the message names the closest one.
    """
    if name not in known:
        folded = {other.casefold(): other for other in known}
        close = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1)]
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"no {kind} {name!r} in the release; {hint}")
