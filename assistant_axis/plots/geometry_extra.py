"""Figures of comparisons: two models' role scores, several models, layers against layers, traits, stability."""

from typing import TYPE_CHECKING, Any

import numpy as np

from assistant_axis.errors import SettingError
from assistant_axis.plots.style import ASSISTANT, BLUE, FAINT, GREEN, INK, ORANGE, ROLE_PLAY, Plot, clean, styled, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.geometry.compare import Comparison, ComparisonMatrix
    from assistant_axis.geometry.layers import LayerChoice
    from assistant_axis.geometry.stability import Curve, Stability
    from assistant_axis.geometry.traits import TraitVectors

__all__ = [
    "comparison_scatter",
    "correlation_matrix",
    "layer_choice",
    "layer_heatmap",
    "stability_curves",
    "stability_layers",
    "trait_histogram",
]


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
        for name in names:
            k = comparison.roles.index(name)
            ax.annotate(name.replace("_", " "), (x[k], y[k]), (4, 3), textcoords="offset points", fontsize=8.5)
        (a, b), (i, j) = comparison.models, comparison.layers
        ax.set(xlabel=f"{a}, layer {i}: cosine with PC{pc}", ylabel=f"{b}, layer {j}: cosine with PC{pc}")
        clean(ax, grid="both")
        title(
            ax,
            f"PC{pc} in two models: r = {found.pearson:.3f} {found.pearson_interval}",
            f"{len(comparison.roles)} shared roles · layers: {comparison.chosen} · 95 % bootstrap over roles",
        )
    return figure


def correlation_matrix(matrix: "ComparisonMatrix") -> Plot:
    """Pearson r of PC1 role scores for every pair of runs."""
    n = len(matrix.names)
    with styled(2.6 + 0.75 * n, 2.0 + 0.65 * n) as figure:
        ax = figure.add_subplot()
        _table(ax, matrix.pc1, matrix.names, matrix.names, write=True)
        title(ax, "PC1 role scores, pair by pair", "Pearson r")
    return figure


def layer_heatmap(comparison: "Comparison") -> Plot:
    """Pearson r of PC1 role scores for every layer of one model with every layer of the other."""
    rows, columns = comparison.heat_layers
    with styled(5.6, 4.4) as figure:
        ax = figure.add_subplot()
        image = ax.imshow(comparison.heat, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", origin="lower")
        _ticks(ax, rows, columns)
        i, j = rows.index(comparison.layers[0]), columns.index(comparison.layers[1])
        ax.plot(j, i, marker="s", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.6)
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
        edges = np.histogram_bin_edges(values, bins=30)
        ax.hist(values[values >= 0], bins=edges.tolist(), color=ASSISTANT, alpha=0.85)
        ax.hist(values[values < 0], bins=edges.tolist(), color=ROLE_PLAY, alpha=0.85)
        ax.axvline(0, color=FAINT, linewidth=1)
        ax.set(xlabel="cosine with the Assistant Axis (positive: Assistant-like)", ylabel="traits")
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
                said = f"{cosine:+.2f}  {name}" if align == "left" else f"{name}  {cosine:+.2f}"
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
    with styled(6.4, 3.5) as figure:
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
        ax.legend(frameon=False, fontsize=9, loc="lower left")
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


def _table(ax: "Axes", values: np.ndarray, rows: tuple[str, ...], columns: tuple[str, ...], *, write: bool) -> None:
    ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    if write:
        for i, j in np.ndindex(*values.shape):
            color = "white" if abs(values[i, j]) > 0.6 else INK
            ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=9.5, color=color)


def _ticks(ax: "Axes", rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    """At most a dozen labels on each side."""
    for held, put in ((rows, ax.set_yticks), (columns, ax.set_xticks)):
        step = max(1, -(-len(held) // 12))
        at = list(range(0, len(held), step))
        put(at, [str(held[k]) for k in at])
    for side in ax.spines.values():
        side.set_visible(False)
