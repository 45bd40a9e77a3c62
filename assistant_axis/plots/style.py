"""How all figures look: white ground (so that they read the same on a light and on a dark page), few colours, no frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant_axis.activations.store import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2937", "#6b7280", "#e5e7eb"
ASSISTANT, ROLE, ALERT = "#2563eb", "#f97316", "#dc2626"
SERIES = ("#2563eb", "#f97316", "#16a34a", "#9333ea", "#dc2626", "#0891b2")


def figure(width: float = 7.0, height: float = 4.0, *, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure with its axes (one, or an array of them), in the house style; sizes in inches."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = fig.subplots(rows, columns)
    for ax in fig.axes:
        plain(ax)
    return fig, axes


def plain(ax: Axes) -> None:
    """No frame but two muted axes, a light grid behind, eleven-point labels."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, labelsize=10)
    for label in (ax.xaxis.label, ax.yaxis.label, ax.title):
        label.set_color(INK)
        label.set_fontsize(11)


def caption(fig: Figure, text: str) -> None:
    """The conditions of a figure, under it."""
    fig.supxlabel(text, fontsize=8, color=MUTED)


def spread(values: list[float], gap: float) -> list[float]:
    """Places for labels near `values` (sorted rising) that keep at least `gap` between neighbours."""
    placed = list(values)
    for _ in range(200):
        moved = False
        for k in range(len(placed) - 1):
            short = gap - (placed[k + 1] - placed[k])
            if short > 1e-9:
                placed[k] -= short / 2
                placed[k + 1] += short / 2
                moved = True
        if not moved:
            break
    return placed


def save_figure(fig: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a figure in the format its suffix names (png, svg, pdf), in one atomic step."""
    target = Path(path)
    with atomic(target) as scratch:
        fig.savefig(scratch, format=target.suffix.lstrip(".") or "png", dpi=dpi, facecolor="white")
    return target
