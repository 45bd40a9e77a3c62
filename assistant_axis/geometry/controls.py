"""What a number must be compared with: intervals, permutation nulls, and directions that mean nothing."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from assistant_axis.errors import GeometryError, SettingError

Array = np.ndarray


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


def pearson_rows(x: Float[Array, "*batch pair"], y: Float[Array, "*batch pair"]) -> Float[Array, "*batch"]:
    """Pearson r along the last dimension; NaN where a side is constant (a degenerate resample)."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((x * y).sum(-1) / size, -1, 1)


def interval(values: Float[Array, "resample"]) -> Interval:
    """The central 95 % of resampled values; degenerate ones (NaN) are left out."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def _flat(x: Array) -> bool:
    return bool(np.ptp(x) <= 1e-9 * max(float(np.abs(x).max()), 1e-30))
