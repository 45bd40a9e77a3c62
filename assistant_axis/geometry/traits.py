"""`TraitVectors`: directions of ways of answering; what the Assistant Axis means in words."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assistant_axis.activations.store import Conditions, load_artefact, save_artefact
from assistant_axis.errors import ArtefactMismatchError, GeometryError, UnknownNameError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.space import principal_components
from assistant_axis.geometry.stability import split_half
from assistant_axis.geometry.vectors import PersonaVectors, layer_index

KIND = "trait vectors"
POLES = (":positive", ":negative")
"""How the two sides of a trait are named where they are extracted as personas."""


@dataclass(frozen=True)
class TraitVectors:
    """One direction a trait, a layer: mean of the answers that show it minus mean of those that show its opposite
    (Lu et al. 2026, section 2), float32.

    Attributes:
        traits: names, in the order of `vectors`.
        layers: block index of each layer held.
        vectors: positive minus negative, `[trait, layer, d_model]`.
        reliability: cosine between the vectors of two disjoint halves of the rollouts, `[trait, layer]`; NaN where
            no single rollouts were kept.
        counts: rollouts behind each trait, both sides together.
        conditions: under what conditions all this was measured.
    """

    traits: tuple[str, ...]
    layers: tuple[int, ...]
    vectors: Float[Tensor, "trait layer d_model"]
    reliability: Float[Tensor, "trait layer"]
    counts: Int[Tensor, "trait"]
    conditions: Conditions

    def __post_init__(self) -> None:
        if len(set(self.traits)) != len(self.traits):
            twice = sorted({t for t in self.traits if self.traits.count(t) > 1})
            raise GeometryError(f"Traits are given twice: {', '.join(twice)}. Names must be unique.")
        if not torch.isfinite(self.vectors).all():
            at = (~torch.isfinite(self.vectors)).any(-1).nonzero()[0].tolist()
            raise GeometryError(
                f"The vector of the trait {self.traits[at[0]]} is not finite at layer {self.layers[at[1]]}."
            )

    def __repr__(self) -> str:
        return (
            f"TraitVectors({self.conditions.model!r}, traits={len(self.traits)}, layers={len(self.layers)}, "
            f"d_model={self.vectors.shape[-1]}, span={self.conditions.span!r})"
        )

    @classmethod
    def from_poles(cls, poles: PersonaVectors) -> "TraitVectors":
        """From personas named `<trait>:positive` and `<trait>:negative`; a trait that lacks a side is left out.

        Raises:
            GeometryError: no trait has both sides.
        """
        names = [r.removesuffix(POLES[0]) for r in poles.roles if r.endswith(POLES[0])]
        names = [n for n in names if n + POLES[1] in set(poles.roles)]
        if not names:
            raise GeometryError("No trait has both sides among these personas.")
        sides = [[poles.roles.index(n + pole) for n in names] for pole in POLES]
        vectors = poles.vectors[sides[0]] - poles.vectors[sides[1]]
        reliability = torch.full(vectors.shape[:2], float("nan"))
        if poles.samples is not None:
            reliability = _reliability(poles, names)
        return cls(
            traits=tuple(names),
            layers=poles.layers,
            vectors=vectors,
            reliability=reliability,
            counts=poles.counts[sides[0]] + poles.counts[sides[1]],
            conditions=poles.conditions,
        )

    def layer_index(self, layer: int | float) -> int:
        """Where a layer is held.

        Raises:
            LayerError: it is not.
        """
        return layer_index(self.layers, layer, self.conditions.n_layers)

    def trait(self, name: str) -> Float[Tensor, "layer d_model"]:
        """One trait's vectors.

        Raises:
            UnknownNameError: with close matches.
        """
        if name not in self.traits:
            raise UnknownNameError("trait", name, self.traits)
        return self.vectors[self.traits.index(name)]

    def cosines(self, axis: AssistantAxis, layer: int | float, *, force: bool = False) -> Float[Tensor, "trait"]:
        """Cosine of every trait with the Assistant Axis at a layer: what the axis means (paper, figure 3).

        Args:
            axis: of the same model.
            layer: index or depth.
            force: accept an axis of another model of the same width.

        Raises:
            ArtefactMismatchError: an axis of another model, template or hook point.
            LayerError: the layer is not held.
        """
        if axis.d_model != self.vectors.shape[-1]:
            raise ArtefactMismatchError(
                f"The axis has width {axis.d_model}, the traits {self.vectors.shape[-1]}: they are of different models."
            )
        differ = [f for f in self.conditions.check_same_frame(axis.conditions) if f != "span"]
        if differ and not force and axis.method != "imported":
            said = "; ".join(
                f"{f}: {getattr(self.conditions, f)!r} and {getattr(axis.conditions, f)!r}" for f in differ
            )
            raise ArtefactMismatchError(f"Traits and axis do not share one space ({said}). Pass force=True to go on.")
        return torch.cosine_similarity(self.vectors[:, self.layer_index(layer)], axis.at(layer)[None], dim=-1)

    def ranking(self, axis: AssistantAxis, layer: int | float, *, force: bool = False) -> list[tuple[str, float]]:
        """Traits with their cosines, the most Assistant-like first; raises as `cosines` does."""
        found = self.cosines(axis, layer, force=force)
        return [(self.traits[k], float(found[k])) for k in found.argsort(descending=True).tolist()]

    def space(self, layer: int | float, axis: AssistantAxis | None = None) -> "TraitSpace":
        """PCA of the trait vectors at a layer; with `axis`, components point to its side."""
        return TraitSpace.fit(self, layer, axis)

    def save(self, path: str | Path) -> Path:
        """Write safetensors with all conditions in the header, in one atomic step; returns the path written."""
        tensors = {n: getattr(self, n) for n in ("vectors", "reliability", "counts")}
        header = {"traits": list(self.traits), "layers": list(self.layers), "conditions": self.conditions.as_dict()}
        return save_artefact(path, KIND, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "TraitVectors":
        """Read what `save` wrote.

        Raises:
            IntegrityError: truncated, tampered with, or foreign.
            ArtefactMismatchError: an artefact of another kind.
        """
        tensors, header = load_artefact(path, KIND)
        return cls(
            traits=tuple(header["traits"]),
            layers=tuple(header["layers"]),
            conditions=Conditions.from_dict(header["conditions"]),
            **tensors,
        )


@dataclass(frozen=True)
class TraitSpace:
    """Principal components of the trait vectors at one layer (centred, not scaled).

    Attributes:
        layer: block index.
        traits: names, in the order of the scores.
        components: unit rows, `[pc, d_model]`.
        variance: explained variance ratio, `[pc]`.
        scores: cosine of every centred trait vector with every component, `[trait, pc]`.
    """

    layer: int
    traits: tuple[str, ...]
    components: Float[Tensor, "pc d_model"]
    variance: Float[Tensor, "pc"]
    scores: Float[Tensor, "trait pc"]

    @classmethod
    def fit(cls, traits: TraitVectors, layer: int | float, axis: AssistantAxis | None = None) -> "TraitSpace":
        """PCA of at least three trait vectors.

        Raises:
            GeometryError: fewer than three traits, or vectors that do not differ.
            LayerError: the layer is not held.
        """
        if len(traits.traits) < 3:
            raise GeometryError(f"A trait space needs at least three traits; there are {len(traits.traits)}.")
        k = traits.layer_index(layer)
        x = traits.vectors[:, k]
        centered = x - x.mean(0)
        if not centered.abs().max() > 1e-12:
            raise GeometryError(f"All trait vectors are the same at layer {traits.layers[k]}.")
        components, variance = principal_components(centered)
        if axis is not None:
            side = torch.sign(components @ axis.at(layer))
            components = components * torch.where(side == 0, torch.ones_like(side), side)[:, None]
        scores = centered @ components.T / centered.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return cls(traits.layers[k], traits.traits, components, variance, scores)

    def dimensions(self, share: float = 0.7) -> int:
        """How many components explain `share` of the variance."""
        return min(int((self.variance.cumsum(0) < share - 1e-6).sum()) + 1, len(self.variance))


def _reliability(poles: PersonaVectors, names: list[str]) -> Float[Tensor, "trait layer"]:
    """Cosine between the halves; NaN for traits of which too few single rollouts are kept."""
    out = torch.full((len(names), len(poles.layers)), float("nan"))
    try:
        halves = split_half(poles)
    except GeometryError:
        return out
    held = {r: k for k, r in enumerate(halves[0].roles)}
    for i, name in enumerate(names):
        if name + POLES[0] in held and name + POLES[1] in held:
            p, n = held[name + POLES[0]], held[name + POLES[1]]
            a, b = (h.vectors[p] - h.vectors[n] for h in halves)
            out[i] = torch.cosine_similarity(a, b, dim=-1)
    return out
