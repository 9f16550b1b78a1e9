"""Large batches: noise of epochs against random walks, draws against Monte Carlo, costs against counts of the code."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nb_lib import toys, walkers
from nb_lib.errors import InputError
from nb_lib.lab.networks import build
from nb_lib.lab.runs import Run
from nb_lib.large_batch import (
    Rates,
    Workload,
    draw_deviation,
    epoch,
    noise_traffic,
    scaled_rate,
    update_cost,
    workload,
)
from nb_lib.page.batches import rows_of_differences
from nb_lib.page.figures import COLORS
from nb_lib.smoothout import SmoothOut

# ------------------------------------------------------------------------------------------------ noise of an epoch


def test_noise_of_one_update_is_that_of_all_minibatches():
    gradients = np.array([1.0, -2.0, 0.5, 4.0, 3.0, -1.5])
    means = [np.mean(batch) for batch in itertools.combinations(gradients, 4)]
    found = epoch(np.var(gradients), n=6, B=4, eta=0.3)
    assert found.updates == 2
    assert found.noise == pytest.approx(0.3**2 * np.var(means), rel=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_an_epoch_is_a_random_walk_of_finite_samples(alpha):
    """On a tilted line every sample's gradient is the same everywhere: what an epoch does can be counted."""
    rng = np.random.default_rng(0)
    n, B, eta, walks = 20, 6, 0.1, 20_000
    gradients = rng.exponential(size=n)
    found = epoch(np.var(gradients), n, B, eta=eta, alpha=alpha)
    w = np.zeros(walks)
    for _ in range(found.updates):
        g = rng.permuted(np.tile(gradients, (walks, 1)), axis=1)[:, :B].mean(1)
        g_prime = rng.permuted(np.tile(gradients, (walks, 1)), axis=1)[:, :B].mean(1)
        w -= eta * (alpha * g + (1 - alpha) * g_prime)
    error = w.std() / math.sqrt(walks)
    assert abs(w.mean() + found.drift * gradients.mean()) < 5 * error
    assert w.var() == pytest.approx(found.epoch_noise, rel=5 * math.sqrt(2 / walks))


def test_one_shuffled_pass_at_the_same_weights_has_no_noise():
    gradients = np.random.default_rng(1).normal(size=24)
    passes = [np.random.default_rng(seed).permutation(gradients).reshape(4, 6).mean(1).sum() for seed in range(5)]
    assert np.allclose(passes, 4 * gradients.mean())


@pytest.mark.parametrize(
    ("rule", "noise", "drift", "epoch_noise"),
    [("none", 1 / 64, 1 / 64, 1 / 64**2), ("sqrt", 1, 1 / 8, 1 / 64), ("linear", 64, 1, 1)],
)
def test_what_each_scaling_of_the_rate_keeps(rule, noise, drift, epoch_noise):
    """Of a training set so large that nothing is known of its end: 2³⁰ samples, batches of 64 times 64."""
    small = epoch(1.0, 2**30, 64, eta=0.1)
    large = epoch(1.0, 2**30, 64 * 64, eta=scaled_rate(0.1, 64 * 64, 64, rule))
    ratios = np.array(large) / np.array(small)
    assert ratios == pytest.approx([1 / 64, noise, drift, epoch_noise], rel=1e-4)


@pytest.mark.parametrize("rule", ["none", "sqrt", "linear"])
def test_a_scaled_rate_is_that_of_a_run(rule):
    scaling = {} if rule == "none" else {"lr_reference": 100}
    run = Run(lr=0.3, batch_size=900, lr_scaling=rule, **scaling)
    assert scaled_rate(0.3, 900, 100, rule) == run.scaled_lr_steps[0][1]
    assert scaled_rate(0.3, 900, 100, rule) == pytest.approx(0.3 * {"none": 1, "sqrt": 3, "linear": 9}[rule])


def test_impossible_batches_and_rates_are_refused():
    with pytest.raises(InputError, match="batch size B must be a whole number from 1 to the 10 samples, not 11"):
        epoch(1.0, 10, 11, eta=0.1)
    with pytest.raises(InputError, match="learning rate eta must be a finite number greater than 0"):
        epoch(1.0, 10, 5, eta=0.0)
    with pytest.raises(InputError, match="unknown learning-rate scaling 'square'"):
        scaled_rate(0.1, 10, 5, "square")


# -------------------------------------------------------------------------------------------------- draws of the noise

WELLS = toys.two_wells(sharp_depth=0.5, sharp_curvature=400, flat_curvature=1.5, bowl=0.5)


@pytest.mark.parametrize("K", [1, 8])
def test_the_spread_of_the_mean_of_draws_is_that_of_monte_carlo(K):
    rng = np.random.default_rng(2)
    a = 0.4
    w = np.array([-1.3, -1.0, -0.7, 0.2, 0.9])
    theta = rng.uniform(-a, a, (200_000 // K, K, 1))
    means = WELLS.gradient(w + theta).mean(1)
    assert means.std(0) == pytest.approx(draw_deviation(WELLS, w, a) / math.sqrt(K), rel=0.02)


def test_the_spread_of_draws_is_what_walkers_have():
    start = np.full(50_000, -0.8)
    after = walkers.walk(WELLS, start, eta=0.01, steps=1, a=0.3, seed=3)[1]
    assert (after - start).std() == pytest.approx(0.01 * draw_deviation(WELLS, -0.8, 0.3), rel=0.02)


def test_a_rate_scaled_by_the_root_moves_walkers_as_one_draw_did():
    rng = np.random.default_rng(5)
    K, eta, start, a = 16, 0.003, -0.8, 0.4
    theta = rng.uniform(-a, a, (K, 50_000))
    steps = eta * math.sqrt(K) * WELLS.gradient(start + theta).mean(0)
    assert steps.std() == pytest.approx(eta * draw_deviation(WELLS, start, a), rel=0.02)
    assert steps.mean() == pytest.approx(math.sqrt(K) * eta * WELLS.gradient(start, a), rel=0.02)


def test_no_noise_has_no_spread_and_two_weights_are_refused():
    assert np.allclose(draw_deviation(WELLS, [-1.0, 0.3], 0.0), 0, atol=1e-12)
    with pytest.raises(InputError, match="one dimension"):
        draw_deviation(toys.quadratic(1.0, 2.0), [0.0, 0.0], 0.1)


# --------------------------------------------------------------------------------------------------- what updates cost


def test_operations_of_known_layers():
    convolution = nn.Conv2d(3, 8, 5, padding=2, bias=False)
    model = nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).to("meta")
    of_convolution = 2 * (3 * 5 * 5) * 8 * 6 * 6
    of_dense = 2 * 8 * 36 * 10
    found = workload(model, (3, 6, 6))
    # forward, and gradients of the weights; the gradient of the images themselves is not needed
    assert found.operations == 2 * of_convolution + 3 * of_dense
    assert found.parameters == 3 * 8 * 25 + 2 * 8 + 8 * 36 * 10 + 10
    assert found.perturbed == found.parameters - 2 * 8
    assert model.training


@pytest.mark.parametrize("name", ["smoothout-f1", "resnet8", "digits-mlp"])
def test_perturbed_is_what_smoothout_perturbs(name):
    model = build(name, (1, 8, 8), 10)
    assert workload(model, (1, 8, 8)).perturbed == len(SmoothOut(model, a=0.1).flat)


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, tensor by tensor as their schemas say."""

    ONLY_WRITTEN = ("copy_", "random_", "normal_")

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if "view" in name or func.is_view:
            return result
        in_place = False
        for k, argument in enumerate(func._schema.arguments):
            value = kwargs.get(argument.name, args[k] if k < len(args) else None)
            if not isinstance(value, torch.Tensor):
                continue
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            in_place |= is_written
            is_read = not is_written or not (argument.kwarg_only or name in self.ONLY_WRITTEN)
            self.bytes += (is_written + is_read) * value.nbytes
        if not in_place and isinstance(result, torch.Tensor):
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("adaptive", [False, True])
def test_bytes_of_the_noise_are_those_of_the_code(adaptive):
    layer = nn.Linear(1000, 400, bias=False)  # norms of rows, one number each, hardly count
    smooth = SmoothOut(layer, a=0.1, adaptive=adaptive)
    with Traffic() as traffic:
        for _ in range(4):  # that many draws come from one filling of the words
            smooth.add_noise()
            smooth.take_noise_off()
    assert traffic.bytes == pytest.approx(4 * noise_traffic(400_000, adaptive), rel=0.002)


RATES = Rates(operations=2e9, memory=1e6, link=1e4, network=1e3, decoding=100.0, step=0.01, node=4)


def test_costs_by_hand_within_a_node():
    cost = update_cost(Workload(1000, 900, 1e7), RATES, B=1600, gpus=4, ghost_batch=128)
    assert cost.images == 400
    assert cost.draws == 4  # 128, 128, 128 and 16
    assert cost.sent == 2 * 3 / 4 * 4 * 1000
    assert cost.moved == 4 * 48 * 900
    assert cost.computing == pytest.approx(400 * 1e7 / 2e9)
    assert cost.exchanging == pytest.approx(6000 / 1e4 + 6 * 0.01)
    assert cost.perturbing == pytest.approx(172_800 / 1e6)
    assert cost.decoding == pytest.approx(4.0)
    assert cost.busy == pytest.approx(2.0 + 0.66 + 0.1728)
    assert cost.seconds == pytest.approx(4.0)
    assert cost.limit == "decoding"
    assert cost.noise_share == pytest.approx(0.1728 / 2.8328)
    assert cost.added_by_noise == 0


def test_one_gpu_sends_nothing_and_several_nodes_use_the_network():
    load = Workload(1000, 900, 1e7)
    assert update_cost(load, RATES, B=64, gpus=1).exchanging == 0
    across = update_cost(load, RATES, B=64, gpus=8)
    assert across.exchanging == pytest.approx(7000 / 1e3 + 14 * 0.01)
    assert across.limit == "exchange"
    assert across.draws == 1
    fast_network = replace(RATES, network=1e6)
    assert update_cost(load, fast_network, B=64, gpus=8).exchanging == pytest.approx(7000 / 1e4 + 14 * 0.01)


@pytest.mark.parametrize(("decoding", "added"), [(1e6, 0.0432), (32 / 0.49, 0.0332), (32 / 0.6, 0.0)])
def test_noise_adds_to_an_update_what_decoding_does_not_hide(decoding, added):
    """The GPU has 0.16 s to compute and 0.32 s to exchange, and 0.0432 s of noise; decoding takes 0, 0.49 and 0.6 s."""
    rates = replace(RATES, decoding=decoding)
    cost = update_cost(Workload(750, 900, 1e7), rates, B=64, gpus=2)
    without = cost.computing + cost.exchanging
    assert without == pytest.approx(0.16 + 0.3 + 0.02)
    assert cost.added_by_noise == pytest.approx(added, abs=1e-9)


def test_a_ring_sends_what_it_is_said_to_send():
    """Four ranks with four parts of the sum each: pass parts on, adding, until all have all."""
    W, P = 4, 8
    values = np.random.default_rng(4).normal(size=(W, P))
    held = values.reshape(W, W, P // W).copy()  # [rank, part, numbers]
    sent, steps = np.zeros(W), 0
    while not np.allclose(held.reshape(W, P), values.sum(0)):
        step, steps = steps, steps + 1
        before = held.copy()
        for rank in range(W):
            part = (rank - step) % W if step < W - 1 else (rank + 1 - (step - W + 1)) % W
            sent[rank] += before[rank, part].size
            after = (rank + 1) % W
            is_adding = step < W - 1
            held[after, part] = before[rank, part] + (before[after, part] if is_adding else 0)
    cost = update_cost(Workload(P, P, 1.0), RATES, B=4, gpus=W)
    assert sent * 4 == pytest.approx(np.full(W, cost.sent))
    assert cost.exchanging == pytest.approx(cost.sent / RATES.link + steps * RATES.step)


@pytest.mark.parametrize(("computing", "limit"), [(1e13, "computing"), (1.0, "noise")])
def test_what_limits_is_what_takes_longest(computing, limit):
    slow_memory = replace(RATES, operations=1e9, memory=1.0, decoding=1e6)
    assert update_cost(Workload(1000, 900, computing), slow_memory, B=64, gpus=2).limit == limit


def test_impossible_machines_are_refused():
    with pytest.raises(InputError, match="8 GPUs cannot share 4 images"):
        update_cost(Workload(10, 10, 1.0), RATES, B=4, gpus=8)
    with pytest.raises(InputError, match="the rate memory must be a finite number greater than 0"):
        replace(RATES, memory=0.0)
    with pytest.raises(InputError, match="the time of a step must be a finite number greater than 0"):
        replace(RATES, step=0.0)
    with pytest.raises(InputError, match="the number of GPUs must be a whole number"):
        update_cost(Workload(10, 10, 1.0), RATES, B=4, gpus=0)


# ---------------------------------------------------------------------------------------------------------- the picture


def test_rows_are_differences_by_seed_from_the_top_down():
    kinds = ["small batch", "large batch", "+ AdaSmoothOut"]
    accuracy = np.array([[0.90, 0.92, 0.94], [0.80, 0.83, 0.86], [0.91, 0.91, 0.97]])
    runs = pd.DataFrame([[kind, seed, accuracy[k, seed]] for k, kind in enumerate(kinds) for seed in range(3)])
    runs.columns = ["kind", "seed", "accuracy"]
    runs["kind"] = pd.Categorical(runs["kind"], kinds)
    of = {"baseline": "small batch", "title": "points", "scale": 100}
    figure = rows_of_differences(runs.sample(frac=1, random_state=0), "kind", "accuracy", **of)
    differences = 100 * (accuracy[1:] - accuracy[0])
    by_test = [stats.ttest_1samp(each, 0).confidence_interval(0.975) for each in differences]  # two comparisons
    points = figure.data[0]
    assert list(points.x) == pytest.approx(differences.mean(1))
    assert list(points.error_x.array) == pytest.approx([(each.high - each.low) / 2 for each in by_test])
    assert list(points.marker.color) == [COLORS["SGD"], COLORS["AdaSmoothOut"]]
    heights = dict(zip(figure.layout.yaxis.ticktext, figure.layout.yaxis.tickvals, strict=True))
    assert list(points.y) == [heights["large batch"], heights["+ AdaSmoothOut"]]
    assert heights["large batch"] > heights["+ AdaSmoothOut"]


def test_of_one_seed_there_are_no_intervals():
    runs = pd.DataFrame({"seed": 0, "kind": pd.Categorical(["one", "other"]), "loss": [1.0, 3.0]})
    points = rows_of_differences(runs, "kind", "loss", baseline="one", title="loss").data[0]
    assert list(points.x) == [2.0]
    assert list(points.error_x.array) == [0]
