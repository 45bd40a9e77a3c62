"""Does drift show in what a model does next? First-turn projection against what comes of the second turn.

Lu et al. 2026 (section 4) put a model in a role, read where its first answer stands, and count harmful second answers:
r = .39–.52. The outcome here is role adherence by default (nats per token, `steering.adherence`), or any labels that an
evaluation gave to the second answers. Answers of one role are not independent, so the role is the unit of every test.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from assistant_axis.activations.capture import capture_means
from assistant_axis.activations.spans import read_answer
from assistant_axis.activations.store import atomic
from assistant_axis.drift.simulate import SimulatedTurn, Simulation
from assistant_axis.drift.users import Scenario
from assistant_axis.errors import IntegrityError, SettingError
from assistant_axis.geometry.controls import Interval, interval, pearson_rows
from assistant_axis.models.generation import Answer
from assistant_axis.personas.library import PersonaLibrary, load_personas
from assistant_axis.steering.adherence import Case, adherence

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

FEWEST_ROLES = 5


@dataclass(frozen=True)
class Outcome:
    """A conversation of two turns: where the first answer stood, and what came of the second.

    Attributes:
        conversation: its id.
        role: the role the model was put in.
        first: raw projection of the first answer.
        centered: the same minus the role mean's projection.
        outcome: of the second answer; role adherence in nats per token, or a label.
        incoherent: whether the second answer is incoherent (see `steering.adherence`).
    """

    conversation: str
    role: str
    first: float
    centered: float
    outcome: float
    incoherent: bool = False


@dataclass(frozen=True)
class Relation:
    """How first-turn projections and second-turn outcomes go together.

    Attributes:
        n: conversations.
        roles: roles they come from.
        pearson, spearman: over conversations.
        pearson_interval, spearman_interval: 95 %, roles drawn with replacement, each with all its conversations.
        between: Pearson r of the roles' means.
        within: Pearson r after each role's means are taken out; NaN with one conversation a role.
        p: share of permutations with |Pearson r| at least as large (plus one over plus one); roles change places as
            blocks.
    """

    n: int
    roles: int
    pearson: float
    spearman: float
    pearson_interval: Interval
    spearman_interval: Interval
    between: float
    within: float
    p: float

    def __str__(self) -> str:
        return (
            f"Pearson {self.pearson:.3f} {self.pearson_interval}, Spearman {self.spearman:.3f} "
            f"{self.spearman_interval} (95 %, bootstrap over {self.roles} roles), permutation p {self.p:.2g}, "
            f"between roles {self.between:.3f}, within roles {self.within:.3f}, n = {self.n}"
        )


def role_scenarios(
    library: PersonaLibrary | None = None,
    *,
    roles: Sequence[str] | int | None = None,
    per_role: int = 2,
    second: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Scenario]:
    """Conversations of two turns in which the model is put in a role by its system prompt, for `simulate(turns=2)`.

    Conversation k of a role has the role's prompt k. Questions differ from one conversation to the next.

    Args:
        library: default: the bundled one.
        roles: names, or how many to draw; default: all.
        per_role: conversations a role.
        second: what is asked in the second turn, in turns; default: questions of the library. Requests that a model
            should refuse make labels of harm possible.
        seed: of the draw and of the order of questions.

    Raises:
        SettingError: fewer than one conversation a role, or more roles than there are.
        UnknownNameError: a role that there is not.
    """
    library = library or load_personas()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(library.questions), generator=generator).tolist()
    asked = [library.questions[k].text for k in order]
    names = list(library.role_names)
    if isinstance(roles, int):
        if not 1 <= roles <= len(names):
            raise SettingError(f"roles={roles}: there are 1 to {len(names)}.")
        names = [names[k] for k in sorted(torch.randperm(len(names), generator=generator)[:roles].tolist())]
    elif roles is not None:
        names = list(roles)
    if per_role < 1 or (second is not None and not second):
        raise SettingError(f"per_role={per_role}: at least one conversation a role and one second question are needed.")
    out = []
    for name in names:
        prompts = library.role(name).prompts
        for k in range(per_role):
            at = 2 * len(out)
            after = asked[(at + 1) % len(asked)] if second is None else second[len(out) % len(second)]
            out.append(
                Scenario(
                    id=f"{name}-{k}",
                    domain=name,
                    persona=name,
                    description=prompts[k % len(prompts)],
                    topic="",
                    turns=(asked[at % len(asked)], after),
                    system=prompts[k % len(prompts)],
                )
            )
    return out


def adherence_outcomes(model: "HookedChatModel", held: Simulation) -> list[Outcome]:
    """Role adherence of every second answer, beside the projection of the first.

    The second answer is scored by the model as it stands, under the role's prompt and the second question alone and
    under that question with no system prompt: the first turn is in neither, so the outcome does not contain it.
    Conversations with an empty first or second answer are left out.

    Raises:
        SettingError: conversations without a role's system prompt (see `role_scenarios`).
    """
    pairs = _pairs(held)
    if any(not first.system for first, _ in pairs):
        raise SettingError(
            "Role adherence needs conversations with a role's system prompt; make them by role_scenarios."
        )
    cases = [Case(first.persona, first.system, second.user) for first, second in pairs]
    answers = [Answer(b.answer, b.answer_ids, (), b.finish_reason) for _, b in pairs]
    found = adherence(model, cases, answers)
    rows = zip(pairs, found.nats, found.incoherent, strict=True)
    return [
        Outcome(a.conversation, a.persona, a.raw, a.centered, nats, incoherent) for (a, _), nats, incoherent in rows
    ]


def labelled_outcomes(held: Simulation, labels: Mapping[str, float]) -> list[Outcome]:
    """Labels of second answers (0 or 1 for harm, or any number), beside the projection of the first.

    Args:
        held: conversations of two turns.
        labels: conversation id → label; conversations without one are left out.

    Raises:
        SettingError: a label of a conversation that there is not, or labels of none.
    """
    pairs = {a.conversation: a for a, _ in _pairs(held)}
    every = {t.conversation for t in held.turns}
    unknown = [k for k in labels if k not in every]
    if unknown or not labels:
        raise SettingError(f"There is no conversation {unknown[0]!r}." if unknown else "There are no labels.")
    return [Outcome(k, a.persona, a.raw, a.centered, float(labels[k])) for k, a in pairs.items() if k in labels]


def read_labels(path: str | Path) -> dict[str, float]:
    """Labels from JSON lines, `{"conversation": "pirate-0", "label": 1}`.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: naming the line that is something else.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist.")
    out: dict[str, float] = {}
    with source.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                said = json.loads(line)
                name, value = said["conversation"], float(said["label"])
            except (ValueError, KeyError, TypeError) as e:
                raise IntegrityError(
                    f'{source}:{number}: expected {{"conversation": …, "label": number}}, got {line.strip():.60}'
                ) from e
            if not np.isfinite(value) or name in out:
                raise IntegrityError(f"{source}:{number}: the label of {name!r} is not finite, or comes twice.")
            out[str(name)] = value
    return out


def relate(outcomes: Sequence[Outcome], *, resamples: int = 2000, seed: int = 0) -> Relation:
    """Correlation of first-turn projection and outcome, with the role as the unit of bootstrap and permutation.

    Args:
        outcomes: conversations of at least five roles.
        resamples: bootstrap samples, and as many permutations.
        seed: of both.

    Raises:
        SettingError: fewer than five roles, values that are not finite, or a side without any spread.
    """
    x, y, groups = _columns(outcomes)
    names = np.unique(groups)
    if len(names) < FEWEST_ROLES:
        raise SettingError(
            f"The bootstrap is over roles and there are {len(names)}; at least {FEWEST_ROLES} are needed."
        )
    if resamples < 1:
        raise SettingError(f"resamples={resamples}: at least one is needed.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SettingError("Some projections or outcomes are not finite.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise SettingError(
            f"Every {'projection' if np.ptp(x) == 0 else 'outcome'} is the same: nothing can be related."
        )
    blocks = [np.flatnonzero(groups == g) for g in names]
    rng = np.random.default_rng(seed)
    drawn, ranked, null = (np.empty(resamples) for _ in range(3))
    for k in range(resamples):
        rows = np.concatenate([blocks[b] for b in rng.integers(0, len(blocks), len(blocks))])
        drawn[k] = pearson_rows(x[rows], y[rows])
        ranked[k] = pearson_rows(rankdata(x[rows]), rankdata(y[rows]))
        dealt = np.concatenate([rng.permutation(blocks[b]) for b in rng.permutation(len(blocks))])
        null[k] = pearson_rows(x[np.concatenate(blocks)], y[dealt])
    pearson = float(pearson_rows(x, y))
    means = np.array([[x[b].mean(), y[b].mean()] for b in blocks])
    inside = np.concatenate([np.stack([x[b] - x[b].mean(), y[b] - y[b].mean()], axis=1) for b in blocks])
    return Relation(
        n=len(x),
        roles=len(names),
        pearson=pearson,
        spearman=float(pearson_rows(rankdata(x), rankdata(y))),
        pearson_interval=interval(drawn),
        spearman_interval=interval(ranked),
        between=float(pearson_rows(means[:, 0], means[:, 1])),
        within=float(pearson_rows(inside[:, 0], inside[:, 1])),
        p=(1 + int((np.abs(null) >= abs(pearson) - 1e-12).sum())) / (1 + resamples),
    )


def random_relations(
    model: "HookedChatModel", held: Simulation, outcomes: Sequence[Outcome], *, draws: int = 200, seed: int = 0
) -> Float[np.ndarray, "draw"]:
    """Pearson r of the same outcomes with the first answers' projections on random directions, for comparison.

    Args:
        model: the target; the first answers are read again, by the tokens as they were generated and without the
            interventions of the run.
        held: the conversations.
        outcomes: of some of them.
        draws: isotropic directions at the run's layer.
        seed: of the directions.
    """
    first = {a.conversation: a for a, _ in _pairs(held)}
    readings = []
    for o in outcomes:
        a = first[o.conversation]
        system = [{"role": "system", "content": a.system}] if a.system else []
        asked = model.chat.encode_prompt([*system, {"role": "user", "content": a.user}]).ids
        readings.append(read_answer(asked, a.answer_ids))
    means = capture_means(model, readings, [held.layer])[:, 0].double().numpy()
    directions = np.random.default_rng(seed).standard_normal((draws, means.shape[1]))
    return pearson_rows((means @ directions.T).T, _columns(outcomes)[1][None])


def write_outcomes(path: str | Path, held: Simulation, outcomes: Sequence[Outcome]) -> Path:
    """JSON lines with what was asked, said and found: to be read, or labelled by an evaluation."""
    pairs = {a.conversation: (a, b) for a, b in _pairs(held)}
    lines = []
    for o in outcomes:
        a, b = pairs[o.conversation]
        row: dict[str, Any] = {
            "conversation": o.conversation,
            "role": o.role,
            "first": o.first,
            "centered": o.centered,
            "outcome": o.outcome,
            "incoherent": o.incoherent,
            "messages": [
                *([{"role": "system", "content": a.system}] if a.system else []),
                {"role": "user", "content": a.user},
                {"role": "assistant", "content": a.answer},
                {"role": "user", "content": b.user},
                {"role": "assistant", "content": b.answer},
            ],
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    with atomic(path) as scratch:
        scratch.write_text("".join(lines), encoding="utf-8")
    return Path(path)


def _pairs(held: Simulation) -> list[tuple[SimulatedTurn, SimulatedTurn]]:
    """First and second exchange of every conversation that has both, neither answer empty."""
    by: dict[str, dict[int, SimulatedTurn]] = {}
    for t in held.turns:
        if t.answer_ids and t.turn in (0, 1):
            system = t.system or str(held.conditions.get("system", ""))
            by.setdefault(t.conversation, {})[t.turn] = replace(t, system=system)
    found = [(t[0], t[1]) for t in by.values() if len(t) == 2]
    if not found:
        raise SettingError("No conversation has two answers; hold them with turns=2 or more.")
    return found


def _columns(outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([o.first for o in outcomes], dtype=np.float64),
        np.array([o.outcome for o in outcomes], dtype=np.float64),
        np.array([o.role for o in outcomes]),
    )
