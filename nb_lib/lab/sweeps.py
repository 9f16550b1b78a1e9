"""Train many runs: what is stored is skipped, seeds go side by side, and whatever ends a sweep loses next to nothing.

A sweep may be stopped and called again, in slices, on any machine; several may share a store, each run is claimed by
a lock that its process holds while it lives.  With a Dask client the groups of runs spread over its workers.  A budget
is spent whole: groups that would not end in time wait until all that would have ended.
"""

import dataclasses
import functools
import hashlib
import math
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import as_completed as all_of
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.data import Data, data_root
from nb_lib.lab.device import hidden, let_go, pick_device
from nb_lib.lab.forecast import Forecast
from nb_lib.lab.names import image_shape
from nb_lib.lab.networks import convolutional, parameter_count
from nb_lib.lab.provenance import device_name
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, merge
from nb_lib.lab.training import Training, checkpointed, load_for, side_by_side

Measure = Callable[[nn.Module, Data], dict[str, float]]
Watch = Callable[[str], object]
_POLL = 0.5  # seconds between looks at runs that another process trains
_WEIGHTS_AT_ONCE = {
    "cpu": 300_000,
    "cuda": 32_000_000,
}  # more side by side are not faster: caches, memory traffic
_FEW_SAMPLES = 512  # in a pass of a dense network: a GPU waits for the host


def sweep(
    runs: Iterable[Run],
    store: RunStore | str | os.PathLike[str] | None = None,
    *,
    budget: float | None = None,
    have: Iterable[Record] = (),
    into: str | os.PathLike[str] | None = None,
    named: Mapping[str, Sequence[Run]] | None = None,
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
        Seconds after which to stop; a training that is not done by then leaves a checkpoint for the next call.  A
        group that by its measured pace would not end is put off until those that would have ended.
    have : iterable of Record
        Of runs that count as done though the store does not hold them.
    into : path, optional
        File of JSON lines to which the records of the store are added after every group, as `runs.merge` does: what a
        machine is left with.
    named : mapping, optional
        Names of experiments and their runs, as of `papers.plan`: the closing account has a line for each.
    client : distributed.Client or str, optional
        A Dask client, or the address of a scheduler: groups of runs train on its workers, one at a time on each.
        A lost worker's runs go to another one.
    device, root, download
        See `training.load_for`.  On a GPU a second process trains small networks beside large ones.
    measure : callable, optional
        ``measure(model, data) -> dict`` of numbers, called with each trained network and kept in its record, as
        `measures.measures`. A stored record without them is made again.
    keep_weights : bool
        Also keep each run's final weights, as ``<key>.pt`` (see `training.trained`); a record without is made again.
    progress : bool
        Show one bar for the sweep, and a closing account.

    Returns
    -------
    list of Record
        In the order given, without runs that are left; `runs.frame` and `runs.curves` make tables of them.

    Raises
    ------
    InputError
        For anything that would stop every run (a missing data set, a full disk); what was stored before stays.
    """
    started = time.time()
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            return sweep(
                runs, folder, budget=budget, have=have, into=into, named=named, client=client, device=device, root=root,
                download=download, measure=measure, keep_weights=keep_weights, progress=progress,
            )  # fmt: skip
    store = store if isinstance(store, RunStore) else RunStore(store)
    deadline = math.inf if budget is None else started + budget
    task = _Task(store, device, root, download, measure, keep_weights, deadline)
    runs = list(dict.fromkeys(runs))
    had = {record.run: record for record in have}
    wanted = [run for run in runs if run not in had]

    def on_the_way() -> None:
        if into is not None:
            merge([store.folder], into)

    known = [*had.values(), *(store.load(run) for run in wanted if run in store)]
    with (
        tqdm(total=len(wanted), unit="run", smoothing=0, disable=hidden(progress)) as bar,
        _workers(client, device, known) as workers,
    ):
        ended = _train_missing(wanted, task, workers, bar, on_the_way)
    task.forget_finished(runs)
    records = [store.load(run) for run in runs if run in store]
    if progress:
        if named:
            print(account(named, records, ended.records, had))
        print(_account(runs, records, ended, sum(run not in store for run in had.keys() & set(runs))))
    return records


@dataclass
class _Ended:
    """What came of one attempt at a group, or of all."""

    records: list[Record] = field(default_factory=list)
    too_large: list[Run] = field(default_factory=list)
    lost: list[Run] = field(default_factory=list)
    busy: bool = False  # somebody else is at some of them
    out_of_time: bool = False
    in_vain: bool = False  # it would not end in time
    measured: list[tuple[Run, int, float]] = field(
        default_factory=list
    )  # networks side by side, seconds an epoch

    def add(self, other: "_Ended") -> None:
        self.records += other.records
        self.too_large += other.too_large
        self.lost += other.lost
        self.busy |= other.busy
        self.out_of_time |= other.out_of_time
        self.in_vain |= other.in_vain
        self.measured += other.measured


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

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.time()

    def groups(self, runs: list[Run]) -> list[list[Run]]:
        """What to train together, in the order of the runs."""
        cuda = torch.cuda.is_available() if self.device == "auto" else self.device.startswith("cuda")
        kind = "cuda" if cuda else "cpu"
        groups = []
        for alike in _by_network(runs):
            shape = image_shape(alike[0].dataset) or (3, 32, 32)
            most = max(1, _WEIGHTS_AT_ONCE[kind] // parameter_count(alike[0].network, shape))
            groups += side_by_side(alike, most=min(most, 32))
        order = {run: place for place, run in enumerate(runs)}
        return sorted(groups, key=lambda group: order[group[0]])

    def __call__(self, group: list[Run], watch: Watch | None = None, expected: float = math.nan) -> _Ended:
        """Train those runs of a group that nobody else has or is at; not in vain if so many epochs are expected."""
        with _ONE_AT_A_TIME, ExitStack() as locks:
            mine = [run for run in group if self._claim(run, locks)]
            busy = len(mine) < len(group)
            ended = self._train([run for run in mine if self.lacks(run)], watch, expected)
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

    def _train(self, group: list[Run], watch: Watch | None, expected: float) -> _Ended:
        if not group:
            return _Ended()
        if self.left() <= 0:
            return _Ended(out_of_time=True)
        data = _data(group[0], self.device, self.root, self.download)
        ended = self._attempt(group, data, watch, expected)
        if ended is None or data.device.type == "cuda":
            let_go(data.device)
        return ended or self._in_halves(group, watch, expected)

    def _attempt(self, group: list[Run], data: Data, watch: Watch | None, expected: float) -> _Ended | None:
        """Train a group; None if it does not fit into the memory, of which nothing is held then."""
        try:
            training = Training(group, data)
            place = self._checkpoint(group, data.device.type)
            if interrupted := self._interrupted(group, data.device.type):
                training.load_state_dict(checkpointed(interrupted[1]))
            records = training.finish(
                checkpoint=place,
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
        done = len(records) == len(group)
        in_vain = not done and training.pace < self.left()
        measured = [(group[0], len(group), training.pace)] if training.pace else []
        return _Ended(records, out_of_time=not done and not in_vain, in_vain=in_vain, measured=measured)

    def _in_halves(self, group: list[Run], watch: Watch | None, expected: float) -> _Ended:
        """Out of memory: fewer networks at once, if there is more than one."""
        if len(group) == 1:
            tqdm.write(
                f"{group[0].label}: does not fit into the memory of the device; it is left.", file=sys.stderr
            )
            return _Ended(too_large=group)
        half = (len(group) + 1) // 2
        tqdm.write(
            f"{group[0].label}: {len(group)} networks at once do not fit; {half} at once.", file=sys.stderr
        )
        ended = self._train(group[:half], watch, expected)
        ended.add(self._train(group[half:], watch, expected))
        return ended

    def _keep(self, training: Training, k: int, record: Record) -> Record:
        """Store a record, after what belongs to it."""
        if self.measure:
            found = {} if record.status == "diverged" else self.measure(training.member(k), training.data)
            record = dataclasses.replace(record, measures=found)
        elif record.run in self.store:  # made again for its weights
            record = dataclasses.replace(record, measures=self.store.load(record.run).measures)
        if self.keep_weights:
            self.store.save_weights(record.run, training.member(k))
        self.store.save(record)
        return record

    def _checkpoint(self, group: list[Run], device: str) -> str:
        """Where the state of a group is kept; a GPU's is of no use to a CPU, nor the other way round."""
        name = hashlib.sha256("".join([device, *(run.key for run in group)]).encode()).hexdigest()[:16]
        return os.path.join(self.store.folder, f"{name}.checkpoint")

    def _interrupted(self, group: list[Run], device: str) -> tuple[int, Path] | None:
        """Where these runs got furthest, in epochs, and in which checkpoint, perhaps of a larger group."""
        wanted = {run.key for run in group}
        here = ((path, state) for path, state in self._checkpoints() if state.get("device", "cpu") == device)
        found = [(state["progress"][0], path) for path, state in here if wanted <= set(state["keys"])]
        return max(found, default=None)

    def epochs_done(self, group: list[Run]) -> int:
        """Epochs of a group in a checkpoint, of those of its runs for which there is something to do."""
        device = pick_device(self.device).type
        interrupted = self._interrupted([run for run in group if self.lacks(run)], device)
        return interrupted[0] if interrupted else 0

    def forget_finished(self, runs: Iterable[Run]) -> None:
        """Remove the checkpoints of runs of which nothing is missing any more."""
        done = {run.key for run in runs if not self.lacks(run)}
        for path, state in self._checkpoints():
            if set(state["keys"]) <= done:
                path.unlink(missing_ok=True)

    def _checkpoints(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in sorted(self.store.folder.glob("*.checkpoint")):
            with suppress(InputError):  # damaged, or gone by now
                yield path, checkpointed(path, glance=True)


_ONE_AT_A_TIME = threading.Lock()  # of a worker's threads: torch's global generators are one a process


def _train_missing(
    runs: list[Run], task: _Task, workers: Any, bar: "tqdm[Any]", stored: Callable[[], None]
) -> _Ended:
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
            if one.records:
                stored()
        ended.add(this_round)
        if this_round == _Ended(busy=True):
            time.sleep(_POLL)
        elif this_round == _Ended() and all(task.lacks(run) for run in missing):
            raise InputError(
                f"the workers do not see the store {task.store.folder}: name a folder that all share."
            )


@contextmanager
def _workers(client: Any, device: str, known: Iterable[Record]) -> Iterator[Callable[..., Iterator[_Ended]]]:
    """What trains groups: this process, on a GPU with one beside it, or the workers of a Dask scheduler."""
    if client is None:
        where = pick_device(device)
        forecast = Forecast(known, {"device": device_name(where), "threads": torch.get_num_threads()})
        train = _beside if where.type == "cuda" else _here
        yield functools.partial(train, forecast)
    elif isinstance(client, str):
        from distributed import Client

        with Client(client) as connected:
            yield functools.partial(_there, connected)
    else:
        yield functools.partial(_there, client)


def _here(forecast: Forecast, task: _Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Iterator[_Ended]:
    """One group after the other; those that would not end in time after all that would."""
    shown = 0.0

    def watch(words: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > _POLL:
            bar.set_postfix_str(words)
            shown = time.monotonic()

    put_off: list[list[Run]] = []
    for last, waiting in ((False, groups), (True, put_off)):
        for group in waiting:
            if task.left() <= 0 or forecast.epoch(group) > task.left():
                yield _Ended(out_of_time=True)
                continue
            if not last and forecast.rest(group, task.epochs_done(group)) > task.left():
                put_off.append(group)
                continue
            bar.set_description(group[0].label)
            ended = task(group, watch, math.nan if last else forecast.epochs(group))
            for measured in ended.measured:
                forecast.learn(*measured)
            if ended.in_vain:
                put_off.append(group)
            yield dataclasses.replace(ended, in_vain=False)


def _beside(forecast: Forecast, task: _Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Iterator[_Ended]:
    """The same, and in a second process the groups that leave a GPU waiting for its host."""
    small = [group for group in groups if _host_bound(group)]
    large = [group for group in groups if not _host_bound(group)]
    if not (small and large):
        yield from _here(forecast, task, groups, bar)
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as helper:
        waiting = {helper.submit(task, group, None, forecast.epochs(group)): group for group in small}
        for ended in _here(forecast, task, large, bar):
            yield ended
            for future in [future for future in waiting if future.done()]:
                yield _from_helper(future, waiting.pop(future))
        unbegun = [future for future in waiting if future.cancel()]
        yield from _here(forecast, task, [waiting.pop(future) for future in unbegun], bar)
        for future in all_of(waiting):
            yield _from_helper(future, waiting[future])


def _from_helper(future: "Future[_Ended]", group: list[Run]) -> _Ended:
    try:
        return future.result()
    except BrokenProcessPool:
        tqdm.write(f"{group[0].label}: the second process was lost; this is left.", file=sys.stderr)
        return _Ended(lost=group)


def _host_bound(group: Sequence[Run]) -> bool:
    """Whether a GPU needs less time for a pass than its host for launching it: few samples, a dense network."""
    run = group[0]
    samples = run.noise_batch if run.a and run.noise_batch else run.batch_size
    return not convolutional(run.network) and len(group) * samples <= _FEW_SAMPLES


def _there(client: Any, task: _Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Iterator[_Ended]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    bar.set_description(f"{len(client.scheduler_info()['workers'])} workers")
    futures = {client.submit(task, group, pure=False, priority=-i): group for i, group in enumerate(groups)}
    for future in as_completed(futures):
        try:
            yield future.result()
        except KilledWorker:
            tqdm.write(
                f"{futures[future][0].label}: several workers were lost over it; it is left.", file=sys.stderr
            )
            yield _Ended(lost=futures[future])


def _by_network(runs: list[Run]) -> list[list[Run]]:
    networks: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        networks.setdefault((run.network, run.dataset), []).append(run)
    return list(networks.values())


_loaded: dict[tuple[object, ...], Data] = {}


def _data(run: Run, device: str, root: str | None, download: bool) -> Data:
    """The run's data; only the last ones stay in memory."""
    source = (
        run.dataset,
        run.train_size,
        run.valid_size,
        run.split_seed,
        run.inputs,
        device,
        data_root(root),
    )
    if source not in _loaded:
        _loaded.clear()
        _loaded[source] = load_for(run, device=device, root=root, download=download)
    return _loaded[source]


def out_of_memory(error: BaseException | None) -> bool:
    """Also where libraries beneath torch have no words for it (cuDNN finds no engine), or recording covers it up."""
    if error is None:
        return False
    said = (
        "can't allocate memory",
        "CUDA error: out of memory",
        "ALLOC_FAILED",
        "unable to find an engine to execute this computation",
    )
    short = isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in said
    )
    return short or out_of_memory(error.__context__)


def account(
    named: Mapping[str, Sequence[Run]],
    records: Sequence[Record],
    now: Sequence[Record],
    had: Iterable[Run] = (),
) -> str:
    """A table of what came of named experiments; a run that is part of several counts in each.

    Parameters
    ----------
    named : mapping
        The runs of each.
    records, now : sequence of Record
        All that the store holds, and those of them that were trained in this call.
    had : iterable of Run
        Runs done elsewhere.

    Returns
    -------
    str
        Columns runs, trained now, stored before, done elsewhere, left, images a second (of those trained now, both
        minibatches of NE counted, while they trained), and where that was.
    """
    stored, trained_now, elsewhere = {r.run for r in records}, {r.run: r for r in now}, set(had)
    rows = []
    for name, runs in named.items():
        trained = [trained_now[run] for run in runs if run in trained_now]
        seconds = sum(r.wall_time / r.provenance["side_by_side"] for r in trained)
        rows.append(
            {
                "": name,
                "runs": len(runs),
                "trained now": len(trained),
                "stored before": len(stored.intersection(runs)) - len(trained),
                "done elsewhere": len(elsewhere.intersection(runs) - stored),
                "left": len(set(runs) - stored - elsewhere),
                "images/s": f"{sum(r.samples for r in trained) / seconds:,.0f}" if trained else "",
                "where": _places(trained),
            }
        )
    return pd.DataFrame(rows).to_string(index=False)


def _places(records: Iterable[Record]) -> str:
    return ", ".join(sorted({record.provenance["device"] for record in records}))


def _account(runs: list[Run], records: list[Record], ended: _Ended, elsewhere: int) -> str:
    """One line: what was done, what was there, what is left and why."""
    left = len(runs) - len(records) - elsewhere
    parts = [f"{len(ended.records)} trained now", f"{len(records) - len(ended.records)} were stored"]
    if elsewhere:
        parts.append(f"{elsewhere} done elsewhere")
    if left:
        reasons = {"too large": len(ended.too_large), "their workers lost": len(ended.lost)}
        why = [f"{count} {reason}" for reason, count in reasons.items() if count]
        if ended.out_of_time:
            why.append("out of time: the same call goes on")
        parts.append(f"{left} left ({', '.join(why)})")
    statuses = Counter(record.status for record in records)
    endings = ", ".join(f"{n} {status}" for status, n in statuses.items())
    return (
        f"{len(runs)} runs: {', '.join(parts)}; {endings}."
        if endings
        else f"{len(runs)} runs: {', '.join(parts)}."
    )
