"""Figures of persona vectors: variance, the axis per layer, roles along an axis, the role map, published rankings."""

import numpy as np
from matplotlib.figure import Figure

from assistant_axis.geometry.published import PublishedComparison
from assistant_axis.geometry.space import PersonaSpace
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.plots.style import ALERT, ASSISTANT, INK, MUTED, ROLE, caption, figure, save_figure, spread

__all__ = ["against_published", "axis_cosines", "role_map", "role_ranking", "save_figure", "scree"]


def _where(space: PersonaSpace) -> str:
    scaled = "z-scored" if space.zscore else "centred, not scaled"
    return (
        f"{space.conditions.model} · layer {space.layer} · {space.conditions.span} span · "
        f"{len(space.roles)} roles · {scaled}"
    )


def scree(space: PersonaSpace, components: int = 30) -> Figure:
    """Cumulative variance of the persona space with the 70, 80 and 90 % marks."""
    fig, ax = figure(6.4, 3.8)
    share = space.variance.cumsum(0).numpy()[:components]
    ax.plot(np.arange(1, len(share) + 1), 100 * share, color=ASSISTANT, marker="o", markersize=3.5)
    for mark in (0.7, 0.8, 0.9):
        count = space.dimensions(mark)
        ax.axhline(100 * mark, color=MUTED, linewidth=0.8, linestyle=":")
        ax.annotate(
            f"{mark:.0%}: {count} components",
            (len(share), 100 * mark),
            ha="right",
            va="bottom",
            fontsize=9,
            color=INK,
        )
        if count <= len(share):
            ax.plot([count], [100 * share[count - 1]], "o", color=ROLE, markersize=7)
    ax.set(
        xlabel="principal components",
        ylabel="variance explained (%)",
        ylim=(0, 102),
        title="Variance of the role vectors",
    )
    caption(fig, _where(space))
    return fig


def axis_cosines(vectors: PersonaVectors) -> Figure:
    """|cos(axis, PC1)| and the default's place on PC1, layer by layer."""
    spaces = [vectors.space(layer) for layer in vectors.layers]
    fig, ax = figure(6.4, 3.8)
    ax.plot(
        vectors.layers,
        [s.axis_cosine() for s in spaces],
        color=ASSISTANT,
        marker="o",
        markersize=4,
        label="|cos(axis, PC1)|",
    )
    ax.plot(
        vectors.layers,
        [s.default_position() for s in spaces],
        color=ROLE,
        marker="s",
        markersize=3.5,
        label="default on PC1 (0: the Assistant's end of the roles)",
    )
    ax.axvline(vectors.monitoring_layer, color=MUTED, linewidth=0.9, linestyle="--")
    ax.annotate(
        "monitoring layer",
        (vectors.monitoring_layer, 0.02),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=9,
        color=MUTED,
    )
    ax.set(xlabel="layer (output of block)", ylabel="cosine · share of range", ylim=(min(0.0, ax.get_ylim()[0]), 1.02))
    ax.set_title("Is the first component the Assistant Axis?")
    ax.legend(fontsize=9, frameon=False)
    c = vectors.conditions
    caption(fig, f"{c.model} · {c.span} span · {len(vectors.roles)} roles · {c.design}")
    return fig


def role_ranking(space: PersonaSpace, pc: int = 1, names: int = 12) -> Figure:
    """Histogram of the roles' cosine scores on a component, the outermost roles named and the default marked."""
    scores = space.scores(pc).numpy()
    ranking = space.ranking(pc)
    fig, ax = figure(7.6, 4.6)
    ax.hist(scores, bins=36, color=ASSISTANT, alpha=0.35)
    top = ax.get_ylim()[1]
    default = space.default_score(pc, "cosine")
    ax.axvline(default, color=ASSISTANT, linewidth=2)
    ax.annotate(
        "default",
        (default, 1.0),
        xycoords=("data", "axes fraction"),
        ha="right",
        va="bottom",
        fontsize=10,
        color=ASSISTANT,
    )
    low, high = float(min(scores.min(), default)), float(max(scores.max(), default))
    ax.set_xlim(low - 0.32 * (high - low), high + 0.32 * (high - low))
    for side, chosen in (("right", ranking[:names]), ("left", ranking[::-1][:names])):
        x = ax.get_xlim()[1 if side == "right" else 0]
        for k, (name, score) in enumerate(chosen):
            y = top * (0.97 - k * 0.9 / names)
            ax.plot([score, x], [0, y], color=MUTED, linewidth=0.3)
            ax.text(x, y, name.replace("_", " "), ha=side, va="center", fontsize=9, color=INK)
    ax.set(
        xlabel=f"cosine of the centred role vector with PC{pc}   (positive = Assistant-like)",
        ylabel="roles",
        ylim=(0, top),
    )
    ax.set_title(f"The roles along PC{pc}", pad=18)
    caption(fig, _where(space))
    return fig


def role_map(space: PersonaSpace, pcs: tuple[int, int] = (1, 2), labels: int = 24) -> Figure:
    """Roles on two components, the outermost named, the default as a star."""
    x, y = (space.scores(pc, "projection").numpy() for pc in pcs)
    fig, ax = figure(7.6, 6.0)
    ax.scatter(x, y, s=14, color=ASSISTANT, alpha=0.55, linewidths=0)
    star = [space.default_score(pc) for pc in pcs]
    ax.plot(*star, marker="*", markersize=18, color=ROLE, linestyle="none")
    ax.annotate(
        "default", (star[0], star[1]), xytext=(0, 12), textcoords="offset points", ha="center", fontsize=11, color=ROLE
    )
    away = (x / x.std()) ** 2 + (y / y.std()) ** 2
    chosen = sorted(np.argsort(-away)[:labels].tolist(), key=lambda k: float(y[k]))
    gap = 0.03 * float(y.max() - y.min())
    for k, place in zip(chosen, spread([float(y[k]) for k in chosen], gap), strict=True):
        right = x[k] < float(x.max() + x.min()) / 2
        ax.annotate(
            space.roles[k].replace("_", " "),
            (float(x[k]), float(y[k])),
            xytext=(float(x[k]) + (0.012 if right else -0.012) * float(np.ptp(x)), place),
            ha="left" if right else "right",
            va="center",
            fontsize=8.5,
            color=INK,
        )
    first, second = pcs
    ax.set(
        xlabel=f"PC{first}, {space.variance[first - 1]:.0%} of variance   (positive = Assistant-like)",
        ylabel=f"PC{second}, {space.variance[second - 1]:.0%} of variance",
        title="Persona space (centred projections)",
    )
    caption(fig, _where(space))
    return fig


def against_published(comparison: PublishedComparison, labels: int = 12) -> Figure:
    """Each role's PC1 score here against its published projection, the largest disagreements named."""
    fig, ax = figure(7.0, 5.0)
    x, y = comparison.figures, comparison.scores
    ax.scatter(x, y, s=14, color=ASSISTANT, alpha=0.55, linewidths=0)
    at = {r: k for k, r in enumerate(comparison.roles)}
    for name, _ in comparison.outliers(labels):
        k = at[name]
        ax.plot(x[k], y[k], "o", color=ALERT, markersize=4)
        ax.annotate(
            name.replace("_", " "), (x[k], y[k]), xytext=(5, 3), textcoords="offset points", fontsize=8.5, color=INK
        )
    ax.set(
        xlabel=f"published raw projection on its axis, {comparison.published}",
        ylabel=f"cosine score on PC1, {comparison.model}, layer {comparison.layer}",
        title=f"Two models order {len(comparison.roles)} roles: Spearman {comparison.pc1.spearman:.2f}",
    )
    caption(fig, "positive = Assistant-like on both axes · red: largest difference in rank")
    return fig
