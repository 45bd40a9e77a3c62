"""Comparison with published rankings of the 275 roles: figures that ship with the package."""

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assistant_axis.errors import GeometryError, PersonaFileError, UnknownNameError
from assistant_axis.geometry.controls import Array, Correlation, correlate
from assistant_axis.geometry.space import PersonaSpace
from assistant_axis.geometry.vectors import PersonaVectors

MIN_ROLES = 20
"""Fewer shared roles give no correlation worth the name."""


@dataclass(frozen=True)
class PublishedRanking:
    """Where the roles of a published model lie on its Assistant Axis; positive is Assistant-like.

    Attributes:
        name: what the ranking is called here (`"qwen3-32b"`).
        model: the model's hub id.
        source: where the figures come from.
        licence: of the figures.
        roles: names, in alphabetical order.
        projections: of each role vector on the axis, raw, `[role]`.
        default: the default persona's own projection.
    """

    name: str
    model: str
    source: str
    licence: str
    roles: tuple[str, ...]
    projections: Float[Array, "role"]
    default: float

    def ranking(self) -> list[tuple[str, float]]:
        """Roles with their projections, the most Assistant-like first."""
        order = np.argsort(-self.projections, kind="stable")
        return [(self.roles[k], float(self.projections[k])) for k in order]


@dataclass(frozen=True)
class PublishedComparison:
    """How a run orders the roles that a published model orders too.

    Attributes:
        published: name of the published ranking.
        model: the model that was run.
        layer: block index of the run.
        roles: the shared roles.
        missing: roles of the published ranking that the run lacks.
        scores: cosine scores of the run on PC1, `[role]`.
        projections: centred projections of the run on its axis, in activation units, `[role]`.
        figures: the published projections, `[role]`.
        pc1: correlation of `scores` with `figures`.
        axis: correlation of `projections` with `figures`.
        halves: the same two correlations on two disjoint halves of the roles; PC1 and the axis are fitted again from
            each half alone.
    """

    published: str
    model: str
    layer: int
    roles: tuple[str, ...]
    missing: tuple[str, ...]
    scores: Float[Array, "role"]
    projections: Float[Array, "role"]
    figures: Float[Array, "role"]
    pc1: Correlation
    axis: Correlation
    halves: tuple[tuple[Correlation, Correlation], tuple[Correlation, Correlation]]

    def __str__(self) -> str:
        lines = [
            f"{self.model}, layer {self.layer}, against {self.published}: {len(self.roles)} shared roles",
            f"  PC1 (cosine scores):       {self.pc1}",
            f"  axis (centred projection): {self.axis}",
        ]
        for k, (pc1, axis) in enumerate(self.halves, start=1):
            lines.append(
                f"  half {k} of the roles: Spearman PC1 {pc1.spearman:.3f}, axis {axis.spearman:.3f} (n = {pc1.n})"
            )
        return "\n".join(lines)

    def outliers(self, count: int = 8) -> list[tuple[str, float]]:
        """The roles whose rank differs most: (role, rank here − rank published), ranks as shares of the roles; above
        zero is more Assistant-like here."""
        from scipy.stats import rankdata

        gap = (rankdata(self.scores) - rankdata(self.figures)) / len(self.roles)
        return [(self.roles[k], float(gap[k])) for k in np.argsort(-np.abs(gap), kind="stable")[:count]]


def published_names() -> tuple[str, ...]:
    """The published rankings that ship with the package."""
    return tuple(sorted(p.name.removesuffix(".json") for p in _folder().iterdir() if p.name.endswith(".json")))


def published(name: str | Path) -> PublishedRanking:
    """A published ranking by its name, or from a JSON file of the same layout.

    Raises:
        UnknownNameError: with close matches.
        PersonaFileError: the file is malformed.
    """
    if isinstance(name, Path) or str(name).endswith(".json"):
        said, where = Path(name).read_text(encoding="utf-8"), Path(name).name
    else:
        if str(name).lower() not in published_names():
            raise UnknownNameError("published ranking", str(name), published_names())
        said, where = (_folder() / f"{name.lower()}.json").read_text(encoding="utf-8"), f"{name}.json"
    try:
        entry = json.loads(said)
        roles = sorted(entry["roles"])
        figures = np.array([float(entry["roles"][r]["projection"]) for r in roles])
        head = {k: str(entry[k]) for k in ("name", "model", "source", "licence")}
        return PublishedRanking(**head, roles=tuple(roles), projections=figures, default=float(entry["default"]))
    except (ValueError, KeyError, TypeError) as e:
        raise PersonaFileError(
            f"{where}: expected an object with name, model, source, licence, default, and roles with a projection "
            f"each ({type(e).__name__}: {e})."
        ) from e


def compare_published(
    run: PersonaVectors | PersonaSpace,
    name: str | Path = "qwen3-32b",
    layer: int | float | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> PublishedComparison:
    """How alike a run and a published model order the roles.

    >>> print(compare_published(vectors, "qwen3-32b"))   # doctest: +SKIP

    Args:
        run: persona vectors, or the persona space of one layer.
        name: a published ranking, see `published_names`.
        layer: index or depth, for persona vectors; default: the model's monitoring layer. Do not pick the layer by
            this comparison: it would flatter itself (see `recommend_layer`).
        resamples: bootstrap resamples over roles, and permutations.
        seed: of both, and of the halves.

    Raises:
        UnknownNameError: no such ranking.
        GeometryError: fewer than 20 shared roles.
        LayerError: the layer is not held.
    """
    ranking = published(name)
    shared = [r for r in ranking.roles if r in set(run.roles)]
    if len(shared) < MIN_ROLES:
        raise GeometryError(
            f"Only {len(shared)} of the run's {len(run.roles)} roles are in {ranking.name}; at least {MIN_ROLES} are needed."
        )
    space = run.space(layer) if isinstance(run, PersonaVectors) else run
    at = [space.roles.index(r) for r in shared]
    figures = ranking.projections[[ranking.roles.index(r) for r in shared]]
    scores = space.scores(1)[at].numpy().astype(np.float64)
    projections = ((space.centered * space.scale) @ space.axis)[at].numpy().astype(np.float64)
    shuffled = np.random.default_rng(seed).permutation(len(shared))
    halves = [
        _half(space, np.array(at)[rows], figures[rows], resamples, seed)
        for rows in (np.sort(shuffled[::2]), np.sort(shuffled[1::2]))
    ]
    known = set(shared)
    return PublishedComparison(
        published=ranking.name,
        model=space.conditions.model,
        layer=space.layer,
        roles=tuple(shared),
        missing=tuple(r for r in ranking.roles if r not in known),
        scores=scores,
        projections=projections,
        figures=figures,
        pc1=correlate(scores, figures, resamples=resamples, seed=seed, what="PC1 scores"),
        axis=correlate(projections, figures, resamples=resamples, seed=seed, what="axis projections"),
        halves=(halves[0], halves[1]),
    )


def _half(space: PersonaSpace, at: Array, figures: Array, resamples: int, seed: int) -> tuple[Correlation, Correlation]:
    """PC1 and axis fitted from some roles alone, and how they order these roles."""
    rows = space.centered[torch.from_numpy(at)]
    mean = rows.mean(0)
    centered, default = rows - mean, space.default - mean
    direction = torch.linalg.svd(centered, full_matrices=False)[2][0]
    direction = direction * (1 if float(direction @ default) >= 0 else -1)
    pc1 = (centered @ direction) / centered.norm(dim=1).clamp_min(1e-12)
    along = (centered * space.scale) @ (default * space.scale)
    return (
        correlate(_numbers(pc1), figures, resamples=resamples, seed=seed, what="PC1 scores"),
        correlate(_numbers(along), figures, resamples=resamples, seed=seed, what="axis projections"),
    )


def _numbers(x: Float[Tensor, "role"]) -> Float[Array, "role"]:
    return x.numpy().astype(np.float64)


def _folder() -> Traversable:
    return resources.files("assistant_axis.geometry") / "data"
