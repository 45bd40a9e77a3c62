"""A map of the roles to be turned with the mouse: plotly, an optional extra."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assistant_axis.activations.store import atomic
from assistant_axis.errors import MissingExtraError, SettingError
from assistant_axis.plots.style import ASSISTANT, RED, ROLE_PLAY, describe, readable

if TYPE_CHECKING:
    from assistant_axis.geometry.space import PersonaSpace

__all__ = ["PersonaMap", "persona_map", "save_plotlyjs"]

MIDDLE = "#7f8894"
"""Text and lines: read on white and on near-black alike."""


@dataclass(frozen=True)
class PersonaMap:
    """A 3-D map of the roles; it shows itself in a notebook.

    Attributes:
        figure: the plotly figure, to be changed at will.
    """

    figure: Any

    def html(self, *, include_plotlyjs: bool | str = True, full_page: bool = False) -> str:
        """The map as HTML that loads nothing from elsewhere.

        Args:
            include_plotlyjs: `True` puts the script (about 5 MB) inside; `False` leaves it to the page, for a page with
                several maps; a path that ends in `.js`, relative to the page, lets the pages of a site share one copy
                (write it with `save_plotlyjs`).
            full_page: a whole page instead of a `<div>`.

        Raises:
            SettingError: anything else, such as `"cdn"`.
        """
        if isinstance(include_plotlyjs, str) and (not include_plotlyjs.endswith(".js") or "//" in include_plotlyjs):
            raise SettingError(
                f"include_plotlyjs={include_plotlyjs!r}: use True, False, or the path of a copy beside the page, such as "
                '"assets/plotly.min.js". Pages made here load nothing from other hosts.'
            )
        # Without plotly's own buttons: one of them sends the figure to a server of theirs.
        options = {"displayModeBar": False, "plotlyServerURL": "", "responsive": True}
        return self.figure.to_html(
            include_plotlyjs=include_plotlyjs, include_mathjax=False, full_html=full_page, config=options
        )

    def save(self, path: str | Path, *, include_plotlyjs: bool | str = True) -> Path:
        """Write a page of its own, in one atomic step; returns the path written.

        Raises:
            SettingError: the path does not end in `.html`, or as `html` says.
        """
        target = Path(path)
        if target.suffix != ".html":
            raise SettingError(f"An interactive map is a web page; {target.name!r} does not end in .html.")
        page = self.html(include_plotlyjs=include_plotlyjs, full_page=True)
        dark = "<style>:root{color-scheme:light dark}body{margin:0}</style></head>"
        with atomic(target) as scratch:
            scratch.write_text(page.replace("</head>", dark, 1), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return self.html()


def persona_map(
    space: "PersonaSpace", pcs: tuple[int, int, int] = (1, 2, 3), *, names: int = 12, height: int = 560
) -> PersonaMap:
    """The roles on three components, to be turned, with every role's name and scores under the pointer.

    >>> persona_map(vectors.space()).save("map.html")   # doctest: +SKIP

    Colour is the centred projection on the Assistant Axis; the line is the axis itself, from the roles' mean toward the
    default.

    Args:
        space: the persona space of one layer.
        pcs: three components, from 1.
        names: how many of the outermost roles have their names written beside them.
        height: in pixels; the width is that of the page.

    Raises:
        MissingExtraError: plotly is not installed.
        SettingError: no such component, or not three different ones.
    """
    go = _plotly()
    if len(set(pcs)) != 3:
        raise SettingError(f"pcs={pcs}: a map in three dimensions needs three different components.")
    points = np.stack([space.scores(pc, "projection").numpy() for pc in pcs], axis=1)
    default = np.array([space.default_score(pc) for pc in pcs])
    axis = np.array([float((space.axis / space.scale) @ space.components[pc - 1]) for pc in pcs])
    along = ((space.centered * space.scale) @ space.axis).numpy()
    own = float((space.default * space.scale) @ space.axis)
    far = np.linalg.norm((points - points.mean(0)) / points.std(0).clip(1e-12), axis=1)
    named = _apart(points, np.argsort(-far, kind="stable"), names)
    said = [readable(r) for r in space.roles]
    limit = float(np.abs(along).max())
    labels = [f"PC{pc}" for pc in pcs]
    under = "<br>".join(f"{label} %{{{c}:+.1f}}" for label, c in zip(labels, "xyz", strict=True))
    roles = go.Scatter3d(
        x=points[:, 0], y=points[:, 1], z=points[:, 2], mode="markers+text", name="roles",
        text=[s if k in named else "" for k, s in enumerate(said)], textposition="top center",
        textfont={"size": 11, "color": MIDDLE}, customdata=np.array([said, [f"{v:+.1f}" for v in along]]).T,
        hovertemplate=f"<b>%{{customdata[0]}}</b><br>{under}<br>axis %{{customdata[1]}}<extra></extra>",
        marker={
            "size": 4.5, "color": along, "cmin": -limit, "cmax": limit,
            "colorscale": [[0, ROLE_PLAY], [0.5, "#a9a39b"], [1, ASSISTANT]],
            "colorbar": {"title": {"text": "along the<br>Assistant Axis"}, "thickness": 12, "len": 0.6, "outlinewidth": 0},
        },
    )  # fmt: skip
    length = float(default @ axis) / max(float(axis @ axis), 1e-12)
    line = go.Scatter3d(
        **{c: [0, float(v) * length] for c, v in zip("xyz", axis, strict=True)}, mode="lines", hoverinfo="skip",
        line={"color": RED, "width": 3}, name="Assistant Axis",
    )  # fmt: skip
    itself = go.Scatter3d(
        **{c: [float(v)] for c, v in zip("xyz", default, strict=True)}, mode="markers+text", text=["DEFAULT"],
        textposition="top center", textfont={"size": 12, "color": RED}, name="default",
        marker={"size": 7, "color": RED, "symbol": "diamond"},
        hovertemplate=f"<b>default</b><br>{under}<br>axis {own:+.1f}<extra></extra>",
    )  # fmt: skip
    side = {"color": MIDDLE, "gridcolor": "#a4abb5", "zerolinecolor": MIDDLE, "nticks": 5, "showbackground": False}
    scaled = "z-scored" if space.zscore else "centred"
    where = describe(space.conditions, f"layer {space.layer}", f"n = {len(space.roles)} roles", f"{scaled} projections")
    figure = go.Figure([roles, line, itself])
    figure.update_layout(
        template="none", height=height, showlegend=False, margin={"l": 0, "r": 0, "t": 56, "b": 0},
        paper_bgcolor="rgba(0,0,0,0)", font={"color": MIDDLE, "size": 12, "family": "system-ui, sans-serif"},
        title={"text": f"<b>A map of the roles</b><br><sub>{where}</sub>", "x": 0.01, "xanchor": "left"},
        scene={
            f"{c}axis": {**side, "title": {"text": f"{label} ({float(space.variance[pc - 1]):.0%})"}}
            for c, label, pc in zip("xyz", labels, pcs, strict=True)
        }
        | {"camera": {"eye": {"x": 1.0, "y": -2.15, "z": 0.85}, "center": {"x": 0.1, "y": 0, "z": -0.15}}}
        | {"aspectmode": "manual", "aspectratio": {"x": 1.25, "y": 1, "z": 0.85}, "bgcolor": "rgba(0,0,0,0)"},
    )  # fmt: skip
    return PersonaMap(figure)


def save_plotlyjs(path: str | Path) -> Path:
    """Write plotly's script, for pages that share one copy; returns the path written.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    _plotly()
    from plotly.offline import get_plotlyjs  # pyright: ignore[reportMissingImports]

    target = Path(path)
    with atomic(target) as scratch:
        scratch.write_text(get_plotlyjs(), encoding="utf-8")
    return target


def _apart(points: np.ndarray, order: np.ndarray, most: int) -> set[int]:
    """The first of `order` whose names would not lie upon one another."""
    scaled = points / points.std(0).clip(1e-12)
    chosen: list[int] = []
    for k in order.tolist():
        if len(chosen) < most and all(np.linalg.norm(scaled[k] - scaled[c]) > 1.3 for c in chosen):
            chosen.append(k)
    return set(chosen)


def _plotly() -> Any:
    try:
        from plotly import graph_objects  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise MissingExtraError("plotly", "plots", "An interactive map") from e
    return graph_objects
