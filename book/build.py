"""Bring the built book up to date: execute its notebooks in parallel, then build the pages.

`make book` and `make test` run this; so can you, from anywhere: `python book/build.py`. In `make test` nbval has
executed the notebooks before (see keep_outputs.py), and the book shows what it has seen.
jupyter-cache knows a notebook by its code alone. The cache is therefore thrown away when anything else that
decides a result has changed: the library, the recorded data, the installed packages.
Ctrl-C ends the build with all that it has started, and status 130; what was executed before stays in the cache.
"""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from types import FrameType

import psutil
import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import JupyterCacheAbstract
from jupyter_cache.executors import load_executor
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "_build/.jupyter_cache"  # where Jupyter Book looks for it
HTML = ROOT / "_build/html"
QUIET = {"TQDM_DISABLE": "1"}  # a progress bar is stray output on a page
STOPS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


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


def execute() -> None:
    """Execute the notebooks that are not in the cache, side by side; exit with the traceback if one fails."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    timeout = config["execute"]["timeout"]
    pages = (ROOT / f"{page}.ipynb" for page in parse_toc_yaml(ROOT / "_toc.yml"))
    notebooks = [page for page in pages if page.exists()]
    cache = fresh_cache(results_key())
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


def run(*command: str | Path) -> int:
    """Run a program to its end, or to that of this one, and return its status; nothing that it has started is left."""
    process = subprocess.Popen(command, start_new_session=True)  # it does not see Ctrl-C, which ends but some of it
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            end(process.pid)
            process.wait()


def end(pid: int) -> None:
    """Kill a process and all that it has started, each held first, as a pool replaces the workers that it loses."""
    held: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        while found := {root, *root.children(recursive=True)}.difference(held):
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            held += found
    for process in held:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def stop(number: int, frame: FrameType | None) -> None:
    """End this process, and so all that it runs, in one line."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)  # it is ending
    os.write(2, b"\nThe book was not built: interrupted.\n")
    sys.exit(128 + number)


def main() -> None:
    """Do what is out of date, and say where the book is."""
    for each in STOPS:
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup has it
            signal.signal(each, stop)
    os.environ.update(QUIET)
    results = results_key()
    commit = subprocess.run("git describe --always --dirty", shell=True, cwd=ROOT, capture_output=True).stdout
    sources = [*files("book"), *files("notebooks"), ROOT / "_config.yml", ROOT / "_toc.yml"]
    book = fingerprint(sources, results, commit.decode())

    if is_fresh(HTML / ".inputs", book):
        print("The book is up to date.")
    else:
        if run(sys.executable, Path(__file__), "execute"):
            sys.exit(1)
        shutil.rmtree(HTML, ignore_errors=True)  # no page outlives its source
        jupyter_book = Path(sys.executable).with_name("jupyter-book")
        if run(jupyter_book, "build", ROOT, "--all", "-n", "-W", "--keep-going"):
            sys.exit("The book was not built: a warning counts as an error, see above.")
        (HTML / ".inputs").write_text(book)

    print(f"To read it, open {HTML / 'index.html'} in a browser.")


if __name__ == "__main__":
    if sys.argv[1:] == ["execute"]:
        execute()
    else:
        main()
