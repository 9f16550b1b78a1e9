"""From records to statements: intervals against scipy's tests, protocols that are runs, figures that show the data."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib import papers, published
from nb_lib.errors import InputError
from nb_lib.lab.runs import Run
from nb_lib.lab.store import curves, frame
from nb_lib.lab.sweeps import sweep
from nb_lib.noise_enhancement import effective_batch_size
from nb_lib.page import figures, run_figures
from nb_lib.page.intervals import paired, summarize


@pytest.fixture(scope="module")
def table():
    """Scores of 8 seeds under three values of alpha: one far better than 1, one the same but for noise."""
    rng = np.random.default_rng(1)
    start = rng.normal(0.9, 0.02, 8)
    common = {"a": 0.0, "adaptive": False, "batch_size": 10}
    rows = []
    for alpha, gain in ((1.0, 0.0), (1.5, 0.0), (2.0, 0.01)):
        for seed in range(8):
            score = {
                "test_accuracy": start[seed] + gain + rng.normal(0, 0.002),
                "test_loss": 1 - start[seed] - gain,
            }
            rows.append({"seed": seed, "alpha": alpha, **common, **score})
    return pd.DataFrame(rows)


def test_means_have_student_intervals(table):
    for row in summarize(table, "alpha", "test_accuracy").to_dict("records"):
        values = table[table.alpha == row["alpha"]].test_accuracy
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (row["mean"], row["half"]) == pytest.approx(((low + high) / 2, (high - low) / 2))
        assert (row["n"], row["std"]) == (8, pytest.approx(np.std(values, ddof=1)))


def test_one_seed_has_no_interval(table):
    assert summarize(table[table.seed == 0], "alpha", "test_accuracy").half.isna().all()


def test_differences_are_paired_by_seed(table):
    found = paired(table, "alpha", "test_accuracy", baseline=1.0).set_index("alpha")
    for alpha in (1.5, 2.0):
        a, b = (table[table.alpha == x].sort_values("seed").test_accuracy.to_numpy() for x in (alpha, 1.0))
        low, high = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / 2)  # of two comparisons
        assert found.difference[alpha] == pytest.approx((low + high) / 2)
        assert found.half[alpha] == pytest.approx((high - low) / 2)
        clear = abs(found.difference[alpha]) > found.half[alpha]
        assert clear == (stats.ttest_rel(a, b).pvalue < 0.05 / 2)
        assert found["std"][alpha] == pytest.approx(np.std(a - b, ddof=1))
        assert found["agree"][alpha] == np.sum((a - b) * (a - b).mean() > 0)
    assert (found.difference.abs() > found.half).tolist() == [False, True]


def test_seeds_missing_from_one_side_do_not_enter(table):
    lame = table[(table.alpha == 1.0) | (table.seed < 5)]
    assert paired(lame, "alpha", "test_accuracy", baseline=1.0).n.tolist() == [5, 5]


# ------------------------------------------------------------------------------------------------ papers' numbers


@pytest.mark.parametrize("network", papers.PROTOCOLS)
def test_a_protocol_is_a_run(network):
    run = Run(**papers.protocol(network, batch_size=100, epochs=7, dataset=None))
    assert (run.network, run.epochs, run.dataset) == (network, 7, papers.PROTOCOLS[network]["dataset"])


def test_an_unknown_network_has_no_protocol():
    with pytest.raises(InputError, match="did you mean 'ne-f1'"):
        papers.protocol("ne-f11")


def test_published_tables_are_the_papers():
    ne = published.table("ne-table2").set_index(["network", "alpha"])
    numbers = ["batch_size", "accuracy", "accuracy_std", "updates", "updates_std"]
    assert ne.loc[("ne-f1", 1.5), numbers].tolist() == [2000, 90.39, 0.17, 7914, 528]
    # at its optimum every C1 row is as noisy as a batch of 59 to 100, says the specification
    effective = [effective_batch_size(r.batch_size, a) for (n, a), r in ne.iterrows() if n == "ne-c1"]
    assert effective == pytest.approx([100, 80, 60, 58.8], abs=0.05)
    smooth = published.table("smoothout-table1").pivot_table(
        index=["network", "batch_size"], columns="a", values="accuracy"
    )
    gains = (smooth[0.0375] - smooth[0.0]).round(2)
    assert gains.to_dict() == {
        ("smoothout-c1", 256): 2.05,
        ("smoothout-c1", 5000): 3.04,
        ("smoothout-c3", 256): 3.18,
        ("smoothout-c3", 5000): 4.06,
        ("smoothout-f1", 256): 0.12,
        ("smoothout-f1", 6000): 0.41,
    }


# -------------------------------------------------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def records():
    runs = [
        Run(train_size=600, batch_size=b, alpha=a, epochs=3, seed=s) for b in (200, 600) for a in (1, 2) for s in (0, 1)
    ]
    return sweep(runs, progress=False)


def test_means_are_drawn_with_intervals_seeds_and_the_methods_colors(records):
    results = frame(records)
    titles = ("batch size B", "test accuracy, %")
    figure = run_figures.means(
        results, x="batch_size", y="test_accuracy", series="alpha", symbol="α", titles=titles, scale=100
    )
    plain, enhanced = figure.data
    assert (plain.name, enhanced.name) == ("α = 1 (2 seeds)", "α = 2 (2 seeds)")
    assert (plain.line.color, enhanced.line.color) == (figures.COLORS["SGD"], figures.COLORS["NE"])
    assert plain.line.dash != enhanced.line.dash
    assert plain.marker.symbol != enhanced.marker.symbol
    cell = results[(results.batch_size == 600) & (results.alpha == 2)].test_accuracy
    assert enhanced.y[list(enhanced.x).index(600)] == pytest.approx(100 * cell.mean())
    low, high = stats.ttest_1samp(100 * cell, 0).confidence_interval(0.95)
    assert enhanced.error_y.array[list(enhanced.x).index(600)] == pytest.approx((high - low) / 2)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == titles


def test_bands_run_from_the_lowest_to_the_highest_seed(records):
    table = curves(r for r in records if r.run.batch_size == 200)
    figure = run_figures.bands(
        table, x="epoch", y="loss", series="alpha", symbol="α", titles=("epoch", "loss"), log_y=True
    )
    band, mean = figure.data[:2]
    one = table[(table.alpha == 1) & (table.epoch == 2)].loss
    at = [y for x, y in zip(band.x, band.y, strict=True) if x == 2]
    assert sorted(at) == pytest.approx(sorted(one))
    assert mean.y[list(mean.x).index(2)] == pytest.approx(one.mean())
    assert figure.layout.yaxis.type == "log"


def test_smoothout_and_its_adaptive_form_are_two_methods_of_two_colors(records):
    rows = frame(records).assign(alpha=1.0)
    both = pd.concat([rows.assign(a=0.1), rows.assign(a=0.1, adaptive=True)])
    methods = [run_figures.method(row) for _, row in both.drop_duplicates("adaptive").iterrows()]
    assert methods == ["SmoothOut", "AdaSmoothOut"]
    assert figures.COLORS["SmoothOut"] != figures.COLORS["AdaSmoothOut"]
