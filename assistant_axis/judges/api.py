"""A judge behind any OpenAI-compatible endpoint."""

from collections.abc import Sequence
from typing import Any

from assistant_axis.judges.base import Judgement
from assistant_axis.judges.endpoint import Endpoint, Reply, SpendEstimate
from assistant_axis.judges.local import judgement_of
from assistant_axis.judges.rubric import RUBRIC_VERSION, rubric_messages
from assistant_axis.personas.rollouts import Rollout


class APIJudge:
    """Scores by a model behind an OpenAI-compatible endpoint, with the rubric.

    What has no score when attempts or time are used up comes back as a failure, never as an exception.

    Args:
        model: its name at the endpoint.
        limits: as [`Endpoint`][assistant_axis.judges.endpoint.Endpoint] takes them; `max_tokens` is room for the reason and
            the verdict.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        JudgeError: no key in the environment.
        SettingError: a limit that is not positive.
    """

    def __init__(self, model: str, **limits: Any) -> None:
        self.endpoint = Endpoint(model, **limits)

    @property
    def name(self) -> str:
        return f"api:{self.endpoint.model}"

    @property
    def rubric(self) -> str:
        return RUBRIC_VERSION

    def estimate(self, rollouts: Sequence[Rollout]) -> SpendEstimate:
        """What scoring these rollouts will ask for; nothing is sent."""
        return self.endpoint.estimate([rubric_messages(r) for r in rollouts if r.answer.strip()])

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """One judgement for each rollout, in order; empty answers are failures and are not sent.

        Raises:
            JudgeError: the endpoint refuses the key, the model's name or the form of the request.
        """
        full = [k for k, r in enumerate(rollouts) if r.answer.strip()]
        replies = self.endpoint.ask([rubric_messages(rollouts[k]) for k in full], self._readable) if full else []
        found = {k: self._judged(reply) for k, reply in zip(full, replies, strict=True)}
        empty = Judgement(None, "", self.name, RUBRIC_VERSION, "empty")
        return [found.get(k, empty) for k in range(len(rollouts))]

    def _readable(self, text: str) -> bool:
        return judgement_of(text, self.name).failure != "unparsed"

    def _judged(self, reply: Reply) -> Judgement:
        if reply.failure:
            return Judgement(None, reply.text, self.name, RUBRIC_VERSION, reply.failure)
        return judgement_of(reply.text, self.name)
