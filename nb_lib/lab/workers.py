"""Who trains the groups of a sweep: this process, on a GPU with a second one beside it, or the workers of a cluster.

Each is a generator of what came of each group, `Ended`, in the order in which they end.  How long groups will take is
forecast from the pace of those measured so far and the epochs that runs like theirs took.
"""

import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import as_completed as all_of
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any

import torch
from tqdm.auto import tqdm

from nb_lib import published
from nb_lib.errors import CannotWrite
from nb_lib.lab.device import pick_device
from nb_lib.lab.networks import convolutional
from nb_lib.lab.provenance import device_name
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.setup import minibatches
from nb_lib.lab.tasks import Ended, Task

Attempts = Generator[Ended, None, None]
Workers = Callable[[Task, list[list[Run]], "tqdm[Any]"], Attempts]

_FEW_SAMPLES = 512  # in a pass of a dense network: a GPU waits for the host


@contextmanager
def workers(client: Any, device: str, known: Iterable[Record]) -> Iterator[Workers]:
    """Choose who trains: the workers of a Dask client, of the scheduler at an address, or without one this process.

    Of `known` records forecasts are made (see `Forecast`).
    """
    if client is None:
        place = pick_device(device)
        forecast = Forecast(known, {"device": device_name(place), "threads": torch.get_num_threads()})
        yield partial(_beside if place.type == "cuda" else _here, forecast)
    elif isinstance(client, str):
        from distributed import Client

        with Client(client) as connected:
            yield partial(_there, connected)
    else:
        yield partial(_there, client)


class Forecast:
    """Forecasts for groups of runs side by side, which get better with each group that is measured.

    Records, made anywhere, say how many epochs runs like theirs take; those with the fields `where` in their
    provenance, as device and threads, also how long an epoch takes here.

    >>> forecast = Forecast()
    >>> forecast.learn(Run(epochs=10), networks=2, seconds=6.0)
    >>> forecast.rest([Run(epochs=10, seed=1)], done=8)
    6.0
    """

    def __init__(self, records: Iterable[Record] = (), where: dict[str, object] | None = None) -> None:
        self._epochs: dict[Run, list[int]] = {}
        self._pace: dict[object, float] = {}  # seconds an epoch, for one network and one minibatch an update
        self._slowest = 0.0  # of the groups measured now: so much time should be left for what is not known at all
        for record in records:
            self._epochs.setdefault(_neutral(record.run), []).append(record.epochs)
            if where and where.items() <= record.provenance.items():
                self._note(record.run, record.wall_time / record.epochs / record.provenance["side_by_side"])

    def learn(self, run: Run, networks: int, seconds: float) -> None:
        """Note that an epoch of so many networks like this side by side took so long."""
        self._note(run, seconds / networks)
        self._slowest = max(self._slowest, seconds)

    def _note(self, run: Run, seconds: float) -> None:
        pace = seconds / minibatches(run)
        self._pace[replace(run, seed=0)] = pace
        self._pace[_network(run)] = pace

    def epoch(self, group: Sequence[Run]) -> float:
        """Seconds of an epoch, by another seed, else the same network, else the slowest measured yet; 0 at first."""
        run = group[0]
        for alike in (replace(run, seed=0), _network(run)):
            if alike in self._pace:
                return self._pace[alike] * len(group) * minibatches(run)
        return self._slowest

    def epochs(self, group: Sequence[Run]) -> float:
        """Epochs that the group is expected to take; NaN if there is no telling.

        Where a loss ends the training, as many as like runs took, which may differ in the seed, the copy of the data
        and the precision, else as many as were published.
        """
        run = group[0]
        if run.stop_below is None:
            return run.epochs
        found = self._epochs.get(_neutral(run))
        return statistics.mean(found) if found else published.epochs(run)

    def rest(self, group: Sequence[Run], done: int = 0) -> float:
        """Seconds until the group ends, of which so many epochs are done; NaN if there is no telling."""
        if _network(group[0]) not in self._pace:
            return math.nan
        return (self.epochs(group) - done) * self.epoch(group)


def _neutral(run: Run) -> Run:
    """What decides how many epochs a training takes."""
    return replace(run, seed=0, dataset="folder:any", precision="float32")


def _network(run: Run) -> tuple[object, ...]:
    """What decides, besides the batch, how long a network takes for an image, and how many images there are."""
    return run.network, run.dataset, run.train_size, run.valid_size, run.precision


def _here(forecast: Forecast, task: Task, groups: list[list[Run]], bar: "tqdm[Any]", begun: bool = False) -> Attempts:
    """One group after the other; those that would not end in time after all that would.

    However short the time, one epoch is trained if none is `begun`: else the same call would never get on.
    """
    shown = 0.0

    def say(words: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.5:
            bar.set_postfix_str(words)
            shown = time.monotonic()

    def no_epoch_fits(group: list[Run]) -> bool:
        return task.left() <= 0 or forecast.epoch(group) > task.left()

    def train(group: list[Run], expected: float) -> Ended:
        nonlocal begun
        bar.set_description(group[0].label)
        ended = task(group, say, expected, late=not begun)
        for run, networks, seconds in ended.measured:
            forecast.learn(run, networks, seconds)
            begun = True
        return ended

    put_off = []
    for group in groups:
        if no_epoch_fits(group) or forecast.rest(group, task.epochs_done(group)) > task.left():
            put_off.append(group)
        else:
            ended = train(group, forecast.epochs(group))
            if ended.in_vain:
                put_off.append(group)
            yield ended
    for group in put_off:
        yield Ended(out_of_time=True) if begun and no_epoch_fits(group) else train(group, math.nan)


def _beside(forecast: Forecast, task: Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Attempts:
    """The same, and in a second process the groups that leave a GPU waiting for its host."""
    small = [group for group in groups if _host_bound(group)]
    large = [group for group in groups if not _host_bound(group)]
    if not small or not large:
        yield from _here(forecast, task, groups, bar)
        return
    with _second_process() as helper:
        waiting = {helper.submit(task, group, None, forecast.epochs(group)): group for group in small}
        for ended in _here(forecast, task, large, bar):
            yield ended
            for future in list(waiting):
                if future.done():
                    yield _from_helper(future, waiting.pop(future))
        not_begun = [future for future in waiting if future.cancel()]
        yield from _here(forecast, task, [waiting.pop(future) for future in not_begun], bar, begun=True)
        for future in all_of(waiting):
            yield _from_helper(future, waiting[future])


@contextmanager
def _second_process() -> Iterator[ProcessPoolExecutor]:
    """A process for other groups; where this one is stopped, it is ended at once.

    Of an interrupt from the keyboard, which both are sent, it takes no notice.
    """
    others = active_children()
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_own_lock)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        pool.submit(time.monotonic)  # so that the process begins, and inherits this
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        yield pool
    except BaseException:
        for child in active_children():
            if child not in others:
                child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _own_lock() -> None:
    """Give the bars in this process, which show nothing, a lock that is gone with it, not one to be cleaned up."""
    tqdm.set_lock(threading.RLock())


def _from_helper(future: "Future[Ended]", group: list[Run]) -> Ended:
    try:
        return future.result()
    except BrokenProcessPool:
        return Ended(failed=dict.fromkeys(group, "the second process was lost over it."))


def _host_bound(group: Sequence[Run]) -> bool:
    """Whether a GPU needs less time for a pass than its host for launching it: few samples, a dense network."""
    run = group[0]
    samples = run.noise_batch if run.a and run.noise_batch else run.batch_size
    return not convolutional(run.network) and len(group) * samples <= _FEW_SAMPLES


def _there(client: Any, task: Task, groups: list[list[Run]], bar: "tqdm[Any]") -> Attempts:
    """On the workers of a Dask client, the first groups first."""
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    bar.set_description(f"{len(client.scheduler_info()['workers'])} workers")
    end = client.run_on_scheduler(time.monotonic) + task.left()
    waiting = {}
    for i, group in enumerate(groups):
        waiting[client.submit(_on_worker, task, end, group, pure=False, priority=-i)] = group
    for future in as_completed(waiting):
        try:
            yield future.result()
        except CannotWrite:
            raise
        except KilledWorker:
            yield Ended(failed=dict.fromkeys(waiting[future], "several workers were lost over it."))
        except Exception as error:
            yield Ended(failed=dict.fromkeys(waiting[future], f"{type(error).__name__}: {error}"))


def _on_worker(task: Task, end: float, group: list[Run]) -> Ended:
    """Train a group until `end` of the scheduler's clock, which all can ask: those of machines may differ."""
    if end < math.inf:
        from distributed import get_client

        left = end - get_client().run_on_scheduler(time.monotonic)
        task = task.lasting(left)
    return task(group)
