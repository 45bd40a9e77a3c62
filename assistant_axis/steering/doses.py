"""What additive steering does, dose by dose, beside directions that should do nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import SettingError
from assistant_axis.progress import track
from assistant_axis.steering.adherence import Case, adherence, answer_cases, neutral_perplexity, persona_cases
from assistant_axis.steering.direction import Direction, DirectionLike
from assistant_axis.steering.interventions import Add

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

DOSES = (-0.3, -0.15, 0.0, 0.15, 0.3)


@dataclass(frozen=True)
class Dose:
    """What one dose along one direction did.

    Attributes:
        direction: its name.
        coef: the dose in units of the mean residual norm; positive is Assistant-like along the axis.
        adherence: to the role, mean over answers, nats per token, by the unsteered model.
        interval: 95 % bootstrap over answers.
        incoherent: share of answers.
        perplexity: of neutral text under the dose.
        answers: how many there were.
    """

    direction: str
    coef: float
    adherence: float
    interval: tuple[float, float]
    incoherent: float
    perplexity: float
    answers: int


@dataclass(frozen=True)
class DoseResponse:
    """Doses along an axis and along its controls, at one layer.

    Attributes:
        layer: block index.
        doses: in the order measured: the axis first, then each control.
    """

    layer: int
    doses: tuple[Dose, ...]

    @property
    def directions(self) -> tuple[str, ...]:
        """Names, the axis first."""
        return tuple(dict.fromkeys(d.direction for d in self.doses))

    def along(self, direction: str | None = None) -> tuple[Dose, ...]:
        """The doses along one direction (default: the axis), smallest first."""
        name = direction or self.directions[0]
        return tuple(sorted((d for d in self.doses if d.direction == name), key=lambda d: d.coef))

    def monotone(self, max_incoherent: float = 0.25) -> bool:
        """Whether adherence falls at every step toward the Assistant, over doses with a coherent majority of answers.

        Args:
            max_incoherent: doses with a larger share of incoherent answers are left out.
        """
        kept = [d.adherence for d in self.along() if d.incoherent <= max_incoherent]
        return len(kept) > 1 and all(a > b for a, b in pairwise(kept))

    def rows(self) -> list[dict[str, str]]:
        """The table, one row a dose."""
        return [
            {
                "direction": d.direction,
                "dose (× residual norm)": f"{d.coef:+.2f}",
                "adherence": f"{d.adherence:+.3f} [{d.interval[0]:+.2f}, {d.interval[1]:+.2f}]",
                "incoherent": f"{d.incoherent:.0%}",
                "perplexity": f"{d.perplexity:.2f}",
            }
            for name in self.directions
            for d in self.along(name)
        ]

    def plot(self, axes: Any = None) -> Any:
        """Adherence and incoherent share against the dose, the controls in grey; returns the two matplotlib axes."""
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(7.2, 5.4), layout="constrained").subplots(
                2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1.3]}
            )
        top, bottom = axes
        for k, name in enumerate(self.directions):
            found = self.along(name)
            at, own = [d.coef for d in found], k == 0
            style: dict[str, Any] = {"color": "C0", "lw": 2, "zorder": 3} if own else {"color": "0.55", "lw": 1}
            label = name if own else ("controls" if k == 1 else None)
            top.plot(at, [d.adherence for d in found], marker="o", ms=6 if own else 3, label=label, **style)
            if own:
                top.fill_between(at, *zip(*(d.interval for d in found), strict=True), color="C0", alpha=0.18, lw=0)
            bottom.plot(at, [100 * d.incoherent for d in found], marker="o", ms=6 if own else 3, **style)
        top.axhline(0, color="0.5", lw=0.8, ls=":")
        top.set_ylabel("adherence to the role\n(nats per token)")
        bottom.set_ylabel("incoherent\nanswers (%)")
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel(f"dose at layer {self.layer}, × mean residual norm (right: toward the Assistant)")
        top.legend(frameon=False)
        return axes


def dose_response(
    model: "HookedChatModel",
    axis: DirectionLike,
    doses: Sequence[float] = DOSES,
    *,
    layer: int | float | None = None,
    controls: Sequence[Direction] = (),
    cases: Sequence[Case] | None = None,
    max_new_tokens: int = 40,
    neutral: int | None = 20,
    batch_size: int = 24,
    progress: bool = False,
) -> DoseResponse:
    """How role adherence, coherence and neutral perplexity answer to doses along an axis.

    Args:
        model: the model.
        axis: positive is Assistant-like.
        doses: in units of the mean residual norm at the layer.
        layer: default: the model's monitoring layer.
        controls: directions that should do nothing, at the same doses: `direction.random(seed)`, `shuffled_direction`.
        cases: questions under personas; default: 24 of the bundled library.
        max_new_tokens: an answer, greedy.
        neutral: how many neutral texts the perplexity is of; `None`: all.
        batch_size: answers a pass.
        progress: show a bar.

    Raises:
        SettingError: fewer than two doses, or a direction without residual norms.
    """
    if len(set(doses)) < 2:
        raise SettingError(f"A dose response needs at least two different doses; got {list(doses)}.")
    asked = list(cases) if cases is not None else persona_cases(questions=2, seed=5)
    at = model.profile.layer if layer is None else model.layer(layer)
    directions = (Direction.of(axis), *controls)
    found: list[Dose] = []
    still: Dose | None = None  # a dose of zero is the same along every direction
    with track(len(directions) * len(doses), "Dosing", show=progress) as advance:
        for direction in directions:
            for coef in doses:
                if coef == 0 and still is not None:
                    found.append(replace(still, direction=direction.name))
                else:
                    add = Add(direction, coef, layers=at)
                    answers = answer_cases(model, asked, add, max_new_tokens=max_new_tokens, batch_size=batch_size)
                    a = adherence(model, asked, answers)
                    cost = neutral_perplexity(model, add, count=neutral)
                    found.append(
                        Dose(direction.name, coef, a.mean, a.interval(), a.incoherent_share, cost, len(answers))
                    )
                    still = found[-1] if coef == 0 else still
                advance(1)
    return DoseResponse(at, tuple(found))
