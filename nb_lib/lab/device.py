"""Surroundings of a training: device and its memory, precision, global random numbers, progress bars."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nb_lib.errors import InputError
from nb_lib.lab.text import read

_NO_DEVICE = "{!r} is no device that can train: use 'cpu', 'cuda', one of several as 'cuda:1', or 'auto'."
# what libraries beneath torch say: cuDNN finds no engine
_OUT_OF_MEMORY = "can't allocate memory", "CUDA error: out of memory", "ALLOC_FAILED", "unable to find an engine"


def pick_device(name: str = "auto") -> torch.device:
    """Find a device by its name; ``"auto"`` is the first CUDA device if there is one, else the CPU.

    Raises
    ------
    InputError
        If the name is not a device that can train, or that device is not there.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if there else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InputError(_NO_DEVICE.format(name)) from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(_NO_DEVICE.format(name))
    if device.type == "cuda" and not there:
        raise InputError(f"there is no CUDA device here, so none is {name!r}: use 'cpu' or 'auto'.")
    if device.type == "cuda" and (device.index or 0) >= there:
        raise InputError(f"there is no device {name!r} here: the last is 'cuda:{there - 1}'.")
    return device


def initial_random_state(device: torch.device, seed: int) -> list[Tensor]:
    """States of freshly seeded generators, the CPU's and on CUDA also the device's."""
    cpu = torch.device("cpu")
    places = [cpu, device] if device.type == "cuda" else [cpu]
    return [torch.Generator(place).manual_seed(seed).get_state() for place in places]


@contextmanager
def random_state(device: torch.device, state: list[Tensor]) -> Iterator[None]:
    """Run with torch's global generators, which dropout draws from, at `state`; keep in it where they end.

    It begins as an `initial_random_state`.  Afterwards the generators are as before.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.set_rng_state(state[0])
        if on_cuda:
            torch.cuda.set_rng_state(state[1], device)
        yield
        state[0] = torch.get_rng_state()
        if on_cuda:
            state[1] = torch.cuda.get_rng_state(device)


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Compute in ``"float32"``, with ``"tf32"`` products, or in ``"bfloat16"`` by autocast; then put settings back.

    Inside, torch's older settings (``allow_tf32``, ``get_float32_matmul_precision``) raise when read, as torch.compile
    and the profiler do: combine "tf32" with neither.
    """
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matrices.fp32_precision, convolutions.fp32_precision
    wanted = "tf32" if name == "tf32" else "ieee"
    try:
        matrices.fp32_precision = convolutions.fp32_precision = wanted
        # no cache: it would keep the first step's bfloat16 weights for all that follow
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False):
            yield
    finally:
        matrices.fp32_precision, convolutions.fp32_precision = before


def let_go(device: torch.device) -> None:
    """Give memory that nothing refers to any more back to the device, so that what comes next finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means short memory, or covers one up that does, as when it ends the recording of a graph.

    >>> out_of_memory(MemoryError()), out_of_memory(ValueError("shapes differ"))
    (True, False)
    """
    if error is None:
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if any(words in str(error) for words in _OUT_OF_MEMORY):
        return True
    return out_of_memory(error.__context__)


def hidden(progress: bool) -> bool:
    """Whether bars stay away: not wanted, or TQDM_DISABLE is true (which tqdm itself does not heed in a notebook)."""
    said = os.environ.get("TQDM_DISABLE") or "false"
    return not progress or read("TQDM_DISABLE", said, bool)
