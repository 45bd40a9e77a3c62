"""`PersonaVectors`: one mean activation a role, a layer; the data that axis and persona space are made of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor

from assistant_axis.activations.store import Conditions, load_artefact, save_artefact
from assistant_axis.errors import GeometryError, LayerError, UnknownNameError
from assistant_axis.geometry.questions import SPREAD, QuestionEffects

if TYPE_CHECKING:
    from assistant_axis.geometry.axis import AssistantAxis
    from assistant_axis.geometry.published import PublishedComparison
    from assistant_axis.geometry.space import PersonaSpace
    from assistant_axis.models.hooked import HookedChatModel

KIND = "persona vectors"


@dataclass(frozen=True)
class Samples:
    """Single rollouts' mean activations, kept to calibrate thresholds and to bootstrap: at most a few thousand.

    Attributes:
        activations: half precision, `[sample, layer, d_model]`.
        role: index of each sample's role, -1 for the default.
        question: number of each sample's question, in the order of their ids; `None` if not recorded.
    """

    activations: Float16[Tensor, "sample layer d_model"]
    role: Int[Tensor, "sample"]
    question: Int[Tensor, "sample"] | None = None


@dataclass(frozen=True)
class PersonaVectors:
    """Mean activations of roles and of the default persona, float32.

    A role's vector is the mean over its rollouts (each rollout the mean over its span of tokens); roles weigh equally
    in everything made from them (Lu et al. 2026, section 2).

    Attributes:
        roles: names, in the order of `vectors`.
        layers: block index of each layer held.
        vectors: `[role, layer, d_model]`.
        default: the default persona, `[layer, d_model]`: mean over its conditions' rollouts.
        default_conditions: each default condition by itself, `[condition, layer, d_model]`.
        counts: rollouts behind each role.
        default_count: rollouts behind the default.
        resid_norms: mean norm of the residual stream per token, over the same tokens, `[layer]`; the unit of doses.
        conditions: under what conditions all this was measured.
        samples: single rollouts, if kept.
    """

    roles: tuple[str, ...]
    layers: tuple[int, ...]
    vectors: Float[Tensor, "role layer d_model"]
    default: Float[Tensor, "layer d_model"]
    default_conditions: Float[Tensor, "condition layer d_model"]
    counts: Int[Tensor, "role"]
    default_count: int
    resid_norms: Float[Tensor, "layer"]
    conditions: Conditions
    samples: Samples | None = None

    def __post_init__(self) -> None:
        if len(set(self.roles)) != len(self.roles):
            twice = sorted({r for r in self.roles if self.roles.count(r) > 1})
            raise GeometryError(f"Roles are given twice: {', '.join(twice)}. Names must be unique.")
        shape = (len(self.roles), len(self.layers))
        if self.vectors.shape[:2] != shape or self.default.shape != self.vectors.shape[1:]:
            raise GeometryError(
                f"vectors has shape {tuple(self.vectors.shape)} and default {tuple(self.default.shape)}, but there are "
                f"{shape[0]} roles and {shape[1]} layers."
            )
        for name, tensor in (("vectors", self.vectors), ("default", self.default)):
            if not torch.isfinite(tensor).all():
                at = (~torch.isfinite(tensor)).any(-1).nonzero()[0].tolist()
                who = self.roles[at[0]] if name == "vectors" else "default"
                raise GeometryError(f"The vector of {who} at layer {self.layers[at[-1]]} is not finite.")

    def __repr__(self) -> str:
        return (
            f"PersonaVectors({self.conditions.model!r}, roles={len(self.roles)}, layers={len(self.layers)}, "
            f"d_model={self.vectors.shape[-1]}, span={self.conditions.span!r}, "
            f"rollouts={int(self.counts.sum()) + self.default_count})"
        )

    @property
    def d_model(self) -> int:
        return self.vectors.shape[-1]

    @property
    def role_mean(self) -> Float[Tensor, "layer d_model"]:
        """Mean over roles, each role weighing the same."""
        return self.vectors.mean(0)

    def layer_index(self, layer: int | float) -> int:
        """Where a layer is held.

        Raises:
            LayerError: it is not.
        """
        return layer_index(self.layers, layer, self.conditions.n_layers)

    def role(self, name: str) -> Float[Tensor, "layer d_model"]:
        """One role's vectors (`"default"` for the default persona).

        Raises:
            UnknownNameError: with close matches.
        """
        if name == "default":
            return self.default
        if name not in self.roles:
            raise UnknownNameError("role", name, self.roles)
        return self.vectors[self.roles.index(name)]

    def select(
        self,
        roles: Iterable[str] | None = None,
        layers: Iterable[int | float] | None = None,
        *,
        min_count: int | None = None,
    ) -> "PersonaVectors":
        """Fewer roles or layers; `min_count` drops roles with fewer rollouts.

        Raises:
            UnknownNameError, LayerError: one of them is not held.
            GeometryError: no role is left.
        """
        names = tuple(self.roles) if roles is None else tuple(roles)
        for name in names:
            self.role(name)
        keep = [self.roles.index(n) for n in names]
        if min_count is not None:
            keep = [k for k in keep if int(self.counts[k]) >= min_count]
        if not keep:
            raise GeometryError(
                f"No role is left (min_count={min_count}); the largest count is {int(self.counts.max())}."
            )
        at = list(range(len(self.layers))) if layers is None else [self.layer_index(x) for x in layers]
        samples = None
        if self.samples is not None:
            place = torch.full((len(self.roles) + 1,), -2, dtype=torch.long)  # the last slot is the default's
            place[keep] = torch.arange(len(keep))
            place[-1] = -1
            role = place[self.samples.role]
            here = role > -2
            asked = self.samples.question
            samples = Samples(self.samples.activations[here][:, at], role[here], None if asked is None else asked[here])
        return replace(
            self,
            roles=tuple(self.roles[k] for k in keep),
            layers=tuple(self.layers[k] for k in at),
            vectors=self.vectors[keep][:, at],
            default=self.default[at],
            default_conditions=self.default_conditions[:, at],
            counts=self.counts[keep],
            resid_norms=self.resid_norms[at],
            samples=samples,
        )

    def adjust_questions(self) -> "PersonaVectors":
        """The same vectors, as if every role had been asked every question: for runs with `spread=True`.

        Fits `activation = role + question` by least squares over the single rollouts of all roles and the default, at
        each layer, with question effects that sum to zero, and takes each role's mean question effect out of its
        vector. Where all roles were asked the same questions the effects are the same for all and differences between
        roles do not change. `default_conditions` and `samples` stay as measured.

        Raises:
            GeometryError: the single rollouts or their questions are not all kept, or two sets of roles share no
                question, so that roles and questions cannot be told apart.
        """
        total = int(self.counts.sum()) + self.default_count
        if self.samples is None or self.samples.question is None or len(self.samples.role) != total:
            kept = 0 if self.samples is None or self.samples.question is None else len(self.samples.role)
            raise GeometryError(
                f"{kept} of {total} single rollouts are kept with their questions; all are needed to take question "
                f"effects out. Extract with keep_samples={total}."
            )
        role = self.samples.role % (len(self.roles) + 1)  # the default's -1 comes last
        weights = QuestionEffects.of(role, self.samples.question).weights(torch.eye(len(self.roles) + 1))
        adjusted = torch.stack([weights @ x.float() for x in self.samples.activations.unbind(1)], 1)
        return replace(self, vectors=adjusted[:-1], default=adjusted[-1])

    @property
    def spread(self) -> bool:
        """Whether roles were asked different questions, whose effects are taken out."""
        return SPREAD in self.conditions.design

    def axis(self, method: Literal["contrast", "pc1"] = "contrast") -> "AssistantAxis":
        """The Assistant Axis at every layer held: default minus the mean of the roles (`"contrast"`, the definition), or
        the first principal component on the side of the default (`"pc1"`)."""
        from assistant_axis.geometry.axis import AssistantAxis

        return AssistantAxis.from_vectors(self, method)

    def space(self, layer: int | float | None = None, *, zscore: bool = False) -> "PersonaSpace":
        """The persona space at one layer; default: the model's monitoring layer."""
        from assistant_axis.geometry.space import PersonaSpace

        return PersonaSpace.fit(self, self.monitoring_layer if layer is None else layer, zscore=zscore)

    def compare_published(self, name: str = "qwen3-32b", layer: int | float | None = None) -> "PublishedComparison":
        """How these roles' order agrees with that of a published model.

        See [`compare_published`][assistant_axis.compare_published].
        """
        from assistant_axis.geometry.published import compare_published

        return compare_published(self, name, layer)

    @property
    def monitoring_layer(self) -> int:
        """The model's monitoring layer, or the nearest one held."""
        from assistant_axis.models.profiles import profile_for

        wanted = profile_for(self.conditions.model, self.conditions.n_layers).layer
        return min(self.layers, key=lambda layer: abs(layer - wanted))

    def check(self, model: "HookedChatModel", *, force: bool = False) -> None:
        """Refuse a model that these vectors were not measured on. See `Conditions.check`."""
        self.conditions.check(model, KIND, force=force)

    def save(self, path: str | Path, *, samples: bool = True) -> Path:
        """Write safetensors with all conditions in the header, in one atomic step; returns the path written.

        Args:
            path: ends in `.safetensors`, or gets it.
            samples: write the single rollouts too (they are the larger part).
        """
        tensors = {
            "vectors": self.vectors,
            "default": self.default,
            "default_conditions": self.default_conditions,
            "counts": self.counts,
            "resid_norms": self.resid_norms,
        }
        if samples and self.samples is not None:
            kept = {n: getattr(self.samples, n) for n in ("activations", "role", "question")}
            tensors |= {f"samples.{n}": t for n, t in kept.items() if t is not None}
        return save_artefact(path, KIND, tensors, self.header())

    def header(self) -> dict[str, Any]:
        """What an artefact says beside its tensors: roles, layers, rollouts of the default, conditions."""
        return {
            "roles": list(self.roles),
            "layers": list(self.layers),
            "default_count": self.default_count,
            "conditions": self.conditions.as_dict(),
        }

    @classmethod
    def load(cls, path: str | Path) -> "PersonaVectors":
        """Read what `save` wrote.

        Raises:
            IntegrityError: truncated, tampered with, or foreign.
            ArtefactMismatchError: an artefact of another kind.
        """
        tensors, header = load_artefact(path, KIND)
        samples = None
        if "samples.activations" in tensors:
            samples = Samples(tensors["samples.activations"], tensors["samples.role"], tensors.get("samples.question"))
        return cls(
            roles=tuple(header["roles"]),
            layers=tuple(header["layers"]),
            vectors=tensors["vectors"],
            default=tensors["default"],
            default_conditions=tensors["default_conditions"],
            counts=tensors["counts"],
            default_count=header["default_count"],
            resid_norms=tensors["resid_norms"],
            conditions=Conditions.from_dict(header["conditions"]),
            samples=samples,
        )


def layer_index(held: Sequence[int], layer: int | float, n_layers: int) -> int:
    """Index into `held` of a layer given as index (negative from the model's end) or depth in (0, 1).

    Raises:
        LayerError: outside the model, or not held.
    """
    if isinstance(layer, float) and 0 < layer < 1:
        layer = min(int(layer * n_layers), n_layers - 1)
    index = int(layer)
    if index != layer or not -n_layers <= index < n_layers:
        raise LayerError(f"Layer {layer} is out of range: the model has layers 0 to {n_layers - 1}.")
    index %= n_layers
    if index not in held:
        raise LayerError(f"Layer {index} is not held; held: {_ranges(held)}.")
    return list(held).index(index)


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 1 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
