"""What both papers print in their tables: accuracies, how long NE's trainings took, and SmoothOut's sharpness.

They stand in ``published.csv``, a row a cell of a table: which network was trained on what and how, what came out, and
where that is printed; what the papers do not print, but follows from them or is assumed, is said there.  The sharpness
rests on a gradient of the wrong sign (see the chapter "How sharp is a minimum?"): it is here to be shown, not compared.
"""

import math
from functools import cache
from pathlib import Path

import pandas as pd

from nb_lib.errors import known
from nb_lib.lab.names import TRAINING_IMAGES
from nb_lib.lab.runs import Run
from nb_lib.papers import TABLES
from nb_lib.protocols import PROTOCOLS


def table(name: str) -> pd.DataFrame:
    """Return the cells of one of `papers.TABLES`; an unknown name raises `InputError`.

    Returns
    -------
    pandas.DataFrame
        One row a cell, numbered from 0: `baseline` (number of the row that its gain is over, −1 for a baseline itself),
        network, dataset, epochs and lr_scaling (where the table prints them), batch_size, the fields in
        `papers.METHOD` (as of a `Run`), accuracy and accuracy_std (percent; of 10 runs in NE's tables), updates and
        updates_std (until NE's trainings have converged; no Table 3), sharpness (SmoothOut Table I), and `source`: the
        place in words, and after a semicolon what is not printed there; NaN is what is not printed.

    Examples
    --------
    >>> table("ne-table2").query("network == 'ne-f1'")[["alpha", "batch_size", "accuracy"]]
       alpha  batch_size  accuracy
    0    1.0         900     90.17
    1    1.5        2000     90.39
    """
    everything = _everything()
    rows = everything[everything["table"] == known("table", name, TABLES)]
    return rows.drop(columns="table").reset_index(drop=True)


def epochs(run: Run) -> float:
    """Epochs that such a run took in NE Table 2: updates ÷ ⌈N / B⌉; NaN for others."""
    cells = table("ne-table2")
    same_noise = (cells["alpha"] == run.alpha) & (cells["batch_size"] == run.batch_size)
    found = cells[(cells["network"] == run.network) & same_noise]
    if run.train_size is not None or found.empty:
        return math.nan
    images = TRAINING_IMAGES[PROTOCOLS[run.network]["dataset"]]
    updates_an_epoch = math.ceil(images / run.batch_size)
    return float(found["updates"].iloc[0]) / updates_an_epoch


@cache
def _everything() -> pd.DataFrame:
    rows = pd.read_csv(Path(__file__).with_name("published.csv"), encoding="utf-8")
    numbers = {"alpha": float, "a": float, "updates": float, "updates_std": float, "epochs": float}
    return rows.fillna({"baseline": -1}).astype({"baseline": int, **numbers})
