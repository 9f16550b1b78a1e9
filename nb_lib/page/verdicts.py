"""Sentences about stochastic results, made from the numbers: which words depends on the interval and on the seeds.

Prose is written before the numbers are known, and they come out differently on another machine.  So what a page says of
a result is said here, in one of four ways (`judge`), or counted (`counted`), or put in order (`ranked`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pandas import DataFrame
from scipy import stats

from nb_lib.errors import InputError
from nb_lib.page.intervals import LEVEL, paired

ENOUGH = 3  # seeds: of two, the interval of the difference is thirteen standard errors wide to either side
RESOLVED, OPPOSITE, OPEN, TOO_FEW = "resolved", "opposite", "not resolved", "too few seeds"
NOTHING = "There is nothing to compare with yet."


def say(*sentences: str, bullets: bool = False) -> None:
    """Display sentences as prose of the page: a paragraph, or one list item each."""
    from IPython.display import Markdown, display  # which machines without Jupyter, that print comparisons, lack

    text = "\n".join(f"- {sentence}" for sentence in sentences) if bullets else " ".join(sentences)
    display(Markdown(text))


def judge(difference: float, half: float, n: float, *, expected: int = 0) -> str:
    """Say what a mean difference of `n` pairs, with an interval `half` to either side, shows.

    `RESOLVED` if the interval excludes zero, `OPPOSITE` if it does on the other side than `expected` (the sign that is
    claimed; 0: none is), `OPEN` if it does not, and `TOO_FEW` of fewer than `ENOUGH` pairs.

    >>> [judge(-0.3, 0.1, 4, expected=sign) for sign in (-1, 0, 1)], judge(-0.3, 0.4, 4), judge(-0.3, 0.1, 2)
    (['resolved', 'resolved', 'opposite'], 'not resolved', 'too few seeds')
    """
    if n < ENOUGH or np.isnan(half):
        return TOO_FEW
    if abs(difference) <= half:
        return OPEN
    return OPPOSITE if expected * difference < 0 else RESOLVED


def compared(
    frame: DataFrame,
    by: str,
    value: str,
    *,
    baseline: float | str,
    what: str,
    group: str = "{}",
    unit: str = "",
    scale: float = 1,
    number: str = ".2g",
    expected: int = 0,
) -> str:
    """Say of which groups `value` differs from that of the group `baseline`, paired by seed (see `intervals.paired`).

    Parameters
    ----------
    what, group, unit : str
        `value` in words, such as "test loss"; a group, with braces for its value; the unit of `scale` · `value`.
    number : str
        The format of the differences, without their sign.
    expected : int
        The sign of the difference that is claimed, if any: the other one is said to be against it.

    Examples
    --------
    >>> rows = DataFrame({"seed": [0, 1, 2] * 2, "a": [0] * 3 + [1] * 3, "loss": [1.0, 2, 3, 0.5, 1.6, 2.4]})
    >>> compared(rows, "a", "loss", baseline=0, what="loss", group="a = {}", unit="nats")
    'Loss, compared with a = 0 seed by seed: lower with a = 1 (−0.5 ± 0.25 nats; 3 of 3 seeds).'
    """
    groups = set(frame[by])
    if baseline not in groups or len(groups) == 1:
        return NOTHING
    found: dict[str, list[str]] = {}
    for row in paired(frame, by, value, baseline=baseline).to_dict("records"):
        direction = "lower" if row["difference"] < 0 else "higher"
        is_same = row["difference"] == row["half"] == 0
        start = (
            "the same with"
            if is_same
            else {
                RESOLVED: f"{direction} with",
                OPPOSITE: f"**{direction}**, against the claim, with",
                OPEN: "not resolved with",
                TOO_FEW: "too few seeds with",
            }[judge(row["difference"], row["half"], row["n"], expected=expected)]
        )
        size = _size(row, scale, number, unit)
        found.setdefault(start, []).append(f"{group.format(row[by])} ({size})")
    parts = "; ".join(f"{start} {listed(names)}" for start, names in found.items())
    return f"{what[0].upper()}{what[1:]}, compared with {group.format(baseline)} seed by seed: {parts}."


def _size(row: Mapping[Any, Any], scale: float, number: str, unit: str) -> str:
    """A difference with its interval, and in how many seeds it has its sign."""
    n = row["n"]
    if n == 0:
        return "no seed in common"
    size = signed(scale * row["difference"], number)
    if n > 1:
        size = f"{size} ± {scale * row['half']:{number}}"
    agreeing = f"{row['agree']} of {seeds(n)}" if n > 1 else seeds(n)
    return f"{size} {unit}".rstrip() + f"; {agreeing}"


def signed(value: float, number: str = ".2g") -> str:
    """A number with its sign, which is not a hyphen.

    >>> signed(-0.016), signed(0.5)
    ('−0.016', '+0.5')
    """
    return f"{value:+{number}}".replace("-", "−")


def listed(names: Iterable[str], nothing: str = "none") -> str:
    """Names as in a sentence.

    >>> listed(["NE", "SmoothOut", "AdaSmoothOut"]), listed([])
    ('NE, SmoothOut and AdaSmoothOut', 'none')
    """
    *first, last = list(names) or [nothing]
    return f"{', '.join(first)} and {last}" if first else last


def seeds(n: int) -> str:
    """Say how many."""
    return "1 seed" if n == 1 else f"{n} seeds"


def counted(k: int, n: int, things: str) -> str:
    """How many of how many.

    >>> counted(10, 10, "pictures"), counted(9, 10, "pictures"), counted(0, 10, "pictures"), counted(2, 2, "pictures")
    ('all 10 pictures', '9 of 10 pictures', 'none of 10 pictures', 'both pictures')
    """
    if k == n > 1:
        return f"both {things}" if n == 2 else f"all {n} {things}"
    return f"{k or 'none'} of {n} {things}"


def ranked(values: Mapping[str, float], number: str = ".2g") -> str:
    """Name all from the lowest to the highest value.

    >>> ranked({"SGD": 0.29, "NE": 0.11})
    'NE 0.11, SGD 0.29'
    """
    return ", ".join(f"{name} {value:{number}}" for name, value in sorted(values.items(), key=lambda item: item[1]))


def seeds_needed(gain: float, std: float, *, power: float = 0.8, most: int = 10_000) -> int:
    """How many pairs show a gain, whose difference from pair to pair has the standard deviation `std`, with this power.

    The test is Student's, two-sided, at the level 1 − `intervals.LEVEL`; its power follows from the noncentral t
    distribution.  At most `most` are returned.  `InputError` if `gain` is zero: no number shows that.

    >>> seeds_needed(1.0, 1.0)  # the textbooks' 10
    10
    """
    if gain == 0:
        raise InputError("no number of seeds shows a gain of zero: give the gain that is to be shown.")
    n = np.arange(2, most + 1)
    limit = stats.t.ppf((1 + LEVEL) / 2, n - 1)
    shift = np.sqrt(n) * abs(gain) / max(std, 1e-12)
    reached = stats.nct.sf(limit, n - 1, np.minimum(shift, 30)) >= power
    return int(n[reached][0]) if reached.any() else most
