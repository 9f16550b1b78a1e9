"""The benchmark compares what it says: every step trains, and ratios are of steps of the same round."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks import measuring as bench_measures
from benchmarks import steps as bench
from benchmarks import trainings as bench_training
from nb_lib import papers
from nb_lib.lab.networks import build
from nb_lib.noise_enhancement import noise_enhanced_loss


def test_every_step_runs_and_no_ratio_lacks_its_times():
    times = bench.interleaved(bench._steps("ne-f1", 4, torch.device("cpu")), torch.device("cpu"), rounds=2)
    assert len(times) == 2
    assert (times > 0).all().all()
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in bench._ratios(times))


def test_ratios_are_medians_over_rounds_of_steps_timed_in_turn():
    names = list(bench._steps("ne-f1", 2, torch.device("cpu")))
    times = pd.DataFrame({name: [1.0, 10.0, 2.0] for name in names})  # the machine drifts tenfold
    times["NE"] = 1.5 * times["plain 2B"]
    ratios = {row["what"]: row["ratio"] for row in bench._ratios(times)}
    assert ratios["NE ÷ plain step of 2B"] == pytest.approx(1.5)
    assert ratios["SmoothOut ÷ plain step"] == pytest.approx(1.0)


def test_the_naive_loop_puts_its_noise_on_and_off():
    net, seen = torch.nn.Linear(50, 50), []
    before = net.weight.detach().clone()
    bench._naive(net, lambda: seen.append((net.weight.detach() - before).abs().max().item()))
    assert 0.9 * bench._A < seen[0] <= 1.01 * bench._A
    torch.testing.assert_close(net.weight.detach(), before)


def test_measures_are_compared_at_the_same_points(monkeypatch):
    monkeypatch.setattr(bench_measures, "POINTS", 2)
    monkeypatch.setattr(bench_measures, "_smoothouts", lambda *_: build("digits-mlp", (1, 28, 28), 10).eval())
    table = bench_measures.bench_measures(torch.device("cpu"), images=40, rounds=2)
    naive = table[table["what"].str.contains("naive")].iloc[0]
    assert naive["ours"] == pytest.approx(naive["theirs"], rel=1e-5)
    boxes = table[table["what"].str.contains("box")]
    assert len(boxes) == 2
    assert (boxes["ours"] >= 0.99 * boxes["theirs"]).all()
    assert (boxes["theirs"] > 0).all()
    assert (table["ratio"] > 0).all()
    assert any(table["what"].str.contains("PyPI"))
    assert table["data"].str.startswith("40 images").all()


def test_networks_of_a_small_and_a_large_batch_are_as_published():
    data = bench_measures._data("no such data set", 300, torch.device("cpu"), normalization="symmetric")
    assert data.train.x.shape == (300, 1, 28, 28)
    small, large = (bench_measures._smoothouts(b, data, epochs=1) for b in (100, 300))
    for model in (small, large):
        assert not any(module.training for module in model.modules())
        layers = [module for module in model if isinstance(module, torch.nn.Linear)]
        assert [layer.in_features for layer in layers] == [784, *5 * [512]]
        assert sum(p.numel() for p in model.parameters()) == 1_462_794
        assert next(m for m in model if hasattr(m, "num_batches_tracked")).num_batches_tracked > 0
    assert not torch.equal(small[1].weight, large[1].weight)


class Counted(bench_measures._Watched):
    """Its clock is the number of losses taken; those of scipy's search are also kept."""

    def __init__(self, *arguments):
        self.losses = []
        super().__init__(*arguments)

    def __call__(self, w):
        return self._kept(super().__call__(w))

    def gradient(self, w):
        return self._kept(super().gradient(w))

    def _kept(self, found):
        self.losses.append(float(found[0]))
        return found


@pytest.fixture
def regression(monkeypatch):
    """Softmax regression away from its minimum, so that both searches come to the same corner."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)).eval()
    objective = Counted(model, torch.rand(50, 1, 3, 3), torch.arange(50) % 3)
    monkeypatch.setattr(bench_measures.time, "perf_counter", lambda: float(len(objective.losses)))
    return objective


def test_a_box_is_timed_until_as_high_as_scipys(regression):
    ratio, ours, theirs = bench_measures._as_high(regression)
    losses = regression.losses
    first = losses[theirs.evaluations :]
    assert theirs.max_loss == max(losses[: theirs.evaluations]) > theirs.loss
    assert len(first) == ours.evaluations
    before = [loss >= theirs.max_loss for loss in first].index(
        True
    )  # the clock is read before a loss is counted
    assert ratio == before / theirs.evaluations
    assert 1 < before < theirs.evaluations
    assert bench_measures._as_high(regression)[0] == ratio, "in the next round too"


def test_losses_of_part_of_the_samples_do_not_stop_the_watch(regression):
    regression.level = -1.0
    regression.on(regression.x[:5], regression.y[:5]).gradient(regression.weights)
    assert np.isnan(regression.reached)
    regression.gradient(regression.weights)
    assert regression.reached >= 0


def test_a_box_that_scipy_does_not_enter_says_so(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(14 * torch.eye(10)[0])  # slopes of 10⁻⁶ where every label is 0
    data = bench_measures._data("no such data set", 30, torch.device("cpu"))
    data.train.y.zero_()
    monkeypatch.setattr(bench_measures, "_smoothouts", lambda *_: model)
    row = bench_measures._box(10, data, epochs=1, rounds=1)
    assert row["what"].endswith("; scipy does not leave w*")
    assert np.isnan(row["ratio"])
    assert row["theirs"] == pytest.approx(0, abs=1e-9)
    assert row["ours"] > 1e-5


def test_a_box_in_which_scipy_comes_higher_says_so(monkeypatch):
    search = bench_measures.box_sharpness

    def poor(objective, method="vertex", starts=0):
        return search(objective, method=method, starts=starts, epsilon=5e-4 if method == "lbfgsb" else 1e-6)

    monkeypatch.setattr(bench_measures, "box_sharpness", poor)
    monkeypatch.setattr(bench_measures, "_smoothouts", lambda *_: build("digits-mlp", (1, 28, 28), 10).eval())
    data = bench_measures._data("no such data set", 30, torch.device("cpu"))
    row = bench_measures._box(10, data, epochs=1, rounds=1)
    assert row["what"].endswith("; ours ends lower")
    assert np.isnan(row["ratio"])
    assert row["ours"] < row["theirs"]


NAMED = ["network", "B", "precision", "seeds"]
NUMBERS = ["ours_per_s", "plain_per_s", "images_per_s", "plain_images_per_s", "ms", "ratio", "of_peak"]


def test_trainings_are_timed_beside_a_plain_loop_and_the_peak(monkeypatch):
    monkeypatch.setitem(bench_training.PEAK_SIZE, "cpu", 512)
    chosen = [
        bench_training.Case("ne-f1", 4, updates=2),
        bench_training.Case("ne-c1", 2, updates=1),
        bench_training.Case("digits-mlp", 5, updates=3, seeds=10),
    ]
    table = bench_training.bench_training(torch.device("cpu"), rounds=2, chosen=chosen)
    assert list(table) == [*NAMED, *NUMBERS, "note"]
    assert list(table["network"]) == ["ne-f1", "ne-c1", "digits-mlp"]
    assert list(table["seeds"]) == [1, 1, 10]
    numbers = table[NUMBERS].to_numpy()
    assert np.isfinite(numbers).all()
    assert (numbers > 0).all()
    assert (table["of_peak"] < 1.5).all()
    assert table.attrs["left_out"] == []
    assert set(table["note"]) == {""}


@pytest.mark.parametrize(
    ("device", "precisions", "side_by_side"),
    [("cpu", {"float32"}, "digits-mlp"), ("cuda", {"float32", "tf32", "bfloat16"}, "ne-f1")],
)
def test_a_cpu_is_asked_for_less_than_a_gpu(device, precisions, side_by_side):
    cases = bench_training.cases(torch.device(device))
    alone = [c for c in cases if c.seeds == 1]
    assert [(c.network, c.batch_size) for c in cases if c.seeds == 10] == [(side_by_side, 100)]
    assert [c.batch_size for c in alone if c.network == "ne-f1"] == [100, 1000, 5000]
    c1 = {(c.precision, c.batch_size) for c in alone if c.network == "ne-c1"}
    assert c1 == {(p, b) for p in precisions for b in ((100,) if device == "cpu" else (100, 1000, 5000))}
    assert device == "cpu" or all(2 * c.updates >= 6 for c in cases), "graphs are recorded while warming up"


def test_a_short_bench_of_a_gpu_begins_with_what_says_most():
    cases = bench_training.short_cases(torch.device("cuda"))
    f1 = {(c.batch_size, c.seeds, c.precision) for c in cases if c.network == "ne-f1"}
    assert f1 == {(b, seeds, "float32") for b in (100, 900, 5000) for seeds in (1, 10)}
    c1 = {(c.batch_size, c.precision) for c in cases if c.network == "ne-c1"}
    assert c1 == {(b, name) for b in (100, 500, 5000) for name in ("float32", "tf32", "bfloat16")}
    assert len(cases) == 15
    assert min(c.updates for c in cases) >= 3
    assert cases[0] == bench_training.Case("ne-f1", 900, cases[0].updates, seeds=10)
    operations = [c.updates * c.batch_size * bench_training.flops_per_sample(c.network) for c in cases]
    assert operations[-1] == max(operations)
    assert cases[-1].precision == "float32"


def test_a_short_bench_of_a_cpu_takes_what_a_cpu_can():
    cpu = torch.device("cpu")
    assert bench_training.short_cases(cpu) == bench_training.cases(cpu)


TINY = [bench_training.Case("digits-mlp", b, updates=3, seeds=seeds) for b in (2, 3, 4) for seeds in (1, 2)]


def test_no_case_is_begun_after_the_limit(monkeypatch, capsys):
    now = [100.0]

    def steps(case, device):
        now[0] += 10
        return {"ours": lambda: None, "plain": lambda: None, "peak": lambda: None}

    monkeypatch.setattr(bench_training.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bench_training, "_steps", steps)
    table = bench_training.bench_training(torch.device("cpu"), rounds=1, chosen=TINY, limit=25)
    assert table[["B", "seeds"]].to_numpy().tolist() == [
        [2, 1],
        [2, 2],
        [3, 1],
    ]  # begun after 0, 10 and 20 seconds
    left_out = [
        "digits-mlp B=3 float32, 2 seeds",
        "digits-mlp B=4 float32",
        "digits-mlp B=4 float32, 2 seeds",
    ]
    assert table.attrs["left_out"] == left_out
    assert capsys.readouterr().out == f"not begun within 25 s: {'; '.join(left_out)}\n"


def test_a_case_that_does_not_fit_into_memory_does_not_end_the_bench(monkeypatch):
    monkeypatch.setitem(bench_training.PEAK_SIZE, "cpu", 64)
    train_epoch = bench_training.Training.train_epoch

    def full(training):
        if training.run.batch_size == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return train_epoch(training)

    monkeypatch.setattr(bench_training.Training, "train_epoch", full)
    table = bench_training.bench_training(torch.device("cpu"), rounds=1, chosen=TINY)
    assert table["note"].tolist() == ["", "", "out of memory", "out of memory", "", ""]
    full = table["note"] == "out of memory"
    assert table.loc[full, NUMBERS].isna().all(axis=None)
    assert table.loc[~full, NUMBERS].notna().all(axis=None)
    assert table["B"].tolist() == [2, 2, 3, 3, 4, 4]


def test_other_errors_end_the_bench(monkeypatch):
    def broken(case, device):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(bench_training, "_steps", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        bench_training.bench_training(torch.device("cpu"), rounds=1, chosen=TINY)


def test_a_row_counts_the_updates_of_every_network_side_by_side():
    case = bench_training.Case("ne-f1", 100, updates=4, seeds=10)
    times = pd.DataFrame({"ours": [2.0, 20.0, 4.0], "plain": [1.0, 10.0, 2.0], "peak": [0.1, 1.0, 0.2]})
    row = bench_training._row(case, times, 1000)
    assert row["ours_per_s"] == pytest.approx(40 / 4)
    assert row["plain_per_s"] == pytest.approx(4 / 2)
    assert row["images_per_s"] == pytest.approx(2 * 100 * 10)
    assert row["plain_images_per_s"] == pytest.approx(2 * 100 * 2)
    assert row["ms"] == pytest.approx(1000)  # the four updates of all ten took 4 s
    assert row["ratio"] == pytest.approx(0.2)
    assert row["of_peak"] == pytest.approx(10 * 200 * bench_training.flops_per_sample("ne-f1") / 2e10)


@pytest.mark.parametrize("network", ["digits-mlp", "ne-c1-quarter"])
def test_the_plain_loop_computes_the_update_of_noise_enhancement(network):
    torch.manual_seed(0)
    shape = (1, 8, 8) if network == "digits-mlp" else (3, 32, 32)
    x, y = torch.rand(12, *shape, dtype=torch.float64), torch.randint(10, (12,))
    plain, ours = (build(network, shape, 10, minibatches=m).double() for m in (1, 2))
    bench_training.two_passes(plain, (x[:6], y[:6]), (x[6:], y[6:]), 1.5)
    noise_enhanced_loss(F.cross_entropy(ours(x), y, reduction="none"), 1.5).backward()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert a.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)


def test_the_plain_loop_trains_on_two_shuffles_of_all_samples(monkeypatch):
    seen, case = [], bench_training.Case("digits-mlp", 4, updates=3)
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 10
    monkeypatch.setattr(bench_training, "two_passes", lambda net, *batches: seen.append(batches))
    bench_training._plain(case, x, y)()
    assert [batches[2] for batches in seen] == [1.5] * 3
    orders = []
    for stream in (0, 1):
        images, labels = (torch.cat([batches[stream][part] for batches in seen]) for part in (0, 1))
        orders.append([int(torch.nonzero((x == image).all((1, 2, 3)))) for image in images])
        assert sorted(orders[-1]) == list(range(12))
        assert torch.equal(labels, y[orders[-1]])
    assert orders[0] != orders[1]


def test_the_plain_loop_moves_its_weights(monkeypatch):
    built = []
    monkeypatch.setattr(bench_training, "build", lambda *a, **k: built.append(build(*a, **k)) or built[-1])
    case = bench_training.Case("digits-mlp", 4, updates=3)
    epoch = bench_training._plain(case, torch.rand(12, 1, 8, 8), torch.arange(12) % 10)
    before = [p.detach().clone() for p in built[0].parameters()]
    epoch()
    assert not any(torch.equal(p, old) for p, old in zip(built[0].parameters(), before, strict=True))


def test_operations_are_counted_as_by_hand():
    f1 = 784 * 500 + 6 * 500 * 500 + 500 * 10
    stacks = (
        (32, 3, 64),
        (16, 64, 128),
        (8, 128, 256),
    )  # side of the images, channels before and in the stack
    c1 = sum(9 * side**2 * (before + 2 * width) * width for side, before, width in stacks) + 256 * 4 * 4 * 10
    f1, c1 = 6 * f1 - 2 * 784 * 500, 6 * c1 - 2 * 9 * 32**2 * 3 * 64  # no gradient of the images
    assert (f1, c1) == (pytest.approx(10.6e6, rel=1e-3), pytest.approx(1593e6, rel=1e-3))
    assert bench_training.flops_per_sample("ne-f1") == pytest.approx(f1)
    assert bench_training.flops_per_sample("ne-c1") == pytest.approx(c1)


def test_the_projection_adds_up():
    measured = pd.DataFrame(
        {"network": ["ne-c1", "ne-c1", "ne-f1"], "B": [1000, 100, 1000], "ours_per_s": [2.0, 10.0, 100.0]}
    ).assign(precision="float32", seeds=1)
    faster = measured.assign(precision="tf32", ours_per_s=1e6)
    table = bench_training.projected_hours(pd.concat([faster, measured])).set_index("grid")
    assert list(table.index) == list(papers.GRIDS)
    assert (table["hours"] > 0).all()

    line = 0.4 / 900  # seconds per update are 0.1 at B = 100 and 0.5 at 1000; without NE as with half of B
    epoch = 500 * 0.1 + 250 * (0.1 + 100 * line) + 167 * (0.1 + 200 * line) + 100 * (0.1 + 400 * line)
    assert table.loc["ne-table2-c1", "runs"] == 40
    assert table.loc["ne-table2-c1", "hours"] == pytest.approx(10 * 10040 * 500 / 50_000 * epoch / 3600)

    # B = 5000 with NE, beyond what was measured: five times as long as with 1000; and α = 1 with 900
    epoch = 12 * 0.05 + 67 * 0.01
    assert table.loc["ne-table3-f1", "hours"] == pytest.approx(10 * 7914 * 2000 / 60_000 * epoch / 3600)

    scale = bench_training.flops_per_sample("smoothout-f1") / bench_training.flops_per_sample("ne-f1")
    seconds = 3 * 2 * 50 * scale * (235 * 0.01 + 10 * 0.03)
    assert table.loc["smoothout-table1-f1", "hours"] == pytest.approx(seconds / 3600)


def test_the_projection_leaves_out_what_was_not_measured():
    f1 = pd.DataFrame({"network": "ne-f1", "B": [1000, 100], "precision": "float32", "seeds": 1})
    full = f1.assign(network="ne-c1", ours_per_s=np.nan, note="out of memory")
    table = bench_training.projected_hours(pd.concat([f1.assign(ours_per_s=100.0), full])).set_index("grid")[
        "hours"
    ]
    assert table["ne-table2-f1"] > 0
    assert np.isnan(table["ne-table2-c1"])
