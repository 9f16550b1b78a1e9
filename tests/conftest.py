"""Fixtures and reports that several test modules use."""

from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def on_the_cpu(request, monkeypatch):
    """Tests mean the CPU also where there is a GPU, in this process and in those they start, but for `test_cuda`."""
    if request.module.__name__ != "test_cuda":
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def clock(monkeypatch):
    """A clock on which an epoch takes one second and all else no time."""
    from nb_lib.lab.training import Training

    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(**dict.fromkeys(("time", "monotonic", "perf_counter"), lambda: clock.now))
    monkeypatch.setattr("nb_lib.lab.sweeps.time", fake)
    monkeypatch.setattr("nb_lib.lab.training.time", fake)

    def batches(self, original=Training._batches):
        clock.now += 1
        return original(self)

    monkeypatch.setattr(Training, "_batches", batches)
    return clock


@pytest.fixture(scope="module")
def browser():
    """One headless browser for a module, without access to other hosts."""
    from browser import (
        chromium,
    )  # not above: where tests run without a browser, selenium is not needed either

    with chromium() as driver:
        yield driver


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured with `record_property("measured", …)`, from whichever worker they ran on."""
    reports = [
        r for kind in terminalreporter.stats.values() for r in kind if getattr(r, "when", "") == "call"
    ]
    rows = [value for report in reports for name, value in report.user_properties if name == "measured"]
    if rows:
        terminalreporter.section("measured in the browser")
        terminalreporter.write_line("\n".join(sorted(rows)))
