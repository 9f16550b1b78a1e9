"""What the runs of SmoothOut's Table I show, in sentences and tables made from them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from nb_lib.page.intervals import paired, with_error
from nb_lib.page.tables import show_table
from nb_lib.page.verdicts import NOTHING, OPEN, OPPOSITE, RESOLVED, TOO_FEW, compared, judge, listed, seeds, signed

#: The measures of sharpness of a record that was trained with them, in words.
MEASURES = {
    "slope": "the slope s",
    "sharpness": "the box φ",
    "sharpness_test": "the box of the test loss",
    "hessian_trace": "the trace",
    "top_eigenvalue": "the largest eigenvalue",
}
_ACCURACIES = {"best_test_accuracy": "best test accuracy", "test_accuracy": "final test accuracy"}
_GAIN = {
    RESOLVED: "gains in",
    OPPOSITE: "**loses**, against the claim, in",
    OPEN: "has no resolved gain or loss in",
    TOO_FEW: "has too few seeds for a verdict on",
}


def show_table_1(results: pd.DataFrame) -> None:
    """Show the accuracies of one variety of Table I, as from `experiments.varieties`."""
    cells = results.groupby(["batch_size", "a"])
    columns = {
        "best, %": with_error(cells["best_test_accuracy"], scale=100),
        "final, %": with_error(cells["test_accuracy"], scale=100),
        "seeds": cells["seed"].nunique(),
    }
    table = pd.DataFrame(columns).rename_axis(["B", "a"])
    show_table(table, "Test accuracy, best of a training and final, mean ± standard error")


def show_measures(results: pd.DataFrame, names: list[str]) -> None:
    """Show the measures of sharpness of the networks of Table I, a row a measure; those that are there."""
    parts = {}
    for (B, a), rows in results.groupby(["batch_size", "a"]):
        measured = rows.dropna(subset=names)
        mean, error = measured[names].mean(), measured[names].sem()
        cells = [_short(m) if np.isnan(e) else f"{_short(m)} ± {_short(e)}" for m, e in zip(mean, error, strict=True)]
        parts[f"B = {B:,}, a = {a:g} ({seeds(len(measured))})"] = cells
    table = pd.DataFrame(parts, index=pd.Index([MEASURES[name] for name in names], name="measure"))
    show_table(table, "Measures of sharpness, mean ± standard error")


def table_1_in_words(results: pd.DataFrame) -> list[str]:
    """Say what SmoothOut does to accuracy and sharpness with each batch, and the large batch without it.

    `results` are of one variety of Table I, as from `experiments.varieties`.
    """
    sizes = sorted(results["batch_size"].unique(), reverse=True)
    names = ["the large batch, ", "the small batch, "] if len(sizes) == 2 else [""] * len(sizes)
    sentences = []
    for B, name in zip(sizes, names, strict=True):
        rows = results[results["batch_size"] == B]
        words = f"**With {name}B = {B:,},** {_gains(rows)}"
        sentences.append(f"{words} {sharper(rows, 'a', 0.0, 'Its minima')}".rstrip())
    plain = results[results["a"] == 0]
    if len(sizes) == 2:
        sentences.append(" ".join(["**The large batch without SmoothOut.**", *_large_against_small(plain)]))
    return sentences


def sharper(rows: pd.DataFrame, by: str, baseline: float, whose: str, expected: int = -1) -> str:
    """Say how many times as sharp minima are as those with `by` = `baseline`, by each measure, paired by seed.

    Ratios are geometric means over seeds; their intervals are Student's of the logarithms, widened for the number of
    measures.  Of several groups the last is compared.
    """
    found: dict[str, list[str]] = {}
    for row in _log_ratios(rows, by, baseline).to_dict("records"):
        verdict = judge(row["difference"], row["half"], row["n"], expected=expected)
        direction = "sharper" if row["difference"] > 0 else "less sharp"
        start = {
            RESOLVED: f"{direction} by",
            OPPOSITE: f"**{direction}**, against the claim, by",
            OPEN: "not resolved by",
            TOO_FEW: "too few seeds for a verdict by",
        }[verdict]
        found.setdefault(start, []).append(f"{row['measure']} ({_ratio(row, verdict)})")
    if not found:
        return ""
    parts = "; ".join(f"{start} {listed(names)}" for start, names in found.items())
    return f"{whose}: {parts}."


def _gains(rows: pd.DataFrame) -> str:
    """What SmoothOut gains with one batch, in best and in final accuracy."""
    if set(rows["a"]) <= {0.0} or 0.0 not in set(rows["a"]):
        return NOTHING[0].lower() + NOTHING[1:]
    found: dict[str, list[str]] = {}
    for value, what in _ACCURACIES.items():
        row = paired(rows, "a", value, baseline=0.0).to_dict("records")[-1]
        start = _GAIN[judge(row["difference"], row["half"], row["n"], expected=1)]
        size = signed(100 * row["difference"], ".2f")
        spread = f" ± {100 * row['half']:.2f}" if row["n"] > 1 else ""
        found.setdefault(start, []).append(f"{what} ({size}{spread} points; {_seeds(row)})")
    parts = [f"{start} {listed(sizes)}" for start, sizes in found.items()]
    return f"SmoothOut {listed(parts)}."


def _ratio(row: Mapping[Any, Any], verdict: str) -> str:
    """How many times as sharp, or less sharp, with the interval and the seeds that have that sign."""
    times = "times" if verdict in (RESOLVED, OPPOSITE) else "times as sharp"
    sign = -1 if times == "times" and row["difference"] < 0 else 1
    middle = sign * row["difference"]
    interval = ""
    if verdict != TOO_FEW:
        interval = f", {_number(middle - row['half'])} to {_number(middle + row['half'])}"
    return f"{_number(middle)} {times}{interval}; {_seeds(row)}"


def _short(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"


def _number(logarithm: float) -> str:
    value = float(f"{np.exp(logarithm):.2g}")
    if 1e-3 < value < 1e5:
        return f"{value:,g}"
    return "under 0.001" if value < 1 else "over 100,000"


def _seeds(row: Mapping[Any, Any]) -> str:
    n = int(row["n"])
    if n < 2:
        return seeds(n) if n else "no seed in common"
    return f"{row['agree']:.0f} of {seeds(n)}"


def _large_against_small(plain: pd.DataFrame) -> list[str]:
    least = int(plain["batch_size"].min())
    sentences = [
        compared(
            plain,
            "batch_size",
            value,
            baseline=least,
            what=what,
            group="B = {:,}",
            unit="points",
            scale=100,
            number=".2f",
            expected=-1,
        )
        for value, what in _ACCURACIES.items()
    ]
    return [*dict.fromkeys(sentences), sharper(plain, "batch_size", least, "Its minima", expected=1)]


def _log_ratios(rows: pd.DataFrame, by: str, baseline: float) -> pd.DataFrame:
    """Of each measure that `rows` have, the logarithm of its ratio to the baseline: as from `intervals.paired`."""
    found: list[list[Any]] = []
    met = [""]  # the baseline, whose ratio to itself has the logarithm 0
    for name, words in MEASURES.items():
        ratios = _ratios(rows, name, by, baseline) if name in rows else {}
        met += [words] if ratios else []
        for seed, ratio in ratios.items():
            found += [[words, seed, math.log(ratio)], ["", seed, 0.0]]
    if not found:
        return pd.DataFrame(columns=["measure", "difference", "half", "n", "agree"])
    table = pd.DataFrame(found, columns=["measure", "seed", "log"])
    return paired(table.assign(measure=pd.Categorical(table["measure"], met)), "measure", "log", baseline="")


def _ratios(rows: pd.DataFrame, name: str, by: str, baseline: float) -> dict[Any, float]:
    """By seed the ratio of a measure in the last group to that in the baseline, where both are positive."""
    positive = rows[rows[name] > 0]
    by_seed = positive.pivot_table(index="seed", columns=by, values=name)
    if baseline not in by_seed or by_seed.shape[1] < 2:
        return {}
    others = [other for other in by_seed if other != baseline]
    return dict((by_seed[others[-1]] / by_seed[baseline]).dropna())
