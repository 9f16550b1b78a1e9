"""``python -m nb_lib`` from a bare machine to records in the book."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared import NOT_FOR_TRAINING

from nb_lib.__main__ import main
from nb_lib.lab import provenance
from nb_lib.lab.store import RunStore, read_lines

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ["--scale", "tiny", "--seeds", "1"]
BARE = (*NOT_FOR_TRAINING, "curvlinops", "dask")


def shell(*arguments, module="nb_lib", **environment):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    variables = os.environ | {"TQDM_DISABLE": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)


def until(condition):
    give_up = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_a_time_is_spent_on_what_is_missing_and_the_next_call_goes_on(tmp_path):
    """All of `next`, on the embedded data: how much is done depends on how busy the machine is, not that it adds up."""
    store, home, budget = tmp_path / "store", tmp_path / "home.jsonl", 25
    command = ["sweep", "next", "--scale", "tiny", "--budget", f"{budget}s", "--store", store, "--into", home]
    done: dict[Path, int] = {}
    for _ in range(2):
        started = time.monotonic()
        call = shell(*command)
        assert call.returncode == 0, call.stderr
        assert time.monotonic() - started < budget + 15, "imports and account count"
        assert call.stderr.startswith("there is no CUDA device: training on ")
        now = {path: path.stat().st_mtime_ns for path in store.glob("*.json")}
        assert done.items() <= now.items(), "what was done stays as it was"
        total, trained, stored = map(int, re.search(r"(\d+) runs: (\d+) trained now, (\d+) were", call.stdout).groups())
        assert (total, trained, stored) == (114, len(now) - len(done), len(done))
        done = now
    assert done
    assert {record.run.key for record in read_lines(home)} == {path.stem for path in done}


def test_several_grids_are_trained_in_order_without_what_a_file_has(tmp_path, capsys):
    store, have, home = tmp_path / "store", tmp_path / "have", tmp_path / "home.jsonl"
    assert main(["sweep", "ne-table2-f1", *QUICK, "--store", str(have)]) == 0
    capsys.readouterr()
    sources = ["--have", str(have), *map(str, sorted((ROOT / "book/data").glob("*.jsonl")))]
    names = ["ne-table3-f1", "ne-table2-f1"]
    assert main(["sweep", *names, *QUICK, "--store", str(store), "--into", str(home), *sources]) == 0
    captured = capsys.readouterr()
    assert re.search(r"ne-table3-f1 +7 +2 +0 +5 +0 ", captured.out), "five of its runs are in both"
    assert re.search(r"ne-table2-f1 +9 +0 +0 +9 +0 ", captured.out)
    assert "training on" in captured.err
    assert {record.run.batch_size for record in read_lines(home)} == {200}

    book = tmp_path / "book"
    book.mkdir()
    assert main(["merge", str(home), "--into", str(book)]) == 0
    assert f"{book / 'digits_mlp.jsonl'}: 2 records" in capsys.readouterr().out


def test_where_it_runs_is_said_and_a_fallback_is_called_that(tmp_path, capsys):
    for device, said in (("auto", "there is no CUDA device: training on"), ("cpu", "training on")):
        arguments = ["--batch-size", "100", "--epochs", "1", "--device", device, "--store", str(tmp_path)]
        assert main(["train", *arguments]) == 0
        assert capsys.readouterr().err.startswith(said)


def test_everything_but_the_pages_works_on_a_machine_without_jupyter_git_or_dask(tmp_path):
    """As on a bare one: importing any of these packages fails, and there is no git."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {BARE!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, No())\n"
    )
    bare = {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path), "NB_LIB_COMMIT": "abc123"}
    store = tmp_path / "store"
    for command in (
        ["grids"],
        ["sweep", "smoothout-table1-f1", *QUICK, "--store", store, "--into", tmp_path / "home.jsonl"],
        ["measure", "--epochs", "1", "--samples", "50", "--hessian-samples", "20", "--store", store],
        ["compare", "smoothout-table1", "--store", tmp_path / "home.jsonl"],
        ["merge", store, "--into", tmp_path / "merged.jsonl"],
    ):
        done = shell(*command, **bare)
        assert done.returncode == 0, done.stderr
    done = shell("--help", module="benchmarks", **bare)
    assert done.returncode == 0, done.stderr
    records = read_lines(tmp_path / "merged.jsonl")
    assert sorted(record.run.network for record in records) == ["digits-mlp", *4 * ["smoothout-f1"]]
    assert {record.provenance["commit"] for record in records} == {"abc123"}
    assert [bool(record.measures) for record in records] == [record.run.network == "digits-mlp" for record in records]


def test_the_gpus_tests_are_collected_there_and_skipped_with_the_reason(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({(*BARE, 'selenium', 'nbformat', 'yaml', 'psutil')!r}))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    variables = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "there is no CUDA device" in done.stdout
    assert re.search(r"^\d\d skipped in", done.stdout, flags=re.M)


def test_in_another_projects_repository_the_commit_is_not_that_projects(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    shutil.copytree(ROOT / "nb_lib", tmp_path / "environment" / "nb_lib")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "environment" / "nb_lib" / "lab" / "provenance.py"))
    monkeypatch.delenv("NB_LIB_COMMIT", raising=False)
    commit = provenance.commit.__wrapped__  # asked anew each time
    assert commit() == "unknown"
    monkeypatch.setenv("NB_LIB_COMMIT", "given")
    assert commit() == "given"
    for command in (["add", "environment"], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch("[0-9a-f]{12}", commit())


def test_the_commit_is_that_of_the_code_which_the_process_has_loaded(monkeypatch):
    first = provenance.commit()
    monkeypatch.setattr(provenance, "_git", lambda *_: "what the tree has moved on to")
    assert provenance.commit() == first


STOPPED = """
import signal, sys
from contextlib import contextmanager
from functools import partial
from nb_lib import __main__
from nb_lib.lab import sweeps, workers

@contextmanager
def beside(*_):
    yield partial(workers._beside, workers.Forecast())

if sys.argv.pop(1) == "beside":  # as on a GPU
    sweeps.workers = beside
    workers._host_bound = lambda group: group[0].alpha == 1
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
signal.signal(signal.SIGTERM, __main__._terminated)
sys.exit(__main__.main(sys.argv[1:]))
"""


def running(group):
    """Processes of a group that are not merely waiting to be counted out."""
    listed = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"^ *{group} +[^Z ]", listed, flags=re.M)


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, "one"), (signal.SIGINT, "beside")])
def test_a_sweep_that_is_stopped_says_one_line_and_leaves_no_process_and_whole_records(number, processes, tmp_path):
    """A terminal sends the signal to all processes of the group, the second one that trains beside included."""
    store = tmp_path / "store"
    arguments = ["sweep", "ne-fig3-f1", "--scale", "tiny", "--store", str(store)]
    command = [sys.executable, "-c", STOPPED, processes, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"TQDM_DISABLE": "1"}, **pipes) as sweep:
        until(lambda: len(list(store.glob("*.json"))) >= 3)
        os.killpg(sweep.pid, number)
        said, account = sweep.stderr.read().splitlines(), sweep.stdout.read()
    assert sweep.returncode == 128 + number
    assert said[1:] == ["nb_lib: stopped; what is stored stays, and the same call goes on."]
    assert account == ""
    until(lambda: not running(sweep.pid))
    assert 3 <= len(list(RunStore(store))) < 24
    assert not list(store.glob(".writing-*"))


def test_who_reads_no_further_costs_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nb_lib", "compare", "ne-table2", "--store", "book/data"]
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_table_is_printed_in_any_encoding(encoding):
    command = [sys.executable, "-m", "nb_lib", "compare", "ne-table2", "--store", "book/data"]
    variables = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=variables, check=True)
    alpha = "α" if encoding == "utf-8" else r"\u03b1"
    assert f"{alpha} = 1.5" in done.stdout.decode(encoding)


LOADED = """
import contextlib, sys
from nb_lib.__main__ import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print("loaded:", *(name for name in {slow!r} if name in sys.modules))
"""
SLOW = ("torch", "pandas", "scipy", "sklearn", "plotly")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Noise in SGD"),
        (["sweep", "--help"], "--budget TIME"),
        (["grids"], "ne-table2-f1"),
        (["train", "--network", "ne-f2"], "did you mean 'ne-f1'"),
        (["sweep", "ne-table9", "--store", "no"], "did you mean 'ne-table"),
        (["compare", "--help"], "--scale SCALE"),
    ],
)
def test_what_trains_nothing_waits_for_no_library(arguments, said):
    """Not the time is measured, which depends on the machine, but what takes it: the libraries that are loaded."""
    command = [sys.executable, "-c", LOADED.format(slow=SLOW), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert said in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_waiting_threads_are_told_to_leave_the_cores_before_torch_is_loaded():
    code = "import nb_lib.__main__, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    without = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE False"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE False")):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=without | given)
        assert done.stdout.strip() == expected
