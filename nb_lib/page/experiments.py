"""What the chapters on the papers' experiments share: train or read one, and show what is recorded of others."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nb_lib.lab.recorded import command, recorded
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, Source, frame, load_records
from nb_lib.lab.sweeps import sweep
from nb_lib.page.intervals import in_words
from nb_lib.papers import GRIDS
from nb_lib.profiles import load_profiles, table

#: What differs between rows of a table beside the method; methods are compared where it is the same.
SETTING = ("batch_size", "epochs_limit", "lr_scaling")


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


def varieties(records: Iterable[Record], name: str, scale: str, *, converged: bool = False) -> Iterator[pd.DataFrame]:
    """Print what is recorded of an experiment, and yield a table of each variety of the data (see `recorded`).

    Where nothing is recorded, the command that would make the runs is printed.  With `converged`, the converged runs
    alone are yielded, and how many they are is printed.  Other experiments' records do no harm.
    """
    heading = _heading(name, scale)
    found = recorded(records, name, scale)
    if not found:
        print(f"{heading} is not run yet: {command(name, scale)}")
    for origin, alike in found.items():
        if converged:
            alike = [record for record in alike if record.status == "converged"]
            origin = f"{origin}; {len(alike)} converged"
        print(f"{heading}:\n{origin}")
        if alike:
            yield frame(alike)


def profiled(path: Source, name: str, scale: str) -> Iterator[pd.DataFrame]:
    """Print what profiles a file has of an experiment's networks, and yield the curves of each variety of the data.

    The columns are those of `profiles.table`.  Where there is none, the commands that make them are printed; so it is
    if there is no file.
    """
    profiles: list[Any] = load_profiles(path) if Path(path).exists() else []  # each names run and origin, as a record
    heading = _heading(name, scale)
    found = recorded(profiles, name, scale)
    if not found:
        train = f"{command(name, scale)} --keep-weights"
        measure = f"python -m nb_lib profile {name} --scale {scale} --store results/ --into {Path(path).name}"
        print(f"{heading} is not run yet:\n{train}\n{measure}")
    for origin, alike in found.items():
        print(f"{heading}:\n{origin}")
        yield table(alike)


def method_in_words(row: "pd.Series[Any]") -> str:
    """Name SmoothOut's method of one row of `lab.store.frame`, with what is not the usual of it.

    >>> row = {"a": 0.025, "adaptive": False, "distribution": "normal", "denoise": True}
    >>> method_in_words(pd.Series(row))
    'SmoothOut, a = 0.025, normal noise'
    """
    if row["a"] == 0:
        return "baseline"
    name = "AdaSmoothOut" if row["adaptive"] else "SmoothOut"
    words = [name, f"a = {row['a']:g}"]
    if row["distribution"] != "uniform":
        words.append(f"{row['distribution']} noise")
    if not row["denoise"]:
        words.append("not taken off")
    return ", ".join(words)


def by_setting(results: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Runs of one batch size, length and scaling of the learning rate at a time, with these in words.

    The runs have a column more, `method` (see `method_in_words`), whose values are in the order of the rows.
    """
    words = [method_in_words(row) for _, row in results.iterrows()]
    named = results.assign(method=words)
    for (B, epochs, scaling), rows in named.groupby(list(SETTING), sort=False):
        setting = f"B = {B}, {epochs} epochs"
        if scaling != "none":
            setting = f"{setting}, {scaling} scaling of the rate"
        order = rows["method"].unique()
        ordered = pd.Categorical(rows["method"], categories=order)
        yield setting, rows.assign(method=ordered)


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of each method in percent, mean ± standard error over seeds: the best of a training and the last.

    `rows` are of one setting, see `by_setting`.
    """
    cells = rows.groupby("method", observed=True)
    columns = {}
    for name, of in (("best", "best_test_accuracy"), ("final", "test_accuracy")):
        means = 100 * cells[of].mean()
        errors = 100 * cells[of].sem()
        columns[name] = [_with_error(*pair) for pair in zip(means, errors, strict=True)]
    seeds = cells["seed"].nunique()
    return pd.DataFrame(columns, index=seeds.index).assign(seeds=seeds)


def gains(rows: pd.DataFrame, over: str) -> str:
    """Say what each method gains over another in best test accuracy, paired by seed, a line each (see `in_words`)."""
    methods = rows["method"].cat.categories
    if over not in methods:
        return f"nothing to compare with: {over} is not run yet"
    width = max(map(len, methods))
    label = f"{{:{width}s}} "
    how: dict[str, Any] = {"number": "+.2f", "scale": 100, "unit": "points"}
    return in_words(rows, "method", "best_test_accuracy", baseline=over, label=label, **how)


def show_methods(results: pd.DataFrame, over: str = "baseline") -> None:
    """Print accuracies of all methods, and below them what they gain `over` one of them, for each setting."""
    for setting, rows in by_setting(results):
        print(f"\n{setting}: test accuracy, percent")
        print(scores(rows).to_string())
        diverged = (rows["status"] == "diverged").sum()
        if diverged:
            print(f"{diverged} of {len(rows)} runs diverged")
        print(f"gain over {over}, best test accuracy, paired by seed:")
        print(gains(rows, over))
    print()


def _heading(name: str, scale: str) -> str:
    return f"{title(name, scale)}\n({GRIDS[name].size(scale).doc})"


def _with_error(mean: float, error: float) -> str:
    return f"{mean:.2f} ± {error:.2f}" if np.isfinite(error) else f"{mean:.2f}"
