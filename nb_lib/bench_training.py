"""How fast trainings are: updates per second beside a plain loop's, and the part of the device's peak they reach.

Every update is NE's (α = 1.5).  Ours is `training.Training` at work, whole epochs of it; the plain loop is what a
competent user of PyTorch writes: data loaders, two backward passes, fused Adam.  The peak is that of a large matrix
product.  As in `nb_lib.bench` the three take turns within one run.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from nb_lib.bench import Step, interleaved
from nb_lib.data import Data, Split, image_shape
from nb_lib.device import precision
from nb_lib.networks import Shape, build
from nb_lib.papers import GRIDS, PROTOCOLS, grid, ne_table_2
from nb_lib.runs import Run
from nb_lib.training import Training

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # side of the matrices
_ALPHA = 1.5
_B = (100, 1000, 5000)
_SAMPLES = {"cifar10": 50_000, "cifar100": 50_000, "mnist": 60_000, "fashion-mnist": 60_000}
Batch = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """What is timed: that many updates a round, of one network or of several side by side."""

    network: str
    batch_size: int
    updates: int
    precision: str = "float32"
    seeds: int = 1


def cases(device: torch.device) -> list[Case]:
    """What `bench_training` times there: on a CPU little, for it is slow."""
    if device.type == "cpu":
        f1 = [Case("ne-f1", b, max(1, 3000 // b)) for b in _B]
        return [*f1, Case("ne-c1", 100, 1), Case("digits-mlp", 100, 200, seeds=10)]
    # at least three updates a round: graphs are recorded on the fourth, within the two rounds of warm-up
    f1 = [Case("ne-f1", b, max(3, 60_000 // b)) for b in _B]
    c1 = [Case("ne-c1", b, max(3, 10_000 // b), name) for name in ("float32", "tf32", "bfloat16") for b in _B]
    return [*f1, Case("ne-f1", 100, 600, seeds=10), *c1]


def bench_training(
    device: torch.device, *, rounds: int | None = None, chosen: Sequence[Case] | None = None
) -> pd.DataFrame:
    """Time trainings on random images; a row a case.

    Parameters
    ----------
    device : torch.device
    rounds : int, optional
        Repetitions: 3 on a CPU, else 7.
    chosen : sequence of Case, optional
        Instead of `cases`.

    Returns
    -------
    pandas.DataFrame
        Columns network, B, precision, seeds (networks side by side), ours_per_s and plain_per_s (updates a second,
        each network's counted), ratio (ours ÷ plain, of the time of one network's update: below 1 ours is faster;
        median over rounds), of_peak (part of the measured peak of a matrix product that ours reaches).
    """
    rounds = rounds or (3 if device.type == "cpu" else 7)
    rows = []
    for case in cases(device) if chosen is None else chosen:
        rows.append(_row(case, interleaved(_steps(case, device), device, rounds), PEAK_SIZE[device.type]))
        gc.collect()  # a training and its recorded steps refer to each other: gigabytes that the next case needs
        torch.cuda.empty_cache()
    return pd.DataFrame(rows)


def _row(case: Case, times: pd.DataFrame, size: int) -> dict[str, object]:
    ours, plain = times["ours"] / (case.updates * case.seeds), times["plain"] / case.updates
    peak = 2 * size**3 / times["peak"].min()
    return {
        "network": case.network,
        "B": case.batch_size,
        "precision": case.precision,
        "seeds": case.seeds,
        "ours_per_s": 1 / ours.median(),
        "plain_per_s": 1 / plain.median(),
        "ratio": (ours / plain).median(),
        "of_peak": 2 * case.batch_size * flops_per_sample(case.network) / ours.median() / peak,
    }


def _steps(case: Case, device: torch.device) -> dict[str, Step]:
    """An epoch of ours, one of the plain loop, and a matrix product."""
    x = torch.rand(case.updates * case.batch_size, *_shape(case.network))
    y = torch.randint(10, (len(x),))
    return {"ours": _ours(case, x, y, device), "plain": _plain(case, x, y, device), "peak": _product(case, device)}


def _ours(case: Case, x: Tensor, y: Tensor, device: torch.device) -> Step:
    run = Run(network=case.network, batch_size=case.batch_size, alpha=_ALPHA, precision=case.precision, epochs=10**6)
    runs = [replace(run, seed=seed) for seed in range(case.seeds)]
    train, test = Split(x.to(device), y.to(device)), Split(x[:1].to(device), y[:1].to(device))
    training = Training(runs, Data("random", "random", tuple("0123456789"), train, test))

    def epoch() -> None:
        training.train_epoch()

    return epoch


def _plain(case: Case, x: Tensor, y: Tensor, device: torch.device) -> Step:
    net = build(case.network, _shape(case.network), 10, device=device).train()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    pinned = device.type == "cuda"
    loaders = [
        DataLoader(TensorDataset(x, y), batch_size=case.batch_size, shuffle=True, pin_memory=pinned) for _ in range(2)
    ]

    def moved(batch: Batch) -> Batch:
        return [part.to(device, non_blocking=True) for part in batch]

    def epoch() -> None:
        with precision(case.precision, device):
            for first, second in zip(*loaders, strict=True):
                optimizer.zero_grad()
                two_passes(net, moved(first), moved(second), _ALPHA)
                optimizer.step()

    return epoch


def two_passes(net: nn.Module, first: Batch, second: Batch, alpha: float) -> None:
    """Add NE's gradient (eq. 6) to `net`, one minibatch (images, labels) after the other: what one writes first."""
    for factor, (x, y) in ((alpha, first), (1 - alpha, second)):
        (factor * F.cross_entropy(net(x), y)).backward()


def _product(case: Case, device: torch.device) -> Step:
    """A product of square matrices, large enough to show the device's peak."""
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    a, b = torch.rand(2, PEAK_SIZE[device.type], PEAK_SIZE[device.type], device=device).to(dtype)

    def product() -> None:
        with precision(case.precision, device):
            a @ b

    return product


@cache
def flops_per_sample(network: str) -> float:
    """Floating-point operations of forward and backward pass on one image, counted by torch (products alone)."""
    x = torch.empty(100, *_shape(network), device="meta")
    y = torch.empty(len(x), dtype=torch.long, device="meta")
    net = build(network, _shape(network), 10, device="meta")
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), y).backward()
    return counter.get_total_flops() / len(x)


def _shape(network: str) -> Shape:
    shape = image_shape(PROTOCOLS[network]["dataset"])
    assert shape is not None
    return shape


# ------------------------------------------------------------------------------------------------------ projection


def projected_hours(measured: pd.DataFrame) -> pd.DataFrame:
    """What the papers' grids, in full, would cost on the device that was measured: a projection, nothing was trained.

    Every run of NE's is taken to last as many epochs as the longest in NE Table 2 with its network, and of SmoothOut's
    as many as its protocol says.  Seconds per update are interpolated between the measured B; below the smallest they
    are as there, above the largest proportional to B.  Without NE an update takes as long as NE's with half of B.  A
    network that was not measured is taken to reach as many FLOP per second as F1 or C1 of NE.  Evaluation and weight
    noise are left out, and runs go one by one in float32.

    Parameters
    ----------
    measured : pandas.DataFrame
        From `bench_training`.

    Returns
    -------
    pandas.DataFrame
        Columns grid, runs, hours.  Runs that several grids share count in each.
    """
    alone = measured[(measured["precision"] == "float32") & (measured["seeds"] == 1)].sort_values("B")
    rows = []
    for name in GRIDS:
        runs, one_seed = grid(name), grid(name, seeds=1)
        seconds = sum(_updates(run) * _seconds(run, alone) for run in one_seed)
        rows.append({"grid": name, "runs": len(runs), "hours": seconds * len(runs) / len(one_seed) / 3600})
    return pd.DataFrame(rows)


def _updates(run: Run) -> float:
    n, table = _SAMPLES[run.dataset], ne_table_2()
    rows = table[table["network"] == run.network]
    epochs = run.epochs if rows.empty else (rows["updates"] * rows["batch_size"]).max() / n
    return epochs * ceil(n / run.batch_size)


def _seconds(run: Run, measured: pd.DataFrame) -> float:
    like = "ne-f1" if run.network.endswith("f1") else "ne-c1"
    rows = measured[measured["network"] == like]
    b = run.batch_size if run.alpha > 1 else run.batch_size / 2
    seconds = np.interp(b, rows["B"], 1 / rows["ours_per_s"]) * max(1, b / rows["B"].max())
    return float(seconds) * flops_per_sample(run.network) / flops_per_sample(like)
