"""Figures of both notebooks: a table in, a plotly figure out; nothing is computed here but means over seeds.

One color means one method through the whole book (the Okabe-Ito palette, safe for color-blind readers); line style
and marker say the rest a second time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import hex_to_rgb

from nb_lib.page.explore import FAINT  # which also registers the template "nb"
from nb_lib.page.intervals import summarize

COLORS = {"SGD": "#0072B2", "NE": "#D55E00", "SmoothOut": "#009E73", "AdaSmoothOut": "#CC79A7"}
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "triangle-up", "square", "diamond")


def method(row: "pd.Series[float]") -> str:
    """Name the method of one row of `runs.frame`: a key of `COLORS` (NE wins where both are on)."""
    if row["alpha"] > 1:
        return "NE"
    if row["a"] > 0:
        return "AdaSmoothOut" if row["adaptive"] else "SmoothOut"
    return "SGD"


def means(
    frame: pd.DataFrame, *, x: str, y: str, series: str, symbol: str, titles: tuple[str, str], scale: float = 1,
    level: float = 0.95,
) -> go.Figure:  # fmt: skip
    """Mean of `y` over seeds against `x`, one line a value of `series`, bars for the interval of the mean.

    Parameters
    ----------
    frame : DataFrame
        As from `runs.frame`.
    symbol : str
        What `series` is called in the legend.
    titles : (str, str)
        Of the axes, with units.
    scale : float
        Factor on `y`, e.g. 100 for percent.
    level : float
        Of the interval: with two or three seeds, 0.68 is about a standard error, 0.95 is four to thirteen of them.
    """
    figure = go.Figure(layout=_layout(titles))
    values = sorted(frame[x].unique())
    for rank, (value, rows) in enumerate(frame.groupby(series, sort=True)):
        table = summarize(rows, x, y, level=level)
        name = f"{symbol} = {value:g} ({seeds(table['n'].min())})"
        _add_means(figure, table[x], table, name, method(rows.iloc[0]), rank, scale)
    if min(values) > 0 and max(values) >= 10 * min(values):
        figure.update_xaxes(type="log", tickvals=values, ticktext=[f"{v:g}" for v in values])
    return figure


def routes(frame: pd.DataFrame, *, x: str, titles: tuple[str, str], level: float = 0.95) -> go.Figure:
    """Test accuracy against `x` on two ways to more noise (NE Fig. 3): smaller B, and larger α at the largest B.

    Points are means over seeds, labeled with B or α, with intervals of that level along both axes.
    """
    figure = go.Figure(layout=_layout(titles))
    largest = frame["batch_size"].max()
    ways = {
        "smaller B at α = 1": (frame[frame["alpha"] == 1], "batch_size", "SGD"),
        f"larger α at B = {largest:g}": (frame[frame["batch_size"] == largest], "alpha", "NE"),
    }
    for rank, (name, (rows, by, color)) in enumerate(ways.items()):
        across, up = (summarize(rows, by, value, level=level) for value in (x, "test_accuracy"))
        figure.add_scatter(
            x=across["mean"],
            y=100 * up["mean"],
            error_x={"array": across["half"].fillna(0), "thickness": 1, "width": 4},
            error_y={"array": 100 * up["half"].fillna(0), "thickness": 1, "width": 4},
            text=[f"{'B' if by == 'batch_size' else 'α'} = {value:g}" for value in across[by]],
            textposition="top center" if rank else "bottom center",
            mode="lines+markers+text",
            name=f"{name} ({seeds(up['n'].min())})",
            **_look(color, rank),
        )
    means = frame.groupby(["batch_size", "alpha"])[x].mean()
    if means.max() > 5 * means.min():
        figure.update_xaxes(type="log", dtick="D2")
    return figure


def strengths(frame: pd.DataFrame, *, y: str, title: str, scale: float = 1) -> go.Figure:
    """Mean of `y` over seeds against the noise strength a, one line for SmoothOut and one for AdaSmoothOut."""
    figure = go.Figure(layout=_layout(("noise strength a", title)))
    for rank, (adaptive, rows) in enumerate(frame.groupby("adaptive")):
        table = summarize(rows, "a", y)
        name = "AdaSmoothOut" if adaptive else "SmoothOut"
        _add_means(figure, table["a"], table, f"{name} ({seeds(table['n'].min())})", name, rank, scale)
    return figure


def sensitivity(widths: np.ndarray, found: dict[str, np.ndarray], *, titles: tuple[str, str]) -> go.Figure:
    """Loss under growing weight noise around networks trained in several ways.

    Parameters
    ----------
    widths : array [n]
    found : dict
        For each method (a key of `COLORS`) an array [2, n]: mean, and its standard error over perturbations.
    """
    figure = go.Figure(layout=_layout(titles))
    for rank, (name, (mean, error)) in enumerate(found.items()):
        table = pd.DataFrame({"mean": mean, "half": 1.96 * error})
        _add_means(figure, widths, table, f"trained with {name}", name, rank, 1)
    return figure


def bands(
    curves: pd.DataFrame,
    *,
    x: str,
    y: str,
    series: str,
    symbol: str,
    titles: tuple[str, str],
    log_y: bool = False,
) -> go.Figure:
    """Training curves: mean over the seeds still training, and a band from the lowest to the highest of them.

    Parameters
    ----------
    curves : DataFrame
        As from `runs.curves`.
    """
    figure = go.Figure(layout=_layout(titles))
    for rank, (value, rows) in enumerate(curves.groupby(series, sort=True)):
        table = rows.groupby(x)[y].agg(["mean", "min", "max"]).reset_index()
        look = _look(method(rows.iloc[0]), rank)
        red, green, blue = hex_to_rgb(look["line"]["color"])
        edge = pd.concat([table[x], table[x][::-1]]), pd.concat([table["max"], table["min"][::-1]])
        figure.add_scatter(
            x=edge[0],
            y=edge[1],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.18)",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        name = f"{symbol} = {value:g} ({seeds(rows['seed'].nunique())})"
        figure.add_scatter(x=table[x], y=table["mean"], name=name, mode="lines", line=look["line"])
    if log_y:
        figure.update_yaxes(type="log", dtick=1)  # whole decades
    return figure


def measured_and_law(
    x: Sequence[float], measured: np.ndarray, half: np.ndarray, law: tuple[np.ndarray, np.ndarray], *,
    names: tuple[str, str], titles: tuple[str, str], color: str,
) -> go.Figure:  # fmt: skip
    """Measured points with intervals over the curve that theory draws through them.

    Parameters
    ----------
    law : (x, y)
        The curve, finely spaced.
    names : (str, str)
        Of points and curve in the legend.
    color : str
        A key of `COLORS`.
    """
    figure = go.Figure(layout=_layout(titles))
    figure.add_scatter(
        x=law[0], y=law[1], name=names[1], mode="lines", line={"color": "#767676", "dash": "dash"}
    )
    marker = {"color": COLORS[color], "size": 10}
    bars = {"array": half, "thickness": 1.5, "width": 5}
    figure.add_scatter(x=x, y=measured, error_y=bars, name=names[0], mode="markers", marker=marker)
    return figure


def seeds(n: int) -> str:
    """Say how many."""
    return f"{n} seeds" if n != 1 else "1 seed"


def _add_means(
    figure: go.Figure,
    x: pd.Series | np.ndarray,
    table: pd.DataFrame,
    name: str,
    color: str,
    rank: int,
    scale: float,
) -> None:
    """Add one line of means with their intervals, as from `intervals.summarize`."""
    bars = {"array": scale * table["half"].fillna(0), "thickness": 1.5, "width": 5}
    y = scale * table["mean"]
    figure.add_scatter(x=x, y=y, error_y=bars, name=name, mode="lines+markers", **_look(color, rank))


def _look(name: str, rank: int) -> dict[str, dict[str, object]]:
    """Line and marker of a method's line number `rank`."""
    color, rank = COLORS[name], rank % len(DASHES)
    return {
        "line": {"color": color, "dash": DASHES[rank], "width": 2},
        "marker": {"color": color, "symbol": MARKERS[rank], "size": 8},
    }


def _layout(titles: tuple[str, str]) -> dict[str, object]:
    return {"template": "nb", "xaxis": {"title": titles[0]}, "yaxis": {"title": titles[1]}}


# -------------------------------------------------------------------------------------- pieces

Range = tuple[float, float]
_SYMBOLS = dict(zip(COLORS, MARKERS, strict=True))  # of clouds: a second sign of the method, beside its color
_GRAY = "rgba(118,118,118,{})"


def axes(titles: tuple[str, str], x_range: Range | None = None, y_range: Range | None = None) -> go.Figure:
    """An empty figure with named axes.

    Parameters
    ----------
    titles : (str, str)
        Of the axes, with units; at most about 45 characters, for phones.
    x_range, y_range : (float, float), optional
        Give them where a slider would otherwise make the axes jump.
    """
    x, y = (
        {"title": title, "range": limits} for title, limits in zip(titles, (x_range, y_range), strict=True)
    )
    return go.Figure(layout={"template": "nb", "xaxis": x, "yaxis": y})


def add_lines(
    figure: go.Figure, x: np.ndarray, curves: Mapping[str, np.ndarray], *, width: float = 2
) -> go.Figure:
    """Add a line for each named array over the same `x`."""
    used = Counter(trace.line.color for trace in figure.data if trace.mode == "lines")
    for name, y in curves.items():
        color = _color(name)
        look = {"color": color, "dash": DASHES[used[color] % len(DASHES)], "width": width}
        figure.add_scatter(x=x, y=y, name=name, mode="lines", line=look)
        used[color] += 1
    return figure


def add_points(
    figure: go.Figure, x: np.ndarray, y: np.ndarray, name: str, *, symbol: str = "circle", size: float = 10,
    error: np.ndarray | None = None,
) -> go.Figure:  # fmt: skip
    """Add points, with bars of half-length `error` if given."""
    bars = None if error is None else {"array": error, "thickness": 1.5, "width": 5}
    marker = {"color": _color(name), "symbol": symbol, "size": size}
    return figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker, error_y=bars)


def add_cloud(figure: go.Figure, points: np.ndarray, name: str, *, opacity: float = 0.5) -> go.Figure:
    """Add a cloud of many small points [n, 2]."""
    symbol = _SYMBOLS.get(_method(name), "circle")
    marker = {"color": _color(name), "symbol": symbol, "size": 5, "opacity": opacity}
    return figure.add_scatter(x=points[:, 0], y=points[:, 1], name=name, mode="markers", marker=marker)


def add_path(figure: go.Figure, path: np.ndarray, name: str) -> go.Figure:
    """Add the way of one walker [T, 2], with a larger point at its end."""
    color = _color(name)
    sizes = np.where(np.arange(len(path)) == len(path) - 1, 12, 3)
    marker = {"color": color, "size": sizes, "line": {"width": 0}}
    return figure.add_scatter(
        x=path[:, 0],
        y=path[:, 1],
        name=name,
        mode="lines+markers",
        line={"color": color, "width": 1},
        marker=marker,
    )


def add_contours(
    figure: go.Figure, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, levels: int = 16
) -> go.Figure:
    """Add a loss over a plane, z [len(y), len(x)]: the stronger the gray, the higher."""
    return figure.add_contour(
        x=x, y=y, z=z, ncontours=levels, showscale=False, hoverinfo="skip",
        colorscale=[[0, _GRAY.format(0)], [1, _GRAY.format(0.55)]], line={"color": FAINT, "width": 1},
    )  # fmt: skip


def add_histogram(figure: go.Figure, values: np.ndarray, edges: np.ndarray, name: str) -> go.Figure:
    """Add the fraction of `values` in each bin as steps; those outside the bins count, but are not drawn."""
    values = values[np.isfinite(values)]
    share = np.histogram(values, edges)[0] / max(len(values), 1)
    x, y = np.repeat(edges, 2)[1:-1], np.repeat(share, 2)
    line = {"color": _color(name), "width": 2}
    return figure.add_scatter(x=x, y=y, name=name, mode="lines", fill="tozeroy", line=line)


def add_bars(figure: go.Figure, labels: list[str], heights: np.ndarray, name: str) -> go.Figure:
    """Add a bar for each label."""
    return figure.add_bar(x=labels, y=heights, name=name, marker={"color": _color(name)})


def ellipse(
    covariance: np.ndarray, center: tuple[float, float] = (0, 0), deviations: float = 2
) -> np.ndarray:
    """Points [100, 2] of the curve that lies `deviations` standard deviations from the center of a cloud."""
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    values, vectors = np.linalg.eigh(covariance)
    return (
        np.asarray(center)[:, None] + deviations * vectors @ (np.sqrt(values.clip(0))[:, None] * circle)
    ).T


def _method(name: str) -> str:
    """The first word of a name."""
    return name.partition(" ")[0].rstrip(",")


def _color(name: str) -> str | None:
    """Of the method that a name begins with; None: the text's."""
    return COLORS.get(_method(name))
