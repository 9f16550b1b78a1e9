"""Means over seeds with their uncertainty, and paired comparisons: what may be said of a difference, and what not."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


def summarize(
    frame: pd.DataFrame, by: str | Sequence[str], value: str, *, level: float = 0.95
) -> pd.DataFrame:
    """Mean of `value` in each group, with the half-width of its Student-t confidence interval.

    Returns
    -------
    pandas.DataFrame
        The columns `by`, then ``mean``, ``half`` (NaN for a single seed), ``std`` (over seeds) and ``n``.
    """
    by = [by] if isinstance(by, str) else list(by)
    table = frame.groupby(by)[value].agg(mean="mean", std="std", n="count").reset_index()
    return table.assign(half=_half_width(table["std"], table["n"], level))[[*by, "mean", "half", "std", "n"]]


def paired(
    frame: pd.DataFrame, by: str, value: str, *, baseline: float | str, level: float = 0.95
) -> pd.DataFrame:
    """Difference of `value` to the group `baseline`, seed by seed: runs of one seed share their start.

    Returns
    -------
    pandas.DataFrame
        One row a group other than the baseline: `by`, ``difference`` (mean over seeds), ``half`` (of its confidence
        interval), ``n`` and ``clear``: whether the interval, widened for the number of comparisons (Bonferroni),
        excludes 0.
    """
    wide = frame.pivot_table(index="seed", columns=by, values=value)
    differences = wide.drop(columns=baseline).sub(wide[baseline], axis=0)
    n = differences.count()
    mean, std = differences.mean(), differences.std()
    strict = _half_width(std, n, 1 - (1 - level) / max(1, differences.shape[1]))
    table = pd.DataFrame(
        {"difference": mean, "half": _half_width(std, n, level), "n": n, "clear": mean.abs() > strict}
    )
    return table.rename_axis(by).reset_index()


def verdict(frame: pd.DataFrame, by: str, *, symbol: str, baseline: float) -> str:
    """Say in words how test accuracy and test loss differ from the group `baseline` (see `paired`), a line each.

    A difference that the seeds do not resolve is called that.
    """
    lines = []
    for value, name, unit, scale in (
        ("test_accuracy", "accuracy", "points", 100),
        ("test_loss", "loss", "nats", 1),
    ):
        for row in paired(frame, by, value, baseline=baseline).to_dict("records"):
            judged = "clear" if row["clear"] else "within the noise"
            size = f"{scale * row['difference']:+.3f} ± {scale * row['half']:.3f} {unit}"
            which = f"test {name}, {symbol} = {row[by]:g} against {baseline:g}"
            lines.append(f"{which}: {size}, {judged} ({row['n']} seeds)")
    return "\n".join(lines)


def _half_width(std: pd.Series, n: pd.Series, level: float) -> pd.Series:
    t = stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1))
    return (t * std / np.sqrt(n)).where(n > 1)
