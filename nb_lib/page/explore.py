"""Show a plotly figure to every reader: in the built book without a kernel, in JupyterLab, in words.

`show` displays a figure as it is, `explore` one with sliders.
"""

import html
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import plotly.io
from IPython.display import display

from nb_lib.errors import InputError

DIGITS = 5  # significant digits of every number in a published figure: finer than any screen
MAX_BYTES = 400_000  # of one published figure, so that a page stays loadable over a slow line

_REPEATED = ("annotations", "shapes")  # of a layout: their number is the same in every frame

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
        "margin": {
            "l": 8,
            "r": 8,
            "t": 32,
            "b": 8,
        },  # axes, title and legend make their own room; subplot titles not
        "title": {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "scene": {"xaxis": _AXIS_3D, "yaxis": _AXIS_3D, "zaxis": _AXIS_3D},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


@dataclass(frozen=True)
class Slider:
    """One parameter of a figure, under the reader's hand.

    Parameters
    ----------
    values
        What it can be set to in the built book: increasing numbers, of which a kernel also takes those between;
        or words to choose from.
    label
        What the reader sees beside it.
    start
        One of `values`; None: the first.

    Raises
    ------
    InputError
        If there is nothing to choose, or `start` is not among it.
    """

    values: Sequence[float] | Sequence[str]
    label: str
    start: float | str | None = None

    def __post_init__(self) -> None:
        if len(self.values) < 2 or (
            not self.words and not np.all(np.diff(np.asarray(self.values, float)) > 0)
        ):
            raise InputError(
                f"the slider {self.label!r} needs at least two values, and numbers in increasing order."
            )
        if self.start is not None and self.start not in self.values:
            raise InputError(
                f"the slider {self.label!r} starts at {self.start}, which is not one of {self.values}."
            )

    @property
    def words(self) -> bool:
        """Whether it offers words."""
        return isinstance(self.values[0], str)

    @property
    def first(self) -> int:
        """Where it starts, as an index into `values`."""
        return 0 if self.start is None else list(self.values).index(self.start)

    @property
    def texts(self) -> list[str]:
        """What the reader sees for each value."""
        return [value if isinstance(value, str) else f"{value:g}" for value in self.values]

    def widget(self) -> ipywidgets.Widget:
        """The live control: any number in the range, or one of the words."""
        look = {"description": self.label, "style": {"description_width": "initial"}}
        if self.words:
            return ipywidgets.Dropdown(options=self.values, value=self.values[self.first], **look)
        values = np.asarray(self.values)
        whole = values.dtype.kind == "i"
        make, step = (
            (ipywidgets.IntSlider, 1) if whole else (ipywidgets.FloatSlider, np.diff(values).min() / 4)
        )
        low, high, start = values[[0, -1, self.first]].tolist()
        return make(value=start, min=low, max=high, step=step, readout_format="d" if whole else ".4g", **look)


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
    content = _content(figure, height)
    page = _page(content, alt, height)
    display({"text/html": page, "application/vnd.plotly.v1+json": content, "text/plain": alt}, raw=True)


def explore(
    draw: Callable[..., tuple[go.Figure, str]],
    /,
    *,
    name: str,
    alt: str,
    height: int = 420,
    **sliders: Slider,
) -> None:
    """Display a figure that follows its sliders: live where a kernel runs, computed beforehand in the built book.

    The book holds what `draw` returns at every combination of the sliders' values, less what does not change.

    Parameters
    ----------
    draw
        A pure function of the parameters that `sliders` names. It returns the figure, always with the same number
        of traces, annotations and shapes, and a sentence that says what is to be seen at this setting.
    name
        Of the figure on its page: `#name?alpha=2` in a link goes there and sets the slider `alpha`.
    alt
        What the figure shows at any setting, in words; the sentence is read out with it.
    height
        In pixels; the width is the page's.
    **sliders
        By parameter.

    Raises
    ------
    InputError
        If `alt` or a sentence is empty, the number of traces changes, or the figure is too large to publish.
    """
    shape = [len(slider.values) for slider in sliders.values()]
    settings = itertools.product(*(slider.values for slider in sliders.values()))
    frames = np.empty(math.prod(shape), dtype=object)
    for k, values in enumerate(settings):
        figure, sentence = draw(**dict(zip(sliders, values, strict=True)))
        frames[k] = _content(figure, height) | {"say": sentence}
    content = _compressed(frames.reshape(shape), tuple(slider.first for slider in sliders.values()))
    live = _live(draw, alt, height, sliders)
    widget = {"version_major": 2, "version_minor": 0, "model_id": live.model_id}
    page = _page(content, alt, height, name, sliders)
    display(
        {"text/html": page, "application/vnd.jupyter.widget-view+json": widget, "text/plain": alt}, raw=True
    )


def _content(figure: go.Figure, height: int) -> dict[str, Any]:
    """The figure as plain JSON values."""
    return {
        "data": [_plain(trace.to_plotly_json()) for trace in figure.data],
        "layout": _plain(figure.layout.to_plotly_json()) | {"height": height, "autosize": True},
    }


def _compressed(frames: np.ndarray, start: tuple[int, ...]) -> dict[str, Any]:
    """The frame at `start`, and under "vary" each value that changes, by the sliders that change it.

    An entry of "vary" is [path to the value, sliders it depends on, its values in C order of those sliders].
    """
    if not all(frame["say"].strip() for frame in frames.flat):
        raise InputError("a setting has no sentence: say at each what is to be seen there.")
    counted = [
        [frame["data"], *(frame["layout"].get(kind, []) for kind in _REPEATED)] for frame in frames.flat
    ]
    if len({tuple(map(len, counts)) for counts in counted}) > 1:
        raise InputError(
            "the figure has more traces at one setting than at another: draw an empty one instead."
        )
    leaves = [dict(_leaves(frame)) for frame in frames.flat]
    vary = []
    for path in dict.fromkeys(itertools.chain.from_iterable(leaves)):
        values = np.array([json.dumps(frame.get(path)) for frame in leaves], dtype=object).reshape(
            frames.shape
        )
        axes = [k for k in range(values.ndim) if np.any(values != values.take([0], axis=k))]
        if axes:
            values = values[tuple(slice(None) if k in axes else 0 for k in range(values.ndim))]
            vary.append([path, axes, [json.loads(value) for value in values.flat]])
    return frames[start] | {"vary": vary}


def _leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each value in a tree of dictionaries and lists of dictionaries, with the path to it."""
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for k, item in enumerate(node):
            yield from _leaves(item, (*path, k))
    else:
        yield path, node


def _live(
    draw: Callable[..., tuple[go.Figure, str]], alt: str, height: int, sliders: dict[str, Slider]
) -> ipywidgets.Widget:
    """The figure as a widget that calls `draw` whenever a control moves."""
    controls = {parameter: slider.widget() for parameter, slider in sliders.items()}
    starts = {parameter: control.value for parameter, control in controls.items()}
    first, sentence = draw(**starts)
    figure = go.FigureWidget(first, layout={"height": height, "autosize": True})
    say = ipywidgets.HTML(_paragraph(sentence, alt))
    reset = ipywidgets.Button(description="Reset")

    def redraw(_: object = None) -> None:
        new, sentence = draw(**{parameter: control.value for parameter, control in controls.items()})
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
    return ipywidgets.VBox(
        [figure, ipywidgets.HBox([*controls.values(), reset], layout={"flex_flow": "wrap"}), say]
    )


def _paragraph(sentence: str, alt: str) -> str:
    return f'<p aria-live="polite" title="{html.escape(alt)}">{html.escape(sentence)}</p>'


def _page(
    content: dict[str, Any],
    alt: str,
    height: int,
    name: str | None = None,
    sliders: dict[str, Slider] | None = None,
) -> str:
    """The figure as HTML that holds its own data."""
    if not alt.strip():
        raise InputError("alt is empty: say in a sentence what the figure shows to those who cannot see it.")
    alt = html.escape(alt)
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    data = text.replace("<", r"\u003c")  # so that no text in the figure can end the script element
    identity = f' id="{name}"' if name else ""
    page = (
        f'<div class="nbx"{identity}>'
        f'<div class="nbx-plot" role="img" aria-label="{alt}" style="height: {height}px"></div>'
        f"{_controls(sliders, content['say']) if sliders else ''}"
        f"<noscript>Drawing this figure takes JavaScript. It shows: {alt}</noscript>"
        f'<script type="application/json">{data}</script></div>'
    )
    if (size := len(page.encode())) > MAX_BYTES:
        raise InputError(
            f"the figure takes {size:,} bytes, more than {MAX_BYTES:,}: draw fewer points or settings."
        )
    return page


def _controls(sliders: dict[str, Slider], sentence: str) -> str:
    """Native controls, which a keyboard moves and a screen reader reads; explore.js enables them."""
    return (
        '<fieldset class="nbx-controls" aria-label="Settings of the figure above" disabled>'
        f"{''.join(_control(parameter, slider) for parameter, slider in sliders.items())}"
        '<span><button type="button" class="nbx-play">Play</button>'
        ' <button type="button" class="nbx-reset">Reset</button></span>'
        f'</fieldset><p class="nbx-say" aria-live="polite">{html.escape(sentence)}</p>'
    )


def _control(parameter: str, slider: Slider) -> str:
    label, texts = html.escape(slider.label), [html.escape(text) for text in slider.texts]
    if slider.words:
        choices = (
            f'<option value="{k}"{" selected" if k == slider.first else ""}>{text}</option>'
            for k, text in enumerate(texts)
        )
        return f'<label><span>{label}</span><select name="{parameter}">{"".join(choices)}</select></label>'
    text = texts[slider.first]
    return (
        f'<label><span>{label}</span><input type="range" name="{parameter}" min="0" max="{len(texts) - 1}" step="1"'
        f' value="{slider.first}" data-texts="{" ".join(texts)}" aria-valuetext="{label} = {text}">'
        f'<output aria-live="off">{text}</output></label>'
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
