"""Figures of simulated conversations: domains turn by turn, and a map of user messages."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from assistant_axis.drift.predict import Exchanges
from assistant_axis.drift.simulate import Simulation
from assistant_axis.drift.summary import TurnMean, per_turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = ("#2563eb", "#f97316", "#16a34a", "#9333ea", "#dc2626", "#0891b2")


def domain_traces(simulation: Simulation, means: Sequence[TurnMean] | None = None) -> "Figure":
    """Centred mean projection of every domain at every turn, with 95 % bands over conversations.

    Args:
        simulation: exchanges.
        means: centred means from `per_turn`; default: with its usual least count.
    """
    from matplotlib.figure import Figure

    found = list(per_turn(simulation) if means is None else means)
    fig = Figure(figsize=(7.2, 4.0), layout="constrained")
    ax = fig.subplots()
    for colour, domain in zip(SERIES * 3, simulation.domains, strict=False):
        here = [m for m in found if m.domain == domain]
        if not here:
            continue
        at = [m.turn + 1 for m in here]
        counts = sorted({m.n for m in here})
        said = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}–{counts[-1]}"
        ax.plot(at, [m.mean for m in here], color=colour, marker="o", markersize=4, label=f"{domain} ({said})")
        ax.fill_between(at, [m.low for m in here], [m.high for m in here], color=colour, alpha=0.15, linewidth=0)
    ax.set(xlabel="assistant turn", ylabel="centred projection (up = Assistant-like)")
    ax.set_title("Drift by domain")
    if ax.lines:
        ax.legend(fontsize=9, frameon=False)
    c = simulation.conditions
    fig.supxlabel(f"{c['model']} · layer {c['layer']} · user: {c['user']} · bands: 95 % over conversations", fontsize=8)
    return fig


def message_map(exchanges: Exchanges, places: Float[np.ndarray, "message 2"]) -> "Figure":
    """User messages on two principal components of their embeddings, coloured by the raw projection that follows."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.6, 4.8), layout="constrained")
    ax = fig.subplots()
    low, high = np.quantile(exchanges.next, [0.02, 0.98])
    dots = ax.scatter(
        places[:, 0], places[:, 1], c=exchanges.next, cmap="RdBu", vmin=low, vmax=high, s=14, linewidths=0
    )
    fig.colorbar(dots, ax=ax, label="raw projection of the next answer")
    ax.set(xlabel="embedding PC1", ylabel="embedding PC2", title="User messages and what follows them")
    fig.supxlabel(f"{len(exchanges)} messages of {len(set(exchanges.conversations))} conversations", fontsize=8)
    return fig
