"""A comparison with a published table as a picture: a row for each method, its gain as published and ours."""

import math

import pandas as pd
from plotly.graph_objects import Figure

from nb_lib.page.comparison import Row, cell_of, conclusions, network_in_words, notes, origin, readable, two_lines
from nb_lib.page.explore import INK, show
from nb_lib.page.figures import COLORS, axes, bars
from nb_lib.page.run_figures import method
from nb_lib.page.tables import show_table
from nb_lib.page.verdicts import say

_SYMBOLS = {"full": "circle", "small": "triangle-up-open", "tiny": "square-open"}


def forest(comparison: pd.DataFrame) -> Figure:
    """Draw the gains of a published table, in points, and ours on one axis, with the intervals of 95 % of `compare`.

    A row is a method of the table.  Published gains without a spread have no bars, nor have ours of one seed; bars that
    leave the picture are cut.  To the right stands of how many seeds (for ours: pairs) a point is.
    """
    figure = axes(("gain, points", ""))
    entries = _entries(comparison)
    if not entries:
        return figure
    named: set[str] = set()
    for (name, has_bars), points in _grouped(entries).items():
        figure.add_scatter(
            x=[point["x"] for point in points],
            y=[point["y"] for point in points],
            error_x=bars([point["half"] for point in points], width=4) if has_bars else None,
            customdata=[point["says"] for point in points],
            hovertemplate="%{customdata}<extra></extra>",
            name=name,
            legendgroup=name,
            showlegend=name not in named,
            mode="markers",
            marker={"size": 10, **points[0]["look"]},
        )
        named.add(name)
    for point in entries:
        figure.add_annotation(text=point["n"], x=1.02, y=point["y"], **_BESIDE)
    labels = {point["row"]: point["label"] for point in entries}
    places = {row: [point["y"] for point in entries if point["row"] == row] for row in labels}
    middles = [sum(heights) / len(heights) for heights in places.values()]
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    ends = entries[-1]["y"] - 0.8, entries[0]["y"] + 0.8
    figure.update_yaxes(tickvals=middles, ticktext=list(labels.values()), range=ends, showgrid=False)
    figure.update_xaxes(range=_range(entries), domain=(0, 0.8))
    return figure


_BESIDE = {"xref": "paper", "xanchor": "right", "showarrow": False, "font": {"size": 12}}


def height(comparison: pd.DataFrame) -> int:
    """The pixels that `forest` takes."""
    entries = _entries(comparison)
    return 150 + 26 * len(entries) + 14 * len({point["row"] for point in entries})


def _entries(comparison: pd.DataFrame) -> list[Row]:
    """The points of the picture from its top down."""
    points = []
    y = 0.0
    gains = comparison[comparison["published_gain"].notna()]
    for cell, rows in gains.groupby("cell", sort=False):
        ours = [row for row in rows.to_dict("records") if not math.isnan(row["gain"])]
        first = rows.iloc[0].to_dict()
        label = two_lines(first)
        of_row = [_published(first), *map(_ours, ours)]
        for point in of_row:
            points.append(point | {"row": cell, "label": label, "y": y})
            y -= 1
        y -= 0.6
    return points


def _published(row: Row) -> Row:
    half = row["published_half"]
    known = not math.isnan(half)
    name = "published" if known else "published, no spread"
    n = "n = 10" if row["table"].startswith("ne") else "n = 1"
    says = f"{name}: {row['published_gain']:+.2f}" + (f" ± {half:.2f}" if known else "")
    if known and not row["table"].startswith("ne"):
        n = "n = ?"
    look = {"symbol": "diamond" if known else "diamond-open", "color": INK}
    return {"x": row["published_gain"], "half": half, "name": name, "look": look, "n": n, "says": says}


def _ours(row: Row) -> Row:
    kind = method(pd.Series(cell_of(row)))
    on = "" if row["ours_on"] == row["network"] else f" on {network_in_words(row['ours_on'])}"
    name = f"{kind}, ours, {row['scale']}{on}"
    look = {"symbol": _SYMBOLS[row["scale"]], "color": COLORS[kind]}
    says = f"{name}: {row['gain']:+.2f} ± {row['gain_half']:.2f}; {origin(row)}"
    return {
        "x": row["gain"],
        "half": row["gain_half"],
        "name": name,
        "look": look,
        "n": f"n = {row['pairs']}",
        "says": says,
    }


def _grouped(entries: list[Row]) -> dict[tuple[str, bool], list[Row]]:
    """The points of each name, those with an interval and those without."""
    groups: dict[tuple[str, bool], list[Row]] = {}
    for point in entries:
        key = point["name"], not math.isnan(point["half"])
        groups.setdefault(key, []).append(point)
    return groups


def _range(entries: list[Row]) -> tuple[float, float]:
    """Of the axis: all points and zero, and of their bars what makes the picture three times as wide at most."""
    points = [0.0, *(point["x"] for point in entries)]
    room = max(points) - min(points)
    halves = [0.0 if math.isnan(point["half"]) else point["half"] for point in entries]
    low = min(0.0, *(point["x"] - half for point, half in zip(entries, halves, strict=True)))
    high = max(0.0, *(point["x"] + half for point, half in zip(entries, halves, strict=True)))
    low, high = max(low, min(points) - room), min(high, max(points) + room)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def show_comparison(comparison: pd.DataFrame, number: int, of: str) -> None:
    """Display a comparison with the table `of` a paper: as figure `number` of the page, in full, and in sentences."""
    caption = (
        f"{of}: what each method gains in test accuracy over its baseline, as published (diamonds; open ones are "
        "single numbers, printed without a spread) and in our runs, with intervals of 95 %. Ours are paired by seed, "
        "and widened for the number of methods with one baseline; n counts seeds, of ours the pairs. Filled circles "
        "are of the full scale, open marks of a smaller one. Bars that leave the picture are cut."
    )
    if number > 1:
        caption = (
            f"{of}: gains in test accuracy over the baseline, as published and in our runs; marks, intervals and n "
            "are those of Figure 1."
        )
    if not _entries(comparison):
        caption = f"{of}: no gains to draw."
    alt = "A row for each method, with a mark for the published gain and one for each of ours, about a line at zero."
    show(forest(comparison), number, caption=caption, alt=alt, height=height(comparison))
    show_table(readable(comparison), f"{of}: accuracies in percent, gains in points, mean ± standard error")
    remarks = [each for each in (*conclusions(comparison), notes(comparison)) if each]
    say(*remarks, bullets=True)
