"""Fixtures and reports that several test modules use."""

import pytest


@pytest.fixture(scope="module")
def browser():
    """One headless browser for a module, without access to other hosts."""
    from browser import chromium  # not above: where tests run without a browser, selenium is not needed either

    with chromium() as driver:
        yield driver


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured with `record_property("measured", …)`, from whichever worker they ran on."""
    reports = [r for kind in terminalreporter.stats.values() for r in kind if getattr(r, "when", "") == "call"]
    rows = [value for report in reports for name, value in report.user_properties if name == "measured"]
    if rows:
        terminalreporter.section("measured in the browser")
        terminalreporter.write_line("\n".join(sorted(rows)))
