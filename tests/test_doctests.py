"""The examples in docstrings stay true, and every module that others import from has one."""

import doctest
import importlib
import pkgutil

import pytest

import nb_lib

MODULES = [
    "nb_lib",
    *(m.name for m in pkgutil.walk_packages(nb_lib.__path__, "nb_lib.") if not m.name.endswith("__main__")),
]
#: The top of the library, and what the README and the notebooks import from below.
PUBLIC = {name for name in MODULES if name.count(".") == 1} | {
    f"nb_lib.{name}" for name in ("lab.data", "lab.runs", "lab.store", "lab.sweeps", "lab.training", "page.parameters")
}
WITHOUT = {"nb_lib.lab", "nb_lib.page"}  # empty packages


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted > 0 or name not in PUBLIC - WITHOUT
