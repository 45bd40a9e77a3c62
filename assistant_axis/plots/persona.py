"""Figures of the persona space: variance, the axis among the components, the roles along it and on a map."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.space import PersonaSpace, Scores
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.plots.style import (
    ASSISTANT,
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    RED,
    ROLE_PLAY,
    Plot,
    clean,
    describe,
    readable,
    save_figure,
    styled,
    title,
)

__all__ = ["against_published", "axis_cosines", "role_map", "role_ranking", "save_figure", "scree"]

SHARES = (0.7, 0.8, 0.9)


def scree(space: PersonaSpace, *, components: int = 30) -> Plot:
    """Explained variance of the components, each and cumulated, with how many explain 70, 80 and 90 %.

    Args:
        space: the persona space of one layer.
        components: how many to draw, at least as many as 90 % need.
    """
    share = space.variance.numpy() * 100
    shown = min(len(share), max(components, space.dimensions(SHARES[-1]) + 2))
    x = np.arange(1, shown + 1)
    with styled(6.4, 3.7) as figure:
        ax = figure.add_subplot()
        ax.bar(x, share[:shown], color=BLUE, alpha=0.85, label="each component")
        ax.plot(x, share.cumsum()[:shown], color=ORANGE, marker="o", markersize=3, label="cumulated")
        for part in SHARES:
            n = space.dimensions(part)
            ax.plot([0.3, n, n], [part * 100, part * 100, 0], color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
            ax.annotate(f"{part:.0%}: {n}", (n, part * 100), (7, -11), textcoords="offset points", fontsize=9)
        ax.set(xlabel="principal component of the role vectors", ylabel="explained variance (%)", ylim=(0, 102))
        ax.set_xlim(0.3, shown + 0.7)
        clean(ax, grid="y")
        ax.legend(frameon=False, loc="center right", fontsize=9)
        title(ax, "How many dimensions the roles span", _of(space))
    return figure


def axis_cosines(
    source: PersonaVectors | Sequence[float], layers: Sequence[int] | None = None, *, marked: int | None = None
) -> Plot:
    """|cos| between the Assistant Axis and PC1 of the role vectors, layer by layer.

    Args:
        source: persona vectors, or the cosines themselves, one a layer.
        layers: block indices of given cosines; default: 0, 1, ….
        marked: a layer to mark; for persona vectors the monitoring layer by default.

    Raises:
        SettingError: not as many cosines as layers.
    """
    said = ""
    if isinstance(source, PersonaVectors):
        layers, cosines = source.layers, [source.space(layer).axis_cosine() for layer in source.layers]
        marked = source.monitoring_layer if marked is None else marked
        said = describe(source.conditions, f"n = {len(source.roles)} roles")
    else:
        cosines = [float(c) for c in source]
        layers = range(len(cosines)) if layers is None else layers
    if len(layers) != len(cosines):
        raise SettingError(f"There are {len(cosines)} cosines for {len(layers)} layers; give one a layer.")
    with styled(6.4, 3.2) as figure:
        ax = figure.add_subplot()
        ax.plot(layers, cosines, color=BLUE, marker="o", markersize=4)
        if marked is not None and marked in layers:
            value = cosines[list(layers).index(marked)]
            ax.axvline(marked, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
            ax.plot([marked], [value], "o", color=ORANGE, markersize=8)
            left = list(layers).index(marked) > len(layers) / 2
            ax.annotate(
                f"layer {marked}: {value:.2f}",
                (marked, 0.94),
                (-6 if left else 6, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=9,
            )
        ax.set(xlabel="layer (output of block)", ylabel="|cos(axis, PC1)|", ylim=(0, 1.02))
        clean(ax, grid="y")
        title(ax, "The Assistant Axis and the roles' first component", said)
    return figure


def role_ranking(
    source: PersonaSpace | PersonaVectors,
    axis: AssistantAxis | None = None,
    *,
    layer: int | float | None = None,
    pc: int = 1,
    kind: Scores = "projection",
    centered: bool = True,
    names: int = 12,
) -> Plot:
    """All roles along one direction: a histogram, and the names at both ends with the default among them.

    Args:
        source: a persona space (roles along a component), or persona vectors (roles along an Assistant Axis).
        axis: with persona vectors, the axis; default: their own.
        layer: with persona vectors, index or depth; default: the monitoring layer.
        pc: with a space, the component, from 1.
        kind: with a space, `"projection"` (centred) or `"cosine"`.
        centered: with persona vectors, subtract the role mean.
        names: how many roles to name at each end.

    Raises:
        LayerError: the layer is not held.
        SettingError: no such component.
    """
    if isinstance(source, PersonaSpace):
        values, default = source.scores(pc, kind).numpy(), source.default_score(pc, kind)
        label = f"cosine with PC{pc}" if kind == "cosine" else f"centred projection on PC{pc} (activation units)"
        said = _of(source)
        place = f"PC{pc}"
    else:
        axis = source.axis() if axis is None else axis
        k = source.layer_index(source.monitoring_layer if layer is None else layer)
        at = source.layers[k]
        values = axis.project(source.vectors[:, k], at, centered=centered).numpy()
        default = float(axis.project(source.default[k], at, centered=centered))
        label = f"{'centred' if centered else 'raw'} projection on the Assistant Axis (activation units)"
        said = describe(source.conditions, f"layer {at}", f"n = {len(source.roles)} roles")
        place = "the Assistant Axis"
    order = np.argsort(-values, kind="stable")
    first = min(names, (len(order) + 1) // 2)
    last = min(names, len(order) - first)
    left = len(order) - first - last
    rows: list[tuple[str, float, str]] = [
        (readable(source.roles[i]), float(values[i]), ASSISTANT) for i in order[:first]
    ]
    if left:
        rows.append((f"… {left} more roles …", float("nan"), FAINT))
    rows += [(readable(source.roles[i]), float(values[i]), ROLE_PLAY) for i in order[len(order) - last :]]
    before = next((i for i, r in enumerate(rows) if r[1] < default), len(rows))
    rows.insert(before, ("DEFAULT", default, RED))
    with styled(6.4, 1.9 + 0.19 * len(rows)) as figure:
        top, ax = figure.subplots(2, 1, sharex=True, height_ratios=[1.3, 0.19 * len(rows)])
        top.hist(values, bins=min(40, max(8, len(values) // 6)), color=BLUE, alpha=0.75)
        top.axvline(default, color=RED, linewidth=1.6)
        top.annotate("default", (default, 1), (4, -3), ("data", "axes fraction"), textcoords="offset points", color=RED, va="top", fontsize=9)  # fmt: skip
        top.set_ylabel("roles")
        clean(top)
        title(top, f"The roles along {place}", said)
        y = np.arange(len(rows))
        for i, (_, value, colour) in enumerate(rows):
            if np.isfinite(value):
                ax.plot([0, value], [i, i], color=colour, linewidth=1.1, alpha=0.55)
                ax.plot([value], [i], "D" if colour == RED else "o", color=colour, markersize=5)
        ax.axvline(0, color=FAINT, linewidth=0.8)
        ax.set(yticks=y, ylim=(len(rows) - 0.4, -0.6), xlabel=f"{label}\n→ more Assistant-like")
        ax.set_yticklabels([r[0] for r in rows], fontsize=8.5)
        for tick, (name, _, colour) in zip(ax.get_yticklabels(), rows, strict=True):
            tick.set_color(RED if name == "DEFAULT" else FAINT if colour == FAINT else INK)
        ax.set_ylabel("role")
        clean(ax, grid="x")
        ax.tick_params(axis="y", length=0)
    return figure


def role_map(
    space: PersonaSpace, pcs: tuple[int, int] = (1, 2), *, names: int = 24, labels: Sequence[str] | None = None
) -> Plot:
    """The roles on two components, with the default and the outermost roles named.

    Args:
        space: the persona space of one layer.
        pcs: two components, from 1.
        names: how many of the outermost roles to name; fewer where names would overlap.
        labels: roles to name instead.

    Raises:
        SettingError: no such component.
        UnknownNameError: a label that is no role.
    """
    x, y = (space.scores(pc, "projection").numpy() for pc in pcs)
    dx, dy = (space.default_score(pc) for pc in pcs)
    if labels is None:
        outward = np.hypot((x - x.mean()) / x.std(), (y - y.mean()) / y.std())
        chosen = np.argsort(-outward, kind="stable")[: 3 * names]
    else:
        chosen = np.array([space.roles.index(r) for r in labels if space.score_of(r) is not None], dtype=int)
    with styled(6.4, 5.0) as figure:
        ax = figure.add_subplot()
        ax.axhline(0, color=FAINT, linewidth=0.6)
        ax.axvline(0, color=FAINT, linewidth=0.6)
        ax.scatter(x, y, s=14, color=BLUE, alpha=0.55, linewidths=0)
        ax.plot([dx], [dy], "D", color=RED, markersize=8, zorder=5)
        share = [float(space.variance[pc - 1]) for pc in pcs]
        ax.set_xlabel(f"PC{pcs[0]}, centred projection ({share[0]:.0%} of variance)   → default's side")
        ax.set_ylabel(f"PC{pcs[1]}, centred projection ({share[1]:.0%} of variance)")
        ax.margins(0.09)
        clean(ax)
        title(ax, "A map of the roles", _of(space))
        points = [("DEFAULT", dx, dy, RED, 9.5)]
        points += [(readable(space.roles[i]), float(x[i]), float(y[i]), INK, 8.5) for i in chosen]
        label_points(figure, ax, points, names + 1 if labels is None else len(points))
    return figure


def against_published(
    scores: Mapping[str, float],
    published: Mapping[str, float],
    label: str = "published projection",
    *,
    score_label: str = "score here",
    names: int = 14,
    conditions: Conditions | None = None,
    layer: int | None = None,
) -> Plot:
    """This run's role scores against a published ranking; Spearman's r in the title, the outliers named.

    Args:
        scores: role → score of this run, positive is Assistant-like.
        published: role → published figure, of the same sign.
        label: what the published figure is, and of which model.
        score_label: what the score is (raw or centred projection, cosine with PC1).
        names: how many roles with the largest difference of rank to name.
        conditions: of this run, for the line under the title.
        layer: of this run, for the same line.

    Raises:
        GeometryError: fewer than three shared roles.
    """
    from scipy.stats import rankdata, spearmanr

    shared = [r for r in scores if r in published]
    if len(shared) < 3:
        raise GeometryError(f"Only {len(shared)} roles are in both rankings; at least three are needed.")
    x = np.array([published[r] for r in shared], dtype=float)
    y = np.array([scores[r] for r in shared], dtype=float)
    rho = float(np.asarray(spearmanr(x, y))[0])
    gap = (rankdata(y) - rankdata(x)) / len(shared)
    with styled(6.4, 4.8) as figure:
        ax = figure.add_subplot()
        colours = np.where(gap > 0.25, GREEN, np.where(gap < -0.25, ORANGE, BLUE))
        ax.scatter(x, y, s=16, c=colours.tolist(), alpha=0.65, linewidths=0)
        ax.set(xlabel=label, ylabel=score_label)
        ax.margins(0.08)
        clean(ax, grid="both")
        n = f"n = {len(shared)} shared roles"
        where = "" if layer is None else f"layer {layer}"
        said = describe(conditions, where, n) if conditions is not None else " · ".join(p for p in (where, n) if p)
        title(ax, f"Against the published ranking: Spearman r = {rho:.2f}", said)
        far = np.argsort(-np.abs(gap), kind="stable")[: 2 * names]
        label_points(figure, ax, [(readable(shared[i]), float(x[i]), float(y[i]), INK, 8.5) for i in far], names)
    return figure


def _of(space: PersonaSpace) -> str:
    scaled = "z-scored" if space.zscore else ""
    return describe(space.conditions, f"layer {space.layer}", f"n = {len(space.roles)} roles", scaled)


def label_points(figure: Plot, ax: Any, points: Sequence[tuple[str, float, float, str, float]], most: int) -> None:
    """Name points, the first ones first, in the first of eight places where the name covers no other name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_canvas(FigureCanvasAgg(figure))
    figure.draw_without_rendering()  # places are measured in pixels, so the layout must stand first
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = ax.get_window_extent(renderer)
    taken: list[Any] = []
    places = ((5, 3), (5, -9), (-5, 3), (-5, -9), (0, 7), (0, -14), (9, 12), (-9, 12))
    done = 0
    for name, x, y, colour, size in points:
        if done >= most:
            break
        for dx, dy in places:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = ax.annotate(
                name, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=size, color=colour,
                weight="bold" if name == "DEFAULT" else "normal",
            )  # fmt: skip
            box = text.get_window_extent(renderer).expanded(1.02, 1.0)
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 + 8 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                done += 1
                break
            text.remove()
