"""The page of the library: docstrings as reStructuredText, in which |w| would be a substitution."""

from itertools import pairwise
from typing import Any

from sphinx.application import Sphinx


def name_examples(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Give a doctest that follows a section without a name of its own the name that napoleon knows."""
    sections = [i for i, (_, line) in enumerate(pairwise(lines)) if line and set(line) == {"-"}]
    tests = [i for i, line in enumerate(lines) if line.startswith(">>>")]
    if tests and any(i < tests[0] for i in sections) and "Examples" not in lines:
        lines[tests[0] : tests[0]] = ["Examples", "--------"]


def keep_bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")  # which makes the event
    app.connect("autodoc-process-docstring", name_examples, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", keep_bars, priority=900)  # after it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
