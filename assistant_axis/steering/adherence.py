"""What an intervention does and what it costs, without an outside judge.

All measures are taken with the *unsteered* model, on answers that a steered (or unsteered) model gave:

- **adherence** (nats per token): mean log-probability of the answer under the role prompt minus that under the default. Above
  zero the answer is better explained by the role than by the assistant.
- **incoherence**: an answer that is empty, repeats itself, or that even the role prompt makes very unlikely.
- **perplexity of neutral text**: of the bundled questions and plain answers. This one is taken with the intervention in force.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from assistant_axis.errors import SettingError
from assistant_axis.models.generation import Answer
from assistant_axis.models.scoring import log_likelihoods
from assistant_axis.personas.library import PersonaLibrary, data_lines, load_personas

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel, Intervention

THEATRICAL = (
    "pirate",
    "ghost",
    "bard",
    "witch",
    "oracle",
    "jester",
    "demon",
    "vampire",
    "poet",
    "prophet",
    "wizard",
    "alien",
    "trickster",
    "mystic",
    "leviathan",
    "caveman",
)
"""Roles far from the assistant; the ones that a library holds are used for measuring adherence."""

REPEATED = 0.5
"""An answer is incoherent if fewer than this share of its 3-grams are distinct."""
UNLIKELY = -4.0
"""An answer is incoherent below this mean log-probability per token under its own prompt."""


@dataclass(frozen=True)
class Case:
    """A question asked under a role's system prompt."""

    role: str
    system: str
    question: str

    @property
    def in_role(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, *self.default]

    @property
    def default(self) -> list[dict[str, str]]:
        """The same question with no system prompt."""
        return [{"role": "user", "content": self.question}]


@dataclass(frozen=True)
class Adherence:
    """Adherence of answers, one value each; NaN for an empty answer.

    Attributes:
        nats: log-probability per token under the role minus under the default.
        likelihood: log-probability per token under the role.
        incoherent: whether each answer is incoherent.
    """

    nats: tuple[float, ...]
    likelihood: tuple[float, ...]
    incoherent: tuple[bool, ...]

    @property
    def mean(self) -> float:
        """Mean over the answers that are not empty, nats per token."""
        known = [x for x in self.nats if not math.isnan(x)]
        return sum(known) / len(known) if known else math.nan

    @property
    def incoherent_share(self) -> float:
        return sum(self.incoherent) / len(self.incoherent)

    def interval(self, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the mean, over answers."""
        known = torch.tensor([x for x in self.nats if not math.isnan(x)])
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(len(known), (resamples, len(known)), generator=generator)
        low, high = torch.quantile(known[rows].mean(1), torch.tensor([0.025, 0.975])).tolist()
        return low, high


def persona_cases(
    library: PersonaLibrary | None = None,
    *,
    roles: Iterable[str] | None = None,
    questions: int = 3,
    seed: int = 0,
) -> list[Case]:
    """Questions under theatrical personas: for each role, `questions` questions under its first prompt.

    Args:
        library: default: the bundled one.
        roles: default: those of `THEATRICAL` that the library holds, at most twelve.
        questions: a role.
        seed: of the choice of questions; roles get different ones.
    """
    library = library or load_personas()
    held = set(library.role_names)
    chosen = list(roles) if roles is not None else [r for r in THEATRICAL if r in held][:12]
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(library.questions), generator=generator).tolist()
    if questions * len(chosen) > len(order) or questions < 1:
        raise SettingError(f"questions={questions} for {len(chosen)} roles; the library has {len(order)} questions.")
    return [
        Case(name, library.role(name).prompts[0], library.questions[order[k * questions + q]].text)
        for k, name in enumerate(chosen)
        for q in range(questions)
    ]


def answer_cases(
    model: "HookedChatModel",
    cases: Sequence[Case],
    *interventions: "Intervention",
    max_new_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[Answer]:
    """Answers in role, under interventions."""
    with model.steered(*interventions):
        return model.generate(
            [c.in_role for c in cases],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )


def adherence(model: "HookedChatModel", cases: Sequence[Case], answers: Sequence[Answer]) -> Adherence:
    """How much better the role prompt explains the answers than the default does, by the model as it stands.

    Call it outside any `steered` block: the measure is of the unsteered model.

    Raises:
        SettingError: another number of answers than of cases.
    """
    if len(cases) != len(answers):
        raise SettingError(f"{len(answers)} answers came for {len(cases)} cases.")
    said = [k for k, a in enumerate(answers) if a.ids]
    rows = [(model.chat.encode_prompt(cases[k].in_role).ids, answers[k].ids) for k in said]
    rows += [(model.chat.encode_prompt(cases[k].default).ids, answers[k].ids) for k in said]
    scores = log_likelihoods(model, rows)
    role = dict(zip(said, scores[: len(said)], strict=True))
    default = dict(zip(said, scores[len(said) :], strict=True))
    nothing = math.nan
    likelihood = tuple(role.get(k, nothing) for k in range(len(cases)))
    return Adherence(
        tuple(role[k] - default[k] if k in role else nothing for k in range(len(cases))),
        likelihood,
        tuple(is_incoherent(a.ids, likelihood[k]) for k, a in enumerate(answers)),
    )


def is_incoherent(ids: Sequence[int], likelihood: float) -> bool:
    """Whether an answer is empty, repeats itself (see `REPEATED`), or is unlikely under its prompt (see `UNLIKELY`)."""
    if not ids or likelihood < UNLIKELY:
        return True
    grams = Counter(zip(ids, ids[1:], ids[2:], strict=False))
    return sum(grams.values()) >= 8 and len(grams) / sum(grams.values()) < REPEATED


def neutral_perplexity(model: "HookedChatModel", *interventions: "Intervention", count: int | None = None) -> float:
    """Perplexity per token of plain answers to plain questions, under interventions.

    Args:
        model: the model.
        interventions: in force while it is measured.
        count: how many of the bundled texts; default all.
    """
    rows = []
    for line in data_lines("neutral.jsonl")[:count]:
        prompt = model.chat.encode_prompt([{"role": "user", "content": line["question"]}]).ids
        rows.append((prompt, tuple(model.tokenizer(line["text"], add_special_tokens=False)["input_ids"])))
    with model.steered(*interventions):
        scores = log_likelihoods(model, rows)
    tokens = [len(answer) for _, answer in rows]
    return math.exp(-sum(s * n for s, n in zip(scores, tokens, strict=True)) / sum(tokens))
