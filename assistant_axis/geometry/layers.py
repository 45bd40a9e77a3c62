"""Which layer to read: chosen from the run itself, never from a published ranking."""

from dataclasses import dataclass

import numpy as np

from assistant_axis.errors import LayerError
from assistant_axis.geometry.stability import stability
from assistant_axis.geometry.vectors import PersonaVectors

TOLERANCE = 0.02
"""Scores this close are taken as equal, and the earlier layer wins: it leaves more of the model to act upon."""


@dataclass(frozen=True)
class LayerReasons:
    """What speaks for a layer.

    Attributes:
        layer: block index.
        split_half: cosine between the axes of two halves of the rollouts; NaN without single rollouts.
        axis_pc1: |cos(axis, PC1)|: whether the axis is also where personas differ most.
        default_position: where the default sits in the roles' range on PC1: 0 at its own extreme, 1 at the other.
        score: `split_half · axis_pc1 · (1 − default_position)`, each in [0, 1].
        why: in words.
    """

    layer: int
    split_half: float
    axis_pc1: float
    default_position: float
    score: float
    why: str


@dataclass(frozen=True)
class LayerChoice:
    """The recommended layer, and the reasons for every layer.

    Attributes:
        layer: block index.
        table: one entry a layer held, in their order.
        notes: what could not be judged.
    """

    layer: int
    table: tuple[LayerReasons, ...]
    notes: tuple[str, ...] = ()

    @property
    def reasons(self) -> LayerReasons:
        """Those of the recommended layer."""
        return next(r for r in self.table if r.layer == self.layer)

    def __str__(self) -> str:
        lines = [
            f"Recommended layer: {self.layer} ({self.reasons.why})",
            "layer  split-half  |cos PC1|  default  score",
        ]
        for r in self.table:
            mark = "  <" if r.layer == self.layer else ""
            lines.append(
                f"{r.layer:5d}  {r.split_half:10.3f}  {r.axis_pc1:9.3f}  {r.default_position:7.2f}  {r.score:5.3f}{mark}"
            )
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def recommend_layer(
    vectors: PersonaVectors, *, within: tuple[float, float] = (1 / 3, 0.9), splits: int = 20, seed: int = 0
) -> LayerChoice:
    """The layer at which the axis is stable, lies along PC1, and has the default at its end.

    The three figures are multiplied; of all layers within 0.02 of the best score the earliest is recommended. No
    published ranking is looked at, so a comparison with one at this layer does not flatter itself.

    Only layers within a range of depths stand for choice: the first layers still hold the words of the prompt, very
    stably, and the last ones the next token.

    Args:
        vectors: best with single rollouts (`samples`); without them stability is not judged, and the result says so.
        within: the depths that stand for choice, as shares of the model's layers.
        splits: random splits for the stability.
        seed: of the splits.

    Raises:
        GeometryError: fewer than three roles, or vectors that do not differ.
        LayerError: no layer held lies within the range.
    """
    notes: list[str] = []
    if vectors.samples is None:
        halves = np.full(len(vectors.layers), np.nan)
        notes.append("no single rollouts are kept, so the stability of the axis was not judged")
    else:
        halves = stability(vectors, splits=splits, resamples=1, seed=seed).split_half
    table = []
    for layer, half in zip(vectors.layers, halves.tolist(), strict=True):
        space = vectors.space(layer)
        cosine, place = space.axis_cosine(), space.default_position()
        stable = 1.0 if np.isnan(half) else max(half, 0.0)
        extreme = 1 - min(max(place, 0.0), 1.0)
        table.append(LayerReasons(layer, half, cosine, place, stable * cosine * extreme, _why(half, cosine, place)))
    depth = vectors.conditions.n_layers
    standing = [r for r in table if within[0] * depth <= r.layer <= within[1] * depth]
    if not standing:
        raise LayerError(
            f"None of the layers held ({', '.join(map(str, vectors.layers))}) lies within {within[0]:.0%} to {within[1]:.0%} "
            f"of the {depth} layers; hold some of these, or pass within=(0, 1)."
        )
    best = max(r.score for r in standing)
    chosen = min((r for r in standing if r.score >= best - TOLERANCE), key=lambda r: r.layer)
    if (edge := _beyond(chosen, standing, table)) is not None:
        notes.append(
            f"layer {chosen.layer} is the edge of the depths that stand for choice and layer {edge.layer} beyond it scores "
            f"higher ({edge.score:.2f} over {chosen.score:.2f}): look at the table before you rely on it"
        )
    if chosen.split_half < 0.8:
        notes.append(
            f"the axis agrees with itself only to {chosen.split_half:.2f} across halves of the rollouts; take more "
            "questions (of the default above all) before trusting it"
        )
    return LayerChoice(chosen.layer, tuple(table), tuple(notes))


def _beyond(chosen: LayerReasons, standing: list[LayerReasons], table: list[LayerReasons]) -> LayerReasons | None:
    """The better neighbour just outside the range, if the chosen layer is at its edge."""
    k = table.index(chosen)
    outside = [table[j] for j in (k - 1, k + 1) if 0 <= j < len(table) and table[j] not in standing]
    return next((r for r in outside if r.score > chosen.score + TOLERANCE), None)


def _why(half: float, cosine: float, place: float) -> str:
    stable = (
        "not judged" if np.isnan(half) else "stable" if half >= 0.9 else "fairly stable" if half >= 0.7 else "noisy"
    )
    along = "along PC1" if cosine >= 0.6 else "partly along PC1" if cosine >= 0.3 else "not along PC1"
    end = (
        "default at the end" if place <= 0.1 else "default toward the end" if place <= 0.3 else "default amid the roles"
    )
    return f"axis {stable}, {along}, {end}"
