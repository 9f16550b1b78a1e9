"""Every notebook reads its parameters in one call, which refuses impossible ones in one sentence each."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest

from nb_lib.errors import InputError
from nb_lib.page.parameters import RULES, read

NOTEBOOKS = {path.stem: path for path in (Path(__file__).parents[1] / "notebooks").glob("*.ipynb")}


def parameters(notebook):
    cells = nbformat.read(NOTEBOOKS[notebook], as_version=nbformat.NO_CONVERT).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_parameters_of_every_notebook_are_accepted_also_as_text(notebook):
    given = parameters(notebook)
    assert read(notebook, **given) == given
    assert read(notebook, **{name: str(value) for name, value in given.items()}) == given


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("train", "false", False),
        ("download", "NO", False),
        ("ne_experiments.seeds", "1", 1),
        ("train_size", "~", None),
        ("eta", "1e-3", 0.001),
        ("alphas", "[1, 1.5]", [1.0, 1.5]),
        ("alphas", "2", [2.0]),
        ("alphas", [1, "1e1"], [1, 10.0]),
        ("stores", "../book/data", ["../book/data"]),
        ("store", "none", None),
        ("store", "results", "results"),
    ],
)
def test_text_is_read_as_what_is_meant(name, typed, meant):
    notebook, _, plain = name.rpartition(".")
    found = read(notebook, **{plain: typed})[plain]
    assert found == meant
    assert type(found) is type(meant)


def test_text_that_is_none_is_refused_with_a_way_to_type_it():
    with pytest.raises(InputError, match=r"^train must be true or false, not 'maybe'\.$"):
        read(train="maybe")
    with pytest.raises(InputError, match=r"^alphas must be a list of numbers, as .* not '1 2'\.$"):
        read(alphas="1 2")


@pytest.mark.parametrize("name", RULES)
def test_the_ends_of_every_rule_are_accepted_and_what_lies_beyond_is_refused(name):
    plain = name.rpartition(".")[2]
    rule = RULES[name]
    for value in rule.ends:
        rule.check(plain, value)
    for value in rule.beyond:
        with pytest.raises(InputError):
            rule.check(plain, value)


@pytest.mark.parametrize(
    ("notebook", "given", "clue"),
    [
        ("smoothout", {"network": "digits-mlp", "train_size": 50, "batch_size": 51}, "51"),
        ("noise_enhancement", {"network": "digits-mlp", "train_size": 50, "batch_sizes": [10, 60]}, "60"),
        ("landscape", {"network": "digits-mlp", "train_size": 50, "batch_size": 1, "large_batch": 70}, "70"),
        ("escape", {"n": 100, "batch_size": 100}, "batch_size must be a whole number, from 1 to 99, not 100"),
        ("gradient_noise", {"network": "digits-mlp", "train_size": None, "batch_size": 600}, "from 1 to 599"),
        ("noise_enhancement", {"network": "ne-f1", "stop_below": 1.0, "batch_sizes": [9]}, "halve_at"),
    ],
)
def test_what_does_not_go_together_is_refused(notebook, given, clue):
    with pytest.raises(InputError, match=clue):
        read(notebook, **given)


def test_every_rule_is_for_a_parameter_of_a_notebook():
    used = {name for notebook in NOTEBOOKS for name in parameters(notebook)}
    used |= {f"{notebook}.{name}" for notebook in NOTEBOOKS for name in parameters(notebook)}
    assert set(RULES) <= used


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_no_parameter_takes_what_cannot_be_a_value(notebook):
    for name in parameters(notebook):
        with pytest.raises(InputError) as error:
            read(notebook, **{name: object()})
        assert name in str(error.value) or str(error.value).startswith("unknown ")


@pytest.mark.parametrize(
    ("notebook", "name", "value", "what"),
    [
        ("", "n", 9, "a whole number, 10 or more"),
        ("", "n", True, "a whole number"),
        ("", "n", 1000.0, "a whole number, 10 or more"),
        ("turning_up", "n", 50, "a whole number, 100 or more"),
        ("gradient_noise", "count", 5001, "a whole number, from 8 to 5000"),
        ("gradient_noise", "train_size", 60_000, "a whole number, from 40 to 4000"),
        ("escape", "steps", 120, "a multiple of 50"),
        ("", "eta", 0, "a number from 0.0001 to 0.1"),
        ("", "eta", math.nan, "a number from 0.0001 to 0.1"),
        ("", "eta", True, "a number from 0.0001 to 0.1"),
        ("", "spread", -1.0, "a number from 0 to 100"),
        ("", "turn", math.inf, "a number from -100 to 100"),
        ("sgd_noise", "spread", [1.0], "a list of 2 values"),
        ("", "alphas", [], "a list of at least one value"),
        ("", "train", 1, "True or False"),
        ("", "store", "", "the path of a folder"),
        ("", "device", 0, "'cpu', 'cuda' or 'auto'"),
        ("", "scheduler", 8786, "an address like 'tcp://host:8786'"),
    ],
)
def test_a_sentence_names_the_parameter_what_it_must_be_and_what_it_was(notebook, name, value, what):
    with pytest.raises(InputError) as error:
        read(notebook, **{name: value})
    assert str(error.value) == f"{name} must be {what}, not {value!r}."


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("batch_sizes", [50, 0], "a whole number, 1 or more, not 0."),
        ("alphas", [1.0, True], "a finite number, not True."),
        ("curvatures", (25, -50), "a number from 25 to 2000, not -50."),
        ("shifts", [0.0, None], "a number from 0 to 0.6, not None."),
    ],
)
def test_one_bad_value_in_a_list_is_shown(name, value, what):
    with pytest.raises(InputError, match=f"^each of {name} must be {what}"):
        read(**{name: value})


def test_strengths_are_refused_in_the_words_of_the_library():
    with pytest.raises(InputError, match=r"^alpha must be .* not 0\.5\.$"):
        read(alphas=[1.0, 0.5])
    with pytest.raises(InputError, match=r"^the noise strength a must be .* not -0\.1\.$"):
        read(strengths=[0.0, -0.1])


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
        read(**{name: value})


def test_residual_networks_of_any_depth_are_accepted():
    read(network="resnet44")
    read(network="resnet8")
    with pytest.raises(InputError, match="did you mean 'resnet44'"):
        read(network="resnet45")


@pytest.mark.parametrize("given", [{"network": "alexnet"}, {"network": "resnet18"}, {"dataset": "imagenet"}])
def test_what_no_chapter_can_train_is_refused_with_what_can(given):
    [(name, value)] = given.items()
    with pytest.raises(InputError, match=rf"^{value} is trained .*`torchrun examples/imagenet\.py` alone: .*{name}\.$"):
        read("sharpness", **given)
    assert value not in RULES[name].ends


def test_chapters_train_grids_of_their_own_paper_only():
    read("smoothout_experiments", grid="smoothout-table1-c3")
    read("ne_experiments", grid="ne-table3-c2")
    with pytest.raises(InputError, match=r"Known are smoothout-table1-f1, smoothout-table1-c1, smoothout-table1-c3\.$"):
        read("smoothout_experiments", grid="smoothout-table4-resnet44")
    with pytest.raises(InputError, match="unknown grid 'smoothout-table1-c3'"):
        read("ne_experiments", grid="smoothout-table1-c3")


def test_none_is_a_value_only_where_a_notebook_says_so():
    read("compare", scale=None)
    read("ne_experiments", seeds=None, store=None, budget=None, scheduler=None, dataset=None)
    for notebook, name in (("ne_experiments", "scale"), ("smoothout", "seeds"), ("", "n")):
        with pytest.raises(InputError):
            read(notebook, **{name: None})


def test_numbers_of_numpy_and_folders_of_images_are_accepted(tmp_path):
    read(n=np.int64(20), eta=np.float64(0.1), alphas=(1, np.float32(2)), dataset="folder:mine", store=tmp_path)


def test_a_parameter_without_a_rule_is_an_error_of_the_author():
    with pytest.raises(KeyError, match=r"nb_lib\.page\.parameters\.RULES"):
        read(temperature=1.0)


def test_torch_is_not_loaded():
    code = "import sys, nb_lib.page.parameters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
