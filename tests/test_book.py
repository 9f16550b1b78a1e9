"""The built book is whole, executed, accessible and self-contained."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import unquote, urlsplit

import pytest
from sphinx_external_toc.parsing import parse_toc_yaml

from nb_lib.lab.names import check_network
from nb_lib.page.explore import MAX_BYTES

pytestmark = pytest.mark.book

ROOT = Path(__file__).parents[1]
HTML = ROOT / "_build/html"
TOC = list(parse_toc_yaml(ROOT / "_toc.yml"))
MAX_PAGE_BYTES = 1_500_000

# What a browser loads by itself, as opposed to links that a reader follows.
LOADED = {"src", "srcset", "data", "poster", "background", "action", "formaction"}
IDLE_LINKS = {"next", "prev", "up", "index", "search", "author", "copyright", "license", "canonical"}
IN_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?([^"')\s]+)""")
IN_SCRIPT = re.compile(r"""\b(?:import|fetch|importScripts)\b[^"'`;]*["'`]([^"'`]+)""")
CDNS = (
    "unpkg",
    "jsdelivr",
    "cdnjs",
    "thebe",
    "mybinder",
    "embed-amd",
    "require.js",
    "polyfill.io",
    "googleapis",
)


class Page(HTMLParser):
    """An HTML page: the elements in it, the text inside each, and the resources that it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))
        self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data

    def both(self):
        return zip(self.elements, self.texts, strict=True)

    def resources(self):
        for (tag, attributes), text in self.both():
            yield from (attributes[name] for name in LOADED & set(attributes))
            if tag == "link" and not set(attributes.get("rel", "").split()) <= IDLE_LINKS:
                yield attributes["href"]
            yield from IN_CSS.findall(attributes.get("style", "") + (text if tag == "style" else ""))
            if tag == "script" and attributes.get("type") != "application/json":
                yield from IN_SCRIPT.findall(text)

    def of_class(self, name):
        return [(a, text) for (_, a), text in self.both() if name in a.get("class", "").split()]


def outside(resources):
    """Those resources that come from another host."""
    return [url for url in resources if urlsplit(url).netloc]


@pytest.fixture(scope="session")
def pages() -> dict[str, Page]:
    """Every page of the built book by its path below the root, without `.html`."""
    if not (HTML / "index.html").exists():
        pytest.fail("the book is not built: run `make book` first", pytrace=False)
    paths = [path for path in HTML.rglob("*.html") if "_static" not in path.parts]
    return {path.relative_to(HTML).with_suffix("").as_posix(): Page(path.read_text(encoding="utf-8")) for path in paths}


def test_every_page_of_the_toc_is_built(pages):
    assert set(TOC) <= set(pages)


def test_nothing_comes_from_another_host(pages):
    found = {name: urls for name, page in pages.items() if (urls := outside(page.resources()))}
    for path in HTML.rglob("*.css"):
        if urls := outside(IN_CSS.findall(path.read_text(encoding="utf-8"))):
            found[path.name] = urls
    assert found == {}


def test_no_content_network_is_named(pages):
    own = [HTML / "_static/explore.js", *(HTML / f"{name}.html" for name in pages)]
    found = {p.name: [cdn for cdn in CDNS if cdn in p.read_text(encoding="utf-8").lower()] for p in own}
    assert {name: cdns for name, cdns in found.items() if cdns} == {}


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://elsewhere.example/x.js"></script>',
        '<script src="//elsewhere.example/x.js"></script>',
        '<link rel="preconnect" href="https://elsewhere.example">',
        '<link rel="stylesheet" href="https://elsewhere.example/x.css">',
        '<img src="https://elsewhere.example/x.png">',
        '<iframe src="https://elsewhere.example"></iframe>',
        "<style>@import 'https://elsewhere.example/x.css';</style>",
        '<p style="background: url(https://elsewhere.example/x.png)">',
        '<script type="module">import x from "https://elsewhere.example/x.js"</script>',
        "<script>fetch('https://elsewhere.example/x.json')</script>",
    ],
)
def test_the_search_for_other_hosts_finds_them(html):
    assert len(outside(Page(html).resources())) == 1


def test_links_that_a_reader_follows_may_leave():
    assert outside(Page('<a href="https://elsewhere.example">paper</a>').resources()) == []


def test_local_resources_exist(pages):
    for name, page in pages.items():
        for url in page.resources():
            parts = urlsplit(url)
            if parts.path and parts.scheme != "data":
                assert (HTML / name).parent.joinpath(unquote(parts.path)).exists(), f"{name} lacks {url}"


def test_libraries_are_local(pages):
    assert (HTML / "_static/plotly.min.js").stat().st_size > 1_000_000
    assert list((HTML / "_static/mathjax/output/chtml/fonts/woff-v2").glob("*.woff"))
    assert any("mathjax/tex-chtml.js" in url for url in pages["book/notation"].resources())


def test_notebooks_were_executed_without_error(pages):
    status = (HTML / "book/status.html").read_text(encoding="utf-8")
    succeeded = {row for row in re.findall(r"<tr.*?</tr>", status, re.DOTALL) if "✅" in row}
    for name in TOC:
        if (ROOT / f"{name}.ipynb").exists():
            assert any(f">{name}<" in row for row in succeeded), f"{name} was not executed"
        assert not pages[name].of_class("traceback"), f"{name} shows an error"
        assert not pages[name].of_class("stderr"), f"{name} shows a warning"


def test_figures_say_what_they_show_and_are_small(pages):
    for name, page in pages.items():
        plots = page.of_class("nbx-plot")
        data = [
            text
            for (tag, a), text in zip(page.elements, page.texts, strict=True)
            if a.get("type") == "application/json"
        ]
        assert len(page.of_class("nbx")) == len(plots) == len(data)
        for (attributes, _), text in zip(plots, data, strict=True):
            assert attributes["role"] == "img"
            assert attributes["aria-label"].strip(), f"a figure without words on {name}"
            assert {"data", "layout"} <= set(json.loads(text))
            assert len(text.encode()) <= MAX_BYTES


def test_figures_are_numbered_down_the_page_and_referred_to_by_their_numbers(pages):
    for name in pages:
        text = (HTML / f"{name}.html").read_text(encoding="utf-8")
        figures = re.findall(r'<figure class="nbx" id="([^"]+)"><figcaption><b>Figure (\d+)([a-z]?)\.</b>', text)
        order = [(int(number), letter) for _, number, letter in figures]
        assert order == sorted(set(order)), f"figures of {name}: {order}"
        assert [number for number, _ in order][:1] in ([], [1]), f"the first figure of {name} has number {order[0]}"
        numbers = {identity: number + letter for identity, number, letter in figures}
        for identity, number in re.findall(r'<a [^>]*href="#([\w-]+)"[^>]*>Figure (\w+)</a>', text):
            assert numbers.get(identity) == number, f"Figure {number} of {name} is not #{identity}"
        unlinked = re.sub(r"<(a|figcaption|pre)\b.*?</\1>|<script.*?</script>|<[^>]*>", " ", text, flags=re.DOTALL)
        assert not re.findall(r"Figure \d+\w?", unlinked), f"{name} names a figure without a link to it"


def test_a_figure_shares_its_name_with_nothing_on_its_page(pages):
    for name, page in pages.items():
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        for attributes, _ in page.of_class("nbx"):
            assert ids.count(attributes.get("id")) <= 1, f"{attributes['id']} on {name}"


def test_pages_are_small(pages):
    sizes = {name: (HTML / f"{name}.html").stat().st_size for name in pages}
    assert {name: size for name, size in sizes.items() if size > MAX_PAGE_BYTES} == {}


def test_names_on_the_notation_page_exist():
    text = (ROOT / "book/notation.md").read_text(encoding="utf-8")
    names = re.findall(r"`(\w+\.[\w.]+)`", text)
    assert names
    for name in names:
        resolve_name(f"nb_lib.{name}")
    networks = re.findall(r"`((?:ne|smoothout)-[\w-]+|resnet\d+)`", text)
    assert {"ne-f1", "smoothout-c3", "resnet44", "resnet8"} <= set(networks)
    for name in networks:
        check_network(name)
