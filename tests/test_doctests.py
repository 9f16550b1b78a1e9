"""The examples in docstrings stay true."""

import doctest
import importlib
import pkgutil

import pytest

import nb_lib

MODULES = ["nb_lib", *(f"nb_lib.{module.name}" for module in pkgutil.iter_modules(nb_lib.__path__))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_examples_are_found() -> None:
    assert doctest.testmod(importlib.import_module("nb_lib.noise_enhancement")).attempted >= 1
