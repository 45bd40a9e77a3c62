"""Trait vectors of a model: answers that show a trait against answers that show its opposite."""

from collections.abc import Iterable
from pathlib import Path

from assistant_axis.errors import GeometryError, SettingError
from assistant_axis.geometry.traits import POLES, TraitVectors
from assistant_axis.models.hooked import HookedChatModel
from assistant_axis.personas.library import PersonaLibrary, Role, load_personas
from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors


def extract_trait_vectors(
    model: HookedChatModel,
    span: str = "header",
    *,
    personas: PersonaLibrary | str | Path | None = None,
    traits: Iterable[str] | None = None,
    pairs: int = 5,
    questions_per_pair: int = 2,
    samples_per_question: int = 1,
    layers: Iterable[int | float] | int | float | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    keep_samples: int = 8192,
    out: str | Path | None = None,
    progress: bool = True,
) -> TraitVectors:
    """Vectors of traits: mean of the positive side minus mean of the negative, the same questions on both sides.

    >>> traits = extract_trait_vectors(model)                 # doctest: +SKIP
    >>> traits.ranking(vectors.axis(), layer=21)[:5]          # doctest: +SKIP

    Each side is read as a persona of its own, by the extraction that roles go through, so an interrupted run goes on
    where it stopped. The paper keeps pairs whose judged scores differ by 50 of 100 points; nothing is judged here, and
    `TraitVectors.reliability` says which directions are more than noise.

    Args:
        model: from `load_model`.
        span: as in `extract_persona_vectors`: `"header"` generates nothing, `"response"` is the paper's.
        personas: a library with traits, a folder, or `None` for the bundled 240.
        traits: some names only.
        pairs: phrasings a trait (bundled: up to 5).
        questions_per_pair: questions under each phrasing.
        samples_per_question: sampled answers each (`span="response"` only).
        layers: indices or depths; default all.
        sampling: how answers are generated.
        seed: of question order and sampling.
        keep_samples: single rollouts kept while measuring, for the reliability.
        out: a folder for `traits.safetensors` and for the unfinished run.
        progress: show bars.

    Raises:
        UnknownNameError: a trait that the library does not have.
        GeometryError: the library has no traits.
        SettingError: more phrasings than there are.
        ArtefactMismatchError: `out` holds an unfinished run with other settings.
    """
    library = personas if isinstance(personas, PersonaLibrary) else load_personas(personas)
    chosen = library.traits if traits is None else tuple(library.trait(name) for name in traits)
    if not chosen:
        raise GeometryError("The library holds no traits; the bundled one and the published layout do.")
    available = min(len(t.positive) for t in chosen)
    if not 1 <= pairs <= available:
        raise SettingError(f"pairs={pairs} is out of range: these traits have 1 to {available} phrasings.")
    sides = tuple(
        Role(t.name + pole, prompts)
        for t in chosen
        for pole, prompts in zip(POLES, (t.positive, t.negative), strict=True)
    )
    poles = extract_persona_vectors(
        model,
        span,
        personas=PersonaLibrary(sides, library.default, library.questions, library.traits, library.source),
        prompts_per_role=pairs,
        questions_per_prompt=questions_per_pair,
        samples_per_question=samples_per_question,
        layers=layers,
        sampling=sampling,
        seed=seed,
        keep_samples=keep_samples,
        out=None if out is None else Path(out) / "poles",
        progress=progress,
    )
    found = TraitVectors.from_poles(poles)
    if out is not None:
        found.save(Path(out) / "traits.safetensors")
    return found
