"""What the chapters on the papers' experiments share."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib import papers, published
from nb_lib.lab.recorded import command, commands
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.page.enhanced import show_beside_published, show_best, trends, two_ways
from nb_lib.page.experiments import against, title, train_or_read, varieties
from nb_lib.page.methods import by_setting, gains, scores, show_methods
from nb_lib.page.profiled import profiled, rises, show_rises
from nb_lib.page.smoothed import sharper, show_measures, show_table_1, table_1_in_words
from nb_lib.page.verdicts import NOTHING
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


@pytest.fixture
def page(monkeypatch):
    """What a page shows, in words, as a list that grows."""
    shown: list[str] = []
    monkeypatch.setattr("IPython.display.display", lambda sentence: shown.append(sentence.data))
    monkeypatch.setattr("nb_lib.page.tables.display", lambda forms, raw: shown.append(forms["text/plain"]))
    return shown


def test_a_variety_is_a_table_of_its_runs_and_is_announced(records, page):
    (table,) = varieties(records, "ne-fig2-f1", "tiny")
    assert len(table) == 2
    (said,) = page
    assert said.startswith(f"**{title('ne-fig2-f1', 'tiny')}** (")
    assert "2 runs" in said


def test_of_those_that_converged_it_says_how_many(records, page):
    (table,) = varieties(records, "ne-fig2-f1", "tiny", converged=True)
    assert table["status"].tolist() == ["converged"]
    assert page[0].endswith("; 1 converged.")


def test_where_none_converged_there_is_no_table(records, page):
    assert list(varieties(records[1:], "ne-fig2-f1", "tiny", converged=True)) == []
    assert page[0].endswith("; 0 converged.")


def test_what_is_not_run_yet_is_said_with_the_command_that_runs_it(records, page):
    assert list(varieties(records, "ne-fig1-c1", "small")) == []
    assert commands_in(page[0]) == [command("ne-fig1-c1", "small")]


def test_what_is_not_run_yet_on_imagenet_is_said_with_a_command_for_each_cell(page):
    assert list(varieties([], "smoothout-table2-alexnet", "full")) == []
    assert commands_in(page[0]) == commands("smoothout-table2-alexnet")
    assert len(commands_in(page[0])) == 4


def commands_in(said: str) -> list[str]:
    """The commands of a block of code, each as a shell would read it, in lines that a page shows whole."""
    (block,) = re.findall(r"\n\n```sh\n(.*?)\n```\n", said, flags=re.S)
    assert max(map(len, block.splitlines())) <= 76
    return [" ".join(line.split()) for line in block.replace("\\\n", "").splitlines()]


# -------------------------------------------------------------------------------------- NE's experiments in words


def enhanced_runs(scores: dict[tuple[float, int], list[float]], updates: dict[tuple[float, int], int]) -> pd.DataFrame:
    """Runs of (α, B), with test accuracies in the order of their seeds; updates scatter by the seed."""
    rows = []
    for (alpha, B), accuracies in scores.items():
        for seed, accuracy in enumerate(accuracies):
            taken = updates[alpha, B] + seed
            row = {"alpha": alpha, "batch_size": B, "seed": seed, "test_accuracy": accuracy, "updates": taken}
            rows.append(row | {"valid_accuracy": accuracy, "samples": taken * B * (1 + (alpha > 1))})
    return pd.DataFrame(rows)


SMALL, LARGE = [0.90, 0.91, 0.92, 0.93], [0.88, 0.892, 0.90, 0.911]
BETTER = [0.891, 0.90, 0.912, 0.92]  # than at large B, by 1.0 points, give or take; still below small B
SCORES = {(1.0, 10): SMALL, (1.5, 10): SMALL, (1.0, 100): LARGE, (1.5, 100): BETTER}
UPDATES = {(1.0, 10): 900, (1.5, 10): 1000, (1.0, 100): 300, (1.5, 100): 280}


def test_differences_are_taken_at_each_batch_size_from_runs_of_the_same_seed():
    results = enhanced_runs(SCORES, UPDATES)
    table = against(results[results["seed"] > 0], "test_accuracy", by="alpha", baseline=1.0, symbol="α")
    assert table["case"].cat.categories.tolist() == ["α = 1", "α = 1.5 at B = 10", "α = 1.5 at B = 100"]
    found = table[table["case"] == "α = 1.5 at B = 100"].set_index("seed")["test_accuracy"]
    assert found.to_dict() == pytest.approx(dict(zip((1, 2, 3), np.subtract(BETTER, LARGE)[1:], strict=True)))
    assert (table.loc[table["case"] == "α = 1", "test_accuracy"] == 0).all()


def test_trends_say_by_each_batch_size_what_costs_and_what_gains():
    cost, gain, gap, drop = trends(enhanced_runs(SCORES, UPDATES))
    assert "higher with α = 1.5 at B = 10 (+100 ± 0; 4 of 4 seeds)" in cost
    assert "**lower**, against the claim, with α = 1.5 at B = 100 (−20 ± 0; 4 of 4 seeds)" in cost
    assert "higher with α = 1.5 at B = 100 (+1.00 ± " in gain
    low, high = stats.ttest_1samp(100 * np.subtract(LARGE, SMALL), 0).confidence_interval(0.95)
    size = f"(−{-(low + high) / 2:.2f} ± {(high - low) / 2:.2f} points; 4 of 4 seeds)"
    assert gap == f"At α = 1 the test accuracy drops from B = 10 to B = 100 {size}."
    assert drop.startswith(
        "Drop of the test accuracy from B = 10 to B = 100, compared with α = 1 seed by seed: lower with"
    )


def test_a_gap_that_is_none_and_a_loss_are_said():
    turned = {**SCORES, (1.0, 10): LARGE, (1.0, 100): SMALL}
    _, gain, gap, drop = trends(enhanced_runs(turned, UPDATES))
    assert "does not drop but **rises** from B = 10 to B = 100 (+" in gap
    assert "lower with α = 1.5 at B = 100 (−" in gain
    assert "**higher**, against the claim, with α = 1.5" in drop
    (only,) = trends(enhanced_runs({(1.0, 10): SMALL}, UPDATES))
    assert only == NOTHING


def test_two_ways_compare_the_best_of_each():
    chosen, accuracy, updates, images = two_ways(enhanced_runs(SCORES, UPDATES))
    assert "the best of smaller batches at α = 1 is B = 10, and the best of larger α at B = 100 is α = 1.5." in chosen
    assert "compared with B = 10 seed by seed: **lower**, against the claim, with α = 1.5 (−" in accuracy
    assert "lower with α = 1.5 (−620 ± 0; 4 of 4 seeds)" in updates
    assert "higher with α = 1.5" in images
    assert two_ways(enhanced_runs({(1.0, 10): SMALL}, UPDATES)) == [NOTHING]


def test_the_best_are_shown_with_gains_that_are_paired(page):
    show_best(enhanced_runs(SCORES, UPDATES))
    table, said = page
    assert "10, test and validation" in table
    assert "the same with α = 1.5 (+0.00 ± 0.00 points; " in said
    assert "**higher**, against the claim, with α = 1.5 (+100 ± 0; 4 of 4 seeds)" in said


PUBLISHED = published.table("ne-table2").query("network == 'ne-f1'")
TABLE_2 = {(1.0, 900): [0.90, 0.901, 0.9015], (1.5, 2000): [0.902, 0.9033, 0.9035]}


def beside_the_paper(page, scores) -> str:
    show_beside_published(enhanced_runs(scores, {(1.0, 900): 10_900, (1.5, 2000): 8000}), PUBLISHED)
    return "\n".join(page)


def test_beside_the_paper_stands_the_gain_and_what_it_rests_on(page):
    said = beside_the_paper(page, {**TABLE_2, (1.5, 2000): [*TABLE_2[1.5, 2000], 0.904]})
    assert "Test accuracy, compared with α = 1 seed by seed: higher with α = 1.5 (+0.21 ± " in said
    assert "lower with α = 1.5 (−2,900 ± 0; 3 of 3 seeds)" in said
    assert "ours rests on 3 seeds that both have, of 3 with α = 1 and 4 with α = 1.5; with the spread" in said
    assert "α = 1, B = 900 (3 seeds)" in said
    assert "90.17 ± 0.04" in said


def test_a_record_that_reverses_the_gain_reverses_the_words(page):
    said = beside_the_paper(page, {(1.0, 900): TABLE_2[1.5, 2000], (1.5, 2000): TABLE_2[1.0, 900]})
    assert "**lower**, against the claim, with α = 1.5 (−0.21 ± " in said
    assert "higher with" not in said
    assert "**apart**" in said


def test_two_seeds_are_too_few_for_a_gain(page):
    said = beside_the_paper(page, {cell: scores[:2] for cell, scores in TABLE_2.items()})
    assert "too few seeds with α = 1.5" in said
    assert "too few seeds to say more" in said
    assert "ours rests on 2 seeds;" not in said
    assert "ours rests on 2 seeds." in said


# ------------------------------------------------------------------------------------- SmoothOut's Table I in words


def table_of(gain: float, factor: float, *, seeds: int = 3) -> pd.DataFrame:
    """Runs of Table I in which SmoothOut gains so much with the large batch, where sharpness is multiplied."""
    rows = []
    for seed in range(seeds):
        for B in (256, 6000):
            for a in (0.0, 0.0375):
                scatter = 1 + 0.01 * seed * (1 if a else -1)
                effect, ratio = (gain, factor) if a and B == 6000 else (0.0001 * (seed - 1), 1 + 0.1 * (seed - 1))
                sharp = (1 if B == 256 else 100) * (ratio if a else 1) * scatter
                accuracy = 0.98 + 0.001 * seed + (effect if a else 0) * scatter
                row = {"batch_size": B, "a": a, "seed": seed, "best_test_accuracy": accuracy + 0.002}
                rows.append(row | {"test_accuracy": accuracy, "slope": sharp})
    return pd.DataFrame(rows)


def test_table_1_says_gains_and_ratios_of_sharpness():
    large, small, plain = table_1_in_words(table_of(0.002, 0.1))
    assert large.startswith("**With the large batch, B = 6,000,** SmoothOut gains in best test accuracy (+0.20 ± ")
    assert "Its minima: less sharp by the slope s (9.8 times, " in large
    assert "no resolved gain or loss in best test accuracy" in small
    assert "not resolved by the slope s (" in small
    assert "Its minima: sharper by the slope s (100 times, 100 to 100; 3 of 3 seeds)" in plain


def test_ratios_are_geometric_means_with_students_interval_of_the_logarithms():
    rows = table_of(0.002, 0.1)
    rows = rows[rows["batch_size"] == 6000]
    wide = np.log(rows.pivot_table(index="seed", columns="a", values="slope"))
    low, high = stats.ttest_rel(wide[0.0], wide[0.0375]).confidence_interval(0.95)
    middle = np.exp((low + high) / 2)
    interval = f"{middle:.2g} times, {np.exp(low):.2g} to {np.exp(high):.2g}; 3 of 3 seeds"
    assert sharper(rows, "a", 0.0, "Minima") == f"Minima: less sharp by the slope s ({interval})."


def test_what_is_against_the_paper_is_said_plainly():
    large, *_ = table_1_in_words(table_of(-0.002, 5.0))
    assert "SmoothOut **loses**, against the claim, in best test accuracy (−0.20 ± " in large
    assert "**sharper**, against the claim, by the slope s (5.1 times, " in large


@pytest.mark.parametrize("seeds", [1, 2])
def test_of_few_seeds_table_1_says_so(seeds):
    for sentence in table_1_in_words(table_of(0.002, 0.1, seeds=seeds)):
        assert "too few seeds" in sentence
        assert not re.search(r"nan|gains in|less sharp|not resolved", sentence)


def test_table_1_of_one_batch_or_one_method_says_what_there_is():
    results = table_of(0.002, 0.1)
    (only,) = table_1_in_words(results[results["batch_size"] == 256])
    assert only.startswith("**With B = 256,** SmoothOut has")
    assert "nothing to compare" in table_1_in_words(results[results["a"] == 0])[0]
    without = table_1_in_words(results.drop(columns="slope"))
    assert not any("minima" in sentence for sentence in without)


def test_tables_of_table_1_have_a_row_a_cell_and_a_row_a_measure(page):
    results = table_of(0.002, 0.1)
    show_table_1(results)
    show_measures(results, ["slope"])
    accuracies, measures = page
    assert len(accuracies.splitlines()) == 2 + 4
    assert "B = 6,000, a = 0.0375 (3 seeds)" in measures


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
    said = gains(rows, "baseline")
    for name, verdict in (
        ("SmoothOut, a = 0.0375", "higher"),
        ("SmoothOut, a = 0.0001, not taken off", "not resolved"),
    ):
        pair = stats.ttest_rel(ACCURACIES[name], ACCURACIES["baseline"])
        low, high = 100 * np.array(pair.confidence_interval(1 - 0.05 / 2))  # of two comparisons
        size = f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f} points; "
        assert f"{verdict} with {name} ({size}" in said
    assert "**higher**, against the claim" in gains(rows, "baseline", -1)


def test_methods_are_compared_within_a_setting_only(page):
    longer = outcomes(epochs_limit=240, lr_scaling="none", batch_size=16)
    show_methods(pd.concat([outcomes(), longer]))
    headings = [text.partition(":")[0] for text in page if text.startswith("B = ")]
    assert headings == ["B = 128, 120 epochs, sqrt scaling of the rate", "B = 16, 240 epochs"]
    assert "\n".join(page).count("higher with SmoothOut, a = 0.0375 (") == 2


def test_one_seed_has_no_interval_and_no_verdict(page):
    show_methods(outcomes(seeds=1))
    said = "\n".join(page)
    assert "too few seeds with SmoothOut, a = 0.0375 (+6.00 points; 1 seed)" in said
    assert not re.search("nan|higher|resolved", said)


def test_what_diverged_is_counted_and_a_missing_baseline_is_said(page):
    results = outcomes()
    results.loc[results["a"] == 0.0001, "status"] = "diverged"
    show_methods(results)
    assert "3 of 9 runs diverged" in page[0]
    show_methods(results[results["a"] > 0])
    assert page[-1] == NOTHING


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


def test_profiles_of_an_experiment_are_announced_with_their_origin(file, page):
    (curves,) = profiled(file, "smoothout-fig5-resnet44", "small")
    assert set(curves["a"]) == {0, 0.15}
    (said,) = page
    assert said.startswith(f"**{title('smoothout-fig5-resnet44', 'small')}**")
    assert "made, float32, 6 networks profiled on a device, the first 1,000 images of each set, 6 draws" in said


@pytest.mark.parametrize("there", [True, False])
def test_profiles_that_are_not_there_are_said_with_the_commands_that_make_them(file, there, page):
    path = file if there else "../book/data/none.json"
    assert list(profiled(path, "smoothout-fig7-cifar100", "small")) == []
    train, measure = commands_in(page[0]) if not there else re.findall(r"(?m)^python .*", page[0])
    assert train.startswith("python -m nb_lib sweep smoothout-fig7-cifar100 --scale small")
    assert there or train == f"{command('smoothout-fig7-cifar100', 'small')} --keep-weights"
    assert measure.startswith("python -m nb_lib profile smoothout-fig7-cifar100 --scale small")
    assert there or measure.endswith("--store results/ --into book/data/none.json")


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


def test_how_rises_differ_is_said_from_the_numbers(file, page):
    (curves,) = profiled(file, "smoothout-fig5-resnet44", "small")
    show_rises(curves, "line", 0.2, by="method", baseline="SGD", expected=-1)
    _, of_training, said, of_test, of_test_too = page
    low, high = stats.ttest_1samp([-4.4, -4, -3.6], 0).confidence_interval(0.95)
    half = 0.02 * (high - low) / 2
    assert of_training.startswith("Training loss, nats")
    assert f"lower with AdaSmoothOut (−0.080 ± {half:.3f} nats; 3 of 3 seeds)" in said
    assert of_test.startswith("Test loss, nats")
    assert of_test_too.startswith("Rise of the test loss to x = ±0.2, compared with SGD seed by seed: lower")
    show_rises(curves, "line", 0.2, by="method", baseline="AdaSmoothOut", expected=-1)
    assert "**higher**, against the claim, with SGD" in page[-1]


def test_rises_by_batch_size_name_it(file, page):
    (curves,) = profiled(file, "smoothout-fig5-resnet44", "small")
    small = curves[curves["a"] == 0].assign(batch_size=16)
    large = small.assign(batch_size=128, loss=small["loss"] + 50 * small["x"] ** 2)
    show_rises(pd.concat([small, large]), "noise", 0.04, by="batch_size", baseline=16, expected=1)
    assert "compared with B = 16 seed by seed: higher with B = 128 (+0.080 ± 0.000 nats; 3 of 3 seeds)" in page[2]
