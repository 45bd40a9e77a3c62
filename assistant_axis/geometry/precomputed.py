"""Persona vectors of the embedded models that ship with the package, so that work can start at once."""

from dataclasses import replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

import torch

from assistant_axis.activations.store import Conditions, load_artefact, save_artefact
from assistant_axis.errors import GeometryError, UnknownNameError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.vectors import PersonaVectors

KIND = "precomputed persona vectors"
Method = Literal["contrast", "pc1"]
METHODS: tuple[Method, ...] = ("contrast", "pc1")


def precomputed_names() -> tuple[str, ...]:
    """The models whose persona vectors ship with the package."""
    if not _folder().is_dir():
        return ()
    return tuple(sorted(p.name.removesuffix(".safetensors") for p in _folder().iterdir() if _is_ours(p)))


def load_precomputed(name: str = "smollm2-135m-instruct") -> PersonaVectors:
    """Persona vectors that ship with the package: no model, no waiting.

    `smollm2-135m-instruct` was measured over its own answers to 275 roles (16 answers of at most 64 tokens a role, 240 of
    the default persona); `gemma-3-270m`, a base model, read those same answers. `conditions.design` says how, and
    `assistant-axis precompute` makes both again. Single rollouts are not included, and only some layers are:
    `layers` says which.

    >>> from assistant_axis import load_precomputed
    >>> vectors = load_precomputed("smollm2-135m-instruct")
    >>> len(vectors.roles), vectors.d_model, vectors.conditions.span
    (275, 576, 'response')

    Args:
        name: one of `precomputed_names()`.

    Returns:
        Vectors in float32. They are stored as half-precision differences from the default: within 0.1 % of what was
        measured, relative to the distance from the default.

    Raises:
        UnknownNameError: with close matches.
    """
    return _load(name)[0]


def load_precomputed_axis(name: str = "smollm2-135m-instruct", method: Method = "contrast") -> AssistantAxis:
    """The Assistant Axis of vectors that ship with the package, with percentiles over all single rollouts.

    >>> from assistant_axis import load_precomputed_axis
    >>> load_precomputed_axis().calibration
    'rollouts'

    Args:
        name: one of `precomputed_names()`.
        method: as in [`AssistantAxis.from_vectors`][assistant_axis.AssistantAxis.from_vectors].

    Raises:
        UnknownNameError: with close matches.
        SettingError: an unknown method.
    """
    vectors, tensors = _load(name)
    axis = AssistantAxis.from_vectors(vectors, method)
    return replace(
        axis,
        quantiles=tensors[f"quantiles.{method}"],
        default_quantiles=tensors[f"default_quantiles.{method}"],
        calibration="rollouts",
    )


def save_compact(vectors: PersonaVectors, path: str | Path) -> Path:
    """Write vectors in half the space and without single rollouts, whose percentiles are kept for both axes.

    Roles are stored as float16 differences from the default, which itself stays float32: a model whose residual stream
    has coordinates in the ten thousands would lose its roles in float16 otherwise.

    Raises:
        GeometryError: no single rollouts to take percentiles over, or differences beyond half precision.
    """
    if vectors.samples is None:
        raise GeometryError("Percentiles are taken over single rollouts, and these vectors keep none.")
    tensors = {
        "offsets": (vectors.vectors - vectors.default).half(),
        "condition_offsets": (vectors.default_conditions - vectors.default).half(),
        "default": vectors.default,
        "counts": vectors.counts,
        "resid_norms": vectors.resid_norms,
    }
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise GeometryError("Some differences from the default are beyond half precision (65,504).")
    for method in METHODS:
        axis = AssistantAxis.from_vectors(vectors, method)
        tensors |= {f"quantiles.{method}": axis.quantiles, f"default_quantiles.{method}": axis.default_quantiles}
    return save_artefact(path, KIND, tensors, vectors.header())


def load_compact(path: str | Path) -> tuple[PersonaVectors, dict[str, torch.Tensor]]:
    """Read what `save_compact` wrote: the vectors, and all tensors of the file.

    Raises:
        IntegrityError: truncated, tampered with, or foreign.
        ArtefactMismatchError: an artefact of another kind.
    """
    tensors, header = load_artefact(path, KIND)
    default = tensors["default"]
    vectors = PersonaVectors(
        roles=tuple(header["roles"]),
        layers=tuple(header["layers"]),
        vectors=tensors["offsets"].float() + default,
        default=default,
        default_conditions=tensors["condition_offsets"].float() + default,
        counts=tensors["counts"],
        default_count=header["default_count"],
        resid_norms=tensors["resid_norms"],
        conditions=Conditions.from_dict(header["conditions"]),
    )
    return vectors, tensors


def _load(name: str) -> tuple[PersonaVectors, dict[str, torch.Tensor]]:
    if name not in precomputed_names():
        raise UnknownNameError(
            "precomputed model", name, precomputed_names(), "Measure it yourself: assistant-axis extract --model."
        )
    with resources.as_file(_folder() / f"{name}.safetensors") as path:
        return load_compact(path)


def _folder() -> Traversable:
    return resources.files("assistant_axis.geometry") / "data" / "precomputed"


def _is_ours(entry: Traversable) -> bool:
    return entry.name.endswith(".safetensors")
