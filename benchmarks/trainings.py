"""How fast trainings are: updates per second beside a plain loop's, and the part of the device's peak they reach.

Every update is NE's (α = 1.5).  Ours is `training.Training` at work, whole epochs of it; the plain loop is what a
competent user of PyTorch writes for data that fit on the device: images, shuffles and indexing there, two backward
passes, fused Adam.  The peak is that of a large matrix product.  As in `benchmarks.steps` the three take turns within one
run.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.steps import Step, interleaved
from nb_lib.lab.data import Data, Split
from nb_lib.lab.device import let_go, precision
from nb_lib.lab.names import image_shape
from nb_lib.lab.networks import Shape, build
from nb_lib.lab.runs import Run
from nb_lib.lab.sweeps import out_of_memory
from nb_lib.lab.training import Training
from nb_lib.papers import GRIDS, PROTOCOLS, grid, ne_table_2

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # side of the matrices
_ALPHA = 1.5
_B = (100, 1000, 5000)
_PRECISIONS = ("float32", "tf32", "bfloat16")
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

    def __str__(self) -> str:
        several = f", {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{self.network} B={self.batch_size} {self.precision}{several}"


def cases(device: torch.device) -> list[Case]:
    """What `bench_training` times there: on a CPU little, for it is slow."""
    if device.type == "cpu":
        f1 = [Case("ne-f1", b, max(1, 3000 // b)) for b in _B]
        return [*f1, Case("ne-c1", 100, 1), Case("digits-mlp", 100, 200, seeds=10)]
    # at least three updates a round: graphs are recorded on the fourth, within the two rounds of warm-up
    f1 = [Case("ne-f1", b, max(3, 60_000 // b)) for b in _B]
    c1 = [Case("ne-c1", b, max(3, 10_000 // b), name) for name in _PRECISIONS for b in _B]
    return [*f1, Case("ne-f1", 100, 600, seeds=10), *c1]


def short_cases(device: torch.device) -> list[Case]:
    """What fits into a minute on a GPU, the most informative first; on a CPU `cases`."""
    if device.type == "cpu":
        return cases(device)
    updates = {500: 6, 100: 20, 5000: 3}  # of C1; the slowest last, and at each B the fastest first
    f1 = {
        b: [Case("ne-f1", b, max(6, 20_000 // b), seeds=seeds) for seeds in (10, 1)] for b in (900, 100, 5000)
    }
    c1 = {b: [Case("ne-c1", b, updates[b], name) for name in reversed(_PRECISIONS)] for b in updates}
    return [*f1[900], *c1[500], *c1[100], *f1[100], *f1[5000], *c1[5000]]


def bench_training(
    device: torch.device,
    *,
    rounds: int | None = None,
    chosen: Sequence[Case] | None = None,
    limit: float = math.inf,
) -> pd.DataFrame:
    """Time trainings on random images; a row a case.

    Parameters
    ----------
    device : torch.device
    rounds : int, optional
        Repetitions: 3 on a CPU, else 7.
    chosen : sequence of Case, optional
        Instead of `cases`.
    limit : float
        Seconds after which no case is begun.  Those that were not have no row: they are printed, and are in the
        table's ``attrs["left_out"]``.

    Returns
    -------
    pandas.DataFrame
        Columns network, B, precision, seeds (networks side by side), ours_per_s and plain_per_s (updates a second,
        each network's counted), images_per_s and plain_images_per_s (those of both minibatches, each network's
        counted), ms (milliseconds an update of ours, of all networks side by side), ratio (ours ÷ plain, of the time
        of one network's update: below 1 ours is faster; median over rounds), of_peak (part of the measured peak of a
        matrix product in that precision that ours reaches), note ("out of memory" where that ended a case, whose
        numbers are NaN then).
    """
    rounds = rounds or (3 if device.type == "cpu" else 7)
    chosen = cases(device) if chosen is None else chosen
    end = time.monotonic() + limit
    rows: list[dict[str, object]] = []
    while len(rows) < len(chosen) and time.monotonic() < end:
        rows.append(_timed(chosen[len(rows)], device, rounds))
        let_go(device)  # a training may hold gigabytes of recorded steps that the next case needs
    left_out = [str(case) for case in chosen[len(rows) :]]
    if left_out:
        print(f"not begun within {limit:g} s: {'; '.join(left_out)}")
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _timed(case: Case, device: torch.device, rounds: int) -> dict[str, object]:
    try:
        return _row(case, interleaved(_steps(case, device), device, rounds), PEAK_SIZE[device.type])
    except Exception as error:  # torch raises many kinds where memory runs out
        if not out_of_memory(error):
            raise
    nothing = pd.DataFrame({"ours": [math.nan], "plain": [math.nan], "peak": [math.nan]})
    return _row(case, nothing, PEAK_SIZE[device.type]) | {"note": "out of memory"}


def _row(case: Case, times: pd.DataFrame, size: int) -> dict[str, object]:
    ours, plain = times["ours"] / (case.updates * case.seeds), times["plain"] / case.updates
    images = 2 * case.batch_size
    peak = 2 * size**3 / times["peak"].min()
    return {
        "network": case.network,
        "B": case.batch_size,
        "precision": case.precision,
        "seeds": case.seeds,
        "ours_per_s": 1 / ours.median(),
        "plain_per_s": 1 / plain.median(),
        "images_per_s": images / ours.median(),
        "plain_images_per_s": images / plain.median(),
        "ms": 1000 * case.seeds * ours.median(),
        "ratio": (ours / plain).median(),
        "of_peak": images * flops_per_sample(case.network) / ours.median() / peak,
        "note": "",
    }


def _steps(case: Case, device: torch.device) -> dict[str, Step]:
    """An epoch of ours, one of the plain loop, and a matrix product."""
    x = torch.rand(case.updates * case.batch_size, *_shape(case.network), device=device)
    y = torch.randint(10, (len(x),), device=device)
    return {"ours": _ours(case, x, y), "plain": _plain(case, x, y), "peak": _product(case, device)}


def _ours(case: Case, x: Tensor, y: Tensor) -> Step:
    run = Run(
        network=case.network, batch_size=case.batch_size, alpha=_ALPHA, precision=case.precision, epochs=10**6
    )
    runs = [replace(run, seed=seed) for seed in range(case.seeds)]
    data = Data("random", "random", tuple("0123456789"), Split(x, y), Split(x[:1], y[:1]))
    training = Training(runs, data)

    def epoch() -> None:
        training.train_epoch()

    return epoch


def _plain(case: Case, x: Tensor, y: Tensor) -> Step:
    net = build(case.network, _shape(case.network), 10, device=x.device).train()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def shuffled() -> Sequence[Tensor]:
        return torch.randperm(len(x), device=x.device).split(case.batch_size)

    def epoch() -> None:
        with precision(case.precision, x.device):
            for first, second in zip(shuffled(), shuffled(), strict=True):
                optimizer.zero_grad()
                two_passes(net, (x[first], y[first]), (x[second], y[second]), _ALPHA)
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
        From `bench_training`; rows without numbers are left out.

    Returns
    -------
    pandas.DataFrame
        Columns grid, runs, hours (NaN where neither F1 nor C1 was measured).  Runs that several grids share count
        in each.
    """
    alone = measured[(measured["precision"] == "float32") & (measured["seeds"] == 1)]
    alone = alone.dropna(subset=["ours_per_s"]).sort_values("B")
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
    if rows.empty:
        return math.nan
    b = run.batch_size if run.alpha > 1 else run.batch_size / 2
    seconds = np.interp(b, rows["B"], 1 / rows["ours_per_s"]) * max(1, b / rows["B"].max())
    return float(seconds) * flops_per_sample(run.network) / flops_per_sample(like)
