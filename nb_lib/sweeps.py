"""Train many runs: what is stored is skipped, seeds go side by side, a killed sweep goes on where it was."""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable

import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from nb_lib.data import Data
from nb_lib.device import hidden
from nb_lib.runs import Record, Run, RunStore
from nb_lib.training import Training, load_for, side_by_side

Measure = Callable[[nn.Module, Data], dict[str, float]]


def sweep(
    runs: Iterable[Run],
    store: RunStore | str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    root: str | None = None,
    download: bool = False,
    measure: Measure | None = None,
    progress: bool = True,
) -> list[Record]:
    """Train every run that `store` does not hold yet, and return the records of all of them.

    Each record is on the disk as soon as its run ends, and long trainings keep a checkpoint beside it, so whatever
    ends this process, calling it again loses at most the last half minute.

    Parameters
    ----------
    runs : iterable of Run
        A run named twice is trained once.
    store : RunStore or path, optional
        None keeps nothing: every run is trained now.
    device, root, download
        See `training.load_for`.
    measure : callable, optional
        ``measure(model, data) -> dict`` of numbers, called with each trained network and kept in its record, as
        `measures.measures`. A stored record without them is made again. Networks then train one by one.
    progress : bool
        Show one bar for the sweep, and a closing line.

    Returns
    -------
    list of Record
        In the order given; `runs.frame` and `runs.curves` make tables of them.
    """
    if store is None:
        with tempfile.TemporaryDirectory() as folder:
            return sweep(runs, folder, device=device, root=root, download=download, measure=measure, progress=progress)
    store = store if isinstance(store, RunStore) else RunStore(store)
    runs = list(dict.fromkeys(runs))
    missing = [run for run in runs if run not in store or (measure and store.load(run).measures is None)]
    data: dict[tuple[object, ...], Data] = {}
    with tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run", disable=hidden(progress)) as bar:
        for group in side_by_side(missing, most=1) if measure else side_by_side(missing):
            run = group[0]
            bar.set_description(run.label)
            source = (run.dataset, run.train_size, run.valid_size, run.split_seed, run.inputs)
            if source not in data:
                data = {source: load_for(run, device=device, root=root, download=download)}  # one at a time in memory
            training = Training(group, data[source])
            for record in training.finish(checkpoint=_checkpoint(store, group), progress=False):
                if measure:
                    found = {} if record.status == "diverged" else measure(training.model.eval(), data[source])
                    record = dataclasses.replace(record, measures=found)
                store.save(record)
            bar.update(len(group))
    records = [store.load(run) for run in runs]
    if progress:
        print(_account(records, trained=len(missing)))
    return records


def _checkpoint(store: RunStore, group: list[Run]) -> str:
    name = hashlib.sha256("".join(run.key for run in group).encode()).hexdigest()[:16]
    return os.path.join(store.folder, f"{name}.checkpoint")


def _account(records: list[Record], trained: int) -> str:
    endings = pd.Series([record.status for record in records]).value_counts()
    ended = ", ".join(f"{count} {status}" for status, count in endings.items())
    return f"{len(records)} runs: {trained} trained now, {len(records) - trained} were stored; {ended}."
