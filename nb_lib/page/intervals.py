"""Means over seeds with their uncertainty, and paired comparisons; `verdicts` says in words what they show."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from pandas import DataFrame, Series
from scipy import stats

Array = np.ndarray
LEVEL = 0.95


def summarize(frame: DataFrame, by: str | Sequence[str], value: str, *, level: float = LEVEL) -> DataFrame:
    """Mean of `value` in each group, with the half-width of its Student-t confidence interval.

    The table has the columns `by`, ``mean``, ``half`` (NaN for a single seed), ``std`` (over seeds) and ``n``.

    >>> found = summarize(DataFrame({"a": [0, 0, 0], "loss": [1.0, 2.0, 3.0]}), "a", "loss")
    >>> found["half"].round(3).tolist()  # 4.303 · 1/√3, with t of two degrees of freedom
    [2.484]
    """
    names = [by] if isinstance(by, str) else list(by)
    groups = frame.groupby(names)[value]
    table = groups.agg(mean="mean", std="std", n="count").reset_index()
    table["half"] = _half_width(table["std"], table["n"], level)
    columns = [*names, "mean", "half", "std", "n"]
    return table[columns]


def with_error(groups: Any, *, scale: float = 1, digits: int = 2) -> Series:
    """Mean and standard error of one column in each group, in words; a single value has no error.

    >>> rows = DataFrame({"a": [0, 0, 1], "accuracy": [0.5, 0.7, 0.9]})
    >>> with_error(rows.groupby("a")["accuracy"], scale=100).tolist()
    ['60.00 ± 10.00', '90.00']
    """
    means = scale * groups.mean()
    errors = scale * groups.sem()
    words = means.map(f"{{:.{digits}f}}".format)
    spread = errors.map(f" ± {{:.{digits}f}}".format)
    return words + spread.where(errors.notna(), "")


def paired(frame: DataFrame, by: str, value: str, *, baseline: float | str) -> DataFrame:
    """Difference of `value` to the group `baseline`, seed by seed: runs of one seed share their start.

    One row a group other than the baseline: `by`, ``difference`` (mean over seeds), ``half`` (of its interval of 95 %,
    widened for the number of comparisons: Bonferroni), ``std`` (of the difference), ``n`` and ``agree`` (seeds in
    which it has the sign of the mean).
    """
    by_seed = frame.pivot_table(index="seed", columns=by, values=value)
    others = by_seed.drop(columns=baseline)
    differences = others.sub(by_seed[baseline], axis=0)
    n = differences.count()
    mean = differences.mean()
    std = differences.std()
    comparisons = max(1, others.shape[1])
    level = 1 - (1 - LEVEL) / comparisons
    half = _half_width(std, n, level)
    same_sign = np.sign(differences) == np.sign(mean)
    columns = {
        "difference": mean,
        "half": half,
        "std": std,
        "n": n,
        "agree": same_sign.sum(),
    }
    table = DataFrame(columns)
    table = table.rename_axis(by)
    return table.reset_index()


def share(inside: Array) -> Array:
    """Share of those inside, and the ends of its Wilson confidence interval of 95 %, shape [3, T].

    `inside` [T, count] says whether each of `count` is inside, at each of T times.
    """
    count = inside.shape[1]
    hits_at_each_time = inside.sum(1).tolist()
    intervals = [_wilson(hits, count) for hits in hits_at_each_time]
    return np.transpose(intervals)


def resampled(statistic: Callable[[Array, Array], float], x: Array, y: Array) -> tuple[float, float]:
    """Interval of 95 % for a statistic of the pairs (x_i, y_i): its quantiles over 500 samples with repetition.

    Samples in which the statistic is NaN do not count.
    """
    count = len(x)
    rng = np.random.default_rng(0)
    picks = rng.integers(count, size=(500, count))
    found = []
    for pick in picks:
        value = statistic(x[pick], y[pick])
        found.append(value)
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _half_width(std: Series, n: Series, level: float) -> Series:
    """Of Student's interval for a mean; NaN for a single seed."""
    probability = (1 + level) / 2
    t = stats.t.ppf(probability, n - 1)  # of n − 1 degrees of freedom
    standard_error = std / np.sqrt(n)
    return t * standard_error


@cache  # a share over time takes few values
def _wilson(hits: int, count: int) -> tuple[float, float, float]:
    result = stats.binomtest(hits, count)
    interval = result.proportion_ci(LEVEL, method="wilson")
    return result.statistic, interval.low, interval.high
