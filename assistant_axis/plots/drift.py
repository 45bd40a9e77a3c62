"""Figures of drift: the projection of each turn, with the default's band and a cap's floor."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from assistant_axis.drift.trajectory import Trajectory
from assistant_axis.plots.style import ALERT, ASSISTANT, SERIES, caption, figure


def drift_trace(
    traces: Trajectory | Mapping[str, Trajectory],
    layer: int | None = None,
    *,
    floor: float | None = None,
    role: str = "assistant",
) -> Figure:
    """Raw mean projection of every turn, one line a conversation (capped beside uncapped, say).

    Args:
        traces: one trajectory, or several by name.
        layer: block index; default: the first that was read.
        floor: a cap's floor at this layer, raw.
        role: whose turns.
    """
    named = {"": traces} if isinstance(traces, Trajectory) else dict(traces)
    fig, ax = figure(7.2, 3.9)
    first = next(iter(named.values()))
    k = first.layer_index(layer)
    low, middle, high = (float(first.default_band[q, k]) for q in range(3))
    if np.isfinite(low):
        ax.axhspan(low, high, color=ASSISTANT, alpha=0.10, linewidth=0)
        ax.axhline(middle, color=ASSISTANT, linewidth=0.9, linestyle=":")
        ax.annotate(
            "default persona, 5–95 %",
            (1.0, high),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=9,
            color=ASSISTANT,
        )
    longest = 1
    for colour, (name, trace) in zip(SERIES * 4, named.items(), strict=False):
        turns = trace.of(role)
        at = np.arange(1, len(turns) + 1)
        longest = max(longest, len(at))
        values = trace.means(layer, role=role).numpy()
        errors = np.nan_to_num(trace.stderrs(layer, role=role).numpy())
        ax.errorbar(at, values, yerr=errors, color=colour, marker="o", markersize=5, capsize=3, label=name or None)
    if floor is not None:
        ax.axhline(floor, color=ALERT, linewidth=1.1, linestyle="--", label="floor of the cap")
    ax.set(xlabel=f"{role} turn", ylabel="raw projection (up = Assistant-like)", xticks=range(1, longest + 1))
    ax.set_title("Along the Assistant Axis, turn by turn")
    if any(named) or floor is not None:
        ax.legend(fontsize=9, frameon=False)
    caption(
        fig,
        f"{first.model} · layer {first.layers[k]} · {first.span} tokens, {first.reading} interventions · "
        "bars: standard error over tokens",
    )
    return fig
