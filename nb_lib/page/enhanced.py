"""What the runs of NE's experiments show, in sentences and tables made from them."""

import math
from functools import partial
from typing import Any

import pandas as pd

from nb_lib.compare import best_of
from nb_lib.page.experiments import against
from nb_lib.page.intervals import paired
from nb_lib.page.tables import show_table
from nb_lib.page.verdicts import (
    ENOUGH,
    NOTHING,
    OPEN,
    OPPOSITE,
    RESOLVED,
    TOO_FEW,
    compared,
    judge,
    listed,
    say,
    seeds,
    seeds_needed,
    signed,
)

_POINTS: dict[str, Any] = {"unit": "points", "scale": 100, "number": ".2f"}
_REPEATS = 10  # of the paper's trainings
_CLOSE = 2  # standard errors


def trends(results: pd.DataFrame) -> list[str]:
    """Say what α does at each batch size, and whether accuracy drops toward the largest (NE Figs. 1 and 2).

    `results` are of one grid, scale and variety, as from `lab.store.frame`.
    """
    enhanced = partial(against, results, by="alpha", baseline=1.0, symbol="α")
    beside = partial(compared, by="case", baseline="α = 1")
    more_updates = beside(
        enhanced("updates"), value="updates", what="updates until convergence", number=",.0f", expected=1
    )
    accuracy = beside(enhanced("test_accuracy"), value="test_accuracy", what="test accuracy", **_POINTS)
    least, most = int(results["batch_size"].min()), int(results["batch_size"].max())
    drops = _drops(results, least, most)
    drop = compared(
        drops,
        "alpha",
        "drop",
        baseline=1.0,
        what=f"drop of the test accuracy from B = {least:,} to B = {most:,}",
        group="α = {:g}",
        expected=-1,
        **_POINTS,
    )
    at_1 = drops.loc[drops["alpha"] == 1, "drop"]
    return list(dict.fromkeys([more_updates, accuracy, *_dropped(at_1, least, most), drop]))


def two_ways(results: pd.DataFrame) -> list[str]:
    """Compare the best of smaller batches at α = 1 with that of larger α at the largest batch (NE Fig. 3, Table 3)."""
    most = int(results["batch_size"].max())
    is_plain = results["alpha"] == 1
    is_largest = results["batch_size"] == most
    smaller, larger = results[is_plain], results[is_largest & ~is_plain]
    if smaller.empty or larger.empty:
        return [NOTHING]
    B, _ = _best_cell(smaller)
    _, alpha = _best_cell(larger)
    names = f"B = {B:,}", f"α = {alpha:g}"
    ways = [smaller[smaller["batch_size"] == B], larger[larger["alpha"] == alpha]]
    table = pd.concat(rows.assign(way=name) for name, rows in zip(names, ways, strict=True))
    beside = partial(compared, table, "way", baseline=names[0])
    return [
        f"By {_chosen_by(results)} the best of smaller batches at α = 1 is {names[0]}, "
        f"and the best of larger α at B = {most:,} is {names[1]}.",
        beside("test_accuracy", what="test accuracy", expected=1, **_POINTS),
        beside("updates", what="updates until convergence", number=",.0f"),
        beside("samples", what="images until convergence", number=",.0f"),
    ]


def show_best(results: pd.DataFrame) -> None:
    """Show the best batch size for each α (NE Table 2), and say what it gains over the best at α = 1."""
    selections = ["test"]
    if results["valid_accuracy"].notna().all():
        selections.append("validation")
    found = pd.concat(best_of(results, select=select) for select in selections)
    rows = []
    for (alpha, B), alike in found.groupby(["alpha", "B"]):
        cell = alike.iloc[0]
        gains = alike[["gain", "gain_se"]].drop_duplicates().itertuples(index=False)
        row = {
            "α": f"{alpha:g}",
            "B, chosen by": f"{B:,}, {listed(alike['chosen_by'])}",
            "accuracy, %": _with_error(cell["accuracy"], cell["se"]),
            "gain, points": " or ".join(_with_error(gain, se, sign="+") for gain, se in gains),
            "updates": _with_error(cell["updates"], cell["updates_se"], ",.0f"),
        }
        rows.append(row)
    show_table(pd.DataFrame(rows), f"The best B for each α: mean ± standard error of {_seeds(found['n'])}")
    sentences: dict[frozenset[Any], list[str]] = {}
    for select, table in found.groupby("chosen_by", sort=False):
        chosen = frozenset(zip(table["alpha"], table["B"], strict=True))
        sentences.setdefault(chosen, []).append(str(select))
    for cells, selects in sentences.items():
        is_chosen = [cell in cells for cell in zip(results["alpha"], results["batch_size"], strict=True)]
        say(*_gains(results[is_chosen], f" of the best by {listed(selects)} images"))


def show_beside_published(results: pd.DataFrame, published: pd.DataFrame) -> None:
    """Say what α gains, at the batch sizes of a published table (rows of `published.table`), and show both."""
    theirs = published.set_index(["alpha", "batch_size"])
    ours_by_cell: Any = results.groupby(["alpha", "batch_size"])
    cells = {cell: rows for cell, rows in ours_by_cell if cell in theirs.index}
    if not cells:
        return
    ours = pd.concat(cells.values())
    say(*_gains(ours, ""), *_rests_on(ours, published))
    rows, verdicts = [], []
    for (alpha, B), alike in cells.items():
        name = f"α = {alpha:g}, B = {B:,}"
        paper: Any = theirs.loc[(alpha, B)]
        row = {"": f"{name} ({_seeds([len(alike)])})"}
        apart = []
        for value, column, what, number in (
            ("accuracy", 100 * alike["test_accuracy"], "accuracy, %", ".2f"),
            ("updates", alike["updates"], "updates", ",.0f"),
        ):
            error = paper[f"{value}_std"] / math.sqrt(_REPEATS)
            row[f"{what}, ours"] = _with_error(column.mean(), column.sem(), number)
            row[f"{what}, paper"] = _with_error(paper[value], error, number)
            apart.append(f"{value} {_apart(column, paper[value], error, number)}")
        rows.append(row)
        verdicts.append(f"{name}, ours less the paper's: {' and '.join(apart)}.")
    show_table(pd.DataFrame(rows), f"Mean ± standard error; the paper's of {_REPEATS} trainings")
    say(*verdicts, bullets=True)


def _drops(results: pd.DataFrame, least: int, most: int) -> pd.DataFrame:
    """By α and seed how much lower the test accuracy is at the largest batch than at the smallest."""
    wide = results.pivot_table(index=["alpha", "seed"], columns="batch_size", values="test_accuracy")
    return (wide[least] - wide[most]).dropna().rename("drop").reset_index()


def _dropped(drops: pd.Series, least: int, most: int) -> list[str]:
    """Whether there is a drop without enhancement, which more noise could make smaller."""
    if drops.empty or least == most:
        return []
    table = pd.DataFrame({"drop": [*drops, *(0.0 for _ in drops)], "seed": [*range(len(drops))] * 2})
    [row] = paired(table.assign(of=[1] * len(drops) + [0] * len(drops)), "of", "drop", baseline=0).to_dict("records")
    n, size = len(drops), signed(-100 * row["difference"], ".2f")
    words = {
        RESOLVED: "drops",
        OPPOSITE: "does not drop but **rises**",
        OPEN: "changes by an amount that is not resolved",
        TOO_FEW: "changes by an amount that is of too few seeds",
    }[judge(row["difference"], row["half"], n, expected=1)]
    spread = f" ± {100 * row['half']:.2f} points; {row['agree']} of {n} seeds" if n > 1 else " points; 1 seed"
    return [f"At α = 1 the test accuracy {words} from B = {least:,} to B = {most:,} ({size}{spread})."]


def _best_cell(results: pd.DataFrame) -> Any:
    """Its batch size and α."""
    score = "valid_accuracy" if results["valid_accuracy"].notna().all() else "test_accuracy"
    return results.groupby(["batch_size", "alpha"])[score].mean().idxmax()


def _chosen_by(results: pd.DataFrame) -> str:
    return "validation images" if results["valid_accuracy"].notna().all() else "test accuracy"


def _gains(chosen: pd.DataFrame, of: str) -> list[str]:
    """What each α gains over α = 1 in accuracy and in updates, where there is one batch size for each."""
    beside = partial(compared, chosen, "alpha", baseline=1.0, group="α = {:g}")
    accuracy = beside("test_accuracy", what=f"test accuracy{of}", expected=1, **_POINTS)
    updates = beside("updates", what=f"updates{of}", number=",.0f", expected=-1)
    return list(dict.fromkeys([accuracy, updates]))


def _rests_on(ours: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """How many seeds both α have, and how many would show the published gain."""
    if set(ours["alpha"]) <= {1.0} or 1.0 not in set(ours["alpha"]):
        return []
    sentences = []
    accuracy = published.set_index("alpha")["accuracy"]
    for row in paired(ours, "alpha", "test_accuracy", baseline=1.0).to_dict("records"):
        alpha, n = row["alpha"], int(row["n"])
        gain = accuracy[alpha] - accuracy[1.0]
        have = [sum(ours["alpha"] == each) for each in (1.0, alpha)]
        sentence = f"The published gain of α = {alpha:g} is {signed(gain, '.2f')} points; ours rests on {_seeds([n])}"
        if max(have) > n:
            sentence += f" that both have, of {have[0]} with α = 1 and {have[1]} with α = {alpha:g}"
        if n >= ENOUGH:
            needed = seeds_needed(gain, 100 * row["std"])
            sentence += f"; with the spread of these, {needed} would show it four times in five"
        sentences.append(f"{sentence}.")
    return sentences


def _apart(ours: "pd.Series[Any]", mean: float, error: float, number: str) -> str:
    """How far our mean is from a published one, in standard errors of both."""
    difference = ours.mean() - mean
    size = signed(difference, number)
    if len(ours) < ENOUGH:
        return f"{size} (too few seeds to say more)"
    standard_error = float(ours.std()) / math.sqrt(len(ours))
    z = abs(difference) / math.hypot(standard_error, error)
    verdict = "not told apart" if z < _CLOSE else "**apart**"
    return f"{size} ({z:.1f} standard errors: {verdict})"


def _with_error(mean: float, error: float, number: str = ".2f", sign: str = "") -> str:
    if math.isnan(mean):
        return ""
    start = signed(mean, number) if sign else f"{mean:{number}}"
    return start if math.isnan(error) else f"{start} ± {error:{number}}"


def _seeds(numbers: "pd.Series | list[int]") -> str:
    least, most = min(numbers), max(numbers)
    return seeds(most) if least == most else f"{least} to {most} seeds"
