"""How figures look, and how they are written: one ink, a few colours that read on white and on near-black."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assistant_axis.activations.store import Conditions, atomic
from assistant_axis.errors import SettingError

INK = "#1d2530"
"""Text and lines; in an HTML page it is replaced by the page's own text colour."""
FAINT = "#8a939e"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2f7fd1", "#d9772b", "#2f9e6b", "#9467c9", "#d0484d"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, "#8c7a3f")
ASSISTANT, ROLE_PLAY = BLUE, ORANGE

_RC: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "svg.fonttype": "none",  # text stays text: it can be searched, and follows the page's colour
    "svg.hashsalt": "assistant-axis",
}
FORMATS = ("png", "svg", "pdf")


class Plot(Figure):
    """A matplotlib figure that shows itself in a notebook; it never touches pyplot or its state."""

    def _repr_png_(self) -> bytes:
        return figure_bytes(self, "png", dpi=110)


@contextmanager
def styled(width: float = 6.4, height: float = 4.0) -> Iterator[Plot]:
    """A new figure of that size in inches; everything drawn in the block has the house's fonts and colours."""
    inked: Any = {**_RC, **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)}
    with rc_context(inked):
        yield Plot(figsize=(width, height), layout="constrained", facecolor="white")


def clean(ax: Axes, *, grid: str = "") -> None:
    """Remove the box, colour what is left, and lay a faint grid along `"x"`, `"y"` or `"both"`."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(FAINT)
    ax.tick_params(color=FAINT, labelsize=9)
    ax.set_facecolor("none")
    if grid:
        ax.grid(axis=grid, color=FAINT, alpha=0.25, linewidth=0.7)  # type: ignore[arg-type]
        ax.set_axisbelow(True)


def title(ax: Axes, said: str, conditions: str = "") -> None:
    """A left-aligned title, with the conditions in small type under it."""
    if conditions:
        ax.set_title(conditions, loc="left", fontsize=8.5, color=FAINT)
        ax.annotate(
            said,
            (0, 1),
            (0, 21),
            "axes fraction",
            textcoords="offset points",
            fontsize=11.5,
            weight="bold",
            va="bottom",
        )
    else:
        ax.set_title(said, loc="left", fontsize=11.5, weight="bold")


def describe(conditions: Conditions, *parts: str) -> str:
    """One line on how numbers were measured: model, span and what else is given."""
    return " · ".join([conditions.model, f"{conditions.span} span", *(p for p in parts if p)])


def readable(role: str) -> str:
    """A role's name for people."""
    return role.replace("_", " ")


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 160) -> Path:
    """Write a figure in one atomic step; the ending says the format.

    Args:
        figure: any matplotlib figure.
        path: ends in `.png`, `.svg` or `.pdf`.
        dpi: dots per inch of a PNG.

    Raises:
        SettingError: another ending.
    """
    target = Path(path)
    kind = target.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise SettingError(f"Figures are written as {', '.join(FORMATS)}; {target.name!r} ends in none of them.")
    content = figure_bytes(figure, kind, dpi=dpi)
    with atomic(target) as scratch:
        scratch.write_bytes(content)
    return target


def figure_bytes(figure: Figure, kind: str, *, dpi: int = 160) -> bytes:
    """The figure as a file of that kind, without dates, so that the same figure gives the same bytes."""
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    buffer = io.BytesIO()
    with rc_context(_RC):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=dated)
    return buffer.getvalue()


def inline_svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page: transparent, its ink the page's `--ink` and `--faint`.

    Args:
        figure: any matplotlib figure.
        prefix: unique on the page; ids inside are told apart by it.
        label: what a screen reader says.
    """
    from html import escape

    face = figure.get_facecolor()
    figure.set_facecolor("none")
    try:
        svg = figure_bytes(figure, "svg").decode()
    finally:
        figure.set_facecolor(face)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening = svg[: svg.index(">") + 1]
    box = re.search(r'viewBox="[^"]+"', opening)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="{escape(label)}" {box[0] if box else ""}>'
    body = svg[len(opening) :]
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    # A <style> element inside an inline SVG would be applied to the whole page.
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = body.replace("<path ", '<path stroke-linejoin="round" ')
    return head + body.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
