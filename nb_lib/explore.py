"""Show a plotly figure to every reader: in the built book without a kernel, in JupyterLab, in words."""

import html
import json
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import plotly.io
from IPython.display import display

from nb_lib.errors import InputError

DIGITS = 5  # significant digits of every number in a published figure: finer than any screen
MAX_BYTES = 400_000  # of one published figure, so that a page stays loadable over a slow line

# For a page of unknown color: no ground of its own, and gray ink that reads on white (4.5:1) as on black (4.6:1)
# wherever the book's explore.js does not put the page's font and colors in its place.
_INK, _FAINT, _CLEAR = "#767676", "rgba(118,118,118,0.3)", "rgba(0,0,0,0)"
# Small axis titles: plotly does not wrap them, and about 45 characters must fit on a phone.
_AXIS = {"automargin": True, "zeroline": False, "gridcolor": _FAINT, "title": {"font": {"size": 14}}}
plotly.io.templates["nb"] = go.layout.Template(
    layout={
        "font": {"size": 14, "color": _INK},
        "annotationdefaults": {"arrowcolor": _INK},
        "modebar": {"color": _INK, "bgcolor": _CLEAR},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "margin": {"l": 8, "r": 8, "t": 32, "b": 8},  # axes, title and legend make their own room; subplot titles not
        "title": {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def show(figure: go.Figure, *, alt: str, height: int = 420) -> None:
    """Display `figure` as one output in several forms; each program takes the best one it knows.

    The built book draws the HTML with its own copy of plotly.js (`book/_assets/explore.js`), JupyterLab draws
    the plotly form live, and everything else reads `alt`.

    Parameters
    ----------
    figure
        What to draw; `template="nb"` lets it follow the colors of the page.
    alt
        What the figure says, in words, for those who cannot see it.
    height
        In pixels; the width is the page's.

    Raises
    ------
    InputError
        If `alt` is empty, or the figure is too large to publish.
    """
    if not alt.strip():
        raise InputError("alt is empty: say in a sentence what the figure shows to those who cannot see it.")
    content = {
        "data": [_plain(trace.to_plotly_json()) for trace in figure.data],
        "layout": _plain(figure.layout.to_plotly_json()) | {"height": height, "autosize": True},
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    page = _page(text, alt, height)
    if (size := len(page.encode())) > MAX_BYTES:
        raise InputError(f"the figure takes {size:,} bytes, more than {MAX_BYTES:,}: draw fewer points.")
    display({"text/html": page, "application/vnd.plotly.v1+json": content, "text/plain": alt}, raw=True)


def _page(text: str, alt: str, height: int) -> str:
    """The figure as HTML that holds its own data; `text` is its JSON."""
    alt = html.escape(alt)
    data = text.replace("<", r"\u003c")  # so that no text in the figure can end the script element
    return (
        '<div class="nbx">'
        f'<div class="nbx-plot" role="img" aria-label="{alt}" style="height: {height}px"></div>'
        f"<noscript>Drawing this figure takes JavaScript. It shows: {alt}</noscript>"
        f'<script type="application/json">{data}</script></div>'
    )


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays as lists, floats at `DIGITS` digits, nan and inf as gaps."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
