"""Figures of drift and of steering: a conversation along the axis, its tokens in colour, domains, messages, doses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from assistant_axis.errors import SettingError
from assistant_axis.plots.style import BLUE, FAINT, GREEN, ORANGE, RED, SERIES, Plot, clean, readable, styled, title
from assistant_axis.plots.tokens import FramedHtml, TokenView, circuitsvis_view, values_view

if TYPE_CHECKING:
    from jaxtyping import Float

    from assistant_axis.drift.behaviour import Outcome, Relation
    from assistant_axis.drift.predict import Exchanges
    from assistant_axis.drift.simulate import Simulation
    from assistant_axis.drift.summary import TurnMean
    from assistant_axis.drift.trajectory import Trajectory

_AWAY_TO_ASSISTANT = LinearSegmentedColormap.from_list("away to Assistant", [ORANGE, "#f4f1ec", BLUE])

__all__ = ["behaviour_map", "domain_traces", "drift_tokens", "drift_trace", "message_map", "steering_bars"]


def drift_trace(
    turns: "Trajectory | Mapping[str, Trajectory] | Mapping[str, Sequence[float]] | Sequence[float]",
    *,
    layer: int | None = None,
    band: tuple[float, float] | None = None,
    floor: float | None = None,
    centered: bool = False,
    side_by_side: bool = False,
    conditions: str = "",
) -> Plot:
    """Projection on the Assistant Axis, one point an assistant turn, with the band of the default persona.

    Bars on a trajectory's points are ± one standard error over the turn's tokens.

    Args:
        turns: a trajectory or the projections themselves, or several by name.
        layer: which layer of a trajectory; default: the first it read.
        band: 5th and 95th percentile of the default's own rollouts, in the same units (raw or centred) as the
            projections; a trajectory brings its own.
        floor: a cap's floor, in the same units, to be drawn.
        centered: whether the numbers are, or for a trajectory should be, centred by the role mean.
        side_by_side: a panel each, with one scale, instead of all in one.
        conditions: one line on how it was measured; a trajectory brings its own.

    Raises:
        SettingError: no turn to draw.
        LayerError: a trajectory did not read that layer.
    """
    named = dict(turns) if isinstance(turns, Mapping) else {"": turns}
    series: dict[str, list[float]] = {}
    spread: dict[str, list[float]] = {}
    for name, one in named.items():
        if isinstance(one, Sequence) or not hasattr(one, "means"):
            series[name] = [float(v) for v in one]  # type: ignore[union-attr]
            continue
        k = one.layer_index(layer)
        series[name] = [float(v) for v in one.means(one.layers[k], centered=centered)]
        spread[name] = np.nan_to_num(one.stderrs(one.layers[k]).numpy()).tolist()
        shift = float(one.center[k]) if centered else 0.0
        own = (float(one.default_band[0, k]) - shift, float(one.default_band[2, k]) - shift)
        if band is None and np.isfinite(own).all():
            band = own
        conditions = conditions or f"{one.model} · layer {one.layers[k]} · {one.span} span · {one.reading} reading"
    longest = max((len(v) for v in series.values()), default=0)
    if longest == 0:
        raise SettingError("There is no assistant turn to draw; trace a conversation with at least one answer.")
    panels = len(series) if side_by_side else 1
    with styled(6.4 if panels == 1 else 1.2 + 3.6 * panels, 3.5) as figure:
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        for ax in axes:
            if band is not None:
                ax.axhspan(*band, color=GREEN, alpha=0.16, linewidth=0, label="default persona, 5–95 %")
            if floor is not None:
                said = f"cap floor {floor:.1f}".replace("-", "−")
                ax.axhline(floor, color=RED, linestyle=(0, (5, 3)), linewidth=1.3, label=said)
        for k, (name, values) in enumerate(series.items()):
            ax, at = axes[k % panels], range(1, len(values) + 1)
            colour = SERIES[k % len(SERIES)]
            small = 5 if longest <= 25 else 3
            ax.plot(at, values, "o-", color=colour, linewidth=1.8, markersize=small, label=name or "this conversation")
            if name in spread:
                ax.errorbar(at, values, spread[name], fmt="none", ecolor=colour, elinewidth=1, alpha=0.6)
        for ax in axes:
            ax.set(xlabel="assistant turn", xlim=(0.7, longest + 0.3))
            ax.set_xticks(range(1, longest + 1, -(-longest // (15 if panels == 1 else 8))))
            clean(ax, grid="y")
            ax.margins(y=0.1)
        unit = "centred" if centered else "raw"
        axes[0].set_ylabel(f"{unit} projection on the axis\n(activation units; up: Assistant)")
        found = {name: line for ax in axes for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
        figure.legend(found.values(), found, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        title(axes[0], "Drift along the Assistant Axis", conditions or f"n = {longest} turns")
    return figure


def drift_tokens(
    trace: "Trajectory",
    *,
    layer: int | None = None,
    role: str | None = None,
    circuitsvis: bool = False,
) -> TokenView | FramedHtml:
    """The tokens of a conversation, coloured by their projection: blue is Assistant-like, orange is away from it.

    Colours are centred: on the role mean if the axis was calibrated on such tokens, else on the mean of the tokens
    shown. They are full at the 98th percentile of the distance from there.

    Args:
        trace: from [`trajectory`][assistant_axis.trajectory], with `users=True` for the user's tokens too.
        layer: which of its layers; default: the first it read.
        role: one speaker's turns only.
        circuitsvis: as CircuitsVis' `colored_tokens` in a frame of its own, instead of the view of this package.

    Raises:
        SettingError: no turn of that role was read.
        LayerError: that layer was not read.
    """
    k = trace.layer_index(layer)
    turns = trace.turns if role is None else trace.of(role)
    if not turns:
        raise SettingError(f"No {role or ''} turn was read; trace with users=True, or another conversation.")
    values = np.concatenate([t.tokens[k].numpy() for t in turns])
    calibrated = bool(np.isfinite(float(trace.default_band[1, k])))
    center = float(trace.center[k]) if calibrated else float(values.mean())
    texts: list[str] = []
    numbers: list[float] = []
    notes: list[str] = []
    for n, turn in enumerate(turns):
        if len(turns) > 1:
            texts.append(("\n\n" if n else "") + f"{turn.role}: ")
            numbers.append(center)
            notes.append(f"message {turn.index}")
        texts += turn.pieces
        numbers += turn.tokens[k].tolist()
        notes += [f"{v:+.2f} raw, {v - float(trace.center[k]):+.2f} centred" for v in turn.tokens[k].tolist()]
    if circuitsvis:
        return circuitsvis_view(texts, [v - center for v in numbers])
    reach = float(np.quantile(np.abs(values - center), 0.98))
    about = "role mean" if calibrated else "mean of these tokens"
    caption = f"raw projection, white: {about} · {trace.model} · layer {trace.layers[k]}"
    view = values_view(texts, numbers, center=center, limit=reach, caption=caption)
    said: list[Any] = [replace(t, note=note) for t, note in zip(view.tokens, notes, strict=True)]
    return replace(view, tokens=tuple(said))


def domain_traces(simulation: "Simulation", means: "Sequence[TurnMean] | None" = None) -> Plot:
    """Centred mean projection of every domain at every turn, with 95 % bands over conversations.

    Args:
        simulation: exchanges.
        means: centred means from `per_turn`; default: with its usual least count.
    """
    from assistant_axis.drift.summary import FEWEST, per_turn

    found = list(per_turn(simulation) if means is None else means)
    c = simulation.conditions
    with styled(6.8, 4.0) as figure:
        ax = figure.add_subplot()
        for k, domain in enumerate(simulation.domains):
            here = [m for m in found if m.domain == domain]
            if not here:
                continue
            colour = SERIES[k % len(SERIES)]
            at = [m.turn + 1 for m in here]
            counts = sorted({m.n for m in here})
            n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}–{counts[-1]}"
            ax.plot(
                at, [m.mean for m in here], "o-", color=colour, linewidth=1.8, markersize=5, label=f"{domain} ({n})"
            )
            ax.fill_between(at, [m.low for m in here], [m.high for m in here], color=colour, alpha=0.13, linewidth=0)
        if not found:
            said = f"no domain and turn has {FEWEST} conversations"
            ax.text(0.5, 0.5, said, transform=ax.transAxes, ha="center", color=FAINT)
        last = max((m.turn + 1 for m in found), default=1)
        ax.set(xlabel="assistant turn", ylabel="centred projection on the axis\n(activation units; up: Assistant)")
        ax.set(xlim=(0.7, last + 0.3), xticks=range(1, last + 1))
        clean(ax, grid="y")
        if found:
            figure.legend(
                *ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
            )
        where = f"{c['model']} · layer {c['layer']} · user: {c['user']} · bands: 95 % over conversations"
        title(ax, "Drift by domain", where)
    return figure


def message_map(exchanges: "Exchanges", places: "Float[np.ndarray, 'message 2']") -> Plot:
    """User messages on two principal components of their embeddings, coloured by the raw projection that follows.

    Args:
        exchanges: messages and what followed.
        places: from `map_messages`.

    Raises:
        SettingError: not one place a message.
    """
    if len(exchanges) != len(places):
        raise SettingError(f"{len(places)} places came for {len(exchanges)} messages.")
    low, high = np.quantile(exchanges.next, [0.02, 0.98])
    with styled(6.4, 4.6) as figure:
        ax = figure.add_subplot()
        dots = ax.scatter(
            places[:, 0], places[:, 1], c=exchanges.next, cmap=_AWAY_TO_ASSISTANT, vmin=low, vmax=high,
            s=18 if len(places) < 2000 else 6, edgecolors="#8a939e55", linewidths=0.4,
        )  # fmt: skip
        bar = figure.colorbar(dots, ax=ax, label="raw projection of the next answer", extend="both", shrink=0.85)
        bar.outline.set_visible(False)  # type: ignore[operator]
        ax.set(xlabel="PC1 of the embeddings", ylabel="PC2 of the embeddings")
        ax.tick_params(labelbottom=False, labelleft=False)
        clean(ax)
        n = f"n = {len(exchanges)} messages of {len(set(exchanges.conversations))} conversations"
        title(ax, "User messages and where the next answer stands", n)
    return figure


def behaviour_map(outcomes: "Sequence[Outcome]", relation: "Relation", *, label: str, conditions: str = "") -> Plot:
    """First-turn projection against the second turn's outcome: conversations pale, role means strong and named.

    The roles at both ends of either side are named.

    Args:
        outcomes: conversations.
        relation: from `relate`, for the title.
        label: what the outcome is, with its unit.
        conditions: one line on how it was measured.
    """
    by: dict[str, list[tuple[float, float]]] = {}
    for o in outcomes:
        by.setdefault(o.role, []).append((o.centered, o.outcome))
    means = {role: np.mean(rows, axis=0) for role, rows in by.items()}
    named = {role for side in (0, 1) for role in _ends(sorted(means, key=lambda r: means[r][side]), 3)}
    with styled(6.4, 4.4) as figure:
        ax = figure.add_subplot()
        ax.scatter([o.centered for o in outcomes], [o.outcome for o in outcomes], s=10, color=FAINT, alpha=0.45, lw=0)
        ax.scatter([m[0] for m in means.values()], [m[1] for m in means.values()], s=22, color=BLUE, lw=0)
        for role in named:
            where = (float(means[role][0]), float(means[role][1]))
            ax.annotate(readable(role), where, (4, 3), textcoords="offset points", fontsize=8)
        ax.set(xlabel="centred projection of the first answer (up the axis: Assistant)", ylabel=label)
        clean(ax, grid="both")
        said = f"r = {relation.pearson:+.2f} {relation.pearson_interval} over {relation.roles} roles, n = {relation.n}"
        title(ax, "First-turn projection and second-turn behaviour", " · ".join(x for x in (said, conditions) if x))
    return figure


def _ends(items: Sequence[str], count: int) -> list[str]:
    return [*items[:count], *items[-count:]]


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
