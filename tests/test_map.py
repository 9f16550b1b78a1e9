"""The map of equations leads to code that cites them, and the library's parts are where the design says."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest

import nb_lib

ROOT = Path(__file__).parents[1]
CITATION = re.compile(r"(NE|SmoothOut) eqs?\. (\d+(?:(?:, | and | to )\d+)*)")
PLACES = [(equation, place) for equation, (_, places) in nb_lib.EQUATIONS.items() for place in places]


def cited(text: str | None) -> set[str]:
    """The equations that a text names: "NE eqs. 4 and 10", "SmoothOut eqs. 1, 5, 9", "NE eqs. 7 to 9"."""
    equations = set()
    for paper, numbers in CITATION.findall(" ".join((text or "").split())):
        parts = re.split(r", | and ", numbers)
        for part in parts:
            first, _, last = part.partition(" to ")
            equations |= {f"{paper} eq. {n}" for n in range(int(first), int(last or first) + 1)}
    return equations


def test_every_numbered_equation_of_both_papers_is_on_the_map():
    expected = [f"NE eq. {n}" for n in range(1, 12)] + [f"SmoothOut eq. {n}" for n in range(1, 26)]
    assert list(nb_lib.EQUATIONS) == expected


@pytest.mark.parametrize(("equation", "place"), PLACES, ids=[" in ".join(pair) for pair in PLACES])
def test_what_the_map_names_is_there_and_cites_the_equation(equation, place):
    thing = resolve_name(f"nb_lib.{place}")
    assert callable(thing)
    assert equation in cited(inspect.getdoc(thing)) | cited(inspect.getdoc(sys.modules[thing.__module__]))


def test_every_module_on_top_is_on_the_page_of_the_library_and_in_the_readme():
    top = {path.stem for path in (ROOT / "nb_lib").glob("*.py")} - {"__init__", "__main__"}
    page, readme = (ROOT / "book/api.md").read_text(), (ROOT / "README.md").read_text()
    assert top <= {name.rpartition(".")[2] for name in re.findall(r"automodule:: ([\w.]+)", page)}
    assert {name for name in top if f"{name}.py" not in readme} <= {"errors"}


def test_citations_are_read_as_they_are_written():
    assert cited("see NE eqs. 4, 6 and\n    10") == {"NE eq. 4", "NE eq. 6", "NE eq. 10"}
    assert cited("SmoothOut eqs. 7 to 9, NE eq. 2") == {
        *(f"SmoothOut eq. {n}" for n in (7, 8, 9)),
        "NE eq. 2",
    }


@pytest.mark.parametrize("name", ["", ".errors", ".noise_enhancement", ".toys", ".walkers", ".papers", ".lab.runs"])
def test_what_needs_no_torch_loads_none(name):
    code = f"import sys, nb_lib{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_the_science_imports_no_presentation():
    """One direction: `page` stands on the science and the machinery, nothing below stands on it."""
    code = "import sys, nb_lib.measures, nb_lib.compare, nb_lib.lab.sweeps, nb_lib.walkers\n"
    code += "sys.exit(any(m.startswith('nb_lib.page') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
