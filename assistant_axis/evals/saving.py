"""What an evaluation leaves in a folder: JSON, CSV, a table in Markdown, and its figure."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.activations.store import atomic
from assistant_axis.errors import SettingError
from assistant_axis.plots.style import Plot, save_figure

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel, Intervention
    from assistant_axis.steering.direction import Direction


def save_results(
    folder: str | Path,
    name: str,
    rows: Sequence[Mapping[str, str]],
    content: Mapping[str, Any],
    figure: Plot | None = None,
) -> list[Path]:
    """Write `name.json` (conditions, table and all that was measured), `name.csv`, `name.md` and `name.png`.

    Args:
        folder: made if it does not exist.
        name: of the files, without an ending.
        rows: the table; rows may lack columns that others have.
        content: what goes into the JSON file beside the table.
        figure: written as PNG if there is one.

    Returns:
        The files, in that order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(c for row in rows for c in row))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    lines = [columns, ["---"] * len(columns), *([row.get(c, "") for c in columns] for row in rows)]
    written = []
    for ending, text in (
        ("json", json.dumps({**content, "table": [dict(r) for r in rows]}, ensure_ascii=False, indent=1) + "\n"),
        ("csv", table.getvalue()),
        ("md", "".join(f"| {' | '.join(line)} |\n" for line in lines)),
    ):
        path = folder / f"{name}.{ending}"
        with atomic(path) as scratch:
            scratch.write_text(text, encoding="utf-8", newline="")
        written.append(path)
    if figure is not None:
        written.append(save_figure(figure, folder / f"{name}.png"))
    return written


def keep_answers(file: Path, conditions: Mapping[str, Any], answers: Sequence[str]) -> None:
    """Write finished answers with what they were made under, in one atomic step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as scratch:
        scratch.write_text(json.dumps({"conditions": conditions, "answers": answers}), encoding="utf-8")


def kept_answers(file: Path, conditions: Mapping[str, Any], count: int) -> list[str] | None:
    """Answers of an earlier run, if there are any.

    Raises:
        SettingError: the file is damaged, or its answers were made under other conditions.
    """
    if not file.is_file():
        return None
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
        before, texts = said["conditions"], said["answers"]
    except (ValueError, KeyError, TypeError) as e:
        raise SettingError(f"{file} cannot be read as kept answers ({e}). Remove it, and they are asked again.") from e
    if before != conditions or len(texts) != count:
        raise SettingError(f"{file} holds answers of other settings. Remove it, or give another folder.")
    return [str(t) for t in texts]


def direction_digest(direction: "Direction", layers: Sequence[int]) -> str:
    """What a direction means at some layers: unit vectors, and the residual norms that a dose of 1 is."""
    found = hashlib.sha256()
    for layer in layers:
        k = direction.index(layer)
        found.update(direction.unit[k].float().cpu().numpy().tobytes())
        if direction.resid_norms is not None:
            found.update(direction.resid_norms[k : k + 1].float().cpu().numpy().tobytes())
    return found.hexdigest()


def identity(step: "Intervention", model: "HookedChatModel") -> list[str]:
    """What tells interventions apart: what they say of themselves, and their directions."""
    from assistant_axis.steering.interventions import Chain, Change

    if isinstance(step, Chain):
        return [line for part in step.parts for line in identity(part, model)]
    if isinstance(step, Change):
        return [step.describe(model), direction_digest(step.direction, step.resolved(model))]
    return [repr(step)]
