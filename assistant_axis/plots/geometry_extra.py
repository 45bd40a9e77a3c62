"""Figures of comparisons: two models' role scores, several models, layers against layers, traits, stability; and the
roles in three dimensions."""

from typing import TYPE_CHECKING, Any

import numpy as np

from assistant_axis.errors import SettingError
from assistant_axis.plots.persona import label_points
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
    styled,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.geometry.compare import Comparison, ComparisonMatrix
    from assistant_axis.geometry.layers import LayerChoice
    from assistant_axis.geometry.space import PersonaSpace
    from assistant_axis.geometry.stability import Curve, Stability
    from assistant_axis.geometry.traits import TraitVectors
    from assistant_axis.pipeline.base import CompletionClusters

__all__ = [
    "comparison_scatter",
    "completion_shares",
    "component_matrix",
    "correlation_matrix",
    "layer_choice",
    "layer_heatmap",
    "role_map_3d",
    "stability_curves",
    "stability_layers",
    "trait_histogram",
]


ON_COLOUR = "#10151c"
"""Dark marks on coloured cells: unlike `INK` it does not turn light on a dark page, since the cells do not turn dark."""


def comparison_scatter(comparison: "Comparison", *, pc: int = 1, outliers: int = 8) -> Plot:
    """Cosine scores of the shared roles in two models, with the roles furthest from the common line named.

    Args:
        comparison: from `compare`.
        pc: which component, numbered from 1.
        outliers: how many roles are named.

    Raises:
        SettingError: a component that was not compared.
    """
    if not 1 <= pc <= len(comparison.pcs):
        raise SettingError(f"PC{pc} was not compared; components are numbered 1 to {len(comparison.pcs)}.")
    x, y = comparison.scores[0, pc - 1], comparison.scores[1, pc - 1]
    found = comparison.pcs[pc - 1]
    names = [n for n, _ in comparison.outliers(outliers, pc)]
    with styled(5.2, 4.6) as figure:
        ax = figure.add_subplot()
        odd = np.array([r in set(names) for r in comparison.roles])
        ax.scatter(x[~odd], y[~odd], s=13, color=BLUE, alpha=0.6, linewidth=0)
        ax.scatter(x[odd], y[odd], s=20, color=ORANGE, linewidth=0)
        slope, level = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        ax.plot(ends, slope * ends + level, color=FAINT, linewidth=1)
        ax.margins(0.08)
        (a, b), (i, j) = comparison.models, comparison.layers
        ax.set(xlabel=f"{a}, layer {i}: cosine with PC{pc}", ylabel=f"{b}, layer {j}: cosine with PC{pc}")
        clean(ax, grid="both")
        title(
            ax,
            f"PC{pc} in two models: r = {found.pearson:.3f} {found.pearson_interval}",
            f"{len(comparison.roles)} shared roles · {comparison.chosen} layers · 95 % bootstrap",
        )
        n = comparison.noise
        if n is not None and pc == 1:
            said = f"disjoint halves of the rollouts: {n.disjoint:.3f}\ncorrected for reliability: {n.corrected:.3f}"
            ax.text(0.98, 0.03, said, transform=ax.transAxes, ha="right", va="bottom", fontsize=8.5, color=FAINT)
        at = [comparison.roles.index(n) for n in names]
        points = [(readable(n), float(x[k]), float(y[k]), INK, 8.5) for n, k in zip(names, at, strict=True)]
        label_points(figure, ax, points, outliers)
    return figure


def component_matrix(comparison: "Comparison") -> Plot:
    """Pearson r of every component of one model with every component of the other; the matched pairs are framed."""
    count = len(comparison.pcs)
    numbers = tuple(f"PC{k}" for k in range(1, count + 1))
    with styled(1.9 + 0.62 * count, 1.7 + 0.52 * count) as figure:
        ax = figure.add_subplot()
        _table(ax, comparison.cross, numbers, numbers, write=True)
        ax.tick_params(axis="x", rotation=0)
        for tick in ax.get_xticklabels():
            tick.set_horizontalalignment("center")
        for i, j, _ in comparison.matched:
            ax.add_patch(_frame(j - 1, i - 1))
        (a, b), (m, n) = comparison.models, comparison.layers
        ax.set(xlabel=f"{b}, layer {n}", ylabel=f"{a}, layer {m}")
        title(ax, "Which component answers to which", "Pearson r of role scores · framed: matched")
    return figure


def role_map_3d(
    space: "PersonaSpace",
    pcs: tuple[int, int, int] = (1, 2, 3),
    *,
    names: int = 10,
    view: tuple[float, float] = (18, -62),
) -> Plot:
    """The roles on three components, with the default and the outermost roles named.

    See [`persona_map`][assistant_axis.plots.interactive.persona_map] for one that can be turned.

    Args:
        space: the persona space of one layer.
        pcs: three components, from 1.
        names: how many of the outermost roles to name; fewer where names would overlap.
        view: elevation and azimuth in degrees.

    Raises:
        SettingError: no such component, or not three different ones.
    """
    from mpl_toolkits.mplot3d import proj3d

    if len(set(pcs)) != 3:
        raise SettingError(f"pcs={pcs}: a map in three dimensions needs three different components.")
    points = np.stack([space.scores(pc, "projection").numpy() for pc in pcs])
    own = [space.default_score(pc) for pc in pcs]
    along = ((space.centered * space.scale) @ space.axis).numpy()
    limit = float(np.abs(along).max())
    with styled(6.4, 5.2) as figure:
        ax: Any = figure.add_subplot(projection="3d", computed_zorder=False)
        ax.view_init(*view)
        shades = _shades()
        floor = float(points[2].min()) - 0.06 * float(np.ptp(points[2]))
        ax.scatter(points[0], points[1], floor, s=5, color=FAINT, alpha=0.6, linewidths=0)  # shadows give depth
        order = np.argsort(points[1] if -90 < view[1] < 90 else -points[1])[::-1]
        dots = ax.scatter(*points[:, order], s=17, c=along[order], cmap=shades, vmin=-limit, vmax=limit, depthshade=False, linewidths=0)  # fmt: skip
        ax.plot([own[0]] * 2, [own[1]] * 2, [floor, own[2]], color=RED, linewidth=0.8, linestyle=(0, (3, 2)))
        ax.plot([own[0]], [own[1]], [own[2]], "D", color=RED, markersize=8)
        share = [float(space.variance[pc - 1]) for pc in pcs]
        for axis, pc, part in zip((ax.xaxis, ax.yaxis, ax.zaxis), pcs, share, strict=True):
            axis.set_label_text(f"PC{pc} ({part:.0%})")
            axis.set_pane_color((1, 1, 1, 0))
            axis.line.set_color(FAINT)
            axis._axinfo["grid"].update(color=FAINT, linewidth=0.35)
        ax.set_zlim(floor, None)
        ax.set_facecolor("none")
        ax.tick_params(labelsize=8.5, pad=0)
        ax.locator_params(nbins=5)
        ax.set_box_aspect((1.25, 1, 0.85), zoom=1.06)
        bar = figure.colorbar(dots, ax=ax, shrink=0.5, pad=0.13, aspect=18, label="along the Assistant Axis (centred)")
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(labelsize=8.5, color=FAINT)
        scaled = "z-scored" if space.zscore else ""
        said = describe(space.conditions, f"layer {space.layer}", f"n = {len(space.roles)} roles", scaled)
        said = f"{said} · centred projections, shadows below"
        _heading(figure, "A map of the roles in three dimensions", said)
        far = np.linalg.norm((points - points.mean(1, keepdims=True)) / points.std(1, keepdims=True), axis=0)
        chosen = np.argsort(-far, kind="stable")[: 3 * names]
        x, y, _ = proj3d.proj_transform(points[0], points[1], points[2], ax.get_proj())
        dx, dy, _ = proj3d.proj_transform(own[0], own[1], own[2], ax.get_proj())
        named = [("DEFAULT", float(dx), float(dy), RED, 9.5)]
        named += [(readable(space.roles[k]), float(x[k]), float(y[k]), INK, 8.5) for k in chosen]
        label_points(figure, ax, named, names + 1)
    return figure


def correlation_matrix(matrix: "ComparisonMatrix") -> Plot:
    """Pearson r of PC1 role scores for every pair of runs."""
    n = len(matrix.names)
    with styled(2.6 + 0.75 * n, 2.0 + 0.65 * n) as figure:
        ax = figure.add_subplot()
        _table(ax, matrix.pc1, matrix.names, matrix.names, write=True)
        chosen = next(iter(matrix.pairs.values()))
        title(ax, "PC1 role scores, pair by pair", f"Pearson r · {chosen.chosen} layers")
    return figure


def layer_heatmap(comparison: "Comparison") -> Plot:
    """Pearson r of PC1 role scores for every layer of one model with every layer of the other."""
    rows, columns = comparison.heat_layers
    with styled(5.6, 4.4) as figure:
        ax = figure.add_subplot()
        image = ax.imshow(comparison.heat, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", origin="lower")
        _ticks(ax, rows, columns)
        i, j = rows.index(comparison.layers[0]), columns.index(comparison.layers[1])
        for color, width in (("white", 3.4), (ON_COLOUR, 1.6)):
            ax.plot(
                j, i, marker="s", markersize=10, markerfacecolor="none", markeredgecolor=color, markeredgewidth=width
            )
        ax.set(xlabel=f"layer of {comparison.models[1]}", ylabel=f"layer of {comparison.models[0]}")
        bar = figure.colorbar(image, ax=ax, label="Pearson r of PC1 scores")
        bar.outline.set_visible(False)  # type: ignore[operator]
        title(ax, "Which layers order the roles alike", f"square: the layers compared ({comparison.chosen})")
    return figure


def trait_histogram(
    traits: "TraitVectors", axis: "AssistantAxis", layer: int | float, *, labelled: int = 10, force: bool = False
) -> Plot:
    """Cosines of the traits with the Assistant Axis, the furthest on each side named: what the axis means.

    Args:
        traits: trait vectors.
        axis: of the same model.
        layer: index or depth.
        labelled: how many traits are named on each side.
        force: accept an axis of another model of the same width.
    """
    ranking = traits.ranking(axis, layer, force=force)
    values = np.array([c for _, c in ranking])
    held = traits.layers[traits.layer_index(layer)]
    many = min(labelled, len(ranking) // 2)
    with styled(6.4, 2.6 + 0.2 * max(many, 1)) as figure:
        grid = figure.add_gridspec(2, 1, height_ratios=[2.0, max(1.0, 0.2 * many)])
        ax = figure.add_subplot(grid[0])
        width = max(float(np.ptp(values)) / 30, 1e-6)
        edges = np.arange(np.floor(values.min() / width), np.ceil(values.max() / width) + 1) * width  # one edge is 0
        ax.hist(values[values >= 0], bins=edges.tolist(), color=ASSISTANT, alpha=0.85)
        ax.hist(values[values < 0], bins=edges.tolist(), color=ROLE_PLAY, alpha=0.85)
        ax.axvline(0, color=FAINT, linewidth=1)
        ax.set(xlabel="cosine with the Assistant Axis (positive: Assistant-like)", ylabel="traits")
        ax.locator_params(axis="y", integer=True)
        clean(ax, grid="y")
        title(
            ax,
            "What the Assistant Axis means",
            f"{traits.conditions.model} · layer {held} · {traits.conditions.span} span · {len(ranking)} traits",
        )
        words = figure.add_subplot(grid[1])
        words.set_axis_off()
        ends = ((ranking[-many:], 0.02, "left", ROLE_PLAY), (ranking[:many][::-1], 0.98, "right", ASSISTANT))
        for side, x, align, color in ends:
            for k, (name, cosine) in enumerate(side[::-1]):
                said = f"{_signed(cosine)}  {name}" if align == "left" else f"{name}  {_signed(cosine)}"
                y = 1 - (k + 0.5) / max(many, 1)
                words.text(x, y, said, ha=align, va="center", fontsize=9, color=color, transform=words.transAxes)
    return figure


def stability_layers(stability: "Stability", *, chosen: int | None = None) -> Plot:
    """Split-half and bootstrap cosines of the axis, layer by layer.

    Args:
        stability: from `stability`.
        chosen: a layer to be marked, such as the recommended one.
    """
    x = list(stability.layers)
    with styled(6.4, 3.9) as figure:
        ax = figure.add_subplot()
        ax.fill_between(x, stability.split_half_low, stability.split_half_high, color=BLUE, alpha=0.18, linewidth=0)
        ax.plot(x, stability.split_half, color=BLUE, marker="o", markersize=3, label="two halves of the rollouts")
        ax.plot(x, stability.full, color=GREEN, label="all rollouts (Spearman-Brown)")
        ax.plot(x, stability.bootstrap, color=ORANGE, linestyle=(0, (4, 2)), label="bootstrap, against the axis itself")
        if chosen is not None:
            ax.axvline(chosen, color=FAINT, linewidth=1.2)
            ax.annotate(f"layer {chosen}", (chosen, 0.03), (4, 0), textcoords="offset points", fontsize=9)
        ax.set(
            xlabel="layer", ylabel="cosine between axes", ylim=(min(0.0, float(stability.split_half_low.min())), 1.02)
        )
        clean(ax, grid="y")
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        title(ax, "How far the axis agrees with itself", f"{stability.rollouts} rollouts · {stability.splits} splits")
    return figure


def stability_curves(*curves: "Curve") -> Plot:
    """Agreement of axes from disjoint data against how much each had; one panel a curve.

    Raises:
        SettingError: no curve.
    """
    if not curves:
        raise SettingError("There is no curve to draw.")
    with styled(3.4 * len(curves) + 0.6, 3.3) as figure:
        axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for ax, curve in zip(axes, curves, strict=True):
            ax.fill_between(curve.sizes, curve.low, curve.high, color=BLUE, alpha=0.18, linewidth=0)
            ax.plot(curve.sizes, curve.cosine, color=BLUE, marker="o", markersize=4)
            ax.axhline(0.95, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
            ax.set_xscale("log", base=2)
            ax.set_xticks(curve.sizes, [str(s) for s in curve.sizes])
            ax.minorticks_off()
            ax.set_xlabel(curve.over)
            clean(ax, grid="y")
        axes[0].set_ylabel("cosine between axes")
        title(axes[0], "How much is enough", f"layer {curves[0].layer} · axes that share no data · dashed: .95")
    return figure


def layer_choice(choice: "LayerChoice") -> Plot:
    """Why a layer is recommended: stability, |cos(axis, PC1)|, the default's extremity, and their product."""
    x = [r.layer for r in choice.table]
    series: list[tuple[list[float], str, str, Any]] = [
        ([r.split_half for r in choice.table], "split-half cosine", BLUE, "-"),
        ([r.axis_pc1 for r in choice.table], "|cos(axis, PC1)|", ORANGE, "-"),
        ([1 - min(max(r.default_position, 0), 1) for r in choice.table], "default's extremity", GREEN, "-"),
        ([r.score for r in choice.table], "score: their product", INK, (0, (4, 2))),
    ]
    with styled(6.4, 3.5) as figure:
        ax = figure.add_subplot()
        for values, label, color, line in series:
            ax.plot(x, values, color=color, linestyle=line, label=label)
        ax.axvline(choice.layer, color=FAINT, linewidth=1.2)
        ax.set(xlabel="layer", ylim=(0, 1.02))
        clean(ax, grid="y")
        ax.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        title(ax, f"Layer {choice.layer} is recommended", choice.reasons.why)
    return figure


def _heading(figure: Plot, said: str, conditions: str) -> None:
    """A title over the whole figure, for figures of several panels and of three dimensions."""
    height = float(figure.get_size_inches()[1])
    figure.suptitle(conditions, x=0.02, y=1 - 0.28 / height, ha="left", fontsize=8.5, color=FAINT)
    figure.text(0.02, 1 - 0.05 / height, said, va="top", fontsize=11.5, weight="bold")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.55 / height))  # type: ignore[union-attr]


def _signed(value: float, *, plus: bool = True) -> str:
    """Two decimals with a true minus sign."""
    return (f"{value:+.2f}" if plus else f"{value:.2f}").replace("-", "−")


def completion_shares(clusters: "CompletionClusters") -> Plot:
    """How a base model goes on under each dose: the share of every group of completions, and of broken ones.

    Args:
        clusters: from `cluster_completions`.
    """
    order = np.argsort(clusters.shares[-1] - clusters.shares[0], kind="stable")
    labels = [clusters.labels[k] for k in order] + ["broken: empty or repeating itself"]
    table = np.vstack([clusters.shares.T[order], clusters.broken])
    with styled(6.4, 1.2 + 0.42 * len(labels)) as figure:
        panels = figure.subplots(1, len(clusters.doses), sharey=True, squeeze=False)[0]
        y = np.arange(len(labels))
        for ax, dose, values in zip(panels, clusters.doses, table.T, strict=True):
            color = ROLE_PLAY if dose < 0 else ASSISTANT if dose > 0 else FAINT
            ax.barh(y[:-1], values[:-1], color=color, alpha=0.85)
            ax.barh(y[-1:], values[-1:], color=RED, alpha=0.85)
            for k, v in enumerate(values):
                ax.annotate(f"{v:.0%}", (v, k), (3, 0), textcoords="offset points", va="center", fontsize=8.5)
            ax.set(xlim=(0, 1.25 * float(table.max())), xlabel=f"dose {_signed(dose)}", yticks=y, xticks=[])
            ax.set_yticklabels(labels, fontsize=9)
            clean(ax)
            ax.tick_params(axis="y", length=0)
            ax.spines["bottom"].set_visible(False)
        panels[0].invert_yaxis()
        _heading(figure, "How the openings go on", "share of completions · doses: fractions of the residual norm")
    return figure


def _shades() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("role-assistant", [ROLE_PLAY, "#a9a39b", ASSISTANT])


def _frame(x: float, y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=ON_COLOUR, linewidth=1.8)


def _table(ax: "Axes", values: np.ndarray, rows: tuple[str, ...], columns: tuple[str, ...], *, write: bool) -> None:
    ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    if write:
        for i, j in np.ndindex(*values.shape):
            color = "white" if abs(values[i, j]) > 0.6 else ON_COLOUR
            ax.text(j, i, _signed(float(values[i, j]), plus=False), ha="center", va="center", fontsize=9.5, color=color)


def _ticks(ax: "Axes", rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """At most a dozen labels on each side."""
    for held, put in ((rows, ax.set_yticks), (columns, ax.set_xticks)):
        step = max(1, -(-len(held) // 12))
        at = list(range(0, len(held), step))
        put(at, [str(held[k]) for k in at])
    for side in ax.spines.values():
        side.set_visible(False)
