"""From a model and a library of roles to persona vectors, in parts that survive an interruption."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assistant_axis.activations.capture import Means, stream_means
from assistant_axis.activations.spans import SPANS, locate
from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError, NonFiniteError, SettingError
from assistant_axis.geometry.questions import SPREAD
from assistant_axis.geometry.vectors import PersonaVectors, Samples
from assistant_axis.models.generation import Answer
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.library import DEFAULT, Ask, PersonaLibrary, display_name, load_personas, plan
from assistant_axis.personas.rollouts import Rollout, write_rollouts
from assistant_axis.pipeline.parts import Part, open_parts
from assistant_axis.progress import track

PART = "part of an extraction"
ROLES_A_PART = 12


@dataclass(frozen=True)
class Sampling:
    """How answers are generated for `span="response"` (the paper: 512 new tokens, temperature 0.7, top-p 0.9).

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: nucleus mass.
        batch_size: answers at a time.
        compile: compile the step of one token, which pays on a GPU (`generate`).
    """

    max_new_tokens: int = 48
    temperature: float = 0.7
    top_p: float = 0.9
    batch_size: int = 32
    compile: bool = False


def extract_persona_vectors(
    model: HookedChatModel,
    span: str = "header",
    *,
    personas: PersonaLibrary | str | Path | None = None,
    roles: Iterable[str] | None = None,
    prompts_per_role: int = 2,
    questions_per_prompt: int = 4,
    samples_per_question: int = 1,
    default_questions: int | None = None,
    spread: bool = False,
    layers: Iterable[int | float] | int | float | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    keep_samples: int = 4096,
    out: str | Path | None = None,
    progress: bool = True,
) -> PersonaVectors:
    """Persona vectors of a model: the mean activation of every role and of the default persona.

    >>> vectors = extract_persona_vectors(model, span="header")   # doctest: +SKIP
    >>> axis = vectors.axis()                                      # doctest: +SKIP

    Args:
        model: from `load_model`.
        span: `"header"` reads the token where the assistant is about to speak and generates nothing (minutes on a
            laptop); `"response"` generates answers and averages their content tokens (the paper); `"header_mean"` and
            `"prompt"` as in `HookedChatModel.activations`.
        personas: a library, a folder (ours or the published layout), or `None` for the bundled personas.
        roles: some role names only.
        prompts_per_role: system prompts a role (bundled: up to 5; the default always has all its five conditions).
        questions_per_prompt: questions under each system prompt.
        samples_per_question: sampled answers each (`span="response"` only).
        default_questions: questions under each of the default's five conditions; `None`: as many as a role's prompt. The
            default is one persona against hundreds of roles, so its noise is most of the axis' noise in a small run.
        spread: every role asks questions of its own choice, so that all together ask all of them (see `plan`); what the
            questions add is taken out of the vectors (`PersonaVectors.adjust_questions`).
        layers: indices or depths; default all.
        sampling: how answers are generated.
        seed: of question order and sampling; same seed, same result.
        keep_samples: single rollouts kept for calibration and bootstrap, evenly over roles (`spread` keeps all).
        out: a folder for `vectors.safetensors` (and `rollouts.parquet`); finished parts are kept there, so that an
            interrupted run goes on where it stopped.
        progress: show bars.

    Returns:
        `PersonaVectors`, float32.

    Raises:
        UnknownNameError: a role that the library does not have.
        SettingError: impossible sizes or an unknown span.
        NonFiniteError: activations that are not finite.
        ArtefactMismatchError: `out` holds an unfinished run with other settings.
        RunError: `out` cannot be written, or another process writes to it.
    """
    if span not in SPANS:
        raise SettingError(f"span={span!r} is not known; use one of {', '.join(SPANS)}.")
    library = personas if isinstance(personas, PersonaLibrary) else load_personas(personas)
    if roles is not None:
        library = library.select(roles)
    sampling = sampling or Sampling()
    asks = plan(
        library,
        prompts_per_role=prompts_per_role,
        questions_per_prompt=questions_per_prompt,
        samples=samples_per_question if span == "response" else 1,
        default_questions=default_questions,
        spread=spread,
        model_name=display_name(model.name),
        seed=seed,
    )
    design = f"{prompts_per_role} prompts × {questions_per_prompt} questions a role"
    design += SPREAD if spread else ""
    design += f", {default_questions} a default condition" if default_questions else ""
    if span == "response":
        design += (
            f" × {samples_per_question} samples, ≤ {sampling.max_new_tokens} tokens, temperature {sampling.temperature}, "
            f"top-p {sampling.top_p}, batches of {sampling.batch_size}"
        )
    source = library.source if library.source == "bundled" else Path(library.source).name
    conditions = Conditions.of(model, span=span, personas=source, personas_hash=library.hash, design=design, seed=seed)
    keep = max(keep_samples, len(asks)) if spread else keep_samples
    job = _Job(model, span, asks, model.layers(layers), sampling, seed, conditions, keep, spread)
    return job.run(Path(out) if out is not None else None, progress)


def number_questions(ids: Iterable[int]) -> list[int]:
    """Question ids as numbers from 0, in the order of the ids: the same whichever rollout is missing or comes first."""
    asked = list(ids)
    place = {k: n for n, k in enumerate(sorted(set(asked)))}
    return [place[k] for k in asked]


@dataclass
class _Job:
    model: HookedChatModel
    span: str
    asks: Sequence[Ask]
    layers: tuple[int, ...]
    sampling: Sampling
    seed: int
    conditions: Conditions
    keep_samples: int
    spread: bool

    def run(self, out: Path | None, progress: bool) -> PersonaVectors:
        # The default's conditions are told apart; every other role is one bucket over its prompts.
        buckets: dict[str, list[int]] = {}
        for k, ask in enumerate(self.asks):
            buckets.setdefault(f"{DEFAULT}/{ask.prompt}" if ask.role == DEFAULT else ask.role, []).append(k)
        names = list(buckets)
        groups = [names[k : k + ROLES_A_PART] for k in range(0, len(names), ROLES_A_PART)]
        said = {"layers": list(self.layers), "keep_samples": self.keep_samples, **self.conditions.as_dict()}
        parts: list[Part] = []
        verb = "Generating and reading" if self.span == "response" else "Reading"
        with open_parts(out, PART, said) as kept:
            with track(len(self.asks), f"{verb} {len(names)} personas", show=progress) as advance:
                for number, group in enumerate(groups):
                    part = kept.get(number, group)
                    if part is None:
                        part = self._part(group, buckets, number)
                        kept.put(number, part)
                    parts.append(part)
                    advance(sum(len(buckets[n]) for n in group))
            vectors = combine(parts, self.layers, self.conditions)
            if self.spread:
                vectors = vectors.adjust_questions()
            if out is not None:
                vectors.save(out / "vectors.safetensors")
                rollouts = [r for p in parts for r in p.rollouts]
                if rollouts:
                    write_rollouts(out / "rollouts.parquet", rollouts)
        return vectors

    def _part(self, group: Sequence[str], buckets: dict[str, list[int]], number: int) -> Part:
        rows = [k for n in group for k in buckets[n]]
        owner = [i for i, n in enumerate(group) for _ in buckets[n]]
        read, owner, questions, rollouts = self._read(rows, owner, number)
        shape = (len(group), len(self.layers), self.model.d_model)
        sums, counts = torch.zeros(shape), torch.zeros(len(group), dtype=torch.long)
        norms = torch.zeros(len(self.layers))
        every = max(1, -(-len(self.asks) // max(self.keep_samples, 1)))
        kept: dict[int, Tensor] = {}
        whose = torch.tensor(owner)
        for part in read:
            index = whose[list(part.rows)]
            sums.index_add_(0, index, part.means)
            counts += torch.bincount(index, minlength=len(group))
            norms += part.norms.sum(0)
            for b, k in enumerate(part.rows):
                if self.keep_samples and k % every == 0:
                    kept[k] = part.means[b].half()
        order = sorted(kept)
        samples = torch.stack([kept[k] for k in order]) if order else torch.zeros(0, *shape[1:], dtype=torch.float16)
        asked = torch.tensor(questions)
        return Part(tuple(group), sums, counts, norms, samples, whose[order], asked[order], rollouts)

    def _read(
        self, rows: Sequence[int], owner: Sequence[int], number: int
    ) -> tuple[Iterable[Means], list[int], list[int], tuple[Rollout, ...]]:
        """Means of these rows as they come, whose they are, which question each answers, and what was said."""
        asks = [self.asks[k] for k in rows]
        numbers = number_questions(a.question.id for a in self.asks)
        asked = [numbers[k] for k in rows]
        if self.span != "response":
            readings = [replace(locate(self.model, a.messages, self.span), label=label(a)) for a in asks]
            return stream_means(self.model, readings, self.layers), list(owner), asked, ()
        s = self.sampling
        answers: list[Answer] = self.model.generate(
            [a.messages for a in asks],
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            batch_size=s.batch_size,
            seed=self.seed + 7919 * number,
            layers=self.layers,
            compile=s.compile,
        )
        rollouts = tuple(Rollout.of(a, answer) for a, answer in zip(asks, answers, strict=True))
        kept = [k for k, a in enumerate(answers) if a.means is not None]  # an empty answer has no token to average
        read = [_answered(n, answers[k], label(asks[k])) for n, k in enumerate(kept)]
        return read, [owner[k] for k in kept], [asked[k] for k in kept], rollouts


def _answered(row: int, answer: Answer, name: str) -> Means:
    """What one answer's tokens were while they were generated."""
    assert answer.means is not None
    assert answer.norms is not None
    if not torch.isfinite(answer.means).all():
        raise NonFiniteError(
            f"The activations of the answer of {name} are not finite. Load the model in bfloat16 or float32."
        )
    return Means((row,), answer.means[None], answer.norms[None])


def combine(parts: Sequence[Part], layers: tuple[int, ...], conditions: Conditions) -> PersonaVectors:
    """Persona vectors from the sums of all parts; the default's conditions are the parts' roles `default/0`, `default/1`, …

    Raises:
        GeometryError: the default has no rollout at all.
    """
    names = [n for p in parts for n in p.roles]
    sums, counts = torch.cat([p.sums for p in parts]), torch.cat([p.counts for p in parts])
    is_default = torch.tensor([n.startswith(f"{DEFAULT}/") for n in names])
    if not counts[is_default].any():
        raise GeometryError("The default persona gave no answer at all: every rollout was empty.")
    use = ~is_default & (counts > 0)
    roles = tuple(n for n, u in zip(names, use.tolist(), strict=True) if u)
    place = {n: k for k, n in enumerate(roles)}
    spoken = is_default & (counts > 0)
    samples, sample_roles = [], []
    questions = torch.cat([p.sample_questions for p in parts])
    for p in parts:
        samples.append(p.samples)
        sample_roles += [place.get(p.roles[i], -1) for i in p.sample_roles.tolist()]
    activations = torch.cat(samples)
    return PersonaVectors(
        roles=roles,
        layers=layers,
        vectors=sums[use] / counts[use][:, None, None],
        default=sums[spoken].sum(0) / counts[spoken].sum(),
        default_conditions=sums[spoken] / counts[spoken][:, None, None],
        counts=counts[use],
        default_count=int(counts[spoken].sum()),
        resid_norms=torch.stack([p.norms for p in parts]).sum(0) / counts.sum(),
        conditions=conditions,
        samples=Samples(activations, torch.tensor(sample_roles), questions) if len(activations) else None,
    )


def label(ask: Ask) -> str:
    """What errors call a rollout."""
    return f"{ask.role}, prompt {ask.prompt}, question {ask.question.id}, sample {ask.sample}"


def report_yield(vectors: PersonaVectors) -> dict[str, Any]:
    """How many rollouts stand behind the roles: fewest, median, most, and the roles with the fewest."""
    order = vectors.counts.argsort()
    return {
        "fewest": int(vectors.counts.min()),
        "median": int(vectors.counts.median()),
        "most": int(vectors.counts.max()),
        "thinnest": [vectors.roles[k] for k in order[:5].tolist()],
    }
