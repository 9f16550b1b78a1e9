"""Sweeps that spend a given time: what fits goes first, nothing is lost, and the account adds up."""

import importlib
import itertools
import math
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from nb_lib.errors import InputError
from nb_lib.lab import sweeps, tasks, workers
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore, read_lines, write_lines
from nb_lib.lab.sweeps import SomeFailed, sweep
from nb_lib.lab.training import Training

SMALL = Run(train_size=250, batch_size=60, epochs=4)
LONG = replace(SMALL, epochs=10)
SEEDS = [replace(SMALL, seed=seed) for seed in range(5)]


def runs_of(records):
    return [record.run for record in records]


# ---------------------------------------------------------------------------------------- which group, and how long


def test_what_would_not_end_in_time_waits_for_what_does_and_then_gets_the_rest_of_the_time(clock, tmp_path):
    """An epoch takes a second, and the long pair 20 by the pace of a single one; a second call goes on where it was."""
    short, later = SMALL, replace(SMALL, batch_size=125)
    runs = [short, LONG, replace(LONG, seed=1), later]
    assert runs_of(sweep(runs, tmp_path, budget=10)) == [short, later]
    assert clock.now == 4 + 4 + 2, "the last seconds were not wasted"
    assert len(list(tmp_path.glob("*.checkpoint"))) == 1
    assert len(sweep(runs, tmp_path)) == 4
    assert clock.now == 10 + 8
    assert not list(tmp_path.glob("*.checkpoint"))


def test_the_pace_is_measured_where_it_is_not_known(clock, tmp_path):
    """The first group shows after three epochs that it will not end; it is taken up again when nothing else fits."""
    runs = [LONG, SMALL]
    assert runs_of(sweep(runs, tmp_path, budget=8)) == [SMALL]
    assert clock.now == 3 + 4 + 1
    sweep(runs, tmp_path)
    assert clock.now == 8 + 6


def test_what_is_nearly_done_is_ended_first(clock, tmp_path):
    """Half of the long run is in a checkpoint: what is left of it fits, and goes by its place in the order."""
    pace = sweep([replace(SMALL, seed=9)], progress=False)
    sweep([LONG], tmp_path, budget=5)
    clock.now = 0
    assert runs_of(sweep([LONG, SMALL], tmp_path, budget=6.5, have=pace)) == [LONG]
    assert clock.now == 5 + 1


def test_records_say_how_many_epochs_a_stopping_rule_takes_and_those_of_this_machine_how_long(clock, tmp_path):
    rule = replace(SMALL, stop_below=0.2, lr=3e-3, epochs=500)
    [known] = sweep([rule], progress=False)
    assert 10 < known.epochs < 100
    assert known.wall_time == clock.now
    runs = [replace(rule, seed=1), SMALL]
    clock.now = 0
    sweep(runs, tmp_path / "here", have=[known], budget=known.epochs - 1)
    assert runs_of(RunStore(tmp_path / "here")) == [SMALL]
    clock.now = 0
    elsewhere = replace(known, provenance={**known.provenance, "device": "a slower one"}, wall_time=1e6)
    sweep(runs, tmp_path / "elsewhere", have=[elsewhere], budget=known.epochs + 20)
    assert len(RunStore(tmp_path / "elsewhere")) == 2, "its pace says nothing of this machine"


def test_an_epoch_that_does_not_fit_is_not_begun_also_of_a_network_not_seen_yet(clock, tmp_path):
    other = replace(SMALL, network="smoothout-f1")
    assert runs_of(sweep([SMALL, other], tmp_path, budget=4.5)) == [SMALL]
    assert clock.now == 4
    assert not list(tmp_path.glob("*.checkpoint"))


def test_members_that_ended_are_stored_at_once_and_the_others_go_on_without_them(clock, tmp_path):
    rule = replace(SMALL, stop_below=0.4, lr=3e-3, epochs=60)
    runs = [replace(rule, seed=seed) for seed in range(3)]
    whole = sweep(runs, tmp_path / "whole")
    ends = sorted(record.epochs for record in whole)
    assert ends[0] < ends[-1]
    clock.now = 0
    stopped = sweep(runs, tmp_path / "stopped", budget=ends[0] + 0.5)
    assert [record.epochs for record in stopped] == [epochs for epochs in ends if epochs == ends[0]]
    assert len(list((tmp_path / "stopped").glob("*.checkpoint"))) == 1
    rest = sweep(runs, tmp_path / "stopped")
    assert clock.now == ends[-1], "nothing was trained twice"
    assert [(r.run, r.epochs) for r in rest] == [(r.run, r.epochs) for r in whole]
    assert [r.train_loss for r in rest] == pytest.approx([r.train_loss for r in whole], rel=1e-3)
    assert not list((tmp_path / "stopped").glob("*.checkpoint"))


def test_checkpoints_of_other_sweeps_and_damaged_ones_are_left_alone(clock, tmp_path):
    sweep([LONG], tmp_path, budget=5)
    (tmp_path / "damaged.checkpoint").write_bytes(b"no checkpoint")
    sweep([SMALL], tmp_path)
    assert len(list(tmp_path.glob("*.checkpoint"))) == 2
    sweep([LONG], tmp_path)
    assert [path.name for path in tmp_path.glob("*.checkpoint")] == ["damaged.checkpoint"]


@pytest.mark.parametrize("budget", [0, 0.5, 10])
@pytest.mark.parametrize("loading", [0, 100])
def test_however_short_the_time_every_call_gets_on(budget, loading, clock, tmp_path, monkeypatch):
    """Shorter than loading the data, or than one epoch: whose length the second call knows from a record."""

    def data_for(*where, original=tasks.data_for):
        clock.now += loading
        return original(*where)

    monkeypatch.setattr(tasks, "data_for", data_for)
    [pace] = sweep([replace(SMALL, seed=9)], progress=False)
    calls = 0
    while SMALL not in RunStore(tmp_path):
        sweep([SMALL, replace(SMALL, batch_size=50)], tmp_path, budget=budget, have=[pace])
        calls += 1
        assert calls <= 4
    assert calls == (1 if budget > loading + 4 else 4)


def test_who_waits_for_another_process_gives_up_in_time(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.Task, "_claim", lambda *_: False)
    sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)  # noqa: E731
    monkeypatch.setattr(sweeps.time, "sleep", sleep, raising=False)
    assert sweep([SMALL], tmp_path, budget=3) == []
    assert clock.now == 3


def test_a_wall_clock_that_jumps_neither_ends_a_budget_nor_lengthens_it(tmp_path, monkeypatch):
    jumps = itertools.cycle([0, 600, -600])
    monkeypatch.setattr("time.time", lambda now=time.time: now() + next(jumps))
    assert len(sweep([SMALL], tmp_path, budget=60)) == 1
    started = time.monotonic()
    assert sweep([replace(SMALL, epochs=10**9)], tmp_path, budget=0.3) == []
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(("budget", "said"), [(-1, "-1"), (math.nan, "nan"), ("soon", "'soon'"), ("nan", "nan")])
def test_a_budget_that_is_none_is_refused(budget, said, tmp_path):
    with pytest.raises(InputError, match=f"^budget must be .*, not {said}.$"):
        sweep([SMALL], tmp_path, budget=budget)


def test_a_budget_may_be_text_or_endless(tmp_path):
    assert len(sweep([SMALL], tmp_path, budget="1e2", progress=False)) == 1
    assert len(sweep([SMALL], tmp_path / "other", budget=math.inf, progress=False)) == 1


def set_clock_on(seconds):
    shifted = SimpleNamespace(monotonic=lambda: time.monotonic() + seconds, perf_counter=time.perf_counter)
    for module in ("tasks", "training"):
        importlib.import_module(f"nb_lib.lab.{module}").time = shifted


@pytest.mark.slow
def test_a_budget_is_the_same_on_machines_whose_clocks_differ(tmp_path):
    distributed = pytest.importorskip("distributed")
    long = [replace(SMALL, batch_size=b, epochs=10**9) for b in (50, 60)]  # one waits for the other
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        for seconds in (-1e6, 1e6):
            client.run(set_clock_on, seconds)
            assert len(sweep([SMALL], tmp_path / str(seconds), client=client, budget=60)) == 1
            started = time.monotonic()
            assert sweep(long, tmp_path / str(seconds), client=client, budget=2) == []
            assert 1 < time.monotonic() - started < 20
            assert len(list((tmp_path / str(seconds)).glob("*.checkpoint"))) == 1


def test_a_forecast_scales_with_networks_and_minibatches():
    forecast = workers.Forecast()
    assert forecast.epoch(SEEDS) == 0
    assert math.isnan(forecast.rest(SEEDS))
    forecast.learn(SMALL, 2, 6.0)
    assert forecast.epoch([SMALL]) == 3
    assert forecast.epoch(SEEDS) == 15
    assert forecast.rest(SEEDS) == 4 * 15
    assert forecast.rest(SEEDS, done=3) == 15
    assert forecast.epoch([replace(SMALL, alpha=2.0, batch_size=50)]) == 6
    forecast.learn(replace(SMALL, network="ne-f1"), 1, 100.0)
    assert forecast.epoch([SMALL]) == 3
    unknown = [replace(SMALL, network="ne-c1")]
    assert forecast.epoch(unknown) == 100, "the slowest measured now"
    assert math.isnan(forecast.rest(unknown))


def test_what_is_known_of_one_set_of_data_serves_for_copies_of_it_also_of_another_size(tmp_path):
    [known] = sweep([SMALL], tmp_path, progress=False)
    large = Run(network="ne-f1", dataset="mnist", batch_size=59_999, stop_below=0.01)
    forecast = workers.Forecast([replace(known, run=large, epochs=70)])
    assert forecast.epochs([replace(large, dataset="folder:mnist", seed=3)]) == 70


def test_what_took_long_elsewhere_or_earlier_keeps_no_other_network_from_beginning(clock, tmp_path):
    [slow] = sweep([replace(SMALL, network="ne-f1")], progress=False)
    slow = replace(slow, wall_time=1e6)
    clock.now = 0
    assert runs_of(sweep([SMALL], tmp_path, have=[slow], budget=5)) == [SMALL]


def test_a_published_time_serves_where_no_record_does():
    run = Run(network="ne-f1", dataset="fashion-mnist", batch_size=900, stop_below=0.001, epochs=2000)
    assert workers.Forecast().epochs([run]) == pytest.approx(10934 / 67)
    assert math.isnan(workers.Forecast().epochs([replace(run, batch_size=800)]))
    assert math.isnan(workers.Forecast().epochs([replace(run, train_size=1500)]))
    assert workers.Forecast().epochs([replace(run, stop_below=None)]) == 2000


# ------------------------------------------------------------------------------------------ elsewhere, and home


def test_what_is_done_elsewhere_is_neither_trained_nor_returned(tmp_path, capsys):
    elsewhere = sweep(SEEDS[:2], progress=False)
    assert runs_of(sweep(SEEDS, tmp_path, have=elsewhere)) == SEEDS[2:]
    assert "5 runs: 3 trained now, 0 were stored, 2 done elsewhere; 3 finished." in capsys.readouterr().out
    assert sweep(SEEDS[:2], tmp_path / "other", have=elsewhere) == []


def test_one_file_to_carry_home_is_kept_while_the_sweep_goes_on(tmp_path, monkeypatch):
    home, seen = tmp_path / "home.jsonl", []

    def attempt(self, group, *rest, original=tasks.Task._attempt):
        seen.append(len(read_lines(home)))
        return original(self, group, *rest)

    write_lines(sweep([SEEDS[1]], progress=False), home)  # what is in it stays
    monkeypatch.setattr(tasks.Task, "_attempt", attempt)
    runs = [replace(SMALL, batch_size=b) for b in (125, 60, 50)]
    sweep(runs, tmp_path / "store", into=home)
    assert seen == [1, 2, 3]
    assert set(runs_of(read_lines(home))) == {SEEDS[1], *runs}


@pytest.mark.parametrize("content", ["", "no record\n", '{"a": 1}\n'])
def test_a_file_that_cannot_take_the_records_is_refused_before_anything_is_trained(content, tmp_path):
    home = tmp_path / "home.jsonl"
    home.write_text(content)
    if content:
        with pytest.raises(InputError, match=r"home\.jsonl"):
            sweep([Run(epochs=1)], tmp_path / "store", into=home, progress=False)
        assert not (tmp_path / "store").exists()
        assert home.read_text() == content
    else:
        sweep([Run(epochs=1)], tmp_path / "store", into=home, progress=False)
        assert len(read_lines(home)) == 1


def test_the_account_has_a_line_for_each_experiment(tmp_path, capsys):
    elsewhere = sweep([SEEDS[4]], progress=False)
    sweep([SEEDS[3]], tmp_path, progress=False)
    named = {"first": SEEDS[:2], "second": [*SEEDS[1:], replace(LONG, batch_size=240)], "third": []}
    runs = [run for of in named.values() for run in of]
    records = sweep(runs, tmp_path, named=named, have=elsewhere, budget=100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    first, second, third = (line.split(maxsplit=7) for line in lines[1:4])
    assert first[:6] == ["first", "2", "2", "0", "0", "0"]
    assert second[:6] == ["second", "5", "3", "1", "1", "0"]
    assert third[:6] == ["third", "0", "0", "0", "0", "0"]
    assert first[7] == records[0].provenance["device"]
    seconds = sum(r.wall_time / r.provenance["side_by_side"] for r in records[:2])
    assert float(first[6].replace(",", "")) == pytest.approx(sum(r.samples for r in records[:2]) / seconds, abs=1)
    assert lines[4].startswith("6 runs: 4 trained now, 1 were stored, 1 done elsewhere; 5 finished")


# ------------------------------------------------------------------------------------------------ as on a GPU


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Sweep as on a GPU, but here: plain runs are taken for small ones, for a second process, which is a real one."""
    monkeypatch.setattr(workers, "_host_bound", lambda group: group[0].alpha == 1)
    bar = SimpleNamespace(set_description=lambda _: None, set_postfix_str=lambda _: None)

    def run(runs, measure=None):
        task = tasks.Task(RunStore(tmp_path), "cpu", None, False, measure, False, math.inf)
        return list(workers._beside(workers.Forecast(), task, [[run] for run in runs], bar))

    return run


@pytest.mark.slow
def test_small_networks_train_in_a_second_process_beside_large_ones(beside, tmp_path, monkeypatch):
    small = [replace(SMALL, batch_size=b) for b in (50, 60)]
    large = [replace(SMALL, batch_size=b, alpha=1.5) for b in (50, 60)]
    mine = []

    def attempt(self, group, *rest, original=tasks.Task._attempt):
        give_up = time.monotonic() + 100
        while not mine and small[0] not in self.store and time.monotonic() < give_up:
            time.sleep(0.05)  # the other process is at it
        mine.append(group[0])
        return original(self, group, *rest)

    monkeypatch.setattr(tasks.Task, "_attempt", attempt)
    ended = beside([*small, *large])
    assert small[0] not in mine
    assert set(large) <= set(mine)
    found = [record.run.key for one in ended for record in one.records]
    assert sorted(found) == sorted(run.key for run in (*small, *large))


@pytest.mark.slow
def test_a_second_process_that_is_killed_costs_its_run_and_no_other(beside, tmp_path, monkeypatch):
    deadly = replace(SMALL, train_size=200)
    large = [replace(SMALL, batch_size=b, alpha=1.5) for b in (50, 60)]
    ended = beside([deadly, *large], measure=kill_at_200)
    assert [one.failed for one in ended if one.failed] == [{deadly: "the second process was lost over it."}]
    assert set(runs_of(RunStore(tmp_path))) == set(large)


def kill_at_200(model, data):
    return os.kill(os.getpid(), signal.SIGKILL) if len(data.train) == 200 else {}


def test_without_both_kinds_there_is_no_second_process(beside, monkeypatch):
    monkeypatch.setattr(workers, "ProcessPoolExecutor", None)
    for alpha in (1.0, 1.5):
        assert len(beside([replace(SMALL, alpha=alpha, seed=s) for s in range(2)])) == 2


@pytest.mark.parametrize(
    ("network", "fields", "count", "bound"),
    [
        ("smoothout-f1", {"batch_size": 6000, "a": 0.0375, "noise_batch": 128}, 1, True),
        ("smoothout-f1", {"batch_size": 256}, 1, True),
        ("smoothout-f1", {"batch_size": 6000}, 1, False),
        ("ne-f1", {"batch_size": 900}, 10, False),
        ("digits-mlp", {"batch_size": 100}, 3, True),
        ("smoothout-c1", {"batch_size": 256, "a": 0.0375, "noise_batch": 128}, 1, False),
    ],
)
def test_a_gpu_waits_for_its_host_at_small_passes_of_dense_networks(network, fields, count, bound):
    group = [Run(network=network, dataset="mnist", seed=seed, **fields) for seed in range(count)]
    assert workers._host_bound(group) == bound


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_short_memory_has_many_names(error, tmp_path, monkeypatch, capsys):
    def training(group, data):
        if len(group) > 1:
            raise error
        return Training(group, data)

    monkeypatch.setattr(tasks, "Training", training)
    assert len(sweep(SEEDS[:2], tmp_path, device="cpu")) == 2
    assert "2 networks at once do not fit; 1 at once." in capsys.readouterr().err


def test_short_memory_while_recording_is_found_beneath_what_the_recording_says(tmp_path, monkeypatch):
    def training(group, data):
        if len(group) > 1:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        return Training(group, data)

    monkeypatch.setattr(tasks, "Training", training)
    assert len(sweep(SEEDS[:2], tmp_path, device="cpu")) == 2


def test_another_error_is_not_taken_for_short_memory(tmp_path, monkeypatch):
    def training(group, data):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (60x64 and 63x64)")

    monkeypatch.setattr(tasks, "Training", training)
    with pytest.raises(SomeFailed, match=r"^RuntimeError in test_budgets.py, line \d+: mat1 .* cannot be multiplied"):
        sweep(SEEDS[:2], tmp_path, device="cpu")
