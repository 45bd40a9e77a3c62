"""Shares with intervals, and the same items with and without an intervention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from assistant_axis.errors import SettingError

Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Share:
    """A share of items with its 95 % Wilson score interval.

    >>> print(Share(8, 10))
    0.800 [0.490, 0.943]

    Attributes:
        count: items that have the property.
        n: all items.
    """

    count: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.n:
            raise SettingError(f"{self.count} of {self.n} is no share.")

    @property
    def value(self) -> float:
        """Count over n; NaN if there is no item."""
        return self.count / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson 1927; (0, 1) if there is no item."""
        if not self.n:
            return 0.0, 1.0
        found = stats.binomtest(self.count, self.n).proportion_ci(0.95, method="wilson")
        return float(found.low), float(found.high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3f} [{low:.3f}, {high:.3f}]"


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Attributes:
        value: mean or median.
        interval: 95 %, or a little more where order statistics leave no choice.
        n: values it was made from.
    """

    value: float
    interval: tuple[float, float]
    n: int


def mean_estimate(values: Sequence[float], *, within: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """A mean with its 95 % t interval.

    Args:
        values: independent of each other.
        within: bounds that the interval cannot pass.

    Raises:
        SettingError: no value.
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        raise SettingError("A mean needs at least one value.")
    middle, n = float(x.mean()), len(x)
    half = float(stats.t.ppf(0.975, n - 1)) * float(x.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(middle, (max(middle - half, within[0]), min(middle + half, within[1])), n)


def median_estimate(values: Sequence[float]) -> Estimate:
    """A median with an interval from order statistics, which assumes nothing of the distribution.

    The narrowest pair of values, as far from either end, that holds the median in at least 95 % of samples; below six values
    no pair does, and the range is given.

    >>> median_estimate([1.0, 1.2, 1.1, 1.3, 0.9, 1.0, 1.1, 1.2, 5.0]).interval
    (1.0, 1.3)

    Raises:
        SettingError: no value.
    """
    x, n = sorted(values), len(values)
    if not n:
        raise SettingError("A median needs at least one value.")
    skipped = 0
    while skipped + 1 < n / 2 and 1 - 2 * float(stats.binom.cdf(skipped + 1, n, 0.5)) >= 0.95:
        skipped += 1
    return Estimate(float(np.median(x)), (x[skipped], x[n - 1 - skipped]), n)


@dataclass(frozen=True)
class PairedChange:
    """What an intervention changed on the same items.

    Attributes:
        before, after: mean without and with it.
        change: after minus before.
        interval: 95 %, of the change.
        p: two-sided; exact McNemar test if every value is 0 or 1, paired t test otherwise.
        n: items.
        gained, lost: items whose value rose, and fell.
        binary: whether every value is 0 or 1.
    """

    before: float
    after: float
    change: float
    interval: tuple[float, float]
    p: float
    n: int
    gained: int
    lost: int
    binary: bool

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.before:.3f} → {self.after:.3f} ({self.change:+.3f} [{low:+.3f}, {high:+.3f}], p = {self.p:.2g})"


def paired_change(before: Sequence[float], after: Sequence[float]) -> PairedChange:
    """The change of a mean over the same items.

    Zeros and ones get Newcombe's paired score interval (1998, method 10: it stays honest where few or no items change) and
    the exact McNemar test; other values a t interval and t test of the differences.

    >>> print(paired_change([1, 1, 0, 1], [1, 0, 0, 1]))
    0.750 → 0.500 (-0.250 [-0.655, +0.320], p = 1)

    Args:
        before: one value an item.
        after: the same items in the same order.

    Raises:
        SettingError: no item, another number of items, or values that are not finite.
    """
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise SettingError(f"A paired change needs the same items twice; got {a.shape} and {b.shape} values.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise SettingError("A paired change needs finite values; some are NaN or infinite.")
    gained, lost, n = int((b > a).sum()), int((b < a).sum()), len(a)
    change = float(b.mean() - a.mean())
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    if binary:
        p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        interval = _newcombe(int(((a == 1) & (b == 1)).sum()), gained, lost, n)
    else:
        apart = b - a
        spread = float(apart.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        half = float(stats.t.ppf(0.975, n - 1)) * spread if n > 1 else math.nan
        interval = (change - half, change + half)
        p = float(2 * stats.t.sf(abs(change) / spread, n - 1)) if spread > 0 else (1.0 if change == 0 else 0.0)
    return PairedChange(float(a.mean()), float(b.mean()), change, interval, p, n, gained, lost, binary)


def _newcombe(both: int, gained: int, lost: int, n: int) -> tuple[float, float]:
    """Newcombe 1998 (Stat. Med. 17:2635), method 10, of after minus before."""
    neither = n - both - gained - lost
    after, before = Share(both + gained, n), Share(both + lost, n)
    (l1, u1), (l2, u2) = after.interval, before.interval
    product = (both + gained) * (neither + lost) * (both + lost) * (neither + gained)
    cross = both * neither - gained * lost
    if product == 0:
        phi = 0.0
    elif cross > 0:
        phi = max(cross - n / 2, 0.0) / math.sqrt(product)
    else:
        phi = cross / math.sqrt(product)
    p1, p2 = after.value, before.value
    low = math.sqrt(max((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2, 0.0))
    high = math.sqrt(max((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2, 0.0))
    return max(p1 - p2 - low, -1.0), min(p1 - p2 + high, 1.0)
