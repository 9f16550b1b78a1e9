"""The row of measures of a network, in a sweep, in a record, and from the command line."""

import copy
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

from nb_lib.__main__ import main
from nb_lib.errors import InputError
from nb_lib.gradient_noise import gradient_diversity, gradient_noise
from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.layer_factors import widest_factor
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import RunStore, frame, read_lines, write_lines
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.training import Training, load_for
from nb_lib.measures import NAMES, measures
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective
from nb_lib.sharpness import box_sharpness
from nb_lib.smoothout import SmoothOut

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


@pytest.mark.parametrize("samples", [0, -1, 2.5])
@pytest.mark.parametrize("name", ["samples", "hessian_samples"])
def test_a_number_of_samples_that_cannot_be_is_refused(trained, name, samples):
    with pytest.raises(InputError, match=f"{name} must be a whole number, 1 or more"):
        measures(*trained, **{name: samples})


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
    with pytest.raises(InputError, match=r"cannot read .*missing"):
        read_lines(tmp_path / "missing.jsonl")


def test_from_the_command_line(tmp_path, capsys):
    small = "--network digits-mlp --dataset digits --train-size 60 --batch-size 30 --epochs 1 --device cpu"
    limits = "--samples 50 --hessian-samples 20"
    assert main(["measure", *small.split(), *limits.split(), "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"seed 0: {name}" in out for name in NAMES)
    (record,) = RunStore(tmp_path)
    assert record.measures["hessian_samples"] == 20


# -------------------------------------------------------------------------------------------------- residual networks

RESIDUAL = Run(
    network="resnet8",
    augment="crop-flip",
    train_size=100,
    batch_size=50,
    optimizer="sgd",
    lr=0.05,
    momentum=0.9,
    epochs=3,
)


@pytest.fixture(scope="module")
def residual():
    """A trained residual network and its loss on twenty digits, in double precision."""
    data = load_for(RESIDUAL, device="cpu")
    training = Training([RESIDUAL], data)
    training.finish(progress=False)
    model = training.model.eval()
    double = copy.deepcopy(model).double()
    x = data.train.x[:20].double()
    y = data.train.y[:20]
    return model, data, Objective(double, x, y)


def network_of(objective):
    """A network with the objective's weights and statistics, and its parameters in the order of the weights."""
    network = copy.deepcopy(objective.model)
    parameters = [network.get_parameter(name) for name in objective.flat.names]
    return network, parameters


def loss_by_hand(objective, w):
    """Mean cross-entropy of the network with the weights w."""
    network, parameters = network_of(objective)
    with torch.no_grad():
        for p, part in zip(parameters, objective.tensors(w), strict=True):
            p.copy_(part)
        outputs = network(objective.x)
    return float(F.cross_entropy(outputs, objective.y))


def gradient_by_hand(network, parameters, x, y):
    """Its gradient, one vector."""
    loss = F.cross_entropy(network(x), y)
    gradients = torch.autograd.grad(loss, parameters)
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.slow
def test_every_measure_of_a_residual_network_is_a_number_and_measuring_leaves_it_as_it_is(residual):
    model, data, objective = residual
    before = copy.deepcopy(model.state_dict())
    found = measures(model, data, samples=20, hessian_samples=20, starts=0)
    assert set(found) == {*NAMES, "samples", "hessian_samples"}
    assert all(math.isfinite(value) for value in found.values())
    noise = gradient_diversity(objective)
    assert found["gradient_trace"] == pytest.approx(noise.trace, rel=1e-3)
    [top] = hessian_eigenvalues(objective, 1).values
    assert found["top_eigenvalue"] == pytest.approx(top, rel=1e-2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not model.training


def test_gradient_noise_of_a_residual_network_is_that_of_a_loop_over_its_samples(residual):
    *_, whole = residual
    objective = whole.on(whole.x[:12], whole.y[:12])
    network, parameters = network_of(objective)
    each = []
    for k in range(12):
        sample = objective.x[[k]], objective.y[[k]]
        each.append(gradient_by_hand(network, parameters, *sample))
    each = torch.stack(each)
    mean = each.mean(0)
    trace = (each - mean).square().sum() / 12
    variances = torch.linalg.svdvals(each - mean).square() / 12
    diversity = each.square().sum() / each.sum(0).square().sum()
    full = gradient_noise(objective, k=5)
    for noise in (gradient_diversity(objective), full):
        assert noise.trace == pytest.approx(float(trace), rel=1e-9)
        assert noise.gradient_norm == pytest.approx(float(mean.norm()), rel=1e-9)
        assert noise.diversity == pytest.approx(float(diversity), rel=1e-9)
    assert full.eigenvalues == pytest.approx(variances[:5].tolist(), rel=1e-8)
    assert widest_factor(objective, objective.x[:3]) is not None, "its layers should factor the gradients"


def test_curvature_in_the_last_layer_of_a_residual_network_is_that_of_softmax_regression(residual):
    """H = mean of (diag p − p pᵀ) ⊗ h hᵀ, with the features h of each sample and a 1 for the biases."""
    *_, whole = residual
    network = whole.model
    body, last = network[:-1], network[-1]
    prefix = f"{len(body)}."
    of_last = lambda name, _: name.startswith(prefix)  # noqa: E731
    objective = Objective(network, whole.x, whole.y, batch_norm="stored", include=of_last)
    assert len(objective) == 650
    with torch.no_grad():
        features = body(whole.x)
        p = last(features).softmax(1)
    one = torch.ones_like(p[:, :1])
    h = torch.cat([features, one], 1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    blocks = torch.einsum("nij,nk,nl->ikjl", curvature, h, h) / 20
    hessian = blocks.reshape(650, 650)
    largest = torch.linalg.eigvalsh(hessian).flip(0)[:3]
    found = hessian_eigenvalues(objective, 3, tolerance=1e-6)
    assert found.values == pytest.approx(largest.tolist(), rel=1e-5)
    trace = hessian_trace(objective)
    assert abs(trace.value - float(hessian.trace())) < 5 * trace.error + 1e-9
    assert trace.error < 0.05 * trace.value


def test_the_top_eigenvalue_of_a_residual_network_is_that_of_power_iteration(residual):
    """With products by differentiating the slope of the network's own gradient."""
    *_, objective = residual
    network, parameters = network_of(objective)
    loss = F.cross_entropy(network(objective.x), objective.y)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([g.flatten() for g in gradients])
    generator = torch.Generator().manual_seed(0)
    top = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
    for _ in range(15):
        slope = gradient @ top / top.norm()
        products = torch.autograd.grad(slope, parameters, retain_graph=True)
        top = torch.cat([product.flatten() for product in products])
    [found] = hessian_eigenvalues(objective, 1, tolerance=5e-3).values
    assert found == pytest.approx(float(top.norm()), rel=1e-2)


def test_the_sharpness_of_a_residual_network_is_a_loss_that_it_has_in_the_box(residual):
    *_, objective = residual
    w = objective.weights
    half = 5e-4 * (w.abs() + 1)
    found = box_sharpness(objective, epsilon=5e-4, starts=1, steps=5)
    away = (found.highest - w).abs()
    assert (away <= half * (1 + 1e-9)).all()
    here = loss_by_hand(objective, w)
    top = loss_by_hand(objective, found.highest)
    assert found.loss == pytest.approx(here, rel=1e-9)
    assert found.max_loss == pytest.approx(top, rel=1e-9)
    assert found.maximum == pytest.approx(100 * (top - here) / (1 + here))
    slopes = gradient_by_hand(*network_of(objective), objective.x, objective.y)
    uphill = loss_by_hand(objective, w + half * slopes.sign())
    assert here < uphill <= found.max_loss


@pytest.mark.parametrize(("a", "adaptive"), [(0.0375, False), (0.15, True)])
def test_the_loss_of_a_residual_network_under_noise_is_the_mean_of_a_loop(residual, a, adaptive):
    *_, objective = residual
    found = noise_sensitivity(objective, [a], adaptive=adaptive, draws=24)
    network, _ = network_of(objective)
    smooth = SmoothOut(network, a, adaptive=adaptive, include="all", seed=5)
    losses = []
    for _ in range(40):
        with smooth.perturbed(), torch.no_grad():
            outputs = network(objective.x)
        losses.append(F.cross_entropy(outputs, objective.y))
    losses = torch.stack(losses)
    mean = float(losses.mean())
    of_the_loop = float(losses.std()) / 40**0.5
    [row] = found.frame.to_dict("records")
    error = math.hypot(row["loss_error"], of_the_loop)
    here = loss_by_hand(objective, objective.weights)
    assert found.loss == pytest.approx(here, rel=1e-9)
    assert row["loss"] == pytest.approx(mean, abs=4 * error)
    assert mean - here > 4 * error, "else this would not tell noise from none"


def test_a_network_in_training_mode_is_refused(trained):
    model, data = trained
    with pytest.raises(InputError, match=r"model\.eval"):
        measures(model.train(), data)
    model.eval()
