"""Chapters run with the values that their parameters may have: a sample of the table that `chapters.py` makes."""

import os
import subprocess
import sys
from pathlib import Path

import chapters
import nbformat
import pytest

FIRST = ["from nb_lib.page import parameters", "eta = 0.1", "globals().update(parameters.read('toy', eta=eta))"]


@pytest.mark.slow
def test_a_sample_of_all_cases_is_as_it_should_be():
    command = [sys.executable, chapters.__file__, "--sample"]
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    number = sum(map(len, chapters.SAMPLE.values()))
    assert ended.stdout.endswith(f"{number} cases, 0 not right\n")


@pytest.mark.parametrize(
    ("given", "last", "kind", "words"),
    [
        ({"eta": "1e-3"}, "assert eta == 0.001", "ok", ""),
        ({"eta": 5}, "", "refused", "eta must be a number from 0.0001 to 0.1, not 5."),
        ({}, "1 / 0", "error", "[cell3] ZeroDivisionError: division by zero"),
        ({}, "parameters.read(n=5)", "error", "[cell3] InputError: n must be a whole number, 10 or more, not 5."),
        ({}, "class Odd:\n    def _repr_html_(self):\n        1 / 0\nOdd()", "error", "[cell3] ZeroDivisionError"),
    ],
)
def test_what_became_of_a_notebook_is_told_apart(given, last, kind, words, tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(source, id=f"cell{k}") for k, source in enumerate([*FIRST, last])]
    cells[1].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "toy.ipynb")
    monkeypatch.setattr(chapters, "NOTEBOOKS", {"toy": tmp_path / "toy.ipynb"})
    outcome = chapters.attempt("toy", given)
    assert outcome.kind == kind
    assert outcome.words.startswith(words)
    assert 10 < outcome.megabytes < chapters.MOST_MB


def test_a_case_is_right_if_it_runs_within_memory_or_is_refused_beyond():
    inside, beyond = chapters.Case("n=10", {}), chapters.Case("n=9", {}, beyond=True)
    ok, large = chapters.Outcome("ok", "", 1.0, 500.0), chapters.Outcome("ok", "", 1.0, 4500.0)
    refused, error = chapters.Outcome("refused", "", 1.0, 500.0), chapters.Outcome("error", "", 1.0, 500.0)
    assert [chapters.is_right(inside, one) for one in (ok, large, refused, error)] == [True, False, False, False]
    assert [chapters.is_right(beyond, one) for one in (ok, refused, error)] == [False, True, False]


@pytest.mark.parametrize("notebook", chapters.NOTEBOOKS)
def test_every_parameter_of_every_notebook_is_tried(notebook, tmp_path):
    base, *others = chapters.cases(notebook, tmp_path)
    names = [case.name for case in others]
    for name, value in base.given.items():
        ends = chapters.rule_of(notebook, name).ends
        assert all(end == value for end in ends) or any(case.startswith(f"{name}=") for case in names)
    assert set(chapters.SAMPLE.get(notebook, [])) <= set(names)
