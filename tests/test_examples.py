"""The examples run as they are printed, in seconds, and say what they promise."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_noise_enhancement(run):
    _, plain, enhanced = run("noise_enhancement.py", "3").splitlines()
    assert plain.split()[:2] == ["1", "300.0"]
    alpha, b_eff, accuracy = enhanced.split()
    exact = 1 / (1 / 1200 + 13 * (1 / 300 - 1 / 1200))  # c = 3² + 2²
    assert (alpha, b_eff) == ("3", f"{exact:.1f}")
    assert float(accuracy.rstrip("%")) > 80


@pytest.mark.slow
def test_smoothout(run):
    trained = re.split(r"(?=trained with)", run("smoothout.py", "0.05"))[1:]
    assert [text.split(",")[0] for text in trained] == ["trained with a = 0", "trained with a = 0.05"]
    for text in trained:
        losses = [float(loss) for loss in re.findall(r"loss ([\d.]+) ±", text)]
        assert losses == sorted(losses)  # the more noise on the weights, the higher
        assert len(losses) == 3


def test_measure_a_network(run):
    text = run("measure_a_network.py")
    for name in ("sharpness", "loss under uniform noise", "tr H", "Hessian eigenvalues", "tr S"):
        assert name in text


def test_each_example_is_tested():
    here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    modules = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= here | {"imagenet"} & modules
