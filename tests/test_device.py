"""Recording and replaying, with a stand-in for CUDA's graphs: what is recorded is not run, what is replayed is."""

from contextlib import contextmanager

import pytest
import torch

from nb_lib.device import Replayed, own_stream


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that remember a call: recording leaves all tensors as they were, as on a GPU."""

    class Graph:
        replays = 0

        def replay(self):
            self.replays += 1
            self.result.copy_(self.again())

    @contextmanager
    def recording(graph, stream):
        made.append(graph)
        kept = state.clone()
        yield
        state.copy_(kept)

    made, state = [], torch.zeros(3)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_stream", lambda *_: "own")
    monkeypatch.setattr("torch.cuda.default_stream", lambda *_: "default")
    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", recording)
    original = Replayed._record

    def record(self, arguments):
        graph, inputs, result = original(self, arguments)
        graph.result, graph.again = result, lambda: self.function(*inputs)
        return graph, inputs, result

    monkeypatch.setattr(Replayed, "_record", record)
    return made, state


def test_every_call_counts_once_whether_ordinary_recorded_or_replayed(graphs):
    made, state = graphs

    def step(x, factor):
        state.add_(factor * x[:3])
        return 2 * state

    replayed, expected = Replayed(step), torch.zeros(3)
    for i in range(8):
        x = torch.full((3,), float(i))
        expected += 0.5 * x
        assert torch.equal(replayed(x, 0.5), 2 * expected)
    assert [graph.replays for graph in made] == [8 - Replayed._ORDINARY_CALLS]


def test_another_shape_or_another_number_is_another_graph(graphs):
    made, _ = graphs
    replayed = Replayed(lambda x, factor: factor * x.sum())
    for _ in range(6):
        assert replayed(torch.ones(4), 1.0) == 4
        assert replayed(torch.ones(2), 1.0) == 2
        assert replayed(torch.ones(4), 3.0) == 12
    assert [graph.replays for graph in made] == [3, 3, 3]


def test_without_a_stream_of_its_own_it_is_the_function_itself(graphs, monkeypatch):
    monkeypatch.setattr("torch.cuda.current_stream", lambda *_: "default")
    calls = []
    replayed = Replayed(lambda: calls.append(1))
    for _ in range(6):
        replayed()
    assert (len(calls), graphs[0]) == (6, [])


def test_on_a_cpu_there_is_no_stream():
    with own_stream(torch.device("cpu")):
        assert Replayed(lambda x: x + 1)(torch.ones(1)) == 2
