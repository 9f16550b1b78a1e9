"""Train a `Run` and return its `Record`; the update is NE's (eq. 6) at SmoothOut's perturbed weights (Algorithm 1).

One loop serves every experiment of both papers.  NE's protocol, as its printed convergence times imply it: epochs of
ceil(N/B) updates over a fresh shuffle, last partial batch kept, the training loss (mean of the epoch's minibatch
losses) judged once an epoch, the learning rate halved once at L*, stop below L**.  SmoothOut's: a fixed number of
epochs with learning rates by epoch.

On a GPU most steps of the papers are too short to be launched operation by operation, so forward and backward pass
are recorded as one CUDA graph and the update as another (`device.Graphs`).  What draws random numbers of its own,
order and weight noise, stays outside: runs are the same with and without graphs.

"Bit for bit" holds on a CPU with one number of threads.  On CUDA it holds for dense networks; cuDNN may add up the
gradients of convolutions and overlapping pooling in another order each time.
"""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import part_sizes
from nb_lib.lab.data import Data, Split, epoch_indices, load
from nb_lib.lab.device import hidden, pick_device, precision, random_state
from nb_lib.lab.files import write_atomically
from nb_lib.lab.graphs import Graphs, own_stream
from nb_lib.lab.networks import build, stackable
from nb_lib.lab.provenance import provenance
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.stacked import stack, unstack
from nb_lib.lab.store import RunStore
from nb_lib.lab.weight_vector import FlatParameters
from nb_lib.noise_enhancement import noise_enhanced_loss
from nb_lib.smoothout import SmoothOut

_PURPOSES = ("weights", "order", "noise", "dropout")
_CURVE_POINTS = 200
_EVALUATION_CHUNK = {"cpu": 500, "cuda": 10_000}  # images at once: what is fast there, and fits


def load_for(run: Run, *, device: str = "auto", root: str | None = None, download: bool = False) -> Data:
    """Load the data set a run asks for, whole, on the device (see `data.load`)."""
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
    return _channels_last(data)


def trained(run: Run, store: RunStore, data: Data) -> nn.Module:
    """The network of a run whose weights are kept (see `sweeps.sweep`), in evaluation mode.

    Raises
    ------
    InputError
        If they are not there, or damaged.
    """
    model = _build([run], data, 1).eval()
    path = store.weights(run)
    try:
        model.load_state_dict(torch.load(path, weights_only=True, map_location=data.device))
    except FileNotFoundError as error:
        raise InputError(
            f"no weights of run {run.key} in {store.folder}: train it with keep_weights."
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path} is damaged: delete it and train again.") from error
    return model


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

    Parameters
    ----------
    run : Run
    data : Data, optional
        Already loaded by `load_for`; else it is loaded with `device`, `root` and `download`.
    checkpoint : path, optional
        Where to keep the state about every half minute; if the file is there, training goes on from it, bit for bit
        as if never interrupted, and it is removed at the end.
    progress : bool
        Show a bar.

    Returns
    -------
    Record
        Also of a run that diverged: its `status` says so.
    """
    data = data or load_for(run, device=device, root=root, download=download)
    return Training([run], data).finish(checkpoint=checkpoint, progress=progress)[0]


def side_by_side(runs: Iterable[Run], *, most: int = 32) -> list[list[Run]]:
    """Group runs that one batched model can hold: plain dense networks without clipping, alike but for the seed.

    Parameters
    ----------
    runs : iterable of Run
    most : int
        Runs a group, at most.
    """
    groups: dict[Run, list[Run]] = {}
    for run in runs:
        together = run.clip is None and stackable(run.network)
        groups.setdefault(replace(run, seed=0) if together else run, []).append(run)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


class Training:
    """State of one training, or of several side by side that differ in their seeds.

    Parameters
    ----------
    runs : sequence of Run
        One, or several from one group of `side_by_side`.
    data : Data

    Attributes
    ----------
    model : torch.nn.Module
        The network; for K runs side by side one that holds K (see `networks.stack`).

    Raises
    ------
    InputError
        If the batch is larger than the training set.
    """

    def __init__(self, runs: Sequence[Run], data: Data) -> None:
        run = runs[0]
        self.runs, self.run, self.data = list(runs), run, data
        self.n, self.streams = len(data.train), 2 if run.alpha > 1 else 1
        if run.batch_size > self.n:
            raise InputError(
                f"batch_size {run.batch_size} is larger than the training set ({self.n} samples)."
            )
        device = data.train.x.device
        self.data = _channels_last(data)
        self.model = _build(self.runs, data, self.streams)
        self.optimizer = _optimizer(run, self.model)
        self.smooth = _smoothout(run, self.model)
        self._graphs = Graphs(device)
        self._lr = torch.tensor(run.lr, device=device)
        self._order = [torch.Generator(device).manual_seed(_seed(r, "order")) for r in runs]
        devices = [torch.device("cpu"), *([device] if device.type == "cuda" else [])]
        self._dropout_state = [
            torch.Generator(d).manual_seed(_seed(run, "dropout")).get_state() for d in devices
        ]
        if len(runs) > 1:  # a run alone has the optimizer's own learning rate
            self._weights = FlatParameters(self.model, "all")
        self._between_tests = max(
            1, round(len(data.test) / self.n)
        )  # epochs: testing shall not outweigh training
        self._factors = [1.0] * len(runs)  # of the learning rate: 1, 1/2 after L*, 0 when done
        self._scale: Tensor | None = None  # the same along the weights of all; None while one rate does
        self.epoch, self.updates, self.wall_time = 0, 0, 0.0
        self._lately: deque[float] = deque(maxlen=3)  # seconds of the last epochs
        self.status: list[str | None] = [None] * len(runs)
        self.curves: list[list[dict[str, float]]] = [[] for _ in runs]

    # -------------------------------------------------------------------------------------------------- one epoch

    def train_epoch(self) -> float:
        """One pass over the data; the only wait for the device is the reading of the epoch's losses at its end.

        Returns
        -------
        float
            The epoch's mean minibatch loss, the largest of the runs side by side that still train.
        """
        started = time.perf_counter()
        self.model.train()
        lr = [rate for start, rate in self.run.scaled_lr_steps if start <= self.epoch][-1]
        self._set_lr(lr if self._scale is not None else lr * self._factors[0])
        loss = torch.zeros(len(self.runs), device=self.data.device)
        with (
            own_stream(self.data.device),
            random_state(loss.device, self._dropout_state),
            precision(self.run.precision, loss.device),
        ):
            for index in self._batches():
                loss += self._step(index)
                self.updates += 1
        self.epoch += 1
        losses = (loss / self.n).tolist()
        worst = max((x for x, ended in zip(losses, self.status, strict=True) if not ended), default=math.nan)
        self._judge(losses, lr)
        self._lately.append(time.perf_counter() - started)
        self.wall_time += self._lately[-1]
        return worst

    @property
    def pace(self) -> float:
        """Seconds an epoch takes, of the last three; 0 before the first."""
        return statistics.median(self._lately) if self._lately else 0.0

    def _set_lr(self, lr: float) -> None:
        """A recorded update reads the rate from a tensor of fixed address."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr.fill_(lr) if self._graphs.recording else lr

    def _batches(self) -> tuple[Tensor, ...]:
        """Indices [K, streams, b] of each update: every run its own shuffles, two independent ones for NE."""
        shuffles = [epoch_indices(self.n, self.n, streams=self.streams, generator=g)[0] for g in self._order]
        return torch.stack(shuffles).split(self.run.batch_size, dim=-1)

    def _step(self, index: Tensor) -> Tensor:
        """One update; returns the summed losses of B_t, [K]."""
        size = index.shape[-1]
        total: Tensor | float = 0.0
        for part in index.split(_noise_parts(self.run, size), dim=-1):
            with self.smooth.perturbed() if self.smooth else nullcontext():
                total = total + self._graphs(self._gradients, part, part.shape[-1] / size)
        self._graphs(self._move)
        return total  # type: ignore[return-value]

    def _gradients(self, index: Tensor, share: float) -> Tensor:
        """Add `share` of the gradients on the samples `index` [K, streams, b]; returns summed losses of B_t, [K]."""
        losses = self._losses(index)
        mean = losses.mean(-1) if self.streams == 1 else noise_enhanced_loss(losses, self.run.alpha)
        (mean.sum() * share).backward()
        return losses.detach()[:, : index.shape[-1]].sum(-1)

    def _losses(self, index: Tensor) -> Tensor:
        """Per-sample losses [K, streams * b] on the samples `index` [K, streams, b]."""
        index = index.flatten(1)
        chosen = index if len(self.runs) > 1 else index[0]
        logits = self.model(self.data.train.x[chosen]).float()
        target = self.data.train.y[index].flatten()
        return F.cross_entropy(logits.flatten(0, -2), target, reduction="none").view_as(index)

    def _move(self) -> None:
        """Optimizer step; side by side, each run's change is scaled by its own factor of the learning rate."""
        if self.run.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip)
        if self._scale is None:
            self.optimizer.step()
        else:
            with torch.no_grad():
                self._weights.save()
                self.optimizer.step()
                torch.lerp(self._weights.clean, self._weights.work, self._scale, out=self._weights.work)
        self.optimizer.zero_grad(
            set_to_none=not self._graphs.recording
        )  # a recorded step needs them to stay put

    def _set_factors(self, factors: list[float]) -> None:
        """Give each run its factor of the learning rate, side by side laid out along the weights of all."""
        changed = factors != self._factors
        self._factors = factors
        if len(self.runs) == 1 or not changed:
            return
        scale = along(self._weights, factors)
        if self._scale is None:
            self._scale = scale
            self._graphs.forget(self._move)  # the update has one step more from now on
        else:
            self._scale.copy_(scale)

    # ------------------------------------------------------------------------------------------- judging, measuring

    def _judge(self, losses: list[float], lr: float) -> None:
        """NE's rule, once an epoch: halve at L*, stop below L**; and end what has diverged or run its length."""
        factors = self._factors.copy()
        ending = {k: self._ending(loss) for k, loss in enumerate(losses) if not self.status[k]}
        due = self.epoch % self._between_tests == 0
        accuracies = self.evaluate(self.data.test)[1].tolist() if due or any(ending.values()) else []
        for k, end in ending.items():
            if due or end:
                point = {
                    "epoch": self.epoch,
                    "updates": self.updates,
                    "lr": lr * factors[k],
                    "loss": losses[k],
                }
                self.curves[k].append({**point, "test_accuracy": accuracies[k]})
            if self.run.halve_at and losses[k] <= self.run.halve_at:
                factors[k] = 0.5
            if end:
                self.status[k], factors[k] = end, 0.0
            if end == "diverged":
                what = f"{self.runs[k].label} seed={self.runs[k].seed} diverged in epoch {self.epoch}"
                tqdm.write(
                    f"{what}: its loss is not finite. It is recorded as such; try a lower learning rate or α."
                )
        self._set_factors(factors)

    def _ending(self, loss: float) -> str | None:
        if not math.isfinite(loss):
            return "diverged"
        if self.run.stop_below and loss < self.run.stop_below:
            return "converged"
        if self.epoch == self.run.epochs:
            return "out of epochs" if self.run.stop_below else "finished"
        return None

    @torch.no_grad()
    def evaluate(self, split: Split) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of every run over a whole split, [K] each, in evaluation mode."""
        self.model.eval()
        loss = torch.zeros(len(self.runs), device=split.x.device)
        right = torch.zeros_like(loss)
        with precision(self.run.precision, split.x.device):
            chunk = _EVALUATION_CHUNK[split.x.device.type]
            for x, y in zip(split.x.split(chunk), split.y.split(chunk), strict=True):
                logits = self.model(x.expand(len(self.runs), *x.shape) if len(self.runs) > 1 else x).float()
                logits = logits.view(len(self.runs), *logits.shape[-2:])
                target = y.expand(logits.shape[:2])
                loss += F.cross_entropy(logits.transpose(1, 2), target, reduction="none").sum(-1)
                right += (logits.argmax(-1) == target).sum(-1)
        return loss / len(split), right / len(split)

    def member(self, k: int) -> nn.Module:
        """The network of run `k`, in evaluation mode; of several side by side a copy."""
        return (self.model if len(self.runs) == 1 else unstack(self.model, k)).eval()

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
        checkpoint, progress
            See `train`.
        every : float
            Seconds between checkpoints.
        until : float
            A time of ``time.monotonic()``: an epoch that would not end before it is not begun. The state is left in
            the checkpoint then, and only the runs that have ended are in the list.
        expected : float
            Epochs that the longest run is expected to take, if known: training that by the pace of its first epochs
            here would not end before `until` stops after those.
        watch : callable, optional
            Called with a few words after every epoch.
        keep : callable, optional
            Stores the record of run number k as soon as that run has ended, and returns it; the checkpoint stays until
            all are stored.
        """
        path = Path(checkpoint) if checkpoint else None
        if path and path.exists():
            self.load_state_dict(checkpointed(path))
        records: dict[int, Record] = {}
        saved, measured = time.monotonic(), self.epoch + self._lately.maxlen  # type: ignore[operator]
        with tqdm(
            total=self.run.epochs,
            initial=self.epoch,
            desc=self.run.label,
            unit="epoch",
            disable=hidden(progress),
        ) as bar:
            while True:
                for k in self._ended() - records.keys():
                    record = self._record(k)
                    records[k] = keep(k, record) if keep else record
                if all(self.status):
                    break
                in_vain = self.epoch == measured and _late(0.9 * (expected - self.epoch) * self.pace, until)
                if in_vain or _late(self.pace, until):
                    self._save(path)
                    break
                loss = self.train_epoch()
                bar.update()
                bar.set_postfix(loss=f"{loss:.2g}", refresh=False)
                if watch:
                    watch(f"epoch {self.epoch}, loss {loss:.2g}")
                if time.monotonic() - saved >= every:
                    self._save(path)
                    saved = time.monotonic()
        if path and all(self.status):
            path.unlink(missing_ok=True)
        return [records[k] for k in sorted(records)]

    def _ended(self) -> set[int]:
        return {k for k, status in enumerate(self.status) if status}

    def _save(self, path: Path | None) -> None:
        if path and self.epoch:
            write_atomically(path, lambda file: torch.save(self.state_dict(), file))

    def _record(self, k: int) -> Record:
        """Measure run `k`, which has ended: its weights do not move any more."""
        splits = {"train": self.data.train, "test": self.data.test, "valid": self.data.valid}
        found = {name: self.evaluate(split) for name, split in splits.items() if split is not None}
        loss = {name: float(losses[k]) for name, (losses, _) in found.items()}
        accuracy = {name: float(accuracies[k]) for name, (_, accuracies) in found.items()}
        curve = self.curves[k]
        epochs = int(curve[-1]["epoch"])
        device = self.data.device
        origin = {"dataset_variant": self.data.variant, **provenance(device), "side_by_side": len(self.runs)}
        return Record(
            run=self.runs[k],
            status=self.status[k] or "",
            test_accuracy=accuracy["test"],
            best_test_accuracy=max(point["test_accuracy"] for point in curve),
            valid_accuracy=accuracy.get("valid"),
            train_accuracy=accuracy["train"],
            train_loss=loss["train"],
            test_loss=loss["test"],
            epochs=epochs,
            updates=int(curve[-1]["updates"]),
            samples=epochs * self.n * self.streams,
            wall_time=self.wall_time,
            curve=_thin(curve),
            provenance=origin,
        )

    # ------------------------------------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs to continue bit for bit."""
        return {
            "keys": [run.key for run in self.runs],
            "device": self.data.device.type,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "smooth": self.smooth.state_dict() if self.smooth else None,
            "order": [generator.get_state() for generator in self._order],
            "dropout": self._dropout_state,
            "progress": [self.epoch, self.updates, self.wall_time],
            "factors": self._factors,
            "status": self.status,
            "curves": self.curves,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, of these runs or of more that were side by side with them.

        Raises
        ------
        InputError
            If the state belongs to other runs, or to another kind of device, whose random numbers are others.
        """
        keys, mine = state["keys"], [run.key for run in self.runs]
        if not set(mine) <= set(keys):
            raise InputError("the checkpoint belongs to another run: delete it or name another file.")
        here, there = self.data.device.type, state.get("device", self.data.device.type)
        if here != there:
            raise InputError(
                f"the checkpoint was made with device {there!r}, whose random numbers {here!r} cannot go on with: "
                "continue it there, or name another file to begin anew."
            )
        if mine != keys:
            state = _members(state, [keys.index(key) for key in mine])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.smooth:
            self.smooth.load_state_dict(state["smooth"])
        for generator, saved in zip(self._order, state["order"], strict=True):
            generator.set_state(saved.cpu())
        self._dropout_state = [s.cpu() for s in state["dropout"]]
        self.epoch, self.updates, self.wall_time = state["progress"]
        self.status, self.curves = state["status"], state["curves"]
        self._set_factors(state["factors"])
        self._graphs.forget(self._gradients, self._move)  # the optimizer's state lies elsewhere now


# --------------------------------------------------------------------------------------------------- small pieces


def _seed(run: Run, purpose: str) -> int:
    """An independent stream of random numbers for each purpose of each seed."""
    words = np.random.SeedSequence([run.seed, _PURPOSES.index(purpose)]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def _noise_parts(run: Run, n: int) -> list[int]:
    """Sizes of the parts of a batch of `n` samples that share a draw of the weight noise."""
    if not (run.a and run.noise_batch):
        return [n]
    return part_sizes(n, run.noise_batch, run.batch_size if run.cutting == "even" else None)


def _build(runs: Sequence[Run], data: Data, streams: int) -> nn.Sequential:
    members = [
        build(
            run.network,
            data.shape,
            len(data.classes),
            seed=_seed(run, "weights"),
            group_size=run.ghost_batch,
            minibatches=streams,
            batch_size=_noise_parts(run, run.batch_size)[0] if run.cutting == "even" else None,
        )
        for run in runs
    ]
    model: nn.Sequential = members[0] if len(members) == 1 else stack(members)
    if (
        data.device.type == "cuda" and data.shape[0] > 1 and not runs[0].a
    ):  # weight noise has a vector of its own
        model = model.to(memory_format=torch.channels_last)  # as the images lie
    return model.to(data.device)


def _channels_last(data: Data) -> Data:
    """The same images, channels innermost in memory if there are several: the order convolutions are fastest in."""
    if data.shape[0] == 1:
        return data

    def moved(split: Split) -> Split:
        return Split(split.x.contiguous(memory_format=torch.channels_last), split.y)

    valid = data.valid and moved(data.valid)
    return replace(data, train=moved(data.train), test=moved(data.test), valid=valid)


def _optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": run.lr, "weight_decay": run.weight_decay, "fused": True}
    if run.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=run.momentum, **settings)
    return torch.optim.Adam(model.parameters(), capturable=next(model.parameters()).is_cuda, **settings)


def _smoothout(run: Run, model: nn.Module) -> SmoothOut | None:
    if not run.a:
        return None
    return SmoothOut(
        model,
        run.a,
        distribution=run.distribution,
        adaptive=run.adaptive,
        include=run.perturb,
        denoise=run.denoise,
        seed=_seed(run, "noise"),
    )


def along(weights: FlatParameters, values: Sequence[float]) -> Tensor:
    """Lay one value a network side by side out along their common weight vector, [n]."""
    each = torch.tensor(values, device=weights.work.device)
    parts = [each.view(-1, *[1] * (p.ndim - 1)).expand_as(p).reshape(-1) for p in weights.parameters]
    return torch.cat(parts)


def _members(state: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """Of the state of networks side by side that of the chosen ones; of a single one as that network has it."""
    first: Any = chosen if len(chosen) > 1 else chosen[0]
    optimizer = state["optimizer"]
    per_weight = {
        i: {name: value[first] if value.ndim else value for name, value in entry.items()}
        for i, entry in optimizer["state"].items()
    }
    each = {name: [state[name][k] for k in chosen] for name in ("order", "factors", "status", "curves")}
    return {
        **state,
        **each,
        "model": {name: value[first] for name, value in state["model"].items()},
        "optimizer": {**optimizer, "state": per_weight},
    }


def _late(seconds: float, until: float) -> bool:
    """Whether what takes so long would end after that time; of what takes NaN seconds nobody knows."""
    return time.monotonic() + seconds > until


def _thin(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most 200 points of a curve, evenly spread, first and last kept."""
    if len(curve) <= _CURVE_POINTS:
        return curve
    return [curve[round(i)] for i in np.linspace(0, len(curve) - 1, _CURVE_POINTS)]


def checkpointed(path: Path, *, glance: bool = False) -> dict[str, Any]:
    """The state in a checkpoint (see `Training.state_dict`); `InputError` if it is damaged.

    At a glance its tensors stay in the file, and are no longer to be had when that is gone.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=glance)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"the checkpoint {path} is damaged: delete it to start this run again.") from error
