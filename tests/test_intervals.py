"""What the intervals of a page say (means and pairs: see test_results; sentences: see test_verdicts)."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib.page.intervals import resampled, share, summarize


def runs(**scores: list[float]) -> pd.DataFrame:
    """A table of two methods, whose scores stand in the order of their seeds."""
    rows = []
    for method, values in scores.items():
        rows += [{"method": method, "seed": seed, "loss": loss} for seed, loss in enumerate(values)]
    return pd.DataFrame(rows)


def test_values_that_do_not_differ_have_an_interval_of_no_width():
    table = summarize(runs(plain=[2.0, 2.0, 2.0]), "method", "loss")
    assert table[["mean", "half", "n"]].iloc[0].tolist() == [2, 0, 3]


def test_a_level_widens_the_interval_as_student_does():
    table = runs(plain=[1.0, 2.0, 4.0])
    halves = [summarize(table, "method", "loss", level=level)["half"][0] for level in (0.68, 0.95)]
    expected = [stats.t.ppf((1 + level) / 2, 2) for level in (0.68, 0.95)]
    assert halves[1] / halves[0] == pytest.approx(expected[1] / expected[0])


@pytest.mark.parametrize("hits", [0, 3, 20, 40])
def test_the_ends_of_a_share_are_the_true_shares_from_which_it_is_just_two_deviations_away(hits):
    inside = np.arange(40)[None] < hits
    found, low, high = share(inside)[:, 0]
    assert found == hits / 40
    for end in (low, high):
        deviation = math.sqrt(end * (1 - end) / 40)
        assert abs(found - end) == pytest.approx(stats.norm.ppf(0.975) * deviation, abs=1e-9)
    assert low <= found <= high


def test_shares_have_a_row_for_each_time():
    inside = np.array([[True, True], [True, False], [False, False]])
    assert share(inside).shape == (3, 3)
    assert share(inside)[0].tolist() == [1, 0.5, 0]


def test_resampling_finds_the_interval_of_a_mean():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=400), rng.normal(size=400)
    low, high = resampled(lambda x, y: np.mean(y - x), x, y)
    half = 1.96 * math.sqrt(2 / 400)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert low < np.mean(y - x) < high


def test_samples_without_a_value_do_not_count():
    def share_of_ones(x: np.ndarray, y: np.ndarray) -> float:
        return math.nan if x.min() == x.max() else 1.0

    assert resampled(share_of_ones, np.array([0, 1]), np.array([0, 1])) == (1, 1)
