import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest

from nb_lib import explore
from nb_lib.errors import InputError

PLOTLY = "application/vnd.plotly.v1+json"


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
        self.elements, self.scripts = [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.elements[-1][0] == "script":
            self.scripts.append(data)


def test_one_output_in_three_forms(shown):
    explore.show(go.Figure(go.Scatter(y=[1, 2]), layout={"template": "nb"}), alt="A line.", height=300)
    (forms,) = shown
    assert set(forms) == {"text/html", PLOTLY, "text/plain"}
    assert forms["text/plain"] == "A line."
    page = Page(forms["text/html"])
    assert json.loads(page.scripts[0]) == forms[PLOTLY]
    assert forms[PLOTLY]["data"][0]["y"] == [1, 2]
    assert forms[PLOTLY]["layout"]["height"] == 300
    (plot,) = [a for _, a in page.elements if a.get("class") == "nbx-plot"]
    assert plot["role"] == "img"
    assert plot["aria-label"] == "A line."
    assert "noscript" in dict(page.elements)


def test_no_text_breaks_out_of_its_place(shown):
    nasty = "</script><!--<script>alert('\"&')</script>"
    explore.show(go.Figure(layout={"title": {"text": nasty}}), alt=nasty)
    page = Page(shown[0]["text/html"])
    assert [tag for tag, _ in page.elements] == ["div", "div", "noscript", "script"]
    assert json.loads(page.scripts[0])["layout"]["title"]["text"] == nasty
    assert page.elements[1][1]["aria-label"] == nasty


@pytest.mark.parametrize("alt", ["", " \n"])
def test_alt_is_required(alt, shown):
    with pytest.raises(InputError, match="alt"):
        explore.show(go.Figure(), alt=alt)
    assert not shown


def test_numbers_are_rounded_and_gaps_kept(shown):
    z = np.array([[1 / 3, np.nan], [123456.789, -np.inf]], dtype=np.float32)
    explore.show(go.Figure(go.Heatmap(z=z, x=np.arange(2), y=(2e-9 / 3, 1))), alt="Four numbers.")
    trace = shown[0][PLOTLY]["data"][0]
    assert trace["z"] == [[0.33333, None], [123460.0, None]]
    assert trace["x"] == [0, 1]
    assert trace["y"] == [6.6667e-10, 1]


def test_same_figure_same_bytes(shown):
    for _ in range(2):
        explore.show(go.Figure(go.Scatter(y=np.linspace(0, 1, 7))), alt="A line.")
    assert shown[0] == shown[1]


def test_size_limit(shown):
    with pytest.raises(InputError, match=r"400,000.*fewer points"):
        explore.show(go.Figure(go.Scatter(y=np.random.default_rng(0).random(60_000))), alt="Too much.")
    assert not shown


def test_template_lets_the_page_shine_through():
    layout = go.Figure(layout={"template": "nb"}).layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.xaxis.automargin
    assert layout.yaxis.automargin
    assert (layout.legend.yanchor, layout.title.yanchor) == ("bottom", "top")


def test_needs_no_torch():
    code = "import sys, nb_lib.explore; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
