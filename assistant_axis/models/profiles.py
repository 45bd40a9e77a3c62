"""What is known about particular models: where to look, and the published capping windows.

Layers are zero-based block indices, windows are Python ranges. Sources: Lu et al. 2026 (arXiv 2601.10387),
sections 2 and 5, for the large models; `benchmarks/persona_space.py` for the embedded one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CappingWindow:
    """A known setting of activation capping: a published one, or one measured here.

    `percentile` is over Assistant-positive projections, so a floor at the 75th percentile touches about
    three quarters of the calibration answers. The released files call the same setting "p0.25".
    """

    layers: range
    percentile: float
    source: str


@dataclass(frozen=True)
class Profile:
    """Where to read the axis (`layer`), and what was published about steering this model."""

    layer: int
    n_layers: int
    note: str = ""
    capping: CappingWindow | None = None


PROFILES: dict[str, Profile] = {
    "google/gemma-2-27b-it": Profile(22, 46, "middle layer of the paper"),
    "qwen/qwen3-32b": Profile(
        32,
        64,
        "middle layer of the paper; thinking off",
        CappingWindow(range(46, 54), 75.0, "Lu et al. 2026, section 5"),
    ),
    "meta-llama/llama-3.3-70b-instruct": Profile(
        40, 80, "middle layer of the paper", CappingWindow(range(56, 72), 75.0, "Lu et al. 2026, section 5")
    ),
    "smollm2-135m-instruct": Profile(
        19,
        30,
        "chosen by |cos(axis, PC1)| and by the effect of steering; benchmarks/persona_space.py",
        CappingWindow(range(16, 24), 70.0, "PC1, chosen on half of the cases; benchmarks/steering.py"),
    ),
    "gemma-3-270m": Profile(12, 18, "base model"),
}


def profile_for(name: str, n_layers: int) -> Profile:
    """The profile of a model by its name; for an unknown model the middle layer.

    A known name with another depth (a fine-tune with layers removed) falls back to the middle layer too.
    """
    known = PROFILES.get(name.lower())
    if known is not None and known.n_layers == n_layers:
        return known
    return Profile(layer=n_layers // 2, n_layers=n_layers, note="middle layer, not tuned")
