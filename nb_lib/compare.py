"""A published table beside ours: the same cells, with numbers of seeds, standard errors, and what is not run yet.

Absolute accuracies compare only where the data and the network are the paper's (scale ``full``).  The sign of a
method's *gain* over the plain one compares at every scale, and ours is paired: runs of one seed share their start.
Which of our records answer to a cell of the table, and of which variety they are, is for `lab.recorded` to say, and
what the comparison shows for `page.comparison`.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from nb_lib import published
from nb_lib.errors import InputError, known
from nb_lib.lab.recorded import Cells, Variety, all_of, answers, by_cell, command, command_of
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import frame
from nb_lib.papers import GRIDS, METHOD, grid, method_in_words, scales_of
from nb_lib.protocols import SCALES

LEVEL = 0.95  # of intervals
_REPEATS = 10  # of NE's experiments; SmoothOut's standard deviations are taken as they are: it does not say of how many
_SELECTIONS = ("test", "validation")

Cell = dict[Any, Any]  # a row of `published.table`
Answers = dict[tuple[str, Variety], pd.DataFrame]  # our results, by scale and variety
_NO_RUNS = pd.DataFrame({"accuracy": [], "updates": []}, dtype=float)
_TEXTS = ("scale", "dataset", "precision", "cutting", "ours_on", "device")
_OF_CELL = ("alpha", "B", "accuracy", "se", "updates", "updates_se", "images")
_OF_GAIN = ("gain", "gain_se", "gain_std", "gain_half", "longer", "longer_se", "longer_half", "apart", "apart_half")
_NOT_RUN = dict.fromkeys(_TEXTS, "") | dict.fromkeys(_OF_CELL + _OF_GAIN, math.nan) | {"n": 0, "pairs": 0}


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
        table, cell (row of `published.table`), network, method (in words).  Of the paper, NaN where not printed:
        published, published_se (accuracy, percent), published_gain, published_gain_se (points, over the baseline),
        published_half (of its interval of 95 %), published_updates, published_updates_se, published_longer,
        published_longer_se (updates more than the baseline), sharpness.  Of ours: scale, dataset, precision, cutting
        (empty where it is the protocol's), n (seeds; 0 where nothing is run), ours_on (network), alpha, B, accuracy,
        se, updates, updates_se, images (both minibatches of NE counted), device; what it gains over the baseline of the
        same scale and variety, paired by seed: pairs, gain, gain_se, gain_std, gain_half, and longer, longer_se,
        longer_half of updates, where the intervals of 95 % are widened for the number of methods with one baseline
        (Bonferroni); apart, apart_half (our gain less the published one, and of its interval, NaN where the paper
        prints no spread).  missing is, of what has no row at full scale, the command that runs it.

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
    for number, (cell, found) in enumerate(zip(cells, ours, strict=True)):
        theirs = {
            "table": table,
            "cell": number,
            **_theirs(table, cell, cells),
            "missing": _missing(table, cell, found),
        }
        baseline = ours[cell["baseline"]] if cell["baseline"] >= 0 else {}
        for place, chosen in found.items():
            rivals = _rivals(cell, cells, ours, place)
            gained = _gained(chosen, baseline.get(place, _NO_RUNS), rivals)
            at_scale, variety = place
            run = chosen.iloc[0]
            row = {
                "scale": at_scale,
                **variety._asdict(),
                "ours_on": run["network"],
                "alpha": run["alpha"],
                **_means(chosen),
                **gained,
                **_apart(theirs, gained, rivals),
                "device": all_of(chosen["device"]),
            }
            rows.append(theirs | row)
        if not found:
            rows.append(theirs | _NOT_RUN)
    return pd.DataFrame(rows)


def _rivals(cell: Cell, cells: list[Cell], ours: list[Answers], place: tuple[str, Variety]) -> int:
    """How many methods are compared with one baseline: the interval of each is widened for that."""
    alike = [found for other, found in zip(cells, ours, strict=True) if other["baseline"] == cell["baseline"]]
    return max(1, sum(place in found for found in alike))


def best_of(results: pd.DataFrame, *, select: str = "test") -> pd.DataFrame:
    """The best batch size for each α, and what its accuracy gains over the best at α = 1, paired by seed.

    `results` are of one grid, scale and variety, as from `store.frame`; `select` is as for `compare`, and an
    `InputError` if there are no validation images.  The columns are alpha, chosen_by, B, n, accuracy and se (test,
    percent), updates and updates_se, images (both minibatches counted), gain and gain_se (points; NaN without α = 1).
    """
    known("selection", select, _SELECTIONS)
    results = _scored(results, "test_accuracy", select)
    rows, plain = [], _NO_RUNS
    for alpha, alike in results.groupby("alpha"):
        chosen = _best([cell for _, cell in alike.groupby("batch_size")]).sort_index()
        gained = _gained(chosen, plain)
        over_plain = {name: gained[name] for name in ("gain", "gain_se")}
        rows.append({"alpha": alpha, "chosen_by": select, **_means(chosen), **over_plain})
        if alpha == 1:
            plain = chosen
    return pd.DataFrame(rows)


def _theirs(table: str, cell: Cell, cells: list[Cell]) -> dict[str, Any]:
    """A published cell with its gain over its baseline."""
    se, updates_se = _standard_errors(table, cell)
    gain = gain_se = longer = longer_se = math.nan
    if cell["baseline"] >= 0:
        plain = cells[cell["baseline"]]
        plain_se, plain_updates_se = _standard_errors(table, plain)
        gain, gain_se = cell["accuracy"] - plain["accuracy"], math.hypot(se, plain_se)
        longer, longer_se = cell["updates"] - plain["updates"], math.hypot(updates_se, plain_updates_se)
    freedom = _published_freedom(table)
    return {
        "network": cell["network"],
        "method": _method(table, cell),
        "published": cell["accuracy"],
        "published_se": se,
        "published_gain": gain,
        "published_gain_se": gain_se,
        "published_half": _t(freedom) * gain_se,
        "published_updates": cell["updates"],
        "published_updates_se": updates_se,
        "published_longer": longer,
        "published_longer_se": longer_se,
        "sharpness": cell["sharpness"],
    }


def _published_freedom(table: str) -> float:
    """Degrees of freedom of a published gain's standard error: of two means of 10 runs; of unknown numbers, any."""
    return 2 * (_REPEATS - 1) if table.startswith("ne") else math.inf


def _standard_errors(table: str, cell: Cell) -> tuple[float, float]:
    """Of a published accuracy and a number of updates."""
    repeats = _REPEATS if table.startswith("ne") else 1
    return cell["accuracy_std"] / math.sqrt(repeats), cell["updates_std"] / math.sqrt(repeats)


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
    if scale not in scales_of(name):
        return []
    runs = grid(name, scale, seeds=1)
    if table == "ne-table2":
        return [run for run in runs if run.alpha == cell["alpha"]]
    if table == "ne-table3":
        return [run for run in runs if (run.alpha > 1) == (cell["alpha"] > 1)]
    sizes = GRIDS[name].size(scale).batch_sizes
    B = min(sizes) if cell["batch_size"] == 256 else max(sizes)
    of_size = [run for run in runs if run.batch_size == B]
    alike = [run for run in of_size if _same_method(run, cell)]
    printed = published.table(table).query("network == @cell['network']")["epochs"]
    longest = max(run.epochs for run in runs)
    return [run for run in alike if _same_regime(run, longest, cell, printed.max())]


def _same_method(run: Run, cell: Cell) -> bool:
    return all(getattr(run, name) == cell[name] for name in METHOD)


def _same_regime(run: Run, longest: int, cell: Cell, longest_printed: float) -> bool:
    """Whether a run is trained for the share of the longest training that is printed, at rates scaled as printed."""
    printed = cell["epochs"]
    if math.isnan(printed):
        return True
    if run.lr_scaling != cell["lr_scaling"]:
        return False
    share = run.epochs / longest
    return share == printed / longest_printed


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


def _means(cell: pd.DataFrame) -> dict[str, Any]:
    """Means over seeds and standard errors."""
    accuracy = cell["accuracy"]
    updates = cell["updates"]
    return {
        "B": cell["batch_size"].iloc[0],
        "n": len(cell),
        "accuracy": accuracy.mean(),
        "se": accuracy.sem(),
        "updates": updates.mean(),
        "updates_se": updates.sem(),
        "images": cell["samples"].mean(),
    }


def _gained(cell: pd.DataFrame, plain: pd.DataFrame, comparisons: int = 1) -> dict[str, Any]:
    """What runs gain over plain ones of the same seeds, and how many updates more they take."""
    gain = (cell["accuracy"] - plain["accuracy"]).dropna()
    longer = (cell["updates"] - plain["updates"]).dropna()
    pairs = len(gain)
    t = _t(pairs - 1, comparisons) if pairs > 1 else math.nan
    return {
        "pairs": pairs,
        "gain": gain.mean(),
        "gain_se": gain.sem(),
        "gain_std": gain.std(),
        "gain_half": t * gain.std() / math.sqrt(max(pairs, 1)),
        "longer": longer.mean(),
        "longer_se": longer.sem(),
        "longer_half": t * longer.std() / math.sqrt(max(pairs, 1)),
    }


def _apart(theirs: dict[str, Any], ours: dict[str, Any], comparisons: int) -> dict[str, float]:
    """How far the gains are apart, with an interval for two errors of different sizes (Welch, Satterthwaite)."""
    variances = theirs["published_gain_se"] ** 2, ours["gain_se"] ** 2
    freedoms = _published_freedom(theirs["table"]), ours["pairs"] - 1
    weight = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True) if f > 0)
    both = sum(variances)
    half = _t(both**2 / weight, comparisons) * math.sqrt(both) if weight > 0 else math.nan
    return {"apart": ours["gain"] - theirs["published_gain"], "apart_half": half}


def _t(freedom: float, comparisons: int = 1) -> float:
    """The standard errors to either side of a mean that its interval takes, one of several."""
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / comparisons, freedom))


def _grid(table: str, cell: Cell) -> str:
    """The grid that a published cell belongs to."""
    trained = cell["network"], cell["dataset"]
    of_table = [name for name in GRIDS if name.startswith(table)]
    return next(name for name in of_table if trained == (GRIDS[name].network, GRIDS[name].dataset))


def _missing(table: str, cell: Cell, found: Answers) -> str:
    """The command that runs a cell at full scale, alone or with the grid's others; nothing if it was run."""
    if any(scale == "full" for scale, _ in found):
        return ""
    run = _candidates(table, cell, "full")[0]
    return command_of(run) if run.image_size else command(_grid(table, cell))
