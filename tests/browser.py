"""What the browser tests share: a headless Chromium that reaches this machine only, and what they ask of a page."""

import functools
import http.server
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException

NAMES = ("google-chrome", "chromium", "chromium-browser")
BROWSERS = [path for path in map(shutil.which, NAMES) if path]
DRIVER = shutil.which("chromedriver")
ADVICE = (
    "no Chromium that can be driven: install chromium and chromium-driver (Debian), or Google Chrome and a "
    "chromedriver of its version, somewhere in PATH."
)
HERE = "127.0.0.1"
OWN_SCHEMES = {"about", "blob", "chrome", "data"}  # what is loaded from no host


def require() -> None:
    """Skip the calling module where no browser is installed; with NB_REQUIRE_BROWSER it fails."""
    if not (BROWSERS and DRIVER):
        if os.environ.get("NB_REQUIRE_BROWSER"):
            pytest.fail(ADVICE, pytrace=False)
        pytest.skip(ADVICE, allow_module_level=True)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a window, a past or a network."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = start(profile)
        driver.set_script_timeout(60)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": PROBE})
        try:
            yield driver
        finally:
            driver.quit()


def start(profile: str) -> webdriver.Chrome:
    """The first installed browser that the installed driver can start: there may be several, not all of its version."""
    reasons = []
    for path in BROWSERS:
        options = webdriver.ChromeOptions()
        options.binary_location = path
        for switch in (
            "--headless=new",
            "--no-sandbox",  # the root user of a container has none; nothing but our own pages is opened
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--user-data-dir={profile}",
            f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {HERE}",
        ):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        try:
            return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        except WebDriverException as error:
            reasons.append(f"{path}: {(error.msg or 'does not start').splitlines()[0]}")
    pytest.fail(" ".join([ADVICE, *reasons]), pytrace=False)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port; gives its address, without a slash."""
    server = http.server.ThreadingHTTPServer((HERE, 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HERE}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def complaints(driver: webdriver.Chrome) -> list[str]:
    """What went wrong since the last call: requests to other hosts, missing files, errors and warnings."""
    found = []
    for entry in driver.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            if urlsplit(url).scheme not in OWN_SCHEMES and urlsplit(url).hostname != HERE:
                found.append(f"another host: {url}")
        elif event["method"] == "Network.responseReceived":
            response = event["params"]["response"]
            if response["status"] >= 400 and not response["url"].endswith("/favicon.ico"):
                found.append(f"{response['status']}: {response['url']}")
    for entry in driver.get_log("browser"):
        # A browser looks for an icon by itself when a page names none, and remarks on how it draws WebGL without a
        # graphics card.
        own = "/favicon.ico" in entry["message"] or entry["source"] == "rendering"
        if entry["level"] in ("SEVERE", "WARNING") and not own:
            found.append(f"{entry['level']}: {entry['message']}")
    return found


def visit(driver: webdriver.Chrome, url: str) -> None:
    """Load a page anew, even if only the part after # differs from the present one."""
    driver.get("about:blank")
    driver.get(url)


def keep(driver: webdriver.Chrome) -> None:
    """Say that the open page is as it was loaded, and may serve the next test."""
    driver.execute_script("probe.kept = true")


def show(driver: webdriver.Chrome, url: str) -> None:
    """Go to a page, which is loaded anew unless it is open and kept."""
    is_kept = driver.execute_script("return Boolean(window.probe?.kept)")
    if not is_kept or driver.current_url.partition("#")[0] != url:
        visit(driver, url)
        keep(driver)


def set_width(driver: webdriver.Chrome, width: int) -> None:
    """Make the window so wide, scroll bar included."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_theme(driver: webdriver.Chrome, theme: str) -> None:
    """Let the system be light or dark, which pages follow whose reader chose neither."""
    feature = {"name": "prefers-color-scheme", "value": theme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def ask(driver: webdriver.Chrome, question: str, *arguments: object) -> object:
    """Ask the page one of the questions of PROBE, and wait for the answer."""
    answer = driver.execute_async_script(
        """const [question, given, done] = arguments;
        (async () => probe[question](...given))().then(value => done({value}), error => done({error: error.stack}));""",
        question,
        list(arguments),
    )
    if "error" in answer:
        raise AssertionError(f"{question}: {answer['error']}")
    return answer["value"]


# A script that every page gets before its own ones run.
PROBE = r"""
window.probe = (() => {
  const pause = milliseconds => new Promise(done => setTimeout(done, milliseconds));
  const figures = () => [...document.querySelectorAll('.nbx')];
  const nameOf = figure => figure.id ? `figure ${figure.id}` : `figure no. ${figures().indexOf(figure) + 1}`;
  const plotOf = figure => figure.querySelector('.nbx-plot');
  const svgOf = plot => plot.querySelector('.main-svg');
  const shown = element => element.checkVisibility({ opacityProperty: true, visibilityProperty: true })
    && element.getBoundingClientRect().width > 0;
  const median = numbers => numbers.toSorted((a, b) => a - b)[numbers.length >> 1];

  function hash(text) {
    let [a, b] = [5381, 52711];
    for (let k = 0; k < text.length; k++) {
      a = Math.imul(a, 33) ^ text.charCodeAt(k);
      b = Math.imul(b, 31) + text.charCodeAt(k) | 0;
    }
    return `${a >>> 0}-${b >>> 0}`;
  }

  async function until(holds, milliseconds, otherwise) {
    for (const end = performance.now() + milliseconds; !holds(); await pause(20))
      if (performance.now() > end) throw new Error(otherwise);
  }

  // --- what is drawn ---------------------------------------------------------------------------------------------

  // The figure as numbers, and as the shapes and words on the screen: a drawing that forgets to redraw differs in one.
  function drawing(figure) {
    const plot = plotOf(figure);
    const { shapes, annotations, title } = plot.layout ?? {};
    const marks = [...plot.querySelectorAll('.main-svg path, .main-svg image, .main-svg text, .main-svg rect')];
    const look = ['d', 'href', 'transform', 'x', 'y', 'width', 'height'];
    // plotly may leave the color of an edge behind that it no longer draws
    const paint = ({ fill, opacity, stroke, strokeWidth }) => [fill, opacity, strokeWidth === '0px' ? '' : stroke];
    const picture = marks.map(mark => [look.map(name => mark.getAttribute(name)), paint(mark.style), mark.textContent]);
    return { numbers: hash(JSON.stringify([plot.data, shapes, annotations, title])), picture: hash(picture.join()) };
  }

  const draws = figure => Number(figure.dataset.ready ?? 0);

  const hasTrace = plot => [...plot.querySelectorAll(
    '.mlayer :is(path, image), .pielayer path, .gl-container canvas',
  )].some(mark => { const { width, height } = mark.getBoundingClientRect(); return width + height > 0; });

  async function draw(figure) {
    const failed = () => plotOf(figure).textContent.includes('could not be drawn');
    figure.scrollIntoView({ behavior: 'instant', block: 'center' });
    await until(() => draws(figure) || failed(), 20000, 'no data-ready').catch(() => {});
    return draws(figure) > 0 && !failed();
  }

  // What hides figures is opened, and every figure scrolled to, as by a reader; gives what is not drawn then.
  async function drawAll() {
    document.querySelectorAll('details').forEach(element => { element.open = true; });
    document.querySelectorAll('.toggle-button-hidden').forEach(element => element.click());
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    const missing = [];
    for (const figure of figures()) {
      if (!await draw(figure)) missing.push(`${nameOf(figure)} is not drawn`);
      else if (!hasTrace(plotOf(figure))) missing.push(`${nameOf(figure)} has nothing in it`);
      else if (figure.querySelector('.nbx-controls')?.disabled) missing.push(`${nameOf(figure)} stays disabled`);
    }
    scrollTo({ top: 0, behavior: 'instant' });
    return missing;
  }

  const counts = () => figures().map(draws);

  // Wait until every figure has been drawn again, as after a change of the theme.
  async function redrawn(before) {
    await until(() => counts().every((count, k) => count > before[k]), 20000, 'not drawn again').catch(() => {});
  }

  // What a reader sees the controls set to, what a screen reader says, and the drawing, once no further one follows.
  async function state(figure) {
    for (let count = -1; count !== draws(figure); await pause(60)) count = draws(figure);
    const controls = [...figure.querySelectorAll('.nbx-controls [name]')];
    const value = one => one.type === 'range' ? one.parentElement.querySelector('output').textContent
      : one.selectedOptions[0].text;
    return {
      values: Object.fromEntries(controls.map(one => [one.name, value(one)])),
      heard: Object.fromEntries(controls.map(one => [one.name, one.ariaValueText ?? value(one)])),
      sentence: figure.querySelector('.nbx-say').textContent.trim(),
      ...drawing(figure),
    };
  }

  // A while after the last change of the window's width; gives the figures that have not followed it.
  async function misfits() {
    const width = figure => svgOf(plotOf(figure))?.getBoundingClientRect().width;
    const off = figure => Math.abs(width(figure) - plotOf(figure).clientWidth) > 1;
    await until(() => !figures().some(off), 3000).catch(() => {});
    await pause(200); // plotly.js waits for a pause of 100 ms
    return figures().filter(off).map(figure =>
      `${nameOf(figure)} is drawn ${width(figure)} px wide, its place ${plotOf(figure).clientWidth} px`);
  }

  // --- what can be read ------------------------------------------------------------------------------------------

  const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
    .getContext('2d', { willReadFrequently: true });

  // Any CSS color as [red, green, blue, opacity], all from 0 to 1.
  function rgba(color) {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map(part => part / 255);
  }

  const over = ([r, g, b, a], ground) => [r, g, b].map((part, k) => a * part + (1 - a) * ground[k]);

  function luminance(color) {
    const [r, g, b] = color.map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  const ancestors = element => element ? [element, ...ancestors(element.parentElement)] : [];

  // The color behind an element: the page's, and on it what a note, a legend or a bar paints below its own text.
  function groundOf(element) {
    const layers = ancestors(element).filter(one => !(one instanceof SVGElement))
      .map(one => rgba(getComputedStyle(one).backgroundColor));
    const own = element.closest('.annotation, .legend')?.querySelector('rect.bg')
      ?? (element.matches('.bartext-inside') ? element.parentElement.querySelector('path') : null);
    if (own) layers.unshift(inkOf(own));
    return layers.reduceRight((ground, layer) => over(layer, ground), [1, 1, 1]);
  }

  function inkOf(element) {
    const style = getComputedStyle(element);
    const svg = element instanceof SVGElement;
    const [r, g, b, a] = rgba(svg ? style.fill : style.color);
    const opacity = ancestors(element).reduce((product, one) => product * getComputedStyle(one).opacity, 1);
    return [r, g, b, a * opacity * (svg ? style.fillOpacity : 1)];
  }

  function contrast(element) {
    const ground = groundOf(element);
    const [low, high] = [luminance(ground), luminance(over(inkOf(element), ground))].toSorted((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  const named = (element, figure) => `“${element.textContent.trim().slice(0, 40)}” in ${nameOf(figure)}`;

  function pale(figure) {
    const words = figure.querySelectorAll(
      '.main-svg text, .nbx-controls :is(span, output, select, button), .nbx-say');
    return [...words].filter(word => word.textContent.trim() && shown(word) && contrast(word) < 4.5)
      .map(word => `contrast ${contrast(word).toFixed(2)}: ${named(word, figure)}`);
  }

  function cut(figure) {
    const plot = plotOf(figure);
    const frame = plot.getBoundingClientRect();
    const leaves = ({ left, right, top, bottom }) =>
      Math.max(frame.left - left, right - frame.right, frame.top - top, bottom - frame.bottom) > 1;
    return [...plot.querySelectorAll('.main-svg text')].filter(word => word.textContent.trim() && shown(word))
      .filter(word => leaves(word.getBoundingClientRect())).map(word => `cut off: ${named(word, figure)}`);
  }

  // Words over words. Marks on an axis may touch their neighbors; notes may lie on the drawing.
  function collisions(figure) {
    const kinds = { title: '.g-gtitle', axis: '.g-xtitle, .g-ytitle, .g-x2title, .g-y2title', legend: '.legend',
      tick: '.xtick, .ytick', note: '.annotation' };
    const kind = word => Object.keys(kinds).find(name => word.closest(kinds[name]));
    const boxes = [...plotOf(figure).querySelectorAll('.main-svg text')]
      .filter(word => word.textContent.trim() && shown(word) && kind(word))
      .map(word => [word, kind(word), word.getBoundingClientRect()]);
    const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
      && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
    return boxes.flatMap(([word, k, box], index) => boxes.slice(index + 1)
      .filter(([, l, other]) => (k !== l || k === 'note') && meet(box, other))
      .map(([other]) => `one on the other: ${named(word, figure)} and ${named(other, figure)}`));
  }

  function sideways() {
    const { scrollWidth, clientWidth } = document.documentElement;
    if (scrollWidth <= clientWidth) return [];
    const wide = [...document.body.querySelectorAll('*')].filter(element => element.getBoundingClientRect().right
      > clientWidth + 1).slice(0, 3).map(element => `${element.localName}.${element.className}`);
    return [`${scrollWidth} px of page in ${clientWidth} px: ${wide.join(' ')}`];
  }

  async function unreadable() {
    const misfit = await misfits();
    const theme = document.documentElement.dataset.theme;
    const words = figures().flatMap(figure => [...pale(figure), ...cut(figure), ...collisions(figure)]);
    return [...misfit, ...sideways(), ...words].map(problem => `${theme}, ${innerWidth} px: ${problem}`);
  }

  // The theme lets what scrolls be reached by keyboard a while after the width or the page has changed.
  const boxes = 'pre, .nboutput > .output_area, .cell_output > .output, .jp-RenderedHTMLCommon, '
    + '.pst-scrollable-table-container';
  const scrolls = box => box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;

  async function reachable() {
    const unreached = () => [...document.querySelectorAll(boxes)].some(box => scrolls(box) && box.tabIndex < 0);
    await until(() => !unreached(), 3000).catch(() => {}); // what stays is found by axe-core
  }

  // Text by its look: color, size, weight, and what lies behind it. Of each look, a few places over the whole page.
  function looks(places = 3) {
    const isText = node => node.nodeType === Node.TEXT_NODE && node.data.trim().length > 1; // axe-core passes over one
    const hasText = element => element.matches('input, select, textarea') || [...element.childNodes].some(isText);
    const isLarge = ({ width, height }) => width > 2 && height > 2;
    const ground = element => {
      const { backgroundColor, backgroundImage, opacity } = getComputedStyle(element);
      return [backgroundColor, backgroundImage, opacity].join(' ');
    };
    const words = [...document.body.querySelectorAll('*')]
      .filter(element => !(element instanceof SVGElement) && hasText(element) && shown(element)
        && isLarge(element.getBoundingClientRect()));
    const alike = Map.groupBy(words, word => {
      const { color, fontSize, fontWeight } = getComputedStyle(word);
      return [color, fontSize, fontWeight, ...ancestors(word).map(ground)].join();
    });
    const some = group => group.filter((_, k) => k % Math.ceil(group.length / places) === 0);
    return [...alike.values()].flatMap(some);
  }

  // What axe-core finds, without preload, which asks the server for style sheets that are not there. Its measuring of
  // contrast takes most of the time, and the same for the thousandth word of a program as for the first.
  async function barriers(rules = 'all') {
    const options = { preload: false, resultTypes: ['violations'] };
    const found = [await axe.run({ include: looks() }, { ...options, runOnly: ['color-contrast'] })];
    if (rules === 'all')
      found.push(await axe.run(document, { ...options, rules: { 'color-contrast': { enabled: false } } }));
    const serious = found.flatMap(({ violations }) => violations)
      .filter(({ impact }) => ['serious', 'critical'].includes(impact));
    return serious.flatMap(({ id, nodes }) =>
      nodes.map(({ target, failureSummary }) => `${id}: ${target.join(' ')}: ${failureSummary.split('\n')[1].trim()}`));
  }

  // --- what moving a slider takes ----------------------------------------------------------------------------------

  const deep = (value, change) => Array.isArray(value) ? value.map(item => deep(item, change))
    : typeof value === 'number' ? change(value) : value;

  // Milliseconds from an event of a slider to the drawing, and from a call of Plotly.restyle for one of its traces.
  async function times(figure, repeats) {
    const plot = plotOf(figure);
    const input = figure.querySelector('.nbx-controls :is(input, select)');
    const last = input.max || input.options.length - 1;
    const index = plot.data.findIndex(trace => Array.isArray(trace.z ?? trace.y));
    const key = plot.data[index].z ? 'z' : 'y';
    const own = plot.data[index][key];
    const timed = async change => {
      const drawn = new Promise(done => plot.once('plotly_afterplot', done));
      const begin = performance.now();
      change();
      await Promise.race([drawn, pause(5000)]);
      const time = performance.now() - begin;
      await pause(50);
      return time;
    };
    const moves = [], bare = [];
    for (let k = 0; k < repeats; k++) {
      const other = deep(own, number => number * (1 + 0.001 * (k % 2)));
      bare.push(await timed(() => Plotly.restyle(plot, { [key]: [other] }, [index])));
      moves.push(await timed(() => {
        input.value = k % 2 ? 0 : last;
        input.dispatchEvent(new Event('input', { bubbles: true }));
      }));
    }
    await Plotly.restyle(plot, { [key]: [own] }, [index]);
    const counts = [...figure.querySelectorAll('.nbx-controls :is(input, select)')]
      .map(one => one.type === 'range' ? Number(one.max) + 1 : one.options.length);
    return { move: median(moves), bare: median(bare), frames: counts.reduce((a, b) => a * b, 1),
      bytes: new Blob([figure.querySelector('script').textContent]).size };
  }

  return { draw, drawAll, draws, counts, redrawn, state, misfits, unreadable, reachable, barriers, times };
})();
"""
