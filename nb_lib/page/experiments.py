"""What the chapters on the papers' experiments share: train or read one, and say what is recorded of others."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from nb_lib.lab.recorded import commands, recorded
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, Source, frame, load_records
from nb_lib.lab.sweeps import sweep
from nb_lib.page.verdicts import say
from nb_lib.papers import GRIDS

_LINE = 72  # characters of a line of a command, so that a page shows it whole


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


def announce(name: str, scale: str, origin: str) -> None:
    """Say which runs of an experiment those below are."""
    say(f"**{title(name, scale)}** ({GRIDS[name].size(scale).doc}): {origin}.")


def not_run_yet(name: str, scale: str, *given: str) -> None:
    """Say so, with the commands that make the runs: those of `lab.recorded.commands`, if none are given."""
    code = as_code(given or commands(name, scale))
    say(f"**{title(name, scale)}** ({GRIDS[name].size(scale).doc}) is not run yet:{code}")


def as_code(commands: Iterable[str]) -> str:
    """Shell commands as a block of code for `verdicts.say`, cut so that they can be read whole, and copied."""
    cut = [_cut(each) for each in commands]
    block = "\n".join(cut)
    return f"\n\n```sh\n{block}\n```\n"


def varieties(records: Iterable[Record], name: str, scale: str, *, converged: bool = False) -> Iterator[pd.DataFrame]:
    """Say what is recorded of an experiment, and yield a table of each variety of the data (see `recorded`).

    Where nothing is recorded, the command that would make the runs is shown.  With `converged`, the converged runs
    alone are yielded, and how many they are is said.  Other experiments' records do no harm.
    """
    found = recorded(records, name, scale)
    if not found:
        not_run_yet(name, scale)
    for origin, alike in found.items():
        if converged:
            alike = [record for record in alike if record.status == "converged"]
            origin = f"{origin}; {len(alike)} converged"
        announce(name, scale, origin)
        if alike:
            yield frame(alike)


def against(results: pd.DataFrame, value: str, *, by: str, baseline: float, symbol: str) -> pd.DataFrame:
    """What `value` differs by from the runs in which `by` is `baseline`, of the same batch size and seed.

    The table is for `verdicts.compared`: columns case, such as "α = 2 at B = 100", seed, and `value`.  The first case
    is the baseline, "α = 1", which differs from itself by 0.
    """
    cases = [f"{symbol} = {baseline:g}"]
    rows = [[cases[0], seed, 0.0] for seed in results["seed"].unique()]
    for B, alike in results.groupby("batch_size"):
        by_seed = alike.pivot_table(index="seed", columns=by, values=value)
        for other in by_seed.columns:
            if other == baseline or baseline not in by_seed:
                continue
            case = f"{symbol} = {other:g} at B = {B:,}"
            differences = (by_seed[other] - by_seed[baseline]).dropna()
            rows += [[case, seed, each] for seed, each in differences.items()]
            cases += [case] if len(differences) else []
    table = pd.DataFrame(rows, columns=["case", "seed", value])
    return table.assign(case=pd.Categorical(table["case"], cases))


def _cut(command: str) -> str:
    """A command in lines that end with a backslash but for the last, each with whole options."""
    line, *options = re.split(r" (?=--)", command)
    lines = [line]
    for option in options:
        if len(lines[-1]) + len(option) < _LINE:
            lines[-1] = f"{lines[-1]} {option}"
        else:
            lines.append(f"    {option}")
    return " \\\n".join(lines)
