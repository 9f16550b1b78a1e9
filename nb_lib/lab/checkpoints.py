"""Where interrupted trainings go on: the state of one in a file, and the folder of such files."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nb_lib.errors import InputError
from nb_lib.lab.files import write_atomically
from nb_lib.lab.runs import Run

State = dict[str, Any]


def save_checkpoint(path: Path, state: State) -> None:
    """Keep a state (see `training.Training.state_dict`) in a file; an earlier one is replaced whole or not at all."""
    write_atomically(path, lambda file: torch.save(state, file))


def checkpointed(path: Path, *, glance: bool = False) -> State:
    """Read the state in a checkpoint, onto the CPU; at a glance its tensors stay in the file, and are gone with it."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=glance)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"the checkpoint {path} is damaged: delete it to start this run again.") from error


def state_for(state: State, runs: Sequence[Run], device: str) -> State:
    """Of the state of these runs, or of more that were side by side, that of these, as if they had trained alone.

    Raises
    ------
    InputError
        If it belongs to other runs, or to another kind of device than `device` (``"cpu"`` or ``"cuda"``).
    """
    there = state["keys"]
    here = [run.key for run in runs]
    if not set(here) <= set(there):
        raise InputError("the checkpoint belongs to another run: delete it or name another file.")
    made_with = state.get("device", device)  # an old one does not say
    if made_with != device:
        raise InputError(
            f"the checkpoint was made with device {made_with!r}, whose random numbers {device!r} cannot go on with: "
            "continue it there, or name another file to begin anew."
        )
    if here == there:
        return state
    return _members(state, [there.index(key) for key in here])


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
