"""Recorded steps, with a stand-in for CUDA's graphs: what is replayed is what would have been computed."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from recorded import DIGITS, ON_A_CPU, emulate, made, ordinary, seeds, trained, weights

from nb_lib.lab.graphs import Graphs, own_stream
from nb_lib.lab.runs import Run
from nb_lib.lab.training import Training

CPU = torch.device("cpu")
MLP = Run(network="digits-mlp", batch_size=40, epochs=30)


@pytest.fixture
def tapes(monkeypatch):
    return emulate(monkeypatch)


def test_every_call_counts_once_whether_ordinary_recorded_or_replayed(tapes):
    state, graphs, expected = torch.zeros(3), Graphs(CPU), torch.zeros(3)

    def step(x, factor):
        state.add_(factor * x[:3])
        return 2 * state

    for i in range(8):
        x = torch.full((3,), float(i))
        expected += 0.5 * x
        assert torch.equal(graphs(step, x, 0.5), 2 * expected)
    assert [tape.replays for tape in tapes] == [8 - Graphs.ORDINARY_CALLS]


def test_another_function_another_shape_or_another_number_is_another_graph(tapes):
    graphs = Graphs(CPU)

    def summed(x, factor):
        return factor * x.sum()

    def most(x, factor):
        return factor * x.max()

    for _ in range(6):
        assert graphs(summed, torch.ones(4), 1.0) == 4
        assert graphs(summed, torch.ones(2), 1.0) == 2
        assert graphs(summed, torch.ones(4), 3.0) == 12
        assert graphs(most, torch.ones(4), 3.0) == 3
    assert [tape.replays for tape in tapes] == [3, 3, 3, 3]
    assert len(graphs.recordings) == 4
    graphs.forget(summed)
    assert len(graphs.recordings) == 1
    assert graphs(summed, torch.zeros(4), 1.0) == 0


def test_on_a_cpu_nothing_is_recorded_and_there_is_no_stream():
    graphs = Graphs(CPU)
    with own_stream(CPU):
        for _ in range(5):
            assert graphs(lambda x: x + 1, torch.ones(1)) == 2
    assert len(graphs.recordings) == 0


def test_the_stand_in_notices_what_a_graph_would_not_follow(tapes):
    """Numbers of Python stay as recorded, and reading a value would make the host wait: its own checks."""
    factor, graphs = [1.0], Graphs(CPU)

    def scaled(x):
        return factor[0] * x

    for _ in range(Graphs.ORDINARY_CALLS + 1):
        graphs(scaled, torch.ones(2))
    factor[0] = 5.0
    assert graphs(scaled, torch.ones(2)).tolist() == [1.0, 1.0]

    def reading(x):
        return x * float(x.sum())

    for _ in range(Graphs.ORDINARY_CALLS):
        graphs(reading, torch.ones(2))
    with pytest.raises(RuntimeError, match="waits for the device"):
        graphs(reading, torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_A_CPU)
def test_recorded_steps_are_the_ordinary_ones_to_the_bit(name, tapes):
    runs, shape = ON_A_CPU[name]
    data = made(130, shape, CPU)
    with ordinary():
        expected = trained(runs, data)
    assert not tapes
    recorded = trained(runs, data)
    assert sum(tape.replays for tape in tapes) > 4, "hardly anything was replayed"
    assert torch.isfinite(weights(expected)).all()
    assert torch.equal(weights(recorded), weights(expected))
    assert recorded.curves == expected.curves


@pytest.mark.parametrize("count", [1, 3])
def test_runs_end_halve_and_go_on_recorded_as_they_do_ordinarily(count, tapes):
    runs = seeds(replace(MLP, halve_at=2.0, stop_below=1.2, epochs=300, lr=2e-3), count)
    data = made(120, DIGITS, CPU)
    with ordinary():
        expected = Training(runs, data).finish(progress=False)
    recorded = Training(runs, data)
    records = recorded.finish(progress=False)
    assert {record.status for record in records} == {"converged"}
    assert len({record.curve[0]["lr"] for record in records} | {record.curve[-1]["lr"] for record in records}) == 2
    assert [(r.updates, r.curve) for r in records] == [(r.updates, r.curve) for r in expected]


@pytest.mark.parametrize("count", [1, 3])
def test_only_the_update_is_recorded_anew_and_once_when_rates_part(count, tapes):
    """Losses that a thousand changes of the rates would end in as many recordings, each with gigabytes."""
    data = made(120, DIGITS, CPU)
    training = Training(seeds(replace(MLP, epochs=99), count), data)
    for _ in range(3):
        training.train_epoch()
    before = len(tapes)
    assert before == 2, "forward and backward pass, and the update"
    for factor in (0.5, 0.25, 0.0):
        training.step.set_factors([factor] + [1.0] * (count - 1))
        for _ in range(3):
            training.train_epoch()
    assert len(tapes) == before + (count > 1)


def test_a_run_that_has_ended_does_not_move_while_others_train_on(tapes):
    training = Training(seeds(MLP), made(120, DIGITS, CPU))
    for _ in range(4):
        training.train_epoch()
    training.step.set_factors([1.0, 0.0, 1.0])
    before = [p.detach().clone() for p in training.model.parameters()]
    for _ in range(6):
        training.train_epoch()
    for p, old in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(p[1], old[1])
        assert not torch.equal(p[0], old[0])


@pytest.mark.parametrize("count", [1, 3])
def test_a_recorded_training_resumes_bit_for_bit(count, tapes, tmp_path):
    runs, data, path = (
        seeds(replace(MLP, a=0.05, noise_batch=20, epochs=9), count),
        made(130, DIGITS, CPU),
        tmp_path / "s",
    )
    whole = trained(runs, data, 9)
    first = trained(runs, data, 5)
    torch.save(first.state_dict(), path)
    second = Training(runs, data)
    second.train_epoch()  # what it did before must not matter
    second.load_state_dict(torch.load(path, weights_only=True))
    for _ in range(4):
        second.train_epoch()
    assert torch.equal(weights(second), weights(whole))


def test_a_training_and_its_recordings_are_gone_with_the_last_reference(tapes):
    """Not with the next full collection, which hardly ever comes: a recording holds gigabytes."""
    training = trained(seeds(MLP), made(130, DIGITS, CPU))
    assert len(tapes) == 3, "two sizes of batches, one update"
    references = [weakref.ref(training), weakref.ref(training.model), *map(weakref.ref, tapes)]
    gc.collect()
    gc.disable()
    try:
        tapes.clear()
        del training
        assert [reference() for reference in references] == [None] * len(references)
    finally:
        gc.enable()
