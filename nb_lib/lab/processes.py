"""Several processes that train one network: joining them, agreeing, and checkpoints that they write together.

They are started by ``torchrun``; a program that is started by itself is a group of one.  Checkpoints are those of
``torch.distributed.checkpoint``: whatever the number of processes that wrote one, any number can read it.  Its index
is a pickle, so read none that somebody else made.
"""

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from filelock import FileLock, Timeout
from torch import Tensor
from torch.distributed.rendezvous import rendezvous
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.device import pick_device
from nb_lib.lab.files import cannot_write

_ORPHANS_LIVE = 30  # seconds, at most: what decodes images for a process that was killed holds its files until then
BEGIN_ANEW = "move it elsewhere to begin the run anew"


class SaidElsewhere(InputError):
    """Input cannot be used, and another process has said so."""


@contextmanager
def joined(device: str = "auto") -> Iterator[torch.device]:
    """Be one of the processes that torchrun has started, each with a device of its own, until the end.

    Raises
    ------
    InputError
        If there is no such device for every process.
    """
    if device in ("auto", "cuda"):
        found = pick_device(device)
        place = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}") if found.type == "cuda" else found
    else:
        place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    store, rank, number = _meeting_place()
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=number)
    try:
        yield place
    finally:
        dist.destroy_process_group()


def _meeting_place() -> tuple[dist.Store, int, int]:
    """Where the processes find each other, the number of this one, and how many there are.

    After a restart torchrun offers the same place again, where the addresses of the processes before may still be read
    (of several nodes TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has it offer another one).
    """
    if "RANK" not in os.environ:
        return dist.HashStore(), 0, 1
    store, rank, number = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    return store, rank, number


def agreed(device: torch.device, *flags: bool) -> list[bool]:
    """Whether any process says so, for each of some questions: the answer is the same in all."""
    answers = torch.tensor(flags, dtype=torch.float32, device=device)
    dist.all_reduce(answers, dist.ReduceOp.MAX)
    return [answer > 0 for answer in answers.tolist()]


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Go on after this if all processes can: else one `InputError` is raised, and `SaidElsewhere` in the others."""
    error = None
    try:
        yield
    except InputError as raised:
        said = str(raised).strip().splitlines()[-1]  # a worker of a DataLoader puts its traceback before it
        error = InputError(said.removeprefix("nb_lib.errors.InputError: "))
    rank, number = dist.get_rank(), dist.get_world_size()
    first = torch.tensor(number if error is None else rank, device=device)
    dist.all_reduce(first, dist.ReduceOp.MIN)
    if first == rank and error is not None:
        raise error
    if first < number:
        raise SaidElsewhere("another process has said why.")


def told_by_first(value: Any) -> Any:
    """Return what the first process has of a value, in all."""
    told = [value]
    dist.broadcast_object_list(told, 0)
    return told[0]


@contextmanager
def or_told() -> Iterator[None]:
    """Go on if input cannot be used inside: that is said once, as a warning."""
    try:
        yield
    except SaidElsewhere:
        pass
    except InputError as error:
        tqdm.write(f"{error} Training goes on.", file=sys.stderr)


def are_alike(device: torch.device, tensors: Iterable[Tensor]) -> bool:
    """Whether these are the same in all processes, to the bit."""
    differ = False
    for tensor in tensors:
        bits = tensor.detach().reshape(-1).view(torch.uint8)
        first = bits.clone()
        dist.broadcast(first, 0)
        differ |= not torch.equal(first, bits)
    return not agreed(device, differ)[0]


def claim(folder: Path) -> FileLock:
    """Have a folder for checkpoints that no other job writes to, until the lock is released or the process ends."""
    locks = folder.parent / ".locks"
    try:
        for needed in (folder, locks):
            needed.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / folder.name)
        lock.acquire(timeout=_ORPHANS_LIVE)
    except Timeout:
        raise InputError(f"another job is at this run, with checkpoints in {folder}: wait for it, or end it.") from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    return lock


def save_together(state: dict[str, Any], folder: Path, number: int, device: torch.device) -> None:
    """Keep a state of tensors, nested in dictionaries, as checkpoint `number`; earlier ones of the folder go.

    What several processes hold under one name is written once, by any of them.  A checkpoint is there whole or not at
    all.
    """
    writing, kept = folder / ".writing", folder / f"{number:09d}"
    if agreed(device, kept.exists())[0]:
        return
    with together(device), _writing(folder):
        if dist.get_rank() == 0 and writing.exists():
            shutil.rmtree(writing)
    with together(device), _writing(folder):
        dcp.save(state, checkpoint_id=writing)
    with together(device), _writing(folder):
        if dist.get_rank() == 0:
            earlier = _checkpoints(folder)
            os.rename(writing, kept)
            for path in earlier:
                shutil.rmtree(path)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (dcp.CheckpointException, OSError) as error:
        raise InputError(f"cannot write a checkpoint in {folder}: free some space, or name another store.") from error


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from, as the first process sees it; None if there is none."""
    return told_by_first(max(_checkpoints(folder), default=None))


def load_together(state: dict[str, Any], path: Path) -> None:
    """Fill the tensors of a state from a checkpoint."""
    try:
        dcp.load(state, checkpoint_id=path)
    except (dcp.CheckpointException, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint of this run, or not a whole one: {BEGIN_ANEW}.") from error


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(9 * "[0-9]"))
