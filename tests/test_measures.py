"""The row of measures of a network, in a sweep, in a record, and from the command line."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from nb_lib.__main__ import main
from nb_lib.errors import InputError
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, frame, read_lines, write_lines
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.training import Training, load_for
from nb_lib.measures import NAMES, measures
from nb_lib.objective import Objective

RUN = Run(network="digits-mlp", dataset="digits", train_size=100, batch_size=50, optimizer="sgd", lr=0.2, epochs=5)


@pytest.fixture(scope="module")
def trained():
    data = load_for(RUN, device="cpu")
    training = Training([RUN], data)
    training.finish(progress=False)
    return training.model.eval(), data


@pytest.fixture(scope="module")
def found(trained):
    return measures(*trained, samples=80, hessian_samples=40)


def test_every_measure_has_a_name_and_says_how_many_samples_it_saw(found):
    assert set(found) == {*NAMES, "samples", "hessian_samples"}
    assert (found["samples"], found["hessian_samples"]) == (80, 40)
    assert all(type(value) is float and math.isfinite(value) for value in found.values())


def test_curvature_and_gradient_noise_are_those_of_the_dense_matrices(found, trained):
    model, data = trained
    x, y = data.train.x[:40], data.train.y[:40]
    objective = Objective(model, x, y)
    product = objective.hessian_product(objective.weights)
    each = []
    for k in range(40):
        loss = F.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    each = torch.stack(each).double()
    assert found["gradient_trace"] == pytest.approx(((each - each.mean(0)) ** 2).sum(1).mean().item(), rel=1e-4)
    top = torch.randn(len(objective), generator=torch.Generator().manual_seed(0))
    for _ in range(200):  # power iteration
        top = product(top / top.norm())
    assert found["top_eigenvalue"] == pytest.approx(top.norm().item(), rel=1e-2)
    assert found["hessian_trace"] > found["top_eigenvalue"]


def test_slopes_are_taken_up_to_the_widths_asked_for(found, trained):
    """They grow with a (the loss curves), so that they are told apart."""
    wider = measures(*trained, samples=80, hessian_samples=40, starts=0, width=0.1, relative_width=0.5)
    assert wider["slope"] > 1.5 * found["slope"]
    assert wider["relative_slope"] > 1.5 * found["relative_slope"]
    assert wider["hessian_trace"] == found["hessian_trace"]


def test_train_and_test_are_not_mixed_up(found, trained):
    model, data = trained
    swapped = dataclasses.replace(data, train=data.test, test=data.train)
    other = measures(model, swapped, samples=80, hessian_samples=40)
    assert other["sharpness"] == pytest.approx(found["sharpness_test"], rel=1e-4)
    assert other["sharpness_test"] == pytest.approx(found["sharpness"], rel=1e-4)


def count(model, data):
    return {"parameters": float(sum(p.numel() for p in model.parameters())), "nothing": math.nan}


def test_a_sweep_measures_what_it_trains_once(tmp_path):
    runs = [dataclasses.replace(RUN, epochs=2, seed=s) for s in (0, 1)]
    sweep(runs[:1], tmp_path, device="cpu", progress=False)  # stored, not measured
    calls = []
    measure = lambda model, data: calls.append(model.training) or count(model, data)  # noqa: E731
    records = sweep(runs, tmp_path, device="cpu", measure=measure, progress=False)
    assert calls == [False, False]
    again = sweep(runs, tmp_path, device="cpu", measure=measure, progress=False)
    assert len(calls) == 2
    for r in [*records, *again]:
        assert r.measures["parameters"] == 8970
        assert math.isnan(r.measures["nothing"])
    table = frame(again)
    assert list(table["parameters"]) == [8970, 8970]
    plain = sweep(runs, device="cpu", progress=False)
    assert [r.test_loss for r in plain] == pytest.approx([r.test_loss for r in records])  # measuring changes nothing
    assert plain[0].measures is None


def test_a_diverged_run_is_not_measured_and_not_repeated(tmp_path):
    run = dataclasses.replace(RUN, lr=1e30)
    (record,) = sweep([run], tmp_path, device="cpu", measure=count, progress=False)
    assert (record.status, record.measures) == ("diverged", {})
    changed = RunStore(tmp_path).path(run).stat().st_mtime_ns
    sweep([run], tmp_path, device="cpu", measure=count, progress=False)
    assert RunStore(tmp_path).path(run).stat().st_mtime_ns == changed


def test_published_records_are_sorted_lines(tmp_path):
    runs = [dataclasses.replace(RUN, epochs=1, seed=s) for s in (3, 1, 2)]
    records = sweep(runs, device="cpu", measure=count, progress=False)
    for order in (records, records[::-1]):
        write_lines(order, tmp_path / "runs.jsonl")
        lines = (tmp_path / "runs.jsonl").read_text().splitlines()
        assert [json.loads(line)["run"]["seed"] for line in lines] == [1, 2, 3]
    back = read_lines(tmp_path / "runs.jsonl")
    assert [r.to_json() for r in back] == lines
    assert all(isinstance(r, Record) for r in back)
    with pytest.raises(InputError, match="cannot read the records"):
        read_lines(tmp_path / "missing.jsonl")


def test_from_the_command_line(tmp_path, capsys):
    small = "--network digits-mlp --dataset digits --train-size 60 --batch-size 30 --epochs 1 --device cpu"
    limits = "--samples 50 --hessian-samples 20"
    assert main(["measure", *small.split(), *limits.split(), "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"seed 0: {name}" in out for name in NAMES)
    (record,) = RunStore(tmp_path)
    assert record.measures["hessian_samples"] == 20


def test_a_network_in_training_mode_is_refused(trained):
    model, data = trained
    with pytest.raises(InputError, match=r"model\.eval"):
        measures(model.train(), data)
    model.eval()
