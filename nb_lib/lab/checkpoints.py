"""Where interrupted trainings go on: the state of one in a file, and the folder of such files."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from nb_lib.errors import InputError
from nb_lib.lab.device import out_of_memory
from nb_lib.lab.files import write_atomically
from nb_lib.lab.runs import Run

State = dict[str, Any]

_OF_EACH_RUN = ("keys", "order", "status", "curves", "factors")
_LAYOUT = {**dict.fromkeys(_OF_EACH_RUN, list), "progress": list, "dropout": list, "model": dict, "optimizer": dict}
_LATER = {"device", "smooth"}  # which not every version wrote
_ANEW = "move it elsewhere to begin its runs anew"


def save_checkpoint(path: Path, state: State) -> None:
    """Keep a state (see `training.Training.state_dict`) in a file; an earlier one is replaced whole or not at all."""
    write_atomically(path, lambda file: torch.save(state, file))


def checkpointed(path: Path, *, glance: bool = False) -> State:
    """Read the state in a checkpoint, onto the CPU; at a glance its tensors stay in the file, and are gone with it."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=glance)
    except Exception as error:  # torch raises many kinds for a damaged file
        if out_of_memory(error):
            raise
        raise InputError(f"{path} is not a checkpoint, or not a whole one: {_ANEW}.") from error
    if not _is_state(state):
        raise InputError(f"{path} is not a checkpoint as this version writes them: update nb_lib, or {_ANEW}.")
    return {**state, "file": path}


def _is_state(state: Any) -> bool:
    """Whether this has the parts of a state, and one of each run where it should."""
    if not isinstance(state, dict) or state.keys() - _LATER != _LAYOUT.keys():
        return False
    if not all(isinstance(state[name], kind) for name, kind in _LAYOUT.items()):
        return False
    counts = {len(state[name]) for name in _OF_EACH_RUN}
    named = all(isinstance(key, str) for key in state["keys"])
    kinds = [type(number) for number in state["progress"]]
    return len(counts) == 1 and counts != {0} and named and kinds == [int, int, float]


@contextmanager
def expecting(state: State) -> Iterator[None]:
    """Say in one sentence that a state is of another network, or otherwise not what is put into a training here."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        raise InputError(f"{_named(state)} does not fit the network of its runs: {_ANEW}.") from error


def _named(state: State) -> str:
    return f"the checkpoint {state['file']}" if "file" in state else "the checkpoint"


def state_for(state: State, runs: Sequence[Run], device: str) -> State:
    """Of the state of these runs, or of more that were side by side, that of these, as if they had trained alone.

    Raises
    ------
    InputError
        If it belongs to other runs, or to another kind of device than `device` (``"cpu"`` or ``"cuda"``), or is beyond
        the runs' end.
    """
    there = state["keys"]
    here = [run.key for run in runs]
    if not set(here) <= set(there):
        raise InputError(f"{_named(state)} belongs to another run: name another file.")
    made_with = state.get("device", device)  # an old one does not say
    if made_with != device:
        raise InputError(
            f"{_named(state)} was made with device {made_with!r}, whose random numbers {device!r} cannot go on with: "
            "continue it there, or name another file to begin anew."
        )
    if here != there:
        state = _members(state, [there.index(key) for key in here])
    epoch, limit = state["progress"][0], runs[0].epochs
    still_training = not all(state["status"])
    if epoch + still_training > limit:
        raise InputError(f"{_named(state)} is at epoch {epoch} of {limit}, where its runs had ended: {_ANEW}.")
    return state


def _members(state: State, chosen: list[int]) -> State:
    """Of the state of networks side by side that of the chosen ones; of a single one as that network has it."""
    index = chosen if len(chosen) > 1 else chosen[0]  # one has no first axis that would count networks
    per_run = {}
    for name in ("order", "factors", "status", "curves"):
        per_run[name] = [state[name][k] for k in chosen]
    model = {name: weights[index] for name, weights in state["model"].items()}
    moments = {}
    for i, entry in state["optimizer"]["state"].items():
        # the number of steps, which has no axis, is one for all
        moments[i] = {name: value[index] if value.ndim else value for name, value in entry.items()}
    optimizer = {**state["optimizer"], "state": moments}
    return {**state, **per_run, "model": model, "optimizer": optimizer}


class Checkpoints:
    """Checkpoints in a folder, each of a group of runs side by side.

    >>> Checkpoints(Path("store")).path([Run()], "cpu").suffix
    '.checkpoint'
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, runs: Sequence[Run], device: str) -> Path:
        """Where the state of these runs is kept; a GPU's is of no use to a CPU, nor the other way round."""
        content = device + "".join(run.key for run in runs)
        name = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self.folder / f"{name}.checkpoint"

    def furthest(self, runs: Sequence[Run], device: str) -> tuple[int, Path] | None:
        """How far these runs got, in epochs, and in which checkpoint, perhaps of a larger group; None if in none."""
        wanted = {run.key for run in runs}
        found = []
        for path, state in self:
            made_with = state.get("device", "cpu")
            if made_with == device and wanted <= set(state["keys"]):
                found.append((state["progress"][0], path))
        return max(found, default=None)

    def forget(self, keys: set[str]) -> None:
        """Remove the checkpoints of which all runs are among these."""
        for path, state in self:
            if set(state["keys"]) <= keys:
                path.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[tuple[Path, State]]:
        """Each checkpoint and, at a glance, its state."""
        for path in sorted(self.folder.glob("*.checkpoint")):
            with suppress(InputError):  # damaged, or gone by now
                yield path, checkpointed(path, glance=True)
