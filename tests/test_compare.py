"""Ours beside the papers': the right cells, means, paired gains and distances, and what is missing."""

import dataclasses
import math
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nb_lib.compare import best_of, compare
from nb_lib.errors import InputError
from nb_lib.lab.recorded import command, command_of, commands, recorded
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, frame, load_records, write_lines
from nb_lib.lab.text import read
from nb_lib.page.comparison import conclusions, longer, notes, readable, sharper, verdict
from nb_lib.page.forest import forest, show_comparison
from nb_lib.papers import TABLES, grid, protocol
from nb_lib.papers import run as papers_run


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
    assert enhanced["gain_half"] == pytest.approx(gain.mean() - stats.ttest_1samp(gain, 0).confidence_interval()[0])
    assert (enhanced["pairs"], enhanced["gain_std"]) == (4, pytest.approx(gain.std(ddof=1)))
    theirs = stats.ttest_ind_from_stats(90.39, 0.17, 10, 90.17, 0.14, 10)  # of equal variances: 18 degrees of freedom
    assert enhanced["published_half"] == pytest.approx(0.22 / theirs.statistic * stats.t.ppf(0.975, 18))
    v, f = np.array([gain.var(ddof=1) / 4, theirs_variance := (0.14**2 + 0.17**2) / 10]), np.array([3, 18])
    half = stats.t.ppf(0.975, v.sum() ** 2 / (v**2 / f).sum()) * math.sqrt(gain.var(ddof=1) / 4 + theirs_variance)
    assert (enhanced["apart"], enhanced["apart_half"]) == pytest.approx((gain.mean() - 0.22, half))
    assert math.isnan(plain["gain"])
    assert (plain["missing"], enhanced["missing"]) == ("", "")


def test_what_is_not_run_names_its_command():
    table = compare("smoothout-table2", [])
    assert (table["n"] == 0).all()
    commands = table.set_index("network")["missing"]
    by_data = {command(f"smoothout-table2-{name}") for name in ("cifar10", "cifar100")}
    assert set(commands["resnet44"]) == by_data
    imagenet = "torchrun --nproc-per-node gpu examples/imagenet.py"
    ada, to = "--a 0.15 --adaptive true", "--store results/"
    assert commands["alexnet"].tolist() == [
        f"{imagenet} --network alexnet --batch-size 16384 {to}",
        f"{imagenet} --network alexnet --batch-size 16384 {ada} {to}",
        f"{imagenet} --network alexnet --batch-size 16384 --epochs 120 {to}",
        f"{imagenet} --network alexnet --batch-size 16384 {ada} --epochs 120 {to}",
    ]
    assert commands["resnet18"].tolist()[1] == f"{imagenet} --network resnet18 --batch-size 16384 {ada} {to}"
    assert compare("smoothout-table5", [])["missing"].str.contains("smoothout-table5-resnet44").all()


def run_of(command: str) -> Run:
    """The run that a command of the shell names, read as examples/imagenet.py reads it."""
    words = shlex.split(command.partition("examples/imagenet.py ")[2].removesuffix(" --store results/"))
    options = dict(zip(words[::2], words[1::2], strict=True))
    kinds = {f.name: f.type for f in dataclasses.fields(Run)}
    given = {option.removeprefix("--").replace("-", "_"): text for option, text in options.items()}
    values = {name: read(name, text, kinds[name]) for name, text in given.items()}
    return papers_run(**protocol(**values))


@pytest.mark.parametrize("name", ["smoothout-table2-alexnet", "smoothout-table2-resnet18"])
def test_the_commands_of_imagenet_name_the_cells_of_their_grid(name):
    assert [run_of(command) for command in commands(name)] == grid(name, seeds=1)
    [other] = grid(name, seeds=1, dataset="folder:imagenet", lr=0.05, precision="bfloat16", seed=3)[:1]
    assert run_of(command_of(other)) == other
    steps = replace(other, lr_steps=((7, 0.1), (9, 1e-3)))
    assert run_of(command_of(steps)) == steps


def test_the_commands_of_other_grids_are_one_and_those_of_a_whole_table_are_both():
    assert commands("ne-fig2-f1", "tiny") == [command("ne-fig2-f1", "tiny")]
    whole = commands("smoothout-table2")
    assert whole[0] == command("smoothout-table2")
    assert whole[1:] == commands("smoothout-table2-alexnet") + commands("smoothout-table2-resnet18")


@pytest.mark.parametrize("dataset", ["imagenet", "folder:imagenet"])
def test_records_of_imagenet_answer_to_the_row_with_their_network_method_and_epochs(dataset):
    runs = [
        run
        for name in ("smoothout-table2-alexnet", "smoothout-table2-resnet18")
        for run in grid(name, seeds=3, dataset=dataset)
    ]
    mean = {("alexnet", 60): 0.4, ("alexnet", 120): 0.5, ("resnet18", 90): 0.6}
    gain = {("alexnet", 60): 0.05, ("alexnet", 120): 0.02, ("resnet18", 90): 0.01}
    records = noisy(runs, lambda r: mean[r.network, r.epochs] + gain[r.network, r.epochs] * r.adaptive)
    table = compare("smoothout-table2", records)
    found = table[table["n"] > 0]
    assert found["cell"].tolist() == [12, 13, 14, 15, 16, 17]
    assert found["n"].tolist() == 6 * [3]
    assert found["gain"].tolist()[1::2] == pytest.approx([5, 2, 1])
    assert found["gain"].isna().tolist() == 3 * [True, False]
    plain = found["accuracy"].iloc[::2].to_numpy()
    assert np.diff(plain).tolist() == pytest.approx([10, 10])
    assert (found["missing"] == "").all()
    assert set(found["dataset"]) == {"a copy" if dataset == "imagenet" else "a copy (folder:imagenet)"}
    [words] = recorded(records, "smoothout-table2-alexnet", "full")
    assert "12 runs" in words
    assert recorded(records, "smoothout-table2-alexnet", "tiny") == {}
    with pytest.raises(InputError, match="unknown scale 'huge'"):
        recorded(records, "smoothout-table2-alexnet", "huge")


def test_every_scale_has_its_own_row_the_full_one_first():
    tiny = noisy(grid("ne-table2-f1", "tiny", seeds=3), lambda r: 0.5 + 0.03 * (r.alpha > 1))
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
    assert c1["scale"].tolist() == ["tiny", "tiny", "tiny", ""]
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
    assert set(readable(table)["verdict"]) == {"baseline", "nothing yet"}


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


def gains(table, cell, *, of, scale="full", pick=lambda run: True):
    """Records of a table whose gains over the plain runs are `of` a seed, in points, and the row of a cell."""
    records = []
    for run in grid(table, scale, seeds=len(of)):
        if pick(run):
            plain = run.alpha == 1 and run.a == 0
            best = 0.6 + 0.01 * run.seed + (0 if plain else of[run.seed] / 100)
            records.append(record(run, best))
    rows = compare(table.rpartition("-")[0], records)
    [row] = rows[(rows["cell"] == cell) & rows["gain"].notna()].to_dict("records")
    return records, row


def judged(table, cell, of, **given):
    return verdict(gains(table, cell, of=of, **given)[1]).partition(";")[0]


FULL = [  # of NE's F1 with α = 1.5, published +0.22 ± 0.07
    ([0.2, 0.22, 0.25], "agrees"),
    ([0.0, 0.22, 0.44], "cannot tell"),
    ([0.5, 0.52, 0.54], "disagrees: ours is larger"),
    ([-0.01, 0.01, 0.0], "disagrees: ours is smaller"),
    ([-0.2, -0.22, -0.25], "disagrees: opposite sign"),
    ([0.2, 0.22], "too few seeds (2)"),
    ([0.2], "too few seeds (1)"),
    ([0.22, 0.22, 0.22], "too few seeds (3)"),  # one number three times has no error: nothing rests on it
]


@pytest.mark.parametrize(("of", "says"), FULL)
def test_at_full_scale_with_a_published_spread_sizes_are_compared(of, says):
    assert judged("ne-table2-f1", 1, of) == says


SIGNS = [
    ([0.2, 0.22, 0.25], "ours gains, resolved"),
    ([-0.2, -0.22, -0.25], "opposite sign, resolved"),
    ([5.0, 5.1, 5.2], "ours gains, resolved"),  # however large
    ([-1.0, 1.5, 0.5], "same sign, not resolved"),
    ([-1.5, 1.0, -0.5], "opposite sign, not resolved"),
    ([0.2, 0.22], "too few seeds (2)"),
]


@pytest.mark.parametrize(("of", "says"), SIGNS)
@pytest.mark.parametrize(
    ("table", "cell", "scale"), [("smoothout-table1-f1", 9, "full"), ("smoothout-table1-c1", 1, "small")]
)
def test_without_a_published_spread_or_below_full_scale_it_is_about_ours_and_the_sign(of, says, table, cell, scale):
    assert judged(table, cell, of, scale=scale) == says


def test_a_published_gain_within_its_own_error_contradicts_nothing():
    assert judged("ne-table3-c2", 5, [-0.1, -0.11, -0.12]) == "cannot tell: opposite sign, within both errors"  # 0.13


def test_a_loss_that_the_paper_claims_is_one():
    runs = grid("smoothout-table3-c1", "small", seeds=3)
    lost = [record(run, 0.5 - (0.1 + 0.01 * run.seed) * (not run.denoise)) for run in runs]
    table = compare("smoothout-table3", lost)
    assert {verdict(row) for row in table.to_dict("records")} == {"", "ours loses, resolved"}
    kept = [record(run, 0.5 + (0.1 + 0.01 * run.seed) * (not run.denoise)) for run in runs]
    assert {verdict(row) for row in compare("smoothout-table3", kept).to_dict("records")} == {
        "",
        "opposite sign, resolved",
    }


def test_how_many_seeds_would_tell_is_said():
    [row] = [gains("ne-table2-f1", 1, of=[0.0, 0.22, 0.44])[1]]
    assert verdict(row).endswith("; about 10 seeds would tell")  # of equal gain and deviation: the textbooks' 10
    assert verdict(row | {"published_gain": 0.001}).endswith("more than 10,000 seeds would tell")
    assert verdict(row | {"published_gain": 3.0, "apart_half": math.nan}).endswith("would probably have shown")


def test_intervals_are_widened_for_the_methods_with_one_baseline():
    def half(methods):
        runs = [run for run in grid("smoothout-table4-resnet44", "small", seeds=3) if run.a in methods]
        table = compare("smoothout-table4", [record(run, 0.5 + 0.01 * run.seed * (run.a > 0)) for run in runs])
        return table.loc[table["gain"].notna(), "gain_half"].iloc[0]

    assert half((0, 0.0375)) == pytest.approx(stats.t.ppf(1 - 0.05 / 2, 2) / math.sqrt(3))
    assert half((0, 0.0375, 0.15)) == pytest.approx(stats.t.ppf(1 - 0.05 / 4, 2) / math.sqrt(3))


def test_where_a_record_turns_a_gain_over_picture_table_and_words_follow():
    """No text knows what comes out: better records, other sentences."""

    def page(of):
        records, row = gains("ne-table2-f1", 1, of=of)
        table = compare("ne-table2", records)
        ours = next(trace for trace in forest(table).data if "ours" in trace.name)
        return ours.x[0], readable(table).loc[1, "ours"], verdict(row), " ".join(conclusions(table))

    up, down = page([0.2, 0.22, 0.25]), page([-0.2, -0.22, -0.25])
    assert up[0] == pytest.approx(0.2233, abs=1e-4) == -down[0]
    assert up[1].endswith("gain +0.22 ± 0.01")
    assert down[1].endswith("gain −0.22 ± 0.01")
    assert (up[2], down[2]) == ("agrees", "disagrees: opposite sign")
    assert "**agrees** F1, α = 1.5 (+0.22)" in up[3]
    assert "**disagrees: opposite sign** F1, α = 1.5 (−0.22)" in down[3]
    assert "4 of 5 gains are not run yet" in up[3]


def traces(table):
    return {trace.name: trace for trace in forest(table).data}


def test_the_picture_tells_spread_scale_and_method_apart_without_color():
    full, _ = gains("smoothout-table1-f1", 9, of=[0.1, 0.2, 0.4])
    small, _ = gains("smoothout-table1-f1", 9, of=[0.3], scale="small")
    table = compare("smoothout-table1", full + small)
    drawn = traces(table)
    assert {name: trace.marker.symbol for name, trace in drawn.items()} == {
        "published": "diamond",
        "published, no spread": "diamond-open",
        "SmoothOut, ours, full": "circle",
        "SmoothOut, ours, small": "triangle-up-open",
    }
    with_bars = {name for name, trace in drawn.items() if trace.error_x.array is not None}
    assert with_bars == {"published", "SmoothOut, ours, full"}
    figure = forest(table)
    assert [note.text for note in figure.layout.annotations][-6:] == ["n = 1", "n = 3", "n = 1"] * 2
    assert [shape.x0 for shape in figure.layout.shapes] == [0]
    assert len(figure.layout.yaxis.ticktext) == 6
    assert max(len(line) for text in figure.layout.yaxis.ticktext for line in text.split("<br>")) <= 24  # fits a phone


@pytest.mark.parametrize("table", TABLES)
def test_every_published_gain_is_a_row_of_the_picture_short_enough_for_a_phone(table):
    found = compare(table, [])
    figure = forest(found)
    drawn = [x for trace in figure.data for x in trace.x]
    assert sorted(drawn) == pytest.approx(sorted(found["published_gain"].dropna()))
    labels = figure.layout.yaxis.ticktext
    assert len(set(labels)) == len(labels) == len(drawn)
    assert max(len(line) for text in labels for line in text.split("<br>")) <= 24
    low, high = figure.layout.xaxis.range
    assert low < min(0, *drawn) <= max(0, *drawn) < high


def test_bars_do_not_make_points_unreadable():
    _, row = gains("smoothout-table2-cifar10", 1, of=[-30.0, 30.0], scale="small")
    low, high = forest(pd.DataFrame([row])).layout.xaxis.range
    assert row["gain_half"] > 100
    assert high - low < 10


def test_our_network_is_named_where_it_is_another():
    records, _ = gains("smoothout-table5-resnet44", 1, of=[1, 2, 3], scale="small", pick=lambda r: r.a in (0, 0.0375))
    table = compare("smoothout-table5", records)
    assert "SmoothOut, ours, small on ResNet8" in traces(table)
    assert "on ResNet8" in " ".join(conclusions(table))
    assert readable(table)["ours is of"].str.startswith("resnet8, B = 128; 3 seeds").sum() == 2


def test_what_the_paper_does_not_print_is_marked_in_picture_and_table():
    table = compare("smoothout-table2", [])
    marked = [label for label in forest(table).layout.yaxis.ticktext if label.endswith("†")]
    assert len(marked) == 6
    assert readable(table)["method"].str.endswith("†").sum() == 6
    assert "the baseline + 4.89 of the text" in notes(table)
    assert "52.53 %" in notes(table)
    assert "strength is not printed (the rows of 70.09, 72.39" in notes(table)
    assert notes(compare("ne-table2", [])) == ""


def test_what_a_paper_prints_once_has_no_spread_in_words_either():
    [theirs, missing] = conclusions(compare("smoothout-table3", []))
    assert theirs.startswith("All 3 gains are printed once, without a spread: nothing says how far another run")
    assert missing == "At full scale all 3 gains are not run yet."
    [theirs, _] = conclusions(compare("ne-table2", []))
    assert theirs == (
        "4 of 5 gains that are printed with a spread can be told from zero by it (not that of C2, α = 1.5)."
    )


def test_updates_until_convergence_are_compared():
    def said(of):
        runs = grid("ne-table2-f1", seeds=3)
        return longer(compare("ne-table2", [record(r, 0.9, updates=9000 + of[r.seed] * (r.alpha > 1)) for r in runs]))

    theirs, ours = said([-2000, -2010, -2020])
    assert "fewer for F1, α = 1.5 (−3,020)" in theirs
    assert "within two standard errors of none for C2, α = 1.5 (−117)" in theirs
    assert ours == "Ours: fewer for F1, α = 1.5 at full scale (−2,010 ± 25; 3 seeds)."
    assert "**more**, against the paper, for F1" in said([2000, 2010, 2020])[1]
    assert "not resolved for F1" in said([-2000, 0, 2020])[1]
    assert "too few seeds" in longer(compare("ne-table2", noisy(grid("ne-table2-f1", seeds=2), lambda r: 0.9)))[1]
    row = readable(compare("ne-table2", [])).iloc[1]
    assert (row["updates published"], row["updates ours"]) == ("7,914 ± 167, −3,020 ± 307", "none yet")


def test_the_order_of_sharpness_is_said_and_its_size_is_not_compared():
    def said(sharpness):
        runs = grid("smoothout-table1-f1", seeds=3)
        records = [record(r, 0.9, measures={"sharpness": sharpness(r) + 0.1 * r.seed * (r.a > 0)}) for r in runs]
        return sharper(compare("smoothout-table1", records), records)

    theirs, small, large = said(lambda r: 5 + 3 * (r.a > 0) if r.batch_size == 256 else 5 - 3 * (r.a > 0))
    assert theirs == "As published, the sharpness is lower with SmoothOut in 5 of 6 rows."
    assert small.startswith("Our sharpness of F1, B = 256")
    assert "**higher**, against the claim, with a = 0.0375 (+3.1" in small
    assert "lower with a = 0.0375 (−2.9" in large
    assert list(readable(compare("smoothout-table1", []))["sharpness published"])[:2] == ["27.7448", "0.0003"]


def test_a_page_shows_picture_table_and_sentences(capsys):
    show_comparison(compare("ne-table3", []), 2, "NE Table 3")
    show_comparison(compare("ne-table3", []).head(1), 3, "NE Table 3")  # no gain at all
    assert capsys.readouterr().out


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


def test_the_table_is_in_words():
    records = noisy(grid("ne-table2-f1", seeds=3), lambda r: 0.9 + 0.0022 * (r.alpha > 1) + 1e-5 * r.seed * r.alpha)
    words = readable(compare("ne-table2", records))
    assert words.loc[0, "published"] == "90.17 ± 0.04"
    assert words.loc[1, "published"] == "90.39 ± 0.05, gain +0.22 ± 0.07"
    assert words["verdict"].tolist()[:4] == ["baseline", "agrees", "baseline", "nothing yet"]
    assert words.loc[2, "ours"] == "not run yet"
    assert words["scale"].tolist()[:3] == ["full", "full", "none"]
    assert words.loc[2, "ours is of"] == "python -m nb_lib sweep ne-table2-c1 --store results/ --download"
    assert words.loc[1, "ours is of"] == "ne-f1, B = 2000, α = 1.5; 3 seeds; a copy; a device"
    assert set(readable(compare("smoothout-table2", []))["ours"]) == {"not run yet"}


def test_what_a_number_is_of_names_precision_copy_and_an_old_cutting():
    given = {"dataset": "folder:cifar10", "precision": "tf32", "cutting": "rest"}
    words = readable(of_large_batch_c1(large_batch_c1({0: (0.5, 0.6)}, **given)))
    copy = "a copy (folder:cifar10)"
    assert words.iloc[0]["ours is of"] == (
        f"smoothout-c1, B = 5000; 2 seeds; {copy}; a device; tf32; parts of 128 and a rest"
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
