"""A comparison with a published table as a table and in sentences (see `nb_lib.compare`; `page.forest` draws it)."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from nb_lib import published
from nb_lib.lab.recorded import by_variety
from nb_lib.lab.runs import Record
from nb_lib.lab.store import frame
from nb_lib.page.verdicts import (
    OPEN,
    OPPOSITE,
    RESOLVED,
    TOO_FEW,
    compared,
    counted,
    judge,
    listed,
    seeds,
    seeds_needed,
    signed,
)
from nb_lib.papers import GRIDS, matching

Row = dict[Any, Any]  # of `compare`

AGREES, DISAGREES, CANNOT_TELL = "agrees", "disagrees", "cannot tell"
_SAME = 1e-6  # points: gains that differ by less are one number several times
_MOST = 10_000  # seeds
_NAMES = {"resnet44": "ResNet44", "resnet18": "ResNet18", "resnet8": "ResNet8", "alexnet": "AlexNet"}
_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet", "mnist": "MNIST"}
_DATA["fashion-mnist"] = "Fashion-MNIST"
_DAGGER = " †"


def verdict(row: Row) -> str:
    """Say what our gain shows beside the published one; nothing where there is no gain of ours.

    Of fewer than three pairs it says no more than that.  At full scale, where the paper prints a spread, the sizes are
    compared: the gains agree if their difference cannot be told from zero and ours can.  Elsewhere it is about ours
    alone, and the sign of the published one.  Where ours is not resolved, it is said how many pairs would probably
    resolve a gain of the published size (`verdicts.seeds_needed`).

    >>> row = {"gain": 2.0, "gain_half": 0.5, "gain_std": 0.2, "pairs": 3, "published_gain": 3.0, "scale": "small"}
    >>> verdict(row), verdict(row | {"gain": -2.0}), verdict(row | {"pairs": 2})
    ('ours gains, resolved', 'opposite sign, resolved', 'too few seeds (2)')
    """
    gain, claimed, pairs = row["gain"], row["published_gain"], row["pairs"]
    if math.isnan(gain):
        return ""
    half = row["gain_half"] if row["gain_std"] > _SAME else math.nan
    found = judge(gain, half, pairs, expected=1 if claimed > 0 else -1)
    if found == TOO_FEW:
        return f"too few seeds ({pairs})"
    if row["scale"] == "full" and not math.isnan(row["apart_half"]):
        return _of_sizes(row, found)
    if found == OPEN:
        same = "same" if gain * claimed > 0 else "opposite"
        return f"{same} sign, not resolved; {_enough(row)}"
    if found == OPPOSITE:
        return "opposite sign, resolved"
    return f"ours {'gains' if gain > 0 else 'loses'}, resolved"


def _of_sizes(row: Row, found: str) -> str:
    if abs(row["apart"]) <= row["apart_half"]:
        if found == RESOLVED:
            return AGREES
        return (
            f"{CANNOT_TELL}; {_enough(row)}" if found == OPEN else f"{CANNOT_TELL}: opposite sign, within both errors"
        )
    if found == OPPOSITE:
        return f"{DISAGREES}: opposite sign"
    return f"{DISAGREES}: ours is {'larger' if row['apart'] > 0 else 'smaller'}"


def _enough(row: Row) -> str:
    n = seeds_needed(row["published_gain"], row["gain_std"], most=_MOST)
    if n <= row["pairs"]:
        return "a gain of the published size would probably have shown"
    return f"about {n:,} seeds would tell" if n < _MOST else f"more than {_MOST:,} seeds would tell"


def cell_of(row: Row) -> Row:
    """The row of `published.table` that a row of the comparison is of."""
    return published.table(row["table"]).to_dict("records")[row["cell"]]


def two_lines(row: Row) -> str:
    """A row of the picture in two short lines."""
    cell = cell_of(row)
    name = network_in_words(cell["network"])
    if row["table"].startswith("ne"):
        return f"{name}, α = {cell['alpha']:g}"
    kind = "AdaSmoothOut" if cell["adaptive"] else "SmoothOut"
    normal = ", normal" if cell["distribution"] == "normal" else ""
    left_in = "" if cell["denoise"] else ", left in"
    if not math.isnan(cell["epochs"]):
        on = _DATA[cell["dataset"]] if name == "ResNet44" else name
        setting = f"{on}, {cell['epochs']:g}{' lin.' if cell['lr_scaling'] == 'linear' else ''}"
    elif row["table"] in ("smoothout-table1", "smoothout-table3"):
        kind, setting = f"{name}, B = {cell['batch_size']}", _DATA[cell["dataset"]]
    else:
        setting = f"a = {cell['a']:g}"
    return f"{kind}{normal}<br>{setting}{left_in}{_mark(cell)}"


def network_in_words(name: str) -> str:
    """Name a network as its paper does.

    >>> [network_in_words(name) for name in ("smoothout-c1", "resnet44", "ne-c1-quarter")]
    ['C1', 'ResNet44', 'ne-c1-quarter']
    """
    short = name.rpartition("-")[2].upper()
    return short if re.fullmatch(r"[FC]\d", short) else _NAMES.get(name, name)


def data_in_words(name: str) -> str:
    """Name a data set as the papers do."""
    return _DATA.get(name.removeprefix("folder:"), name)


def _note(cell: Row) -> str:
    """What of a published cell is not in the paper."""
    return cell["source"].partition("; ")[2]


def _mark(cell: Row) -> str:
    return _DAGGER if _note(cell) else ""


def sharper(comparison: pd.DataFrame, records: Iterable[Record]) -> list[str]:
    """Say in which order the sharpness of networks without and with SmoothOut is, as published and of our records."""
    printed = comparison.drop_duplicates("cell")["sharpness"].tolist()
    pairs = list(zip(printed[::2], printed[1::2], strict=True))
    lower = sum(noisy < plain for plain, noisy in pairs)
    said = [f"As published, the sharpness is lower with SmoothOut in {counted(lower, len(pairs), 'rows')}."]
    held = list(records)
    for name in matching("smoothout-table1"):
        for variety, alike in by_variety(held, name, "full").items():
            runs = frame(alike)
            measured = runs.dropna(subset=["sharpness"]) if "sharpness" in runs else runs.head(0)
            for B, rows in measured.groupby("batch_size"):
                network = network_in_words(GRIDS[name].network)
                cutting = f", {variety.cutting}" if variety.cutting else ""
                what = f"our sharpness of {network}, B = {B}{cutting}"
                said.append(
                    compared(
                        rows, "a", "sharpness", baseline=0.0, what=what, group="a = {:g}", expected=-1, number=",.1f"
                    )
                )
    return said


def notes(comparison: pd.DataFrame) -> str:
    """Say what of the marked rows is not in the paper; nothing if there is none."""
    found: dict[str, list[str]] = {}
    for row in comparison.drop_duplicates("cell").to_dict("records"):
        cell = cell_of(row)
        if note := _note(cell):
            found.setdefault(note, []).append(f"{cell['accuracy']:g}")
    parts = [f"{note} (the rows of {listed(rows)} %)" for note, rows in found.items()]
    return f"† is not all in the paper: {'; '.join(parts)}." if parts else ""


def readable(comparison: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare` in words: accuracies in percent with their gains in points, each ± its standard error.

    ``verdict`` is that of `verdict`.  ``ours is of`` says what our number is of, or the command that runs it.
    Where the table prints updates until convergence, with how many more these are than the baseline's, or
    sharpness, they have columns.

    >>> from nb_lib.compare import compare
    >>> readable(compare("ne-table2", [])).loc[1, "published"]
    '90.39 ± 0.05, gain +0.22 ± 0.07'
    """
    words = pd.DataFrame([_in_words(row) for row in comparison.to_dict("records")])
    empty = [name for name in _MAYBE if (words[name] == "").all()]
    return words.drop(columns=empty)


_MAYBE = ("updates published", "updates ours", "sharpness published")


def _in_words(row: Row) -> dict[str, str]:
    ours, of = "not run yet", row["missing"]
    if row["n"] > 0:
        of = origin(row)
        ours = _with_gain(_number(row["accuracy"], row["se"]), _number(row["gain"], row["gain_se"], "+"))
    published_gain = _number(row["published_gain"], row["published_gain_se"], "+")
    timed = not math.isnan(row["published_updates"])
    longer_ours = _number(row["longer"], row["longer_se"], "+,", 0)
    longer_published = _number(row["published_longer"], row["published_longer_se"], "+,", 0)
    updates = _number(row["updates"], row["updates_se"], ",", 0) or "none yet"
    updates_published = _number(row["published_updates"], row["published_updates_se"], ",", 0)
    return {
        "method": f"{network_in_words(row['network'])}, {row['method']}{_mark(cell_of(row))}",
        "scale": row["scale"] or "none",
        "published": _with_gain(_number(row["published"], row["published_se"]), published_gain),
        "ours": ours,
        "verdict": verdict(row) or ("nothing yet" if published_gain else "baseline"),
        "updates published": _with_gain(updates_published, longer_published, "") if timed else "",
        "updates ours": _with_gain(updates, longer_ours, "") if timed else "",
        "sharpness published": _number(row["sharpness"], math.nan, digits=4),
        "ours is of": of,
    }


def _with_gain(value: str, gain: str, called: str = "gain ") -> str:
    return f"{value}, {called}{gain}" if gain else value


def _number(value: float, se: float, form: str = "", digits: int = 2) -> str:
    if math.isnan(value):
        return ""
    spread = "" if math.isnan(se) else f" ± {se:{form.strip('+')}.{digits}f}"
    return f"{value:{form}.{digits}f}{spread}".replace("-", "−")


def origin(row: Row) -> str:
    """What a number of ours is of."""
    alpha = f", α = {row['alpha']:g}" if row["alpha"] > 1 else ""
    cell = f"{row['ours_on']}, B = {row['B']:g}{alpha}"
    pairs = f", {row['pairs']} in pairs" if 0 < row["pairs"] < row["n"] else ""
    precision = "" if row["precision"] == "float32" else row["precision"]
    words = [
        cell,
        seeds(row["n"]) + pairs,
        row["dataset"],
        row["device"],
        precision,
        row["cutting"],
    ]
    return "; ".join(filter(None, words))


def conclusions(comparison: pd.DataFrame) -> list[str]:
    """Say how well the published gains are resolved, and what ours show at full scale and below it."""
    gains = comparison[comparison["published_gain"].notna()]
    said = [_of_published(gains.drop_duplicates("cell"))]
    ours = gains[gains["gain"].notna()]
    for at, rows in (("at", ours[ours["scale"] == "full"]), ("below", ours[ours["scale"] != "full"])):
        if len(rows):
            said.append(f"Ours {at} full scale: {_by_verdict(rows.to_dict('records'))}.")
    missing = gains[gains["missing"] != ""]["cell"].nunique()
    if missing:
        said.append(f"At full scale {counted(missing, gains['cell'].nunique(), 'gains')} are not run yet.")
    return said


def _of_published(rows: pd.DataFrame) -> str:
    with_spread = rows[rows["published_half"].notna()].to_dict("records")
    single = len(rows) - len(with_spread)
    said = []
    if with_spread:
        clear = [row for row in with_spread if abs(row["published_gain"]) > row["published_half"]]
        found = counted(len(clear), len(with_spread), "gains that are printed with a spread")
        inside = [label(row) for row in with_spread if row not in clear]
        but = f" (not that of {listed(inside)})" if inside and clear else ""
        said.append(f"{found} can be told from zero by it{but}.")
    if single:
        found = counted(single, len(rows), "gains")
        said.append(
            f"{found} are printed once, without a spread: nothing says how far another run would lie from them."
        )
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}" for sentence in said)


def _by_verdict(rows: Iterable[Row]) -> str:
    found: dict[str, list[str]] = {}
    for row in rows:
        says = verdict(row)
        variety = f", {row['cutting']}" if row["cutting"] else ""
        on = "" if row["ours_on"] == row["network"] else f" on {network_in_words(row['ours_on'])}"
        size = f"{signed(row['gain'], '.2f')}"
        found.setdefault(says.partition(";")[0], []).append(f"{label(row)}{on}{variety} ({size})")
    return "; ".join(f"**{says}** {listed(names)}" for says, names in found.items())


def label(row: Row) -> str:
    """Name a row of the picture in one line."""
    return two_lines(row).replace("<br>", ", ").removesuffix(_DAGGER)


def longer(comparison: pd.DataFrame) -> list[str]:
    """Say of how many updates more or fewer the methods took than plain SGD, as published and by ours."""
    gains = comparison[comparison["published_longer"].notna()]
    theirs = gains.drop_duplicates("cell").to_dict("records")
    ours = gains[gains["longer"].notna()].to_dict("records")
    said = [f"Updates until convergence, as published: {_by(theirs, _longer_published)}."]
    if ours:
        said.append(f"Ours: {_by(ours, _longer_ours)}.")
    return said


def _by(rows: Iterable[Row], says: Callable[[Row], tuple[str, str]]) -> str:
    found: dict[str, list[str]] = {}
    for row in rows:
        kind, name = says(row)
        found.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {listed(names)}" for kind, names in found.items())


def _longer_published(row: Row) -> tuple[str, str]:
    size = f"{label(row)} ({signed(row['published_longer'], ',.0f')})"
    if abs(row["published_longer"]) <= 2 * row["published_longer_se"]:
        return "within two standard errors of none for", size
    return "fewer for" if row["published_longer"] < 0 else "more for", size


def _longer_ours(row: Row) -> tuple[str, str]:
    expected = 1 if row["published_longer"] > 0 else -1
    found = judge(row["longer"], row["longer_half"], row["pairs"], expected=expected)
    direction = "fewer" if row["longer"] < 0 else "more"
    start = {
        RESOLVED: f"{direction} for",
        OPPOSITE: f"**{direction}**, against the paper, for",
        OPEN: "not resolved for",
        TOO_FEW: "too few seeds for",
    }[found]
    size = f"{signed(row['longer'], ',.0f')} ± {row['longer_half']:,.0f}" if row["pairs"] > 1 else "one pair"
    at = "full scale" if row["scale"] == "full" else f"the {row['scale']} scale"
    return start, f"{label(row)} at {at} ({size}; {seeds(row['pairs'])})"
