"""One model's answers, read by another: what two models make of the same transcripts."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from assistant_axis.activations.capture import stream_means
from assistant_axis.activations.spans import Reading, locate
from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError, SettingError, TemplateError
from assistant_axis.geometry.questions import SPREAD
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.library import DEFAULT
from assistant_axis.personas.rollouts import Rollout, read_rollouts
from assistant_axis.pipeline.extract import combine, number_questions
from assistant_axis.pipeline.parts import Part, open_parts
from assistant_axis.progress import track

SPARED = 0.02
"""A larger share of rollouts that cannot be rendered stops the reading."""

PART = "part of a reading"
ROWS_A_PART = 512


def read_with(
    model: HookedChatModel,
    rollouts: Sequence[Rollout] | str | Path,
    *,
    source: Conditions | PersonaVectors | None = None,
    layers: Iterable[int | float] | int | float | None = None,
    keep_samples: int = 4096,
    min_count: int = 1,
    out: str | Path | None = None,
    progress: bool = True,
) -> PersonaVectors:
    """Persona vectors of `model` from another model's rollouts, teacher-forced.

    >>> gemma = load_model("gemma-3-270m")                    # doctest: +SKIP
    >>> base = read_with(gemma, "runs/smollm2")               # doctest: +SKIP
    >>> print(compare(PersonaVectors.load("runs/smollm2/vectors.safetensors"), base))   # doctest: +SKIP

    The text is rendered anew with this model's own template (the plain one for a base model) and read over the tokens
    of the answer. Where the run that spoke was made with `spread=True`, question effects are taken out as there.

    Args:
        model: who reads.
        rollouts: answers, a `rollouts.parquet`, or the folder of a run (`out=` of `extract_persona_vectors`).
        source: the conditions of the run that spoke; read from the folder if it is one.
        layers: indices or depths; default all.
        keep_samples: single rollouts kept, evenly.
        min_count: roles with fewer readable rollouts are left out.
        out: a folder for `vectors.safetensors`, another than that of the run that spoke; finished parts are kept there,
            so that an interrupted reading goes on where it stopped.
        progress: show a bar.

    Returns:
        `PersonaVectors` with `span="response"`, whose design names the speaker.

    Raises:
        SettingError: no rollouts, or nobody says under what conditions they were made.
        GeometryError: the default or all roles have no readable answer.
        ArtefactMismatchError: `out` holds an unfinished reading of other rollouts, or by another model.
        RunError: `out` cannot be written, or another process writes to it.
        TemplateError: more than 2 % of the rollouts cannot be rendered with this model's template.
    """
    target = None if out is None else Path(out)
    if isinstance(rollouts, (str, Path)):
        path = Path(rollouts)
        if path.is_dir():
            if target is not None and target.resolve() == path.resolve():
                raise SettingError(f"out={str(out)!r} is the folder of the run that spoke; choose another.")
            if source is None and (path / "vectors.safetensors").is_file():
                source = PersonaVectors.load(path / "vectors.safetensors")
            path = path / "rollouts.parquet"
        rollouts = read_rollouts(path)
    if not rollouts:
        raise SettingError("There are no rollouts to read.")
    if isinstance(source, PersonaVectors):
        source = source.conditions
    if source is None:
        raise SettingError(
            "Say under what conditions these rollouts were made: source=vectors (or vectors.conditions) of that run."
        )
    chosen = model.layers(layers)
    whose, readings, asked, left_out = _readings(model, rollouts)
    spread = SPREAD in source.design
    said = f"{source.design}; spoken by {source.model}, read by {model.name}"
    conditions = replace(
        Conditions.of(
            model,
            span="response",
            personas=source.personas,
            personas_hash=source.personas_hash,
            design=said + (f"; {left_out} unreadable answers left out" if left_out else ""),
            seed=source.seed,
        ),
        judge=source.judge,
    )
    every = 1 if spread else max(1, -(-len(readings) // keep_samples)) if keep_samples else 0
    job = _Job(model, readings, whose, number_questions(asked), chosen, every)
    settings = {"rollouts": _hash(readings, asked), "layers": list(chosen), "every": every, **conditions.as_dict()}
    with open_parts(target, PART, settings) as kept:
        parts: list[Part] = []
        with track(len(readings), f"{model.name} reads {source.model}", show=progress) as advance:
            for number, rows in enumerate(job.blocks()):
                part = kept.get(number, job.roles(rows))
                if part is None:
                    part = job.read(rows)
                    kept.put(number, part)
                parts.append(part)
                advance(len(rows))
        vectors = _vectors(parts, chosen, conditions, min_count)
        if spread:
            vectors = vectors.adjust_questions()
        if target is not None:
            vectors.save(target / "vectors.safetensors")
    return vectors


@dataclass(frozen=True)
class _Job:
    """Answers to be read, a block of rows at a time; the blocks do not depend on where a reading was interrupted."""

    model: HookedChatModel
    readings: Sequence[Reading]
    whose: Sequence[tuple[str, int]]
    questions: Sequence[int]
    layers: tuple[int, ...]
    every: int

    def blocks(self) -> list[range]:
        count = len(self.readings)
        return [range(k, min(k + ROWS_A_PART, count)) for k in range(0, count, ROWS_A_PART)]

    def roles(self, rows: range) -> tuple[str, ...]:
        """Whose answers these rows are: roles, and the default's conditions as `default/0`, `default/1`, …"""
        return tuple(dict.fromkeys(_name(*self.whose[k]) for k in rows))

    def read(self, rows: range) -> Part:
        roles = self.roles(rows)
        place = {r: k for k, r in enumerate(roles)}
        owner = torch.tensor([place[_name(*self.whose[k])] for k in rows])
        sums = torch.zeros(len(roles), len(self.layers), self.model.d_model)
        norms = torch.zeros(len(self.layers))
        kept: dict[int, torch.Tensor] = {}
        for part in stream_means(self.model, self.readings[rows.start : rows.stop], self.layers):
            sums.index_add_(0, owner[list(part.rows)], part.means)
            norms += part.norms.sum(0)
            for b, k in enumerate(part.rows):
                if self.every and rows[k] % self.every == 0:
                    kept[k] = part.means[b].half()
        order = sorted(kept)
        samples = (
            torch.stack([kept[k] for k in order]) if order else torch.zeros(0, *sums.shape[1:], dtype=torch.float16)
        )
        asked = torch.tensor([self.questions[rows[k]] for k in order], dtype=torch.long)
        return Part(roles, sums, torch.bincount(owner, minlength=len(roles)), norms, samples, owner[order], asked)


def _name(role: str, condition: int) -> str:
    return f"{DEFAULT}/{condition}" if role == DEFAULT else role


def _hash(readings: Sequence[Reading], asked: Sequence[int]) -> str:
    """Of the tokens that are read, the positions and the questions."""
    total = hashlib.sha256()
    for reading, question in zip(readings, asked, strict=True):
        total.update(repr((reading, question)).encode())
    return total.hexdigest()


def _vectors(parts: Sequence[Part], layers: tuple[int, ...], conditions: Conditions, min_count: int) -> PersonaVectors:
    """The parts together; a role whose answers lie in two of them is one role."""
    names = list(dict.fromkeys(n for p in parts for n in p.roles))
    place = {n: k for k, n in enumerate(names)}
    sums = torch.zeros(len(names), *parts[0].sums.shape[1:])
    counts = torch.zeros(len(names), dtype=torch.long)
    for p in parts:
        at = torch.tensor([place[n] for n in p.roles])
        sums.index_add_(0, at, p.sums)
        counts.index_add_(0, at, p.counts)
    own = torch.tensor([n.startswith(f"{DEFAULT}/") for n in names])
    use = ~own & (counts >= min_count)
    if not own.any() or not use.any():
        who = "the default persona" if not own.any() else f"a role with at least {min_count} answers"
        raise GeometryError(f"The rollouts hold no readable answer of {who}.")
    whole = Part(
        tuple(names),
        sums,
        counts,
        torch.stack([p.norms for p in parts]).sum(0),
        torch.cat([p.samples for p in parts]),
        torch.tensor([place[p.roles[i]] for p in parts for i in p.sample_roles.tolist()], dtype=torch.long),
        torch.cat([p.sample_questions for p in parts]),
    )
    return combine([whole], layers, conditions).select(min_count=min_count)


def _readings(
    model: HookedChatModel, rollouts: Sequence[Rollout]
) -> tuple[list[tuple[str, int]], list[Reading], list[int], int]:
    """(role, default condition), token positions and question of every readable answer, and how many were not."""
    whose: list[tuple[str, int]] = []
    readings: list[Reading] = []
    asked: list[int] = []
    failed: list[str] = []
    for r in rollouts:
        if not r.answer.strip():
            continue  # an empty answer has no token to average, here as where it was generated
        try:
            readings.append(locate(model, r.messages, "response"))
        except TemplateError as e:
            failed.append(f"{r.role}, question {r.question_id}: {e}")
            continue
        whose.append((r.role, r.prompt if r.role == DEFAULT else 0))
        asked.append(r.question_id)
    if len(failed) > SPARED * len(rollouts):
        raise TemplateError(
            f"{len(failed)} of {len(rollouts)} rollouts cannot be rendered with the template of {model.name}. "
            f"The first: {failed[0]}"
        )
    if not readings:
        raise GeometryError("Every answer is empty: there is nothing to read.")
    return whose, readings, asked, len(failed)
