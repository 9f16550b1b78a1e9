"""Pieces of the toy chapters' interactive figures: arrays in, plotly figure out.

What belongs to a method has its color, chosen by the first word of its name ("NE, α = 2"); everything else has the
color of the page's text. Lines of one color differ in their dashes, points in their symbols.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from nb_lib.explore import FAINT
from nb_lib.figures import COLORS, DASHES, MARKERS

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
    x, y = ({"title": title, "range": limits} for title, limits in zip(titles, (x_range, y_range), strict=True))
    return go.Figure(layout={"template": "nb", "xaxis": x, "yaxis": y})


def add_lines(figure: go.Figure, x: np.ndarray, curves: Mapping[str, np.ndarray], *, width: float = 2) -> go.Figure:
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
        x=path[:, 0], y=path[:, 1], name=name, mode="lines+markers", line={"color": color, "width": 1}, marker=marker
    )


def add_contours(figure: go.Figure, x: np.ndarray, y: np.ndarray, z: np.ndarray, *, levels: int = 16) -> go.Figure:
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


def ellipse(covariance: np.ndarray, center: tuple[float, float] = (0, 0), deviations: float = 2) -> np.ndarray:
    """Points [100, 2] of the curve that lies `deviations` standard deviations from the center of a cloud."""
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    values, vectors = np.linalg.eigh(covariance)
    return (np.asarray(center)[:, None] + deviations * vectors @ (np.sqrt(values.clip(0))[:, None] * circle)).T


def _method(name: str) -> str:
    """The first word of a name."""
    return name.partition(" ")[0].rstrip(",")


def _color(name: str) -> str | None:
    """Of the method that a name begins with; None: the text's."""
    return COLORS.get(_method(name))
