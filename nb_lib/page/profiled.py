"""Recorded profiles on a page: which there are, and what the loss rises by around trained networks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from nb_lib.lab.recorded import Variety, all_of, by_variety, command
from nb_lib.page.experiments import announce, not_run_yet
from nb_lib.page.intervals import with_error
from nb_lib.page.run_figures import with_method
from nb_lib.page.tables import show_table
from nb_lib.page.verdicts import compared, say
from nb_lib.profiles import Profile, load_profiles, table

_FIELDS = ["method", "batch_size", "data", "seed"]
_DATA = {"train": "Training", "test": "Test"}
_IN_WORDS = {"method": "{}", "batch_size": "B = {}"}  # how a group of networks is called


def profiled(path: str | Path, name: str, scale: str) -> Iterator[pd.DataFrame]:
    """Say what profiles a file has of an experiment's networks, and yield the curves of each variety of the data.

    The columns are those of `profiles.table`.  Where there is none, the commands that make them are shown; so it is
    if there is no file.
    """
    path = Path(path)
    profiles = load_profiles(path) if path.exists() else []
    found = by_variety(profiles, name, scale)
    if not found:
        train = f"{command(name, scale)} --keep-weights"
        into = str(path).removeprefix("../")  # as from the folder above the notebooks
        measure = f"python -m nb_lib profile {name} --scale {scale} --store results/ --into {into}"
        not_run_yet(name, scale, train, measure)
    for variety, alike in found.items():
        announce(name, scale, _origin(variety, alike))
        yield table(alike)


def rises(curves: pd.DataFrame, curve: str, at: float) -> pd.DataFrame:
    """What the loss of each network rises by, under noise of strength `at` or on its line at x = ±`at`.

    `curves` are as from `profiled`, `curve` is "noise" or "line", where the rise is the mean of both sides.  The
    columns are method, batch_size, data, seed, loss (at the weights) and rise, in nats.
    """
    sides = [at] if curve == "noise" else [-at, at]
    places = [0, *sides]
    is_meant = curves["curve"] == curve
    named = with_method(curves[is_meant])
    rows = []
    for network, points in named.groupby(_FIELDS, sort=False):
        ordered = points.sort_values("x")
        x = ordered["x"]
        loss, *aside = np.interp(places, x, ordered["loss"])
        rise = np.mean(aside) - loss
        rows.append([*network, loss, rise])
    return pd.DataFrame(rows, columns=[*_FIELDS, "loss", "rise"])


def show_rises(
    curves: pd.DataFrame, curve: str, at: float, *, by: str, baseline: float | str, expected: int = 0
) -> None:
    """Show `rises` of each group, "method" or "batch_size", and say how they differ from those of the group `baseline`.

    `expected` is the sign of that difference which is claimed, if any.
    """
    place = f"a = {at:g}" if curve == "noise" else f"x = ±{at:g}"
    found = rises(curves, curve, at)
    for data in ("train", "test"):
        is_of = found["data"] == data
        rows = found[is_of]
        cells = rows.groupby(by, sort=False)
        loss = with_error(cells["loss"], digits=3)
        rise = with_error(cells["rise"], digits=3)
        seeds = cells["seed"].nunique()
        columns = {"loss at the weights": loss, f"rise to {place}": rise, "seeds": seeds}
        table_ = pd.DataFrame(columns).rename_axis({"batch_size": "B"}.get(by, by))
        show_table(table_, f"{_DATA[data]} loss, nats, mean ± standard error")
        sentence = compared(
            rows,
            by,
            "rise",
            baseline=baseline,
            what=f"rise of the {_DATA[data].lower()} loss to {place}",
            group=_IN_WORDS[by],
            unit="nats",
            number=".3f",
            expected=expected,
        )
        say(sentence)


def _origin(variety: Variety, profiles: list[Profile]) -> str:
    n = len(profiles)
    many = "1 network" if n == 1 else f"{n} networks"
    origins = [one.provenance for one in profiles]
    devices = all_of(origin["device"] for origin in origins)
    commits = all_of(origin["commit"] for origin in origins)
    known = filter(None, variety)
    samples = all_of(f"{origin['samples']:,}" for origin in origins)
    draws = all_of(str(origin["draws"]) for origin in origins)
    how = f"the first {samples} images of each set, {draws} draws of the noise"
    words = [*known, f"{many} profiled on {devices}", how, f"commit {commits}"]
    return ", ".join(words)
