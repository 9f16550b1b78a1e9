"""Figures for every reader: the forms of one output, what the built book holds, and the live widget."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from nbconvert import HTMLExporter, MarkdownExporter

from nb_lib.errors import InputError
from nb_lib.page import explore
from nb_lib.page.explore import Slider

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def shown(monkeypatch):
    """Every bundle of forms that `show` hands to the front end."""
    bundles = []
    monkeypatch.setattr(explore, "display", lambda forms, raw: bundles.append(forms))
    return bundles


class Page(HTMLParser):
    """What a browser makes of a figure's HTML: elements, and the text inside each script."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self.words = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements[-1][0] == "script":
            self.scripts.append(data)
        else:
            self.words.append(data)


def test_one_output_in_three_forms(shown):
    explore.show(go.Figure(go.Scatter(y=[1, 2]), layout={"template": "nb"}), 1, caption="A.", alt="A line.", height=300)
    (forms,) = shown
    assert set(forms) == {"text/html", PLOTLY, "text/plain"}
    assert forms["text/plain"] == "Figure 1. A. A line."
    page = Page(forms["text/html"])
    title = forms[PLOTLY]["layout"].pop("title")  # which a page has as text
    assert title["text"] == "Figure 1. A."
    assert json.loads(page.scripts[0]) == forms[PLOTLY]
    assert ("figure", {"class": "nbx", "id": "figure-1"}) in page.elements
    assert forms[PLOTLY]["data"][0]["y"] == [1, 2]
    assert forms[PLOTLY]["layout"]["height"] == 300
    (plot,) = [a for _, a in page.elements if a.get("class") == "nbx-plot"]
    assert plot["role"] == "img"
    assert plot["aria-label"] == "A line."
    assert ("p", {"class": "nbx-words"}) in page.elements


def test_programs_that_draw_nothing_show_the_words_and_no_empty_space(shown):
    explore.show(go.Figure(), 1, caption="One <b>.", alt="A <line>.")
    page = Page(shown[0]["text/html"])
    assert "".join(page.words).strip() == f"Figure 1. One <b>.{explore.UNSEEN} It shows: A <line>."
    (plot,) = [a for _, a in page.elements if a.get("class") == "nbx-plot"]
    assert plot["style"] == "--height: 420px"  # which only the book's style sheet makes a height
    stylesheet = Path(__file__).parents[1] / "book" / "_assets" / "explore.css"
    assert "min-height: var(--height)" in stylesheet.read_text()


def test_no_text_breaks_out_of_its_place(shown):
    nasty = "</script><!--<script>alert('\"&')</script>"
    explore.show(go.Figure(layout={"title": {"text": nasty}}), 1, caption=nasty, alt=nasty)
    page = Page(shown[0]["text/html"])
    assert [tag for tag, _ in page.elements] == ["figure", "figcaption", "b", "div", "p", "script"]
    assert json.loads(page.scripts[0])["layout"]["title"]["text"] == nasty
    assert page.elements[3][1]["aria-label"] == nasty
    assert f" {nasty}" in page.words  # the caption
    assert "<script" not in shown[0][PLOTLY]["layout"]["title"]["text"]


@pytest.mark.parametrize("exporter", [HTMLExporter, MarkdownExporter])
def test_a_converted_notebook_shows_the_words(exporter, shown):
    explore.show(go.Figure(), 1, caption="One <b>.", alt="A <line>.")
    explore.explore(
        lambda a: (go.Figure(), f"a is {a}."), 2, name="one", caption="A.", alt="A point.", a=Slider([1, 2], "a")
    )
    outputs = [nbformat.v4.new_output("display_data", data=forms) for forms in shown]
    cells = [nbformat.v4.new_code_cell("", outputs=outputs)]
    text, _ = exporter().from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    assert text.count(f'<p class="nbx-words">{explore.UNSEEN} It shows: A ') == 2
    assert text.count("height: 420px") == text.count("--height: 420px") == 2


@pytest.mark.parametrize("empty", ["", " \n"])
@pytest.mark.parametrize("missing", ["alt", "caption"])
def test_words_and_caption_are_required(missing, empty, shown):
    words = {"alt": "A line.", "caption": "A."} | {missing: empty}
    with pytest.raises(InputError, match=missing):
        explore.show(go.Figure(), 1, **words)
    assert not shown


def test_a_long_caption_is_broken_into_lines_where_it_is_a_plotly_title(shown):
    explore.show(go.Figure(), "7a", caption="A long caption. " * 10, alt="Nothing.")
    lines = shown[0][PLOTLY]["layout"]["title"]["text"].split("<br>")
    assert lines[0].startswith("Figure 7a. A long")
    assert 80 < max(map(len, lines)) <= 100


def test_numbers_are_rounded_and_gaps_kept(shown):
    z = np.array([[1 / 3, np.nan], [123456.789, -np.inf]], dtype=np.float32)
    explore.show(go.Figure(go.Heatmap(z=z, x=np.arange(2), y=(2e-9 / 3, 1))), 1, caption="A.", alt="Four numbers.")
    trace = shown[0][PLOTLY]["data"][0]
    assert trace["z"] == [[0.33333, None], [123460.0, None]]
    assert trace["x"] == [0, 1]
    assert trace["y"] == [6.6667e-10, 1]


def test_same_figure_same_bytes(shown):
    for _ in range(2):
        explore.show(go.Figure(go.Scatter(y=np.linspace(0, 1, 7))), 1, caption="A.", alt="A line.")
    assert shown[0] == shown[1]


def test_size_limit(shown):
    figure = go.Figure(go.Scatter(y=np.random.default_rng(0).random(60_000)))
    with pytest.raises(InputError, match=r"400,000.*fewer points"):
        explore.show(figure, 1, caption="A.", alt="Too much.")
    assert not shown


ALPHA, SIGN = Slider([1, 1.5, 3], "strength α", start=1.5), Slider(["up", "down <"], "sign")


def parabola(alpha, sign):
    """A figure one of whose arrays depends on no parameter, one on the first, one on both."""
    x = np.linspace(-1, 1, 5)
    figure = go.Figure(layout={"template": "nb", "xaxis": {"range": [0, alpha]}})
    figure.add_scatter(x=x, y=alpha * x**2, name="loss")
    figure.add_scatter(x=x, y=(alpha if sign == "up" else -alpha) * x, name=f"α = {alpha:g}")
    figure.add_annotation(x=alpha, y=0, text=sign)
    return figure, f"α is {alpha:g} and the line goes {sign}."


@pytest.fixture
def explored(shown, monkeypatch):
    """A parabola with two controls: its page and its widget."""
    made = []
    make = explore._live

    def watched(*given):
        made.append(make(*given))
        return made[-1]

    monkeypatch.setattr(explore, "_live", watched)
    explore.explore(parabola, 1, name="parabola", caption="Two.", alt="A parabola.", alpha=ALPHA, sign=SIGN)
    return Page(shown[0]["text/html"]), made[0], shown[0]


def replay(spec, indices):
    """What explore.js draws at these positions of the controls."""
    counts = [len(ALPHA.values), len(SIGN.values)]
    for path, axes, values in spec.pop("vary"):
        node = spec
        for key in path[:-1]:
            node = node[key]
        position = [indices[k] for k in axes]
        shape = [counts[k] for k in axes]
        node[path[-1]] = values[int(np.ravel_multi_index(position, shape))]
    return spec


@pytest.mark.parametrize("indices", list(np.ndindex(3, 2)))
def test_every_frame_is_what_the_function_draws(explored, indices):
    figure, sentence = parabola(ALPHA.values[indices[0]], SIGN.values[indices[1]])
    spec = replay(json.loads(explored[0].scripts[0]), indices)
    assert spec.pop("say") == sentence
    assert spec == explore._content(figure, 420)


def test_a_frame_holds_no_more_than_what_varies(explored):
    vary = {tuple(path): axes for path, axes, _ in json.loads(explored[0].scripts[0])["vary"]}
    assert vary == {
        ("data", 0, "y"): [0],
        ("data", 1, "y"): [0, 1],
        ("data", 1, "name"): [0],
        ("layout", "xaxis", "range"): [0],
        ("layout", "annotations", 0, "x"): [0],
        ("layout", "annotations", 0, "text"): [1],
        ("say",): [0, 1],
    }


def test_page_starts_at_the_start(explored):
    page, live, forms = explored
    assert set(forms) == {"text/html", WIDGET, "text/plain"}
    spec = json.loads(page.scripts[0])
    figure, sentence = parabola(1.5, "up")
    assert spec["data"] == explore._content(figure, 420)["data"]
    assert spec["say"] == sentence
    assert forms[WIDGET]["model_id"] == live.model_id


def test_native_controls(explored):
    page, *_ = explored
    (slider,) = [a for tag, a in page.elements if tag == "input"]
    expected = {"type": "range", "name": "alpha", "min": "0", "max": "2", "value": "1"}
    assert slider.items() >= expected.items()
    assert slider["aria-valuetext"] == "strength α = 1.5"
    assert slider["data-texts"].split() == ["1", "1.5", "3"]
    (select,) = [a for tag, a in page.elements if tag == "select"]
    assert select["name"] == "sign"
    assert "disabled" in dict(page.elements)["fieldset"]  # a control that does nothing yet cannot be moved
    assert page.elements[0][1]["id"] == "parabola"


def test_live_figure_follows_its_controls(explored):
    _, live, _ = explored
    title, figure, controls, say = live.children
    assert title.value == "<b>Figure 1.</b> Two."
    alpha, sign, reset = controls.children
    assert (alpha.value, alpha.min, alpha.max, sign.value) == (1.5, 1, 3, "up")

    def drawn():
        spec = explore._content(go.Figure(figure), 420)
        for trace in spec["data"]:
            trace.pop("uid")
        return spec

    alpha.value, sign.value = 2.125, "down <"  # between the book's values
    expected, _ = parabola(2.125, "down <")
    assert drawn() == explore._content(expected, 420)
    assert "α is 2.125 and the line goes down &lt;." in say.value
    reset.click()
    assert (alpha.value, sign.value) == (1.5, "up")
    assert drawn() == explore._content(parabola(1.5, "up")[0], 420)


def test_whole_numbers_stay_whole():
    control = Slider([1, 10, 100], "B").widget()
    control.value = 37
    assert control.value == 37
    assert type(control.value) is int
    assert Slider([0.0, 10.0], "a").widget().step == 2.5


@pytest.mark.parametrize(
    ("values", "start", "first"),
    [([1], None, 0), ([1, 2], 3, 1), ([0.1, 0.5, 0.7], 0.5, 1), ([10, 20], 14, 0), (["one"], "one", 0)],
)
def test_a_slider_of_what_a_reader_gives_starts_at_the_nearest_value(values, start, first):
    slider = Slider(values, "strength", start)
    assert slider.first == first
    assert slider.widget().value == values[first]


@pytest.mark.parametrize(
    ("values", "start", "clue"),
    [
        ([], None, "at least one"),
        ([2, 1], None, "increasing"),
        ([1, 1], None, "increasing"),
        (["one", "two"], "three", "starts at three"),
    ],
)
def test_sliders_that_cannot_be(values, start, clue):
    with pytest.raises(InputError, match=clue):
        Slider(values, "strength", start)


def more_and_more_traces(alpha):
    return go.Figure([go.Scatter(y=[1])] * int(alpha)), "Traces."


def more_and_more_shapes(alpha):
    return go.Figure(layout={"shapes": [{"type": "line"}] * int(alpha)}), "Shapes."


def silent_at_three(alpha):
    return go.Figure(), "" if alpha == 3 else "Nothing."


def long(alpha):
    return go.Figure(go.Scatter(y=alpha * np.arange(30_001.5))), "Long."


@pytest.mark.parametrize(
    ("draw", "clue"),
    [
        (more_and_more_traces, "more traces"),
        (more_and_more_shapes, "more traces"),
        (silent_at_three, "no sentence"),
        (long, "fewer points"),
    ],
)
def test_figures_that_cannot_be_published(draw, clue, shown):
    with pytest.raises(InputError, match=clue):
        explore.explore(draw, 1, name="none", caption="None.", alt="None.", alpha=ALPHA)
    assert not shown


def test_template_lets_the_page_shine_through():
    layout = go.Figure(layout={"template": "nb"}).layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.xaxis.automargin
    assert layout.yaxis.automargin
    assert (layout.legend.yanchor, layout.title.yanchor) == ("bottom", "top")


def test_needs_no_torch():
    code = "import sys, nb_lib.page.explore; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
