"""Every notebook refuses impossible parameters in one call, each in one sentence."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from nb_lib.errors import InputError
from nb_lib.page.parameters import RULES, check

NOTEBOOKS = {path.stem: path for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb")}


def parameters(notebook):
    cells = nbformat.read(NOTEBOOKS[notebook], as_version=nbformat.NO_CONVERT).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_parameters_of_every_notebook_are_accepted(notebook):
    check(notebook, **parameters(notebook))


def test_every_rule_is_for_a_parameter_of_a_notebook():
    used = {name for notebook in NOTEBOOKS for name in parameters(notebook)}
    used |= {f"{notebook}.{name}" for notebook in NOTEBOOKS for name in parameters(notebook)}
    assert set(RULES) <= used


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_parameter_takes_what_cannot_be_a_value(notebook):
    for name in parameters(notebook):
        with pytest.raises(InputError) as error:
            check(notebook, **{name: object()})
        assert name in str(error.value) or str(error.value).startswith("unknown ")


@pytest.mark.parametrize(
    ("notebook", "name", "value", "what"),
    [
        ("", "n", 9, "a whole number, 10 or more"),
        ("", "n", True, "a whole number"),
        ("", "n", 1000.0, "a whole number, 10 or more"),
        ("turning_up", "n", 50, "a whole number, 100 or more"),
        ("gradient_noise", "count", 5001, "a whole number, from 8 to 5000"),
        ("escape", "steps", 120, "a multiple of 50"),
        ("", "eta", 0, "a finite number greater than 0"),
        ("", "eta", math.nan, "a finite number"),
        ("", "eta", "0.1", "a finite number"),
        ("", "spread", -1.0, "a finite number of at least 0"),
        ("", "turn", math.inf, "a finite number"),
        ("sgd_noise", "spread", [1.0], "a list of 2 values"),
        ("", "alphas", [], "a list of at least one value"),
        ("", "stores", "folder", "a list of at least one value"),
        ("", "train", 1, "True or False"),
        ("", "store", "", "the path of a folder"),
        ("", "device", 0, "'cpu', 'cuda' or 'auto'"),
        ("", "scheduler", 8786, "an address like 'tcp://host:8786'"),
    ],
)
def test_a_sentence_names_the_parameter_what_it_must_be_and_what_it_was(notebook, name, value, what):
    with pytest.raises(InputError) as error:
        check(notebook, **{name: value})
    assert str(error.value) == f"{name} must be {what}, not {value!r}."


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("batch_sizes", [50, 0], "a whole number, 1 or more, not 0."),
        ("alphas", [1.0, "2"], "a finite number, not '2'."),
        ("curvatures", (25, -50), "a finite number greater than 0, not -50."),
        ("shifts", [0.0, None], "a finite number, not None."),
    ],
)
def test_one_bad_value_in_a_list_is_shown(name, value, what):
    with pytest.raises(InputError, match=f"^each of {name} must be {what}"):
        check(**{name: value})


def test_strengths_are_refused_in_the_words_of_the_library():
    with pytest.raises(InputError, match=r"^alpha must be .* not 0\.5\.$"):
        check(alphas=[1.0, 0.5])
    with pytest.raises(InputError, match=r"^the noise strength a must be .* not -0\.1\.$"):
        check(strengths=[0.0, -0.1])


@pytest.mark.parametrize(
    ("name", "value", "near"),
    [
        ("network", "digit-mlp", "digits-mlp"),
        ("dataset", "mnis", "mnist"),
        ("grid", "ne-fig2-f", "ne-fig2-f1"),
        ("scale", "smal", "small"),
        ("select", "tests", "test"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_known_one(name, value, near):
    with pytest.raises(InputError, match=f"did you mean '{near}'"):
        check(**{name: value})


def test_residual_networks_of_any_depth_are_accepted():
    check(network="resnet44")
    check(network="resnet8")
    with pytest.raises(InputError, match="did you mean 'resnet44'"):
        check(network="resnet45")


def test_the_chapter_on_smoothout_trains_grids_of_table_1_only():
    check("smoothout_experiments", grid="smoothout-table1-c3")
    check(grid="smoothout-table4-resnet44")
    with pytest.raises(InputError) as error:
        check("smoothout_experiments", grid="smoothout-table4-resnet44")
    names = "smoothout-table1-f1, smoothout-table1-c1, smoothout-table1-c3"
    assert str(error.value) == f"grid must be one of Table I's, {names}, not 'smoothout-table4-resnet44'."


def test_none_is_a_value_only_where_a_notebook_says_so():
    check("compare", scale=None)
    check("ne_experiments", seeds=None, store=None, budget=None, scheduler=None, dataset=None)
    for notebook, name in (("ne_experiments", "scale"), ("smoothout", "seeds"), ("", "n")):
        with pytest.raises(InputError):
            check(notebook, **{name: None})


def test_numbers_of_numpy_and_folders_of_images_are_accepted(tmp_path):
    check(n=np.int64(20), eta=np.float64(0.1), alphas=(1, np.float32(2)), dataset="folder:mine", store=tmp_path)


def test_a_parameter_without_a_rule_is_an_error_of_the_author():
    with pytest.raises(KeyError, match=r"nb_lib\.page\.parameters\.RULES"):
        check(temperature=1.0)


def test_torch_is_not_loaded():
    code = "import sys, nb_lib.page.parameters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
