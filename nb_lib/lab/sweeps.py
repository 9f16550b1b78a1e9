"""Train many runs: what is stored is skipped, seeds go side by side, and whatever ends a sweep loses next to nothing.

A sweep may be stopped and called again, in slices, on any machine; several may share a store, each run is claimed by
a lock that its process holds while it lives.  With a Dask client the groups of runs spread over its workers.  A budget
is spent whole: groups that would not end in time wait until all that would have ended.
"""

import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from nb_lib.errors import InputError
from nb_lib.lab.device import hidden
from nb_lib.lab.files import place
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, load_records, merge
from nb_lib.lab.tasks import Ended, Measure, Task
from nb_lib.lab.text import read
from nb_lib.lab.workers import Workers, workers

_POLL = 0.5  # seconds between looks at runs that another process trains


class SomeFailed(InputError):
    """Some runs of a sweep ended in errors; the `records` of all others are here as they would have been returned."""

    def __init__(self, message: str, records: list[Record]) -> None:
        super().__init__(message)
        self.records = records


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
        Seconds after which to stop; a training that is not done by then leaves a checkpoint for the next call.  However
        short it is, one epoch is trained, so that the next call begins further on.
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
    SomeFailed
        At the end, if runs ended in errors, a line for each group of them: the other groups are trained none the less.
    InputError
        At once, for what would stop every run (a full disk); what was stored before stays.
    """
    budget = read("budget", budget, float | None)
    if budget is not None and not budget >= 0:
        raise InputError(f"budget must be a number of seconds, 0 or more, not {budget!r}.")
    if into is not None and place(into).exists():
        load_records(into)  # before anything is trained: what is there must be records
    deadline = math.inf if budget is None else time.monotonic() + budget
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
            _say(_account(named, records, ended.records, elsewhere))
        _say(_closing_line(runs, records, ended, len(elsewhere & set(runs))))
    if ended.failed:
        raise SomeFailed(_failures(ended.failed, len(wanted)), records)
    return records


def _train_missing(
    runs: list[Run], task: Task, train: Workers, bar: "tqdm[Any]", into: str | os.PathLike[str] | None
) -> Ended:
    """Go round until nothing is missing that could be had: what another process has claimed, it may yet lose."""
    ended = Ended()
    while True:
        missing = [run for run in runs if run not in ended.failed and task.lacks(run)]
        bar.n = len(runs) - len(missing) - len(ended.failed)
        bar.refresh()
        if not missing or ended.out_of_time:
            return ended
        this_round = Ended()
        with closing(train(task, task.groups(missing), bar)) as attempts:
            for one in attempts:
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
    if ended.failed:
        reasons.append(f"{len(ended.failed)} failed")
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


def _failures(failed: Mapping[Run, str], wanted: int) -> str:
    """A line for each group that failed and each reason; one reason alone, if all have it."""
    reasons = set(failed.values())
    if len(failed) == wanted and len(reasons) == 1:
        return reasons.pop()
    lines = dict.fromkeys(f"{run.label}: {reason}" for run, reason in failed.items())
    heading = f"{len(failed)} of {wanted} runs failed; the same call tries them again."
    return "\n".join([heading, *lines])


def _say(text: str) -> None:
    """Print a text; what the encoding of the output lacks, α in latin-1, is spelled out."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
