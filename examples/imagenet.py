"""Train on a folder of images in batches of thousands, on one process or many: SmoothOut's AlexNet and ResNet18.

    torchrun --nproc-per-node gpu examples/imagenet.py --network alexnet --batch-size 16384 --a 0.15 --adaptive \
        --root DATA --store results/

Images lie in ``DATA/imagenet/{train,val}/<class>/``; those of ``--dataset folder:NAME`` in ``DATA/NAME``.  A batch is
shared out to the processes.  Each cuts its share into ghost batches, takes the gradient of every one at weights with
noise of its own (SmoothOut Algorithm 1, as its authors' code does) and adds them up; with alpha > 1 there are two
independent batches (NE eq. 6).  Only the last backward pass of an update exchanges gradients; noise is never sent.

Every field of a run is an option; what is not given is as published.  The same call goes on where a run was stopped,
and leaves its record in the store.  SIGTERM, which schedulers send before they take a machine back, has a checkpoint
written first; the exit status then is 75, "try again later".
"""

import argparse
import dataclasses
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.datasets import ImageFolder
from tqdm.auto import tqdm

from nb_lib.errors import InputError, whole
from nb_lib.lab import processes, streamed
from nb_lib.lab.data import data_root
from nb_lib.lab.device import hidden, precision
from nb_lib.lab.networks import build
from nb_lib.lab.outcome import ending, thinned
from nb_lib.lab.progress import CURVE, Progress, Streams
from nb_lib.lab.provenance import commit, provenance
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.setup import make_optimizer, make_smoothout, minibatches, seed_for
from nb_lib.lab.store import RunStore
from nb_lib.lab.text import read, seconds
from nb_lib.noise_enhancement import noise_enhanced_loss
from nb_lib.papers import run as run_of
from nb_lib.protocols import protocol
from nb_lib.smoothout import SmoothOut

TRY_AGAIN = 75  # EX_TEMPFAIL


def accumulate(
    replica: Any, smooth: SmoothOut | None, sizes: list[int], parts: Iterable[streamed.Part], alpha: float
) -> Tensor:
    """Leave the gradient of an update in the network, and return the sum of this process's losses on B.

    `replica` is the network in `DistributedDataParallel`, which takes the mean over the processes; `sizes` are those of
    the ghost batches.
    """
    total = torch.zeros((), dtype=torch.float64, device=replica.device)
    for k, (size, part) in enumerate(zip(sizes, parts, strict=True), start=1):
        x = torch.cat([images for images, _ in part])
        y = torch.cat([labels for _, labels in part])
        exchange = nullcontext() if k == len(sizes) else replica.no_sync()
        noise = smooth.perturbed() if smooth else nullcontext()  # w + θ_k inside, w again outside
        with exchange, noise:
            losses = F.cross_entropy(replica(x), y, reduction="none")
            loss = losses.mean() if alpha == 1 else noise_enhanced_loss(losses, alpha)
            (size / sum(sizes) * loss).backward()
        total += losses[:size].detach().sum()
    return total


class Training:
    """One training, in each of its processes."""

    def __init__(self, run: Run, train: ImageFolder, test: ImageFolder, device: torch.device, workers: int) -> None:
        self.run, self.train, self.test, self.device = run, train, test, device
        self.reader = streamed.Reader(run, train, device, workers)
        shape, classes = (3, run.image_size or 0, run.image_size or 0), len(train.classes)
        self.model = build(
            run.network,
            shape,
            classes,
            seed=seed_for(run, "weights"),
            group_size=run.ghost_batch,
            minibatches=minibatches(run),
            batch_size=streamed.ghost_sizes(run, run.batch_size // dist.get_world_size())[0],
            device=device,
        )
        if device.type == "cuda" and run.a == 0:
            self.model.to(memory_format=torch.channels_last)  # as the images lie; weights with noise lie in a vector
        self.smooth = make_smoothout(run, self.model)
        self.replica = DistributedDataParallel(self.model)
        self.optimizer = make_optimizer(run, self.model)
        self.settle(torch.zeros(1, *shape, device=device))
        self.progress = Progress(self.model, self.optimizer, Streams(device, self.smooth), run.epochs, len(train))
        self.progress.streams.begin(run.seed, dist.get_rank())
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_: Any) -> None:
        """Stop before the next update."""
        self.stopping = True

    def settle(self, x: Tensor) -> None:
        """Pass once: DistributedDataParallel then orders its buckets anew, and so the sums of gradients.

        Else it would in the first update, which in a resumed run is another one.
        """
        self.replica.eval()
        self.replica(x).sum().backward()
        self.optimizer.zero_grad()

    def load(self, checkpoint: Path) -> None:
        """Go on: bit for bit with as many processes on the same kind of device, else with other random numbers."""
        if not self.progress.load(checkpoint):
            self.progress.streams.begin(self.run.seed, dist.get_rank(), self.updates)

    @property
    def updates(self) -> int:
        """How many were done."""
        return self.progress.epoch * math.ceil(len(self.train) / self.run.batch_size) + self.progress.done

    @property
    def lr(self) -> float:
        """Learning rate of the present epoch; NE's is halved once a loss was at L* or below."""
        rate = self.run.lr_at(self.progress.epoch)
        losses = self.progress.curve[:, CURVE.index("loss")]
        halved = self.run.halve_at is not None and bool((losses <= self.run.halve_at).any())
        return rate / 2 if halved else rate

    @property
    def status(self) -> str | None:
        """How the run ended; None while it has not."""
        if self.progress.epoch == 0:
            return None
        return ending(self.run, self.progress.epoch, self.progress.points()[-1]["loss"])

    def finish(self, checkpoints: Path, every: float) -> bool:
        """Train to the end, with a checkpoint every so many seconds; whether it was reached: SIGTERM may come first."""
        B, n, saved = self.run.batch_size, len(self.train), time.monotonic()
        counted = {"total": self.run.epochs * n, "initial": self.progress.epoch * n + self.progress.done * B}
        hide = hidden(dist.get_rank() == 0)
        with tqdm(desc=self.run.label, unit=" images", unit_scale=True, mininterval=1, disable=hide, **counted) as bar:
            while not self.status:
                with closing(self.reader.updates(self.progress.epoch, self.progress.done)) as updates:
                    for sizes, parts in updates:
                        due = time.monotonic() - saved > every
                        lost = not math.isfinite(self.progress.total.item())
                        stop, due, lost = processes.agreed(self.device, self.stopping, due, lost)
                        if lost:
                            break
                        if stop:
                            self.save(checkpoints)
                            return False
                        if due:
                            with processes.or_told():
                                self.save(checkpoints)
                            saved = time.monotonic()
                        self.update(sizes, parts)
                        bar.update(min(B, n - (self.progress.done - 1) * B))
                bar.set_postfix(loss=f"{self.end_epoch():.2g}")
        return True

    def save(self, checkpoints: Path) -> None:
        """Keep all in a checkpoint, if there is anything yet."""
        if self.updates:
            self.progress.save(checkpoints, self.updates)

    def update(self, sizes: list[int], parts: Iterable[streamed.Part]) -> None:
        """One step of the optimizer, along the mean gradient of the ghost batches of all processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.replica.train()
        with precision(self.run.precision, self.device):
            self.progress.total += accumulate(self.replica, self.smooth, sizes, parts, self.run.alpha)
        if self.run.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.done += 1

    def end_epoch(self) -> float:
        """Test, note a point of the curve, and return the epoch's mean loss."""
        dist.all_reduce(self.progress.total)
        number = dist.get_world_size()
        loss = self.progress.total.item() / (number * math.ceil(len(self.train) / number))
        _, accuracy = self.evaluate(self.test)
        self.progress.end_epoch(self.progress.epoch + 1, self.updates, self.lr, loss, accuracy)
        return loss

    @torch.no_grad()
    def evaluate(self, folder: ImageFolder) -> tuple[float, float]:
        """Mean loss and accuracy over a folder, at the clean weights; every process takes a share of it."""
        self.progress.share_statistics()
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        with (
            processes.together(self.device),
            precision(self.run.precision, self.device),
            closing(self.reader.tests(folder)) as batches,
        ):
            for x, y in batches:
                logits = self.model(x).float()
                sums[0] += F.cross_entropy(logits, y, reduction="sum")
                sums[1] += (logits.argmax(1) == y).sum()
        dist.all_reduce(sums)
        loss, accuracy = (sums / len(folder)).tolist()
        return loss, accuracy

    def record(self, left_out: int) -> Record:
        """Measure a run that has ended."""
        wall_time, curve = self.progress.wall_time, self.progress.points()
        updates = int(curve[-1]["updates"])
        epochs, more = divmod(updates, math.ceil(len(self.train) / self.run.batch_size))
        train_loss, train_accuracy = self.evaluate(self.train)
        test_loss, test_accuracy = self.evaluate(self.test)
        counts = f"{len(self.train):,} and {len(self.test):,} images, {len(self.train.classes):,} classes"
        origin = {"dataset_variant": f"image folder, {counts}", **provenance(self.device)}
        return Record(
            run=self.run,
            status=self.status or "",
            test_accuracy=test_accuracy,
            best_test_accuracy=max(point["test_accuracy"] for point in curve),
            valid_accuracy=None,
            train_accuracy=train_accuracy,
            train_loss=train_loss,
            test_loss=test_loss,
            epochs=self.progress.epoch,
            updates=updates,
            samples=minibatches(self.run) * (epochs * len(self.train) + more * self.run.batch_size),
            wall_time=wall_time,
            curve=thinned(curve),
            provenance=origin | {"processes": dist.get_world_size(), "left_out": left_out},
        )


def options() -> argparse.Namespace:
    """Read the command line: an option for every field of a run, and how to train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for f in dataclasses.fields(Run):
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if f.type is bool else {}
        add(f"--{f.name.replace('_', '-')}", metavar="V", help="[as published]", **flag)
    add("--store", required=True, help="folder of records and checkpoints, which all processes can reach")
    add("--root", help="folder of the data sets [$NB_LIB_DATA, else a per-user cache]")
    add("--every", default="10m", metavar="TIME", help="how often to write a checkpoint [10m]")
    workers = min(4, os.cpu_count() or 1)
    add("--workers", default=str(workers), help=f"processes that decode images, beside each that trains [{workers}]")
    add("--device", default="auto", help="cpu, cuda or auto [auto]")
    add("--leave-out-unreadable", action="store_true", help="read every file first, and train without those that fail")
    return parser.parse_args()


def run_from(given: argparse.Namespace) -> Run:
    """The run that is meant: what is not given is as published, but for what is of data sets that fit on a device."""
    fields = {}
    for f in dataclasses.fields(Run):
        value = getattr(given, f.name)
        if value is not None:
            fields[f.name] = read(f.name, value, f.type)
    network = fields.pop("network", "alexnet")
    here = {"inputs": "imagenet", "train_size": None}
    return run_of(**protocol(network, **fields) | here | fields)


def train(given: argparse.Namespace, device: torch.device, stack: ExitStack) -> int:
    """Train a run to its end, or until SIGTERM, and return the exit status."""
    is_first = dist.get_rank() == 0
    commit()  # of the code that trains, not of what the tree has at the end
    signal.signal(signal.SIGTERM, try_again)
    with processes.together(device):
        run = run_from(given)
        every, workers = seconds("every", given.every), whole("workers", read("workers", given.workers, int), 0)
        store = RunStore(given.store)
    checkpoints = store.folder / f"{run.key}.checkpoints"
    if processes.agreed(device, run in store)[0]:
        return report(store.load(run), is_first, checkpoints)
    with processes.together(device):
        if is_first:
            lock = processes.claim(checkpoints)
            stack.callback(lock.release)
        images, tests = streamed.train_and_val(data_root(given.root) / run.dataset.removeprefix("folder:"))
    left_out = []
    listed = checkpoints / "unreadable.txt"
    if given.leave_out_unreadable or processes.agreed(device, listed.exists())[0]:
        left_out = streamed.leave_out_unreadable([images, tests], workers, listed)
    with processes.together(device):
        streamed.check(run, images, tests)
        training = Training(run, images, tests, device, workers)
    newest = processes.newest(checkpoints)
    if newest:
        training.load(newest)
    if not training.finish(checkpoints, every):
        return TRY_AGAIN
    with processes.or_told():
        training.save(checkpoints)
    signal.signal(signal.SIGTERM, try_again)  # from here on there is nothing to lose
    record = training.record(len(left_out))
    if is_first:
        store.save(record)
    return report(record, is_first, checkpoints)


def try_again(*_: Any) -> NoReturn:
    """End, with nothing lost but what is not training."""
    sys.exit(TRY_AGAIN)


def report(record: Record, is_first: bool, checkpoints: Path) -> int:
    """Say once what came out, and remove what led to it."""
    if is_first:
        shutil.rmtree(checkpoints, ignore_errors=True)
        right, rate = 100 * record.test_accuracy, record.samples / record.wall_time
        print(f"{record.run.label}: {record.status} after {record.updates:,} updates")
        print(f"{right:.2f} % of the test images right, {rate:,.0f} images a second")
    return 0


def main() -> int:
    """Train, and return the exit status: 0, 2 for input that cannot be used, or `TRY_AGAIN`."""
    given = options()
    try:
        with processes.joined(given.device) as device, ExitStack() as stack:
            return train(given, device, stack)
    except processes.SaidElsewhere:
        return 2
    except InputError as error:
        print(f"imagenet: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
