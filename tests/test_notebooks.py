"""Conventions that every notebook keeps; what it computes is checked by nbval and by its own assertions."""

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import pytest

MAX_WIDTH = 90  # of a line of code, which is read on pages and phones
MAX_LINES = 12  # of a cell that is shown
MAX_FOLDED_LINES = 20  # of one that is shown on a click, or not at all
FOLDED = {"hide-input", "remove-input"}
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=nbformat.NO_CONVERT)


def code_cells(notebook, tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return cells if tag is None else [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def test_valid_with_cell_ids_and_the_plain_kernel(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert all(cell.get("id") for cell in notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


def test_no_outputs_are_kept(notebook):
    for cell in code_cells(notebook):
        assert not cell.outputs, f"strip the output of {cell.source!r}"
        assert cell.execution_count is None, f"strip the execution count of {cell.source!r}"


def test_one_cell_of_literal_commented_parameters(notebook):
    (cell,) = code_cells(notebook, "parameters")
    lines = cell.source.splitlines()
    statements = ast.parse(cell.source).body
    assert len(statements) == len(lines), "one parameter per line, and nothing else"
    for statement in statements:
        assert isinstance(statement, ast.Assign | ast.AnnAssign)
        ast.literal_eval(statement.value)  # derived values would keep their defaults after papermill's injection
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    assert commented == set(range(1, len(lines) + 1)), "every parameter has a comment: papermill shows it"


def test_code_cells_are_short(notebook):
    for cell in code_cells(notebook):
        is_folded = FOLDED & set(cell.metadata.get("tags", []))
        lines = cell.source.splitlines()
        assert len(lines) <= (MAX_FOLDED_LINES if is_folded else MAX_LINES), cell.source
        assert max(map(len, lines)) <= MAX_WIDTH, cell.source


def test_a_line_holds_one_statement(notebook):
    for cell in code_cells(notebook):
        statements = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.stmt)]
        lines = [statement.lineno for statement in statements]
        assert len(lines) == len(set(lines)), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_one_call_reads_all_parameters(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    (parameters,) = code_cells(notebook, "parameters")
    names = [statement.targets[0].id for statement in ast.parse(parameters.source).body]

    source = "\n".join(cell.source for cell in code_cells(notebook))
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if ast.unparse(call.func) == "parameters.read"]
    assert [(given.arg, ast.unparse(given.value)) for given in call.keywords] == [(name, name) for name in names]
    assert [ast.literal_eval(argument) for argument in call.args] == [path.stem]  # rules of its own
    assert any(ast.unparse(other).startswith("globals().update(parameters.read(") for other in calls)


def test_one_bar_at_most_stands_before_a_picture(notebook):
    """Of code cells in a row, one may be folded; what only draws is left out, with `remove-input`."""
    bars = 0
    for cell in notebook.cells:
        if cell.cell_type != "code":
            bars = 0
        elif "hide-input" in cell.metadata.get("tags", []):
            bars += 1
        assert bars <= 1, f"a second bar in a row: {cell.id}"


def test_links_stand_beside_the_figure_that_they_set(notebook):
    """A reader who follows one must not lose the text: its figure is drawn at most three cells away."""
    places = {}
    for k, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            places |= dict.fromkeys(re.findall(r'\bname="([\w-]+)"', cell.source), k)
    for k, cell in enumerate(notebook.cells):
        for name in re.findall(r'href="#([\w-]+)\?', cell.source):
            assert name in places, f"{cell.id} links to no figure of this notebook: {name}"
            assert abs(places[name] - k) <= 3, f"{cell.id} is far from the figure {name}"
