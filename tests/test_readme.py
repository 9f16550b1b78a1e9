"""The README's code runs as printed, and the commands it names exist."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import distributed
import pytest
import torch
import torch.nn.functional as F
from shared import NOT_FOR_TRAINING

from nb_lib import papers
from nb_lib.__main__ import main
from nb_lib.profiles import load_profiles

README = (Path(__file__).parents[1] / "README.md").read_text()
LOCAL, SSH, SLURM, MEASURE, *SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def names():
    """What a reader's loop has before ours comes in."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )
    batches = [(torch.randn(10, 8), torch.randint(3, (10,))) for _ in range(8)]

    def train_one_epoch(model, loader, optimizer):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    return {
        "torch": torch, "F": F, "model": model, "loader": batches[:4], "other_loader": batches[4:],
        "optimizer": torch.optim.Adam(model.parameters()), "train_one_epoch": train_one_epoch,
    }  # fmt: skip


@pytest.mark.parametrize("code", SNIPPETS, ids=["noise enhancement", "SmoothOut", "SmoothOut, hooks"])
def test_code_runs_and_trains(code):
    assert len(code.splitlines()) <= 12
    scope = names()
    before = [p.detach().clone() for p in scope["model"].parameters()]
    exec(code, scope)
    after = list(scope["model"].parameters())
    assert all(torch.isfinite(p).all() for p in after)
    assert not any(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_code_measures_and_changes_nothing(capsys):
    scope = names()
    scope["x"], scope["y"] = scope["loader"][0]
    before = {name: t.clone() for name, t in scope["model"].state_dict().items()}
    exec(MEASURE, scope)
    assert all(torch.equal(t, scope["model"].state_dict()[name]) for name, t in before.items())
    out = capsys.readouterr().out
    assert all(word in out for word in ("sharpness", "a = 0.0375", "tr H", "tr S"))


def test_the_training_command_runs_with_the_options_named(tmp_path, capsys):
    command = re.search(r"python -m nb_lib (train .*?)\n```", README, flags=re.S)[1].split("\n")
    options = " ".join(line.rstrip("\\") for line in command[:2]).split()
    small = [
        "--network",
        "digits-mlp",
        "--dataset",
        "digits",
        "--batch-size",
        "100",
        "--epochs",
        "2",
        "--seeds",
        "2",
    ]
    assert main([*options, *small, "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 trained now" in out
    assert "mean ± std of 2 seeds" in out


@pytest.mark.slow
def test_a_sweep_on_a_local_cluster_runs_as_printed(tmp_path):
    """In a process of its own, as a script has to be: its workers import it."""
    code = LOCAL.replace('"results/"', f"{str(tmp_path)!r}").replace('"tiny"', '"tiny", seeds=1, epochs=2')
    script = tmp_path / "script.py"
    script.write_text("if __name__ == '__main__':\n" + indent(code, "    "))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert "9 runs: 9 trained now" in done.stdout, done.stderr[-2000:]


def test_other_clusters_are_called_as_their_packages_want_it():
    """None is here to be run; the arguments exist and the names are the library's."""
    call = ast.parse(SSH).body[1].value.args[0]
    inspect.signature(distributed.SSHCluster).bind(**{kw.arg: None for kw in call.keywords}, hosts=None)
    for code in (SSH, SLURM):
        assert re.search(r'papers\.grid\("([\w-]+)"', code)[1] in papers.GRIDS
        assert "client=" in code


@pytest.mark.slow
def test_the_experiments_commands_run(tmp_path, capsys):
    lines = re.search(r"## The papers' experiments.*?```sh\n(.*?)```", README, flags=re.S)[1].splitlines()
    commands = [line.partition("#")[0].split()[3:] for line in lines]
    assert [command[0] for command in commands] == ["grids", "sweep", "compare", "merge"]
    where = {"results/": str(tmp_path / "store"), "book/data": str(tmp_path), "full": "tiny"}
    for command in commands:
        assert main([where.get(word, word) for word in command] + ["--seeds", "1"] * (command[0] == "sweep")) == 0
    out = capsys.readouterr().out
    assert "ne-fig3-c2" in out
    assert "9 runs: 9 trained now, 0 were stored; 9 converged." in out
    assert re.search(r"F1, α = 1, B = 900 +tiny +90\.17 ± 0\.04 .*digits-mlp", out)
    assert "digits_mlp.jsonl: 9 records" in out
    assert main(["merge", str(tmp_path / "store"), "--into", str(tmp_path / "records.jsonl")]) == 0
    assert "records.jsonl: 9 records" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_that_spend_a_time_run(tmp_path, capsys):
    lines = re.search(r"`next` is that list.*?```sh\n(.*?)```", README, flags=re.S)[1].splitlines()
    sweep, merge = (line.split()[3:] for line in lines)
    where = {"results/": str(tmp_path / "store"), "home.jsonl": str(tmp_path / "home.jsonl"), "9m": "4s"}
    (tmp_path / "empty.jsonl").touch()
    where |= {"book/data/*.jsonl": str(tmp_path / "empty.jsonl"), "book/data": str(tmp_path / "book")}
    (tmp_path / "book").mkdir()
    assert main([where.get(word, word) for word in sweep] + ["--scale", "tiny", "--seeds", "1"]) == 0
    assert main([where.get(word, word) for word in merge]) == 0
    assert re.search(r"digits_mlp.jsonl: \d+ records", capsys.readouterr().out)


@pytest.mark.slow
def test_the_commands_that_keep_curves_run(tmp_path, capsys):
    block = re.search(r"a file of curves, without the weights:.*?```sh\n(.*?)```", README, flags=re.S)[1]
    sweep, profile = (line.split()[3:] for line in block.replace("\\\n", "").splitlines())
    file = tmp_path / "profiles.json"
    where = {"small": "tiny", "results/": str(tmp_path / "store"), "book/data/resnet_profiles.json": str(file)}
    assert main([where.get(word, word) for word in sweep] + ["--seeds", "1"]) == 0
    assert main([where.get(word, word) for word in profile] + ["--samples", "100"]) == 0
    assert f"{file}: 3 profiles" in capsys.readouterr().out  # baseline at both batch sizes, AdaSmoothOut at the larger
    assert {(one.run.batch_size, one.run.a) for one in load_profiles(file)} == {(20, 0), (100, 0), (100, 0.15)}


@pytest.mark.parametrize("budget", ["8x", "-3m", "m", "nan"])
def test_a_budget_that_is_no_time_is_refused(budget, capsys):
    assert main(["sweep", "ne-fig2-f1", "--store", "x", f"--budget={budget}"]) == 2
    assert f"must be a time, as 90s, 8m or 2h, not {budget!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_training_from_the_shell_needs_only_the_packages_named():
    named = re.search(r"Jupyter, (.*?)are enough", README, flags=re.S)[1]
    assert re.findall("`([a-z]+)`", named) == [
        "torch",
        "torchvision",
        "numpy",
        "scipy",
        "pandas",
        "tqdm",
        "filelock",
    ]
    others = ("sklearn", *NOT_FOR_TRAINING)
    code = f"import sys, nb_lib.__main__, benchmarks.steps; sys.exit(any(m in sys.modules for m in {others}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
def test_a_mistake_on_the_command_line_is_one_sentence():
    command = [sys.executable, "-m", "nb_lib", "train", "--network", "ne-f2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean 'ne-f1'?" in done.stderr


def test_every_target_named_is_in_the_makefile():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)) - {"sure"}:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
