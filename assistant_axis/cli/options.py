"""What several commands take alike: a model, layers, a run's folder or one of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.geometry.vectors import PersonaVectors

DEFAULT_MODEL = "smollm2-135m-instruct"
_MADE_BY = {
    "vectors.safetensors": "extract --out FOLDER",
    "axis.safetensors": "axis FOLDER",
    "rollouts.parquet": "extract --span response --out FOLDER",
}
ModelOption = Annotated[str, typer.Option("--model", "-m", help="An embedded name, a hub id, or a local folder.")]


def parse_layers(said: str | None) -> tuple[int | float, ...] | None:
    """`18`, `20,22,24`, `20:28` (a Python range: layers 20 to 27), or a depth such as `0.5`.

    Raises:
        SettingError: anything else.
    """
    from assistant_axis.errors import SettingError

    if said is None:
        return None
    found: list[int | float] = []
    for part in said.split(","):
        try:
            found += parse_window(part) if ":" in part else [float(part) if "." in part else int(part)]
        except ValueError:
            raise SettingError(f"--layers {said}: write 18, or 20,22,24, or 20:28 for layers 20 to 27.") from None
    return tuple(found)


def parse_window(said: str) -> range:
    """`20:28`, a Python range.

    Raises:
        SettingError: anything else.
    """
    from assistant_axis.errors import SettingError

    first, _, last = said.strip().partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise SettingError(f"{said!r} is no window; write 20:28 for layers 20 to 27.")
    return range(int(first), int(last))


def one_layer(said: float | None) -> int | float | None:
    """An index or a depth, from a command line's number."""
    return int(said) if said is not None and said.is_integer() else said


def file_in(path: Path, name: str) -> Path:
    """The file itself, or the one of that name in a run's folder.

    Raises:
        FileNotFoundError: saying which command makes it.
    """
    found = path / name if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(f"{found} does not exist. Make it with: assistant-axis {_MADE_BY[name]}")
    return found


def load_vectors(path: Path) -> PersonaVectors:
    """Persona vectors from their file, a run's folder, or by the name of a model whose vectors ship with the package."""
    from assistant_axis.geometry.vectors import PersonaVectors

    if is_precomputed(path):
        from assistant_axis.geometry.precomputed import load_precomputed

        return load_precomputed(str(path))
    return PersonaVectors.load(file_in(path, "vectors.safetensors"))


def beside(run: Path, name: str) -> Path:
    """A file in a run's folder, or beside its vectors; in the working directory for vectors that ship."""
    if is_precomputed(run):
        return Path(name)
    return run / name if run.is_dir() else run.with_name(name)


def is_precomputed(path: Path) -> bool:
    """Whether a path given on the command line is no path but the name of vectors that ship with the package."""
    from assistant_axis.geometry.precomputed import precomputed_names

    return not path.exists() and str(path) in precomputed_names()


def vectors_behind(path: Path) -> PersonaVectors | None:
    """Persona vectors with single rollouts, where a path given for an axis leads to such; else `None`."""
    from assistant_axis.errors import ArtefactMismatchError
    from assistant_axis.geometry.vectors import PersonaVectors

    path = path / "vectors.safetensors" if path.is_dir() else path
    try:
        found = PersonaVectors.load(path)
    except (ArtefactMismatchError, FileNotFoundError):
        return None
    return found if found.samples is not None else None


def load_axis(path: Path, method: str = "contrast") -> AssistantAxis:
    """An axis from its own file, from persona vectors, from a run's folder (its vectors, else its axis), or by the name of
    a model whose axis ships with the package.

    Raises:
        SettingError: an unknown method.
    """
    from assistant_axis.errors import ArtefactMismatchError, SettingError
    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.geometry.vectors import PersonaVectors

    if method not in ("contrast", "pc1"):
        raise SettingError(f'--method {method} is not known; use "contrast" or "pc1".')
    chosen: Literal["contrast", "pc1"] = "pc1" if method == "pc1" else "contrast"
    if is_precomputed(path):
        from assistant_axis.geometry.precomputed import load_precomputed_axis

        return load_precomputed_axis(str(path), chosen)
    if path.is_dir():
        vectors = path / "vectors.safetensors"
        path = vectors if vectors.is_file() else file_in(path, "axis.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give an axis, persona vectors, or a run's folder.")
    try:
        return AssistantAxis.load(path)
    except ArtefactMismatchError:
        return PersonaVectors.load(path).axis(chosen)


def print_table(title: str, rows: list[dict[str, str]]) -> None:
    """Rows with the same keys, as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
