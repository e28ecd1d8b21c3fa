"""Who an agent is, as data. What a zoo's names and paths mean is told by its source, see `convert.sources`."""

from __future__ import annotations

import difflib
import re
from dataclasses import astuple, dataclass, fields

from convert.agents.games import load_games

LARGEST_NUMBER = 10**15 - 1  # of 15 digits, which every reader of JSON holds exactly
WORD = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an agent is. What is not known is None.

    zoo: where it was published, such as ``atari-agents``: the name of the source that knows its rules.
    algorithm: what trained it, such as ``M-DQN``. game: CamelCase, such as ``SpaceInvaders``.
    protocol: how observations and episodes were made when it was trained, such as ``modern``.
    seed: of the training run. step: in agent steps, of 4 frames each.
    """

    zoo: str | None = None
    algorithm: str | None = None
    game: str | None = None
    protocol: str | None = None
    seed: int | None = None
    step: int | None = None

    @property
    def is_complete(self) -> bool:
        return None not in (self.zoo, self.algorithm, self.game, self.protocol, self.seed, self.step)

    @property
    def rom_id(self) -> str | None:
        return load_games()[self.game].rom_id if self.game else None


def combine(one: Identity, other: Identity) -> Identity:
    """Return what two identities tell together; where both tell something, what the first one tells."""
    values = zip(astuple(one), astuple(other), strict=True)
    return Identity(*(theirs if ours is None else ours for ours, theirs in values))


def find_conflict(one: Identity, other: Identity) -> str | None:
    """Return the name of the first field that both tell and that differs; None where there is none."""
    names = (field.name for field in fields(Identity))
    return next((name for name in names if _differ(getattr(one, name), getattr(other, name))), None)


def _differ(one: object, other: object) -> bool:
    return None not in (one, other) and one != other


def to_number(value: object) -> int | None:
    """Return a value as a seed or a step, if it can be one; else None."""
    return value if type(value) is int and 0 <= value <= LARGEST_NUMBER else None


def find_identity_problem(identity: Identity) -> str | None:
    """Return why an identity cannot be recorded; None if it can."""
    for name in ("zoo", "algorithm", "protocol"):
        value = getattr(identity, name)
        if value is not None and not (isinstance(value, str) and WORD.fullmatch(value)):
            return f"{name} is {value!r}, expected {WORD.pattern}"
    for name in ("seed", "step"):
        value = getattr(identity, name)
        if value is not None and to_number(value) is None:
            return f"{name} is {value!r}, expected 0 to {LARGEST_NUMBER}"
    try:
        if identity.game is not None:
            if not isinstance(identity.game, str):
                return f"game is {identity.game!r}, expected a name such as Pong"
            check_known("game", identity.game, list(load_games()))
    except ValueError as error:
        return str(error)
    return None


def check_known(kind: str, name: str, known: list[str]) -> None:
    """Raise unless a name is among those that are known.

    Raises:
        ValueError: it is not; the message names the closest one.
    """
    if name not in known:
        folded = {other.casefold(): other for other in known}
        close = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=1)]
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise ValueError(f"no {kind} {name!r} in the release; {hint}")
