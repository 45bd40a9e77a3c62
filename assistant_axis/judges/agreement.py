"""How far two judges agree, or a judge and people."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from assistant_axis.errors import JudgeError
from assistant_axis.judges.base import SCORES, Judgement, Key


@dataclass(frozen=True)
class Agreement:
    """Two sets of scores of the same rollouts.

    Attributes:
        names: of the two judges.
        confusion: rollouts by score of the first (rows 0 to 3) and of the second (columns).
        kappa: Cohen's kappa; 1 is full agreement, 0 what chance gives. NaN where both only ever gave one same score.
        weighted_kappa: the same with linear weights, where 2 for 3 is a smaller mistake than 0 for 3.
        only_first: rollouts that only the first scored.
        only_second: rollouts that only the second scored.
    """

    names: tuple[str, str]
    confusion: Int[np.ndarray, "first second"]
    kappa: float
    weighted_kappa: float
    only_first: int
    only_second: int

    @property
    def count(self) -> int:
        """Rollouts that both scored."""
        return int(self.confusion.sum())

    @property
    def exact(self) -> float:
        """Share of rollouts with the same score."""
        return float(np.trace(self.confusion) / self.count)

    def __str__(self) -> str:
        return (
            f"{self.names[0]} and {self.names[1]}: {self.count} rollouts, same score {self.exact:.0%}, kappa {self.kappa:.2f}, "
            f"linear {self.weighted_kappa:.2f}"
        )


def agree(
    first: Mapping[Key, Judgement], second: Mapping[Key, Judgement], *, names: tuple[str, str] | None = None
) -> Agreement:
    """Confusion matrix and Cohen's kappa over the rollouts that both scored.

    Args:
        first: scores by rollout, from `read_scores`.
        second: those of another judge, or of people.
        names: what to call them; default: the judges' own names.

    Raises:
        JudgeError: they have no scored rollout in common.
    """
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    scored = [{k: s.score for k, s in side.items() if s.score is not None} for side in (first, second)]
    both = [k for k in scored[0] if k in scored[1]]
    if not both:
        raise JudgeError(
            f"The two have no scored rollout in common ({len(scored[0])} and {len(scored[1])} are scored). Rollouts are told "
            "apart by role, prompt, question_id and sample."
        )
    a, b = ([side[k] for k in both] for side in scored)
    one = len({*a, *b}) == 1  # kappa is 0/0
    kappa = float("nan") if one else float(cohen_kappa_score(a, b, labels=list(SCORES)))
    weighted = float("nan") if one else float(cohen_kappa_score(a, b, labels=list(SCORES), weights="linear"))
    return Agreement(
        names or (next(iter(first.values())).judge, next(iter(second.values())).judge),
        confusion_matrix(a, b, labels=list(SCORES)),
        kappa,
        weighted,
        len(scored[0]) - len(both),
        len(scored[1]) - len(both),
    )
