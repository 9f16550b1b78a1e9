"""A published table beside ours: the same cells, with numbers of seeds, standard errors, and what is not run yet.

Absolute accuracies compare only where the data and the network are the paper's (scale ``full``).  The *gain* of a
method over the plain one compares at every scale, and ours is paired: runs of one seed share their start.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nb_lib.errors import InputError, known
from nb_lib.papers import GRIDS, METHOD, SCALES, SIZES, grid, published
from nb_lib.runs import Record, Run

_IGNORED: dict[str, Any] = {
    "seed": 0,
    "dataset": "digits",
    "precision": "float32",
}  # what a cell's records may differ in
_REPEATS = 10  # of NE's experiments; SmoothOut does not say how many: its standard deviations are taken as they are
_CLOSE = 2.0  # standard errors that still count as agreement
_STAND_IN = {"smoothout-table4": "smoothout-c1", "smoothout-table5": "smoothout-c1"}  # for ResNet44
_SELECTIONS = ("test", "validation")


def compare(table: str, records: Iterable[Record], *, scale: str | None = None, select: str = "test") -> pd.DataFrame:
    """Put our results beside those of a published table, one row a row of it.

    Where the paper reports the best of several batch sizes or α, so do we, of those in the scale's grid.

    Parameters
    ----------
    table : str
        A key of `papers.TABLES`.
    records : iterable of Record
        Other experiments' records do no harm.
    scale : str, optional
        One of `papers.SCALES`; None takes for each row the largest of which there are records.
    select : {"test", "validation"}
        What the best cell is chosen by: the papers choose by the test accuracy that they report.

    Returns
    -------
    pandas.DataFrame
        network, method (in words); published, published_se, published_gain (percent and points; NaN where not
        printed); scale, n (seeds), B, alpha, accuracy, se, gain, gain_se, z (difference of the gains in standard
        errors of both), updates, images (both minibatches of NE counted), dataset, device; and `missing`: the
        command that runs what is not run yet, or what is lacking for it.
    """
    known("selection", select, _SELECTIONS)
    if scale:
        known("scale", scale, SCALES)
    cells = _by_cell(records)
    rows = [_row(table, row, cells, [scale] if scale else SCALES[::-1], select) for row in _rows(table)]
    return _with_gains(pd.DataFrame(rows), [_baseline(table, row) for row in _rows(table)])


def best_of(results: pd.DataFrame, *, select: str = "test") -> pd.DataFrame:
    """The best batch size for each α, and what its accuracy gains over the best at α = 1, paired by seed.

    Parameters
    ----------
    results : DataFrame
        As from `runs.frame`, of one grid at one scale.
    select : {"test", "validation"}
        What the batch size is chosen by.

    Returns
    -------
    pandas.DataFrame
        alpha, chosen_by, B, n, accuracy and se (test, percent), gain and gain_se (points), updates, images (both
        minibatches counted).

    Raises
    ------
    InputError
        If it shall be chosen by validation images that the runs do not have.
    """
    score = {"test": "test_accuracy", "validation": "valid_accuracy"}[known("selection", select, _SELECTIONS)]
    if results[score].isna().any():
        raise InputError("these runs have no validation images to choose by: run them with valid_size.")
    rows, plain = [], None
    for alpha in sorted(results["alpha"].unique()):
        alike = results[results["alpha"] == alpha]
        batch_size = alike.groupby("batch_size")[score].mean().idxmax()
        chosen = alike[alike["batch_size"] == batch_size].set_index("seed").sort_index()
        accuracy = 100 * chosen["test_accuracy"]
        plain = accuracy if plain is None else plain
        gain = (accuracy - plain).dropna()
        found = {"n": len(accuracy), "accuracy": accuracy.mean(), "se": accuracy.sem()}
        gained = {"gain": gain.mean(), "gain_se": gain.sem()} if alpha > 1 else {}
        cost = {"updates": chosen["updates"].mean(), "images": chosen["samples"].mean()}
        rows.append({"alpha": alpha, "chosen_by": select, "B": batch_size, **found, **gained, **cost})
    return pd.DataFrame(rows)


def _rows(table: str) -> list[dict[str, Any]]:
    return published(table).to_dict("records")  # type: ignore[return-value]


def _by_cell(records: Iterable[Record]) -> dict[Run, list[Record]]:
    """Records of one cell: alike but for seed, copy of the data, and precision."""
    cells: dict[Run, list[Record]] = {}
    for record in records:
        cells.setdefault(_cell(record.run), []).append(record)
    return cells


def _cell(run: Run) -> Run:
    return dataclasses.replace(run, **_IGNORED)


def _row(
    table: str, row: dict[str, Any], cells: dict[Run, list[Record]], scales: Sequence[str], select: str
) -> dict[str, Any]:
    ours: dict[str, Any] = {"scale": "", "n": 0, "by_seed": None}
    for scale in scales:
        found = [cells[cell] for cell in _candidates(table, row, scale) if cell in cells]
        if found:
            ours = _summary(table, max(found, key=lambda r: _score(r, table, select))) | {"scale": scale}
            break
    se = row["accuracy_std"] / (math.sqrt(_REPEATS) if table.startswith("ne") else 1)
    paper = {"network": row["network"], "method": label(table, row), "published": row["accuracy"], "published_se": se}
    return paper | ours | {"missing": "" if ours["scale"] == "full" else _missing(table, row)}


def _candidates(table: str, row: dict[str, Any], scale: str) -> list[Run]:
    """Our cells that answer to a published row: one, or those that the best is chosen from."""
    name = _grid(table, row)
    if name is None:
        return []
    runs = [_cell(run) for run in grid(name, scale, seeds=1)]
    if table == "ne-table2":
        return [run for run in runs if run.alpha == row["alpha"]]
    if table == "ne-table3":
        return [run for run in runs if (run.alpha > 1) == (row["alpha"] > 1)]
    sizes = SIZES[GRIDS[name].network][scale].batch_sizes
    b = min(sizes) if row["batch_size"] == 256 else max(sizes)
    method = {field: row[field] for field in METHOD}
    return [run for run in runs if run.batch_size == b and {field: getattr(run, field) for field in METHOD} == method]


def _grid(table: str, row: dict[str, Any]) -> str | None:
    """The grid that a published row belongs to, or that stands in for it; None if there is none."""
    network = _STAND_IN.get(table, row["network"])
    return next((n for n, g in GRIDS.items() if n.startswith(table) and g.network == network), None)


def _missing(table: str, row: dict[str, Any]) -> str:
    name = _grid(table, row)
    if name is None:
        return f"{row['network']} is not in the library"
    return f"python -m nb_lib sweep {name} --store results/ --download"


def _accuracies(records: list[Record], table: str) -> "pd.Series[float]":
    """Percent by seed: NE reports final accuracies, SmoothOut the best ones of a training."""
    best = table.startswith("smoothout")
    values = {r.run.seed: 100 * (r.best_test_accuracy if best else r.test_accuracy) for r in records}
    return pd.Series(values, dtype=float)


def _score(records: list[Record], table: str, select: str) -> float:
    if select == "test":
        return float(_accuracies(records, table).mean())
    valid = [r.valid_accuracy for r in records]
    if None in valid:
        raise InputError("these runs have no validation images to choose by: run them with valid_size.")
    return float(np.mean(valid))  # type: ignore[arg-type]


def _summary(table: str, records: list[Record]) -> dict[str, Any]:
    run, accuracies = records[0].run, _accuracies(records, table)
    where = {key: sorted({str(r.provenance[name]) for r in records}) for key, name in _PROVENANCE.items()}
    return {
        "n": len(accuracies),
        "ours_on": run.network,
        "B": run.batch_size,
        "alpha": run.alpha,
        "accuracy": accuracies.mean(),
        "se": accuracies.sem(),
        "updates": np.mean([r.updates for r in records]),
        "images": np.mean([r.samples for r in records]),
        "by_seed": accuracies,
        **{key: ", ".join(values) for key, values in where.items()},
    }


_PROVENANCE = {"dataset": "dataset_variant", "device": "device"}


def _baseline(table: str, row: dict[str, Any]) -> int | None:
    """Number of the row that a row's gain is over: plain SGD alike in the rest; None for such a row itself."""
    alike = ["network", *(["batch_size", "dataset", "epochs", "lr_scaling"] if table.startswith("smoothout") else [])]
    for i, other in enumerate(_rows(table)):
        plain = other["denoise"] if table == "smoothout-table3" else other["a"] == 0 and other["alpha"] == 1
        if plain and all(other.get(name) == row.get(name) for name in alike):
            return None if _same(other, row) else i
    return None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("batch_size", *METHOD))


def _with_gains(rows: pd.DataFrame, baselines: list[int | None]) -> pd.DataFrame:
    rows = rows.reindex(columns=[*_PAPER, *_OURS, "by_seed", "missing"])
    gains = pd.DataFrame([_gain(rows, i, baseline) for i, baseline in enumerate(baselines)])
    rows = pd.concat([rows[[*_PAPER, *_OURS]], gains, rows[["missing"]]], axis=1)
    spread = np.sqrt(rows["gain_se"] ** 2 + rows["published_gain_se"].fillna(0) ** 2)
    return rows.assign(z=(rows["gain"] - rows["published_gain"]) / spread)


_PAPER = ("network", "method", "published", "published_se")
_OURS = ("scale", "n", "ours_on", "B", "alpha", "accuracy", "se", "updates", "images", "dataset", "device")


def _gain(rows: pd.DataFrame, i: int, baseline: int | None) -> dict[str, float]:
    """Gain of row i over its baseline: the published one, and ours paired by seed."""
    names = ("published_gain", "published_gain_se", "gain", "gain_se")
    if baseline is None:
        return dict.fromkeys(names, math.nan)
    row, plain = rows.iloc[i], rows.iloc[baseline]
    ours = [math.nan, math.nan]
    if row["n"] and plain["n"] and row["scale"] == plain["scale"]:
        difference = (row["by_seed"] - plain["by_seed"]).dropna()
        ours = [difference.mean(), difference.sem()]
    se = math.hypot(row["published_se"], plain["published_se"])
    return dict(zip(names, [row["published"] - plain["published"], se, *ours], strict=True))


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


def readable(comparison: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare` in words: accuracies in percent and gains in points, each ± its standard error.

    The column ``of`` says what our number is of, or, where there is none, the command that runs it or what is lacking.
    """
    rows = comparison.to_dict("records")
    return pd.DataFrame(
        {
            "network": comparison["network"],
            "method": comparison["method"],
            "published": [_number(r["published"], r["published_se"]) for r in rows],
            "ours": [_number(r["accuracy"], r["se"]) if r["n"] else _absent(r["missing"]) for r in rows],
            "gain published": [_number(r["published_gain"], r["published_gain_se"], "+") for r in rows],
            "gain ours": [_number(r["gain"], r["gain_se"], "+") for r in rows],
            "apart": [_apart(r["z"]) for r in rows],
            "of": [_provenance(r) if r["n"] else r["missing"] for r in rows],
        }
    )


def styled(comparison: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """`readable`, colored by how far the gains are apart: blue where they agree, orange where they do not."""
    blue, orange = "rgba(0, 114, 178, 0.18)", "rgba(230, 159, 0, 0.28)"

    def color(apart: Any) -> str:
        return f"background-color: {blue if 'agree' in apart else orange}" if apart else ""

    words = readable(comparison)
    style = words.style.map(color, subset=["apart"]).hide(axis="index").set_table_attributes('class="dataframe"')
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
    return f"{row['scale']}: {cell}; {seeds}; {row['dataset']}; {row['device']}"


def _apart(z: float) -> str:
    if math.isnan(z):
        return ""
    verdict = "agree" if abs(z) < _CLOSE else "ours larger" if z > 0 else "ours smaller"
    return f"{z:+.1f} s.e., {verdict}"
