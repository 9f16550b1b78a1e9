"""A published table beside ours: the same cells, with numbers of seeds, standard errors, and what is not run yet.

Absolute accuracies compare only where the data and the network are the paper's (scale ``full``).  The *gain* of a
method over the plain one compares at every scale, and ours is paired: runs of one seed share their start.

A *cell* is a `Run` without its seed.  A record answers to a cell if it differs from it in no more than the seed and
its *variety*: the copy of the data, the precision, and how batches are cut into ghost batches.  Records of two
varieties are neither averaged nor paired.
"""

import math
import os
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nb_lib.errors import InputError, known
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import read_records
from nb_lib.papers import GRIDS, METHOD, SCALES, SIZES, grid, published

_FOLDER = "folder:"  # what the name of another copy of a data set begins with
_VARIETY = ["dataset", "precision", "cutting"]
_ALIKE = ["scale", *_VARIETY]  # what a number of ours is of, beside the published row
_REPEATS = (
    10  # of NE's experiments; SmoothOut does not say how many: its standard deviations are taken as they are
)
_CLOSE = 2.0  # standard errors that still count as agreement
_STAND_IN = {"smoothout-table4": "smoothout-c1", "smoothout-table5": "smoothout-c1"}  # for ResNet44
_SCORES = {"test": "accuracy", "validation": "valid_accuracy"}
_NO_VALIDATION = "these runs have no validation images to choose by: run them with valid_size."

Source = str | os.PathLike[str]


# ----------------------------------------------------------------------------------------------------- records


def load_records(folders: Source | Iterable[Source]) -> list[Record]:
    """Read every record of folders: stores, or folders of JSON lines as the book's; or of single such files.

    Raises
    ------
    InputError
        If one is not there, or damaged.
    """
    if isinstance(folders, str | os.PathLike):
        folders = [folders]
    places = [place for folder in map(Path, folders) for place in [*sorted(folder.glob("*.jsonl")), folder]]
    return [record for place in places for record in read_records(place)]


def recorded(records: Iterable[Record], name: str, scale: str) -> dict[str, list[Record]]:
    """Records of an experiment at a scale, by their variety in words.

    Parameters
    ----------
    records : iterable of Record
        Other experiments' records do no harm; of a run that is given twice the first record counts.
    name, scale : str
        As for `papers.grid`.

    Returns
    -------
    dict
        Its keys say the variety, and how many runs there are, from which devices and commits; it is empty if there
        are none.
    """
    answers = _answers(grid(name, scale, seeds=1), _by_cell(records))
    varieties = [list(alike) for _, alike in groupby(answers, key=itemgetter(*_VARIETY))]
    return {_origin(alike): [answer["record"] for answer in alike] for alike in varieties}


def command(name: str, scale: str = "full") -> str:
    """Write the shell command that runs an experiment."""
    at = "" if scale == "full" else f" --scale {scale}"
    return f"python -m nb_lib sweep {name}{at} --store results/ --download"


def _origin(alike: list[dict[str, Any]]) -> str:
    """Where records of one variety come from."""
    made = [answer["record"].provenance for answer in alike]
    many = "1 run" if len(made) == 1 else f"{len(made)} runs"
    devices, commits = (_listed(one[key] for one in made) for key in ("device", "commit"))
    return ", ".join(
        filter(None, [*(alike[0][name] for name in _VARIETY), many, devices, f"commit {commits}"])
    )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(set(names)))


def _by_cell(records: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the cell that they may answer to; of a run that is given twice, the first."""
    distinct: dict[str, Record] = {}
    for record in records:
        distinct.setdefault(record.key, record)
    cells: dict[tuple[Any, ...], list[Record]] = {}
    for record in distinct.values():
        cells.setdefault(_cell(record.run), []).append(record)
    return cells


def _cell(run: Run) -> tuple[Any, ...]:
    """All that records of one cell have in common."""
    fields = run.to_dict()
    for name in ("seed", "precision", "cutting"):
        del fields[name]
    return tuple((fields | {"dataset": run.dataset.removeprefix(_FOLDER)}).values())


def _answers(cells: Iterable[Run], by_cell: dict[tuple[Any, ...], list[Record]]) -> list[dict[str, Any]]:
    """The records that answer to any of the cells, with the number of the cell, sorted by their variety."""
    found = [
        {"cell": number, "record": record, **_variety(record, cell)}
        for number, cell in enumerate(cells)
        for record in by_cell.get(_cell(cell), [])
    ]
    return sorted(found, key=itemgetter(*_VARIETY))


def _variety(record: Record, cell: Run) -> dict[str, str]:
    """In words; the cutting is said where it is not the protocol's."""
    run, copy = record.run, record.provenance["dataset_variant"]
    words = {
        "rest": f"parts of {run.noise_batch or run.ghost_batch} and a rest",
        "even": "nearly equal parts",
    }
    return {
        "dataset": f"{copy} ({run.dataset})" if run.dataset.startswith(_FOLDER) else copy,
        "precision": run.precision,
        "cutting": "" if run.cutting == cell.cutting else words[run.cutting],
    }


# ------------------------------------------------------------------------------------------------- comparisons


def compare(
    table: str, records: Iterable[Record], *, scale: str | None = None, select: str = "test"
) -> pd.DataFrame:
    """Put our results beside those of a published table: for each of its rows one of ours a scale and variety.

    Where the paper reports the best of several batch sizes or α, so do we, of those in the scale's grid, and within
    one variety.

    Parameters
    ----------
    table : str
        A key of `papers.TABLES`.
    records : iterable of Record
        Other experiments' records do no harm; of a run that is given twice the first record counts.
    scale : str, optional
        One of `papers.SCALES`; None takes all of which there are records, the largest first.
    select : {"test", "validation"}
        What the best cell is chosen by: the papers choose by the test accuracy that they report.

    Returns
    -------
    pandas.DataFrame
        network, method (in words); published, published_se, published_gain, published_gain_se (percent and points;
        NaN where not printed); scale, n (seeds; 0 where nothing is run), dataset, precision, cutting (empty where it
        is the protocol's), ours_on (network), B, alpha, accuracy, se, gain, gain_se (over the baseline of the same
        scale and variety, paired by seed), updates, images (both minibatches of NE counted), device; z, the difference
        of the gains in standard errors of both, NaN where one of these is not known; and `missing`: of what has no row
        at full scale the command that runs it, or what is lacking for it.
    """
    known("selection", select, _SCORES)
    scales = [known("scale", scale, SCALES)] if scale else list(reversed(SCALES))
    paper = _paper(table)
    ours = _summary(_paired(_best_cells(_outcomes(table, records, scales), select), paper["baseline"]))
    rows = paper.merge(ours, how="left", on="row").fillna({"scale": "", "n": 0}).astype({"n": int})
    done = rows["row"].isin(rows.loc[rows["scale"] == "full", "row"])
    missing = rows["network"].map(lambda network: _missing(table, network)).mask(done, "")
    spread = np.hypot(rows["gain_se"], rows["published_gain_se"])
    rows = rows.assign(z=(rows["gain"] - rows["published_gain"]) / spread, missing=missing)
    return rows.drop(columns=["row", "baseline"])


def best_of(results: pd.DataFrame, *, select: str = "test") -> pd.DataFrame:
    """The best batch size for each α, and what its accuracy gains over the best at α = 1, paired by seed.

    Parameters
    ----------
    results : DataFrame
        As from `runs.frame`, of one grid at one scale and of one variety, see `recorded`.
    select : {"test", "validation"}
        What the batch size is chosen by.

    Returns
    -------
    pandas.DataFrame
        alpha, chosen_by, B, n, accuracy and se (test, percent), gain and gain_se (points; NaN without α = 1), updates
        and updates_se, images (both minibatches counted).

    Raises
    ------
    InputError
        If it shall be chosen by validation images that the runs do not have.
    """
    score = {"test": "test_accuracy", "validation": "valid_accuracy"}[known("selection", select, _SCORES)]
    if results[score].isna().any():
        raise InputError(_NO_VALIDATION)
    rows, plain = [], pd.Series(dtype=float)
    for alpha in sorted(results["alpha"].unique()):
        alike = results[results["alpha"] == alpha]
        batch_size = alike.groupby("batch_size")[score].mean().idxmax()
        chosen = alike[alike["batch_size"] == batch_size].set_index("seed").sort_index()
        accuracy, updates = 100 * chosen["test_accuracy"], chosen["updates"]
        plain = accuracy if alpha == 1 else plain
        gain = (accuracy - plain).dropna() if alpha > 1 else plain.iloc[:0]
        found = {"n": len(accuracy), "accuracy": accuracy.mean(), "se": accuracy.sem()}
        gained = {"gain": gain.mean(), "gain_se": gain.sem()}
        cost = {"updates": updates.mean(), "updates_se": updates.sem(), "images": chosen["samples"].mean()}
        rows.append({"alpha": alpha, "chosen_by": select, "B": batch_size, **found, **gained, **cost})
    return pd.DataFrame(rows)


def _rows(table: str) -> list[dict[str, Any]]:
    return published(table).to_dict("records")  # type: ignore[return-value]


def _paper(table: str) -> pd.DataFrame:
    """The published rows, numbered, and their gains over their baselines."""
    found = published(table)
    paper = pd.DataFrame(
        {
            "row": range(len(found)),
            "baseline": [_baseline(table, row) for row in _rows(table)],
            "network": found["network"],
            "method": [label(table, row) for row in _rows(table)],
            "published": found["accuracy"],
            "published_se": found["accuracy_std"] / (math.sqrt(_REPEATS) if table.startswith("ne") else 1),
        }
    )
    plain = paper.reindex(paper["baseline"].tolist()).reset_index(drop=True)  # NaN for a baseline itself
    gain_se = np.hypot(paper["published_se"], plain["published_se"])
    return paper.assign(published_gain=paper["published"] - plain["published"], published_gain_se=gain_se)


def _outcomes(table: str, records: Iterable[Record], scales: Iterable[str]) -> pd.DataFrame:
    """Every record that answers to a published row: one row a record, accuracies in percent."""
    by_cell = _by_cell(records)
    found = [
        {**answer["record"].row(), "row": number, "scale": scale, **answer}
        for number, row in enumerate(_rows(table))
        for scale in scales
        for answer in _answers(_candidates(table, row, scale), by_cell)
    ]
    # NE reports final accuracies, SmoothOut the best ones of a training
    accuracy = "best_test_accuracy" if table.startswith("smoothout") else "test_accuracy"
    numbers = {"row": int, "cell": int, "seed": int, "batch_size": int, "alpha": float, accuracy: float}
    numbers |= {"valid_accuracy": float, "updates": float, "samples": float}
    outcomes = pd.DataFrame(found, columns=[*numbers, *_ALIKE, "network", "device"]).astype(numbers)
    return outcomes.assign(accuracy=100 * outcomes[accuracy])


def _best_cells(outcomes: pd.DataFrame, select: str) -> pd.DataFrame:
    """What is of the best cell, of those that answer to one published row at one scale and of one variety."""
    score, alike = _SCORES[select], ["row", *_ALIKE]
    choices = outcomes.groupby(alike)["cell"].transform("nunique") > 1
    if outcomes.loc[choices, score].isna().any():
        raise InputError(_NO_VALIDATION)
    scores = outcomes.groupby([*alike, "cell"])[score].transform("mean")
    ranked = outcomes.assign(mean=scores).sort_values("mean", ascending=False, kind="stable")
    return ranked[ranked["cell"] == ranked.groupby(alike)["cell"].transform("first")].sort_index()


def _paired(outcomes: pd.DataFrame, baseline: "pd.Series[int]") -> pd.DataFrame:
    """Beside each accuracy its gain over the baseline with the same seed, scale and variety."""
    pairs = ["baseline", *_ALIKE, "seed"]
    plain = outcomes.assign(baseline=outcomes["row"], plain=outcomes["accuracy"])[[*pairs, "plain"]]
    outcomes = outcomes.assign(baseline=outcomes["row"].map(baseline)).merge(plain, how="left", on=pairs)
    return outcomes.assign(gain=outcomes["accuracy"] - outcomes["plain"])


def _summary(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and their standard errors."""
    return (
        outcomes.groupby(["row", *_ALIKE], sort=False)
        .agg(
            n=("seed", "count"),
            ours_on=("network", "first"),
            B=("batch_size", "first"),
            alpha=("alpha", "first"),
            accuracy=("accuracy", "mean"),
            se=("accuracy", "sem"),
            gain=("gain", "mean"),
            gain_se=("gain", "sem"),
            updates=("updates", "mean"),
            images=("samples", "mean"),
            device=("device", _listed),
        )
        .reset_index()
    )


def _candidates(table: str, row: dict[str, Any], scale: str) -> list[Run]:
    """Our cells that answer to a published row: one, or those that the best is chosen from."""
    name = _grid(table, row["network"])
    if name is None:
        return []
    runs = grid(name, scale, seeds=1)
    if table == "ne-table2":
        return [run for run in runs if run.alpha == row["alpha"]]
    if table == "ne-table3":
        return [run for run in runs if (run.alpha > 1) == (row["alpha"] > 1)]
    sizes = SIZES[GRIDS[name].network][scale].batch_sizes
    b = min(sizes) if row["batch_size"] == 256 else max(sizes)
    method = {field: row[field] for field in METHOD}
    return [
        run
        for run in runs
        if run.batch_size == b and {field: getattr(run, field) for field in METHOD} == method
    ]


def _grid(table: str, network: str) -> str | None:
    """The grid that a published row belongs to, or that stands in for it; None if there is none."""
    network = _STAND_IN.get(table, network)
    return next((n for n, g in GRIDS.items() if n.startswith(table) and g.network == network), None)


def _missing(table: str, network: str) -> str:
    name = _grid(table, network)
    return command(name) if name else f"{network} is not in the library"


def _baseline(table: str, row: dict[str, Any]) -> int:
    """Number of the row that a row's gain is over: plain SGD alike in the rest; -1 for such a row itself."""
    alike = [
        "network",
        *(["batch_size", "dataset", "epochs", "lr_scaling"] if table.startswith("smoothout") else []),
    ]
    for i, other in enumerate(_rows(table)):
        plain = other["denoise"] if table == "smoothout-table3" else other["a"] == 0 and other["alpha"] == 1
        if plain and all(other.get(name) == row.get(name) for name in alike):
            return -1 if _same(other, row) else i
    return -1


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("batch_size", *METHOD))


def label(table: str, row: dict[str, Any]) -> str:
    """A published row's method in words."""
    if table.startswith("ne"):
        return f"α = {row['alpha']:g}, B = {row['batch_size']}"
    name = "AdaSmoothOut" if row["adaptive"] else "SmoothOut"
    words = [f"{name}, a = {row['a']:g}" if row["a"] else "baseline"]
    words += ["normal noise"] * (row["distribution"] == "normal") + ["not taken off"] * (not row["denoise"])
    if "dataset" in row:
        words.append(f"{row['dataset']}, {row['epochs']:g} epochs, {row['lr_scaling']}")
    return f"B = {row['batch_size']}, {', '.join(words)}"


# ------------------------------------------------------------------------------------------------------- words


def readable(comparison: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare` in words: accuracies in percent and gains in points, each ± its standard error.

    ``scale`` and ``ours`` belong together: beside a run in full, one of less data.  ``apart`` has a verdict only where
    both gains have a standard error, and says that they agree only if these errors could tell the published gain from
    none.  ``of`` says what our number is of, or, where there is none, the command that runs it or what is lacking.
    """
    rows = comparison.to_dict("records")
    return pd.DataFrame(
        {
            "network": comparison["network"],
            "method": comparison["method"],
            "published": [_number(r["published"], r["published_se"]) for r in rows],
            "scale": comparison["scale"],
            "ours": [_number(r["accuracy"], r["se"]) if r["n"] else _absent(r["missing"]) for r in rows],
            "gain published": [_number(r["published_gain"], r["published_gain_se"], "+") for r in rows],
            "gain ours": [_number(r["gain"], r["gain_se"], "+") for r in rows],
            "apart": [_apart(r) for r in rows],
            "of": [_provenance(r) if r["n"] else r["missing"] for r in rows],
        }
    )


def styled(comparison: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """`readable`, colored by how far the gains are apart: blue where they agree, orange where they do not."""
    blue, orange = "rgba(0, 114, 178, 0.18)", "rgba(230, 159, 0, 0.28)"

    def color(apart: Any) -> str:
        shade = {"agree": blue, "ours larger": orange, "ours smaller": orange}.get(apart.partition(", ")[2])
        return f"background-color: {shade}" if shade else ""

    words = readable(comparison)
    style = (
        words.style.map(color, subset=["apart"]).hide(axis="index").set_table_attributes('class="dataframe"')
    )
    numbers = [name for name in words if name not in ("of", "method")]
    style = style.set_properties(subset=numbers, **{"white-space": "nowrap"})
    style = style.set_properties(subset=["method"], **{"min-width": "7em", "text-align": "left"})
    return style.set_properties(subset=["of"], **{"min-width": "26em", "text-align": "left"})


def _number(value: float, se: float, sign: str = "") -> str:
    if math.isnan(value):
        return ""
    return f"{value:{sign}.2f}" + ("" if math.isnan(se) else f" ± {se:.2f}")


def _absent(missing: str) -> str:
    return "not run yet" if missing.startswith("python") else "cannot be run"


def _provenance(row: dict[Any, Any]) -> str:
    cell = f"{row['ours_on']}, B = {row['B']:g}" + (f", α = {row['alpha']:g}" if row["alpha"] > 1 else "")
    seeds = f"{row['n']} seeds" if row["n"] != 1 else "1 seed"
    precision = "" if row["precision"] == "float32" else row["precision"]
    words = [f"{row['scale']}: {cell}", seeds, row["dataset"], row["device"], precision, row["cutting"]]
    return "; ".join(filter(None, words))


def _apart(row: dict[Any, Any]) -> str:
    if math.isnan(row["gain"]):
        return ""
    if math.isnan(row["published_gain_se"]):
        return "no published spread"
    if math.isnan(row["gain_se"]):
        return "no spread of ours"
    return f"{row['z']:+.1f} s.e., {_verdict(row)}"


def _verdict(row: dict[Any, Any]) -> str:
    if abs(row["z"]) >= _CLOSE:
        return "ours larger" if row["z"] > 0 else "ours smaller"
    spread = math.hypot(row["gain_se"], row["published_gain_se"])
    return "agree" if abs(row["published_gain"]) >= _CLOSE * spread else "cannot tell"
