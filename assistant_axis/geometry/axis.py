"""`AssistantAxis`: a direction a layer along which a model is more or less its default self.

`axis[layer] = mean(default activations)[layer] − mean over roles(role vector)[layer]` (Lu et al. 2026, section 3):
positive is Assistant-like, here and everywhere in this package.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.activations.store import (
    Conditions,
    fetch_published,
    load_artefact,
    load_pickled_tensors,
    save_artefact,
)
from assistant_axis.errors import GeometryError, IntegrityError, SettingError
from assistant_axis.geometry.vectors import PersonaVectors, layer_index

if TYPE_CHECKING:
    from assistant_axis.models.hooked import HookedChatModel

KIND = "assistant axis"
StoredAs = Literal["default-minus-roles", "roles-minus-default"]


@dataclass(frozen=True)
class AssistantAxis:
    """The Assistant Axis at every layer, with what is needed to read and to steer along it.

    Attributes:
        layers: block index of each layer held.
        vectors: the axis, not normalised, `[layer, d_model]`; positive is Assistant-like.
        default: mean activation of the default persona, `[layer, d_model]`.
        role_mean: mean over roles, `[layer, d_model]`; the origin of centred projections.
        resid_norms: mean norm of the residual stream per token, `[layer]`; the unit of doses.
        quantiles: raw projections of calibration rollouts at 0, 1, …, 100 %, `[quantile, layer]`.
        default_quantiles: the same for the default's rollouts alone.
        calibration: what the quantiles are over, `"rollouts"` or `"role means"`.
        method: `"contrast"`, `"pc1"` or `"imported"`.
        conditions: under what conditions it was measured.
    """

    layers: tuple[int, ...]
    vectors: Float[Tensor, "layer d_model"]
    default: Float[Tensor, "layer d_model"]
    role_mean: Float[Tensor, "layer d_model"]
    resid_norms: Float[Tensor, "layer"]
    quantiles: Float[Tensor, "quantile layer"]
    default_quantiles: Float[Tensor, "quantile layer"]
    calibration: str
    method: str
    conditions: Conditions

    def __post_init__(self) -> None:
        if not torch.isfinite(self.vectors).all():
            at = int((~torch.isfinite(self.vectors)).any(-1).nonzero()[0])
            raise GeometryError(f"The axis is not finite at layer {self.layers[at]}.")
        if (self.norms == 0).any():
            at = int((self.norms == 0).nonzero()[0])
            raise GeometryError(
                f"The axis is zero at layer {self.layers[at]}: default and roles have the same mean there, so it has no direction."
            )

    def __repr__(self) -> str:
        return (
            f"AssistantAxis({self.conditions.model!r}, layers={len(self.layers)}, d_model={self.d_model}, "
            f"span={self.conditions.span!r}, method={self.method!r})"
        )

    @classmethod
    def from_vectors(cls, vectors: PersonaVectors, method: Literal["contrast", "pc1"] = "contrast") -> "AssistantAxis":
        """The axis of persona vectors, with percentiles of its calibration rollouts.

        Args:
            vectors: at least two roles.
            method: `"contrast"` (default − mean of roles) or `"pc1"` (first principal component of the role vectors,
                sign on the default's side, scaled to the contrast's component along it).

        Raises:
            GeometryError: too few roles, or a zero axis.
        """
        if len(vectors.roles) < 2:
            raise GeometryError(f"An axis needs at least two roles; there is {len(vectors.roles)}.")
        role_mean = vectors.role_mean
        contrast = vectors.default - role_mean
        if method == "pc1":
            directions = torch.stack([_first_component(vectors.vectors[:, k]) for k in range(len(vectors.layers))])
            along = (directions * contrast).sum(-1, keepdim=True)
            along = torch.where(along == 0, torch.ones_like(along), along)
            contrast = directions * along
        elif method != "contrast":
            raise SettingError(f'method={method!r} is not known; use "contrast" or "pc1".')
        unit = contrast / contrast.norm(dim=-1, keepdim=True)
        grid = torch.linspace(0, 1, 101)
        if vectors.samples is not None:
            projections = torch.einsum("sld,ld->sl", vectors.samples.activations.float(), unit)
            own = projections[vectors.samples.role < 0]
            calibration = "rollouts"
        else:
            projections = torch.einsum("rld,ld->rl", vectors.vectors, unit)
            own = projections[:0]
            calibration = "role means"
        if not len(own):  # no single rollout of the default was kept
            own = torch.einsum("cld,ld->cl", vectors.default_conditions, unit)
        return cls(
            layers=vectors.layers,
            vectors=contrast,
            default=vectors.default,
            role_mean=role_mean,
            resid_norms=vectors.resid_norms,
            quantiles=torch.quantile(projections, grid, dim=0),
            default_quantiles=torch.quantile(own, grid, dim=0),
            calibration=calibration,
            method=method,
            conditions=vectors.conditions,
        )

    # -- what it is ----------------------------------------------------------------------------------------------------

    @property
    def d_model(self) -> int:
        return self.vectors.shape[-1]

    @property
    def norms(self) -> Float[Tensor, "layer"]:
        """Length of the axis at each layer, in activation units."""
        return self.vectors.norm(dim=-1)

    @property
    def unit(self) -> Float[Tensor, "layer d_model"]:
        """The axis with length 1 at every layer."""
        return self.vectors / self.norms[:, None]

    def layer_index(self, layer: int | float) -> int:
        """Where a layer is held; see [`PersonaVectors.layer_index`][assistant_axis.PersonaVectors.layer_index]."""
        return layer_index(self.layers, layer, self.conditions.n_layers)

    def at(self, layer: int | float) -> Float[Tensor, "d_model"]:
        """Unit direction at one layer."""
        return self.unit[self.layer_index(layer)]

    def select(self, layers: Sequence[int | float]) -> "AssistantAxis":
        """The same axis at fewer layers."""
        at = [self.layer_index(x) for x in layers]
        picked = {name: getattr(self, name)[at] for name in ("vectors", "default", "role_mean", "resid_norms")}
        quantiles = {name: getattr(self, name)[:, at] for name in ("quantiles", "default_quantiles")}
        return replace(self, layers=tuple(self.layers[k] for k in at), **picked, **quantiles)

    # -- reading -------------------------------------------------------------------------------------------------------

    def project(
        self, x: Float[Tensor, "*batch d_model"], layer: int | float | None = None, *, centered: bool = False
    ) -> Float[Tensor, "*batch"]:
        """Position along the axis, `⟨x, v̂⟩`; larger is more Assistant-like.

        Args:
            x: activations `[..., layer, d_model]` for all layers held, or `[..., d_model]` with `layer` given.
            layer: read at one layer only.
            centered: subtract the role mean first, as the paper's figures do; raw otherwise, as its code does.

        Returns:
            `[..., layer]`, or `[...]` with `layer` given, in activation units.

        Raises:
            GeometryError: the shape does not fit the axis.
        """
        unit, mean = self.unit, self.role_mean
        if layer is not None:
            k = self.layer_index(layer)
            unit, mean = unit[k], mean[k]
        expected = unit.shape
        if x.shape[-len(expected) :] != expected:
            raise GeometryError(
                f"Activations of shape {tuple(x.shape)} do not end in {tuple(expected)}"
                + (" (layer, d_model)." if layer is None else " (d_model).")
                + f" The axis holds {len(self.layers)} layers of width {self.d_model}: read the same layers "
                "(model.activations(..., layers=axis.layers)), or pass layer=…"
            )
        x = x.to(unit.device, torch.float32)
        return ((x - mean if centered else x) * unit).sum(-1)

    def center(self) -> Float[Tensor, "layer"]:
        """Raw projection of the role mean: raw minus this is the centred projection."""
        return (self.role_mean * self.unit).sum(-1)

    def percentile(self, q: float, layer: int | float | None = None) -> Float[Tensor, "*layer"]:
        """Raw projection below which `q` percent of the calibration rollouts lie, `[layer]` or a scalar.

        Percentiles are over Assistant-positive projections: the released "p0.25" is `percentile(75)` here.

        Raises:
            SettingError: q outside 0 … 100.
        """
        return self._percentile(self.quantiles, q, layer)

    def default_percentile(self, q: float, layer: int | float | None = None) -> Float[Tensor, "*layer"]:
        """The same over the default persona's own rollouts: its band is `default_percentile(5)` … `(95)`."""
        return self._percentile(self.default_quantiles, q, layer)

    def rank(self, projection: float, layer: int | float) -> float:
        """Percentile (0 … 100) at which a raw projection stands among the calibration rollouts."""
        self._calibrated()
        column = self.quantiles[:, self.layer_index(layer)].contiguous()
        low = int(torch.searchsorted(column, torch.tensor(projection, dtype=column.dtype)))
        if low == 0:
            return 0.0
        if low > 100:
            return 100.0
        below, above = float(column[low - 1]), float(column[low])
        return low - 1 + ((projection - below) / (above - below) if above > below else 1.0)

    def _percentile(self, table: Tensor, q: float, layer: int | float | None) -> Tensor:
        self._calibrated()
        if not 0 <= q <= 100:
            raise SettingError(f"A percentile lies between 0 and 100; got {q}.")
        below = int(q)
        part = q - below
        values = table[below] if part == 0 else torch.lerp(table[below], table[below + 1], part)
        return values if layer is None else values[self.layer_index(layer)]

    def _calibrated(self) -> None:
        if self.calibration == "none":
            raise GeometryError(
                "This axis was imported and keeps no calibration, so it has no percentiles. Extract an axis here, or give "
                "thresholds as numbers."
            )

    # -- checks and files ----------------------------------------------------------------------------------------------

    def integrity(self) -> Float[Tensor, "layer"]:
        """Cosine, per layer, between the axis and default − mean of roles recomputed from what the artefact keeps.

        1.0000 for a contrast axis; sums in half precision lose this (0.998 has been seen).
        """
        again = (self.default - self.role_mean).double()
        return torch.cosine_similarity(self.vectors.double(), again, dim=-1).float()

    def check(self, model: "HookedChatModel", *, force: bool = False) -> None:
        """Refuse a model that this axis was not measured on. See `Conditions.check`."""
        self.conditions.check(model, KIND, force=force)

    def save(self, path: str | Path) -> Path:
        """Write safetensors with all conditions in the header, in one atomic step; returns the path written."""
        names = ("vectors", "default", "role_mean", "resid_norms", "quantiles", "default_quantiles")
        header = {
            "layers": list(self.layers),
            "calibration": self.calibration,
            "method": self.method,
            "conditions": self.conditions.as_dict(),
        }
        return save_artefact(path, KIND, {n: getattr(self, n) for n in names}, header)

    @classmethod
    def load(cls, path: str | Path, model: "HookedChatModel | None" = None, *, force: bool = False) -> "AssistantAxis":
        """Read what `save` wrote; with `model`, refuse an axis of another model.

        Raises:
            IntegrityError: truncated, tampered with, foreign, or an axis that does not pass its integrity check.
            ArtefactMismatchError: an artefact of another kind or another model.
        """
        tensors, header = load_artefact(path, KIND)
        axis = cls(
            layers=tuple(header["layers"]),
            calibration=header["calibration"],
            method=header["method"],
            conditions=Conditions.from_dict(header["conditions"]),
            **tensors,
        )
        if axis.method == "contrast" and float(axis.integrity().min()) < 0.9999:
            worst = int(axis.integrity().argmin())
            raise IntegrityError(
                f"{path}: the axis at layer {axis.layers[worst]} has cosine {float(axis.integrity()[worst]):.4f} with "
                "default − mean of roles; 1.0000 is expected."
            )
        if model is not None:
            axis.check(model, force=force)
        return axis

    @classmethod
    def from_hub(
        cls,
        repo: str,
        model: "HookedChatModel | None" = None,
        *,
        revision: str | None = None,
        filename: str = "axis.safetensors",
        force: bool = False,
    ) -> "AssistantAxis":
        """An axis that somebody published with `assistant-axis publish`.

        Args:
            repo: `owner/name` on the hub.
            model: refuse an axis of another model than this one.
            revision: branch, tag or commit.
            filename: of the axis in the repository.
            force: accept another model of the same shape.

        Raises:
            FetchError: it is not there, or the hub cannot be reached.
            IntegrityError, ArtefactMismatchError: as `load`.
        """
        return cls.load(fetch_published(repo, filename, revision=revision), model, force=force)

    @classmethod
    def from_pt(
        cls, path: str | Path, *, stored_as: StoredAs, model: str = "unknown", n_layers: int | None = None
    ) -> "AssistantAxis":
        """An axis in the published format: a `.pt` file with one tensor `[layer, d_model]`.

        The official pipeline writes default − roles; the released capping vectors and others are roles − default.
        A file does not say which, so you must; a `roles-minus-default` file is turned, so that positive is
        Assistant-like here. The file keeps no norms and no calibration: doses in `resid_norm` and percentiles need
        an axis extracted here.

        Args:
            path: the file, read with `weights_only=True`.
            stored_as: `"default-minus-roles"` or `"roles-minus-default"`.
            model: whose axis it is.
            n_layers: layers of the model, if the file holds fewer.

        Raises:
            UnsafeFileError: the pickle holds more than tensors.
            IntegrityError: unreadable, or no single `[layer, d_model]` tensor.
        """
        if stored_as not in ("default-minus-roles", "roles-minus-default"):
            raise SettingError(
                f'stored_as={stored_as!r} is not known; use "default-minus-roles" (official pipeline) or '
                '"roles-minus-default" (released capping vectors).'
            )
        loaded = load_pickled_tensors(path)
        if isinstance(loaded, dict):
            tensors = [v for v in loaded.values() if isinstance(v, Tensor) and v.ndim == 2]
            loaded = tensors[0] if len(tensors) == 1 else loaded
        if not isinstance(loaded, Tensor) or loaded.ndim != 2:
            got = (
                type(loaded).__name__ if not isinstance(loaded, Tensor) else f"a tensor of shape {tuple(loaded.shape)}"
            )
            raise IntegrityError(f"{path} holds {got}; expected one tensor [layer, d_model].")
        vectors = loaded.float() * (1 if stored_as == "default-minus-roles" else -1)
        depth, width = vectors.shape
        nothing = torch.full((101, depth), float("nan"))
        conditions = Conditions.imported(
            model,
            n_layers=n_layers or depth,
            d_model=width,
            dtype=str(loaded.dtype).removeprefix("torch."),
            design=f"imported from {Path(path).name}, stored {stored_as}",
        )
        return cls(
            layers=tuple(range(depth)),
            vectors=vectors,
            default=vectors.clone(),
            role_mean=torch.zeros_like(vectors),
            resid_norms=torch.full((depth,), float("nan")),
            quantiles=nothing,
            default_quantiles=nothing.clone(),
            calibration="none",
            method="imported",
            conditions=conditions,
        )


def _first_component(x: Float[Tensor, "role d_model"]) -> Float[Tensor, "d_model"]:
    """First right singular vector of the centred rows."""
    _, _, rows = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return rows[0]
