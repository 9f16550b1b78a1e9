"""Train one group of runs of a sweep, in this process: claim it, go on from a checkpoint, store each record."""

import dataclasses
import functools
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm.auto import tqdm

from nb_lib.errors import CannotWrite, InputError
from nb_lib.lab.checkpoints import Checkpoints, checkpointed
from nb_lib.lab.data import Data, data_root
from nb_lib.lab.device import let_go, out_of_memory, pick_device
from nb_lib.lab.files import cannot_write
from nb_lib.lab.names import DATASETS
from nb_lib.lab.networks import parameter_count
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.setup import load_for, side_by_side
from nb_lib.lab.store import RunStore
from nb_lib.lab.training import Training

Measure = Callable[[nn.Module, Data], dict[str, float]]
Watch = Callable[[str], object]

_WEIGHTS_AT_ONCE = {"cpu": 300_000, "cuda": 32_000_000}  # more are not faster: caches, memory traffic
_NETWORKS_AT_ONCE = 32
_ONE_AT_A_TIME = threading.Lock()  # of a worker's threads: torch's global generators are one a process


@dataclass
class Ended:
    """What came of one attempt at a group, or of all.

    >>> both = Ended(busy=True)
    >>> both.add(Ended(failed={Run(): "its worker was lost"}))
    >>> both.busy, len(both.failed)
    (True, 1)
    """

    records: list[Record] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)  # and why
    busy: bool = False  # somebody else is at some of them
    out_of_time: bool = False
    in_vain: bool = False  # it would not end in time
    measured: list[tuple[Run, int, float]] = field(default_factory=list)  # networks, seconds an epoch

    def add(self, other: "Ended") -> None:
        """Count what came of another attempt."""
        self.records += other.records
        self.failed |= other.failed
        self.busy |= other.busy
        self.out_of_time |= other.out_of_time
        self.in_vain |= other.in_vain
        self.measured += other.measured


@dataclass(frozen=True)
class Task:
    """How to train one group of runs, here or on a worker; for the fields see `sweeps.sweep`."""

    store: RunStore
    device: str
    root: str | None
    download: bool
    measure: Measure | None
    keep_weights: bool
    deadline: float  # of this machine's time.monotonic()

    def lacks(self, run: Run) -> bool:
        """Whether there is something to do for this run."""
        if run not in self.store or (self.keep_weights and not self.store.weights(run).exists()):
            return True
        return self.measure is not None and self.store.load(run).measures is None

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def lasting(self, seconds: float) -> "Task":
        """The same with so much time from now on, by the clock of this machine."""
        return dataclasses.replace(self, deadline=time.monotonic() + seconds)

    def groups(self, runs: list[Run]) -> list[list[Run]]:
        """What to train together, in the order of the runs."""
        cuda = torch.cuda.is_available() if self.device == "auto" else self.device.startswith("cuda")
        weights_at_once = _WEIGHTS_AT_ONCE["cuda" if cuda else "cpu"]
        groups = []
        for alike in side_by_side(runs, most=len(runs)):
            if len(alike) == 1:
                groups.append(alike)
                continue
            weights = parameter_count(alike[0].network, DATASETS.get(alike[0].dataset, (3, 32, 32)))
            most = min(max(1, weights_at_once // weights), _NETWORKS_AT_ONCE)
            groups += side_by_side(alike, most=most)
        place = {run: i for i, run in enumerate(runs)}
        return sorted(groups, key=lambda group: place[group[0]])

    def __call__(
        self, group: list[Run], watch: Watch | None = None, expected: float = math.nan, *, late: bool = False
    ) -> Ended:
        """Train those runs of a group that nobody else has or is at; for `watch`, `expected` see `Training.finish`.

        What is begun in time, or `late`, trains for an epoch at least.  An error ends these runs alone, but
        `CannotWrite`, which would end all others, is raised.
        """
        with _ONE_AT_A_TIME, ExitStack() as locks:
            mine = [run for run in group if self._claim(run, locks)]
            missing = [run for run in mine if self.lacks(run)]
            in_time = late or self.left() > 0
            try:
                ended = self._train(missing, watch, expected) if in_time else Ended(out_of_time=bool(missing))
            except CannotWrite:
                raise
            except Exception as error:
                reason = _in_one_line(error)
                ended = Ended(failed={run: reason for run in missing if self.lacks(run)})
            ended.busy = len(mine) < len(group)
            ended.out_of_time |= ended.busy and self.left() <= 0
            return ended

    def _claim(self, run: Run, locks: ExitStack) -> bool:
        """Take the run's lock if it is free; the system takes it back when the process ends, however it ends."""
        folder = self.store.folder / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(folder / run.key, timeout=0))
        except Timeout:
            return False
        except OSError as error:
            raise cannot_write(self.store.folder, error) from error
        return True

    def _train(self, group: list[Run], watch: Watch | None, expected: float) -> Ended:
        if not group:
            return Ended()
        data = data_for(group[0], self.device, self.root, self.download)
        ended = self._attempt(group, data, watch, expected)
        if ended is None or data.device.type == "cuda":
            let_go(data.device)
        if ended is not None:
            return ended
        label, half = group[0].label, (len(group) + 1) // 2
        if len(group) == 1:
            return Ended(failed={group[0]: "it does not fit into the memory of the device."})
        tqdm.write(f"{label}: {len(group)} networks at once do not fit; {half} at once.", file=sys.stderr)
        ended = self._train(group[:half], watch, expected)
        ended.add(self._train(group[half:], watch, expected))
        return ended

    def _attempt(self, group: list[Run], data: Data, watch: Watch | None, expected: float) -> Ended | None:
        """Train a group; None if it does not fit into the memory, of which nothing is held then."""
        checkpoints, device = Checkpoints(self.store.folder), data.device.type
        try:
            training = Training(group, data)
            interrupted = checkpoints.furthest(group, device)
            if interrupted:
                training.load_state_dict(checkpointed(interrupted[1]))
            records = training.finish(
                checkpoint=checkpoints.path(group, device),
                progress=False,
                until=time.monotonic() + self.left(),
                expected=expected,
                watch=watch,
                keep=functools.partial(self._keep, training),
            )
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None
        ended = Ended(records)
        if len(records) < len(group):
            ended.in_vain = training.pace < self.left()
            ended.out_of_time = not ended.in_vain
        if training.pace:
            ended.measured = [(group[0], len(group), training.pace)]
        return ended

    def _keep(self, training: Training, k: int, record: Record) -> Record:
        """Store a record, after what belongs to it."""
        run = record.run
        measures = None
        if self.measure:
            measures = {} if record.status == "diverged" else self.measure(training.member(k), training.data)
        elif run in self.store:  # made again for its weights
            measures = self.store.load(run).measures
        record = dataclasses.replace(record, measures=measures)
        if self.keep_weights:
            self.store.save_weights(run, training.member(k))
        self.store.save(record)
        return record

    def epochs_done(self, group: list[Run]) -> int:
        """Epochs of a group in a checkpoint, of those of its runs for which there is something to do."""
        missing = [run for run in group if self.lacks(run)]
        interrupted = Checkpoints(self.store.folder).furthest(missing, pick_device(self.device).type)
        return interrupted[0] if interrupted else 0

    def forget_finished(self, runs: Iterable[Run]) -> None:
        """Remove the checkpoints of runs of which nothing is missing any more."""
        done = {run.key for run in runs if not self.lacks(run)}
        Checkpoints(self.store.folder).forget(done)


def _in_one_line(error: Exception) -> str:
    """What happened, and, if it is not said in a sentence of ours, where."""
    if isinstance(error, InputError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = str(error).partition("\n")[0]
    return f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {said}"


_loaded: dict[tuple[object, ...], Data] = {}


def data_for(run: Run, device: str, root: str | None, download: bool) -> Data:
    """The run's data; only the last ones stay in memory."""
    subset = run.train_size, run.valid_size, run.split_seed
    source = run.dataset, *subset, run.inputs, run.image_size, device, data_root(root)
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = load_for(run, device=device, root=root, download=download)
    return _loaded[source]
