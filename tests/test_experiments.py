"""What the chapters on the papers' experiments share."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib import papers
from nb_lib.lab.recorded import command
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.page.experiments import title, train_or_read, varieties
from nb_lib.page.methods import by_setting, gains, scores, show_methods
from nb_lib.page.profiled import flatter, profiled, rises, show_rises
from nb_lib.profiles import Profile, save_profiles

RUNS = [Run(train_size=100, batch_size=50, epochs=1, seed=seed) for seed in (1, 0)]
QUIET = {"device": "cpu", "progress": False}


def test_what_is_trained_is_read_again(tmp_path):
    trained = train_or_read(RUNS, tmp_path, train=True, **QUIET)
    assert [record.run for record in trained] == RUNS
    for store in (tmp_path, RunStore(tmp_path)):
        assert train_or_read(RUNS, store, train=False, **QUIET) == trained


def test_reading_trains_nothing_and_gives_no_other_runs(tmp_path):
    sweep(RUNS, tmp_path, **QUIET)
    other = Run(train_size=100, batch_size=50, epochs=2)
    found = train_or_read([RUNS[1], other], tmp_path, train=False, **QUIET)
    assert [record.run for record in found] == [RUNS[1]]
    assert train_or_read(RUNS, None, train=False, **QUIET) == []


@pytest.fixture(scope="module")
def records():
    """Of two runs of an experiment, as if one had converged and the other had not."""
    first, second = papers.grid("ne-fig2-f1", "tiny", seeds=1)[:2]
    [made] = sweep(RUNS[:1], **QUIET)
    return [replace(made, run=first, status="converged"), replace(made, run=second, status="finished")]


def test_a_variety_is_a_table_of_its_runs_and_is_announced(records, capsys):
    (table,) = varieties(records, "ne-fig2-f1", "tiny")
    said = capsys.readouterr().out
    assert len(table) == 2
    assert said.startswith(f"{title('ne-fig2-f1', 'tiny')}\n(")
    assert "2 runs" in said


def test_of_those_that_converged_it_says_how_many(records, capsys):
    (table,) = varieties(records, "ne-fig2-f1", "tiny", converged=True)
    assert table["status"].tolist() == ["converged"]
    assert "; 1 converged" in capsys.readouterr().out


def test_where_none_converged_there_is_no_table(records, capsys):
    assert list(varieties(records[1:], "ne-fig2-f1", "tiny", converged=True)) == []
    assert "; 0 converged" in capsys.readouterr().out


def test_what_is_not_run_yet_is_said_with_the_command_that_runs_it(records, capsys):
    assert list(varieties(records, "ne-fig1-c1", "small")) == []
    assert command("ne-fig1-c1", "small") in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- methods

ACCURACIES = {
    "baseline": [0.50, 0.52, 0.55],
    "SmoothOut, a = 0.0375": [0.56, 0.57, 0.61],
    "SmoothOut, a = 0.0001, not taken off": [0.51, 0.50, 0.56],
}
METHODS = dict(zip(ACCURACIES, papers.grid("smoothout-table4-resnet44", "small", seeds=1), strict=False))


def outcomes(seeds: int = 3, **setting: object) -> pd.DataFrame:
    """Results of three methods of Table IV, whose best accuracies are given and whose final ones are 0.1 below."""
    rows = []
    for name, values in ACCURACIES.items():
        for seed, accuracy in enumerate(values[:seeds]):
            run = METHODS[name].to_dict() | {"seed": seed, "epochs_limit": 120, "status": "finished"}
            rows.append(run | {"best_test_accuracy": accuracy, "test_accuracy": accuracy - 0.1} | setting)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smoothout-table2-cifar10", ["baseline", "SmoothOut, a = 0.0375", "AdaSmoothOut, a = 0.15"]),
        ("smoothout-table3-resnet44", ["SmoothOut, a = 0.0375", "SmoothOut, a = 0.0375, not taken off"]),
        (
            "smoothout-table5-resnet44",
            [
                "baseline",
                "SmoothOut, a = 0.0375",
                "SmoothOut, a = 0.025, normal noise",
                "AdaSmoothOut, a = 0.15",
                "AdaSmoothOut, a = 0.2, normal noise",
                "SmoothOut, a = 0.0001, not taken off",
                "SmoothOut, a = 0.00015, normal noise, not taken off",
            ],
        ),
    ],
)
def test_a_method_is_named_with_all_that_makes_it_another(name, words):
    runs = papers.grid(name, "small", seeds=1)
    assert [papers.method_in_words(run.to_dict()) for run in runs] == words


def test_scores_are_means_over_seeds_with_their_standard_errors_in_the_order_of_the_grid():
    ((setting, rows),) = by_setting(outcomes())
    table = scores(rows)
    assert setting == "B = 128, 120 epochs, sqrt scaling of the rate"
    assert list(table.index) == list(ACCURACIES)
    for name, values in ACCURACIES.items():
        percent = 100 * np.array(values)
        error = stats.sem(percent)
        found = table.loc[name]
        assert found["best"] == f"{percent.mean():.2f} ± {error:.2f}"
        assert found["final"] == f"{percent.mean() - 10:.2f} ± {error:.2f}"
        assert found["seeds"] == 3


def test_gains_are_paired_by_seed_with_students_interval():
    ((_, rows),) = by_setting(outcomes())
    smooth, left_in = gains(rows, "baseline").splitlines()
    for line, name in ((smooth, "SmoothOut, a = 0.0375"), (left_in, "SmoothOut, a = 0.0001, not taken off")):
        pair = stats.ttest_rel(ACCURACIES[name], ACCURACIES["baseline"])
        low, high = 100 * np.array(pair.confidence_interval(0.95))
        assert line.startswith(name)
        assert f" {(low + high) / 2:+.2f} ± {(high - low) / 2:.2f} points, " in line
        assert ("clear" in line) == (pair.pvalue < 0.05 / 2)  # of two comparisons
    assert ["clear" in smooth, "clear" in left_in] == [True, False]


def test_methods_are_compared_within_a_setting_only(capsys):
    longer = outcomes(epochs_limit=240, lr_scaling="none", batch_size=16)
    show_methods(pd.concat([outcomes(), longer]))
    said = capsys.readouterr().out
    headings = re.findall(r"^B = .*(?=: test accuracy)", said, flags=re.M)
    assert headings == ["B = 128, 120 epochs, sqrt scaling of the rate", "B = 16, 240 epochs"]
    assert said.count("points, clear (3 seeds)") == 2


def test_one_seed_has_no_interval_and_is_not_called_noise(capsys):
    show_methods(outcomes(seeds=1))
    said = capsys.readouterr().out
    assert "+6.00 points, without an interval (1 seed)" in said
    assert not re.search("nan|clear|within", said)


def test_what_diverged_is_counted_and_a_missing_baseline_is_said(capsys):
    results = outcomes()
    results.loc[results["a"] == 0.0001, "status"] = "diverged"
    show_methods(results)
    assert "3 of 9 runs diverged" in capsys.readouterr().out
    show_methods(results[results["a"] > 0])
    assert "baseline is not run yet" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- profiles

PLAIN, ADAPTIVE = papers.grid("smoothout-fig5-resnet44", "small", seeds=1)
X = np.linspace(-0.5, 0.5, 11)
STRENGTHS = np.linspace(0, 0.06, 4)


def parabolas(run: Run, curvature: float) -> Profile:
    """Losses of 1 + c x + h x²/2 on a line and 1 + h a under noise, twice as much on test data; accuracies of 0.5."""
    losses = {"line": (X, 1 + X + curvature / 2 * X**2), "noise": (STRENGTHS, 1 + curvature * STRENGTHS)}
    parts = []
    for curve, (x, loss) in losses.items():
        for factor, data in ((2, "test"), (1, "train")):
            columns = {"curve": curve, "data": data, "x": x, "loss": factor * loss, "loss_error": np.nan}
            parts.append(pd.DataFrame(columns | {"accuracy": 0.5, "accuracy_error": np.nan}))
    origin = {"dataset_variant": "made", "samples": 1000, "draws": 6, "device": "a device", "commit": "c0ffee"}
    return Profile(run, pd.concat(parts, ignore_index=True), origin)


@pytest.fixture
def file(tmp_path):
    """Profiles of three seeds of the baseline, and of AdaSmoothOut, which is flatter by 4, give or take."""
    profiles = []
    for seed, scatter in enumerate((-0.4, 0, 0.4)):
        profiles.append(parabolas(replace(PLAIN, seed=seed), 10 + seed))
        profiles.append(parabolas(replace(ADAPTIVE, seed=seed), 6 + seed + scatter))
    save_profiles(profiles, tmp_path / "profiles.json")
    return tmp_path / "profiles.json"


def test_profiles_of_an_experiment_are_announced_with_their_origin(file, capsys):
    (curves,) = profiled(file, "smoothout-fig5-resnet44", "small")
    assert set(curves["a"]) == {0, 0.15}
    said = capsys.readouterr().out
    assert said.startswith(title("smoothout-fig5-resnet44", "small"))
    in_one_line = " ".join(said.split())
    assert "made, float32, 6 networks profiled on a device, the first 1,000 images of each set, 6 draws" in in_one_line
    assert max(map(len, said.splitlines())) <= 84, "as wide as the column of a page"


@pytest.mark.parametrize("there", [True, False])
def test_profiles_that_are_not_there_are_said_with_the_commands_that_make_them(file, there, capsys):
    path = file if there else "../book/data/none.json"
    assert list(profiled(path, "smoothout-fig7-cifar100", "small")) == []
    said = capsys.readouterr().out
    assert f"{command('smoothout-fig7-cifar100', 'small')} --keep-weights\n" in said
    assert "python -m nb_lib profile smoothout-fig7-cifar100 --scale small --store" in said
    assert there or "--into book/data/none.json" in said


def test_the_rise_of_a_parabola_is_its_curvature(file):
    """On both sides of x = 0 together, where what is linear in x is gone; under noise it is h a here."""
    (curves,) = profiled(file, "smoothout-fig5-resnet44", "small")
    on_line = rises(curves, "line", 0.2)
    under_noise = rises(curves, "noise", 0.04)
    for factor, data in ((1, "train"), (2, "test")):
        for found, of_curvature in ((on_line, 0.2**2 / 2), (under_noise, 0.04)):
            rows = found[(found["data"] == data) & (found["method"] == "SGD")]
            assert rows["loss"].tolist() == pytest.approx([factor] * 3)
            expected = [factor * of_curvature * h for h in (10, 11, 12)]
            assert rows.sort_values("seed")["rise"].tolist() == pytest.approx(expected)


def test_which_is_flatter_is_said_from_the_numbers(file, capsys):
    (curves,) = profiled(file, "smoothout-fig5-resnet44", "small")
    show_rises(curves, "line", 0.2, by="method", baseline="SGD")
    said = capsys.readouterr().out
    low, high = stats.ttest_1samp([-4.4, -4, -3.6], 0).confidence_interval(0.95)
    half = 0.02 * (high - low) / 2
    assert f"rise of AdaSmoothOut less that of SGD: -0.080 ± {half:.3f} nats, clear (3 seeds)" in said
    assert said.count("AdaSmoothOut is flatter than SGD") == 2  # on training and on test data
    show_rises(curves, "line", 0.2, by="method", baseline="AdaSmoothOut")
    assert capsys.readouterr().out.count("AdaSmoothOut is flatter than SGD") == 2


def test_nothing_is_called_flatter_that_is_not_shown_to_be():
    rows = pd.DataFrame({"batch_size": [16, 128] * 3, "seed": [0, 0, 1, 1, 2, 2], "rise": [1, 2, 2, 1, 1, 1.5]})
    said = flatter(rows, "batch_size", 16)
    assert said.startswith("rise of B = 128 less that of B = 16: +0.167 ± ")
    assert said.endswith("which of B = 16 and B = 128 is flatter is not shown")
    assert "is not shown" in flatter(rows[:2], "batch_size", 16)  # of a single seed
    for baseline, few in ((16, rows[rows["batch_size"] == 16]), (16, rows[rows["batch_size"] == 128])):
        assert flatter(few, "batch_size", baseline) == "nothing to compare with yet"
