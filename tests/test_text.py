"""The one table of spellings: what a person types in a shell, for papermill or in YAML 1.1, and what it means."""

import math
import subprocess
import sys

import pytest
import yaml

from nb_lib.errors import InputError
from nb_lib.lab.text import read

STEPS = tuple[tuple[int, float], ...]
SPELLINGS = [
    (bool, True, ["true", "True", "TRUE", "yes", "Yes", "on", "ON", "y", "Y", " true ", "1"]),
    (bool, False, ["false", "False", "FALSE", "no", "No", "off", "Off", "n", "N", "0"]),
    (float | None, None, ["none", "None", "NONE", "null", "Null", "~", "", " "]),
    (str | None, None, ["none", "None", "null"]),
    (int, 1000, ["1000", "1_000", "+1000", " 1000 ", "1e3", "1E3", "1000.0", "0x3e8", "0b1111101000"]),
    (int, -1, ["-1", "-1.0"]),
    (float, 0.001, ["1e-3", "1E-3", "0.001", ".001", "1.0e-3", "0.1e-2"]),
    (float, 1000.0, ["1e3", "1_000", "1000.", "+1e+3"]),
    (float, math.inf, ["inf", "Infinity", ".inf", "+.inf", "1e999"]),
    (float, -math.inf, ["-inf", "-Infinity", "-.INF"]),
    (float | None, 0.5, ["0.5", ".5"]),
    (int | None, 3, ["3"]),
    (str, "sgd", ["sgd", '"sgd"', "'sgd'"]),
    (str, "true", ["true"]),
    (str, "", ["", "''"]),
    (str | None, "results", ["results", '"results"']),
    (str | None, "~", ["~"]),
    (str | None, "", [""]),
    (list[float], [1.0, 1.5], ["[1, 1.5]", "(1, 1.5)", "1, 1.5", "1,1.5", "[1,1.5,]", "[ 1 , 15e-1 ]"]),
    (list[float], [0.1], ["[0.1]", "0.1", "(0.1,)", "0.1,"]),
    (list[int], [], ["[]", "()", "[ ]"]),
    (tuple[int, ...], (20, 200), ["[20, 200]", "20,200", "(20, 2e2)"]),
    (list[str], ["a,b", "c"], ["['a,b', c]", "\"a,b\", 'c'"]),
    (list[str], ["../book/data"], ["../book/data", "[../book/data]", "['../book/data']"]),
    (STEPS, ((10, 0.1), (20, 0.01)), ["[[10, 0.1], [20, 0.01]]", "(10, .1), (20, 1e-2)", "((10, 0.1), (20, 0.01),)"]),
    (STEPS, ((10, 0.1),), ["[[10, 0.1]]", "((10, 0.1),)"]),
    (list[float] | None, None, ["none", ""]),
]


@pytest.mark.parametrize(("kind", "meaning", "text"), [(k, m, text) for k, m, texts in SPELLINGS for text in texts])
def test_what_is_typed_is_read_by_what_is_meant(kind, meaning, text):
    found = read("field", text, kind)
    assert found == meaning
    assert type(found) is type(meaning)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (bool, "maybe", "true or false"),
        (bool, "2", "true or false"),
        (bool, "", "true or false"),
        (int, "2.5", "a whole number, as 100"),
        (int, "inf", "a whole number"),
        (int, "nan", "a whole number"),
        (int, "true", "a whole number"),
        (int, "010", "a whole number"),  # eight in YAML 1.1 and C, ten in JSON 5
        (int, "1 000", "a whole number"),
        (int | None, "some", "a whole number, as 100, or none"),
        (float, "0,1", "a number, as 0.1 or 1e-3"),
        (float, "1/3", "a number"),
        (float, "50%", "a number"),
        (float, "", "a number"),
        (float, "[0.1]", "a number"),
        (list[float], "one, two", r"a list of numbers, as \[0.1, 0.1\]"),
        (list[float], "[1, [2]]", "a list"),
        (list[float], "[1, 2", "a list"),
        (list[float], "1,,2", "a list"),
        (list[int], "[1, 2.5]", r"a list of whole numbers, as \[10, 10\]"),
        (STEPS, "10, 0.1", r"a list of \(whole number, number\), as \[\[10, 0.1\], \[10, 0.1\]\]"),
        (STEPS, "[[0.5, 0.1]]", "a list"),
        (STEPS, "[[1, 0.1, 2]]", "a list"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_to_type(kind, text, said):
    with pytest.raises(InputError, match=f"^field must be {said}") as caught:
        read("field", text, kind)
    assert str(caught.value).endswith(f", not {text!r}.")


@pytest.mark.parametrize("value", [None, 1, 2.5, True, [1, 2.5], (None,), {"a": 1}, math.nan])
@pytest.mark.parametrize("kind", [bool, int, float | None, list[float], str])
def test_what_is_no_text_is_left_to_the_checks(kind, value):
    assert read("field", value, kind) is value or read("field", value, kind) == value


def test_texts_in_a_list_are_read_each():
    """YAML 1.1 makes ``[1e-3, 0.1]`` a list of a text and a number."""
    there = yaml.safe_load("[1e-3, 0.1, 1_000, 2.5e-1]")
    assert there[0] == "1e-3"
    assert read("alphas", there, list[float]) == [0.001, 0.1, 1000, 0.25]


@pytest.mark.parametrize("text", ["yes", "No", "on", "OFF", "true", "False"])
def test_flags_are_as_yaml_reads_them(text):
    assert read("train", text, bool) is yaml.safe_load(text)


@pytest.mark.parametrize("text", ["0x1F", "1_000", "+3", "-7", "0b11", "12"])
def test_whole_numbers_are_as_yaml_reads_them(text):
    assert read("n", text, int) == yaml.safe_load(text)


def test_reading_does_not_load_torch():
    code = "import sys, nb_lib.lab.text; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
