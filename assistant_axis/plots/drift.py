"""Figures of drift and of steering: a conversation along the axis, and what a dose does."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from assistant_axis.errors import SettingError
from assistant_axis.plots.style import BLUE, FAINT, GREEN, RED, SERIES, Plot, clean, styled, title

if TYPE_CHECKING:
    from assistant_axis.drift.trajectory import Trajectory

__all__ = ["drift_trace", "steering_bars"]


def drift_trace(
    turns: "Trajectory | Mapping[str, Trajectory] | Mapping[str, Sequence[float]] | Sequence[float]",
    *,
    layer: int | None = None,
    band: tuple[float, float] | None = None,
    floor: float | None = None,
    centered: bool = False,
    conditions: str = "",
) -> Plot:
    """Projection on the Assistant Axis, one point an assistant turn, with the band of the default persona.

    Args:
        turns: a trajectory or the projections themselves, or several by name.
        layer: which layer of a trajectory; default: the first it read.
        band: 5th and 95th percentile of the default's own rollouts, in the same units (raw or centred) as the
            projections; a trajectory brings its own.
        floor: a cap's floor, in the same units, to be drawn.
        centered: whether the numbers are, or for a trajectory should be, centred by the role mean.
        conditions: one line on how it was measured; a trajectory brings its own.

    Raises:
        SettingError: no turn to draw.
        LayerError: a trajectory did not read that layer.
    """
    named = dict(turns) if isinstance(turns, Mapping) else {"": turns}
    series: dict[str, list[float]] = {}
    for name, one in named.items():
        if isinstance(one, Sequence) or not hasattr(one, "means"):
            series[name] = [float(v) for v in one]  # type: ignore[union-attr]
            continue
        k = one.layer_index(layer)
        series[name] = [float(v) for v in one.means(one.layers[k], centered=centered)]
        shift = float(one.center[k]) if centered else 0.0
        own = (float(one.default_band[0, k]) - shift, float(one.default_band[2, k]) - shift)
        if band is None and np.isfinite(own).all():
            band = own
        conditions = conditions or f"{one.model} · layer {one.layers[k]} · {one.span} span · {one.reading} reading"
    longest = max((len(v) for v in series.values()), default=0)
    if longest == 0:
        raise SettingError("There is no assistant turn to draw; trace a conversation with at least one answer.")
    with styled(6.4, 3.5) as figure:
        ax = figure.add_subplot()
        if band is not None:
            ax.axhspan(*band, color=GREEN, alpha=0.16, linewidth=0, label="default persona, 5–95 %")
        if floor is not None:
            ax.axhline(
                floor, color=RED, linestyle=(0, (5, 3)), linewidth=1.3, label=f"cap floor {floor:.1f}".replace("-", "−")
            )
        for k, (name, values) in enumerate(series.items()):
            ax.plot(
                range(1, len(values) + 1), values, "o-", color=SERIES[k % len(SERIES)], linewidth=1.8, markersize=5,
                label=name or "this conversation",
            )  # fmt: skip
        ax.set(xlabel="assistant turn", xlim=(0.7, longest + 0.3))
        ax.set_xticks(range(1, longest + 1, max(1, longest // 15)))
        ax.set_ylabel(f"{'centred' if centered else 'raw'} projection on the axis\n(activation units; up: Assistant)")
        clean(ax, grid="y")
        ax.margins(y=0.1)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        title(ax, "Drift along the Assistant Axis", conditions or f"n = {longest} turns")
    return figure


def steering_bars(
    doses: Sequence[float],
    effects: Mapping[str, Sequence[float]],
    *,
    effect: str,
    unit: str = "of the residual norm",
    baseline: float | None = None,
    conditions: str = "",
) -> Plot:
    """What each dose does, one group of bars a dose, one bar a direction: the axis beside its random control.

    Args:
        doses: the strengths, in `unit`.
        effects: direction → one value a dose.
        effect: what the values are.
        unit: of the doses.
        baseline: the value without steering.
        conditions: one line on how it was measured.

    Raises:
        SettingError: not one value a dose.
    """
    for name, values in effects.items():
        if len(values) != len(doses):
            raise SettingError(f"{name!r} has {len(values)} values for {len(doses)} doses; give one a dose.")
    width = 0.8 / max(1, len(effects))
    x = np.arange(len(doses))
    with styled(6.4, 3.4) as figure:
        ax = figure.add_subplot()
        for k, (name, values) in enumerate(effects.items()):
            colour = BLUE if k == 0 else SERIES[k % len(SERIES)]
            ax.bar(x + (k - (len(effects) - 1) / 2) * width, values, width * 0.92, color=colour, label=name)
        if baseline is not None:
            ax.axhline(baseline, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2, label="unsteered")
        ax.set_xticks(x, [f"{d:+g}" for d in doses])
        ax.set(xlabel=f"dose ({unit})", ylabel=effect)
        clean(ax, grid="y")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        title(ax, f"Dose and effect: {effect}", conditions)
    return figure
