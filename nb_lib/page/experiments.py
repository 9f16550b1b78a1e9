"""What the chapters on the papers' experiments share: train or read one, and show what is recorded of others."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from nb_lib.lab.recorded import command, recorded
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, Source, frame, load_records
from nb_lib.lab.sweeps import sweep
from nb_lib.papers import GRIDS

_COLUMN = 84  # characters of a line on a page


def train_or_read(runs: Sequence[Run], store: RunStore | Source | None, *, train: bool, **how: Any) -> list[Record]:
    """Train what `store` lacks of the runs (`how`: see `sweep`), or only read what it holds of them, in their order."""
    if train:
        return sweep(runs, store, **how)
    if store is None:
        return []
    folder = store.folder if isinstance(store, RunStore) else store
    held = {record.run: record for record in load_records(folder)}
    return [held[run] for run in runs if run in held]


def title(name: str, scale: str) -> str:
    """An experiment and its scale.

    >>> title("ne-fig2-f1", "tiny")
    'NE Fig. 2, effect of B at fixed α, scale tiny'
    """
    return f"{GRIDS[name].doc}, scale {scale}"


def described(name: str, scale: str) -> str:
    """The same, and what the scale is, on two lines."""
    size = GRIDS[name].size(scale)
    return f"{title(name, scale)}\n({size.doc})"


def wrapped(text: str) -> str:
    """Lay out a text in lines that fit a page's column."""
    return textwrap.fill(text, _COLUMN, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def varieties(records: Iterable[Record], name: str, scale: str, *, converged: bool = False) -> Iterator[pd.DataFrame]:
    """Print what is recorded of an experiment, and yield a table of each variety of the data (see `recorded`).

    Where nothing is recorded, the command that would make the runs is printed.  With `converged`, the converged runs
    alone are yielded, and how many they are is printed.  Other experiments' records do no harm.
    """
    heading = described(name, scale)
    found = recorded(records, name, scale)
    if not found:
        print(f"{heading} is not run yet: {command(name, scale)}")
    for origin, alike in found.items():
        if converged:
            alike = [record for record in alike if record.status == "converged"]
            origin = f"{origin}; {len(alike)} converged"
        print(f"{heading}:\n{wrapped(origin)}")
        if alike:
            yield frame(alike)
