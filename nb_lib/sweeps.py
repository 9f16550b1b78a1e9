"""Train many runs: what is stored is skipped, seeds go side by side, and whatever ends a sweep loses next to nothing.

A sweep may be stopped and called again, in slices, on any machine; several may share a store, each run is claimed by
a lock that its process holds while it lives.  With a Dask client the groups of runs spread over its workers.
"""

import dataclasses
import functools
import gc
import hashlib
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm.auto import tqdm

from nb_lib.data import Data, data_root, image_shape
from nb_lib.device import hidden
from nb_lib.errors import InputError
from nb_lib.networks import parameter_count
from nb_lib.runs import Record, Run, RunStore
from nb_lib.training import Training, load_for, side_by_side

Measure = Callable[[nn.Module, Data], dict[str, float]]
_POLL = 0.5  # seconds between looks at runs that another process trains
_WEIGHTS_AT_ONCE = {"cpu": 300_000, "cuda": 32_000_000}  # more side by side are not faster: caches, memory traffic


def sweep(
    runs: Iterable[Run],
    store: RunStore | str | os.PathLike[str] | None = None,
    *,
    budget: float | None = None,
    client: Any = None,
    device: str = "auto",
    root: str | None = None,
    download: bool = False,
    measure: Measure | None = None,
    keep_weights: bool = False,
    progress: bool = True,
) -> list[Record]:
    """Train every run that `store` does not hold yet, and return the records of all that it holds then.

    Each record is on the disk as soon as its run ends, and long trainings keep a checkpoint beside it, so whatever
    ends this process, calling it again loses at most the last half minute.  Runs are trained in the order given, or
    with those of their group (see `training.side_by_side`).

    Parameters
    ----------
    runs : iterable of Run
        A run named twice is trained once.
    store : RunStore or path, optional
        None keeps nothing: every run is trained now.  Several processes and machines may share a store on a file
        system with locks; no run is trained twice.
    budget : float, optional
        Seconds after which to stop; a training that is not done by then leaves a checkpoint for the next call.
    client : distributed.Client or str, optional
        A Dask client, or the address of a scheduler: groups of runs train on its workers, one at a time on each.
        A lost worker's runs go to another one.
    device, root, download
        See `training.load_for`.
    measure : callable, optional
        ``measure(model, data) -> dict`` of numbers, called with each trained network and kept in its record, as
        `measures.measures`. A stored record without them is made again.
    keep_weights : bool
        Also keep each run's final weights, as ``<key>.pt`` (see `training.trained`); a record without is made again.
    progress : bool
        Show one bar for the sweep, and a closing line.

    Returns
    -------
    list of Record
        In the order given, without runs that are left; `runs.frame` and `runs.curves` make tables of them.

    Raises
    ------
    InputError
        For anything that would stop every run (a missing data set, a full disk); what was stored before stays.
    """
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            return sweep(
                runs, folder, budget=budget, client=client, device=device, root=root, download=download,
                measure=measure, keep_weights=keep_weights, progress=progress,
            )  # fmt: skip
    store = store if isinstance(store, RunStore) else RunStore(store)
    task = _Task(
        store, device, root, download, measure, keep_weights, time.time() + (math.inf if budget is None else budget)
    )
    runs = list(dict.fromkeys(runs))
    with tqdm(total=len(runs), unit="run", smoothing=0, disable=hidden(progress)) as bar, _workers(client) as workers:
        ended = _train_missing(runs, task, workers, bar)
    records = [store.load(run) for run in runs if run in store]
    if progress:
        print(_account(runs, records, ended))
    return records


@dataclass
class _Ended:
    """What came of one attempt at a group, or of all."""

    records: list[Record] = field(default_factory=list)
    too_large: list[Run] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)
    busy: bool = False  # somebody else is at some of them
    out_of_time: bool = False
    epoch_seconds: float = 0.0

    def add(self, other: "_Ended") -> None:
        self.records += other.records
        self.too_large += other.too_large
        self.lost += other.lost
        self.busy |= other.busy
        self.out_of_time |= other.out_of_time
        self.epoch_seconds = max(self.epoch_seconds, other.epoch_seconds)


@dataclass(frozen=True)
class _Task:
    """How to train one group of runs, here or on a worker."""

    store: RunStore
    device: str
    root: str | None
    download: bool
    measure: Measure | None
    keep_weights: bool
    deadline: float  # of time.time(), which machines share

    def lacks(self, run: Run) -> bool:
        """Whether there is something to do for this run."""
        if run not in self.store:
            return True
        if self.keep_weights and not self.store.weights(run).exists():
            return True
        return self.measure is not None and self.store.load(run).measures is None

    def groups(self, runs: list[Run]) -> list[list[Run]]:
        """What to train together, in the order of the runs."""
        cuda = torch.cuda.is_available() if self.device == "auto" else self.device.startswith("cuda")
        kind = "cuda" if cuda else "cpu"
        differing = ("seed", "alpha", "a") if cuda else ("seed",)
        groups = []
        for alike in _by_network(runs):
            shape = image_shape(alike[0].dataset) or (3, 32, 32)
            most = max(1, _WEIGHTS_AT_ONCE[kind] // parameter_count(alike[0].network, shape))
            groups += side_by_side(alike, most=min(most, 32), differing=differing)
        order = {run: place for place, run in enumerate(runs)}
        return sorted(groups, key=lambda group: order[group[0]])

    def __call__(self, group: list[Run], watch: Callable[[str], object] | None = None) -> _Ended:
        """Train those runs of a group that nobody else has or is at."""
        with _ONE_AT_A_TIME, ExitStack() as locks:
            mine = [run for run in group if self._claim(run, locks)]
            busy = len(mine) < len(group)
            ended = self._train([run for run in mine if self.lacks(run)], watch)
            return dataclasses.replace(ended, busy=busy)

    def _claim(self, run: Run, locks: ExitStack) -> bool:
        """Take the run's lock if it is free; the system takes it back when the process ends, however it ends."""
        folder = self.store.folder / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(folder / run.key, timeout=0))
        except Timeout:
            return False
        except OSError as error:
            raise InputError(
                f"cannot write to {self.store.folder}: {error.strerror}; free some space or choose another folder."
            ) from error
        return True

    def _train(self, group: list[Run], watch: Callable[[str], object] | None) -> _Ended:
        if not group:
            return _Ended()
        if time.time() >= self.deadline:
            return _Ended(out_of_time=True)
        data = _data(group[0], self.device, self.root, self.download)
        try:
            training = Training(group, data)
            until = time.monotonic() + self.deadline - time.time()
            keep = functools.partial(self._keep, training)
            place = self._checkpoint(group)
            records = training.finish(checkpoint=place, progress=False, until=until, watch=watch, keep=keep)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
        else:
            if not records:
                return _Ended(out_of_time=True)
            return _Ended(records, epoch_seconds=training.wall_time / training.epoch)
        training = keep = None  # type: ignore[assignment]  # their memory is what the smaller groups need
        return self._in_halves(group, watch)

    def _in_halves(self, group: list[Run], watch: Callable[[str], object] | None) -> _Ended:
        """Out of memory: fewer networks at once, if there is more than one."""
        gc.collect()
        torch.cuda.empty_cache()
        if len(group) == 1:
            tqdm.write(f"{group[0].label}: does not fit into the memory of the device; it is left.", file=sys.stderr)
            return _Ended(too_large=group)
        half = (len(group) + 1) // 2
        tqdm.write(f"{group[0].label}: {len(group)} networks at once do not fit; {half} at once.", file=sys.stderr)
        ended = self._train(group[:half], watch)
        ended.add(self._train(group[half:], watch))
        return ended

    def _keep(self, training: Training, records: list[Record]) -> list[Record]:
        """Store the records, after what belongs to them."""
        kept = []
        for k, record in enumerate(records):
            if self.measure:
                found = {} if record.status == "diverged" else self.measure(training.member(k), training.data)
                record = dataclasses.replace(record, measures=found)
            elif record.run in self.store:  # made again for its weights
                record = dataclasses.replace(record, measures=self.store.load(record.run).measures)
            if self.keep_weights:
                self.store.save_weights(record.run, training.member(k))
            self.store.save(record)
            kept.append(record)
        return kept

    def _checkpoint(self, group: list[Run]) -> str:
        name = hashlib.sha256("".join(run.key for run in group).encode()).hexdigest()[:16]
        return os.path.join(self.store.folder, f"{name}.checkpoint")


_ONE_AT_A_TIME = threading.Lock()  # of a worker's threads: torch's global generators are one a process


def _train_missing(runs: list[Run], task: _Task, workers: Any, bar: "tqdm[Any]") -> _Ended:
    """Go round until nothing is missing that could be had: what another process has claimed, it may yet lose."""
    ended = _Ended()
    while True:
        given_up = {*ended.too_large, *ended.lost}
        missing = [run for run in runs if run not in given_up and task.lacks(run)]
        bar.n = len(runs) - len(missing) - len(given_up)
        bar.refresh()
        if not missing or ended.out_of_time:
            return ended
        this_round = _Ended()
        for one in workers(task, task.groups(missing), bar):
            this_round.add(one)
            bar.update(len(one.records))
            for record in one.records:  # of a worker that may not see this store
                if record.run not in task.store:
                    task.store.save(record)
            if time.time() + this_round.epoch_seconds >= task.deadline:
                this_round.out_of_time = True
                break
        ended.add(this_round)
        if this_round == _Ended(busy=True):
            time.sleep(_POLL)
        elif this_round == _Ended() and all(task.lacks(run) for run in missing):
            raise InputError(f"the workers do not see the store {task.store.folder}: name a folder that all share.")


@contextmanager
def _workers(client: Any) -> Iterator[Callable[..., Iterator[_Ended]]]:
    """What trains groups: this process, or the workers of a Dask scheduler."""
    if client is None:
        yield _here
    elif isinstance(client, str):
        from distributed import Client

        with Client(client) as connected:
            yield lambda *arguments: _there(connected, *arguments)
    else:
        yield lambda *arguments: _there(client, *arguments)


def _here(task: _Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Iterator[_Ended]:
    shown = 0.0

    def watch(words: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > _POLL:
            bar.set_postfix_str(words)
            shown = time.monotonic()

    for group in groups:
        bar.set_description(group[0].label)
        yield task(group, watch)


def _there(client: Any, task: _Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Iterator[_Ended]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    bar.set_description(f"{len(client.scheduler_info()['workers'])} workers")
    futures = {client.submit(task, group, pure=False, priority=-i): group for i, group in enumerate(groups)}
    for future in as_completed(futures):
        try:
            yield future.result()
        except KilledWorker:
            tqdm.write(f"{futures[future][0].label}: several workers were lost over it; it is left.", file=sys.stderr)
            yield _Ended(lost=futures[future])


def _by_network(runs: list[Run]) -> list[list[Run]]:
    networks: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        networks.setdefault((run.network, run.dataset), []).append(run)
    return list(networks.values())


_loaded: dict[tuple[object, ...], Data] = {}


def _data(run: Run, device: str, root: str | None, download: bool) -> Data:
    """The run's data; only the last ones stay in memory."""
    source = (run.dataset, run.train_size, run.valid_size, run.split_seed, run.inputs, device, data_root(root))
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = load_for(run, device=device, root=root, download=download)
    return _loaded[source]


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _account(runs: list[Run], records: list[Record], ended: _Ended) -> str:
    """One line: what was done, what was there, what is left and why."""
    left = len(runs) - len(records)
    parts = [f"{len(ended.records)} trained now", f"{len(records) - len(ended.records)} were stored"]
    if left:
        reasons = {"too large": len(ended.too_large), "their workers lost": len(ended.lost)}
        why = [f"{count} {reason}" for reason, count in reasons.items() if count]
        why += ["out of time: the same call goes on"] * ended.out_of_time
        parts.append(f"{left} left ({', '.join(why)})")
    statuses = Counter(record.status for record in records)
    endings = ", ".join(f"{n} {status}" for status, n in statuses.items())
    return f"{len(runs)} runs: {', '.join(parts)}{'; ' * bool(endings)}{endings}."
