"""Make the built book self-contained: plotly.js and MathJax out of the installed wheels, figures as HTML."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core import render
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the book needs the package {name}: install this project's extra 'book'")
    return Path(spec.origin).parent


def copy_libraries(app: Sphinx, error: Exception | None) -> None:
    if error or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    shutil.copy(_package_folder("plotly") / "package_data/plotly.min.js", static)

    # What a page can ask of MathJax, whose configuration is tex-chtml.js: 2 MB of the wheel's 24.
    mathjax = _package_folder("sphinx-mathjax-offline") / "static/mathjax"
    for folder in ("output/chtml/fonts/woff-v2", "input/tex/extensions"):
        shutil.copytree(mathjax / folder, static / "mathjax" / folder, dirs_exist_ok=True)
    shutil.copy(mathjax / "tex-chtml.js", static / "mathjax")


class PlotlyForm(render.MimeRenderPlugin):
    """Accept the plotly form of a figure, which is for JupyterLab, beside the HTML form that is shown.

    myst-nb would warn that it does not know it. A figure without HTML, which would be missing from the page,
    still gets a warning, that none of its forms can be shown, and so fails the build.
    """

    @staticmethod
    def handle_mime(
        renderer: render.NbElementRenderer, data: render.MimeData, inline: bool
    ) -> list[nodes.Element] | None:
        """Return an empty node, never chosen, for the plotly form, and None for what myst-nb knows."""
        return [nodes.comment()] if data.mime_type == "application/vnd.plotly.v1+json" else None


def drop_widget_state(app: Sphinx, document: nodes.document) -> None:
    """Leave the state of live widgets, which without a kernel are dead, off the page: it repeats every figure."""
    NbMetadataCollector.get_js_files(app.env, app.env.docname).pop("ipywidgets_state", None)


def mend_bibliography(app: Sphinx, page: str, template: str, context: dict[str, Any], document: object) -> None:
    """Take the role of a list from a bibliography, whose entries docutils does not make list items."""
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", copy_libraries)
    app.connect("doctree-read", drop_widget_state)
    app.connect("html-page-context", mend_bibliography)
    installed = render.load_mime_renders()
    render.load_mime_renders = lambda: [*installed, PlotlyForm]  # else it takes an installed entry point
    return {"parallel_read_safe": True, "parallel_write_safe": True}
