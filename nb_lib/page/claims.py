"""What the papers claim, and what speaks for and against it here (``book/data/claims.json``).

A claim of theory says itself what has become of it, and which chapter asserts that.  A claim about trainings names
records, and what should differ between them by which sign: its verdict is made from them, whenever a page is.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from nb_lib import published
from nb_lib.compare import compare
from nb_lib.lab.recorded import by_variety
from nb_lib.lab.runs import Record
from nb_lib.lab.store import frame
from nb_lib.page.comparison import data_in_words, label, network_in_words
from nb_lib.page.intervals import paired
from nb_lib.page.methods import SETTING, by_setting
from nb_lib.page.profiled import rises
from nb_lib.page.verdicts import OPEN, OPPOSITE, RESOLVED, TOO_FEW, judge, listed, seeds, signed
from nb_lib.profiles import Profile, table
from nb_lib.protocols import SCALES

DERIVED, CORRECTED, ELSEWHERE = "derived or checked", "corrected", "tested in its chapter only"
CONFIRMED, PARTLY, DISAGREES = "confirmed", "confirmed where run", "disagrees"
CANNOT_TELL, NOT_RUN = "cannot tell", "not run"
VERDICTS = (DERIVED, CORRECTED, ELSEWHERE, CONFIRMED, PARTLY, DISAGREES, CANNOT_TELL, NOT_RUN)

Claim = dict[str, Any]
Case = dict[str, Any]  # one comparison: of what, at which scale, difference, half, n, unit, kind (see `verdicts.judge`)
_LARGEST_FIRST = SCALES[::-1]
_AT = {"full": "full scale", "small": "the small scale", "tiny": "the tiny scale"}
_SYMBOLS = {"alpha": "α", "batch_size": "B"}
_UNITS = {"updates": "updates", "gap": "points", "gain": "points", "log2 of the best B": "in log₂ B"}


class Judged(NamedTuple):
    """A verdict, one of `VERDICTS`, and what it rests on."""

    verdict: str
    says: str
    scales: tuple[str, ...] = ()  # that it rests on, the largest first
    comparisons: int = 0

    def __str__(self) -> str:
        at = " and ".join(_AT[scale] for scale in self.scales if scale != "full")
        if not at:
            return self.verdict
        return f"{self.verdict}, in part at {at}" if "full" in self.scales else f"{self.verdict} at {at}"


class Evidence:
    """Records of trainings and profiles of networks, to judge claims by."""

    def __init__(self, records: Iterable[Record], profiles: Iterable[Profile] = ()) -> None:
        held: dict[str, list[Any]] = {"grids": list(records), "profiles": list(profiles)}
        self.varieties = cache(lambda kind, name, scale: by_variety(held[kind], name, scale))
        self.compared = cache(lambda name: compare(name, held["grids"]))


def load(path: str | Path) -> list[Claim]:
    """The claims of a file, in its order: see `judged` for what they hold."""
    claims: list[Claim] = json.loads(Path(path).read_text(encoding="utf-8"))
    return claims


def judged(claim: Claim, evidence: Evidence) -> Judged:
    """Judge a claim.

    It has ``paper``, ``where``, ``claim``, ``chapters``, and one of

    - ``verdict`` and ``says``: of theory, or of what a chapter trains itself;
    - ``gains``: a published table, of which ``only`` selects rows by the fields of `published.table`;
    - ``grids``: experiments, in whose records ``value`` is compared ``by`` a field with that of the group ``other``;
      ``pairs`` are several groups with others, ``only`` selects runs by their fields;
    - ``profiles``: experiments, in whose profiles `profiled.rises` of ``curve`` to ``at`` is so compared;

    with ``sign``, that of the difference which is claimed.  It is confirmed if every comparison is resolved with that
    sign, each at the largest scale that has enough seeds ("where run" if others are missing, or of too few seeds); one
    that is resolved the other way contradicts it.

    >>> judged({"verdict": "corrected", "says": "A sign."}, Evidence([])).verdict
    'corrected'
    """
    if "verdict" in claim:
        return Judged(claim["verdict"], claim["says"])
    groups = list(_gains(claim, evidence) if "gains" in claim else _experiments(claim, evidence))
    cases = sorted([case for group in groups for case in group], key=lambda case: _LARGEST_FIRST.index(case["scale"]))
    verdict = _verdict([case["kind"] for case in cases], everything=all(groups))
    scales = tuple(dict.fromkeys(case["scale"] for case in cases))
    return Judged(verdict, _in_words(cases), scales, len(cases))


def _verdict(kinds: list[str], *, everything: bool) -> str:
    """What comparisons show together; those of too few seeds neither confirm nor contradict."""
    enough = [kind for kind in kinds if kind != TOO_FEW]
    if not kinds:
        return NOT_RUN
    if OPPOSITE in enough:
        return DISAGREES
    if set(enough) == {RESOLVED}:
        return CONFIRMED if everything and enough == kinds else PARTLY
    return CANNOT_TELL


def _experiments(claim: Claim, evidence: Evidence) -> Iterator[list[Case]]:
    """The cases of each experiment of a claim."""
    kind = "profiles" if "profiles" in claim else "grids"
    contrasts = _of_profiles if kind == "profiles" else _of_records
    for name in claim[kind]:
        by_scale = []
        for scale in _LARGEST_FIRST:
            varieties = evidence.varieties(kind, name, scale)
            usual_first = sorted(varieties, key=lambda variety: (variety.cutting, -len(varieties[variety])))
            for variety in usual_first:
                by_scale.append(list(contrasts(claim, varieties[variety], scale)))
        yield _largest(by_scale)


def _largest(by_scale: Iterable[list[Case]]) -> list[Case]:
    """Of the cases at each scale, the largest first, those of the first that has enough seeds, or of the first."""
    found = [cases for cases in by_scale if cases]
    enough = [cases for cases in found if any(case["kind"] != TOO_FEW for case in cases)]
    return (enough or found or [[]])[0]


def _gains(claim: Claim, evidence: Evidence) -> Iterator[list[Case]]:
    """The case of each published row of a claim: the gain in accuracy, or the updates more."""
    value = "longer" if claim.get("value") == "updates" else "gain"
    both = evidence.compared(claim["gains"])
    printed = _only(published.table(claim["gains"]), claim)
    for number in printed.index[printed["baseline"] >= 0]:
        rows = both[(both["cell"] == number) & both[value].notna()]
        by_scale = []
        for scale in _LARGEST_FIRST:
            usual = rows[rows["scale"] == scale].sort_values(["cutting", "n"], ascending=[True, False])
            by_scale.append([_gain(claim, row, value) for row in usual.head(1).to_dict("records")])
        yield _largest(by_scale)


def _gain(claim: Claim, row: dict[Any, Any], value: str) -> Case:
    on = "" if row["ours_on"] == row["network"] else f" on {network_in_words(row['ours_on'])}"
    unit = "updates" if value == "longer" else "points"
    return _case(claim, f"{label(row)}{on}", row["scale"], row[value], row[f"{value}_half"], row["pairs"], unit)


def _of_records(claim: Claim, records: list[Record], scale: str) -> Iterator[Case]:
    """Compare a value by a field, in each setting that has both groups."""
    by, value = claim["by"], claim["value"]
    rows = _only(frame(records), claim)
    for setting, part in _settings(claim, rows):
        made = MADE[value](part) if value in MADE else part.dropna(subset=[value]) if value in part else part.head(0)
        percent = value.endswith("accuracy")
        unit = "points" if percent else _UNITS.get(value, "")
        network = network_in_words(rows["network"].iloc[0])
        for group, row in _contrasts(claim, made, value):
            name = f"{_SYMBOLS[by]} = {group:g}" if by in _SYMBOLS else group if by == "method" else ""
            of = ", ".join(filter(None, (network, setting, name)))
            factor = 100 if percent else 1
            yield _case(claim, of, scale, factor * row["difference"], factor * row["half"], row["n"], unit)


def _of_profiles(claim: Claim, profiles: list[Profile], scale: str) -> Iterator[Case]:
    found = rises(table(profiles), claim["curve"], claim["at"])
    run = profiles[0].run
    for data, rows in found.groupby("data", sort=False):
        of = f"{network_in_words(run.network)} on {data_in_words(run.dataset)}, {data} loss"
        for _, row in _contrasts(claim, rows, "rise"):
            yield _case(claim, of, scale, row["difference"], row["half"], row["n"], "nats")


def _contrasts(claim: Claim, rows: pd.DataFrame, value: str) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Each group that is to be compared, and its row of `intervals.paired`."""
    by = claim["by"]
    there: set[Any] = set(rows[by]) if len(rows) else set()
    for one, other in claim.get("pairs", [[None, claim.get("other")]]):
        if len(there) < 2:
            return
        baseline = min(there) if other == "smallest" else other
        if baseline in there:
            for row in paired(rows, by, value, baseline=baseline).to_dict("records"):
                if row["n"] and one in (None, row[by]):
                    yield row[by], row


def _only(rows: pd.DataFrame, claim: Claim) -> pd.DataFrame:
    """The rows with the fields of a claim; "largest" is the largest batch that there is."""
    for name, value in claim.get("only", {}).items():
        rows = rows[rows[name] == (rows[name].max() if value == "largest" else value)]
    return rows


def _settings(claim: Claim, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Runs that differ in what is compared alone, and their setting in words."""
    if not len(rows):
        return
    if claim["by"] == "method":
        for setting, part in by_setting(rows):
            yield setting, part.assign(method=part["method"].astype(str))
    elif claim["by"] == "batch_size" or claim["value"] in MADE:
        yield "", rows
    else:
        for (B, *_), part in rows.groupby(SETTING):
            yield f"B = {B}", part


def _case(claim: Claim, of: str, scale: str, difference: float, half: float, n: int, unit: str) -> Case:
    half = half if half > 1e-9 else np.nan  # runs that are all alike say nothing of others
    kind = judge(difference, half, n, expected=claim["sign"])
    return {"of": of, "scale": scale, "difference": difference, "half": half, "n": n, "unit": unit, "kind": kind}


def _gap(rows: pd.DataFrame) -> pd.DataFrame:
    """By how many points the smallest batch tests better than the largest, for each seed and α."""
    if rows["batch_size"].nunique() < 2:
        return rows.head(0)
    wide = rows.pivot_table(index=["seed", "alpha"], columns="batch_size", values="test_accuracy")
    gap = 100 * (wide[wide.columns.min()] - wide[wide.columns.max()])
    return gap.rename("gap").dropna().reset_index()


def _best_size(rows: pd.DataFrame) -> pd.DataFrame:
    """The logarithm (to base 2) of the best batch size for each seed and α."""
    if rows["batch_size"].nunique() < 2:
        return rows.head(0)
    best = rows.loc[rows.groupby(["seed", "alpha"])["test_accuracy"].idxmax()]
    return best.assign(**{"log2 of the best B": np.log2(best["batch_size"])})


def _gain_by_size(rows: pd.DataFrame) -> pd.DataFrame:
    """What SmoothOut gains in points, for each seed and batch size."""
    noisy = rows.assign(noisy=rows["a"] > 0)
    if noisy["noisy"].nunique() < 2:
        return rows.head(0)
    wide = noisy.pivot_table(index=["seed", "batch_size"], columns="noisy", values="best_test_accuracy")
    gain = 100 * (wide[True] - wide[False])
    return gain.rename("gain").dropna().reset_index()


#: Values that are no column of `store.frame`: they are made of several runs of one seed.
MADE: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "gap": _gap,
    "log2 of the best B": _best_size,
    "gain": _gain_by_size,
}


def _in_words(cases: Iterable[Case]) -> str:
    """Every comparison with its interval, by what it shows and at which scale."""
    start = {RESOLVED: "resolved", OPPOSITE: "**the other way**", OPEN: "not resolved", TOO_FEW: "too few seeds"}
    found: dict[str, list[str]] = {}
    for case in cases:
        spread = "" if np.isnan(case["half"]) else f" ± {_size(case['half'])}"
        size = f"{signed(case['difference'], _form(case['difference']))}{spread} {case['unit']}".rstrip()
        words = f"{case['of']} ({size}; {seeds(case['n'])})"
        found.setdefault(f"{start[case['kind']]} at {_AT[case['scale']]}", []).append(words)
    said = "; ".join(f"{key}: {listed(names)}" for key, names in found.items())
    return f"{said}." if said else "no runs of it yet."


def _form(value: float) -> str:
    return ",.0f" if abs(value) >= 100 else ".2g"


def _size(value: float) -> str:
    return f"{value:{_form(value)}}"


def counts(verdicts: Iterable[Judged]) -> str:
    """Say how many claims have which verdict, and how many of those of records rest on full scale alone.

    >>> counts([Judged("confirmed", "", ("full",)), Judged("corrected", ""), Judged("confirmed", "", ("small",))])
    'Of 3 claims: 1 corrected; 2 confirmed (1 of them at full scale).'
    """
    given = list(verdicts)
    parts = []
    for each in VERDICTS:
        alike = [one.scales for one in given if one.verdict == each]
        if alike:
            full = f" ({alike.count(('full',)) or 'none'} of them at full scale)" if each in _ON_RECORDS else ""
            parts.append(f"{len(alike)} {_OF_SEVERAL.get(each, each)}{full}")
    return f"Of {len(given)} claims: {'; '.join(parts)}."


_ON_RECORDS = (CONFIRMED, PARTLY, DISAGREES, CANNOT_TELL)
_OF_SEVERAL = {
    DISAGREES: "that our runs contradict",
    CANNOT_TELL: "of which our runs cannot tell",
}


def linked(chapter: str, folder: str | Path = ".") -> str:
    """Link to a chapter, whose notebook is in `folder`, by its title."""
    notebook = json.loads(Path(folder, f"{chapter}.ipynb").read_text(encoding="utf-8"))
    heading = "".join(notebook["cells"][0]["source"]).partition("\n")[0]
    return f'<a href="{chapter}.html">{heading.removeprefix("# ")}</a>'
