"""Ours beside the papers': the right cells, means, paired gains and distances, and what is missing."""

import math

import numpy as np
import pytest

from nb_lib.compare import best_of, compare, readable, styled
from nb_lib.errors import InputError
from nb_lib.papers import grid
from nb_lib.runs import Record, Run, frame


def record(run: Run, accuracy: float, *, best: float | None = None, valid: float | None = None) -> Record:
    return Record(
        run=run, status="converged", test_accuracy=accuracy, best_test_accuracy=best or accuracy, valid_accuracy=valid,
        train_accuracy=1.0, train_loss=0.0, test_loss=0.3, epochs=7, updates=70, samples=700, wall_time=1.0, curve=[],
        provenance={"dataset_variant": "a copy", "device": "a device", "commit": "c"},
    )  # fmt: skip


def noisy(runs, mean):
    """Records whose accuracy is `mean(run)` and a part that runs of one seed share."""
    shared = np.random.default_rng(0).normal(0, 0.01, 20)
    return [record(run, mean(run) + shared[run.seed], valid=mean(run)) for run in runs]


def test_full_cells_are_the_published_ones_and_gains_are_paired():
    own = {(run.alpha, run.seed): 0.001 * np.sin(7 * run.seed + run.alpha) for run in grid("ne-table2-f1", seeds=4)}
    records = noisy(grid("ne-table2-f1", seeds=4), lambda r: 0.90 + 0.01 * (r.alpha > 1) + own[r.alpha, r.seed])
    other = noisy(grid("ne-fig2-f1", seeds=1), lambda r: 0.99)  # the other batch sizes of the figure: not this cell
    records = [r for r in other if r.run.batch_size not in (900, 2000)] + records
    plain, enhanced = compare("ne-table2", records).to_dict("records")[:2]
    assert (plain["scale"], plain["n"], plain["B"], plain["ours_on"]) == ("full", 4, 900, "ne-f1")
    assert (plain["published"], plain["published_se"]) == (90.17, pytest.approx(0.14 / math.sqrt(10)))
    ours = {alpha: np.array([100 * r.test_accuracy for r in records if (r.run.alpha, r.run.batch_size) == (alpha, b)])
            for alpha, b in ((1, 900), (1.5, 2000))}  # fmt: skip
    assert plain["accuracy"] == pytest.approx(ours[1].mean())
    assert plain["se"] == pytest.approx(ours[1].std(ddof=1) / 2)
    gain = ours[1.5] - ours[1]
    assert enhanced["gain"] == pytest.approx(gain.mean())
    assert enhanced["gain_se"] == pytest.approx(gain.std(ddof=1) / 2)
    assert enhanced["published_gain"] == pytest.approx(0.22)
    assert enhanced["published_gain_se"] == pytest.approx(math.hypot(0.14, 0.17) / math.sqrt(10))
    spread = math.hypot(enhanced["gain_se"], enhanced["published_gain_se"])
    assert enhanced["z"] == pytest.approx((gain.mean() - 0.22) / spread)
    assert math.isnan(plain["gain"])
    assert (plain["missing"], enhanced["missing"]) == ("", "")


def test_what_is_not_run_names_its_command_and_what_cannot_be_its_lack():
    table = compare("smoothout-table3", [])
    assert (table["n"] == 0).all()
    commands = table.set_index("network")["missing"]
    assert set(commands["smoothout-c1"]) == {"python -m nb_lib sweep smoothout-table3-c1 --store results/ --download"}
    assert set(commands["resnet44"]) == {"resnet44 is not in the library"}
    assert compare("smoothout-table5", [])["missing"].str.contains("smoothout-table5-c1").all()


def test_the_largest_scale_there_is_wins_and_any_may_be_asked_for():
    tiny = noisy(grid("ne-table2-f1", "tiny"), lambda r: 0.5)
    full = noisy(grid("ne-table2-f1", seeds=2), lambda r: 0.9)
    both = compare("ne-table2", tiny + full).set_index(["network", "method"])
    assert both["scale"].tolist()[:2] == ["full", "full"]
    assert both["scale"].tolist()[2:4] == ["tiny", "tiny"]  # the stand-in on digits is every network's
    assert compare("ne-table2", tiny + full, scale="tiny")["scale"].tolist()[:2] == ["tiny", "tiny"]
    assert compare("ne-table2", tiny, scale="full")["n"].tolist()[:2] == [0, 0]


def test_below_full_scale_the_best_batch_size_is_chosen_by_test_or_by_validation_images():
    runs = grid("ne-fig2-f1", "small")
    best = {1.0: 100, 1.5: 500}
    records = [record(r, 0.8 + 0.1 * (r.batch_size == best[r.alpha]), valid=0.9 if r.batch_size == 30 else 0.1)
               for r in runs]  # fmt: skip
    assert compare("ne-table2", records)["B"].tolist()[:2] == [100, 500]
    assert compare("ne-table2", records, select="validation")["B"].tolist()[:2] == [30, 30]
    with pytest.raises(InputError, match="no validation images"):
        compare("ne-table2", [record(r, 0.9) for r in runs], select="validation")


def test_copies_of_the_data_and_precisions_are_one_cell_and_other_sizes_another():
    [run] = grid("smoothout-table1-c1", seeds=1)[:1]
    varied = grid("smoothout-table1-c1", seeds=1, seed=1, dataset="folder:cifar10", precision="bfloat16")[:1]
    smaller = grid("smoothout-table1-c1", seeds=1, seed=2, train_size=10_000)[:1]
    table = compare("smoothout-table1", [record(r, 0.8) for r in (run, *varied, *smaller)], scale="full")
    assert table["n"].max() == 2


def test_smoothout_is_compared_by_its_best_accuracy_small_with_small_and_large_with_large():
    means = {(25, 0.0): 0.90, (25, 0.0375): 0.92, (100, 0.0): 0.80, (100, 0.0375): 0.85}
    runs = grid("smoothout-table1-c1", "small")
    records = [record(r, 0.1, best=means[r.batch_size, r.a] + 0.01 * r.seed) for r in runs]
    table = compare("smoothout-table1", records)
    table = table[table["network"] == "smoothout-c1"]
    assert table["accuracy"].tolist() == pytest.approx([91, 93, 81, 86])
    assert table["gain"].tolist()[1::2] == pytest.approx([2, 5])
    assert table["published_gain"].tolist()[1::2] == pytest.approx([2.05, 3.04])


def test_ablations_are_compared_with_denoising_and_with_the_baseline():
    records = noisy(grid("smoothout-table3-c1"), lambda r: 0.8 if r.denoise else 0.4)
    table = compare("smoothout-table3", records)
    left_in = table[table["method"].str.contains("not taken off") & (table["network"] == "smoothout-c1")]
    assert left_in["gain"].tolist() == pytest.approx([-40, -40])
    assert left_in["published_gain"].tolist() == pytest.approx([-45.20, -34.29])
    records = noisy(grid("smoothout-table5-c1"), lambda r: 0.8 + r.a)
    table = compare("smoothout-table5", records)
    assert table["gain"].tolist()[1:] == pytest.approx([3.75, 2.5, 15, 20, 0.01, 0.015])
    assert set(table["ours_on"]) == {"smoothout-c1"}


def test_words_and_colors_say_how_far_apart_the_gains_are():
    records = noisy(grid("ne-table2-f1", seeds=3), lambda r: 0.9 + 0.0022 * (r.alpha > 1) + 1e-5 * r.seed * r.alpha)
    words = readable(compare("ne-table2", records))
    assert words.loc[0, "published"] == "90.17 ± 0.04"
    assert words.loc[1, "gain published"] == "+0.22 ± 0.07"
    assert words.loc[1, "apart"].endswith("s.e., agree")
    assert words.loc[2, "ours"] == "not run yet"
    assert words.loc[2, "of"] == "python -m nb_lib sweep ne-table2-c1 --store results/ --download"
    assert "full: ne-f1, B = 2000, α = 1.5; 3 seeds; a copy; a device" in words.loc[1, "of"]
    far = noisy(grid("ne-table2-f1", seeds=3), lambda r: 0.9 - 0.05 * (r.alpha > 1) + 1e-5 * r.seed * r.alpha)
    comparison = compare("ne-table2", far)
    assert readable(comparison).loc[1, "apart"].endswith("s.e., ours smaller")
    html = styled(comparison).to_html()
    assert html.count("rgba(230, 159, 0") == 1
    assert 'class="dataframe"' in html


def test_unknown_choices_are_refused():
    with pytest.raises(InputError, match="unknown selection"):
        compare("ne-table2", [], select="train")
    with pytest.raises(InputError, match="unknown scale"):
        compare("ne-table2", [], scale="huge")


def test_the_best_batch_size_of_each_alpha_and_its_paired_gain():
    def mean(run):
        return {1.0: {30: 0.82, 100: 0.80, 500: 0.7}, 1.5: {30: 0.6, 100: 0.83, 500: 0.81}}[run.alpha][run.batch_size]

    table = best_of(frame(noisy(grid("ne-fig2-f1", "small"), mean))).to_dict("records")
    assert [(row["alpha"], row["B"], row["n"]) for row in table] == [(1.0, 30, 3), (1.5, 100, 3)]
    assert table[1]["gain"] == pytest.approx(1)
    assert table[1]["gain_se"] == pytest.approx(0, abs=1e-9)  # all their spread is shared
    assert table[1]["se"] > 0.1
    assert (table[0]["updates"], table[0]["images"]) == (70, 700)
    with pytest.raises(InputError, match="no validation images"):
        best_of(frame([record(r, 0.9) for r in grid("ne-fig2-f1", "small")]), select="validation")
