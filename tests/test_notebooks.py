"""Conventions that every notebook keeps; what it computes is checked by nbval and by its own assertions."""

import ast
import io
import tokenize
from pathlib import Path

import nbformat
import pytest

MAX_LINES = 12
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


def test_no_outputs_but_the_checked_ones(notebook):
    checked = code_cells(notebook, "nbval-check-output")
    for cell in code_cells(notebook):
        if cell in checked:
            assert cell.outputs, f"nothing to compare with: {cell.source!r}"
        else:
            assert not cell.outputs, f"strip the output of {cell.source!r}"
            assert cell.execution_count is None, f"strip the execution count of {cell.source!r}"


def test_one_cell_of_literal_commented_parameters(notebook):
    (cell,) = code_cells(notebook, "parameters")
    lines = cell.source.splitlines()
    statements = ast.parse(cell.source).body
    assert len(statements) == len(lines), "one parameter per line, and nothing else"
    for statement in statements:
        assert isinstance(statement, ast.Assign | ast.AnnAssign)
        ast.literal_eval(
            statement.value
        )  # derived values would keep their defaults after papermill's injection
    tokens = tokenize.generate_tokens(io.StringIO(cell.source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    assert commented == set(range(1, len(lines) + 1)), "every parameter has a comment: papermill shows it"


def test_code_cells_are_short(notebook):
    for cell in code_cells(notebook):
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.source
