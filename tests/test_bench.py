"""The benchmark compares what it says: every step trains, and ratios are of steps of the same round."""

import pandas as pd
import pytest
import torch

from nb_lib import bench, bench_measures


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
