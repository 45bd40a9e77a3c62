"""What simulated conversations say: mean projection per turn and domain, slopes, and the contrast between domains.

The unit of every test is the conversation: turns of one conversation are not independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assistant_axis.drift.simulate import SimulatedTurn, Simulation
from assistant_axis.errors import SettingError

FEWEST = 10
"""Positions with fewer conversations than this are dropped (Lu et al. 2026, section 4)."""


@dataclass(frozen=True)
class TurnMean:
    """Mean projection of one domain at one turn, with its 95 % confidence band over conversations (Student's t)."""

    domain: str
    turn: int
    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Slope:
    """Drift of a domain: mean over conversations of each one's least-squares slope, activation units a turn.

    Attributes:
        n: conversations with at least three answers.
        mean: mean slope; negative moves away from the Assistant.
        low: lower end of the 95 % interval.
        high: upper end.
        t: Student's t of the slopes against zero.
        p: two-sided.
    """

    domain: str
    n: int
    mean: float
    low: float
    high: float
    t: float
    p: float


@dataclass(frozen=True)
class Contrast:
    """Difference of conversation means between two groups of domains (Welch's t-test, two-sided).

    `difference` is the first group minus the second, `low` and `high` its 95 % interval, in activation units; `d` is
    Cohen's d.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    n: tuple[int, int]
    difference: float
    low: float
    high: float
    t: float
    p: float
    d: float


def per_turn(simulation: Simulation, *, centered: bool = True, fewest: int = FEWEST) -> list[TurnMean]:
    """Mean projection per domain and turn; positions with fewer than `fewest` answers are dropped.

    Args:
        simulation: exchanges.
        centered: minus the role mean's projection, as the paper plots; raw otherwise.
        fewest: smallest number of conversations at a position.
    """
    from scipy import stats

    out: list[TurnMean] = []
    for domain in simulation.domains:
        here = [t for t in simulation.turns if t.domain == domain and not math.isnan(t.raw)]
        for turn in sorted({t.turn for t in here}):
            values = np.array([_value(t, centered) for t in here if t.turn == turn])
            if len(values) < max(fewest, 1):
                continue
            mean = float(values.mean())
            half = math.nan
            if len(values) > 1:
                half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
            out.append(TurnMean(domain, turn, len(values), mean, mean - half, mean + half))
    return out


def slopes(simulation: Simulation) -> list[Slope]:
    """Whether projections drift over turns, per domain: a slope a conversation, tested against zero.

    Equivalent, for conversations of equal length, to the fixed effect of a mixed model with random intercepts and
    slopes, without its distributional machinery.
    """
    from scipy import stats

    out: list[Slope] = []
    for domain in simulation.domains:
        found = []
        for turns in _by_conversation(simulation, (domain,)).values():
            if len(turns) >= 3:
                found.append(float(np.polyfit([t.turn for t in turns], [t.raw for t in turns], 1)[0]))
        values = np.array(found)
        mean = float(values.mean()) if len(values) else math.nan
        if len(values) < 2 or values.std() == 0:
            out.append(Slope(domain, len(values), mean, math.nan, math.nan, math.nan, math.nan))
            continue
        tested: Any = stats.ttest_1samp(values, 0.0)
        interval = tested.confidence_interval(0.95)
        out.append(
            Slope(
                domain,
                len(values),
                mean,
                float(interval.low),
                float(interval.high),
                float(tested.statistic),
                float(tested.pvalue),
            )
        )
    return out


def contrast(
    simulation: Simulation,
    first: Sequence[str] = ("therapy", "philosophy"),
    second: Sequence[str] = ("coding", "writing"),
    *,
    turns: Sequence[int] | None = None,
) -> Contrast:
    """Whether two groups of domains differ in their conversations' mean projection.

    Args:
        simulation: exchanges.
        first: domains of the first group; the paper finds these to drift.
        second: domains of the second; these hold.
        turns: use these turns only; default: all.

    Raises:
        SettingError: a group with fewer than two conversations.
    """
    from scipy import stats

    groups = []
    for domains in (tuple(first), tuple(second)):
        means = [
            float(np.mean([t.raw for t in said if turns is None or t.turn in turns]))
            for said in _by_conversation(simulation, domains).values()
            if any(turns is None or t.turn in turns for t in said)
        ]
        if len(means) < 2:
            raise SettingError(
                f"The contrast needs two conversations of {', '.join(domains)}; there are {len(means)} "
                f"(domains here: {', '.join(simulation.domains)})."
            )
        groups.append(np.array(means))
    a, b = groups
    tested: Any = stats.ttest_ind(a, b, equal_var=False)
    interval = tested.confidence_interval(0.95)
    pooled = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
    difference = float(a.mean() - b.mean())
    return Contrast(
        first=tuple(first),
        second=tuple(second),
        n=(len(a), len(b)),
        difference=difference,
        low=float(interval.low),
        high=float(interval.high),
        t=float(tested.statistic),
        p=float(tested.pvalue),
        d=difference / pooled if pooled else math.nan,
    )


def _by_conversation(simulation: Simulation, domains: Sequence[str]) -> dict[str, list[SimulatedTurn]]:
    out: dict[str, list[SimulatedTurn]] = {}
    for t in simulation.turns:
        if t.domain in domains and not math.isnan(t.raw):
            out.setdefault(t.conversation, []).append(t)
    return out


def _value(turn: SimulatedTurn, centered: bool) -> float:
    return turn.centered if centered else turn.raw
