"""Noise enhancement against enumeration of all minibatches, two separate passes, and the paper's numbers."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import ghost_batch_norm_
from nb_lib.noise_enhancement import (
    alpha_for,
    covariance_factor,
    effective_batch_size,
    naive_covariance_factor,
    noise_covariance,
    noise_enhanced_loss,
)

# alpha, c, B_eff for B = 5000, and the exact one for N = 50,000 and N = 60,000 (paper-spec, section 2.1)
TABLE = [
    (1, 1, 5000, 5000, 5000),
    (1.5, 2.5, 2000, None, None),
    (2, 5, 1000, 1087.0, 1071.4),
    (2.5, 8.5, 588.2, None, None),
    (3, 13, 384.6, 423.7, 416.7),
    (4, 25, 200, 221.2, 217.4),
    (5, 41, 122.0, 135.1, 132.7),
    (6, 61, 82.0, 90.9, 89.3),
    (7, 85, 58.8, 65.3, 64.1),
    (8, 113, 44.2, 49.1, 48.2),
    (9, 145, 34.5, 38.3, 37.6),
    (10, 181, 27.6, 30.7, 30.1),
    (11, 221, 22.6, 25.1, 24.7),
]
FINITE = [row for row in TABLE if row[3] is not None]

# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize(("alpha", "c", "size", "_50", "_60"), TABLE)
def test_factor_and_effective_batch_size_are_those_of_the_table(alpha, c, size, _50, _60) -> None:
    assert covariance_factor(alpha) == c
    assert effective_batch_size(5000, alpha) == pytest.approx(size, abs=0.051)


@pytest.mark.parametrize("n", [50_000, 60_000])
@pytest.mark.parametrize("row", FINITE, ids=lambda row: f"alpha={row[0]}")
def test_finite_data_sets_give_the_exact_column(row, n) -> None:
    expected = row[3] if n == 50_000 else row[4]
    assert effective_batch_size(5000, row[0], n=n) == pytest.approx(expected, abs=0.051)


def test_factor_is_the_parabola_symmetric_about_one_half() -> None:
    # c(alpha) = 1/2 + 2 (alpha - 1/2)^2: even in alpha - 1/2, so no odd term, and 1 at alpha = 1
    for distance in (0.5, 0.75, 1.0, 2.5, 10.0):
        assert covariance_factor(0.5 + distance) == pytest.approx(0.5 + 2 * distance**2, rel=1e-15)


@pytest.mark.parametrize("n", [None, 100, 5000, 60_000])
@pytest.mark.parametrize("alpha", [1, 1.25, 2, 11])
def test_plain_sgd_at_the_effective_batch_size_has_the_noise_of_ne(alpha, n) -> None:
    def plain(size: float) -> float:  # NE eq. 4 without eta^2 S
        return 1 / size if n is None else (n - size) / (size * (n - 1))

    size = effective_batch_size(64, alpha, n=n)
    assert plain(size) == pytest.approx((alpha**2 + (1 - alpha) ** 2) * plain(64), rel=1e-12)


@pytest.mark.parametrize("n", [None, 6000, 50_000])
@pytest.mark.parametrize("alpha", [1, 1.0625, 1.5, 2, 7, 11])
def test_alpha_for_inverts_effective_batch_size(alpha, n) -> None:
    assert alpha_for(5000, effective_batch_size(5000, alpha, n=n), n=n) == pytest.approx(alpha, rel=1e-9)
    assert effective_batch_size(5000, alpha_for(5000, 777, n=n), n=n) == pytest.approx(777, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.999, 0, -1, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", [covariance_factor, lambda alpha: effective_batch_size(100, alpha)])
def test_alpha_below_one_or_not_finite_is_refused(function, alpha) -> None:
    with pytest.raises(InputError, match="alpha must be a finite number of at least 1"):
        function(alpha)


@pytest.mark.parametrize("size", [0, -1, 100.001, 200, math.nan, math.inf])
def test_effective_sizes_that_ne_cannot_reach_are_refused(size) -> None:
    with pytest.raises(InputError, match="effective batch size must lie between 0 and the batch size 100"):
        alpha_for(100, size)


@pytest.mark.parametrize("n", [50, 0, None])
def test_impossible_batch_sizes_are_refused(n) -> None:
    size = 0 if n is None else 100
    for call in (lambda: effective_batch_size(size, 2, n=n), lambda: alpha_for(size, 10, n=n)):
        with pytest.raises(InputError, match="the batch size must lie between"):
            call()


def test_a_batch_of_all_samples_has_no_noise_to_enhance() -> None:
    assert effective_batch_size(100, 3, n=100) == pytest.approx(100, rel=1e-12)
    assert alpha_for(100, 100, n=100) == 1
    with pytest.raises(InputError, match="no noise"):
        alpha_for(100, 50, n=100)


# ------------------------------------------------------------------------------ one backward pass against two passes

IMAGE, CLASSES = (2, 5, 5), 3


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(IMAGE), 7), nn.ReLU(), nn.Linear(7, CLASSES))


def conv_net(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    convolutions = [nn.Conv2d(2, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 4, 2), norm(4), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16, CLASSES))


def seeded(make: Callable[[], nn.Sequential]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return make().double()


def two_minibatches(size: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(size)
    x = torch.randn(2 * size, *IMAGE, generator=g, dtype=torch.float64)
    x[size:] = 2 * x[size:] + 0.5  # of another distribution, so that mixing the two would show
    return x, torch.randint(CLASSES, (2 * size,), generator=g)


def gradient(value: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def one_pass(model: nn.Module, x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return gradient(noise_enhanced_loss(F.cross_entropy(model(x), y, reduction="none"), alpha), model)


def two_passes(model: nn.Module, x: Tensor, y: Tensor, alpha: float, groups: Sequence[int]) -> Tensor:
    """NE eq. 6 with each minibatch sent through `model` on its own, in `groups` that it sees separately."""
    grads = []
    for half_x, half_y in zip(x.chunk(2), y.chunk(2), strict=True):
        parts = zip(half_x.split(groups), half_y.split(groups), strict=True)
        total = sum(F.cross_entropy(model(part_x), part_y, reduction="sum") for part_x, part_y in parts)
        grads.append(gradient(total / len(half_y), model))
    return alpha * grads[0] + (1 - alpha) * grads[1]


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("alpha", [1, 1.5, 4])
def test_one_pass_is_two_passes_for_a_dense_network(alpha) -> None:
    model = seeded(mlp)
    x, y = two_minibatches(6)
    assert difference(one_pass(model, x, y, alpha), two_passes(model, x, y, alpha, [6])) < 1e-12


@pytest.mark.parametrize("alpha", [1, 2.5])
@pytest.mark.parametrize(
    ("size", "group_size", "minibatches", "groups"),
    [
        pytest.param(8, 4, 1, [4, 4], id="groups that divide B need no minibatches=2"),
        pytest.param(8, 4, 2, [4, 4], id="groups that divide B"),
        pytest.param(8, 3, 2, [3, 3, 2], id="short last group"),
        pytest.param(7, 3, 2, [3, 4], id="last group of one sample"),
        pytest.param(8, None, 2, [8], id="each minibatch one group"),
    ],
)
def test_one_pass_is_two_passes_with_ghost_batch_norm(size, group_size, minibatches, groups, alpha) -> None:
    plain = seeded(lambda: conv_net(nn.BatchNorm2d))  # sees the groups one at a time
    ghost = ghost_batch_norm_(copy.deepcopy(plain), group_size, minibatches=minibatches)
    x, y = two_minibatches(size)
    assert difference(one_pass(ghost, x, y, alpha), two_passes(plain, x, y, alpha, groups)) < 1e-12


def test_plain_batch_norm_mixes_the_minibatches_until_converted() -> None:
    model = seeded(lambda: conv_net(nn.BatchNorm2d))
    x, y = two_minibatches(8)
    expected = two_passes(copy.deepcopy(model), x, y, 2.5, [8])
    assert difference(one_pass(model, x, y, 2.5), expected) > 0.05
    ghost_batch_norm_(model, minibatches=2)
    assert difference(one_pass(model, x, y, 2.5), expected) < 1e-12


# -------------------------------------------------------------------------------------------------- the loss itself


def test_loss_is_the_weighted_sum_of_the_two_means() -> None:
    losses = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])  # means 3 and 30
    assert noise_enhanced_loss(losses, 1.5) == 1.5 * 3 - 0.5 * 30


def test_alpha_of_one_is_the_mean_of_the_first_minibatch() -> None:
    losses = torch.rand(10, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = noise_enhanced_loss(losses, 1)
    assert torch.equal(value, losses[:5].mean())
    assert torch.equal(torch.autograd.grad(value, losses)[0], torch.tensor(5 * [0.2] + 5 * [0.0]))


@pytest.mark.parametrize("alpha", [2.0, torch.tensor([1.0, 1.5, 4.0])], ids=["one alpha", "an alpha each"])
def test_several_networks_losses_are_weighted_row_by_row(alpha) -> None:
    losses = torch.rand(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alphas = alpha.tolist() if isinstance(alpha, Tensor) else 3 * [alpha]
    expected = [
        a * sum(row[:4]) / 4 + (1 - a) * sum(row[4:]) / 4 for a, row in zip(alphas, losses.tolist(), strict=True)
    ]
    assert noise_enhanced_loss(losses, alpha).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_an_odd_number_of_losses_is_refused(shape) -> None:
    with pytest.raises(InputError, match="two minibatches of equal size, not 7 losses"):
        noise_enhanced_loss(torch.ones(shape), 2)


def test_no_losses_are_refused() -> None:
    with pytest.raises(InputError, match="two minibatches of equal size, not 0 losses"):
        noise_enhanced_loss(torch.ones(0), 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_loss_that_is_reduced_already_is_refused(reduction) -> None:
    outputs, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = F.cross_entropy(outputs, y, reduction=reduction)
    with pytest.raises(InputError, match="reduction='none'"):
        noise_enhanced_loss(losses, 2)


@pytest.mark.parametrize("alpha", [np.float32(0.5), np.float64("nan"), np.int64(0), Fraction(1, 2), False])
def test_numbers_of_every_kind_are_checked(alpha) -> None:
    with pytest.raises(InputError, match="alpha must be a finite number of at least 1"):
        noise_enhanced_loss(torch.ones(4), alpha)


@pytest.mark.parametrize("alpha", [0.5, 0, -1.0, math.nan, math.inf])
def test_a_number_below_one_is_refused_and_a_tensor_left_alone(alpha) -> None:
    losses = torch.ones(4)
    with pytest.raises(InputError, match="alpha must be a finite number of at least 1"):
        noise_enhanced_loss(losses, alpha)
    assert noise_enhanced_loss(losses, torch.tensor(0.5)) == 1


# ------------------------------------------------------------------- mean and covariance, by enumeration of all pairs

N, B, ETA = 6, 2, 0.3


def logistic_regression() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, 3, generator=g, dtype=torch.float64)
    return x, torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64), torch.tensor([0.4, -1.1, 0.7]).double()


def per_sample_gradients() -> Tensor:
    """(sigmoid(w x) - y) x, by hand."""
    x, y, w = logistic_regression()
    rows = [[(1 / (1 + math.exp(-float(s @ w))) - float(t)) * float(v) for v in s] for s, t in zip(x, y, strict=True)]
    return torch.tensor(rows, dtype=torch.float64)


def noise_of_all_pairs(alpha: float) -> Tensor:
    """NE's steps -eta * gradient of the enhanced loss, over every pair of minibatches drawn without replacement."""
    x, y, w = logistic_regression()
    w.requires_grad_()
    losses = F.binary_cross_entropy_with_logits(x @ w, y, reduction="none")
    minibatches = list(combinations(range(N), B))
    steps = []
    for first, second in product(minibatches, minibatches):
        loss = noise_enhanced_loss(losses[[*first, *second]], alpha)
        steps.append(-ETA * torch.autograd.grad(loss, w, retain_graph=True)[0])
    assert len(steps) == 15**2
    return torch.stack(steps)


@pytest.mark.parametrize(("alpha", "c"), [(1, 1), (1.5, 2.5), (2, 5), (3, 13)])
def test_mean_and_covariance_of_the_noise_are_eqs_4_and_10(alpha, c) -> None:
    steps, grads = noise_of_all_pairs(alpha), per_sample_gradients()
    full = grads.mean(0)
    assert torch.allclose(steps.mean(0), -ETA * full, rtol=0, atol=1e-12)
    noise = steps + ETA * full
    covariance = noise.T @ noise / len(noise)
    s = grads.T @ grads / N - torch.outer(full, full)
    of_sgd = ETA**2 / B * (N - B) / (N - 1) * s
    assert torch.allclose(covariance, c * of_sgd, rtol=0, atol=1e-12)
    assert torch.allclose(noise_covariance(s, N, B, alpha=alpha, eta=ETA), covariance, rtol=0, atol=1e-12)
    if alpha > 1:
        misprint = alpha**2 + (1 - alpha**2)  # first line of eq. 10 as printed
        assert difference(covariance, misprint * of_sgd) > 1.4


@pytest.mark.parametrize("alpha", [1.5, 3])
def test_plain_sgd_at_the_exact_effective_batch_size_matches_the_enumeration(alpha) -> None:
    noise = noise_of_all_pairs(alpha)
    grads = per_sample_gradients()
    size = effective_batch_size(B, alpha, n=N)
    total_variance = noise.var(0, correction=0).sum()
    per_sample = grads.var(0, correction=0).sum()
    assert float(total_variance) == pytest.approx(float(ETA**2 / size * (N - size) / (N - 1) * per_sample), rel=1e-12)


@pytest.mark.parametrize("alpha", [1, 1.5, 3])
def test_the_naive_enhancement_has_the_factor_of_eq_5(alpha) -> None:
    grads = per_sample_gradients()
    full = grads.mean(0)
    minibatches = torch.stack([grads[list(c)].mean(0) for c in combinations(range(N), B)])
    noise = ETA * (alpha * minibatches + (1 - alpha) * full - full)
    covariance = noise.T @ noise / len(noise)
    s = grads.T @ grads / N - torch.outer(full, full)
    expected = naive_covariance_factor(alpha) * noise_covariance(s, N, B, eta=ETA)
    assert torch.allclose(covariance, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [0, -1, N + 1, math.nan, math.inf])
def test_the_covariance_of_an_impossible_batch_is_refused(size) -> None:
    with pytest.raises(InputError, match="the batch size must lie between 0 and the 6 samples"):
        noise_covariance(1.0, N, size)


def test_the_closed_forms_need_no_torch() -> None:
    program = "import sys, nb_lib.noise_enhancement; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
