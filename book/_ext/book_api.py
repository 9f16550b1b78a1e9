"""The page of the library: docstrings as reStructuredText, in which |w| would be a substitution."""

from typing import Any

from sphinx.application import Sphinx


def keep_bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")  # which makes the event
    app.connect("autodoc-process-docstring", keep_bars, priority=900)  # after napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
