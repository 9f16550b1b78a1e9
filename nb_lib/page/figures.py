"""What the figures of the notebooks are made of: numbers in, a plotly figure out (of many runs: see `run_figures`).

One color means one method through the whole book (the Okabe-Ito palette, safe for color-blind readers); dash and
marker say the rest a second time. What is no method's has the color of the text:

>>> figure = add_lines(axes(("w", "loss")), [0, 1], {"NE, α = 2": [0, 1], "loss": [1, 0]})
>>> [trace.line.color for trace in figure.data]
['#D55E00', None]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from plotly.colors import hex_to_rgb
from plotly.graph_objects import Figure

from nb_lib.page.explore import FAINT  # which also registers the template "nb"

COLORS = {"SGD": "#0072B2", "NE": "#D55E00", "SmoothOut": "#009E73", "AdaSmoothOut": "#CC79A7"}
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "triangle-up", "square", "diamond")
_CLOUD_MARKERS = dict(zip(COLORS, MARKERS, strict=True))
_GRAYS = [[0, "rgba(118,118,118,0)"], [1, "rgba(118,118,118,0.55)"]]

Array = np.ndarray
Range = tuple[float, float]
Look = dict[str, Any]  # of a trace


def axes(titles: tuple[str, str], x_range: Range | None = None, y_range: Range | None = None) -> Figure:
    """An empty figure whose axes have titles, and ranges where a slider would otherwise make them jump.

    Titles give the units; beyond about 45 characters they do not fit on phones.
    """
    x_axis = {"title": titles[0], "range": x_range}
    y_axis = {"title": titles[1], "range": y_range}
    return Figure(layout={"template": "nb", "xaxis": x_axis, "yaxis": y_axis})


def add_lines(figure: Figure, x: ArrayLike, curves: Mapping[str, ArrayLike], *, width: float = 2) -> Figure:
    """Add a line for each named array over the same `x`; lines of one color differ in their dashes."""
    for name, y in curves.items():
        color = _color(name)
        lines = [trace for trace in figure.data if trace.mode == "lines"]
        alike = [trace for trace in lines if trace.line.color == color]
        dash = DASHES[len(alike) % len(DASHES)]
        line = {"color": color, "dash": dash, "width": width}
        figure.add_scatter(x=x, y=y, name=name, mode="lines", line=line)
    return figure


def add_points(
    figure: Figure,
    x: ArrayLike,
    y: ArrayLike,
    name: str,
    *,
    color: str = "",
    symbol: str = "circle",
    size: float = 10,
    error: ArrayLike | None = None,
) -> Figure:
    """Add points, with bars of half-length `error` if given, in the color of the method `color` or else of `name`."""
    marker = {"color": _color(color or name), "symbol": symbol, "size": size}
    error_y = None if error is None else bars(error)
    return figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker, error_y=error_y)


def add_joined_points(
    figure: Figure, x: ArrayLike, y: ArrayLike, error: ArrayLike, name: str, *, rank: int, color: str = ""
) -> Figure:
    """Add points with bars, joined by a line: dash and marker tell that it is the figure's number `rank`."""
    method = look(_color(color or name), rank)
    return figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", error_y=bars(error), **method)


def add_band(figure: Figure, x: ArrayLike, low: ArrayLike, high: ArrayLike, name: str) -> Figure:
    """Add a pale band from `low` to `high`, not in the legend; `name` begins with a method's, which gives its color."""
    red, green, blue = hex_to_rgb(_color(name))
    there_and_back = np.concatenate([x, np.flip(x)])
    outline = np.concatenate([high, np.flip(low)])
    pale = f"rgba({red},{green},{blue},0.18)"
    return figure.add_scatter(
        x=there_and_back,
        y=outline,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillcolor=pale,
        hoverinfo="skip",
        showlegend=False,
    )


def add_cloud(figure: Figure, points: Array, name: str, *, opacity: float = 0.5) -> Figure:
    """Add a cloud of many small points [n, 2]."""
    symbol = _CLOUD_MARKERS.get(_first_word(name), "circle")
    color = _color(name)
    marker = {"color": color, "symbol": symbol, "size": 5, "opacity": opacity}
    x, y = points.T
    return figure.add_scatter(x=x, y=y, name=name, mode="markers", marker=marker)


def add_path(figure: Figure, path: Array, name: str) -> Figure:
    """Add the way of one walker [T, 2], with a larger point at its end."""
    color = _color(name)
    sizes = np.full(len(path), 3)
    sizes[-1] = 12
    marker = {"color": color, "size": sizes, "line": {"width": 0}}
    line = {"color": color, "width": 1}
    x, y = path.T
    return figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line=line, marker=marker)


def add_contours(figure: Figure, x: Array, y: Array, z: Array, *, levels: int = 16) -> Figure:
    """Add a loss over a plane, z [len(y), len(x)]: the stronger the gray, the higher."""
    return figure.add_contour(
        x=x,
        y=y,
        z=z,
        ncontours=levels,
        colorscale=_GRAYS,
        line={"color": FAINT, "width": 1},
        showscale=False,
        hoverinfo="skip",
    )


def add_histogram(figure: Figure, values: Array, edges: Array, name: str) -> Figure:
    """Add the fraction of `values` in each bin as steps; those outside the bins count, but are not drawn."""
    values = values[np.isfinite(values)]
    counts, _ = np.histogram(values, edges)
    shares = counts / max(len(values), 1)
    x = np.repeat(edges, 2)[1:-1]
    y = np.repeat(shares, 2)
    line = {"color": _color(name), "width": 2}
    return figure.add_scatter(x=x, y=y, name=name, mode="lines", fill="tozeroy", line=line)


def add_bars(figure: Figure, labels: list[str], heights: Array, name: str) -> Figure:
    """Add a bar for each label."""
    marker = {"color": _color(name)}
    return figure.add_bar(x=labels, y=heights, name=name, marker=marker)


def ellipse(covariance: Array) -> Array:
    """Points [100, 2] of the curve that lies two standard deviations from the center, 0, of a cloud."""
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    variances, axes_of_cloud = np.linalg.eigh(covariance)
    lengths = np.sqrt(variances.clip(0))
    curve = axes_of_cloud @ (lengths[:, None] * circle)
    return 2 * curve.T


def _first_word(name: str) -> str:
    word, _, _ = name.partition(" ")
    return word.rstrip(",")


def _color(name: str) -> str | None:
    """Of the method that a name begins with; None: the text's."""
    return COLORS.get(_first_word(name))


def look(color: str | None, rank: int) -> Look:
    """Line and marker of a figure's line number `rank`."""
    kind = rank % len(DASHES)
    line = {"color": color, "dash": DASHES[kind], "width": 2}
    marker = {"color": color, "symbol": MARKERS[kind], "size": 8}
    return {"line": line, "marker": marker}


def bars(half: ArrayLike, thickness: float = 1.5, width: float = 5) -> Look:
    """Bars of an interval, `half` to either side."""
    return {"array": half, "thickness": thickness, "width": width}
