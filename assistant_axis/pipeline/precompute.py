"""The vectors that ship with the package, made again: one run of the embedded chat model, read by the base model too."""

from pathlib import Path

from assistant_axis.geometry.precomputed import save_compact
from assistant_axis.geometry.vectors import PersonaVectors
from assistant_axis.models.loading import load_model
from assistant_axis.pipeline.extract import Sampling, extract_persona_vectors
from assistant_axis.pipeline.read_with import read_with

SPEAKER = "smollm2-135m-instruct"
READER = "gemma-3-270m"
SEED = 0
SAMPLING = Sampling(max_new_tokens=64, batch_size=64)
KEPT: dict[str, tuple[int, ...]] = {
    SPEAKER: (2, 5, 8, 11, 13, *range(15, 30)),
    READER: (8, 10, *range(12, 18)),
}
"""Layers that ship: those that are steered, capped and compared, and a few before them."""


def precompute(out: str | Path, *, progress: bool = True) -> dict[str, Path]:
    """Make the precomputed vectors of both embedded models; hours on two cores, and an interrupted run goes on.

    Args:
        out: a folder; the full run, all layers and single rollouts, is kept in it.
        progress: show bars.

    Returns:
        The compact file of each model, as it ships.
    """
    folder = Path(out)
    full, read = folder / "vectors.safetensors", folder / READER / "vectors.safetensors"
    if full.is_file():
        spoken = PersonaVectors.load(full)
    else:
        spoken = extract_persona_vectors(
            load_model(SPEAKER),
            "response",
            prompts_per_role=4,
            questions_per_prompt=4,
            default_questions=48,
            spread=True,
            sampling=SAMPLING,
            seed=SEED,
            out=folder,
            progress=progress,
        )
    if read.is_file():
        heard = PersonaVectors.load(read)
    else:
        heard = read_with(load_model(READER), folder, out=read.parent, progress=progress)
    return {
        v.conditions.model: save_compact(
            v.select(layers=KEPT[v.conditions.model]), folder / "compact" / f"{v.conditions.model}.safetensors"
        )
        for v in (spoken, heard)
    }
