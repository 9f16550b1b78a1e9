"""The benchmark compares what it says: every step trains, and ratios are of steps of the same round."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from nb_lib import bench, bench_measures, bench_training, papers
from nb_lib.networks import build
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
    table = bench_measures.bench_measures(torch.device("cpu"), images=40, rounds=2)
    naive = table[table["what"].str.contains("naive")].iloc[0]
    assert naive["ours"] == pytest.approx(naive["theirs"], rel=1e-5)
    box = table[table["what"].str.contains("box")].iloc[0]
    assert box["ours"] >= 0.99 * box["theirs"] > 0
    assert (table["ratio"] > 0).all()
    assert any(table["what"].str.contains("PyPI"))
    assert table["data"].iloc[0].startswith("40 images")


def test_trainings_are_timed_beside_a_plain_loop_and_the_peak(monkeypatch):
    monkeypatch.setitem(bench_training.PEAK_SIZE, "cpu", 512)
    chosen = [
        bench_training.Case("ne-f1", 4, updates=2),
        bench_training.Case("ne-c1", 2, updates=1),
        bench_training.Case("digits-mlp", 5, updates=3, seeds=10),
    ]
    table = bench_training.bench_training(torch.device("cpu"), rounds=2, chosen=chosen)
    assert list(table) == ["network", "B", "precision", "seeds", "ours_per_s", "plain_per_s", "ratio", "of_peak"]
    assert list(table["network"]) == ["ne-f1", "ne-c1", "digits-mlp"]
    assert list(table["seeds"]) == [1, 1, 10]
    numbers = table[["ours_per_s", "plain_per_s", "ratio", "of_peak"]].to_numpy()
    assert np.isfinite(numbers).all()
    assert (numbers > 0).all()
    assert (table["of_peak"] < 1.5).all()


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


def test_a_row_counts_the_updates_of_every_network_side_by_side():
    case = bench_training.Case("ne-f1", 100, updates=4, seeds=10)
    times = pd.DataFrame({"ours": [2.0, 20.0, 4.0], "plain": [1.0, 10.0, 2.0], "peak": [0.1, 1.0, 0.2]})
    row = bench_training._row(case, times, 1000)
    assert row["ours_per_s"] == pytest.approx(40 / 4)
    assert row["plain_per_s"] == pytest.approx(4 / 2)
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
    bench_training._plain(case, x, y, torch.device("cpu"))()
    assert [batches[2] for batches in seen] == [1.5] * 3
    for stream in (0, 1):
        images = torch.cat([batches[stream][0] for batches in seen])
        assert sorted(images.sum((1, 2, 3)).tolist()) == sorted(x.sum((1, 2, 3)).tolist())


def test_operations_are_counted_as_by_hand():
    f1 = 784 * 500 + 6 * 500 * 500 + 500 * 10
    stacks = ((32, 3, 64), (16, 64, 128), (8, 128, 256))  # side of the images, channels before and in the stack
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
