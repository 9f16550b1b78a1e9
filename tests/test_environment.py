"""environment.yml repeats nothing of pyproject.toml, so that the two cannot drift apart."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def test_only_python_pip_and_this_project():
    python, pip, packages = DEPENDENCIES
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert list(packages) == ["pip"]
    assert len(packages["pip"]) == 1


def test_all_extras_are_installed():
    extras = re.fullmatch(r"-e \.\[(.+)\]", DEPENDENCIES[-1]["pip"][0])
    assert extras is not None
    assert set(extras[1].split(",")) == set(PROJECT["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text()
    assert f"'.[{extras[1]}]'" in makefile
