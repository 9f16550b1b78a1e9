"""A published table beside ours: the same cells, with numbers of seeds, standard errors, and what is not run yet.

Absolute accuracies compare only where the data and the network are the paper's (scale ``full``).  The *gain* of a
method over the plain one compares at every scale, and ours is paired: runs of one seed share their start.  Which of our
records answer to a cell of the table, and of which variety they are, is for `lab.recorded` to say.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from nb_lib import published
from nb_lib.errors import InputError, known
from nb_lib.lab.recorded import Cells, Variety, all_of, answers, by_cell, command
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import frame
from nb_lib.papers import GRIDS, METHOD, grid, method_in_words
from nb_lib.protocols import LONGEST, SCALES

_REPEATS = 10  # of NE's experiments; SmoothOut's standard deviations are taken as they are: it does not say of how many
_SELECTIONS = ("test", "validation")

Cell = dict[Any, Any]  # a row of `published.table`
Answers = dict[tuple[str, Variety], pd.DataFrame]  # our results, by scale and variety
_NO_RUNS = pd.DataFrame({"accuracy": []}, dtype=float)
_TEXTS = ("scale", "dataset", "precision", "cutting", "ours_on", "device")
_NUMBERS = ("alpha", "B", "accuracy", "se", "gain", "gain_se", "updates", "updates_se", "images")
_NOT_RUN = dict.fromkeys(_TEXTS, "") | dict.fromkeys(_NUMBERS, math.nan) | {"n": 0}


def compare(table: str, records: Iterable[Record], *, scale: str | None = None, select: str = "test") -> pd.DataFrame:
    """Put our results beside those of a published table: for each of its rows one of ours a scale and variety.

    Where the paper reports the best of several batch sizes or α, so do we, of those in the scale's grid.

    Parameters
    ----------
    table, scale : str
        In `papers.TABLES` and `protocols.SCALES`; None takes all scales of which there are records, the largest first.
    records : iterable of Record
        Other experiments' records do no harm; of a run that is given twice the first record counts.
    select : {"test", "validation"}
        What the best cell is chosen by: the papers choose by the test accuracy that they report.

    Returns
    -------
    pandas.DataFrame
        network, method (in words); published, published_se, published_gain, published_gain_se (percent and points;
        NaN where not printed); scale, dataset, precision, cutting (empty where it is the protocol's), n (seeds; 0 where
        nothing is run), ours_on (network), alpha, B, accuracy, se, gain, gain_se (over the baseline of the same scale
        and variety, paired by seed), updates, updates_se, images (both minibatches of NE counted), device; missing (of
        what has no row at full scale the command that runs it, or what is lacking for it), z (the difference of the
        gains in standard errors of both, NaN where one of these is not known).

    Examples
    --------
    >>> compare("ne-table2", [])["published_gain"].round(2).tolist()
    [nan, 0.22, nan, 0.64, 0.72, 0.61, nan, 0.35]
    """
    known("selection", select, _SELECTIONS)
    scales = [known("scale", scale, SCALES)] if scale else SCALES[::-1]
    our_cells = by_cell(records)
    cells = published.table(table).to_dict("records")
    ours = [_chosen(table, cell, scales, our_cells, select) for cell in cells]
    rows = []
    for cell, found in zip(cells, ours, strict=True):
        theirs = _theirs(table, cell, cells)
        theirs["missing"] = _missing(table, cell, found)
        baseline = ours[cell["baseline"]] if cell["baseline"] >= 0 else {}
        for place, chosen in found.items():
            at_scale, variety = place
            run = chosen.iloc[0]
            row = {
                "scale": at_scale,
                **variety._asdict(),
                "ours_on": run["network"],
                "alpha": run["alpha"],
                **_means(chosen, baseline.get(place, _NO_RUNS)),
                "device": all_of(chosen["device"]),
            }
            rows.append(theirs | row)
        if not found:
            rows.append(theirs | _NOT_RUN)
    compared = pd.DataFrame(rows)
    distance = compared["gain"] - compared["published_gain"]
    spread = np.hypot(compared["gain_se"], compared["published_gain_se"])
    return compared.assign(z=distance / spread)


def best_of(results: pd.DataFrame, *, select: str = "test") -> pd.DataFrame:
    """The best batch size for each α, and what its accuracy gains over the best at α = 1, paired by seed.

    `results` are of one grid, scale and variety, as from `store.frame`; `select` is as for `compare`, and an
    `InputError` if there are no validation images.  The columns are alpha, chosen_by, B, n, accuracy and se (test,
    percent), gain and gain_se (points; NaN without α = 1), updates and updates_se, images (both minibatches counted).
    """
    known("selection", select, _SELECTIONS)
    results = _scored(results, "test_accuracy", select)
    rows, plain = [], _NO_RUNS
    for alpha, alike in results.groupby("alpha"):
        chosen = _best([cell for _, cell in alike.groupby("batch_size")]).sort_index()
        rows.append({"alpha": alpha, "chosen_by": select, **_means(chosen, plain)})
        if alpha == 1:
            plain = chosen
    return pd.DataFrame(rows)


def _theirs(table: str, cell: Cell, cells: list[Cell]) -> dict[str, Any]:
    """A published cell with its gain over its baseline."""
    se = _standard_error(table, cell)
    gain = gain_se = math.nan
    if cell["baseline"] >= 0:
        plain = cells[cell["baseline"]]
        gain = cell["accuracy"] - plain["accuracy"]
        gain_se = math.hypot(se, _standard_error(table, plain))
    return {
        "network": cell["network"],
        "method": _method(table, cell),
        "published": cell["accuracy"],
        "published_se": se,
        "published_gain": gain,
        "published_gain_se": gain_se,
    }


def _standard_error(table: str, cell: Cell) -> float:
    repeats = _REPEATS if table.startswith("ne") else 1
    return cell["accuracy_std"] / math.sqrt(repeats)


def _method(table: str, cell: Cell) -> str:
    """A published cell's method in words."""
    if table.startswith("ne"):
        return f"α = {cell['alpha']:g}, B = {cell['batch_size']}"
    words = [f"B = {cell['batch_size']}", method_in_words(cell)]
    if not math.isnan(cell["epochs"]):
        words += [cell["dataset"], f"{cell['epochs']:g} epochs", cell["lr_scaling"]]
    return ", ".join(words)


def _chosen(table: str, cell: Cell, scales: Iterable[str], ours: Cells, select: str) -> Answers:
    """Our results that answer to a published cell: of the best of our cells at each scale, of each variety."""
    accuracy = "best_test_accuracy" if table.startswith("smoothout") else "test_accuracy"
    chosen: Answers = {}
    for scale in scales:
        candidates: dict[Variety, list[pd.DataFrame]] = {}
        for run in _candidates(table, cell, scale):
            for variety, alike in answers(run, ours).items():
                results = _scored(frame(alike), accuracy, select)
                candidates.setdefault(variety, []).append(results)
        for variety in sorted(candidates):
            cells = candidates[variety]
            several = len(cells) > 1  # one alone needs no scores
            chosen[scale, variety] = _best(cells) if several else cells[0]
    return chosen


def _candidates(table: str, cell: Cell, scale: str) -> list[Run]:
    """Our cells that answer to a published one: a single one, or those that the best is chosen from."""
    name = _grid(table, cell)
    if name is None:
        return []
    runs = grid(name, scale, seeds=1)
    if table == "ne-table2":
        return [run for run in runs if run.alpha == cell["alpha"]]
    if table == "ne-table3":
        return [run for run in runs if (run.alpha > 1) == (cell["alpha"] > 1)]
    sizes = GRIDS[name].size(scale).batch_sizes
    B = min(sizes) if cell["batch_size"] == 256 else max(sizes)
    longest = max(run.epochs for run in runs)
    of_size = [run for run in runs if run.batch_size == B]
    alike = [run for run in of_size if _same_method(run, cell)]
    return [run for run in alike if _same_regime(run, longest, cell)]


def _same_method(run: Run, cell: Cell) -> bool:
    return all(getattr(run, name) == cell[name] for name in METHOD)


def _same_regime(run: Run, longest: int, cell: Cell) -> bool:
    """Whether a run is trained for the share of the longest training that is printed, at rates scaled as printed."""
    printed = cell["epochs"]
    if math.isnan(printed):
        return True
    if run.lr_scaling != cell["lr_scaling"]:
        return False
    share = run.epochs / longest
    return share == printed / LONGEST


def _scored(results: pd.DataFrame, accuracy: str, select: str) -> pd.DataFrame:
    """Results by seed, with their accuracies in percent and the scores to choose by."""
    score = accuracy if select == "test" else "valid_accuracy"
    percent = 100 * results[accuracy]
    return results.assign(accuracy=percent, score=results[score]).set_index("seed")


def _best(cells: list[pd.DataFrame]) -> pd.DataFrame:
    """The cell with the best mean score."""
    if any(cell["score"].isna().any() for cell in cells):
        raise InputError("these runs have no validation images to choose by: run them with valid_size.")
    means = [cell["score"].mean() for cell in cells]
    highest = np.argmax(means)
    return cells[highest]


def _means(cell: pd.DataFrame, plain: pd.DataFrame) -> dict[str, Any]:
    """Means over seeds and standard errors, and those of the gain over plain runs."""
    accuracy = cell["accuracy"]
    updates = cell["updates"]
    gain = (accuracy - plain["accuracy"]).dropna()
    return {
        "B": cell["batch_size"].iloc[0],
        "n": len(cell),
        "accuracy": accuracy.mean(),
        "se": accuracy.sem(),
        "gain": gain.mean(),
        "gain_se": gain.sem(),
        "updates": updates.mean(),
        "updates_se": updates.sem(),
        "images": cell["samples"].mean(),
    }


def _grid(table: str, cell: Cell) -> str | None:
    """The grid that a published cell belongs to; None if there is none."""
    trained = cell["network"], cell["dataset"]
    for name, one in GRIDS.items():
        if name.startswith(table) and trained == (one.network, one.dataset):
            return name
    return None


def _missing(table: str, cell: Cell, found: Answers) -> str:
    """The command that runs a cell at full scale, or what is lacking for it; nothing if it was run."""
    if any(scale == "full" for scale, _ in found):
        return ""
    name = _grid(table, cell)
    if name is None:
        return f"{cell['network']} is not in the library"
    return command(name)
