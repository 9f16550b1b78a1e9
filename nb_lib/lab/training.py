"""Train a `Run` and return its `Record`; the update itself, that of both papers, is `training_step.TrainingStep`.

One loop over minibatches (NE eq. 2) serves both protocols.  NE's, as its printed convergence times imply it: epochs of
⌈N/B⌉ updates over a fresh shuffle, last partial batch kept, the training loss (mean of the epoch's minibatch losses)
judged once an epoch, the learning rate halved once at L*, stop below L**.  SmoothOut's: so many epochs, with learning
rates by epoch.

"Bit for bit" holds on a CPU with one number of threads.  On CUDA it holds for dense networks; cuDNN may add up the
gradients of convolutions and overlapping pooling in another order each time.
"""

import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nb_lib.lab.augmentation import draw_views
from nb_lib.lab.checkpoints import checkpointed, expecting, save_checkpoint, state_for
from nb_lib.lab.data import Data, Split, epoch_indices
from nb_lib.lab.device import hidden, initial_random_state, precision, random_state
from nb_lib.lab.graphs import own_stream
from nb_lib.lab.networks import trains_on_one
from nb_lib.lab.outcome import ending, evaluate, thinned
from nb_lib.lab.provenance import commit, provenance
from nb_lib.lab.rules import check_batches
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.setup import channels_last, load_for, minibatches, seed_for, side_by_side, trained
from nb_lib.lab.stacked import unstack
from nb_lib.lab.training_step import TrainingStep

__all__ = ["Training", "load_for", "side_by_side", "train", "trained"]

_PACED = 3  # epochs whose median time is the pace


def train(
    run: Run,
    data: Data | None = None,
    *,
    device: str = "auto",
    root: str | None = None,
    download: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Record:
    """Train one run to its end.

    >>> train(Run(train_size=100, batch_size=60, epochs=3), device="cpu", progress=False).updates
    6

    Also a run that diverged has a record: its `status` says so.

    Parameters
    ----------
    data : Data, optional
        Already loaded by `load_for`; else it is loaded with `device`, `root` and `download`.
    checkpoint : path, optional
        Where to keep the state about every half minute; if the file is there, training goes on from it, bit for bit
        as if never interrupted, and it is removed at the end.
    progress : bool
        Show a bar.
    """
    data = data or load_for(run, device=device, root=root, download=download)
    [record] = Training([run], data).finish(checkpoint=checkpoint, progress=progress)
    return record


class Training:
    """State of one training (NE eq. 2 for plain SGD), or of K side by side, of one group of `side_by_side`.

    Its `model` is the network, of K runs one that holds K (see `stacked.stack`); `status` says how each run ended
    (see `outcome.ending`), None while it trains; `curves` holds each run's curve (see `Record`), not thinned.

    Raises
    ------
    InputError
        If the batch is larger than the training set, or one of a single sample that the network cannot train on.
    """

    def __init__(self, runs: Sequence[Run], data: Data) -> None:
        run, n = runs[0], len(data.train)
        check_batches(run, n, one_fails=not trains_on_one(run.network, data.shape, len(data.classes)))
        commit()  # of the code that trains now, not of what the tree has at the end
        self.runs = list(runs)
        self.run = run
        self.n = n
        self.data = channels_last(data)
        self.step = TrainingStep(self.runs, self.data)
        self.model = self.step.model
        self._order = [torch.Generator(data.device).manual_seed(seed_for(each, "order")) for each in runs]
        self._dropout = initial_random_state(data.device, seed_for(run, "dropout"))
        self._epochs_a_test = max(1, round(len(data.test) / n))  # testing shall not outweigh training
        self._lately: deque[float] = deque(maxlen=_PACED)  # seconds of the last epochs
        self.epoch, self.updates, self.wall_time = 0, 0, 0.0
        self.status: list[str | None] = [None] * len(runs)
        self.curves: list[list[dict[str, float]]] = [[] for _ in runs]

    def train_epoch(self) -> float:
        """Pass once over the data, and return the mean minibatch loss, the largest of the runs that still train.

        The only wait for the device is the reading of the epoch's losses at its end.
        """
        started = time.perf_counter()
        device = self.data.device
        lr = self.run.lr_at(self.epoch)
        self.step.rates.set_lr(lr)
        if self.run.fresh_optimizer:
            self.step.forget_gradients()
        self.model.train()
        total = torch.zeros(len(self.runs), device=device)
        arithmetic = precision(self.run.precision, device)
        with own_stream(device), random_state(device, self._dropout), arithmetic:
            for index in self._batches():
                total += self.step(index)
                self.updates += 1
        self.epoch += 1
        losses = (total / self.n).tolist()
        worst = max((losses[k] for k in self._going()), default=math.nan)
        self._judge(losses, lr)
        seconds = time.perf_counter() - started
        self._lately.append(seconds)
        self.wall_time += seconds
        return worst

    def _batches(self) -> tuple[Tensor, ...]:
        """Indices [K, 1 or 2, b] of each update: every run its own shuffle, or for NE two independent ones.

        With augmentation they are of views, drawn for the whole epoch.
        """
        shuffles = []
        for generator in self._order:
            [shuffle] = epoch_indices(self.n, self.n, streams=minibatches(self.run), generator=generator)
            if self.run.augment != "none":
                shuffle = draw_views(shuffle, generator)
            shuffles.append(shuffle)
        return torch.stack(shuffles).split(self.run.batch_size, dim=-1)

    def _going(self) -> list[int]:
        """Numbers of the runs that still train."""
        return [k for k, status in enumerate(self.status) if not status]

    def _judge(self, losses: list[float], lr: float) -> None:
        """Apply NE's rule: halve the learning rate at L*, stop below L**; and end what has run its length."""
        endings = {k: ending(self.run, self.epoch, losses[k]) for k in self._going()}
        due = self.epoch % self._epochs_a_test == 0
        accuracies = []
        if due or any(endings.values()):
            accuracies = self.evaluate(self.data.test)[1].tolist()
        factors = self.step.rates.factors.copy()
        for k, end in endings.items():
            if due or end:
                point = {"epoch": self.epoch, "updates": self.updates, "lr": lr * factors[k], "loss": losses[k]}
                point["test_accuracy"] = accuracies[k]
                self.curves[k].append(point)
            if self.run.halve_at and losses[k] <= self.run.halve_at:
                factors[k] = 0.5
            if end:
                self.status[k] = end
                factors[k] = 0.0
            if end == "diverged":
                run = self.runs[k]
                tqdm.write(
                    f"{run.label} seed={run.seed} diverged in epoch {self.epoch}: its loss is not finite. "
                    "It is recorded as such; try a lower learning rate or α.",
                    file=sys.stderr,
                )
        self.step.set_factors(factors)

    @property
    def pace(self) -> float:
        """Seconds an epoch takes, of the last three; 0 before the first."""
        return statistics.median(self._lately) if self._lately else 0.0

    def finish(
        self,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = True,
        every: float = 30.0,
        until: float = math.inf,
        expected: float = math.nan,
        watch: Callable[[str], object] | None = None,
        keep: Callable[[int, Record], Record] | None = None,
    ) -> list[Record]:
        """Train to the end and return a record a run, in order.

        Parameters
        ----------
        checkpoint, every, progress
            See `train`; `every` so many seconds the state is kept.
        until : float
            A time of ``time.monotonic()``: an epoch that would not end before it is not begun, but for the first one
            here. The state is left in the checkpoint then, and only the runs that have ended are in the list.
        expected : float
            Epochs that the longest run is expected to take: training that by its pace would not end in time stops
            after the first three here.
        watch : callable, optional
            Called with a few words after every epoch.
        keep : callable, optional
            Stores the record of run number k once it has ended, and returns it; the checkpoint stays until all are.
        """
        path = Path(checkpoint) if checkpoint else None
        if path and path.exists():
            self.load_state_dict(checkpointed(path))
        records: dict[int, Record] = {}
        start, end, saved = self.epoch, self.run.epochs, time.monotonic()
        with tqdm(desc=self.run.label, unit="epoch", initial=start, total=end, disable=hidden(progress)) as bar:
            while True:
                for k, status in enumerate(self.status):
                    if status and k not in records:
                        record = self._record(k)
                        records[k] = keep(k, record) if keep else record
                if not self._going():
                    break
                left = until - time.monotonic()
                rest = (expected - self.epoch) * self.pace  # NaN if nobody knows
                in_vain = self.epoch == start + _PACED and 0.9 * rest > left
                if self.epoch > start and (in_vain or self.pace > left):
                    break
                loss = self.train_epoch()
                bar.update()
                bar.set_postfix(loss=f"{loss:.2g}", refresh=False)
                if watch:
                    watch(f"epoch {self.epoch}, loss {loss:.2g}")
                if path and time.monotonic() - saved >= every:
                    save_checkpoint(path, self.state_dict())
                    saved = time.monotonic()
        if path and not self._going():
            path.unlink(missing_ok=True)
        elif path and self.epoch:
            save_checkpoint(path, self.state_dict())
        return [records[k] for k in sorted(records)]

    def evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of every run over a whole split, [K] each, in evaluation mode."""
        return evaluate(self.model, split, len(self.runs), self.run.precision)

    def member(self, k: int) -> nn.Module:
        """Network of run `k`, in evaluation mode; of several side by side a copy."""
        model = self.model if len(self.runs) == 1 else unstack(self.model, k)
        return model.eval()

    def _record(self, k: int) -> Record:
        """Measure run `k`, which has ended: its weights do not move any more."""
        data, curve = self.data, self.curves[k]
        last = curve[-1]
        epochs = int(last["epoch"])
        train_loss, train_accuracy = self.evaluate(data.train)
        test_loss, test_accuracy = self.evaluate(data.test)
        valid_accuracy = None if data.valid is None else float(self.evaluate(data.valid)[1][k])
        origin = {"dataset_variant": data.variant, **provenance(data.device), "side_by_side": len(self.runs)}
        return Record(
            run=self.runs[k],
            status=self.status[k] or "",
            best_test_accuracy=max(point["test_accuracy"] for point in curve),
            epochs=epochs,
            updates=int(last["updates"]),
            samples=epochs * self.n * minibatches(self.run),
            wall_time=self.wall_time,
            curve=thinned(curve),
            provenance=origin,
            train_loss=float(train_loss[k]),
            train_accuracy=float(train_accuracy[k]),
            test_loss=float(test_loss[k]),
            test_accuracy=float(test_accuracy[k]),
            valid_accuracy=valid_accuracy,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to continue bit for bit."""
        return {
            "keys": [run.key for run in self.runs],
            "device": self.data.device.type,
            "order": [generator.get_state() for generator in self._order],
            "dropout": self._dropout,
            "progress": [self.epoch, self.updates, self.wall_time],
            "status": self.status,
            "curves": self.curves,
            **self.step.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, or raise as `checkpoints.state_for` does."""
        with expecting(state):
            state = state_for(state, self.runs, self.data.device.type)
            self.step.load_state_dict(state)
            for generator, saved in zip(self._order, state["order"], strict=True):
                generator.set_state(saved.cpu())
            self._dropout = [saved.cpu() for saved in state["dropout"]]
            self.epoch, self.updates, self.wall_time = state["progress"]
            self.status, self.curves = state["status"], state["curves"]
