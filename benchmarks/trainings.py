"""How fast trainings are: updates per second beside a plain loop's, and the part of the device's peak they reach.

Ours is `training.Training` at work, whole epochs of it; the plain loops are those of `benchmarks.plain`. The peak is
that of a large matrix product. The three take turns within one run.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from benchmarks.steps import ALPHA, A, Batch, Row, Step, interleaved
from nb_lib.lab.augmentation import Views, draw_views
from nb_lib.lab.data import Data, Split
from nb_lib.lab.device import let_go, out_of_memory, precision
from nb_lib.lab.graphs import Graphs, own_stream
from nb_lib.lab.names import DATASETS, residual_blocks
from nb_lib.lab.networks import Shape, build
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import minibatches, noise_parts
from nb_lib.lab.training import Training
from nb_lib.protocols import Fields, protocol

PEAK_SIZE = {"cpu": 2048, "cuda": 8192}  # side of the matrices
METHODS: dict[str, Fields] = {"baseline": {}, "NE": {"alpha": ALPHA}, "SmoothOut": {"a": A}}
_B = (100, 1000, 5000)
_PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """What is timed: that many updates a round, of one network or of several side by side; `method` is in `METHODS`.

    Residual networks are trained by their protocol, without NE; the others by NE and Adam.
    """

    network: str
    batch_size: int
    updates: int
    precision: str = "float32"
    seeds: int = 1
    method: str = "NE"

    @property
    def run(self) -> Run:
        """The training, of the first seed, with more epochs than it will be asked for."""
        fields: Fields = {"network": self.network}
        if residual_blocks(self.network):
            fields = protocol(self.network)
        method = METHODS[self.method]
        rest = {"batch_size": self.batch_size, "precision": self.precision, "epochs": 10**6}
        return Run(**fields | method | rest)

    def __str__(self) -> str:
        several = f", {self.seeds} seeds" if self.seeds > 1 else ""
        return f"{self.network} {self.method} B={self.batch_size} {self.precision}{several}"


def cases(device: torch.device) -> list[Case]:
    """What `bench_training` times there: on a CPU little, for it is slow."""
    if device.type == "cpu":
        resnet8 = _residual("resnet8", 256, 1, ["float32"])
        f1 = [Case("ne-f1", b, max(1, 3000 // b)) for b in _B]
        c1 = Case("ne-c1", 100, 1)
        side_by_side = Case("digits-mlp", 100, 200, seeds=10)
        return [*resnet8, *f1, c1, side_by_side]
    # at least three updates a round: graphs are recorded on the fourth, within the two rounds of warm-up
    f1 = [Case("ne-f1", b, max(3, 60_000 // b)) for b in _B]
    side_by_side = Case("ne-f1", 100, 600, seeds=10)
    c1s = [Case("ne-c1", b, max(3, 10_000 // b), name) for name in _PRECISIONS for b in _B]
    return [*f1, side_by_side, *c1s, *_residual("resnet44", 2048, 3, _PRECISIONS)]


def short_cases(device: torch.device) -> list[Case]:
    """What fits into a minute on a GPU, the most informative first; on a CPU `cases`."""
    if device.type == "cpu":
        return cases(device)
    f1, c1 = {}, {}
    for b in (900, 100, 5000):
        updates = max(6, 20_000 // b)
        f1[b] = [Case("ne-f1", b, updates, seeds=10), Case("ne-f1", b, updates)]
    for b, updates in ((500, 6), (100, 20), (5000, 3)):
        c1[b] = [Case("ne-c1", b, updates, name) for name in reversed(_PRECISIONS)]
    resnet = _residual("resnet44", 2048, 3, ["bfloat16"])
    return [*f1[900], *resnet, *c1[500], *c1[100], *f1[100], *f1[5000], *c1[5000]]  # the slowest last


def _residual(network: str, batch_size: int, updates: int, precisions: Sequence[str]) -> list[Case]:
    """A residual network with and without SmoothOut, in each precision."""
    chosen = []
    for name in precisions:
        for method in ("baseline", "SmoothOut"):
            case = Case(network, batch_size, updates, name, method=method)
            chosen.append(case)
    return chosen


def bench_training(
    device: torch.device, *, rounds: int | None = None, chosen: Sequence[Case] | None = None, limit: float = math.inf
) -> pd.DataFrame:
    """Time trainings on random images, by default `cases`; a row a case.

    After `limit` seconds no case is begun. Those left out have no row: they are printed, and are in the table's
    ``attrs["left_out"]``.

    Returns
    -------
    pandas.DataFrame
        Columns network, method, B, precision, seeds (networks side by side), ours_per_s and plain_per_s (updates a
        second), images_per_s and plain_images_per_s (of both minibatches; each network's counted), ms (milliseconds an
        update of ours, of all networks side by side), ratio (ours ÷ plain, of the time of one network's update; median
        over rounds), views (part of ours that reading views of the images takes, more than reading the images; NaN
        without augmentation), of_peak (part of the measured peak of a matrix product in that precision that ours
        reaches), note ("out of memory", with NaN for all numbers).
    """
    if rounds is None:
        rounds = 3 if device.type == "cpu" else 7
    if chosen is None:
        chosen = cases(device)
    end = time.monotonic() + limit
    rows: list[Row] = []
    for case in chosen:
        if time.monotonic() >= end:
            break
        rows.append(_measured(case, device, rounds))
        let_go(device)  # a training may hold gigabytes of recorded steps that the next case needs
    left_out = [str(case) for case in chosen[len(rows) :]]
    if left_out:
        print(f"not begun within {limit:g} s: {'; '.join(left_out)}")
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _measured(case: Case, device: torch.device, rounds: int) -> Row:
    try:
        times = interleaved(_steps(case, device), device, rounds)
        return _row(case, times, PEAK_SIZE[device.type])
    except Exception as error:  # torch raises many kinds where memory runs out
        if not out_of_memory(error):
            raise
    unknown = pd.DataFrame({"ours": [math.nan], "plain": [math.nan], "peak": [math.nan]})
    return {**_row(case, unknown, PEAK_SIZE[device.type]), "note": "out of memory"}


def _row(case: Case, times: pd.DataFrame, size: int) -> Row:
    ours = times["ours"] / (case.updates * case.seeds)  # seconds an update of one network
    plain = times["plain"] / case.updates
    images = minibatches(case.run) * case.batch_size
    speed = images * flops_per_sample(case.network) / ours.median()
    peak = 2 * size**3 / times["peak"].min()  # additions and multiplications of a matrix product a second
    return {
        "network": case.network,
        "method": case.method,
        "B": case.batch_size,
        "precision": case.precision,
        "seeds": case.seeds,
        "ours_per_s": 1 / ours.median(),
        "plain_per_s": 1 / plain.median(),
        "images_per_s": images / ours.median(),
        "plain_images_per_s": images / plain.median(),
        "ms": 1000 * case.seeds * ours.median(),
        "ratio": (ours / plain).median(),
        "views": _part_of_views(times),
        "of_peak": speed / peak,
        "note": "",
    }


def _part_of_views(times: pd.DataFrame) -> float:
    if "views" not in times:
        return math.nan
    more = times["views"] - times["images"]
    return (more / times["ours"]).median()


def _steps(case: Case, device: torch.device) -> dict[str, Step]:
    """An epoch of ours, one of the plain loop, a matrix product, and with augmentation the reading of an epoch."""
    run = case.run
    x = torch.rand(case.updates * case.batch_size, *_shape(case.network), device=device)
    y = torch.randint(10, (len(x),), device=device)
    loop = plain.noise_enhanced_loop if run.alpha > 1 else plain.ghost_batch_loop
    steps = {"ours": _ours(case, x, y), "plain": loop(run, x, y), "peak": _product(case, device)}
    if run.augment != "none":
        steps |= _readings(run, x, y)
    return steps


def _ours(case: Case, x: Tensor, y: Tensor) -> Step:
    runs = [replace(case.run, seed=seed) for seed in range(case.seeds)]
    data = Data("random", "random", tuple("0123456789"), Split(x, y), Split(x[:1], y[:1]))
    return Training(runs, data).train_epoch


def _readings(run: Run, x: Tensor, y: Tensor) -> dict[str, Step]:
    """Reading the batches of an epoch, of views and of the images themselves, in the parts that a step reads."""
    x = x.contiguous(memory_format=torch.channels_last)
    split = Split(x, y)
    views = Views(split, gray=(0.0,))
    order = torch.randperm(len(x), device=x.device)
    generator = torch.Generator(x.device)
    graphs = Graphs(x.device)
    sizes = noise_parts(run, run.batch_size)

    def view(part: Tensor) -> Batch:
        return views[part]

    def image(part: Tensor) -> Batch:
        return split[part]

    def read(numbers: Tensor, samples: Callable[[Tensor], Batch]) -> None:
        with own_stream(x.device):
            for batch in numbers.split(run.batch_size):
                for part in batch.split(sizes):
                    graphs(samples, part)

    def read_views() -> None:
        read(draw_views(order, generator), view)

    def read_images() -> None:
        read(order, image)

    return {"views": read_views, "images": read_images}


def _product(case: Case, device: torch.device) -> Step:
    """A product of square matrices, large enough to show the device's peak."""
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    side = PEAK_SIZE[device.type]
    a, b = torch.rand(2, side, side, device=device).to(dtype)

    def product() -> None:
        with precision(case.precision, device):
            a @ b

    return product


@cache
def flops_per_sample(network: str) -> float:
    """Floating-point operations of forward and backward pass on one image, counted by torch (products alone)."""
    samples = 100
    shape = _shape(network)
    x = torch.empty(samples, *shape, device="meta")
    y = torch.empty(samples, dtype=torch.long, device="meta")
    net = build(network, shape, 10, device="meta")
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(net(x), y).backward()
    return counter.get_total_flops() / samples


def _shape(network: str) -> Shape:
    return DATASETS[protocol(network)["dataset"]]
