"""A plugin for pytest: nbval executes the notebooks cell by cell, and the book shows what it has seen.

So `make test` executes every notebook once. nbval is not changed: what it gets from the kernel is kept after it has
compared it, and a notebook of which one cell fails is not kept.
"""

import os
import time
from collections.abc import Iterator

import nbformat
import pytest
from filelock import FileLock
from jupyter_cache.base import CacheBundleIn
from nbval.plugin import IPyNbCell, IPyNbFile

from book import build

Seconds = dict[str, float]
PASSED = pytest.StashKey[Seconds]()  # kept with a notebook: its cells that have passed, and how long each took


def pytest_configure(config: pytest.Config) -> None:
    """Begin with a cache without results of other code, library or packages."""
    os.environ.update(build.QUIET)
    if not hasattr(config, "workerinput"):  # before there are workers
        build.fresh_cache(build.results_key())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Put what a cell has given into it; with its last cell the notebook goes to the book's cache."""
    begin = time.perf_counter()
    yield  # raises if the cell fails, or gives another output than the one in the notebook
    if isinstance(item, IPyNbCell):
        item.cell.outputs = [nbformat.from_dict(output) for output in item.test_outputs]
        item.cell.execution_count = item.cell_num + 1
        passed = item.parent.stash.setdefault(PASSED, {})
        passed[item.name] = time.perf_counter() - begin
        if len(passed) == sum(cell.cell_type == "code" for cell in item.parent.nb.cells):
            keep(item.parent, sum(passed.values()))


def keep(notebook: IPyNbFile, seconds: float) -> None:
    """Hand an executed notebook to the book."""
    info = notebook.kernel.kc.kernel_info(reply=True, timeout=60)
    notebook.nb.metadata.language_info = info["content"]["language_info"]  # in which colors a page shows code
    bundle = CacheBundleIn(notebook.nb, str(notebook.path), data={"execution_seconds": seconds})
    with FileLock(build.CACHE / ".lock"):  # one of the workers at a time
        build.get_cache(build.CACHE).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
