"""Sweeps that are stopped, killed, shared, spread over workers, or short of memory or disk: no run lost, none twice."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock

from nb_lib.errors import InputError
from nb_lib.lab import sweeps, tasks
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import SomeFailed, sweep
from nb_lib.lab.training import Training, load_for, train, trained

SMALL = Run(train_size=250, batch_size=60, epochs=4)
SEEDS = [replace(SMALL, seed=seed) for seed in range(5)]
TWENTY = [replace(SMALL, batch_size=20 + 5 * k, epochs=40, seed=s) for k in range(5) for s in range(4)]
BIG = replace(SMALL, network="ne-f1", epochs=2)  # 6 MB of weights

PRELUDE = """
import json, subprocess, sys
from nb_lib.lab.runs import Run
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.training import Training
cases = json.loads(sys.argv[1])
"""


def python(script, cases, before=()):
    command = [*before, sys.executable, "-c", PRELUDE + script, json.dumps(cases, default=asdict)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"TQDM_DISABLE": "1"}, **pipes)


def until(condition):
    give_up = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def norm(model, data):
    return {"norm": float(torch.cat([p.detach().flatten() for p in model.parameters()]).norm())}


def test_a_budget_leaves_a_checkpoint_from_which_the_next_call_goes_on_as_if_never_stopped(clock, tmp_path, capsys):
    long = replace(SMALL, epochs=10)
    runs = [SMALL, long, replace(long, seed=1)]
    stopped = tmp_path / "stopped"
    assert [record.run for record in sweep(runs, stopped, budget=9)] == [SMALL]
    assert clock.now == 9  # the four epochs of the first, five of the two long ones
    assert len(list(stopped.glob("*.checkpoint"))) == 1
    left = "3 runs: 1 trained now, 0 were stored, 2 left (out of time: the same call goes on); 1 finished."
    assert left in capsys.readouterr().out
    resumed = sweep(runs, stopped)
    assert clock.now == 9 + 5
    assert "3 runs: 2 trained now, 1 were stored; 3 finished." in capsys.readouterr().out
    assert not list(stopped.glob("*.checkpoint"))
    whole = sweep(runs, tmp_path / "whole")
    assert [replace(r, provenance={}) for r in resumed] == [replace(r, provenance={}) for r in whole]
    assert resumed[1].provenance["side_by_side"] == 2


def test_a_checkpoint_stays_until_the_record_is_stored(clock, tmp_path):
    sweep([SMALL], tmp_path, budget=2)
    with pytest.raises(SomeFailed, match=r"^ZeroDivisionError in test_sweeps.py, line \d+: division by zero$"):
        sweep([SMALL], tmp_path, measure=lambda model, data: {"one": 1 / 0})
    clock.now = 0
    assert len(sweep([SMALL], tmp_path)) == 1
    assert clock.now == 2


SWEEPS = """
print("ready", flush=True)
for line in sys.stdin:
    sweep([Run.from_dict(fields) for fields in cases], line.strip(), budget=100)
    print("done", flush=True)
"""


@pytest.mark.slow
def test_two_processes_train_no_run_twice_and_one_takes_over_what_a_killed_one_was_at(tmp_path):
    def begin(folder):
        for process in (killed, other):
            print(folder, file=process.stdin, flush=True)
        return RunStore(folder)

    def trained_now(process):
        closing_line, done = process.stdout.readline(), process.stdout.readline()
        assert done == "done\n"
        return int(re.fullmatch(r"20 runs: (\d+) trained now, \d+ were stored; 20 finished.\n", closing_line)[1])

    with python(SWEEPS, TWENTY) as killed, python(SWEEPS, TWENTY) as other:
        assert [process.stdout.readline() for process in (killed, other)] == ["ready\n"] * 2
        shared = begin(tmp_path / "shared")
        counts = [trained_now(process) for process in (killed, other)]
        assert sum(counts) == 20
        assert min(counts) > 0
        assert {record.run for record in shared} == set(TWENTY)
        assert max(record.provenance["side_by_side"] for record in shared) > 1

        inherited = begin(tmp_path / "inherited")
        until(lambda: len(inherited) >= 4)
        killed.kill()
        killed.wait()
        assert len(inherited) < 20
        assert trained_now(other) > 0
        assert {record.run for record in inherited} == set(TWENTY)


def test_a_run_that_another_process_holds_is_left_to_it_and_taken_when_it_lets_go(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweeps, "_POLL", 0.05)
    store, held, free = RunStore(tmp_path), SEEDS[0], SEEDS[1]
    (tmp_path / ".locks").mkdir()
    records = []
    with FileLock(tmp_path / ".locks" / held.key):
        thread = threading.Thread(target=lambda: records.extend(sweep([held, free], store)))
        thread.start()
        until(lambda: free in store)
        thread.join(0.5)
        assert thread.is_alive()
        assert sweep([held], store, budget=0.2) == []
        assert "1 left (out of time" in capsys.readouterr().out
        assert held not in store
    thread.join(60)
    assert [record.run for record in records] == [held, free]


def test_a_run_that_another_process_ends_between_two_looks_counts_as_stored(tmp_path, monkeypatch):
    record = train(SMALL, progress=False)

    def claim_late(self, run, locks, original=tasks.Task._claim):
        self.store.save(record)
        return original(self, run, locks)

    monkeypatch.setattr(tasks.Task, "_claim", claim_late)
    assert sweep([SMALL], tmp_path) == [record]


@pytest.mark.slow
def test_a_killed_worker_costs_no_run_but_one_that_kills_its_workers(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    deadly, store, stored = replace(SMALL, train_size=200), RunStore(tmp_path), []

    def kill():
        until(lambda: len(store) >= 4)
        os.kill(victim, signal.SIGKILL)
        stored.append(len(store))

    def measure(model, data):
        return os.kill(os.getpid(), signal.SIGKILL) if len(data.train) == 200 else {}

    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))
        thread = threading.Thread(target=kill)
        thread.start()
        records = sweep(TWENTY, store, client=client, budget=100)
        thread.join()
        assert stored[0] < 20
        assert [record.run for record in records] == TWENTY
        assert sorted(records, key=lambda record: record.run.key) == list(store)

        cluster.scheduler.allowed_failures = 0
        with pytest.raises(SomeFailed) as failed:
            sweep([deadly, SMALL], store, client=cluster.scheduler_address, measure=measure)
    assert [record.run for record in failed.value.records] == [SMALL]
    captured = capsys.readouterr()
    assert "2 runs: 1 trained now, 0 were stored, 1 left (1 failed); 1 finished." in captured.out
    assert f"{deadly.label}: several workers were lost over it" in str(failed.value)


def test_short_memory_trains_fewer_networks_at_once_after_the_others_are_gone(tmp_path, monkeypatch, capsys):
    failed = []

    class Tight(Training):
        def __init__(self, *arguments):
            assert not any(training() for training in failed)
            super().__init__(*arguments)
            if len(self.runs) > 4:
                failed.append(weakref.ref(self))
                raise torch.OutOfMemoryError("CUDA out of memory.")

        def train_epoch(self):
            if len(self.runs) > 2:
                failed.append(weakref.ref(self))
                torch.empty(2**50)
            return super().train_epoch()

    monkeypatch.setattr(tasks, "Training", Tight)
    records = sweep(SEEDS, tmp_path, device="cpu")
    assert [record.run for record in records] == SEEDS
    assert sorted(record.provenance["side_by_side"] for record in records) == [1, 2, 2, 2, 2]
    said = capsys.readouterr().err
    assert "5 networks at once do not fit; 3 at once." in said
    assert "3 networks at once do not fit; 2 at once." in said


@pytest.mark.slow
def test_a_run_too_large_for_the_memory_is_left_and_the_others_are_trained(tmp_path, monkeypatch, capsys):
    def training(group, data):
        if group[0].batch_size == 125:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return Training(group, data)

    monkeypatch.setattr(tasks, "Training", training)
    large = [replace(run, batch_size=125) for run in SEEDS[:3]]
    with pytest.raises(SomeFailed) as failed:
        sweep([*large, *SEEDS], tmp_path, device="cpu")
    assert [record.run for record in failed.value.records] == SEEDS
    heading, *lines = str(failed.value).splitlines()
    assert heading == "3 of 8 runs failed; the same call tries them again."
    assert lines == [f"{large[0].label}: it does not fit into the memory of the device."]
    captured = capsys.readouterr()
    assert "8 runs: 5 trained now, 0 were stored, 3 left (3 failed); 5 finished." in captured.out


def test_a_diverging_run_is_recorded_once_and_stops_no_other(tmp_path, capsys):
    diverging = replace(SMALL, optimizer="sgd", lr=1e9, epochs=50)
    runs = [SMALL, diverging, replace(diverging, seed=1), SEEDS[1]]
    for trained_now in (4, 0):
        records = sweep(runs, tmp_path, measure=norm)
        assert [record.status for record in records] == ["finished", "diverged", "diverged", "finished"]
        assert [record.measures == {} for record in records] == [False, True, True, False]
        assert f"4 runs: {trained_now} trained now" in capsys.readouterr().out


FULL_DISK = """
for folder, size, runs, options in cases:
    Training.finish.__kwdefaults__["every"] = options.pop("every", 30.0)
    for state in f"size={size}", "remount,size=100m":
        subprocess.run(["mount", "-t", "tmpfs", "-o", state, "none", folder], check=True)
        said = ""
        try:
            sweep([Run.from_dict(fields) for fields in runs], folder, progress=False, **options)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps([said, *(record.to_json() for record in RunStore(folder))]))
"""


@pytest.mark.slow
def test_a_full_disk_is_one_clear_sentence_and_with_space_the_same_call_completes(tmp_path):
    disks = [  # size, runs, options, and how many records fit
        ("64k", [replace(SMALL, epochs=1, seed=seed) for seed in range(24)], {}, 16),  # a page each
        ("1m", [SMALL, BIG], {"keep_weights": True}, 1),
        ("1m", [SMALL, BIG], {"every": 0}, 1),  # a checkpoint after every epoch
    ]
    mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", tmp_path]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let its users mount a small file system")
    with python(FULL_DISK, [(str(tmp_path), *disk[:3]) for disk in disks], before=mount[:2]) as process:
        for _, runs, _, fit in disks:
            (said, *before), (then_said, *after) = (json.loads(process.stdout.readline()) for _ in range(2))
            assert re.fullmatch(rf"CannotWrite: cannot write {tmp_path}/\S+: No space left on device; free .*\.", said)
            assert len(before) == fit
            assert then_said == ""
            assert set(before) <= set(after)
            assert {Record.from_json(line).run for line in after} == set(runs)


def test_weights_and_measures_are_those_of_each_network_also_side_by_side(tmp_path):
    normalized = replace(SMALL, network="smoothout-f1", batch_size=125, a=0.02)
    store, runs, data = RunStore(tmp_path), [*SEEDS[:3], normalized], load_for(SMALL)
    records = sweep(runs, store, measure=norm, keep_weights=True)
    assert [record.provenance["side_by_side"] for record in records] == [3, 3, 3, 1]
    assert sorted(records, key=lambda record: record.run.key) == list(store)
    models = [trained(run, store, data) for run in runs]
    assert [record.measures for record in records] == [norm(model, data) for model in models]
    with torch.no_grad():
        losses = [float(F.cross_entropy(model(data.test.x), data.test.y)) for model in models]
    assert losses == pytest.approx([record.test_loss for record in records], rel=1e-5)
    assert len(set(losses)) == len({record.measures["norm"] for record in records}) == 4


def test_missing_and_damaged_weights_are_named_in_one_sentence(tmp_path):
    store, data = RunStore(tmp_path), load_for(SMALL)
    with pytest.raises(InputError, match=rf"^no weights of run {SMALL.key} in .*: train it with keep_weights\.$"):
        trained(SMALL, store, data)
    sweep([SMALL], store, keep_weights=True)
    path = store.weights(SMALL)
    for damaged in (path.read_bytes()[:-100], b"", b"{}"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"^{path} does not hold .*: move it elsewhere and train again\.$"):
            trained(SMALL, store, data)


def test_a_record_that_lacks_what_is_asked_for_is_made_again(tmp_path, capsys):
    store = RunStore(tmp_path)
    for asked in (
        {},
        {},
        {"measure": norm},
        {"measure": norm},
        {"keep_weights": True},
        {"keep_weights": True},
    ):
        sweep(SEEDS[:2], store, **asked)
    store.weights(SMALL).unlink()
    sweep(SEEDS[:2], store, keep_weights=True)
    assert re.findall(r"(\d) trained now", capsys.readouterr().out) == ["2", "0", "2", "0", "2", "0", "1"]
    assert all(store.weights(run).exists() for run in SEEDS[:2])
