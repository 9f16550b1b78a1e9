"""A comparison with a published table in words and colors (see `nb_lib.compare`)."""

import math
from typing import Any

import pandas as pd

_CLOSE = 2.0  # standard errors that still count as agreement
_BLUE, _ORANGE = "rgba(0, 114, 178, 0.18)", "rgba(230, 159, 0, 0.28)"
_COLORS = {"agree": _BLUE, "ours larger": _ORANGE, "ours smaller": _ORANGE}

Row = dict[Any, Any]  # of `compare`


def readable(comparison: pd.DataFrame) -> pd.DataFrame:
    """The table of `compare` in words: accuracies in percent and gains in points, each ± its standard error.

    ``apart`` has a verdict only where both gains have a standard error, and says that they agree only if these errors
    could tell the published gain from none.  ``of`` says what our number is of, or the command that runs it, or what is
    lacking.

    >>> from nb_lib.compare import compare
    >>> readable(compare("ne-table2", [])).loc[1, "gain published"]
    '+0.22 ± 0.07'
    """
    return pd.DataFrame([_in_words(row) for row in comparison.to_dict("records")])


def styled(comparison: pd.DataFrame) -> "pd.io.formats.style.Styler":
    """`readable`, colored by how far the gains are apart: blue where they agree, orange where they do not."""
    words = readable(comparison)
    numbers = [name for name in words if name not in ("of", "method")]
    style = words.style.map(_color, subset=["apart"])
    style = style.hide(axis="index").set_table_attributes('class="dataframe"')
    style = style.set_properties(subset=numbers, **{"white-space": "nowrap"})
    style = style.set_properties(subset=["method"], **{"min-width": "7em", "text-align": "left"})
    return style.set_properties(subset=["of"], **{"min-width": "26em", "text-align": "left"})


def _color(apart: Any) -> str:
    verdict = apart.partition(", ")[2]
    return f"background-color: {_COLORS[verdict]}" if verdict in _COLORS else ""


def _in_words(row: Row) -> dict[str, str]:
    if row["n"] > 0:
        ours, of = _number(row["accuracy"], row["se"]), _origin(row)
    else:
        of = row["missing"]
        ours = "not run yet" if of.startswith("python") else "cannot be run"
    return {
        "network": row["network"],
        "method": row["method"],
        "published": _number(row["published"], row["published_se"]),
        "scale": row["scale"],
        "ours": ours,
        "gain published": _number(row["published_gain"], row["published_gain_se"], "+"),
        "gain ours": _number(row["gain"], row["gain_se"], "+"),
        "apart": _apart(row),
        "of": of,
    }


def _number(value: float, se: float, sign: str = "") -> str:
    if math.isnan(value):
        return ""
    spread = "" if math.isnan(se) else f" ± {se:.2f}"
    return f"{value:{sign}.2f}{spread}"


def _origin(row: Row) -> str:
    """What a number of ours is of."""
    alpha = f", α = {row['alpha']:g}" if row["alpha"] > 1 else ""
    cell = f"{row['ours_on']}, B = {row['B']:g}{alpha}"
    seeds = "1 seed" if row["n"] == 1 else f"{row['n']} seeds"
    precision = "" if row["precision"] == "float32" else row["precision"]
    words = [f"{row['scale']}: {cell}", seeds, row["dataset"], row["device"], precision, row["cutting"]]
    return "; ".join(filter(None, words))


def _apart(row: Row) -> str:
    """How far the gains are apart, and the verdict on it."""
    if math.isnan(row["gain"]):
        return ""
    if math.isnan(row["published_gain_se"]):
        return "no published spread"
    if math.isnan(row["gain_se"]):
        return "no spread of ours"
    z = row["z"]
    spread = math.hypot(row["gain_se"], row["published_gain_se"])
    if abs(z) >= _CLOSE:
        verdict = "ours larger" if z > 0 else "ours smaller"
    elif abs(row["published_gain"]) >= _CLOSE * spread:
        verdict = "agree"
    else:
        verdict = "cannot tell"
    return f"{z:+.1f} s.e., {verdict}"
