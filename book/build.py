"""Bring the built book up to date: execute its notebooks in parallel, then build the pages.

`make book` and `make test` run this; so can you, from anywhere: `python book/build.py`. In `make test` nbval has
executed the notebooks before (see keep_outputs.py), and the book shows what it has seen.
jupyter-cache knows a notebook by its code alone. The cache is therefore thrown away when anything else that
decides a result has changed: the library, the recorded data, the installed packages.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path

import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import JupyterCacheAbstract
from jupyter_cache.executors import load_executor
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "_build/.jupyter_cache"  # where Jupyter Book looks for it
HTML = ROOT / "_build/html"
QUIET = {"TQDM_DISABLE": "1"}  # a progress bar is stray output on a page


def files(folder: str, pattern: str = "*") -> list[Path]:
    """Return the files in a folder and its subfolders, less what programs leave there."""
    droppings = {"__pycache__", ".ipynb_checkpoints"}
    return [p for p in ROOT.glob(f"{folder}/**/{pattern}") if p.is_file() and not droppings & set(p.parts)]


def fingerprint(paths: Iterable[Path], *also: str) -> str:
    """Return a hash of the names and contents of these files, and of other text."""
    contents = (f"{p.relative_to(ROOT)} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in sorted(paths))
    return hashlib.sha256("\n".join([*contents, *also]).encode()).hexdigest()


def is_fresh(stamp: Path, key: str) -> bool:
    """Tell whether the folder of this stamp was made from the inputs that this key stands for."""
    return stamp.exists() and stamp.read_text() == key


def results_key() -> str:
    """Return what stands for all that decides the result of a notebook, but its own code."""
    versions = sorted({f"{package.name}=={package.version}" for package in distributions()})  # one in two places is one
    library = [*files("nb_lib"), *files("book/data"), ROOT / "pyproject.toml"]
    return fingerprint(library, sys.version, *versions)


def fresh_cache(key: str) -> JupyterCacheAbstract:
    """Return the cache of executed notebooks, emptied if its results have another key."""
    if not is_fresh(CACHE / ".inputs", key):
        shutil.rmtree(CACHE, ignore_errors=True)
        CACHE.mkdir(parents=True)
        (CACHE / ".inputs").write_text(key)
    return get_cache(CACHE)


def execute(notebooks: Iterable[Path], cache: JupyterCacheAbstract, timeout: int) -> None:
    """Execute the notebooks that are not in the cache, side by side; exit with the traceback if one fails."""
    uris = [cache.add_nb_to_project(str(path)).uri for path in notebooks]
    executor = load_executor("local-parallel", cache, logging.Logger("execution", logging.ERROR))
    waiting = [record.uri for record in executor.get_records(uris)]
    if waiting:
        print("Executing", *(Path(uri).relative_to(ROOT) for uri in waiting), flush=True)
    for _ in range(2):  # the second time for kernels that did not start: two at once can get the same port
        if waiting:
            waiting = executor.run_and_cache(filter_uris=waiting, timeout=timeout).errored

    failed = executor.get_records(uris, clear_tracebacks=False)
    for record in failed:
        trace = record.traceback or "Its kernel did not start, or died: see above."
        trace = trace[max(0, trace.find("An error occurred")) :]  # the notebook's part of the traceback
        print(f"\n{Path(record.uri).relative_to(ROOT)} failed.\n{trace}", file=sys.stderr)
    if failed:
        sys.exit("The book was not built, because a notebook failed: see above.")


def main() -> None:
    """Do what is out of date, and say where the book is."""
    os.environ.update(QUIET)
    results = results_key()
    commit = subprocess.run("git describe --always --dirty", shell=True, cwd=ROOT, capture_output=True).stdout
    sources = [*files("book"), *files("notebooks"), ROOT / "_config.yml", ROOT / "_toc.yml"]
    book = fingerprint(sources, results, commit.decode())

    if is_fresh(HTML / ".inputs", book):
        print("The book is up to date.")
    else:
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        pages = (ROOT / f"{page}.ipynb" for page in parse_toc_yaml(ROOT / "_toc.yml"))
        notebooks = [page for page in pages if page.exists()]
        execute(notebooks, fresh_cache(results), config["execute"]["timeout"])

        shutil.rmtree(HTML, ignore_errors=True)  # no page outlives its source
        jupyter_book = Path(sys.executable).with_name("jupyter-book")
        if subprocess.run([jupyter_book, "build", ROOT, "--all", "-n", "-W", "--keep-going"]).returncode:
            sys.exit("The book was not built: a warning counts as an error, see above.")
        (HTML / ".inputs").write_text(book)

    print(f"To read it, open {HTML / 'index.html'} in a browser.")


if __name__ == "__main__":
    main()
