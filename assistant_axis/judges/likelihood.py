"""The judge that needs no other model: does the role prompt explain an answer better than no prompt does?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from assistant_axis.errors import JudgeError
from assistant_axis.judges.base import Judgement
from assistant_axis.models.generation import Answer
from assistant_axis.personas.rollouts import Rollout
from assistant_axis.steering.adherence import Case, adherence

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

VERSION = "likelihood-1"
FLOOR = 95.0
"""Percentile of the default's own answers, read under role prompts, from which an answer has something of the role."""
PAIRS = 256
"""How many pairs of a default answer and a role prompt stand behind the thresholds, at most."""


@dataclass(frozen=True)
class Thresholds:
    """Nats per token from which an answer is scored 2 and 3.

    Attributes:
        somewhat: the `FLOOR` percentile of the default's own answers: one in twenty of them would be scored 2.
        fully: twice as far above the default's median.
        pairs: how many pairs of an answer and a role prompt they come from.
    """

    somewhat: float
    fully: float
    pairs: int


class LikelihoodJudge:
    """Scores an answer by its log-probability per token under the role prompt minus that with no system prompt.

    The measure is the adherence of [`adherence`][assistant_axis.steering.adherence.adherence], by the unsteered model that
    gave the answers. The thresholds come from the model's own default answers read under the prompts of roles that they
    were not asked for: what stands above nearly all of these has something of the role. It cannot tell a refusal from an
    answer as itself, so it never gives 0.

    Args:
        model: the model that gave the answers, unsteered.
        thresholds: from `calibrate`, or numbers of one's own.
    """

    def __init__(self, model: "HookedChatModel", thresholds: Thresholds) -> None:
        if not thresholds.somewhat <= thresholds.fully:
            raise JudgeError(
                f"The thresholds must rise; got {thresholds.somewhat:.3f} for 2 and {thresholds.fully:.3f} for 3."
            )
        self.model, self.thresholds = model, thresholds

    @classmethod
    def calibrated(
        cls, model: "HookedChatModel", default: Sequence[Rollout], systems: Iterable[str], *, seed: int = 0
    ) -> "LikelihoodJudge":
        """A judge with thresholds of this model. See `calibrate` for the arguments."""
        return cls(model, calibrate(model, default, systems, seed=seed))

    @property
    def name(self) -> str:
        return "likelihood"

    @property
    def rubric(self) -> str:
        t = self.thresholds
        return f"{VERSION} (2 from {t.somewhat:+.3f}, 3 from {t.fully:+.3f} nats/token; {t.pairs} pairs)"

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """One judgement for each rollout, `value` in nats per token; empty and incoherent answers are failures."""
        if not rollouts:
            return []
        rubric, found = self.rubric, []
        cases = [Case(r.role, r.system, r.question) for r in rollouts]
        seen = adherence(self.model, cases, [_answer(r) for r in rollouts])
        for nats, incoherent in zip(seen.nats, seen.incoherent, strict=True):
            if math.isnan(nats):
                found.append(Judgement(None, "", self.name, rubric, "empty"))
            elif incoherent:
                found.append(Judgement(None, f"{nats:+.3f} nats/token", self.name, rubric, "incoherent", nats))
            else:
                score = 1 + (nats >= self.thresholds.somewhat) + (nats >= self.thresholds.fully)
                found.append(Judgement(score, f"{nats:+.3f} nats/token", self.name, rubric, value=nats))
        return found


def calibrate(
    model: "HookedChatModel", default: Sequence[Rollout], systems: Iterable[str], *, seed: int = 0
) -> Thresholds:
    """Thresholds from the default's own answers, each read under the prompt of some role.

    Args:
        model: the unsteered model.
        default: its rollouts as itself.
        systems: system prompts of roles.
        seed: of which answer meets which prompt.

    Raises:
        JudgeError: fewer than ten default answers that are not empty, or no role prompt.
    """
    prompts = sorted({s for s in systems if s})
    spoken = [r for r in default if r.answer_ids]
    if len(spoken) < 10 or not prompts:
        raise JudgeError(
            f"The likelihood judge takes its thresholds from the default's own answers: there are {len(spoken)} answers and "
            f"{len(prompts)} role prompts; at least 10 and 1 are needed. Ask the default more questions."
        )
    generator = torch.Generator().manual_seed(seed)
    count = min(PAIRS, max(len(spoken), len(prompts)))
    rows = torch.randperm(len(spoken), generator=generator).tolist()
    under = torch.randperm(len(prompts), generator=generator).tolist()
    pairs = [(spoken[rows[k % len(rows)]], prompts[under[k % len(under)]]) for k in range(count)]
    cases = [Case(r.role, system, r.question) for r, system in pairs]
    nats = torch.tensor(adherence(model, cases, [_answer(r) for r, _ in pairs]).nats, dtype=torch.float64)
    middle, high = torch.quantile(nats, torch.tensor([0.5, FLOOR / 100], dtype=torch.float64)).tolist()
    return Thresholds(high, high + (high - middle), count)


def _answer(rollout: Rollout) -> Answer:
    return Answer(rollout.answer, rollout.answer_ids, rollout.prompt_ids, rollout.finish_reason)
