"""Grids against the papers' descriptions, published tables against each other and against arithmetic."""

import math

import pandas as pd
import pytest

from nb_lib import papers, published
from nb_lib.errors import InputError
from nb_lib.lab.names import TRAINING_IMAGES
from nb_lib.lab.plans import plan
from nb_lib.lab.runs import Run


@pytest.mark.parametrize(
    ("name", "runs"),
    [  # batch sizes x alphas x repeats, as the papers describe them
        ("ne-fig1-c1", 13 * 4 * 10),
        ("ne-fig2-f1", 13 * 2 * 10),
        ("ne-fig2-c2", 13 * 2 * 10),
        ("ne-fig3-f1", (13 + 10) * 10),
        ("ne-fig3-c1", (13 + 10) * 10),
        ("ne-fig3-c2", (13 + 6) * 10),
        ("ne-table2", 8 * 10),
        ("ne-table3", 6 * 10),
        ("smoothout-table1", 3 * 4 * 3),
        ("smoothout-table3-c1", 4 * 3),
    ],
)
def test_a_full_grid_is_the_papers(name, runs):
    grid = papers.grid(name)
    assert len(grid) == len(set(grid)) == runs
    for run in grid:
        assert (run.optimizer, run.lr, run.train_size, run.valid_size) == ("adam", 1e-3, None, 0)
        thresholds = {"ne-f1": (0.01, 0.001), "ne-c1": (0.01, 0.001), "ne-c2": (0.02, 0.001)}
        assert (run.halve_at, run.stop_below) == thresholds.get(run.network, (None, None))


@pytest.mark.parametrize(
    ("name", "runs"),
    [  # rows of the tables, three seeds each
        ("smoothout-table2-cifar10", 3 * 3),
        ("smoothout-table2-cifar100", 9 * 3),
        ("smoothout-table3-resnet44", 2 * 3),
        ("smoothout-table4-resnet44", 5 * 3),
        ("smoothout-table5-resnet44", 7 * 3),
        ("smoothout-fig5-resnet44", 2 * 3),
        ("smoothout-fig7-cifar10", 2 * 3),
        ("smoothout-fig7-cifar100", 2 * 3),
    ],
)
def test_a_full_grid_of_resnet44_is_the_papers(name, runs):
    grid = papers.grid(name)
    assert len(grid) == len(set(grid)) == runs
    large = 1024 if name.endswith("cifar100") else 2048
    assert {run.batch_size for run in grid} - {128} == {large}
    for run in grid:
        assert (run.network, run.optimizer, run.momentum, run.weight_decay) == ("resnet44", "sgd", 0.9, 1e-4)
        assert (run.augment, run.inputs, run.train_size, run.clip) == ("crop-flip", "imagenet", None, 5)
        assert (run.fresh_optimizer, run.noise_batch, run.ghost_batch) == (False, 128, None)


@pytest.mark.parametrize(
    ("batch_size", "epochs", "scaling", "rates"),
    [  # paper-spec, section 3.3: epochs counted from 0 at which the printed rates begin
        (2048, 400, "sqrt", [(0, 0.4), (162, 0.04), (244, 0.004), (328, 0.0004)]),
        (1024, 200, "sqrt", [(0, 0.28284), (81, 0.028284), (122, 0.0028284), (164, 0.00028284)]),
        (1024, 400, "sqrt", [(0, 0.28284), (162, 0.028284), (244, 0.0028284), (328, 0.00028284)]),
        (1024, 400, "linear", [(0, 0.8), (162, 0.08), (244, 0.008), (328, 0.0008)]),
    ],
)
def test_learning_rates_of_table_2_are_the_printed_ones(batch_size, epochs, scaling, rates):
    grid = [*papers.grid("smoothout-table2-cifar10"), *papers.grid("smoothout-table2-cifar100")]
    alike = [r for r in grid if (r.batch_size, r.epochs, r.lr_scaling) == (batch_size, epochs, scaling)]
    assert len(alike) == 3 * 3
    for run in alike:
        for (epoch, rate), (printed_epoch, printed_rate) in zip(run.scaled_lr_steps, rates, strict=True):
            assert epoch == printed_epoch
            assert rate == pytest.approx(printed_rate, rel=1e-5)


ON_IMAGENET = ["smoothout-table2-alexnet", "smoothout-table2-resnet18"]


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("smoothout-table2-alexnet", {60: (20, 40), 120: (40, 80)}),
        ("smoothout-table2-resnet18", {90: (30, 60)}),
    ],
)
def test_a_grid_on_imagenet_is_the_papers(name, epochs):
    """Paper-spec, section 3.3: two methods for each number of epochs, three seeds; rates 11.3137 times those of 128."""
    runs = papers.grid(name)
    assert len(runs) == len(set(runs)) == 2 * 3 * len(epochs)
    assert {(run.batch_size, run.dataset, run.image_size) for run in runs} == {(16384, "imagenet", 224)}
    assert {(run.a, run.adaptive) for run in runs} == {(0, False), (0.15, True)}
    assert {run.epochs: tuple(epoch for epoch, _ in run.lr_steps) for run in runs} == epochs
    first = {"alexnet": 0.11314, "resnet18": 1.1314}
    for run in runs:
        rates = [rate / first[run.network] for _, rate in run.scaled_lr_steps]
        assert rates == pytest.approx([1, 0.1, 0.01], rel=1e-4)


@pytest.mark.parametrize("name", ON_IMAGENET)
def test_a_grid_on_imagenet_has_the_full_scale_only(name):
    with pytest.raises(InputError, match=f"^{name} has the scale full only, not tiny.$"):
        papers.grid(name, "tiny")
    [row] = [row for row in papers.overview() if row["grid"] == name]
    assert (row["tiny"], row["small"]) == (0, 0)


def test_at_a_smaller_scale_several_grids_are_those_that_have_it():
    of_resnet44 = ("smoothout-table2-cifar10", "smoothout-table2-cifar100")
    runs = papers.grid("smoothout-table2", "small")
    assert set(runs) == {run for name in of_resnet44 for run in papers.grid(name, "small")}
    assert {run.network for run in papers.grid("smoothout-table2")} == {"resnet44", "alexnet", "resnet18"}
    assert plan(["smoothout-table2"], "small")["smoothout-table2"] == runs


@pytest.mark.parametrize("name", [name for name in papers.GRIDS if name not in ON_IMAGENET])
def test_a_smaller_scale_asks_the_same_question_of_less(name):
    full = papers.grid(name)
    for scale in ("small", "tiny"):
        runs = papers.grid(name, scale)
        assert len({run.batch_size for run in runs}) >= min(2, len({run.batch_size for run in full}))
        assert {run.alpha > 1 for run in runs} == {run.alpha > 1 for run in full}
        assert {(run.a, run.adaptive, run.denoise) for run in runs} == {(r.a, r.adaptive, r.denoise) for r in full}
        assert not set(runs) & set(full)
        assert all(run.train_size and run.batch_size <= run.train_size and run.valid_size for run in runs)
    assert {run.dataset for run in runs} == {"digits"}, "tiny needs no data but the embedded"


@pytest.mark.parametrize("name", [name for name in papers.GRIDS if name.startswith("ne-")])
@pytest.mark.parametrize("scale", papers.SCALES)
def test_every_batch_leaves_noise_for_alpha_to_change(name, scale):
    """With B = N both minibatches are the whole set, and α does nothing; a way to more noise takes two points."""
    runs = papers.grid(name, scale, seeds=1)
    for run in runs:
        assert 2 * run.batch_size <= (run.train_size or TRAINING_IMAGES[run.dataset])
    if name.startswith("ne-fig3"):
        largest = max(run.batch_size for run in runs)
        assert len({run.batch_size for run in runs if run.alpha == 1}) >= 2
        assert len({run.alpha for run in runs if run.batch_size == largest}) >= 3


def test_every_cell_gets_its_first_seed_before_any_gets_its_second():
    runs = papers.grid("ne-table2", "small")
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(papers.grid("ne-table2", "small", seeds=1)) * 3 == len(runs)


def test_smoothout_cuts_batches_as_its_authors_where_that_makes_a_difference():
    for name in ("smoothout-table1", "smoothout-table3-c1", "smoothout-table5-resnet44"):
        assert {run.cutting for run in papers.grid(name)} == {"even"}
    small = papers.grid("smoothout-table1", "small")
    assert {(run.batch_size, run.cutting) for run in small} == {(25, "rest"), (100, "rest"), (300, "even")}
    assert {run.cutting for run in papers.grid("ne-fig1-c1")} == {"rest"}


def test_a_plan_is_its_grids_in_order():
    found = plan(["ne-table3-f1", "ne-table2"], "tiny", seeds=1)
    assert list(found) == ["ne-table3-f1", "ne-table2"]
    assert found["ne-table2"] == papers.grid("ne-table2", "tiny", seeds=1)
    assert plan(["ne-table2-f1"], precision="tf32", dataset=None)["ne-table2-f1"][0].precision == "tf32"
    with pytest.raises(InputError, match="did you mean 'next'"):
        plan(["nextt"])
    with pytest.raises(InputError, match="unknown grid 'next'"):
        papers.grid("next")


def test_what_is_next_is_said_with_precision_seeds_and_copy_of_the_data():
    found = plan(["next"])
    assert next(iter(found)) == "ne-table2-f1"
    assert {run.precision for run in found["ne-table2-f1"]} == {"float32"}
    assert {run.precision for run in found["ne-table3-f1"]} == {"tf32"}
    c1 = [run for name, runs in found.items() if "c1" in name for run in runs]
    assert {(run.dataset, run.precision) for run in c1 if run.network == "ne-c1"} == {("folder:cifar10", "bfloat16")}
    several = found["ne-table2-c1, α = 1 and 1.5"]
    assert {(run.alpha, run.batch_size) for run in several} == {(1.0, 100), (1.5, 200)}
    assert {run.seed for run in several} == set(range(4))
    first_rows = found["smoothout-table2-cifar10"]
    assert {(r.dataset, r.precision, r.epochs, r.seed) for r in first_rows} == {("folder:cifar10", "bfloat16", 400, 0)}
    assert [(r.a, r.adaptive) for r in first_rows] == [(0, False), (0.0375, False), (0.15, True)]
    assert len(found["ne-fig2-f1"]) == 13 * 2 * 5
    assert {run.seed for runs in plan(["next"], seeds=1).values() for run in runs} == {0}


def test_what_is_next_in_tiny_needs_the_embedded_data_alone():
    runs = [run for runs in plan(["next"], "tiny").values() for run in runs]
    assert {(run.dataset, run.precision) for run in runs} == {("digits", "float32")}
    small = [run for runs in plan(["next"], "small").values() for run in runs]
    assert {run.dataset for run in small if "c1" in run.network} == {"folder:cifar10"}


def test_fields_may_differ_from_the_protocol():
    runs = papers.grid("ne-table2-c1", dataset="folder:cifar10", precision="tf32", valid_size=None, seeds=2)
    assert {(run.dataset, run.precision, run.valid_size) for run in runs} == {("folder:cifar10", "tf32", 0)}
    assert {run.seed for run in papers.grid("ne-table2-c1", seeds=2, seed=5)} == {5, 6}


@pytest.mark.parametrize(("network", "of"), [("resnet8", 400), ("alexnet", 60), ("resnet18", 90)])
@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 40, "1e2"])
def test_rates_fall_at_the_same_shares_of_any_number_of_epochs(network, of, epochs):
    run = Run(**papers.protocol(network, epochs=epochs))
    published = Run(**papers.protocol(network)).scaled_lr_steps
    shares = {lr: start / of for start, lr in published}
    for start, lr in run.scaled_lr_steps:
        assert start / run.epochs == pytest.approx(shares[lr], abs=0.5 / run.epochs + 0.005)
    assert run.scaled_lr_steps[0] == published[0]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ne-table2-f1", {"alpha": 3.0}),
        ("ne-table2-f1", {"batch_size": 10}),
        ("smoothout-table1-f1", {"a": 0.1}),
        ("smoothout-table2-cifar100", {"epochs": 5}),
    ],
)
def test_what_the_cells_of_a_grid_differ_in_is_not_to_be_given(name, given):
    [field] = given
    with pytest.raises(InputError, match=f"^{field} is not to be given: it is what .* compares.$"):
        papers.grid(name, **given)


def test_rates_that_a_shorter_grid_would_never_reach_are_refused():
    with pytest.raises(InputError, match="lr_steps has one at epoch 162, after the last of 5"):
        papers.grid("smoothout-table2-cifar10", epochs=5)


def test_a_grid_without_seeds_is_refused():
    with pytest.raises(InputError, match="seeds must be a whole number, 1 or more, not 0"):
        papers.grid("ne-table2-f1", seeds=0)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(InputError, match="did you mean 'ne-fig1-c1'"):
        papers.grid("ne-fig1-c11")
    with pytest.raises(InputError, match="unknown scale 'large'"):
        papers.grid("ne-fig1-c1", "large")
    with pytest.raises(InputError, match="unknown table"):
        published.table("ne-table9")


def test_the_overview_counts_every_grid():
    rows = {row["grid"]: row for row in papers.overview()}
    assert list(rows) == list(papers.GRIDS)
    assert rows["ne-fig3-c2"]["full"] == 190
    for name, row in rows.items():
        assert row["what"] == papers.GRIDS[name].doc
        for scale in papers.GRIDS[name].scales:
            assert row[scale] == len(papers.grid(name, scale))


# ----------------------------------------------------------------------------------------------- published numbers


def test_published_times_are_whole_epochs():
    """Ten runs that stop at epoch ends: ten times the mean is a multiple of ceil(N/B), to the rounding printed."""
    for row in published.table("ne-table2").to_dict("records"):
        per_epoch = math.ceil(TRAINING_IMAGES[row["dataset"]] / row["batch_size"])
        epochs = 10 * row["updates"] / per_epoch
        assert abs(epochs - round(epochs)) * per_epoch <= 5
        run = papers.protocol(row["network"], alpha=row["alpha"], batch_size=row["batch_size"])
        assert published.epochs(Run(**run)) == pytest.approx(epochs / 10)


def test_tables_that_print_the_same_number_agree():
    two, three = published.table("ne-table2"), published.table("ne-table3")
    plain = [table[table["alpha"] == 1].set_index("network")["accuracy"] for table in (two, three)]
    pd.testing.assert_series_equal(*plain)
    one, third = published.table("smoothout-table1"), published.table("smoothout-table3")
    cells = [t[(t["network"] == "smoothout-c1") & (t["a"] == 0.0375) & t["denoise"]] for t in (one, third)]
    assert (
        cells[0].set_index("batch_size")["accuracy"].to_dict() == cells[1].set_index("batch_size")["accuracy"].to_dict()
    )
    second = published.table("smoothout-table2").query("dataset == 'cifar10'")
    by_method = {key: set() for key in ((0.0, False), (0.0375, False), (0.15, True))}
    for table in (second, published.table("smoothout-table4"), published.table("smoothout-table5")):
        for (a, adaptive), found in by_method.items():
            rows = table[(table["a"] == a) & (table["adaptive"] == adaptive)]
            found |= set(rows[rows["denoise"] & (rows["distribution"] == "uniform")]["accuracy"])
    assert list(by_method.values()) == [{91.02}, {91.95}, {92.63}]


def test_gains_are_those_of_the_texts():
    three = published.table("ne-table3").assign(enhanced=lambda t: t["alpha"] > 1)
    wide = three.pivot_table(index="network", columns="enhanced", values="accuracy")
    assert (wide[True] - wide[False]).round(2).to_dict() == {"ne-c1": 0.21, "ne-c2": 0.13, "ne-f1": 0.18}
    alexnet = published.table("smoothout-table2").query("network == 'alexnet'")
    wide = alexnet.pivot_table(index="epochs", columns="adaptive", values="accuracy")
    assert (wide[True] - wide[False]).round(2).to_dict() == {60.0: 4.89, 120.0: 1.27}


@pytest.mark.parametrize("table", papers.TABLES)
def test_a_published_table_names_every_method_as_a_run_does(table):
    rows = published.table(table)
    assert rows["accuracy"].between(20, 100).all()
    for row in rows.to_dict("records"):
        Run(**{name: row[name] for name in papers.METHOD}, batch_size=row["batch_size"])


@pytest.mark.parametrize("table", papers.TABLES)
def test_a_gain_is_over_a_cell_that_differs_in_the_method_alone(table):
    rows = published.table(table)
    gained = rows[rows["baseline"] >= 0]
    plain = rows.loc[gained["baseline"]]
    assert (plain["baseline"] == -1).all(), "a baseline has none itself"
    assert set(gained["baseline"]) == set(rows.index[rows["baseline"] == -1]), "each is the baseline of something"
    alike = ["network", "dataset"]
    if table.startswith("smoothout"):  # NE compares the best of several batch sizes
        alike += ["batch_size", "epochs", "lr_scaling"]
    pd.testing.assert_frame_equal(plain[alike].reset_index(drop=True), gained[alike].reset_index(drop=True))
    assert (plain["alpha"] == 1).all()
    assert plain["denoise"].all()
    for row in rows[rows["network"].isin(papers.PROTOCOLS)].to_dict("records"):
        grids = [grid for grid in papers.GRIDS.values() if grid.network == row["network"]]
        assert row["dataset"] in {grid.dataset for grid in grids}


def test_every_published_cell_says_where_it_is_printed():
    printed = {"ne-table2": "NE Table 2: ", "smoothout-table4": "SmoothOut Table IV: "}
    for table, place in printed.items():
        assert published.table(table)["source"].str.startswith(place).all()
    second = published.table("smoothout-table2")
    derived = second[second["source"].str.contains("; not printed")]
    assert derived[["network", "epochs", "accuracy"]].values.tolist() == [["alexnet", 60.0, 52.53]]
