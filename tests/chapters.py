"""Run every chapter with every documented value of its parameters, and print what became of each in a table.

    python tests/chapters.py [NOTEBOOK …] [--only NAME …] [--failed]

Each case is one parameter away from a tiny base: the `ends` of its rule in `nb_lib.page.parameters`, which must run,
and what lies `beyond`, which the cell after the parameters must refuse.  Papermill puts the values in; the cells run in
a fork of a process that has imported what they need, on small data sets made for it.
"""

import argparse
import ast
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from made_data import write_cifar, write_folder, write_mnist
from papermill.engines import Engine, papermill_engines
from traitlets.config import Config

from nb_lib.errors import InputError
from nb_lib.page.parameters import RULES, Rule

NOTEBOOKS = {path.stem: path for path in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))}
MOST_MB, MOST_SECONDS = 4000, 3600  # of a case
EMPTY = "an empty folder"  # in whose place one is put
TINY = {
    "train_size": 48,
    "batch_size": 6,
    "batch_sizes": [6, 10],
    "large_batch": 10,
    "seeds": 2,
    "epochs": 3,
    "device": "cpu",
    "landscape.train_size": 24,
    "level": 1.0,
    "landscape.strengths": [0.01, 0.05],
    "landscape.alpha": 1.5,
    "ne_experiments.budget": 3,
    "smoothout_experiments.budget": 3,
    "gradient_noise.count": 20,
    "escape.count": 50,
    "escape.steps": 100,
    "escape.batch_size": 8,
    "sgd_noise.count": 500,
    "turning_up.count": 500,
}
#: Values beside the ends of the rules: a full batch, a longer list, more of what has no upper end, another order.
MORE = {
    "dataset": ["folder:pets"],
    "train_size": [200],
    "batch_size": [48],
    "batch_sizes": [[48, 7], [12, 12]],
    "sharpness.batch_sizes": [[24, 12]],
    "landscape.batch_size": [24],
    "large_batch": [24],
    "gradient_noise.batch_size": [47],
    "gradient_noise.train_size": [],
    "alphas": [[4.0, 1.5], [2.0, 2.0]],
    "smoothout.strengths": [[0.1], [0.2, 0.0, 0.1]],
    "seeds": [7],
    "epochs": [10],
    "samples": [7],
    "n": [5000],
    "count": [3000],
    "walkers": [3000],
    "steps": [2000],
    "seed": [12345],
    "store": [EMPTY],
    "stores": [["../book/data", "../book/data"], [EMPTY]],
}


#: Of each notebook some cases that once failed, and together take half a minute: what `make test` runs.
SAMPLE = {
    "claims": ["stores=['an empty folder']"],
    "compare": ["base as text", "stores=['an empty folder']"],
    "gradient_noise": ["batch_size=1"],
    "large_batches": ["seeds=1"],
    "ne_experiments": ["budget=0", "train=False", "train=2"],
    "noise_enhancement": ["network=smoothout-f1", "epochs=1", "batch_sizes=[48, 7]"],
    "one_copy": ["eta=0.0001"],
    "same_or_different": ["steps=1"],
    "sgd_noise": ["n=20"],
    "sharp_and_flat": ["shifts=[0]"],
    "smoothed_loss": ["small=[3]"],
    "smoothout": ["strengths=[0.1]"],
    "smoothout_experiments": ["train=False"],
}


class Case(NamedTuple):
    """What papermill is given, and whether it is to be refused."""

    name: str
    given: dict[str, Any]
    beyond: bool = False


class Outcome(NamedTuple):
    """ "ok", "refused" by the cell that checks the parameters, or the "error" of another, in words."""

    kind: str
    words: str
    seconds: float
    megabytes: float


def rule_of(notebook: str, name: str) -> Rule:
    return RULES.get(f"{notebook}.{name}") or RULES[name]


def cells(notebook: str) -> list[Any]:
    read = nbformat.read(NOTEBOOKS[notebook], as_version=nbformat.NO_CONVERT)
    return [cell for cell in read.cells if cell.cell_type == "code"]


def parameters(notebook: str) -> dict[str, Any]:
    (cell,) = [cell for cell in cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}


def cases(notebook: str, root: Path) -> Iterator[Case]:
    """The base, the same as text, and each parameter's values."""
    defaults = parameters(notebook)
    base = {name: TINY.get(f"{notebook}.{name}", TINY.get(name, value)) for name, value in defaults.items()}
    base |= {"data_root": str(root)} if "data_root" in base else {}
    yield Case("base", base)
    yield Case("base as text", {name: str(value) for name, value in base.items()})
    for name in defaults:
        rule = rule_of(notebook, name)
        more = MORE.get(f"{notebook}.{name}", MORE.get(name, []))
        for value in [*rule.ends, *more]:
            given = base | {name: value}
            if name == "network":
                given["dataset"] = "folder:pets"  # every network takes colors, and 16 x 16 of them
            if value == 4000:
                given["dataset"] = "mnist"  # which has as many
            if value == "cifar100" and "train_size" in base:
                given["train_size"] = 100  # as it has classes
            if given == base:
                continue
            if name == "scale" and "train" in base:
                given["train"] = False  # on data sets that are not there
            if EMPTY in (value, *(value if isinstance(value, list) else ())):
                folder = tempfile.mkdtemp(dir=root)
                given[name] = folder if value == EMPTY else [folder]
            yield Case(f"{name}={value}", given)
        for value in rule.beyond:
            yield Case(f"{name}={value}", base | {name: value}, beyond=True)


class Here(Engine):
    """Runs the cells of a notebook in this process."""

    @classmethod
    def execute_managed_notebook(cls, manager: Any, kernel_name: str, **_: Any) -> None:
        for cell in manager.nb.cells:
            if cell.cell_type == "code":
                run_cell(cell)


papermill_engines.register("here", Here)


def run_cell(cell: Any) -> None:
    """Run one cell as a kernel would: what its last line shows is made, in all forms."""
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.display_formatter.active_types = shell.display_formatter.format_types
    seen: list[Any] = []  # also what is raised while something is shown
    shell.showtraceback = lambda given=None, **_: seen.append((given or sys.exc_info())[1])
    result = shell.run_cell(cell.source)
    error = result.error_before_exec or result.error_in_exec or next(iter(seen), None)
    if error is not None:
        error.cell = cell
        raise error


def run(notebook: str, given: dict[str, Any]) -> tuple[str, str]:
    """Run the notebook in this process: what became of it, in words."""
    try:
        papermill.execute_notebook(NOTEBOOKS[notebook], None, given, engine_name="here", progress_bar=False)
    except Exception as error:
        cell = getattr(error, "cell", None)
        refused = isinstance(error, InputError) and cell.source.startswith("globals().update(")
        where = "" if refused or cell is None else f"[{cell.get('id')}] {type(error).__name__}: "
        return "refused" if refused else "error", f"{where}{error}"
    return "ok", ""


def attempt(notebook: str, given: dict[str, Any]) -> Outcome:
    """Run the notebook in a fork of this process, for its time and memory."""
    reading, writing = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.alarm(MOST_SECONDS)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        with os.fdopen(writing, "w") as pipe:
            json.dump(run(notebook, given), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status, usage = os.wait4(child, 0)
    kind, words = json.loads(told) if told else ("error", f"ended by signal {os.waitstatus_to_exitcode(status)}")
    return Outcome(kind, " ".join(words.split()), time.monotonic() - start, usage.ru_maxrss / 1024)


def is_right(case: Case, outcome: Outcome) -> bool:
    return outcome.kind == ("refused" if case.beyond else "ok") and outcome.megabytes < MOST_MB


def made_data(root: Path) -> None:
    """Small data sets of every kind, for this process."""
    patch = pytest.MonkeyPatch()
    write_mnist(root, "MNIST", train=4000)
    write_mnist(root, "FashionMNIST", train=1000)
    write_cifar(root, "cifar10", patch, times=20)
    write_cifar(root, "cifar100", patch, times=10)
    write_folder(root, n=(500, 4), size=(16, 16))


def prepare(notebook: str) -> None:
    """Make this process one that cases can be forked from: what the notebook imports is loaded."""
    os.chdir(NOTEBOOKS[notebook].parent)
    for cell in cells(notebook):
        if "parameters" in cell.metadata.get("tags", []):
            break
        run_cell(cell)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help=f"of {', '.join(NOTEBOOKS)}")
    options.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases whose names begin so")
    options.add_argument("--failed", action="store_true", help="print what is not right only")
    options.add_argument("--sample", action="store_true", help="a case or two of each, as the tests do")
    given = options.parse_args()
    wrong = number = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made_data(root)
        for notebook in given.notebooks or (SAMPLE if given.sample else NOTEBOOKS):
            prepare(notebook)
            for case in cases(notebook, root):
                if given.only and not case.name.startswith(tuple(given.only)):
                    continue
                if given.sample and case.name not in SAMPLE[notebook]:
                    continue
                outcome = attempt(notebook, case.given)
                right = is_right(case, outcome)
                number += 1
                wrong += not right
                if not (right and given.failed):
                    mark = " " if right else "✗"
                    measured = f"{outcome.seconds:6.1f} s {outcome.megabytes:6.0f} MB"
                    print(
                        f"{mark} {notebook:21} {case.name:40} {outcome.kind:8}{measured}  {outcome.words}", flush=True
                    )
    print(f"{number} cases, {wrong} not right")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
