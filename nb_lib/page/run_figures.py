"""Figures of many runs: means over their seeds with intervals, training curves with bands; tables in, a figure out.

Colors, dashes and markers are those of `figures`.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from nb_lib.page.figures import COLORS, add_band, add_joined_points, axes, bars, look
from nb_lib.page.intervals import summarize
from nb_lib.page.verdicts import seeds


def add_means(
    figure: Figure,
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    name: str,
    rank: int,
    color: str = "",
    scale: float = 1,
    level: float = 0.95,
) -> Figure:
    """Add the means of `y` over seeds against `x`, joined, with bars for their intervals; see `means`."""
    table = summarize(frame, x, y, level=level)
    name = f"{name} ({seeds(table['n'].min())})"
    mean = scale * table["mean"]
    half = scale * table["half"].fillna(0)
    return add_joined_points(figure, table[x], mean, half, name, rank=rank, color=color)


def means(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    series: str,
    symbol: str,
    titles: tuple[str, str],
    scale: float = 1,
    level: float = 0.95,
) -> Figure:
    """Mean of `y` over seeds against `x`, one line a value of `series`, bars for the interval of the mean.

    Parameters
    ----------
    frame : DataFrame
        As from `lab.store.frame`; `x`, `y` (times `scale`) and `series` (called `symbol`) are columns of it.
    level : float
        Of the interval: with two or three seeds, 0.68 is about a standard error, 0.95 is four to thirteen of them.
    """
    figure = axes(titles)
    add = partial(add_means, figure, x=x, y=y, scale=scale, level=level)
    for rank, (value, rows) in enumerate(frame.groupby(series)):
        add(rows, name=f"{symbol} = {value:g}", rank=rank, color=method(rows.iloc[0]))
    values = sorted(frame[x].unique())
    if values and 0 < 10 * values[0] <= values[-1]:
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{value:g}" for value in values])
    return _noted(figure)


def routes(frame: pd.DataFrame, *, x: str, titles: tuple[str, str], level: float = 0.95) -> Figure:
    """Test accuracy against `x` on two ways to more noise (NE Fig. 3): smaller B, and larger α at the largest B.

    Points are means over seeds, labeled with B or α, with intervals of that level along both axes.
    """
    figure = axes(titles)
    largest = frame["batch_size"].max()
    if not frame.empty:
        _add_route(figure, frame[frame["alpha"] == 1], x, "batch_size", "smaller B at α = 1", level)
        _add_route(figure, frame[frame["batch_size"] == largest], x, "alpha", f"larger α at B = {largest:g}", level)
    _spread(figure, frame, x)
    return _noted(figure)


def cells(
    frame: pd.DataFrame, *, x: str, y: str, titles: tuple[str, str], scale: float = 1, joined: bool = True
) -> Figure:
    """Mean of `y` against that of `x` for each batch size and α: a marker an α, the color of SGD or NE.

    Points are means over seeds, with intervals along both axes; those of one α may be joined, in the order of `x`.
    """
    figure = axes(titles)
    for rank, alpha in enumerate(sorted(frame["alpha"].unique())):
        rows = frame[frame["alpha"] == alpha]
        color = "NE" if alpha > 1 else "SGD"
        points = _both_ways(rows, "batch_size", x, y, scale).sort_values("x")
        name = f"NE, α = {alpha:g}" if alpha > 1 else "plain SGD"
        _add_both_ways(figure, points, f"{name} ({seeds(points['n'].min())})", color, rank)
    figure.update_traces(mode="lines+markers" if joined else "markers", line={"width": 1})
    _spread(figure, frame, x)
    return _noted(figure)


def bands(
    curves: pd.DataFrame,
    *,
    x: str,
    y: str,
    series: str,
    symbol: str,
    titles: tuple[str, str],
    log_y: bool = False,
) -> Figure:
    """Curves of `lab.store.curves`: mean over the seeds still training, and a band from the lowest to the highest."""
    figure = axes(titles)
    for rank, (value, rows) in enumerate(curves.groupby(series)):
        _add_mean_and_band(figure, rows, x, y, f"{symbol} = {value:g}", rank)
    if log_y:
        figure.update_yaxes(type="log", dtick=1)  # whole decades
    return _noted(figure)


def profiles(curves: pd.DataFrame, *, y: str, titles: tuple[str, str], scale: float = 1) -> Figure:
    """Curves of `nb_lib.profiles.table`, all of one kind: mean over seeds, and a band from the lowest to the highest.

    A line is of one method, batch size and set of data; what is the same for all lines is not in its name.  `scale`
    multiplies `y`, which is "loss" or "accuracy".
    """
    figure = axes(titles)
    scaled = curves.assign(**{y: scale * curves[y]})
    for rank, (name, rows) in enumerate(named_lines(scaled)):
        _add_mean_and_band(figure, rows, "x", y, name, rank)
    return figure


def named_lines(curves: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each method, batch size and set of data, and a name of these where they differ."""
    several_batches = curves["batch_size"].nunique() > 1
    several_data = curves["data"].nunique() > 1
    named = with_method(curves)
    ordered = named.sort_values(["batch_size", "data"], ascending=[True, False], kind="stable")  # "train" first
    for (name, B, data), rows in ordered.groupby(["method", "batch_size", "data"], sort=False):
        words = [str(name)]
        if several_batches:
            words.append(f"B = {B}")
        if several_data:
            words.append(str(data))
        yield ", ".join(words), rows


def with_method(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a column `method` more."""
    methods = [method(row) for _, row in rows.iterrows()]
    return rows.assign(method=methods)


def method(row: "pd.Series[Any]") -> str:
    """Name the method of one row of `lab.store.frame`: a key of `COLORS` (NE wins where both are on)."""
    if row["alpha"] > 1:
        return "NE"
    if row["a"] > 0:
        return "AdaSmoothOut" if row["adaptive"] else "SmoothOut"
    return "SGD"


def _spread(figure: Figure, frame: pd.DataFrame, x: str) -> None:
    """Make the x-axis logarithmic if the means of the cells differ much; plotly would abbreviate its numbers."""
    places = frame.groupby(["batch_size", "alpha"])[x].mean().to_numpy(float)
    if not len(places) or not 0 < 5 * places.min() < places.max():
        return
    lowest, highest = np.floor(np.log10([places.min(), places.max()])).astype(int)
    ticks = [first * 10.0**power for power in range(lowest, highest + 2) for first in (1, 2, 5)]
    words = [f"{tick:g}" if tick < 1000 else f"{tick / 1000:g}k" for tick in ticks]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=words)


def _noted(figure: Figure) -> Figure:
    """Say in a figure without lines that there are none."""
    if not figure.data:
        middle = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
        figure.add_annotation(text="no runs to show yet", showarrow=False, **middle)
    return figure


def _add_mean_and_band(figure: Figure, rows: pd.DataFrame, x: str, y: str, name: str, rank: int) -> None:
    table = rows.groupby(x)[y].agg(["mean", "min", "max"]).reset_index()
    color = method(rows.iloc[0])
    line = look(COLORS[color], rank)["line"]
    name = f"{name} ({seeds(rows['seed'].nunique())})"
    add_band(figure, table[x], table["min"], table["max"], color)
    figure.add_scatter(x=table[x], y=table["mean"], name=name, mode="lines", line=line)


def _add_route(figure: Figure, frame: pd.DataFrame, x: str, by: str, name: str, level: float) -> None:
    points = _both_ways(frame, by, x, "test_accuracy", 100, level)
    if by == "batch_size":
        color, rank, symbol, position = "SGD", 0, "B", "bottom center"
    else:
        color, rank, symbol, position = "NE", 1, "α", "top center"
    words = [f"{symbol} = {value:g}" for value in points[by]]
    _add_both_ways(figure, points, f"{name} ({seeds(points['n'].min())})", color, rank)
    figure.data[-1].update(mode="lines+markers+text", text=words, textposition=position, cliponaxis=False)


def _both_ways(frame: pd.DataFrame, by: str, x: str, y: str, scale: float, level: float = 0.95) -> pd.DataFrame:
    """Means and intervals of `x` and of `y` (times `scale`) in each group."""
    across = summarize(frame, by, x, level=level)
    up = summarize(frame, by, y, level=level)
    columns = {by: up[by], "x": across["mean"], "x_half": across["half"], "n": up["n"]}
    return pd.DataFrame({**columns, "y": scale * up["mean"], "y_half": scale * up["half"]}).fillna(0)


def _add_both_ways(figure: Figure, points: pd.DataFrame, name: str, color: str, rank: int) -> None:
    error_x = bars(points["x_half"], thickness=1, width=4)
    error_y = bars(points["y_half"], thickness=1, width=4)
    style = look(COLORS[color], rank)
    figure.add_scatter(x=points["x"], y=points["y"], error_x=error_x, error_y=error_y, name=name, **style)
