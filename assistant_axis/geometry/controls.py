"""What a number must be compared with: intervals, permutation nulls, and directions that mean nothing."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from assistant_axis.errors import GeometryError, SettingError
from assistant_axis.geometry.axis import AssistantAxis
from assistant_axis.geometry.vectors import PersonaVectors

Array = np.ndarray
CONTROLS = ("random", "shuffled", "in_span")
"""Kinds of direction that mean nothing, each harder to tell from the axis than the one before."""


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile-bootstrap interval."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Correlation:
    """Two correlations of the same pairs, each with its bootstrap interval over the pairs.

    Attributes:
        pearson, spearman: the coefficients.
        pearson_interval, spearman_interval: 95 %, pairs drawn with replacement.
        p: share of permutations of one side whose |Pearson r| is at least as large, `(k + 1) / (permutations + 1)`.
        n: number of pairs.
    """

    pearson: float
    spearman: float
    pearson_interval: Interval
    spearman_interval: Interval
    p: float
    n: int

    def __str__(self) -> str:
        return (
            f"Pearson {self.pearson:.3f} {self.pearson_interval}, Spearman {self.spearman:.3f} "
            f"{self.spearman_interval}, permutation p {self.p:.2g}, n = {self.n}"
        )


def correlate(
    x: Float[Array, "pair"],
    y: Float[Array, "pair"],
    *,
    resamples: int = 2000,
    seed: int = 0,
    what: str = "the scores",
) -> Correlation:
    """Pearson and Spearman correlation with bootstrap intervals over pairs and a permutation p-value.

    >>> import numpy as np
    >>> x = np.arange(30.0)
    >>> correlate(x, -2 * x).pearson
    -1.0

    Args:
        x: one value a pair.
        y: as many.
        resamples: bootstrap resamples, and as many permutations.
        seed: of both.
        what: names the values in errors.

    Raises:
        GeometryError: fewer than three pairs, a constant side, or values that are not finite.
        SettingError: no resamples.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3:
        raise GeometryError(f"A correlation needs two lists of at least three values; got {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise GeometryError(f"A correlation of {what} needs finite values; some are NaN or infinite.")
    if _flat(x) or _flat(y):
        raise GeometryError(f"A correlation of {what} is not defined: one side has the same value for every role.")
    if resamples < 1:
        raise SettingError(f"resamples={resamples}: at least one is needed.")
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(x), (resamples, len(x)))
    a, b = x[rows], y[rows]
    pearson, spearman = pearson_rows(x, y), pearson_rows(rankdata(x), rankdata(y))
    drawn = pearson_rows(a, b)
    drawn_ranks = pearson_rows(rankdata(a, axis=1), rankdata(b, axis=1))
    null = pearson_rows(x[None], rng.permuted(np.broadcast_to(y, (resamples, len(y))), axis=1))
    p = (int((np.abs(null) >= abs(float(pearson)) - 1e-12).sum()) + 1) / (resamples + 1)
    return Correlation(float(pearson), float(spearman), interval(drawn), interval(drawn_ranks), p, len(x))


def pearson_rows(x: Float[Array, "... pair"], y: Float[Array, "... pair"]) -> Float[Array, "..."]:
    """Pearson r along the last dimension; NaN where a side is constant (a degenerate resample)."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip((x * y).sum(-1) / size, -1, 1))


def interval(values: Float[Array, "resample"]) -> Interval:
    """The central 95 % of resampled values; degenerate ones (NaN) are left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _flat(x: Array) -> bool:
    return bool(np.ptp(x) <= 1e-9 * max(float(np.abs(x).max()), 1e-30))


# -- directions that mean nothing --------------------------------------------------------------------------------------


def control_axis(vectors: PersonaVectors, kind: str = "random", *, seed: int = 0) -> AssistantAxis:
    """A direction with the axis' norm at every layer that means nothing, ready to steer and to project with.

    Args:
        vectors: what the axis was made from.
        kind: `"random"`, isotropic; `"shuffled"`, the axis again after the labels *default* and *role* were dealt out
            at random among the rollouts (among role means and default conditions, if no rollouts are kept);
            `"in_span"`, a random mixture of the centred role vectors, so that it lies where personas differ.
        seed: of the draw; one draw for all layers.

    Returns:
        An `AssistantAxis` whose `method` is `"control: …"`, with quantiles of its own. It has no sign to speak of.

    Raises:
        SettingError: an unknown kind.
    """
    axis = vectors.axis()
    mixed = _draw(vectors, kind, 1, seed)[0]
    turned = mixed / mixed.norm(dim=-1, keepdim=True).clamp_min(1e-30) * axis.norms[:, None]
    unit = turned / turned.norm(dim=-1, keepdim=True)
    grid = torch.linspace(0, 1, 101)
    if vectors.samples is not None:
        along = torch.stack([vectors.samples.activations[:, k].float() @ u for k, u in enumerate(unit)], dim=1)
        own = along[vectors.samples.role < 0]
    else:
        along = torch.einsum("rld,ld->rl", vectors.vectors, unit)
        own = torch.einsum("cld,ld->cl", vectors.default_conditions, unit)
    return replace(
        axis,
        vectors=turned,
        quantiles=torch.quantile(along, grid, dim=0),
        default_quantiles=torch.quantile(own, grid, dim=0),
        method=f"control: {kind}",
    )


@dataclass(frozen=True)
class ControlTable:
    """The axis beside directions that mean nothing, at one layer.

    Attributes:
        layer: block index.
        axis_pc1: |cos(axis, PC1)|.
        axis_gap: distance of the default from the mean role along the axis, in standard deviations of the roles.
        kinds: of control.
        pc1: |cos| with PC1 of every draw, by kind, `[kind, draw]`.
        gap: the same distance along every draw, absolute, `[kind, draw]`.
    """

    layer: int
    axis_pc1: float
    axis_gap: float
    kinds: tuple[str, ...]
    pc1: Float[Array, "kind draw"]
    gap: Float[Array, "kind draw"]

    def __str__(self) -> str:
        lines = [
            f"layer {self.layer}        |cos| with PC1          default from the mean role (SD)",
            f"{'axis':12}{self.axis_pc1:10.3f}{'':14}{self.axis_gap:10.2f}",
        ]
        for k, kind in enumerate(self.kinds):
            (p, q), cosine, gap = self.p(kind), np.median(self.pc1[k]), np.median(self.gap[k])
            lines.append(f"{kind:12}{cosine:10.3f}  (p {p:6.3f})  {gap:10.2f}  (p {q:6.3f})")
        return "\n".join([*lines, f"Medians of {self.pc1.shape[1]} directions of each kind."])

    def p(self, kind: str) -> tuple[float, float]:
        """How often a control does at least as well as the axis: by |cos| with PC1, and by the default's distance."""
        k = self.kinds.index(kind)
        draws = self.pc1.shape[1]
        return (
            (int((self.pc1[k] >= self.axis_pc1).sum()) + 1) / (draws + 1),
            (int((self.gap[k] >= self.axis_gap).sum()) + 1) / (draws + 1),
        )


def controls(
    vectors: PersonaVectors, layer: int | float | None = None, *, draws: int = 200, seed: int = 0
) -> ControlTable:
    """|cos| with PC1 and the default's distance, for the axis and for `draws` controls of each kind.

    Raises:
        LayerError: the layer is not held.
    """
    k = vectors.layer_index(vectors.monitoring_layer if layer is None else layer)
    one = vectors.select(layers=[vectors.layers[k]])
    space = one.space(vectors.layers[k])
    pc1, centered, default = space.components[0], space.centered, space.default

    def gap(u: Float[Tensor, "draw d_model"]) -> Float[Tensor, "draw"]:
        return (u @ default).abs() / (centered @ u.T).std(0, correction=0).clamp_min(1e-30)

    pcs, gaps = [], []
    for kind in CONTROLS:
        drawn = _draw(one, kind, draws, seed)[:, 0]
        drawn = drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        pcs.append((drawn @ pc1).abs().double().numpy())
        gaps.append(gap(drawn).double().numpy())
    return ControlTable(
        layer=vectors.layers[k],
        axis_pc1=space.axis_cosine(),
        axis_gap=float(gap(space.axis[None])[0]),
        kinds=CONTROLS,
        pc1=np.stack(pcs),
        gap=np.stack(gaps),
    )


def _draw(vectors: PersonaVectors, kind: str, draws: int, seed: int) -> Float[Tensor, "draw layer d_model"]:
    """Directions of one kind, of any length."""
    rng = np.random.default_rng(seed)
    roles, layers, width = vectors.vectors.shape
    if kind == "random":
        return torch.from_numpy(rng.standard_normal((draws, layers, width))).float()
    if kind == "in_span":
        mix = torch.from_numpy(rng.standard_normal((draws, roles))).float()
        return torch.stack([mix @ (x - x.mean(0)) for x in vectors.vectors.unbind(1)], dim=1)
    if kind != "shuffled":
        raise SettingError(f"kind={kind!r} is not known; use one of {', '.join(CONTROLS)}.")
    if vectors.samples is not None:
        pool, own = vectors.samples.activations, int((vectors.samples.role < 0).sum())
    else:
        pool, own = torch.cat([vectors.default_conditions, vectors.vectors]), len(vectors.default_conditions)
    own = max(own, 1)
    weights = np.full((draws, len(pool)), -1.0 / (len(pool) - own))
    for row in weights:
        row[rng.choice(len(pool), own, replace=False)] = 1.0 / own
    mix = torch.from_numpy(weights).float()
    return torch.stack([mix @ x.float() for x in pool.unbind(1)], dim=1)
