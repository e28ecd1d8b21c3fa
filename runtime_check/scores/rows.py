"""One row for each episode: what was played, how, and what came of it. CSV and Parquet hold the same columns."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from convert.errors import CheckError, MissingExtra

GAME_OVER, TIME_LIMIT, CUT = "game over", "time limit", "cut"


@dataclass(frozen=True)
class Row:
    """One episode.

    zoo, family, game, seed, step: who the agent is; family is the algorithm where its zoo has no families.
    sha256: of its checkpoint. backend: what answered for it. protocol, epsilon, max_steps: how it played; max_steps is
    empty without a bound. ale: the version of the emulator. episode: the seed of the episode.
    score: the sum of the unclipped rewards. steps: how many actions. ending: ``game over``; ``time limit``, that of the
    protocol; or ``cut`` by ``max_steps``, whose return is no score.
    """

    zoo: str
    family: str
    game: str
    seed: int | None
    step: int | None
    source: str
    sha256: str
    backend: str
    protocol: str
    epsilon: float
    max_steps: int | None
    ale: str
    episode: int
    score: float
    steps: int
    ending: str

    @property
    def agent(self) -> tuple[str, str, str, int, int, str]:
        """What tells one agent from another, in the order of a table."""
        seed, step = (-1 if number is None else number for number in (self.seed, self.step))
        return self.zoo, self.family, self.game, seed, step, self.source

    @property
    def key(self) -> tuple[object, ...]:
        """What tells an episode from all others that could be played."""
        how = (self.sha256, self.backend, self.protocol, self.epsilon, self.max_steps or 0, self.ale)
        return (*self.agent, *how, self.episode)


COLUMNS = tuple(field.name for field in fields(Row))
_TYPES = get_type_hints(Row)


def to_csv(rows: Iterable[Row], *, header: bool = True) -> str:
    """Return rows as CSV, a missing value as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)
    return text.getvalue()


def from_csv(text: str, name: str, *, is_whole: bool = True) -> list[Row]:
    """Return the rows that `to_csv` wrote.

    Args:
        text: the content of a file.
        name: how messages call it.
        is_whole: whether the last line is complete; a killed run may have left one that is not, which is dropped.

    Raises:
        CheckError: it holds something else; the line is named.
    """
    if not is_whole:
        text = text[: text.rfind("\n") + 1]
    lines = csv.reader(io.StringIO(text))
    if (found := next(lines, None)) is not None and tuple(found) != COLUMNS:
        raise CheckError(f"{name}: line 1 has other columns than scores have ({', '.join(COLUMNS)})")
    try:
        return [_to_row(dict(zip(COLUMNS, line, strict=True))) for line in lines]
    except (ValueError, csv.Error) as error:
        raise CheckError(f"{name}: line {lines.line_num} is no row of scores ({error})") from error


def read(path: Path) -> list[Row]:
    """Read a file of scores, CSV or Parquet by its name.

    Raises:
        CheckError: it cannot be read, or holds something else.
        MissingExtra: it is Parquet, and pyarrow is not installed.
    """
    try:
        if path.suffix != ".parquet":
            return from_csv(path.read_text("utf-8"), str(path))
        table = _import_parquet().read_table(path)
        documents = table.to_pylist()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckError(f"{path}: cannot be read ({error})") from error
    if tuple(table.column_names) != COLUMNS:
        raise CheckError(f"{path}: has other columns than scores have ({', '.join(COLUMNS)})")
    return [Row(**document) for document in documents]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write a file of scores in one step, CSV or Parquet by its name.

    Raises:
        OSError: it cannot be written.
        MissingExtra: it is Parquet, and pyarrow is not installed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix == ".parquet":
            _write_parquet(part, rows)
        else:
            part.write_text(to_csv(rows), "utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_name(path: Path) -> None:
    """Raise unless a file of this name can be written here.

    Raises:
        CheckError: it is neither CSV nor Parquet.
        MissingExtra: it is Parquet, and pyarrow is not installed.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise CheckError(f"{path}: expected a name that ends in .csv or .parquet")
    if path.suffix == ".parquet":
        _import_parquet()


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow

    parquet = _import_parquet()
    kinds = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(name, kinds[_find_kind(name)]) for name in COLUMNS])
    parquet.write_table(pyarrow.Table.from_pylist([asdict(row) for row in rows], schema), path)


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtra("Parquet needs pyarrow: pip install 'atari-convert[play]', or write .csv") from error
    return pyarrow.parquet


def _to_row(cells: dict[str, str]) -> Row:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        is_missing = not cell and type(None) in getattr(_TYPES[name], "__args__", ())
        values[name] = None if is_missing else _find_kind(name)(cell)
    return Row(**values)


def _find_kind(name: str) -> type[Any]:
    kind: type[Any] = next(iter(getattr(_TYPES[name], "__args__", ())), _TYPES[name])
    return kind
