"""Files in the place of checkpoints and weights: what does not fit is said, left where it is, and trains nothing."""

import pickle
from dataclasses import replace

import pytest
import torch
from shared import refused

from nb_lib.lab.checkpoints import Checkpoints, checkpointed, save_checkpoint
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import load_for, trained
from nb_lib.lab.store import RunStore
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.training import Training

RUN = Run(train_size=60, batch_size=30, epochs=4)


@pytest.fixture(scope="module")
def data():
    return load_for(RUN)


@pytest.fixture
def half_way(data):
    """A training after two of its four epochs."""
    training = Training([RUN], data)
    for _ in range(2):
        training.train_epoch()
    return training


def saved(state):
    def write(path):
        torch.save(state, path)

    return write


class Exploit:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


NO_CHECKPOINTS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("{}"),
    "a directory": lambda path: path.mkdir(),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"keys": []}, 2)),
    "code": lambda path: path.write_bytes(pickle.dumps(Exploit(), 2)),
    "a list": saved([1, 2]),
    "a tensor": saved(torch.zeros(3)),
    "a state_dict": saved(torch.nn.Linear(2, 2).state_dict()),
    "Lightning's": saved({"epoch": 3, "global_step": 9, "state_dict": {}, "optimizer_states": []}),
    "without runs": saved({"keys": []}),
}


@pytest.mark.parametrize("write", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_said_and_neither_read_nor_removed_nor_replaced(write, tmp_path, data):
    mine = Checkpoints(tmp_path).path([RUN], "cpu")
    others = tmp_path / "last.checkpoint"
    for path in (mine, others):
        write(path)
    sentence = refused(lambda: sweep([RUN], tmp_path, progress=False))
    assert sentence.startswith(f"{mine} is not a checkpoint")
    assert "move it elsewhere to begin its runs anew" in sentence
    assert "delete" not in sentence
    assert others.exists()
    mine.rename(tmp_path / "elsewhere")
    assert len(sweep([RUN], tmp_path, progress=False)) == 1, "its own advice helps"
    assert others.exists()


def without(name):
    return lambda state: state.pop(name)


def moved(**progress):
    def change(state):
        for name, value in progress.items():
            state["progress"][["epoch", "updates", "wall_time"].index(name)] = value

    return change


def to(name, value):
    return lambda state: state.update({name: value})


NOT_AS_WRITTEN = {
    **{f"without {name}": without(name) for name in ("keys", "progress", "model", "optimizer", "order", "curves")},
    "with more": to("ema", {}),
    "an epoch of text": moved(epoch="2"),
    "two runs' statuses": to("status", [None, None]),
    "no curves": to("curves", []),
    "keys that are numbers": to("keys", [1]),
    "progress by name": to("progress", {"epoch": 1}),
}
NOT_FITTING = {
    "no weights": to("model", {}),
    "of another network": to("model", torch.nn.Linear(2, 2).state_dict()),
    "an optimizer of another kind": to("optimizer", {"groups": []}),
    "random numbers of another generator": to("order", [torch.zeros(3, dtype=torch.uint8)]),
    "random numbers that are none": to("order", [5]),
    "no dropout": to("dropout", [None]),
}
BEYOND = {
    "beyond": moved(epoch=5),
    "far beyond": moved(epoch=10**9),
    "at the end, but training": moved(epoch=4),
    "beyond, and ended": lambda state: (moved(epoch=5)(state), to("status", ["finished"])(state)),
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(
            (change, "is not a checkpoint as this version writes them: update nb_lib, or move")
            for change in NOT_AS_WRITTEN.values()
        ),
        *((change, "does not fit the network of its runs: move") for change in NOT_FITTING.values()),
        *((change, "of 4, where its runs had ended: move") for change in BEYOND.values()),
    ],
    ids=[*NOT_AS_WRITTEN, *NOT_FITTING, *BEYOND],
)
def test_a_checkpoint_of_another_layout_network_or_length_is_refused_by_name(change, said, half_way, tmp_path):
    path = tmp_path / "state"
    state = half_way.state_dict()
    change(state)
    save_checkpoint(path, state)
    before = path.read_bytes()
    sentence = refused(lambda: Training([RUN], half_way.data).finish(checkpoint=path, progress=False))
    assert f"{path} " in sentence
    assert said in sentence
    assert path.read_bytes() == before


def test_a_checkpoint_in_which_all_has_ended_is_one(half_way, tmp_path):
    """As when the process was killed before the record was stored."""
    [record] = half_way.finish(progress=False)
    save_checkpoint(tmp_path / "state", half_way.state_dict())
    [again] = Training([RUN], half_way.data).finish(checkpoint=tmp_path / "state", progress=False)
    assert (again.status, again.epochs, again.curve) == (record.status, 4, record.curve)


def test_an_older_checkpoint_that_does_not_name_its_device_is_one(half_way, tmp_path):
    state = half_way.state_dict()
    del state["device"]
    save_checkpoint(tmp_path / "state", state)
    [record] = Training([RUN], half_way.data).finish(checkpoint=tmp_path / "state", progress=False)
    assert record.epochs == 4


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_short_memory_is_not_taken_for_damage(error, half_way, tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_checkpoint(path, half_way.state_dict())
    store = RunStore(tmp_path)
    store.save_weights(RUN, half_way.model)

    def short(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", short)
    for read in (lambda: checkpointed(path), lambda: trained(RUN, store, half_way.data)):
        with pytest.raises(error):
            read()


OTHER = replace(RUN, network="smoothout-f1")
NO_WEIGHTS = {
    **NO_CHECKPOINTS,
    "of another network": lambda path: torch.save(trained_model(OTHER).state_dict(), path),
    "of one layer less": lambda path: torch.save(dict(list(trained_model(RUN).state_dict().items())[:-2]), path),
    "two side by side": lambda path: torch.save(
        Training([RUN, replace(RUN, seed=1)], load_for(RUN)).model.state_dict(), path
    ),
    "in a checkpoint": lambda path: torch.save(Training([RUN], load_for(RUN)).state_dict(), path),
}


def trained_model(run):
    return Training([run], load_for(run)).model


@pytest.mark.parametrize("write", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_weights_of_another_network_or_none_are_refused_and_left(write, tmp_path, data):
    store = RunStore(tmp_path)
    path = store.weights(RUN)
    write(path)
    sentence = refused(lambda: trained(RUN, store, data))
    assert (
        sentence
        == f"{path} does not hold the weights of this digits-mlp, or not all: move it elsewhere and train again."
    )
    assert path.exists()


def test_nothing_is_unpickled_that_could_run_code(tmp_path):
    """The one above would end the process: torch is told to read weights only."""
    path = tmp_path / "code"
    path.write_bytes(pickle.dumps(Exploit(), 2))
    with pytest.raises(SystemExit, match="unpickled"):
        pickle.loads(path.read_bytes())
    refused(lambda: checkpointed(path))
