"""Surroundings of a training: device, precision, global random numbers kept out of the way, progress bars."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nb_lib.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """``"auto"`` is the first CUDA device if there is one, else the CPU.

    Raises
    ------
    InputError
        If the name is not a device, or that device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here: use 'cpu', 'cuda' or 'auto'.") from error
    return device


@contextmanager
def random_state(device: torch.device, state: list[Tensor]) -> Iterator[None]:
    """Run with torch's global generators, which dropout draws from, at `state`; keep in it where they end."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.set_rng_state(state[0])
        for s in state[1:]:
            torch.cuda.set_rng_state(s, device)
        yield
        state[:] = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in cuda)]


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Full float32 products, TF32 ones, or bfloat16 by autocast; torch's settings are put back afterwards.

    Inside, torch's older settings (``allow_tf32``, ``get_float32_matmul_precision``) raise when read, as torch.compile
    and the profiler do: combine "tf32" with neither.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if name == "tf32" else "ieee"
        # no cache: it would keep the first step's bfloat16 weights for all that follow
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


def let_go(device: torch.device) -> None:
    """Give memory that nothing refers to any more back to the device, so that what comes next finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def hidden(progress: bool) -> bool:
    """Whether bars stay away: not wanted, or TQDM_DISABLE is set (which tqdm itself does not heed in a notebook)."""
    return not progress or os.environ.get("TQDM_DISABLE", "0") != "0"
