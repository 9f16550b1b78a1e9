"""Train many runs: what is stored is skipped, seeds go side by side, and whatever ends a sweep loses next to nothing.

A sweep may be stopped and called again, in slices, on any machine; several may share a store, each run is claimed by
a lock that its process holds while it lives.  With a Dask client the groups of runs spread over its workers.  A budget
is spent whole: groups that would not end in time wait until all that would have ended.
"""

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.device import hidden
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, merge
from nb_lib.lab.tasks import Ended, Measure, Task
from nb_lib.lab.workers import Workers, workers

_POLL = 0.5  # seconds between looks at runs that another process trains


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

    >>> [record] = sweep([Run(train_size=100, batch_size=60, epochs=3)], device="cpu", progress=False)
    >>> record.updates
    6

    Parameters
    ----------
    runs : iterable of Run
        A run named twice is trained once.
    store : RunStore or path, optional
        None keeps nothing.  Several processes and machines may share one on a file system with locks; no run is
        trained twice.
    budget : float, optional
        Seconds after which to stop; a training that is not done by then leaves a checkpoint for the next call.
    have : iterable of Record
        Of runs that count as done though the store does not hold them.
    into : path, optional
        File of JSON lines to which the records of the store are added after every group, as `store.merge` does: what
        a machine is left with.
    named : mapping, optional
        Names of experiments and their runs, as of `plans.plan`: the closing account has a line for each.
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
        In the order given, without runs that are left; `store.frame` and `store.curves` make tables of them.

    Raises
    ------
    InputError
        For anything that would stop every run (a missing data set, a full disk); what was stored before stays.
    """
    deadline = math.inf if budget is None else time.time() + budget
    runs = list(dict.fromkeys(runs))
    had = {record.run: record for record in have}
    wanted = [run for run in runs if run not in had]
    with ExitStack() as stack:
        if store is None:
            store = stack.enter_context(tempfile.TemporaryDirectory())
        if not isinstance(store, RunStore):
            store = RunStore(store)
        task = Task(store, device, root, download, measure, keep_weights, deadline)
        known = [*had.values(), *(store.load(run) for run in wanted if run in store)]
        with (
            tqdm(total=len(wanted), unit="run", smoothing=0, disable=hidden(progress)) as bar,
            workers(client, device, known) as train,
        ):
            ended = _train_missing(wanted, task, train, bar, into)
        task.forget_finished(runs)
        records = [store.load(run) for run in runs if run in store]
    if progress:
        elsewhere = had.keys() - {record.run for record in records}
        if named:
            print(_account(named, records, ended.records, elsewhere))
        print(_closing_line(runs, records, ended, len(elsewhere & set(runs))))
    return records


def _train_missing(
    runs: list[Run], task: Task, train: Workers, bar: "tqdm[Any]", into: str | os.PathLike[str] | None
) -> Ended:
    """Go round until nothing is missing that could be had: what another process has claimed, it may yet lose."""
    ended = Ended()
    while True:
        given_up = {*ended.too_large, *ended.lost}
        missing = [run for run in runs if run not in given_up and task.lacks(run)]
        bar.n = len(runs) - len(missing) - len(given_up)
        bar.refresh()
        if not missing or ended.out_of_time:
            return ended
        this_round = Ended()
        for one in train(task, task.groups(missing), bar):
            this_round.add(one)
            bar.update(len(one.records))
            for record in one.records:  # of a worker that may not see this store
                if record.run not in task.store:
                    task.store.save(record)
            if one.records and into is not None:
                merge([task.store.folder], into)
        ended.add(this_round)
        if this_round == Ended(busy=True):
            time.sleep(_POLL)
        elif this_round == Ended() and all(task.lacks(run) for run in missing):
            raise InputError(f"the workers do not see the store {task.store.folder}: name a folder that all share.")


def _account(
    named: Mapping[str, Sequence[Run]], records: Sequence[Record], now: Sequence[Record], elsewhere: set[Run]
) -> str:
    """Lay out as a table what came of named experiments; a run that is part of several counts in each."""
    stored = {record.run for record in records}
    by_run = {record.run: record for record in now}
    rows = []
    for name, runs in named.items():
        trained = [by_run[run] for run in runs if run in by_run]
        places = {record.provenance["device"] for record in trained}
        images = sum(record.samples for record in trained)  # both minibatches of NE
        seconds = sum(record.wall_time / record.provenance["side_by_side"] for record in trained)
        row = {
            "": name,
            "runs": len(runs),
            "trained now": len(trained),
            "stored before": len(stored.intersection(runs)) - len(trained),
            "done elsewhere": len(elsewhere.intersection(runs)),
            "left": len(set(runs) - stored - elsewhere),
            "images/s": f"{images / seconds:,.0f}" if trained else "",
            "where": ", ".join(sorted(places)),
        }
        rows.append(row)
    return pd.DataFrame(rows).to_string(index=False)


def _closing_line(runs: Sequence[Run], records: Sequence[Record], ended: Ended, elsewhere: int) -> str:
    """Say in one line what was done, what was there, what is left and why."""
    now, left = len(ended.records), len(runs) - len(records) - elsewhere
    parts = [f"{now} trained now", f"{len(records) - now} were stored"]
    if elsewhere:
        parts.append(f"{elsewhere} done elsewhere")
    reasons = []
    if ended.too_large:
        reasons.append(f"{len(ended.too_large)} too large")
    if ended.lost:
        reasons.append(f"{len(ended.lost)} their workers lost")
    if ended.out_of_time:
        reasons.append("out of time: the same call goes on")
    if left:
        parts.append(f"{left} left ({', '.join(reasons)})")
    line = f"{len(runs)} runs: {', '.join(parts)}"
    statuses = Counter(record.status for record in records)
    if statuses:
        endings = [f"{count} {status}" for status, count in statuses.items()]
        line += f"; {', '.join(endings)}"
    return f"{line}."
