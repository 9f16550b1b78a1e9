"""Fixtures and reports that several test modules use."""

from types import SimpleNamespace
from urllib.error import URLError

import pytest
from tables import Table


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """Tests mean the CPU also where there is a GPU, in this process and in those they start, but for `test_cuda`."""
    if request.module.__name__ != "test_cuda":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder for data sets; a person's own data and caches are not seen, nor is the network."""

    def offline(url, *args, **kwargs):
        raise URLError(f"no network for {url}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("NB_LIB_DATA", raising=False)
    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def clock(monkeypatch):
    """A clock on which an epoch takes one second and all else no time."""
    from nb_lib.lab.training import Training

    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(**dict.fromkeys(("time", "monotonic", "perf_counter"), lambda: clock.now))
    for module in ("sweeps", "tasks", "training"):
        monkeypatch.setattr(f"nb_lib.lab.{module}.time", fake)

    def batches(self, original=Training._batches):
        clock.now += 1
        return original(self)

    monkeypatch.setattr(Training, "_batches", batches)
    return clock


def pytest_addoption(parser):
    """Let the book's tables that tests make be written."""
    parser.addoption("--write-tables", action="store_true", help="write book/data/*.csv from what the tests see")


TABLES: dict[str, Table] = {}


@pytest.fixture
def table(request):
    """``table(name, row, column, text)``: what book/data/<name>.csv says of a case; versions are not compared."""

    def give(name, row, column, text):
        there = TABLES.setdefault(name, Table(name))
        there.give(row, column, text)
        if column != "version" and not request.config.getoption("--write-tables"):
            assert there.committed.get(row, {}).get(column) == text, f"{there.path.name}: run with --write-tables"

    return give


def pytest_sessionfinish(session):
    """Write the tables, in one process only."""
    if session.config.getoption("--write-tables") and not session.testsfailed:
        for there in TABLES.values():
            there.write()


def pytest_collection_modifyitems(items):
    """Mark what drives a browser."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")
def browser():
    """One headless browser for a module, without access to other hosts."""
    from browser import chromium  # not above: without a browser, selenium is not needed either

    with chromium() as driver:
        yield driver


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured with `record_property("measured", …)`, from whichever worker they ran on."""
    outcomes = [report for kind in terminalreporter.stats.values() for report in kind]
    reports = [report for report in outcomes if getattr(report, "when", "") == "call"]
    rows = [value for report in reports for name, value in report.user_properties if name == "measured"]
    if rows:
        terminalreporter.section("measured in the browser")
        terminalreporter.write_line("\n".join(sorted(rows)))
