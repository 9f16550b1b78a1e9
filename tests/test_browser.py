"""The built book in a browser that reaches nothing but this machine: as a reader sees it, and moves its sliders."""

import os
import re
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import plotly
import plotly.graph_objects as go
import pytest
from browser import ask, complaints, keep, require, served, set_theme, set_width, show, visit
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from nb_lib.page import explore

require()
pytestmark = pytest.mark.book

ROOT = Path(__file__).parents[1]
HTML = Path(os.environ.get("NB_HTML", ROOT / "_build/html"))  # another folder: to test a copy during a build
PAGES = sorted(p.relative_to(HTML).as_posix() for p in HTML.rglob("*.html") if "_static" not in p.parts)
PAGES = [page for page in PAGES if page != "index.html"]  # which only leads to the intro
PAGES = PAGES or ["book/intro.html"]
TEXTS = {page: (HTML / page).read_text("utf-8") for page in PAGES if (HTML / page).exists()}
FIGURE = re.compile(r'<figure class="nbx" id="((?!figure-)[^"]+)">')  # one with sliders
LINK = re.compile(r'<a [^>]*href="#([^"?]+)\?')
BOOK_FIGURES = [(page, name) for page, text in TEXTS.items() for name in FIGURE.findall(text)]
SAMPLE = [("sample.html", "line"), ("sample.html", "hills")]  # tested as the book's are, and if it has none
WIDE, PHONE = 1240, 390
AXE = (files("selenium_axe_python") / "axe-core/axe.min.js").read_text("utf-8")  # the accessibility checker
MAX_RATIO = 8  # moving a slider against a bare Plotly.restyle of one trace


@pytest.fixture(scope="module")
def book():
    if not (HTML / "index.html").exists():
        pytest.fail("the book is not built: run `make book` first", pytrace=False)
    with served(HTML) as address:
        yield address


@dataclass(frozen=True)
class Seen:
    """What is wrong with a page: empty lists if all is well."""

    complaints: list[str]
    not_drawn: list[str]
    unreadable: list[str]
    barriers: list[str]


@pytest.fixture(scope="module", params=PAGES)
def seen(request, book, browser):
    return look(browser, f"{book}/{request.param}")


def look(driver, url):
    """Load a page once, and look at it on both widths, first by day, then by night."""
    complaints(driver)  # of the page before
    set_theme(driver, "light")
    set_width(driver, WIDE)
    driver.get(url)
    not_drawn = ask(driver, "drawAll")
    unreadable = readable_as(driver, "light", WIDE, PHONE)
    driver.execute_script(AXE)
    ask(driver, "reachable")
    barriers = ask(driver, "barriers")

    drawn = ask(driver, "counts")
    set_theme(driver, "dark")
    ask(driver, "redrawn", drawn)
    not_drawn += ask(driver, "drawAll")
    unreadable += readable_as(driver, "dark", PHONE, WIDE)
    barriers += ask(driver, "barriers", "contrast")  # the rest is the same by night
    return Seen(complaints(driver), not_drawn, unreadable, barriers)


def readable_as(driver, theme, *widths):
    """What cannot be read on these widths, the present theme being this one."""
    found = []
    for width in widths:
        set_width(driver, width)
        found += ask(driver, "unreadable")
    if driver.execute_script("return document.documentElement.dataset.theme") != theme:
        found.append(f"the page is not {theme}")
    return found


def test_nothing_comes_from_another_host_and_nothing_fails(seen):
    assert seen.complaints == []


def test_every_figure_is_drawn(seen):
    assert seen.not_drawn == []


def test_text_stands_out_and_fits_in_both_themes_on_both_widths(seen):
    assert seen.unreadable == []


def test_no_serious_barrier(seen):
    assert seen.barriers == []


def test_a_page_is_dark_from_the_start_where_the_reader_left_it_dark(book, browser):
    set_theme(browser, "light")
    set_width(browser, WIDE)
    visit(browser, f"{book}/book/intro.html")
    browser.execute_script("localStorage.mode = localStorage.theme = 'dark'")
    try:
        visit(browser, f"{book}/book/intro.html")
        assert ask(browser, "drawAll") == []
        assert readable_as(browser, "dark", WIDE) == []
    finally:
        browser.execute_script("localStorage.clear()")


def test_the_front_page_leads_to_the_book(book, browser):
    complaints(browser)
    visit(browser, f"{book}/index.html")
    WebDriverWait(browser, 10).until(lambda driver: driver.current_url.endswith("/book/intro.html"))
    assert complaints(browser) == []


# --- figures with sliders ---------------------------------------------------------------------------------------------


def line(slope, end):
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, slope]), {"template": "nb", "yaxis": {"range": [-1, 5]}})
    figure.add_annotation(x=1, y=slope, text=end)
    return figure, f"The line ends at {slope:g}, {end}."


def hills(depth, shift):
    z = [[depth * ((x - shift) ** 2 + y**2) for x in range(9)] for y in range(9)]
    return go.Figure(go.Contour(z=z, showscale=False), {"template": "nb"}), f"The bowl is {depth:g} deep at {shift:g}."


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A page with figures of nb_lib.page.explore and the book's own script."""
    forms = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explore, "display", lambda bundle, raw: forms.append(bundle["text/html"]))
        slope = explore.Slider([0, 0.5, 1, 2, 4], "slope", start=1)
        end = explore.Slider(["plain", "loud & clear", "none"], "end")
        explore.explore(line, 1, name="line", caption="A.", alt="A line.", height=300, slope=slope, end=end)
        depth, shift = (
            explore.Slider([1, 2, 3], "depth", start=3),
            explore.Slider([0, 1, 2, 3, 4, 5], "shift"),
        )
        explore.explore(hills, 2, name="hills", caption="A.", alt="A bowl.", height=300, depth=depth, shift=shift)
    folder = tmp_path_factory.mktemp("sample")
    (folder / "explore.js").symlink_to(ROOT / "book/_assets/explore.js")
    (folder / "plotly.min.js").symlink_to(Path(plotly.__file__).parent / "package_data/plotly.min.js")
    links = '<a href="#line?slope=4&amp;end=none">a</a> <a href="#hills?shift=5">b</a>'
    (folder / "sample.html").write_text(page(f'{"".join(forms)}{links}<script src="explore.js"></script>'), "utf-8")
    with served(folder) as address:
        yield address


def page(body):
    return f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>A page</title><body>{body}</body></html>'


class Figure:
    """A figure with sliders on the page that is open, drawn."""

    def __init__(self, driver, name):
        self.driver, self.name = driver, name
        self.element = driver.find_element(By.ID, name)
        assert ask(driver, "draw", self.element), f"{name} is not drawn"
        controls = self.element.find_elements(By.CSS_SELECTOR, ".nbx-controls [name]")
        self.controls = {control.get_attribute("name"): control for control in controls}
        self.start = self.state()

    def state(self):
        """Its values, sentence and drawing, once nothing moves in it anymore."""
        return SimpleNamespace(**ask(self.driver, "state", self.element))

    def last(self, control):
        """The index of the last value of a control."""
        end = control.get_attribute("max")
        return int(end) if end else len(control.find_elements(By.TAG_NAME, "option")) - 1

    def index(self, control):
        return int(control.get_property("value"))

    def press(self, control, key):
        """Press a key on a control, and wait for the next drawing, but not long."""
        before = ask(self.driver, "draws", self.element)
        control.send_keys(key)
        self.wait(lambda: ask(self.driver, "draws", self.element) != before, 2)
        return self.state()

    def leave(self, control):
        """Set a control to one of its ends where it is not already."""
        return self.press(control, Keys.HOME if self.index(control) == self.last(control) else Keys.END)

    def click(self, kind):
        self.element.find_element(By.CSS_SELECTOR, f".nbx-{kind}").send_keys(Keys.ENTER)

    def wait(self, holds, seconds):
        try:
            return WebDriverWait(self.driver, seconds, poll_frequency=0.03).until(lambda _: holds())
        except TimeoutException:
            return False

    def fragment(self):
        """What the address says about this figure, if it says something."""
        name, _, query = urlsplit(self.driver.current_url).fragment.partition("?")
        return dict(parse_qsl(query)) if name == self.name else {}


def dead(figure):
    """What does not follow when each control of a figure is moved by keyboard, each move giving another value."""
    found = [] if figure.controls else ["no controls"]
    for name, control in figure.controls.items():
        at_end = figure.index(control) == figure.last(control)
        keys = (Keys.HOME, Keys.END, Keys.ARROW_LEFT) if at_end else (Keys.END, Keys.HOME, Keys.ARROW_RIGHT)
        before = figure.start
        for key, place in zip(keys, ("one end", "the other end", "the value beside it"), strict=True):
            after = figure.press(control, key)
            stays = {
                "value": before.values[name] == after.values[name],
                "aria-valuetext": before.heard[name] == after.heard[name],
                "numbers": before.numbers == after.numbers,
                "picture": before.picture == after.picture,
            }
            found += [f"{name} to {place}: the same {what}" for what, same in stays.items() if same]
            if after.values[name] not in after.heard[name]:
                found.append(f"{name}: {after.values[name]!r} is shown, {after.heard[name]!r} is said")
            if not after.sentence:
                found.append(f"{name} to {place}: no sentence")
            if after == before:
                break  # the other keys would take as long
            before = after
        figure.click("reset")
        if not figure.wait(lambda: figure.state() == figure.start, 3):
            found.append(f"{name}: Reset does not bring the start back")
    return found


@pytest.fixture(scope="module", params=[*SAMPLE, *BOOK_FIGURES], ids="#".join)
def figure(request, browser):
    """A figure with sliders, at its start: every test leaves it there, in a page that stays open for the next one."""
    page, name = request.param
    address = request.getfixturevalue("sample" if (page, name) in SAMPLE else "book")
    set_theme(browser, "light")
    set_width(browser, WIDE)
    show(browser, f"{address}/{page}")
    return Figure(browser, name)


def test_every_control_moves_the_drawing(figure):
    assert dead(figure) == []


# At once, for on a busy machine it may have come to its end, where the button says Play again.
PAUSE = """const play = arguments[0].querySelector('.nbx-play'); if (play.textContent === 'Pause') play.click();"""


def test_play_moves_the_control_last_used_until_stopped(figure):
    parameter, control = max(figure.controls.items(), key=lambda item: figure.last(item[1]))
    before = figure.press(control, Keys.END) and figure.press(control, Keys.HOME)
    figure.click("play")
    assert figure.wait(lambda: figure.index(control) > 0, 3), f"{parameter} does not move"
    after = figure.state()
    assert after.numbers != before.numbers
    assert {name for name in after.values if after.values[name] != before.values[name]} == {parameter}
    figure.driver.execute_script(PAUSE, figure.element)
    stopped = figure.state()
    time.sleep(0.6)
    assert figure.state() == stopped
    figure.click("reset")
    assert figure.wait(lambda: figure.state() == figure.start, 3)


def test_moving_a_control_costs_little_more_than_drawing(figure, record_property, request):
    t = ask(figure.driver, "times", figure.element, 7)
    ratio = t["move"] / t["bare"]
    row = f"{t['move']:4.0f} ms a move, {t['bare']:4.0f} ms bare restyle, ratio {ratio:3.1f}"
    row = f"{row}, {t['frames']:4d} settings, {t['bytes'] / 1e3:4.0f} kB: {request.node.callspec.id}"
    record_property("measured", row)
    figure.click("reset")
    assert ratio <= MAX_RATIO, row


def test_links_set_their_figure(figure, request):
    links = figure.driver.find_elements(By.CSS_SELECTOR, f'a[href^="#{figure.name}?"]')
    assert links or request.node.callspec.params["figure"] not in SAMPLE
    for link in links:
        query = link.get_attribute("href").partition("?")[2]
        wanted = dict(parse_qsl(query))
        assert set(wanted) <= set(figure.controls), f"it has not all parameters of {query}"
        parameter = next(iter(wanted))
        before = figure.leave(figure.controls[parameter])
        if before.values[parameter] == wanted[parameter]:
            before = figure.leave(figure.controls[parameter])
        figure.driver.execute_script("arguments[0].click()", link)
        is_set = figure.wait(lambda wanted=wanted: wanted.items() <= figure.state().values.items(), 3)
        after = figure.state()
        assert is_set, f"{query} sets it to {after.values}"
        changes = (after.numbers, after.sentence) != (before.numbers, before.sentence)
        assert changes, f"{query} does not change it"  # two settings may draw the same, but do not say the same
    figure.click("reset")
    assert figure.wait(lambda: figure.state() == figure.start, 3)


@pytest.mark.parametrize("page", TEXTS)
def test_links_with_settings_lead_to_figures_with_sliders(page):
    assert set(LINK.findall(TEXTS[page])) <= set(FIGURE.findall(TEXTS[page]))


def test_the_address_keeps_the_setting(figure):
    for control in figure.controls.values():
        moved = figure.leave(control)
    assert figure.wait(lambda: figure.fragment() == moved.values, 1), f"{figure.fragment()}, not {moved.values}"

    visit(figure.driver, figure.driver.current_url)
    again = Figure(figure.driver, figure.name)
    assert again.start == moved
    again.click("reset")
    assert again.wait(lambda: again.state() == figure.start, 3), f"{again.state()}, not {figure.start}"
    assert again.wait(lambda: again.fragment() == figure.start.values, 1)

    nonsense = "".join(f"&{name}=no-such-value" for name in figure.controls)
    figure.driver.execute_script("location.hash = arguments[0]", f"{figure.name}?nothing=1{nonsense}")
    time.sleep(0.2)
    assert again.state() == figure.start
    keep(figure.driver)


@pytest.mark.parametrize("name", [name for _, name in SAMPLE])
def test_play_ends_at_the_last_value_and_starts_again_from_the_first(name, sample, browser):
    visit(browser, f"{sample}/sample.html")
    figure = Figure(browser, name)
    control = next(iter(figure.controls.values()))  # what Play moves when nothing has been used yet
    figure.press(control, Keys.END)
    figure.click("play")
    assert figure.wait(lambda: figure.index(control) < figure.last(control), 3)
    assert figure.wait(lambda: figure.index(control) == figure.last(control), 10)
    time.sleep(0.6)
    assert figure.index(control) == figure.last(control)


@pytest.mark.parametrize("drawn", [True, False])
def test_words_show_where_nothing_draws_the_figure(drawn, tmp_path, monkeypatch, browser):
    forms = []
    monkeypatch.setattr(explore, "display", lambda bundle, raw: forms.append(bundle["text/html"]))
    explore.show(go.Figure(go.Scatter(y=[1, 2]), {"template": "nb"}), 3, caption="A.", alt="A line.")
    for name in ("explore.js", "explore.css"):
        (tmp_path / name).symlink_to(ROOT / "book/_assets" / name)
    (tmp_path / "plotly.min.js").symlink_to(Path(plotly.__file__).parent / "package_data/plotly.min.js")
    script = '<script src="explore.js"></script>' if drawn else ""
    style = '<link rel="stylesheet" href="explore.css">'
    (tmp_path / "one.html").write_text(page(f"{style}{forms[0]}{script}"), "utf-8")
    with served(tmp_path) as address:
        browser.get(f"{address}/one.html")
        words = browser.find_elements(By.CLASS_NAME, "nbx-words")
        assert browser.find_element(By.CLASS_NAME, "nbx-plot").size["height"] == 420  # nothing moves when it is drawn
        assert not any(one.is_displayed() for one in words)  # at once: nothing flashes
        if drawn:
            assert not words
        else:
            WebDriverWait(browser, 10).until(lambda _: words[0].is_displayed())
            assert words[0].text.endswith("It shows: A line.")


def test_figures_follow_their_column_not_only_the_window(sample, browser):
    set_width(browser, WIDE)
    visit(browser, f"{sample}/sample.html")
    ask(browser, "drawAll")
    browser.execute_script("document.body.style.width = '400px'")  # as when a sidebar opens
    assert ask(browser, "misfits") == []


# --- negative controls: what these tests must find --------------------------------------------------------------------


@pytest.fixture
def show_page(tmp_path, browser):
    """Show a page with this body."""
    with served(tmp_path) as address:

        def show(body):
            (tmp_path / "a.html").write_text(page(body), "utf-8")
            complaints(browser)
            visit(browser, f"{address}/a.html")

        yield show


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (
            '<script src="http://elsewhere.example/x.js"></script>',
            "another host: http://elsewhere.example/x.js",
        ),
        (
            "<script>fetch('https://elsewhere.example/x').catch(() => {})</script>",
            "another host: https://elsewhere",
        ),
        ('<script src="none.js"></script>', "404: "),
        ("<script>console.error('broken')</script>", "SEVERE: "),
        ("<script>console.warn('nearly broken')</script>", "WARNING: "),
        ("<script>null.x</script>", "TypeError"),
    ],
)
def test_complaints_are_found(body, found, show_page, browser):
    show_page(body)
    assert any(found in complaint for complaint in complaints(browser))


def test_a_good_page_gives_no_complaints(show_page, browser):
    show_page("<p>All is well.</p>")
    assert complaints(browser) == []


# A figure in the form that explore.js gives it, without plotly.js: a bar as long as the slider's value.
FAKE = """
<figure class="nbx" id="fake" data-ready="1"><div class="nbx-plot"><svg class="main-svg"><path d="M0,0H2"/></svg></div>
<fieldset class="nbx-controls"><label><span>a</span>
<input type="range" name="a" min="0" max="4" value="2" aria-valuetext="a = 2"><output>2</output></label>
<button class="nbx-reset">Reset</button></fieldset><p class="nbx-say">2</p></figure>
<script>
  const figure = document.getElementById('fake');
  const [plot, bar, input, output, say] =
    ['.nbx-plot', 'path', 'input', 'output', '.nbx-say'].map(part => figure.querySelector(part));
  plot.data = [{ y: [2] }];
  input.addEventListener('input', () => {
    const value = input.value;
    bar.setAttribute('d', `M0,0H${value}`);
    plot.data[0].y[0] = Number(value);
    output.textContent = value;
    input.setAttribute('aria-valuetext', `a = ${value}`);
    say.textContent = value;
    figure.dataset.ready++;
  });
  document.querySelector('button').addEventListener('click', () => {
    input.value = 2;
    input.dispatchEvent(new Event('input'));
  });
</script>"""


def test_a_live_slider_is_not_called_dead(show_page, browser):
    show_page(FAKE)
    assert dead(Figure(browser, "fake")) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("bar.setAttribute('d', `M0,0H${value}`);", "the same picture"),
        ("plot.data[0].y[0] = Number(value);", "the same numbers"),
        ("output.textContent = value;", "the same value"),
        ("input.setAttribute('aria-valuetext', `a = ${value}`);", "the same aria-valuetext"),
    ],
)
def test_a_slider_that_one_thing_does_not_follow_is_found(line, found, show_page, browser):
    assert line in FAKE
    show_page(FAKE.replace(line, ""))
    assert any(found in problem for problem in dead(Figure(browser, "fake")))


def test_a_slider_without_a_sentence_is_found(show_page, browser):
    show_page(FAKE.replace("say.textContent = value;", "say.textContent = ' ';"))
    assert any("no sentence" in problem for problem in dead(Figure(browser, "fake")))


def test_a_slider_that_cannot_be_moved_is_found(show_page, browser):
    show_page(FAKE.replace('max="4"', 'max="4" readonly onkeydown="return false"'))
    assert any("the same value" in problem for problem in dead(Figure(browser, "fake")))


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('<p style="width: 2000px">wide</p>', "2008 px of page in 1240 px: p"),
        ('<text y="20" fill="#888">pale</text>', "contrast 3.5"),
        ('<text y="20" opacity="0.5">pale</text>', "contrast 3.9"),
        ('<text x="-20" y="20">left of it</text>', "cut off"),
        (
            '<g class="annotation"><rect class="bg" width="90" height="30"/><text y="20">dark</text></g>',
            "contrast 1.0",
        ),
        (
            '<g class="annotation"><text y="20">a</text></g><g class="legend"><text y="20">b</text></g>',
            "one on the other",
        ),
    ],
)
def test_unreadable_text_is_found(body, found, show_page, browser):
    svg = f'<svg class="main-svg" width="100%" height="90">{body}</svg>'
    show_page(body if body.startswith("<p") else f'<figure class="nbx"><div class="nbx-plot">{svg}</div></figure>')
    set_width(browser, WIDE)
    (problem,) = ask(browser, "unreadable")
    assert found in problem


HIDDEN = "position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("<button></button>", "button-name: button"),
        (f'{"<p>well</p>" * 9}<p class="pale" style="color: #999">pale</p>', "color-contrast: .pale"),
        (
            f'<p class="pale" style="color: #999; {HIDDEN}">hidden</p><p style="color: #999">pale</p>',
            "color-contrast: p",
        ),
        ('<input value="a" aria-label="b" style="color: #999">', "color-contrast: input"),
        (
            f'<pre style="overflow: auto; width: 90px">{"wide " * 30}</pre>',
            "scrollable-region-focusable: pre",
        ),
    ],
)
def test_a_barrier_is_found(body, found, show_page, browser):
    show_page(body)
    browser.execute_script(AXE)
    (problem,) = ask(browser, "barriers")
    assert problem.startswith(found)


def test_what_is_made_reachable_a_little_later_is_waited_for(show_page, browser):
    show_page(f"""<pre style="overflow: auto; width: 90px">{"wide " * 30}</pre>
        <script>setTimeout(() => {{ document.querySelector('pre').tabIndex = 0; }}, 700)</script>""")
    browser.execute_script(AXE)
    ask(browser, "reachable")
    assert ask(browser, "barriers") == []
