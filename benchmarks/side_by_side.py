"""Variants of one piece of work, timed in turns in one process: medians, and ratios taken round by round."""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One variant: seconds of every round, and the ratio to the baseline in every round."""

    name: str
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


@dataclass
class Comparison:
    """Variants of one piece of work; the first is the baseline."""

    title: str
    rows: list[Row]
    target: str = ""

    def print(self) -> None:
        table = Table(title=self.title, caption=self.target or None)
        for head in ("variant", "seconds (median)", "ratio (median)", "range of the ratio", ""):
            table.add_column(head)
        for row in self.rows:
            table.add_row(*cells(row), row.note)
        Console(width=140).print(table)

    def as_dict(self) -> dict[str, Any]:
        return {"title": self.title, "target": self.target, "rows": [vars(r) for r in self.rows]}


def cells(row: Row) -> tuple[str, str, str, str]:
    """Name, median seconds, median ratio, range of the ratio."""
    return row.name, f"{row.median:.3g}", f"{row.ratio:.3f}", f"{min(row.ratios):.3f}–{max(row.ratios):.3f}"


def compare(
    title: str,
    variants: Mapping[str, Callable[[], float | None]],
    *,
    rounds: int = 5,
    target: str = "",
    warm: bool = True,
    inverse: bool = False,
) -> Comparison:
    """Run the variants in turns, the order reversed every other round, and print the table.

    Args:
        variants: the first is the baseline; a function that returns a number is measured by seconds per that number.
        rounds: how often each runs.
        target: printed below.
        warm: run each once before.
        inverse: ratios say how many times faster than the baseline, instead of how many times slower.
    """
    rows = {name: Row(name) for name in variants}
    if warm:
        for work in variants.values():
            work()
    for turn in range(rounds):
        took: dict[str, float] = {}
        for name in list(variants) if turn % 2 == 0 else reversed(list(variants)):
            started = time.perf_counter()
            amount = variants[name]()
            took[name] = (time.perf_counter() - started) / (amount or 1.0)
        base = took[next(iter(variants))]
        for name, row in rows.items():
            row.seconds.append(took[name])
            row.ratios.append(base / took[name] if inverse else took[name] / base)
    found = Comparison(title, list(rows.values()), target)
    found.print()
    return found


def machine(*packages: str) -> dict[str, Any]:
    """What the figures were measured on."""
    held = {}
    for name in ("torch", "transformers", "transformer-lens", *packages):
        try:
            held[name] = version(name)
        except PackageNotFoundError:
            held[name] = "absent"
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": held,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.machine())


def save(path: Path, part: str, found: list[Comparison], **more: Any) -> None:
    """Put the results of one part, with the machine, in a JSON file; other parts in it stay."""
    said = json.loads(path.read_text()) if path.is_file() else {}
    said[part] = {"machine": machine(), **more, "comparisons": [c.as_dict() for c in found]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=1) + "\n")


def markdown(path: Path) -> str:
    """The results in a JSON file as Markdown tables: python benchmarks/side_by_side.py FILE."""
    lines = []
    for part in json.loads(path.read_text()).values():
        where = part["machine"]
        for one in part["comparisons"]:
            rows = [Row(r["name"], r["seconds"], r["ratios"], r["note"]) for r in one["rows"]]
            lines += [f"\n### {one['title']}\n", "| variant | median (s) | ratio | range | |", "|---|---|---|---|---|"]
            lines += [f"| {' | '.join(cells(r))} | {r.note} |" for r in rows]
            said = f"{where['processor']}, {where['threads']} threads, " + ", ".join(
                f"{k} {v}" for k, v in where["packages"].items()
            )
            lines += ["", f"{one['target']}; {len(rows[0].seconds)} rounds; {said}"]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
