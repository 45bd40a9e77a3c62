"""One model's answers, read by another: what two models make of the same transcripts."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from assistant_axis.activations.capture import stream_means
from assistant_axis.activations.spans import Reading, locate
from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError, SettingError, TemplateError
from assistant_axis.geometry.questions import SPREAD
from assistant_axis.geometry.vectors import PersonaVectors, Samples
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.library import DEFAULT
from assistant_axis.personas.rollouts import Rollout, read_rollouts
from assistant_axis.pipeline.extract import number_questions
from assistant_axis.progress import track

SPARED = 0.02
"""A larger share of rollouts that cannot be rendered stops the reading."""


def read_with(
    model: HookedChatModel,
    rollouts: Sequence[Rollout] | str | Path,
    *,
    source: Conditions | PersonaVectors | None = None,
    layers: Iterable[int | float] | int | float | None = None,
    keep_samples: int = 4096,
    min_count: int = 1,
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
        progress: show a bar.

    Returns:
        `PersonaVectors` with `span="response"`, whose design names the speaker.

    Raises:
        SettingError: no rollouts, or nobody says under what conditions they were made.
        GeometryError: the default or all roles have no readable answer.
        TemplateError: more than 2 % of the rollouts cannot be rendered with this model's template.
    """
    if isinstance(rollouts, (str, Path)):
        path = Path(rollouts)
        if path.is_dir():
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
    buckets = list(dict.fromkeys(whose))
    place = {b: k for k, b in enumerate(buckets)}
    owner = torch.tensor([place[w] for w in whose])
    sums = torch.zeros(len(buckets), len(chosen), model.d_model)
    norms = torch.zeros(len(chosen))
    every = 1 if spread else max(1, -(-len(readings) // keep_samples)) if keep_samples else 0
    kept: dict[int, torch.Tensor] = {}
    with track(len(readings), f"{model.name} reads {source.model}", show=progress) as advance:
        for part in stream_means(model, readings, chosen):
            sums.index_add_(0, owner[list(part.rows)], part.means)
            norms += part.norms.sum(0)
            kept |= {k: part.means[b].half() for b, k in enumerate(part.rows) if every and k % every == 0}
            advance(len(part.rows))
    counts = torch.bincount(owner, minlength=len(buckets))
    own = torch.tensor([b[0] == DEFAULT for b in buckets])
    use = ~own & (counts >= min_count)
    if not own.any() or not use.any():
        who = "the default persona" if not own.any() else f"a role with at least {min_count} answers"
        raise GeometryError(f"The rollouts hold no readable answer of {who}.")
    roles = tuple(b[0] for b, u in zip(buckets, use.tolist(), strict=True) if u)
    index = {r: k for k, r in enumerate(roles)} | {DEFAULT: -1}
    order = [k for k in sorted(kept) if whose[k][0] in index]
    samples = None
    if order:
        samples = Samples(
            torch.stack([kept[k] for k in order]),
            torch.tensor([index[whose[k][0]] for k in order]),
            torch.tensor(number_questions(asked))[order],
        )
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
    vectors = PersonaVectors(
        roles=roles,
        layers=chosen,
        vectors=sums[use] / counts[use][:, None, None],
        default=sums[own].sum(0) / counts[own].sum(),
        default_conditions=sums[own] / counts[own][:, None, None],
        counts=counts[use],
        default_count=int(counts[own].sum()),
        resid_norms=norms / len(readings),
        conditions=conditions,
        samples=samples,
    )
    return vectors.adjust_questions() if spread else vectors


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
