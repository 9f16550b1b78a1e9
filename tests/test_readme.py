"""The README's code runs as printed, and the commands it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nb_lib.__main__ import main

README = (Path(__file__).parents[1] / "README.md").read_text()
MEASURE, *SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


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
    small = ["--network", "digits-mlp", "--dataset", "digits", "--batch-size", "100", "--epochs", "2", "--seeds", "2"]
    assert main([*options, *small, "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 runs: 2 trained now" in out
    assert "mean ± std of 2 seeds" in out


def test_training_from_the_shell_needs_only_the_packages_named():
    named = re.search(r"Jupyter, (.*?)are enough", README, flags=re.S)[1]
    assert re.findall("`([a-z]+)`", named) == ["torch", "torchvision", "numpy", "scipy", "pandas", "tqdm"]
    others = "sklearn", "plotly", "IPython", "ipywidgets", "papermill", "jupyter_core"
    code = f"import sys, nb_lib.__main__, nb_lib.bench; sys.exit(any(m in sys.modules for m in {others}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
