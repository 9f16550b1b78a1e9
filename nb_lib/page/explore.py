"""Show a plotly figure to every reader: in the built book without a kernel, in JupyterLab, in words.

`show` displays a figure as it is, `explore` one with sliders. Figures take their look from the template "nb".

>>> figure = go.Figure(layout={"template": "nb"})
>>> figure.layout.template.layout.paper_bgcolor  # the page shines through
'rgba(0,0,0,0)'
"""

import html
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import plotly.io
from IPython.display import display

from nb_lib.errors import InputError
from nb_lib.page.sliders import Slider

DIGITS = 5  # significant digits of every number in a published figure: finer than any screen
UNSEEN = "This figure is drawn where scripts run: trust or run this notebook to see it."  # explore.js takes it away
MAX_BYTES = 400_000  # of one published figure, so that a page stays loadable over a slow line
_LINE = 100  # characters of a line of a title
Draw = Callable[..., tuple[go.Figure, str]]
Tree = dict[str, Any]  # that JSON can hold
Path = tuple[str | int, ...]  # to a value in it
Sliders = dict[str, Slider]  # by parameter

# For a page of unknown color: no ground of its own, and gray ink that reads on white (4.5:1) as on black (4.6:1)
# wherever the book's explore.js does not put the page's font and colors in its place.
INK, FAINT, _CLEAR = "#767676", "rgba(118,118,118,0.3)", "rgba(0,0,0,0)"
# Small axis titles: plotly does not wrap them, and about 45 characters must fit on a phone.
_AXIS = {"automargin": True, "zeroline": False, "gridcolor": FAINT, "title": {"font": {"size": 14}}}
_AXIS_3D = {"color": INK, "gridcolor": FAINT, "backgroundcolor": _CLEAR}
plotly.io.templates["nb"] = go.layout.Template(
    layout={
        "font": {"size": 14, "color": INK},
        "colorway": [INK],  # what is no method's has no color
        "annotationdefaults": {"arrowcolor": INK},
        "modebar": {"color": INK, "bgcolor": _CLEAR},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        # axes, title and legend make their own room; subplot titles not
        "margin": {"l": 8, "r": 8, "t": 32, "b": 8},
        "title": {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "scene": {"xaxis": _AXIS_3D, "yaxis": _AXIS_3D, "zaxis": _AXIS_3D},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def show(figure: go.Figure, number: int | str, /, *, caption: str, alt: str, height: int = 420) -> None:
    """Display `figure` as one output in several forms; each program takes the best one it knows.

    The built book draws the HTML with its own copy of plotly.js (`book/_assets/explore.js`), JupyterLab draws
    the plotly form live, and everything else shows `alt`: what the figure says, in words. The height is in pixels.
    The number is that of the figure on its page, such as 3 or "7a": ``#figure-3`` in a link leads to it.

    Raises
    ------
    InputError
        If `alt` or `caption` is empty, or the figure is too large to publish.
    """
    content = _content(figure, height)
    title = Title(number, caption)
    page = _page(content, title, alt, height, f"figure-{number}")
    forms = {"text/html": page, "application/vnd.plotly.v1+json": title.above(content), "text/plain": f"{title} {alt}"}
    display(forms, raw=True)


def explore(
    draw: Draw, number: int | str, /, *, name: str, caption: str, alt: str, height: int = 420, **sliders: Slider
) -> None:
    """Display a figure that follows its sliders: live where a kernel runs, computed beforehand in the built book.

    The book holds what `draw` returns at every combination of the sliders' values, less what does not change.

    Parameters
    ----------
    draw
        A pure function of the parameters that `sliders` names. It returns the figure, always with the same number
        of traces, annotations and shapes, and a sentence that says what is to be seen at this setting.
    number
        Of the figure on its page, such as 3.
    name
        In links: `#name?alpha=2` goes to the figure and sets the slider `alpha`.
    caption
        What is drawn: of what, with which intervals. What comes out is for the sentence to say.
    alt
        What the figure shows at any setting, in words; the sentence is read out with it.

    Raises
    ------
    InputError
        If `alt`, `caption` or a sentence is empty, the number of traces changes, or the figure is too large to publish.
    """
    frames = _frames(draw, height, sliders)
    start = tuple(slider.first for slider in sliders.values())
    title = Title(number, caption)
    page = _page(_compressed(frames, start), title, alt, height, name, sliders)
    live = _live(draw, title, alt, height, sliders)
    widget = {"version_major": 2, "version_minor": 0, "model_id": live.model_id}
    forms = {"text/html": page, "application/vnd.jupyter.widget-view+json": widget, "text/plain": f"{title} {alt}"}
    display(forms, raw=True)


@dataclass(frozen=True)
class Title:
    """Number and caption of a figure."""

    number: int | str
    caption: str

    def __post_init__(self) -> None:
        if not self.caption.strip():
            raise InputError("caption is empty: say in a sentence what is drawn.")

    def __str__(self) -> str:
        return f"Figure {self.number}. {self.caption}"

    def html(self) -> str:
        """The same for a page."""
        return f"<b>Figure {self.number}.</b> {html.escape(self.caption)}"

    def above(self, content: Tree) -> Tree:
        """The content of a figure with the title above it, in lines that fit a notebook's column."""
        lines = textwrap.wrap(str(self), _LINE)
        text = "<br>".join(map(html.escape, lines))
        layout = {**content["layout"], "title": {"text": text, "font": {"size": 14}}}
        return {**content, "layout": layout}


def _content(figure: go.Figure, height: int) -> Tree:
    return {
        "data": [_plain(trace.to_plotly_json()) for trace in figure.data],
        "layout": _plain(figure.layout.to_plotly_json()) | {"height": height, "autosize": True},
    }


def _frames(draw: Draw, height: int, sliders: Sliders) -> np.ndarray:
    """What `draw` returns at every setting: an array with an axis a slider."""
    values = [slider.values for slider in sliders.values()]
    frames = []
    for setting in product(*values):
        figure, sentence = draw(**dict(zip(sliders, setting, strict=True)))
        frames.append({**_content(figure, height), "say": sentence})
    _check(frames)
    return np.array(frames, dtype=object).reshape([len(each) for each in values])


def _check(frames: Sequence[Tree]) -> None:
    """Raise if a setting says nothing, or has another number of traces, annotations or shapes."""
    numbers = set()
    for frame in frames:
        if not frame["say"].strip():
            raise InputError("a setting has no sentence: say at each what is to be seen there.")
        layout = frame["layout"]
        annotations, shapes = layout.get("annotations", ()), layout.get("shapes", ())
        numbers.add((len(frame["data"]), len(annotations), len(shapes)))
    if len(numbers) > 1:
        raise InputError("the figure has more traces at one setting than at another: draw an empty one instead.")


def _compressed(frames: np.ndarray, start: tuple[int, ...]) -> Tree:
    """The frame at `start`, and under "vary" each value that changes, by the sliders that change it.

    Each is [path to the value, sliders it depends on, its values in C order of those sliders].
    """
    leaves = [dict(_leaves(frame)) for frame in frames.flat]
    paths = dict.fromkeys(path for values in leaves for path in values)  # in the order they first come in
    vary = []
    for path in paths:
        texts = [json.dumps(values.get(path)) for values in leaves]
        table = np.array(texts, dtype=object).reshape(frames.shape)
        axes = range(table.ndim)
        sliders = [k for k in axes if np.any(table != table.take([0], k))]
        if sliders:
            needed = tuple(slice(None) if k in sliders else 0 for k in axes)
            values = [json.loads(text) for text in table[needed].flat]
            vary.append([path, sliders, values])
    return {**frames[start], "vary": vary}


def _leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value in a tree of dictionaries and lists of dictionaries, with the path to it."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for k, item in enumerate(node):
            yield from _leaves(item, (*path, k))
    else:
        yield path, node


def _live(draw: Draw, title: Title, alt: str, height: int, sliders: Sliders) -> ipywidgets.Widget:
    """The figure as a widget that calls `draw` whenever a control moves."""
    controls = {parameter: slider.widget() for parameter, slider in sliders.items()}

    def setting() -> dict[str, Any]:
        return {parameter: control.value for parameter, control in controls.items()}

    starts = setting()
    first, sentence = draw(**starts)
    figure = go.FigureWidget(first, layout={"height": height, "autosize": True})
    say = ipywidgets.HTML(_paragraph(sentence, alt))
    reset = ipywidgets.Button(description="Reset")

    def redraw(_: object) -> None:
        new, sentence = draw(**setting())
        with figure.batch_update():
            for trace, update in zip(figure.data, new.data, strict=True):
                trace.update(update.to_plotly_json(), overwrite=True)
            figure.layout.update(new.layout.to_plotly_json())
        say.value = _paragraph(sentence, alt)

    def restart(_: object) -> None:
        for parameter, control in controls.items():
            control.value = starts[parameter]

    for control in controls.values():
        control.observe(redraw, "value")
    reset.on_click(restart)
    row = ipywidgets.HBox([*controls.values(), reset], layout={"flex_flow": "wrap"})
    return ipywidgets.VBox([ipywidgets.HTML(title.html()), figure, row, say])


def _paragraph(sentence: str, alt: str) -> str:
    return f'<p aria-live="polite" title="{html.escape(alt)}">{html.escape(sentence)}</p>'


def _page(content: Tree, title: Title, alt: str, height: int, name: str, sliders: Sliders | None = None) -> str:
    """The figure as HTML that holds its own data."""
    if not alt.strip():
        raise InputError("alt is empty: say in a sentence what the figure shows to those who cannot see it.")
    alt = html.escape(alt)
    controls = _controls(sliders, content["say"]) if sliders else ""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    data = text.replace("<", r"\u003c")  # so that no text in the figure can end the script element
    page = (
        f'<figure class="nbx" id="{name}"><figcaption>{title.html()}</figcaption>'
        f'<div class="nbx-plot" role="img" aria-label="{alt}" style="--height: {height}px">'
        f'<p class="nbx-words">{UNSEEN} It shows: {alt}</p></div>'
        f"{controls}"
        f'<script type="application/json">{data}</script></figure>'
    )
    size = len(page.encode())
    if size > MAX_BYTES:
        raise InputError(f"the figure takes {size:,} bytes, more than {MAX_BYTES:,}: draw fewer points or settings.")
    return page


def _controls(sliders: Sliders, sentence: str) -> str:
    """Native controls, which a keyboard moves and a screen reader reads; explore.js enables them."""
    controls = "".join(slider.native(parameter) for parameter, slider in sliders.items())
    return (
        '<fieldset class="nbx-controls" aria-label="Settings of the figure above" disabled>'
        f"{controls}"
        '<span><button type="button" class="nbx-play">Play</button>'
        ' <button type="button" class="nbx-reset">Reset</button></span>'
        f'</fieldset><p class="nbx-say" aria-live="polite">{html.escape(sentence)}</p>'
    )


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: arrays as lists, floats at `DIGITS` digits, nan and inf as gaps."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        rounded = float(f"{value:.{DIGITS}g}")
        return rounded if math.isfinite(value) else None
    return value
