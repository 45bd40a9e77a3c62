"""What an evaluation leaves in a folder: JSON, CSV, a table in Markdown, and its figure."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assistant_axis.activations.store import atomic
from assistant_axis.plots.style import Plot, save_figure


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
