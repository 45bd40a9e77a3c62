"""`Direction`: what an intervention acts along: one unit vector a layer, with what its doses and thresholds need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.activations.store import Conditions
from assistant_axis.errors import ArtefactMismatchError, GeometryError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.vectors import layer_index

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel


@dataclass(frozen=True, eq=False)
class Direction:
    """Unit vectors at some layers, float32 on the CPU; positive is Assistant-like where the name says "axis".

    Attributes:
        layers: block index of each layer held.
        unit: `[layer, d_model]`, each row of length 1.
        norms: length of the vector before it was normalised, `[layer]`, in activation units: the dose unit `"axis"`.
        resid_norms: mean norm of the residual stream per token, `[layer]`: the dose unit `"resid_norm"`; `None` if unknown.
        quantiles: raw projections of calibration rollouts at 0, 1, …, 100 %, `[quantile, layer]`; `None` if unknown.
        landmarks: projections of known points, `[layer]` each: `"role_mean"`, `"default"`.
        conditions: under what conditions it was measured; `None` for bare tensors.
        name: what `explain` calls it.
    """

    layers: tuple[int, ...]
    unit: Float[Tensor, "layer d_model"]
    norms: Float[Tensor, "layer"]
    resid_norms: Float[Tensor, "layer"] | None = None
    quantiles: Float[Tensor, "quantile layer"] | None = None
    landmarks: Mapping[str, Float[Tensor, "layer"]] = field(default_factory=dict)
    conditions: Conditions | None = None
    name: str = "direction"

    def __repr__(self) -> str:
        return f"Direction({self.name!r}, layers={list(self.layers)}, d_model={self.d_model})"

    # -- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, source: "DirectionLike") -> "Direction":
        """A direction from an axis, from `{layer: tensor [d_model]}`, or from a direction.

        Raises:
            GeometryError: vectors that are zero, not finite, or of different widths.
        """
        if isinstance(source, Direction):
            return source
        if isinstance(source, AssistantAxis):
            return cls._of_axis(source)
        if not isinstance(source, Mapping) or not source:
            raise SettingError(
                f"Expected an AssistantAxis, a Direction, or {{layer: tensor [d_model]}}, got {type(source).__name__}."
            )
        rows = {int(k): torch.as_tensor(v).detach().to("cpu", torch.float32) for k, v in source.items()}
        wrong = {k: tuple(v.shape) for k, v in rows.items() if v.ndim != 1}
        widths = {v.shape[-1] for v in rows.values() if v.ndim == 1}
        if wrong or len(widths) != 1:
            said = ", ".join(f"layer {k}: {tuple(v.shape)}" for k, v in rows.items())
            raise GeometryError(f"Every layer needs one vector [d_model] of the same width; got {said}.")
        return cls.from_vectors(tuple(rows), torch.stack(list(rows.values())))

    @classmethod
    def from_vectors(
        cls, layers: Sequence[int], vectors: Float[Tensor, "layer d_model"], **more: object
    ) -> "Direction":
        """Normalise vectors, keeping their lengths; `more` fills the other attributes.

        Raises:
            GeometryError: a vector is zero or not finite, or their number is not that of the layers.
        """
        if len(layers) != len(vectors):
            raise GeometryError(f"{len(vectors)} vectors came for {len(layers)} layers; one for each is needed.")
        vectors = vectors.detach().to("cpu", torch.float32)
        for k, layer in enumerate(layers):
            if not torch.isfinite(vectors[k]).all():
                raise GeometryError(f"The vector of layer {layer} is not finite; export it again in float32.")
            if not vectors[k].norm() > 0:
                raise GeometryError(f"The vector of layer {layer} is zero: it has no direction.")
        norms = vectors.norm(dim=-1)
        return cls(tuple(int(x) for x in layers), vectors / norms[:, None], norms, **more)  # type: ignore[arg-type]

    @classmethod
    def _of_axis(cls, axis: AssistantAxis) -> "Direction":
        unit = axis.unit.float()
        landmarks: dict[str, Tensor] = {}
        if axis.method != "imported":  # a released file keeps the difference only, not the two means
            landmarks = {"role_mean": (axis.role_mean * unit).sum(-1), "default": (axis.default * unit).sum(-1)}
        known = bool(torch.isfinite(axis.resid_norms).all())
        calibrated = bool(torch.isfinite(axis.quantiles).all())
        return cls(
            axis.layers,
            unit,
            axis.norms,
            axis.resid_norms if known else None,
            axis.quantiles if calibrated else None,
            landmarks,
            axis.conditions,
            "Assistant Axis" if axis.method == "contrast" else f"Assistant Axis ({axis.method})",
        )

    # -- using it ------------------------------------------------------------------------------------------------------

    @property
    def d_model(self) -> int:
        return self.unit.shape[-1]

    def index(self, layer: int) -> int:
        """Where a layer is held.

        Raises:
            LayerError: it is not.
        """
        n_layers = self.conditions.n_layers if self.conditions is not None else max(*self.layers, layer, 0) + 1
        return layer_index(self.layers, layer, n_layers)

    def percentile(self, q: float | int, layer: int) -> float:
        """Raw projection below which `q` percent of the calibration rollouts lie (Assistant-positive).

        Raises:
            SettingError: q out of range, or a direction that was not calibrated.
        """
        if not 0 <= q <= 100:
            raise SettingError(f"A percentile lies between 0 and 100; got {q}.")
        if self.quantiles is None:
            raise SettingError(
                f"The {self.name} keeps no calibration, so it has no percentiles. Run calibrate(direction, model, rollouts), "
                "or give floor= and ceiling= as numbers."
            )
        column = self.quantiles[:, self.index(layer)]
        below = int(q)
        value = column[below] if q == below else torch.lerp(column[below], column[below + 1], q - below)
        return float(value)

    def check(self, model: "HookedChatModel", *, force: bool = False) -> None:
        """Refuse a model that this direction does not fit.

        Raises:
            ArtefactMismatchError: another width, or (unless `force`) another model.
        """
        if self.d_model != model.d_model:
            raise ArtefactMismatchError(
                f"The {self.name} has width {self.d_model}, but {model.name} has d_model {model.d_model}. "
                "Use a direction of this model."
            )
        if self.conditions is not None:
            self.conditions.check(model, self.name, force=force)

    def random(self, seed: int = 0) -> "Direction":
        """A control: a random direction of equal length at every layer, drawn from a seeded normal distribution.

        It keeps the dose units. Thresholds do not carry over: they are places along *this* direction.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(self.unit.shape, generator=generator)
        unit = drawn / drawn.norm(dim=-1, keepdim=True)
        return replace(self, unit=unit, quantiles=None, landmarks={}, name=f"random direction (seed {seed})")

    def __neg__(self) -> "Direction":
        quantiles = None if self.quantiles is None else -self.quantiles.flip(0)
        landmarks = {k: -v for k, v in self.landmarks.items()}
        return replace(self, unit=-self.unit, quantiles=quantiles, landmarks=landmarks, name=f"minus {self.name}")


DirectionLike: TypeAlias = AssistantAxis | Direction | Mapping[int, Tensor]
