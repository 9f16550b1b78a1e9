"""Building the book: it notices what changed, and leaves nothing behind when it is interrupted."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import nbformat
import psutil
import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def stand_in(root, **pages):
    """A small book with this code on its pages, of which the first is its root."""
    droppings = shutil.ignore_patterns("data", "*.md", "__pycache__")
    shutil.copytree(ROOT / "book", root / "book", ignore=droppings)
    for name in ("_config.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    first, *others = pages
    chapters = "".join(f"  - file: notebooks/{name}\n" for name in others)
    toc = f"format: jb-book\nroot: notebooks/{first}\n"
    (root / "_toc.yml").write_text(f"{toc}chapters:\n{chapters}" if others else toc)
    (root / "nb_lib").mkdir()
    (root / "nb_lib/__init__.py").write_text("NUMBER = 41\n")
    (root / "notebooks").mkdir()
    for name, code in pages.items():
        cells = [nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell(code)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), root / f"notebooks/{name}.ipynb")
    return root


def test_results_have_one_key_in_nbval_and_in_the_build():
    """Else the notebooks would be executed twice: pytest also finds the package's metadata in the working folder."""
    keys = {
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for code in (
            "from book import build; print(build.results_key())",
            "import sys; sys.path[0] = 'book'; import build; print(build.results_key())",
        )
    }
    assert len(keys) == 1


def test_build_notices_what_changed_and_takes_what_nbval_has_executed(tmp_path):
    code = "import sys\nsys.path.insert(0, '..')\nimport nb_lib\nprint('answer', nb_lib.NUMBER + 1)"
    root = stand_in(tmp_path / "a book", page=code)
    library = root / "nb_lib/__init__.py"
    page = root / "_build/html/notebooks/page.html"

    def run(*command):
        command = [sys.executable, *command]
        done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    def build():
        return run(root / "book/build.py")

    def nbval():
        return run("-m", "pytest", "-p", "book.keep_outputs", "--nbval-lax", "--nbval-current-env", "notebooks")

    status, log = build()
    assert status == 0, log
    assert "Executing notebooks/page.ipynb" in log
    assert "answer 42" in page.read_text()

    status, log = build()
    assert status == 0, log
    assert "up to date" in log
    assert "Executing" not in log

    # The notebook, which is all that jupyter-cache looks at, stays as it is, but now it has another answer.
    library.write_text("NUMBER = 42\n")
    status, log = nbval()
    assert status == 0, log
    status, log = build()
    assert status == 0, log
    assert "Executing" not in log
    assert "answer 43" in page.read_text()

    # Now it raises, which nbval finds and leaves to the build.
    library.write_text("NUMBER = 'forty-one'\n")
    status, log = nbval()
    assert status != 0
    assert "TypeError" in log
    status, log = build()
    assert status != 0
    assert "Executing notebooks/page.ipynb" in log
    for clue in ("notebooks/page.ipynb failed", "print('answer', nb_lib.NUMBER + 1)", "TypeError"):
        assert clue in log


def marked(mark):
    """The processes that carry a mark in their environment, as all descendants of one that does."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


SLEEP = "import pathlib, time\npathlib.Path('{name}.started').touch()\n"
ENDLESS = {
    "idle": SLEEP + "time.sleep(300)",
    "stubborn": SLEEP + "while True:\n    try:\n        time.sleep(300)\n    except KeyboardInterrupt:\n        pass",
    "parent": SLEEP + "import subprocess\nsubprocess.run(['sleep', '300'])",
}


def heeding():
    """Heed Ctrl-C, which what a shell runs in the background does not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)],
    ids=["Ctrl-C", "terminated"],
)
def test_an_interrupted_build_ends_within_seconds_leaves_no_process_and_keeps_what_it_has(number, send, tmp_path):
    """A terminal signals all of its foreground group; what has a session of its own, as a kernel, misses that."""
    codes = {name: code.format(name=name) for name, code in ENDLESS.items()}
    root, mark = stand_in(tmp_path / "book", done="print('once')", **codes), uuid.uuid4().hex
    executed = root / "_build/.jupyter_cache/executed"
    command = [sys.executable, root / "book/build.py"]
    with (tmp_path / "log").open("wb") as log:
        variables = os.environ | {"MARK": mark}
        build = subprocess.Popen(
            command, env=variables, start_new_session=True, stdout=log, stderr=log, preexec_fn=heeding
        )
    try:
        until = time.monotonic() + 60
        enough = min(len(ENDLESS), os.cpu_count())
        while len(list(root.glob("notebooks/*.started"))) < enough or not list(executed.glob("*/base.ipynb")):
            assert build.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.1)
        assert len(marked(mark)) > 4
        send(build.pid, number)
        assert build.wait(20) == 128 + number
        assert marked(mark) == []
    finally:
        for process in marked(mark):
            process.kill()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "The book was not built: interrupted."
    for name in ENDLESS:
        (root / f"notebooks/{name}.ipynb").write_text((root / "notebooks/done.ipynb").read_text())
    again = subprocess.run([*command, "execute"], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, ""), "all notebooks are the one that is executed"
