"""`PersonaSpace`: principal components of the role vectors at one layer, and where the default sits among them."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.activations.store import Conditions
from assistant_axis.errors import GeometryError, SettingError, UnknownNameError
from assistant_axis.geometry.vectors import PersonaVectors

Scores = Literal["cosine", "projection"]


@dataclass(frozen=True)
class PersonaSpace:
    """PCA of role vectors (centred, not scaled unless asked; Lu et al. 2026, section 2).

    Attributes:
        layer: block index.
        roles: names, in the order of the scores.
        components: unit rows, `[pc, d_model]`, each with the default on its positive side.
        variance: explained variance ratio, `[pc]`.
        mean: mean role vector, `[d_model]`.
        scale: what coordinates were divided by before the PCA, `[d_model]` (ones without `zscore`).
        centered: centred (and scaled) role vectors, `[role, d_model]`.
        default: the default persona, centred (and scaled) alike, `[d_model]`.
        axis: unit Assistant Axis at this layer, `[d_model]`.
        zscore: whether coordinates were scaled.
        conditions: under what conditions the vectors were measured.
    """

    layer: int
    roles: tuple[str, ...]
    components: Float[Tensor, "pc d_model"]
    variance: Float[Tensor, "pc"]
    mean: Float[Tensor, "d_model"]
    scale: Float[Tensor, "d_model"]
    centered: Float[Tensor, "role d_model"]
    default: Float[Tensor, "d_model"]
    axis: Float[Tensor, "d_model"]
    zscore: bool
    conditions: Conditions

    @classmethod
    def fit(cls, vectors: PersonaVectors, layer: int | float, *, zscore: bool = False) -> "PersonaSpace":
        """PCA of the role vectors at a layer.

        Args:
            vectors: at least three roles.
            layer: index or depth.
            zscore: divide every coordinate by its standard deviation over roles first. A few coordinates of some
                models (Gemma 2 and 3) are so large that centred PCA sees little else.

        Raises:
            GeometryError: fewer than three roles, or vectors that do not differ.
            LayerError: the layer is not held.
        """
        if len(vectors.roles) < 3:
            raise GeometryError(f"A persona space needs at least three roles; there are {len(vectors.roles)}.")
        k = vectors.layer_index(layer)
        x = vectors.vectors[:, k]
        mean = x.mean(0)
        scale = torch.ones_like(mean)
        if zscore:  # a coordinate that is constant up to rounding has no scale of its own
            spread = x.std(0, correction=0)
            scale = torch.where(spread > 1e-6 * x.abs().amax(0), spread, scale)
        centered = (x - mean) / scale
        if not centered.abs().max() > 1e-12:
            raise GeometryError(
                f"All role vectors are the same at layer {vectors.layers[k]}: there is no persona space."
            )
        components, variance = principal_components(centered)
        default = (vectors.default[k] - mean) / scale
        side = torch.sign(components @ default)
        components = components * torch.where(side == 0, torch.ones_like(side), side)[:, None]
        axis = vectors.default[k] - mean
        return cls(
            layer=vectors.layers[k],
            roles=vectors.roles,
            components=components,
            variance=variance,
            mean=mean,
            scale=scale,
            centered=centered,
            default=default,
            axis=axis / axis.norm(),
            zscore=zscore,
            conditions=vectors.conditions,
        )

    def __repr__(self) -> str:
        return (
            f"PersonaSpace({self.conditions.model!r}, layer={self.layer}, roles={len(self.roles)}, "
            f"dimensions for 70 %: {self.dimensions(0.7)}, |cos(axis, PC1)|: {self.axis_cosine():.2f})"
        )

    def scores(self, pc: int = 1, kind: Scores = "cosine") -> Float[Tensor, "role"]:
        """Each role's score on a component (numbered from 1): its cosine with the component, or its projection.

        Raises:
            SettingError: no such component.
        """
        direction = self._component(pc)
        along = self.centered @ direction
        if kind == "projection":
            return along
        return along / self.centered.norm(dim=1).clamp_min(1e-12)

    def ranking(self, pc: int = 1, kind: Scores = "cosine") -> list[tuple[str, float]]:
        """Roles with their scores, the most Assistant-like first."""
        scores = self.scores(pc, kind)
        return [(self.roles[k], float(scores[k])) for k in scores.argsort(descending=True).tolist()]

    def score_of(self, role: str, pc: int = 1, kind: Scores = "cosine") -> float:
        """One role's score.

        Raises:
            UnknownNameError: with close matches.
        """
        if role not in self.roles:
            raise UnknownNameError("role", role, self.roles)
        return float(self.scores(pc, kind)[self.roles.index(role)])

    def dimensions(self, share: float = 0.7) -> int:
        """How many components explain `share` of the variance."""
        if not 0 < share <= 1:
            raise SettingError(f"A share of variance lies in (0, 1]; got {share}.")
        cumulative = self.variance.cumsum(0)
        return min(int((cumulative < share - 1e-6).sum()) + 1, len(cumulative))

    def axis_cosine(self, pc: int = 1) -> float:
        """|cos| between the Assistant Axis and a component, in the space the PCA was made in."""
        axis = self.axis / self.scale
        return float((axis @ self._component(pc)).abs() / axis.norm())

    def default_position(self, pc: int = 1) -> float:
        """Where the default sits in the roles' range on a component: 0 at its own extreme, 1 at the other, below 0
        beyond all roles."""
        along = self.scores(pc, "projection")
        low, high = float(along.min()), float(along.max())
        return (high - float(self.default @ self._component(pc))) / (high - low)

    def default_score(self, pc: int = 1, kind: Scores = "projection") -> float:
        """The default's own projection on a component, or its cosine with it."""
        along = float(self.default @ self._component(pc))
        return along if kind == "projection" else along / float(self.default.norm())

    def _component(self, pc: int) -> Tensor:
        if not 1 <= pc <= len(self.components):
            raise SettingError(f"PC{pc} does not exist; components are numbered 1 to {len(self.components)}.")
        return self.components[pc - 1]


def principal_components(
    x: Float[Tensor, "row d_model"],
) -> tuple[Float[Tensor, "pc d_model"], Float[Tensor, "pc"]]:
    """PCA of rows, in float64: unit components of any sign, and the share of the variance that each explains.

    The singular value decomposition of the centred rows, by way of their QR decomposition, so that 275 rows of width
    8192 take a quarter of a second; agrees with `sklearn.decomposition.PCA(svd_solver="full")` in float64. One
    component fewer than there are rows, since centring takes one dimension, and at most `d_model`.
    """
    rows = x.double()
    q, r = torch.linalg.qr((rows - rows.mean(0)).T)
    _, sizes, turn = torch.linalg.svd(r.T, full_matrices=False)
    count = min(len(x) - 1, x.shape[1])
    energy = sizes.square()
    return (turn @ q.T)[:count].float(), (energy / energy.sum())[:count].float()
