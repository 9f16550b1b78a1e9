"""Recorded profiles on a page: which there are, and what the loss rises by around trained networks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from nb_lib.lab.recorded import Variety, all_of, by_variety, command
from nb_lib.page.experiments import described, wrapped
from nb_lib.page.intervals import NOTHING, in_words, paired, with_error
from nb_lib.page.run_figures import with_method
from nb_lib.profiles import Profile, load_profiles, table

_FIELDS = ["method", "batch_size", "data", "seed"]
_IN_WORDS = {"method": "{}", "batch_size": "B = {}"}  # how a group of networks is called


def profiled(path: str | Path, name: str, scale: str) -> Iterator[pd.DataFrame]:
    """Print what profiles a file has of an experiment's networks, and yield the curves of each variety of the data.

    The columns are those of `profiles.table`.  Where there is none, the commands that make them are printed; so it is
    if there is no file.
    """
    path = Path(path)
    profiles = load_profiles(path) if path.exists() else []
    heading = described(name, scale)
    found = by_variety(profiles, name, scale)
    if not found:
        train = command(name, scale)
        into = str(path).removeprefix("../")  # as from the folder above the notebooks
        print(f"{heading} is not run yet:")
        print(f"{train} --keep-weights")
        print(f"python -m nb_lib profile {name} --scale {scale} --store results/ --into {into}")
    for variety, alike in found.items():
        origin = _origin(variety, alike)
        print(f"{heading}:\n{wrapped(origin)}")
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


def show_rises(curves: pd.DataFrame, curve: str, at: float, *, by: str, baseline: float | str) -> None:
    """Print what `rises` of each group, "method" or "batch_size", and how that differs from the group `baseline`."""
    place = f"a = {at:g}" if curve == "noise" else f"x = ±{at:g}"
    found = rises(curves, curve, at)
    for data in ("train", "test"):
        is_of = found["data"] == data
        rows = found[is_of]
        cells = rows.groupby(by, sort=False)
        loss = with_error(cells["loss"], digits=3)
        rise = with_error(cells["rise"], digits=3)
        seeds = cells["seed"].nunique()
        columns = {"loss": loss, f"rise to {place}": rise, "seeds": seeds}
        summary = pd.DataFrame(columns)
        compared = flatter(rows, by, baseline)
        print(f"\n{data} loss, nats")
        print(summary.to_string())
        print(compared)
    print()


def flatter(rows: pd.DataFrame, by: str, baseline: float | str) -> str:
    """Say how the rise of each group differs from that of `baseline`, paired by seed, and which is clearly flatter."""
    label = _IN_WORDS[by]
    plain = label.format(baseline)
    start = f"rise of {label} less that of {plain}:"
    said = in_words(rows, by, "rise", baseline=baseline, label=start, number="+.3f", unit="nats")
    lines = [said]
    if said == NOTHING:
        return said
    differences = paired(rows, by, "rise", baseline=baseline)
    for found in differences.to_dict("records"):
        other = label.format(found[by])
        if not found["clear"]:
            line = f"which of {plain} and {other} is flatter is not shown"
        elif found["difference"] < 0:
            line = f"{other} is flatter than {plain}"
        else:
            line = f"{plain} is flatter than {other}"
        lines.append(line)
    return "\n".join(lines)


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
