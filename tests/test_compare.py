"""Ours beside the papers': the right cells, means, paired gains and distances, and what is missing."""

import math

import numpy as np
import pytest

from nb_lib.compare import best_of, compare
from nb_lib.errors import InputError
from nb_lib.lab.recorded import command, recorded
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, frame, load_records, write_lines
from nb_lib.page.comparison import readable, styled
from nb_lib.papers import grid


def record(run: Run, accuracy: float, *, valid: float | None = None, **differing) -> Record:
    fields = dict(
        run=run, status="converged", test_accuracy=accuracy, best_test_accuracy=accuracy, valid_accuracy=valid,
        train_accuracy=1.0, train_loss=0.0, test_loss=0.3, epochs=7, updates=70, samples=700, wall_time=1.0, curve=[],
        provenance={"dataset_variant": "a copy", "device": "a device", "commit": "c"},
    )  # fmt: skip
    return Record(**fields | differing)


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
    table = compare("smoothout-table2", [])
    assert (table["n"] == 0).all()
    commands = table.set_index("network")["missing"]
    by_data = {command(f"smoothout-table2-{name}") for name in ("cifar10", "cifar100")}
    assert set(commands["resnet44"]) == by_data
    assert set(commands["alexnet"]) == {"alexnet is not in the library"}
    assert compare("smoothout-table5", [])["missing"].str.contains("smoothout-table5-resnet44").all()


def test_every_scale_has_its_own_row_the_full_one_first():
    tiny = noisy(grid("ne-table2-f1", "tiny"), lambda r: 0.5 + 0.03 * (r.alpha > 1))
    full = noisy(grid("ne-table2-f1", seeds=2), lambda r: 0.9 + 0.01 * (r.alpha > 1))
    both = compare("ne-table2", tiny + full)
    f1 = both[both["network"] == "ne-f1"]
    assert f1["method"].tolist() == [
        "α = 1, B = 900",
        "α = 1, B = 900",
        "α = 1.5, B = 2000",
        "α = 1.5, B = 2000",
    ]
    assert f1["scale"].tolist() == ["full", "tiny", "full", "tiny"]
    assert f1["n"].tolist() == [2, 3, 2, 3]
    assert f1["gain"].tolist()[2:] == pytest.approx([1, 3])  # paired with the row of the same scale
    assert (f1["missing"] == "").all()
    c1 = both[both["network"] == "ne-c1"]  # the stand-in on digits is C1's, too
    assert c1["scale"].tolist() == ["tiny", "tiny", "", ""]
    assert set(c1["missing"]) == {"python -m nb_lib sweep ne-table2-c1 --store results/ --download"}
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
    full = [record(r, 0.9) for r in grid("ne-table2-f1", seeds=1)]  # one cell a row: nothing to choose
    assert compare("ne-table2", records + full, select="validation")["B"].tolist()[:4] == [900, 30, 2000, 30]


VARIETIES = [{"precision": "bfloat16"}, {"dataset": "folder:cifar10"}, {"cutting": "rest"}]


def large_batch_c1(of, **given):
    """Records of Table I's C1 at B = 5000: for each a its accuracies by seed."""
    runs = [run for run in grid("smoothout-table1-c1", seeds=2, **given) if run.batch_size == 5000]
    return [record(run, of[run.a][run.seed]) for run in runs if run.a in of]


def of_large_batch_c1(records):
    table = compare("smoothout-table1", records)
    return table[(table["network"] == "smoothout-c1") & table["method"].str.startswith("B = 5000")]


@pytest.mark.parametrize("given", VARIETIES)
def test_precisions_copies_of_the_data_and_cuttings_are_neither_averaged_nor_paired(given):
    one = large_batch_c1({0: (0.50, 0.60), 0.0375: (0.51, 0.63)})
    other = large_batch_c1({0: (0.70, 0.90), 0.0375: (0.75, 0.93)}, **given)
    plain, smooth = (rows for _, rows in of_large_batch_c1(one + other).groupby("method", sort=False))
    plain, smooth = (rows.sort_values("accuracy") for rows in (plain, smooth))
    assert plain["n"].tolist() == smooth["n"].tolist() == [2, 2]
    assert plain["accuracy"].tolist() == pytest.approx([55, 80])
    assert smooth["accuracy"].tolist() == pytest.approx([57, 84])
    assert smooth["gain"].tolist() == pytest.approx([2, 4])
    assert smooth["gain_se"].tolist() == pytest.approx([1, 1])
    assert len(smooth[["dataset", "precision", "cutting"]].drop_duplicates()) == 2


@pytest.mark.parametrize("given", VARIETIES)
def test_no_gain_over_the_baseline_of_another_variety(given):
    baseline, smooth = large_batch_c1({0: (0.5, 0.6)}), large_batch_c1({0.0375: (0.7, 0.8)}, **given)
    table = of_large_batch_c1(baseline + smooth)
    assert table["n"].tolist() == [2, 2]
    assert table["gain"].isna().all()
    assert set(readable(table)["apart"]) == {""}


def test_the_best_cell_is_chosen_within_one_variety():
    means = {
        "float32": {30: 0.5, 100: 0.8, 500: 0.6},
        "tf32": {30: 0.5, 100: 0.1, 500: 0.7},
    }  # of both: B = 500
    runs = [r for p in means for r in grid("ne-fig2-f1", "small", seeds=1, precision=p) if r.alpha == 1]
    table = compare("ne-table2", [record(r, means[r.precision][r.batch_size]) for r in runs])
    found = table[table["n"] > 0].set_index("precision")[["B", "accuracy"]]
    assert found.to_dict("index") == {
        "float32": {"B": 100, "accuracy": pytest.approx(80)},
        "tf32": {"B": 500, "accuracy": pytest.approx(70)},
    }


def test_other_sizes_and_lengths_are_no_answer():
    for other in (
        {"train_size": 10_000},
        {"epochs": 3},
        {"valid_size": 100},
        {"lr": 0.1},
        {"dataset": "cifar100"},
    ):
        assert (of_large_batch_c1(large_batch_c1({0: (0.5, 0.6)}, **other))["n"] == 0).all()


def test_of_a_run_given_twice_the_first_record_counts():
    first, again = large_batch_c1({0: (0.5, 0.6)}), large_batch_c1({0: (0.9, 0.9)})
    row = of_large_batch_c1(first + again).iloc[0]
    assert (row["n"], row["accuracy"]) == (2, pytest.approx(55))
    [found] = recorded(first + again, "smoothout-table1-c1", "full").values()
    assert found == first


def test_a_batch_no_larger_than_a_part_is_cut_in_no_way():
    runs = [r for r in grid("smoothout-table1-f1", "small", seeds=1, cutting="rest") if r.a == 0]
    table = compare("smoothout-table1", [record(r, 0.9) for r in runs])
    assert table.loc[table["n"] > 0, ["B", "cutting"]].values.tolist() == [
        [25, ""],
        [300, "parts of 128 and a rest"],
    ]


def test_no_verdict_without_a_published_spread_or_with_one_seed():
    def apart(records):
        table = compare("smoothout-table1", records)
        table = table[table["gain"].notna()]
        return table["z"].tolist(), readable(table)["apart"].tolist(), styled(table).to_html().count("rgba")

    two = large_batch_c1({0: (0.70, 0.70), 0.0375: (0.71, 0.73)})  # a gain of 2 ± 1, published 3.04 ± √(0.24² + 0.31²)
    z, words, colored = apart(two)
    assert z == pytest.approx([-1.04 / math.sqrt(1 + 0.24**2 + 0.31**2)])
    assert (words, colored) == (["-1.0 s.e., agree"], 1)
    z, words, colored = apart([r for r in two if r.run.seed == 0])
    assert np.isnan(z).all()
    assert (words, colored) == (["no spread of ours"], 0)
    z, words, colored = apart(noisy(grid("smoothout-table1-f1"), lambda r: 0.9 + 1e-3 * r.seed * (r.a > 0)))
    assert np.isnan(z).all()
    assert (words, colored) == (2 * ["no published spread"], 0)


def test_smoothout_is_compared_by_its_best_accuracy_small_with_small_and_large_with_large():
    means = {(25, 0.0): 0.90, (25, 0.0375): 0.92, (100, 0.0): 0.80, (100, 0.0375): 0.85}
    runs = grid("smoothout-table1-c1", "small")
    records = [record(r, 0.1, best_test_accuracy=means[r.batch_size, r.a] + 0.01 * r.seed) for r in runs]
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
    records = noisy(grid("smoothout-table5-resnet44"), lambda r: 0.8 + r.a)
    table = compare("smoothout-table5", records)
    assert table["gain"].tolist()[1:] == pytest.approx([3.75, 2.5, 15, 20, 0.01, 0.015])
    assert set(table["ours_on"]) == {"resnet44"}


@pytest.mark.parametrize("scale", ["full", "small", "tiny"])
def test_longer_training_and_scaled_rates_are_rows_of_their_own(scale):
    values = {("sqrt", False): 0.5, ("sqrt", True): 0.6, ("linear", True): 0.8}
    runs = grid("smoothout-table2-cifar100", scale)
    longest = max(run.epochs for run in runs)
    records = [record(run, values[run.lr_scaling, run.epochs == longest] + run.a) for run in runs]
    table = compare("smoothout-table2", records, scale=scale)
    ours = table[table["method"].str.contains("cifar100")]
    for row, accuracies in {
        "200 epochs, sqrt": [50, 53.75, 65],
        "400 epochs, sqrt": [60, 63.75, 75],
        "400 epochs, linear": [80, 83.75, 95],
    }.items():
        assert ours[ours["method"].str.endswith(row)]["accuracy"].tolist() == pytest.approx(accuracies)
    assert ours["gain"].dropna().tolist() == pytest.approx([3.75, 15] * 3)


def test_words_and_colors_say_how_far_apart_the_gains_are():
    records = noisy(grid("ne-table2-f1", seeds=3), lambda r: 0.9 + 0.0022 * (r.alpha > 1) + 1e-5 * r.seed * r.alpha)
    words = readable(compare("ne-table2", records))
    assert words.loc[0, "published"] == "90.17 ± 0.04"
    assert words.loc[1, "gain published"] == "+0.22 ± 0.07"
    assert words.loc[1, "apart"].endswith("s.e., agree")
    assert words.loc[2, "ours"] == "not run yet"
    assert words["scale"].tolist()[:3] == ["full", "full", ""]
    assert words.loc[2, "of"] == "python -m nb_lib sweep ne-table2-c1 --store results/ --download"
    assert words.loc[1, "of"] == "full: ne-f1, B = 2000, α = 1.5; 3 seeds; a copy; a device"
    pale = noisy(grid("ne-table2-f1", seeds=3), lambda r: 0.9 + 0.002 * r.seed * (r.alpha > 1))  # 0.20 ± 0.12
    assert readable(compare("ne-table2", pale)).loc[1, "apart"] == "-0.1 s.e., cannot tell"
    assert "rgba" not in styled(compare("ne-table2", pale)).to_html()
    far = noisy(grid("ne-table2-f1", seeds=3), lambda r: 0.9 - 0.05 * (r.alpha > 1) + 1e-5 * r.seed * r.alpha)
    comparison = compare("ne-table2", far)
    assert readable(comparison).loc[1, "apart"].endswith("s.e., ours smaller")
    html = styled(comparison).to_html()
    assert html.count("rgba(230, 159, 0") == 1
    assert 'class="dataframe"' in html


def test_what_a_number_is_of_names_precision_copy_and_an_old_cutting():
    given = {"dataset": "folder:cifar10", "precision": "tf32", "cutting": "rest"}
    words = readable(of_large_batch_c1(large_batch_c1({0: (0.5, 0.6)}, **given)))
    copy = "a copy (folder:cifar10)"
    assert words.iloc[0]["of"] == (
        f"full: smoothout-c1, B = 5000; 2 seeds; {copy}; a device; tf32; parts of 128 and a rest"
    )
    assert words.iloc[0]["ours"] == "55.00 ± 5.00"


def test_recorded_runs_come_by_variety_and_of_one_scale():
    name = "smoothout-table1-f1"
    old, new = (noisy(grid(name, seeds=2, cutting=cutting), lambda r: 0.9) for cutting in ("rest", "even"))
    half = noisy(grid(name, seeds=1, precision="bfloat16"), lambda r: 0.9)
    others = noisy(grid(name, "small"), lambda r: 0.9) + noisy(grid(name, train_size=30_000), lambda r: 0.9)
    found = recorded(others + old + new + half, name, "full")
    assert {label: sorted(runs, key=lambda r: r.run.seed) for label, runs in found.items()} == {
        "a copy, bfloat16, 4 runs of 1 s, a device, commit c": half,
        "a copy, float32, 8 runs of 1 s, a device, commit c": new,
        "a copy, float32, parts of 128 and a rest, 8 runs of 1 s, a device, commit c": old,
    }
    assert recorded(others, name, "full") == {}
    [(label, single)] = recorded(old[:1], name, "full").items()
    assert (label, single) == ("a copy, float32, parts of 128 and a rest, 1 run of 1 s, a device, commit c", old[:1])


def test_every_record_of_folders_of_lines_and_of_stores_is_loaded(tmp_path):
    first, second, third = [record(run, 0.5) for run in grid("ne-fig2-f1", "tiny")[:3]]
    write_lines([first], tmp_path / "book" / "one.jsonl")
    write_lines([second], tmp_path / "book" / "two.jsonl")
    RunStore(tmp_path / "store").save(third)
    (tmp_path / "empty").mkdir()
    assert load_records([tmp_path / "book", str(tmp_path / "store")]) == [first, second, third]
    assert load_records(str(tmp_path / "book")) == [first, second]
    assert load_records(tmp_path / "book" / "two.jsonl") == [second]
    assert load_records([tmp_path / "empty"]) == load_records([]) == []
    with pytest.raises(InputError, match="cannot read"):
        load_records(tmp_path / "absent")


def test_a_command_names_a_scale_other_than_the_full_one():
    assert command("ne-fig2-f1") == "python -m nb_lib sweep ne-fig2-f1 --store results/ --download"
    small = "python -m nb_lib sweep ne-fig2-f1 --scale small --store results/ --download"
    assert command("ne-fig2-f1", "small") == small


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


def test_without_plain_runs_there_is_no_gain_and_updates_have_an_error():
    runs = [run for run in grid("ne-table2-f1", seeds=2) if run.alpha == 1.5]
    [row] = best_of(frame(record(r, 0.9, updates=100 + 10 * r.seed) for r in runs)).to_dict("records")
    assert (row["n"], row["B"], row["updates"]) == (2, 2000, 105)
    assert row["updates_se"] == pytest.approx(5)
    assert math.isnan(row["gain"])
    assert math.isnan(row["gain_se"])
