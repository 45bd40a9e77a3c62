"""What an evaluation leaves in a folder: JSON, CSV, a table in Markdown, and its figure."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.activations.store import atomic
from assistant_axis.errors import SettingError
from assistant_axis.plots.style import Plot, save_figure
from assistant_axis.progress import track

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


def resumed(
    file: Path | None,
    conditions: Mapping[str, Any],
    count: int,
    ask: Callable[[range], Sequence[str]],
    *,
    chunk: int,
    progress: str = "",
) -> list[str]:
    """`count` texts: those that a file already holds, and the rest asked for in chunks, each written down once it is there.

    Args:
        file: JSON lines, the conditions first; `None` asks for all at once and writes nothing.
        conditions: what the texts depend on.
        count: of all texts.
        ask: takes numbers from 0, gives a text for each.
        chunk: so many are asked for at a time, and at most so many are lost when a run is stopped.
        progress: label of a bar; empty for none.

    Raises:
        SettingError: the file is damaged, or its texts were made under other conditions.
    """
    with track(count, progress, show=bool(progress)) as advance:
        if file is None:
            said = list(ask(range(count)))
            advance(count)
            return said
        found = _kept(file, conditions, count)
        advance(len(found))
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(file) as scratch:
                scratch.write_text(json.dumps(conditions) + "\n", encoding="utf-8")
        for start in range(len(found), count, chunk):
            new = list(ask(range(start, min(start + chunk, count))))
            with file.open("a", encoding="utf-8", newline="") as out:
                out.write("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in new))
                out.flush()
                os.fsync(out.fileno())
            found += new
            advance(len(new))
        return found


def _kept(file: Path, conditions: Mapping[str, Any], count: int) -> list[str]:
    """Texts of an earlier run; a last line that was cut off is removed from the file."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        head, *texts = (json.loads(line) for line in whole.splitlines())
        if not isinstance(head, dict) or not all(isinstance(t, str) for t in texts):
            raise ValueError("not texts under their conditions")
    except ValueError as e:
        raise SettingError(f"{file} cannot be read as kept answers ({e}). Remove it, and they are asked again.") from e
    if head != json.loads(json.dumps(conditions)) or len(texts) > count:
        raise SettingError(f"{file} holds answers of other settings. Remove it, or give another folder.")
    if len(whole) < len(content):
        with file.open("r+b") as cut:
            cut.truncate(len(whole))
    return texts


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
