"""A judge that is a chat model in this process."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from assistant_axis.judges.base import Judgement
from assistant_axis.judges.rubric import RUBRIC_VERSION, is_refusal, parse_verdict, rubric_messages
from assistant_axis.personas.rollouts import Rollout

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel


class ModelJudge:
    """Any local chat model with the rubric, at temperature 0.

    Args:
        model: from `load_model`; small models (below a few billion parameters) judge badly: compare with `agree` first.
        max_new_tokens: room for the reason and the verdict.
        batch_size: rollouts at a time.
    """

    def __init__(self, model: "HookedChatModel", *, max_new_tokens: int = 160, batch_size: int = 16) -> None:
        self.model, self.max_new_tokens, self.batch_size = model, max_new_tokens, batch_size

    @property
    def name(self) -> str:
        return f"model:{self.model.name}"

    @property
    def rubric(self) -> str:
        return RUBRIC_VERSION

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """One judgement for each rollout; empty answers are failures and are not shown to the model."""
        said = [k for k, r in enumerate(rollouts) if r.answer.strip()]
        replies = (
            self.model.generate(
                [rubric_messages(rollouts[k]) for k in said],
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
            )
            if said
            else []
        )
        found = {k: judgement_of(reply.text, self.name) for k, reply in zip(said, replies, strict=True)}
        empty = Judgement(None, "", self.name, RUBRIC_VERSION, "empty")
        return [found.get(k, empty) for k in range(len(rollouts))]


def judgement_of(text: str, judge: str) -> Judgement:
    """A reply as a judgement: its verdict, or why it is none."""
    score, reason = parse_verdict(text)
    failure = "" if score is not None else ("refused" if is_refusal(text) else "unparsed")
    return Judgement(score, reason, judge, RUBRIC_VERSION, failure)
