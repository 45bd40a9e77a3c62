"""Shares, intervals and paired changes against SciPy and published figures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from assistant_axis.errors import SettingError
from assistant_axis.evals.paired import Share, mean_estimate, median_estimate, paired_change


def test_wilson_by_hand():
    z, n, k = stats.norm.ppf(0.975), 40, 7
    p = k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    assert Share(k, n).interval == pytest.approx(expected, abs=1e-9)
    assert Share(0, 0).interval == (0.0, 1.0)
    with pytest.raises(SettingError, match="3 of 2"):
        Share(3, 2)


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    before = [1.0] * both + [1.0] * lost + [0.0] * gained + [0.0] * neither
    after = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return before, after


# Newcombe 1998 (Stat. Med. 17:2635), table III, method 10: (e, f, g, h) -> interval of (f - g) / n
@pytest.mark.parametrize(
    ("cells", "interval"),
    [((36, 12, 2, 0), (0.0569, 0.3404)), ((20, 12, 2, 16), (0.0562, 0.3292)), ((0, 0, 0, 50), (-0.0714, 0.0714))],
)
def test_paired_interval_as_published(cells, interval):
    both, f, g, neither = cells
    before, after = pairs(both, g, f, neither)  # the first condition of the paper is `after` here
    assert paired_change(before, after).interval == pytest.approx(interval, abs=1.5e-4)


def test_mcnemar_is_the_binomial_of_discordant_pairs():
    found = paired_change(*pairs(10, 8, 1, 5))
    assert (found.lost, found.gained, found.binary) == (8, 1, True)
    assert found.p == pytest.approx(2 * sum(math.comb(9, k) for k in (0, 1)) / 2**9)


def test_other_values_get_a_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=30), rng.normal(0.4, size=30)
    found, expected = paired_change(a.tolist(), b.tolist()), stats.ttest_rel(b, a)
    assert found.p == pytest.approx(float(expected.pvalue))
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert paired_change([0.5, 0.7], [0.5, 0.7]).p == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_interval_holds_the_change_and_turns_with_it(items):
    before, after = [float(a) for a, _ in items], [float(b) for _, b in items]
    there, back = paired_change(before, after), paired_change(after, before)
    assert there.interval[0] - 1e-9 <= there.change <= there.interval[1] + 1e-9
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-9)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0]), ([math.nan], [1.0])])
def test_what_is_no_pair_is_refused(a, b):
    with pytest.raises(SettingError):
        paired_change(a, b)


@pytest.mark.parametrize(("n", "place"), [(3, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_the_interval_of_a_median_covers_by_the_binomial(n, place):
    values = [float(k) for k in range(n)]
    found = median_estimate(values[::-1])
    assert (found.value, found.n) == (np.median(values), n)
    assert found.interval == (values[place], values[n - 1 - place])

    def covers(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, j) for j in range(k + 1)) / 2**n

    assert n < 6 or covers(place) >= 0.95 > covers(place + 1)


def test_the_interval_of_a_mean():
    x = [0.2, 0.4, 0.9, 0.7]
    found = mean_estimate(x, within=(0.0, 0.8))
    low, high = stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))
    assert high > 0.8
    assert found.interval == pytest.approx((low, 0.8))
    assert mean_estimate([0.5], within=(0.0, 1.0)).interval == (0.0, 1.0)
    for estimate in (mean_estimate, median_estimate):
        with pytest.raises(SettingError):
            estimate([])
