"""What a training is set up from: data, network, optimizer and weight noise of a `Run`, each with its own seed."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import part_sizes
from nb_lib.lab.data import Data, Split, load
from nb_lib.lab.device import out_of_memory, pick_device
from nb_lib.lab.networks import build, stackable
from nb_lib.lab.runs import Run
from nb_lib.lab.stacked import stack
from nb_lib.lab.store import RunStore
from nb_lib.smoothout import SmoothOut

Purpose = Literal["weights", "order", "noise", "dropout"]


def seed_for(run: Run, purpose: Purpose) -> int:
    """Seed of an independent stream of random numbers for each purpose of each run's seed."""
    sequence = np.random.SeedSequence([run.seed, get_args(Purpose).index(purpose)])
    word = sequence.generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))  # torch's seeds are signed


def minibatches(run: Run) -> int:
    """Count the independent minibatches of an update: B_t, and with noise enhancement B'_t (NE eq. 6)."""
    return 2 if run.alpha > 1 else 1


def noise_parts(run: Run, n: int) -> list[int]:
    """Sizes of the parts of a batch of `n` samples that share a draw of the weight noise."""
    if not run.a or not run.noise_batch:
        return [n]
    full_batch = run.batch_size if run.cutting == "even" else None
    return part_sizes(n, run.noise_batch, full_batch)


def load_for(run: Run, *, device: str = "auto", root: str | None = None, download: bool = False) -> Data:
    """Load the data set a run asks for, whole, on the device (see `data.load`).

    Raises
    ------
    InputError
        As `data.load` does, and for a run with `image_size`, which is trained by ``examples/imagenet.py``.
    """
    if run.image_size is not None:
        raise InputError(
            "a run with image_size is trained by `torchrun examples/imagenet.py`, which reads images of any size: "
            "use that, or leave image_size out."
        )
    data = load(
        run.dataset,
        root=root,
        download=download,
        train_size=run.train_size,
        valid_size=run.valid_size,
        seed=run.split_seed,
        normalization=run.inputs,
        device=pick_device(device),
    )
    return channels_last(data)


def channels_last(data: Data) -> Data:
    """Lay out images of several channels with the channels innermost: the order convolutions are fastest in."""
    if data.shape[0] == 1:
        return data
    moved: dict[str, Any] = {}
    for name in ("train", "test", "valid"):
        split = getattr(data, name)
        if split is not None:
            moved[name] = Split(split.x.contiguous(memory_format=torch.channels_last), split.y)
    return dataclasses.replace(data, **moved)


def make_network(runs: Sequence[Run], data: Data) -> nn.Sequential:
    """Network of a run at its initial weights, on the device of the data; of several runs one that holds theirs."""
    first = runs[0]
    part = noise_parts(first, first.batch_size)[0] if first.cutting == "even" else None
    norms: dict[str, Any] = {"group_size": first.ghost_batch, "minibatches": minibatches(first), "batch_size": part}
    classes = len(data.classes)
    members = [build(first.network, data.shape, classes, seed=seed_for(run, "weights"), **norms) for run in runs]
    model: nn.Sequential = members[0] if len(members) == 1 else stack(members)
    colors = data.shape[0] > 1
    weight_noise = first.a > 0  # it has the weights lie in a vector of its own
    if data.device.type == "cuda" and colors and not weight_noise:
        model = model.to(memory_format=torch.channels_last)  # as the images lie
    return model.to(data.device)


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer of a run, in its fused form."""
    parameters = list(model.parameters())
    settings: dict[str, Any] = {"lr": run.lr, "weight_decay": run.weight_decay, "fused": True}
    if run.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=run.momentum, **settings)
    return torch.optim.Adam(parameters, capturable=parameters[0].is_cuda, **settings)


def make_smoothout(run: Run, model: nn.Module) -> SmoothOut | None:
    """Weight noise of a run; None without."""
    if run.a == 0:
        return None
    return SmoothOut(
        model,
        run.a,
        distribution=run.distribution,
        adaptive=run.adaptive,
        include=run.perturb,
        denoise=run.denoise,
        seed=seed_for(run, "noise"),
    )


def side_by_side(runs: Iterable[Run], *, most: int = 32) -> list[list[Run]]:
    """Group runs that one batched model can hold: plain dense networks without clipping, alike but for the seed.

    >>> [len(group) for group in side_by_side([Run(seed=seed) for seed in range(5)], most=3)]
    [3, 2]
    """
    alike: dict[Run, list[Run]] = {}
    for run in runs:
        alone = run.clip is not None or not stackable(run.network)
        key = run if alone else dataclasses.replace(run, seed=0)
        alike.setdefault(key, []).append(run)
    return [members[i : i + most] for members in alike.values() for i in range(0, len(members), most)]


def trained(run: Run, store: RunStore, data: Data) -> nn.Module:
    """Network of a run whose weights are kept (see `sweeps.sweep`), in evaluation mode.

    Raises
    ------
    InputError
        If they are not there, or are those of another network.
    """
    # as if trained without noise enhancement, whose two minibatches matter in training mode only
    model = make_network([dataclasses.replace(run, alpha=1.0)], data).eval()
    path = store.weights(run)
    try:
        model.load_state_dict(torch.load(path, weights_only=True, map_location=data.device))
    except FileNotFoundError as error:
        raise InputError(f"no weights of run {run.key} in {store.folder}: train it with keep_weights.") from error
    except Exception as error:  # torch raises many kinds for a damaged file
        if out_of_memory(error):
            raise
        raise InputError(
            f"{path} does not hold the weights of this {run.network}, or not all: move it elsewhere and train again."
        ) from error
    return model
