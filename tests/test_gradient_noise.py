"""Gradient noise against loops over samples, enumeration of all minibatches, and SciPy."""

import copy
import math
from collections.abc import Callable
from itertools import combinations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from nb_lib import gradient_noise as module
from nb_lib import sample_gradients
from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.gradient_noise import (
    GradientDiversity,
    direction_tails,
    gradient_diversity,
    gradient_noise,
    minibatch_cumulants,
    minibatch_noise,
    noise_of_update,
)
from nb_lib.noise_enhancement import CumulantRatios, cumulant_ratios, effective_batch_size
from nb_lib.objective import Objective
from nb_lib.sample_gradients import gram, principal_projections, projections, squared_gradient_norms

N, CLASSES = 7, 3

# -------------------------------------------------------------------------------------------------------- networks


class Twice(nn.Module):
    """One layer used twice, the second time after a ReLU that overwrites the first output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(12, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(torch.relu_(self.inner(input=x.flatten(1)))))


class Words(nn.Module):
    """A linear layer over the rows of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 5), nn.Linear(5, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x.unflatten(1, (3, 4)))).mean(1))


class Hidden(nn.Module):
    """Uses a layer's weight once more than the layer knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(12, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.linear(self.inner(x), self.inner.weight)))


class Folded(nn.Module):
    """Makes several rows of each sample, and a layer that cannot know which belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(4, 5), nn.Linear(15, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x.reshape(-1, 4))).reshape(len(x), 15))


class Double(nn.Linear):
    """A linear layer that is none."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def images(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Unflatten(1, (2, 3, 2)), *layers)


FACTORED = {
    "dense": lambda: nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)),
    "dense, normalized": lambda: nn.Sequential(
        nn.Linear(12, 5), nn.BatchNorm1d(5, eps=0.1), nn.ReLU(inplace=True), nn.Linear(5, CLASSES)
    ),
    "convolutions": lambda: images(
        nn.Conv2d(2, 4, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 3, (2, 1), bias=False), GhostBatchNorm(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, CLASSES),
    ),
    "strides": lambda: images(
        nn.Conv2d(2, 3, 2, stride=(2, 1), padding=(2, 1), dilation=(1, 2)), nn.Tanh(), nn.Flatten(),
        nn.Linear(3 * 3 * 2, CLASSES),
    ),
    "no gain": lambda: nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5, affine=False), nn.Linear(5, CLASSES)),
    "a layer twice": Twice,
    "words": Words,
}  # fmt: skip
OTHERS = {
    "layer norm": lambda: nn.Sequential(nn.Linear(12, 5), nn.LayerNorm(5), nn.Linear(5, CLASSES)),
    "groups": lambda: images(nn.Conv2d(2, 4, 2, groups=2), nn.Flatten(), nn.Linear(8, CLASSES)),
    "circular": lambda: images(
        nn.Conv2d(2, 2, 2, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(24, CLASSES)
    ),
    "same": lambda: images(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten(), nn.Linear(12, CLASSES)),
    "hidden use": Hidden,
    "folded": Folded,
    "not quite linear": lambda: nn.Sequential(Double(12, 5), nn.Tanh(), nn.Linear(5, CLASSES)),
}
NETWORKS = FACTORED | OTHERS


def samples(n: int = N) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 12, generator=g, dtype=torch.float64), torch.randint(CLASSES, (n,), generator=g)


def network(name: str) -> nn.Module:
    """In evaluation mode, with statistics, gains and shifts of batch normalization that are not 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = NETWORKS[name]().double()
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
        return model.eval()


def objective(name: str, n: int = N, **options) -> Objective:
    return Objective(network(name), *samples(n), **options)


def loop(o: Objective) -> Tensor:
    """One backward pass a sample, through a copy of the network that the objective evaluates."""
    model = copy.deepcopy(o.model)
    parameters = [dict(model.named_parameters())[name] for name in o.flat.names]
    rows = []
    for x, y in zip(o.x, o.y, strict=True):
        loss = F.cross_entropy(model(x[None]), y[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def assert_close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert a.dtype == torch.float64
    assert float((a - b).norm()) <= tolerance * float(b.norm())


# ------------------------------------------------------------------------------- norms, inner products, projections


@pytest.fixture(params=["whole", "pieces"])
def chunk(request, monkeypatch) -> int:
    """All at once, or: three samples at a time, and filters and directions one by one."""
    if request.param == "whole":
        return 10_000
    monkeypatch.setattr(sample_gradients, "NUMBERS", 120)
    return 3


@pytest.mark.parametrize("include", ["all", "weights", lambda name, p: name.startswith(("0", "1", "inner"))])
@pytest.mark.parametrize("name", NETWORKS)
def test_norms_products_and_projections_are_those_of_a_loop_over_the_samples(name, include, chunk) -> None:
    o = objective(name, include=include, chunk=chunk)
    g = loop(o)
    v = projections(probe(len(o)), 4, seed=1).T
    assert_close(squared_gradient_norms(o), g.square().sum(1))
    assert_close(gram(o), g @ g.T)
    assert_close(projections(o, 4, seed=1), g @ v.T)


@pytest.mark.parametrize("include", ["all", "weights"])
@pytest.mark.parametrize("name", FACTORED)
def test_layers_that_factor_their_gradients_need_none_formed(name, include, monkeypatch) -> None:
    monkeypatch.setattr(sample_gradients, "_side_by_side", lambda *_: pytest.fail("formed gradients"))
    squared_gradient_norms(objective(name, include=include))


@pytest.mark.parametrize("name", ["circular", "groups", "not quite linear"])
def test_unknown_layers_are_not_taken_for_known_ones_that_some_samples_cannot_tell_apart(name) -> None:
    x, y = samples()
    x[:3] = 0
    o = Objective(network(name), x, y, include="weights")
    assert_close(squared_gradient_norms(o), loop(o).square().sum(1))


def test_one_sample_is_enough_for_norms() -> None:
    for name in ("convolutions", "layer norm"):
        o = objective(name, 1, batch_norm="stored")
        assert_close(squared_gradient_norms(o), loop(o).square().sum(1))


def test_single_precision_is_close() -> None:
    o = Objective(network("convolutions").float(), samples()[0].float(), samples()[1])
    assert_close(gram(o), loop(o).double() @ loop(o).double().T, 1e-5)


@pytest.mark.parametrize("criterion", ["regression", "several targets"])
def test_other_losses_and_targets(criterion) -> None:
    y = torch.rand(N, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().sum(1) if criterion == "regression" else F.cross_entropy(
            outputs, y.softmax(1), reduction="none"
        )  # fmt: skip

    for name in ("dense", "layer norm"):
        o = Objective(network(name), samples()[0], y, criterion=loss)
        rows = []
        for i in range(N):
            o.model.zero_grad()
            loss(o.model(o.x[i : i + 1]), y[i : i + 1]).sum().backward()
            rows.append(torch.cat([p.grad.flatten() for p in o.flat.parameters]))
        assert_close(squared_gradient_norms(o), torch.stack(rows).square().sum(1))


def probe(n: int) -> Objective:
    """Gradients are the unit vectors, so that projections are the directions themselves."""
    model = nn.Linear(n, 1, bias=False).double().eval()
    return Objective(model, torch.eye(n, dtype=torch.float64), torch.zeros(n), criterion=lambda out, y: out[:, 0])


def test_random_directions_are_unit_vectors_uniform_on_the_sphere() -> None:
    n, count = 40, 500
    v = projections(probe(n), count, seed=3)
    assert v.shape == (n, count)
    assert torch.allclose(v.norm(dim=0), torch.ones(count, dtype=torch.float64))
    cosines = (v.T @ v)[torch.triu_indices(count, count, 1).unbind()]  # uncorrelated, of variance 1/n
    assert float(cosines.mean()) == pytest.approx(0, abs=5 / math.sqrt(n * len(cosines)))
    assert float(cosines.square().mean()) == pytest.approx(1 / n, rel=0.03)
    assert float(v.mean(1).abs().max()) < 4.5 / math.sqrt(n * count)
    half = (n - 1) / 2
    assert stats.kstest((v[0].numpy() + 1) / 2, stats.beta(half, half).cdf).pvalue > 1e-3


def test_random_directions_depend_on_the_seed_and_not_on_memory(monkeypatch) -> None:
    whole = projections(probe(20), 9, seed=1)
    assert torch.equal(projections(probe(20), 9, seed=1), whole)
    assert torch.equal(projections(probe(20), 4, seed=1), whole[:, :4])
    assert not torch.allclose(projections(probe(20), 9, seed=2), whole)
    monkeypatch.setattr(sample_gradients, "NUMBERS", 45)
    assert torch.equal(projections(probe(20), 9, seed=1), whole)


def test_along_the_principal_axes_the_gradients_are_uncorrelated_and_have_the_eigenvalues_of_their_covariance():
    o = objective("dense")
    x, values = principal_projections(o)
    centered = loop(o) - loop(o).mean(0)
    assert_close(x @ x.T, centered @ centered.T)
    assert_close(x.T @ x / N, values.diag())
    assert_close(values, torch.linalg.eigvalsh(centered.T @ centered / N).flip(0)[: N - 1])


# ------------------------------------------------------------------------------------------------ size and spectrum


@pytest.mark.parametrize("n", [5, 60], ids=["fewer samples than weights", "more"])
@pytest.mark.parametrize("include", ["all", lambda name, p: name in ("4.weight", "4.bias")])
def test_size_and_spectrum_are_those_of_the_covariance_matrix(n, include) -> None:
    o = objective("dense", n, include=include)
    g = loop(o)
    s = sum(torch.outer(row, row) for row in g) / n - torch.outer(g.mean(0), g.mean(0))
    values = torch.linalg.eigvalsh(s).flip(0)
    noise = gradient_noise(o, k=4)
    assert noise.samples == n
    assert noise.trace == pytest.approx(float(s.trace()), rel=1e-10)
    assert noise.gradient_norm == pytest.approx(float(g.mean(0).norm()), rel=1e-10)
    assert noise.eigenvalues == pytest.approx(values[:4].tolist(), rel=1e-9, abs=1e-12)
    assert noise.effective_rank == pytest.approx(float(s.trace() ** 2 / (s * s).sum()), rel=1e-10)
    assert len(gradient_noise(o, k=1000).eigenvalues) == n


def test_diversity_is_that_of_its_definition() -> None:
    o = objective("convolutions")
    g = loop(o)
    delta = float(g.square().sum() / g.sum(0).square().sum())
    for result in (gradient_diversity(o), gradient_noise(o)):
        assert result.diversity == pytest.approx(delta, rel=1e-10)
        assert result.batch_size_bound == pytest.approx(N * delta, rel=1e-10)
        assert result.trace == pytest.approx(float((g - g.mean(0)).square().sum()) / N, rel=1e-10)


def test_equal_samples_have_no_noise_and_opposite_ones_no_mean() -> None:
    x, y = samples(1)
    same = gradient_noise(Objective(network("dense"), x.repeat(4, 1), y.repeat(4)))
    assert same.trace == pytest.approx(0, abs=1e-12)
    assert same.diversity == pytest.approx(1 / 4, rel=1e-9)  # the least there is
    flat = nn.Linear(1, 1, bias=False).double().eval()
    ends = Objective(flat, torch.tensor([[1.0], [-1.0]]).double(), torch.zeros(2), criterion=lambda out, y: out[:, 0])
    for result in (gradient_diversity(ends), gradient_noise(ends)):
        assert result.trace == 1
        assert result.diversity == result.batch_size_bound == math.inf


def test_results_print_their_numbers() -> None:
    noise = module.GradientNoise(1000, 97.31, 0.5, (16.6, 14.6), 11.64)
    assert str(noise) == (
        "1000 samples: tr S = 97.31, ‖ḡ‖ = 0.5, diversity 0.3902, batch-size bound 390.2\n"
        "eigenvalues of S 16.6, 14.6; effective rank 11.6"
    )


# ---------------------------------------------------------------------------------------------- noise of one update

SMALL, B, ETA = 6, 2, 0.3


def all_noises(population: Tensor, size: int, alpha: float) -> Tensor:
    """Noise of every update there is: all pairs of minibatches without replacement."""
    minibatches = [population[list(c)].mean(0) for c in combinations(range(len(population)), size)]
    if alpha == 1:
        updates = minibatches
    else:
        updates = [alpha * first + (1 - alpha) * second for first, second in product(minibatches, minibatches)]
    return torch.stack(updates) - population.mean(0)


@pytest.mark.parametrize("alpha", [1, 1.5, 3])
def test_noise_of_an_update_is_that_of_all_updates(alpha) -> None:
    o = objective("dense", SMALL)
    expected = float((ETA * all_noises(loop(o), B, alpha)).square().sum(1).mean())
    assert noise_of_update(gradient_noise(o), B, alpha=alpha, eta=ETA) == pytest.approx(expected, rel=1e-10)
    assert noise_of_update(gradient_diversity(o), B, alpha=alpha, eta=ETA) == pytest.approx(expected, rel=1e-10)
    size = effective_batch_size(B, alpha, n=SMALL)
    assert noise_of_update(gradient_noise(o), size, eta=ETA) == pytest.approx(expected, rel=1e-10)


def test_all_samples_have_no_noise() -> None:
    assert noise_of_update(GradientDiversity(50, 3.0, 1.0), 50, alpha=4) == 0


# ---------------------------------------------------------------------------------------------- noise of minibatches


def skewed(n: int, r: int = 1, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(0.5, size=(n, r))) * torch.arange(1, r + 1) + 3


def test_minibatches_are_drawn_without_replacement_and_evenly() -> None:
    population = 2.0 ** torch.arange(SMALL, dtype=torch.float64)[:, None]  # sums tell which are in
    noise = minibatch_noise(population, B, count=6000)
    sums = ((noise + population.mean(0)) * B).round().flatten().long()
    drawn, counts = sums.unique(return_counts=True)
    assert set(drawn.tolist()) == {2**i + 2**j for i, j in combinations(range(SMALL), 2)}
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_two_minibatches_are_independent() -> None:
    population = torch.eye(4, dtype=torch.float64)  # so that the noise tells which samples were in both
    noise = minibatch_noise(population, 1, alpha=3, count=8000, seed=1) + population.mean(0)
    first, second = noise.argmax(1), noise.argmin(1)
    same = noise.max(1).values < 2  # 3 - 2 = 1 where both drew one sample
    assert float(same.double().mean()) == pytest.approx(1 / 4, abs=4 * math.sqrt(3 / 16 / 8000))
    pairs = (4 * first + second)[~same].bincount(minlength=16)
    assert stats.chisquare(pairs[pairs > 0]).pvalue > 1e-3
    assert int((pairs > 0).sum()) == 12


@pytest.mark.parametrize(("n", "size"), [(300, 40), (300, 280), (40, 1)])
@pytest.mark.parametrize("alpha", [1, 2])
def test_variance_of_sampled_noise_is_eq_4(n, size, alpha) -> None:
    population, count = skewed(n, 3), 20_000
    noise = minibatch_noise(population, size, alpha=alpha, count=count, seed=size)
    c = alpha**2 + (1 - alpha) ** 2
    expected = c / size * (n - size) / (n - 1) * population.var(0, correction=0)
    kurtosis = torch.from_numpy(stats.kurtosis(noise.numpy()))
    error = expected * ((kurtosis + 2) / count).sqrt()
    assert ((noise.square().mean(0) - expected).abs() < 4.5 * error).all()
    assert (noise.mean(0).abs() < 4.5 * (expected / count).sqrt()).all()


def test_one_seed_draws_the_same_first_minibatches_for_every_alpha(monkeypatch) -> None:
    population = skewed(30, 2)
    first = minibatch_noise(population, 4, count=50, seed=7)
    assert torch.equal(minibatch_noise(population, 4, count=50, seed=7), first)
    assert not torch.equal(minibatch_noise(population, 4, count=50, seed=8), first)
    second = 2 * first - minibatch_noise(population, 4, alpha=2, count=50, seed=7)  # 2 g - g'
    assert not torch.allclose(first, second)
    enhanced = minibatch_noise(population, 4, alpha=3.5, count=50, seed=7)
    assert torch.allclose(enhanced, 3.5 * first - 2.5 * second)
    monkeypatch.setattr(module, "NUMBERS", 500)
    assert minibatch_noise(population, 4, count=50).shape == (50, 2)


def test_a_minibatch_of_all_samples_has_no_noise() -> None:
    assert float(minibatch_noise(skewed(9, 2), 9, alpha=5, count=4).abs().max()) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [1, 1.5, 4])
def test_cumulants_of_the_noise_are_those_of_all_updates(size, alpha) -> None:
    population = skewed(SMALL, 3)
    noise = all_noises(population, size, alpha).numpy()
    found = minibatch_cumulants(population, size, alpha=alpha)
    for tensor, expected in zip(found, (noise.var(0), stats.skew(noise), stats.kurtosis(noise)), strict=True):
        assert tensor.tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-9)


def test_cumulants_exist_for_as_few_as_two_samples() -> None:
    variance, skewness, kurtosis = minibatch_cumulants(torch.tensor([[0.0], [2.0]]), 1)
    assert (float(variance), float(skewness), float(kurtosis)) == pytest.approx((1, 0, -2))


# alpha; skewness and excess kurtosis of NE relative to the same B; the latter relative to B/c (paper-spec, 2.1)
RATIOS = [
    (1.5, 0.822, 0.82, 0.328),
    (2, 0.626, 0.68, 0.136),
    (3, 0.405, 0.574, 0.044),
    (10, 0.111, 0.506, 0.0028),
]


@pytest.mark.parametrize(("alpha", "skewness", "kurtosis", "at_equal_covariance"), RATIOS)
def test_cumulant_ratios_are_those_of_the_table(alpha, skewness, kurtosis, at_equal_covariance) -> None:
    ratios = cumulant_ratios(alpha)
    assert ratios.skewness == pytest.approx(skewness, abs=0.0006)
    assert ratios.kurtosis == pytest.approx(kurtosis, abs=0.0006)
    assert ratios.kurtosis_at_equal_covariance == pytest.approx(at_equal_covariance, abs=0.0006)


def test_plain_sgd_changes_no_cumulant() -> None:
    assert cumulant_ratios(1) == CumulantRatios(1, 1, 1, 1)


@pytest.mark.parametrize("alpha", [1.5, 2, 3])
def test_cumulant_ratios_are_the_limit_of_the_exact_cumulants_for_many_samples(alpha) -> None:
    c = alpha**2 + (1 - alpha) ** 2
    size = 4 * c * 10  # so that B/c is a whole number
    population = skewed(500_000)
    enhanced = minibatch_cumulants(population, int(size), alpha=alpha)
    same, small = (minibatch_cumulants(population, b) for b in (int(size), 40))
    ratios = cumulant_ratios(alpha)
    assert float(enhanced.skewness / same.skewness) == pytest.approx(ratios.skewness, rel=1e-10)
    assert float(enhanced.kurtosis / same.kurtosis) == pytest.approx(ratios.kurtosis, rel=1e-10)
    assert float(enhanced.variance / small.variance) == pytest.approx(1, rel=0.01)
    assert float(enhanced.skewness / small.skewness) == pytest.approx(ratios.skewness_at_equal_covariance, rel=0.01)
    assert float(enhanced.kurtosis / small.kurtosis) == pytest.approx(ratios.kurtosis_at_equal_covariance, rel=0.01)


def test_tails_of_enhanced_noise_are_those_predicted() -> None:
    population, size, count = skewed(60), 3, 100_000  # few samples a batch: far from Gaussian
    for alpha in (1, 2):
        noise = minibatch_noise(population, size, alpha=alpha, count=count, seed=3)[:, 0].numpy()
        groups = noise.reshape(100, -1)  # for the errors of skewness and kurtosis
        expected = minibatch_cumulants(population, size, alpha=alpha)
        for found, exact in ((stats.skew, expected.skewness), (stats.kurtosis, expected.kurtosis)):
            error = found(groups, axis=1).std() / 10
            assert found(noise) == pytest.approx(float(exact), abs=4.5 * error)
            assert error < 0.05 * abs(float(exact))


# ------------------------------------------------------------------------------------------------------------- tails


def gaussian(count: int, r: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, r)))


@pytest.mark.filterwarnings("ignore:As of SciPy 1.17")
def test_one_direction_is_what_scipy_says_of_it() -> None:
    noise = 1e-9 * (skewed(60, 60, seed=2) / torch.arange(1, 61) + gaussian(60, 60)) - 4e-9
    table = direction_tails(noise)
    assert len(table) == 60
    assert set(table["shapiro_rejects"]) == set(table["anderson_rejects"]) == {0.0, 1.0}
    closest = math.inf  # to the limit, to tell others from it
    for (_, row), x in zip(table.iterrows(), noise.T.numpy(), strict=True):
        a = stats.anderson(x * 1e9)
        limit = a.critical_values[2]  # of 15, 10, 5, 2.5, 1 %
        closest = min(closest, abs(a.statistic - limit))
        assert row["shapiro_rejects"] == float(stats.shapiro(x * 1e9).pvalue < 0.05)
        assert row["anderson_rejects"] == float(a.statistic > limit)
        assert row["kurtosis"] == pytest.approx(stats.kurtosis(x, bias=False), rel=1e-6)
    assert closest < 0.03


def test_gaussian_noise_is_rejected_as_often_as_the_tests_say() -> None:
    count, r = 200, 1000
    table = direction_tails(gaussian(count, r, seed=4))
    spread = 4.5 * math.sqrt(0.05 * 0.95 / r)
    for test in ("shapiro_rejects", "anderson_rejects"):
        assert table[test].mean() == pytest.approx(0.05, abs=spread)
    assert table["kurtosis"].mean() == pytest.approx(0, abs=4.5 * math.sqrt(24 / count / r))


def test_gamma_noise_has_its_kurtosis_and_is_rejected() -> None:
    shape = 16.0
    table = direction_tails(torch.from_numpy(np.random.default_rng(1).gamma(shape, size=(4000, 60))))
    mean, error = table.mean(), table.sem()
    assert abs(mean["kurtosis"] - 6 / shape) < 4.5 * error["kurtosis"]
    assert mean["shapiro_rejects"] == mean["anderson_rejects"] == 1


# ------------------------------------------------------------------------------------------------ purity and refusals

MEASURES: dict[str, Callable[[Objective], object]] = {
    "gradient_noise": gradient_noise,
    "gradient_diversity": gradient_diversity,
    "squared_gradient_norms": squared_gradient_norms,
    "gram": gram,
    "projections": lambda o: projections(o, 3),
}


def everything(o: Objective) -> list[Tensor]:
    return [
        *(t.clone() for t in o.model.state_dict().values()),
        o.flat.work.clone(),
        o.weights.clone(),
        o.x.clone(),
    ]


@pytest.mark.parametrize("name", ["convolutions", "layer norm"])
@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_changes_but_the_result(measure, name) -> None:
    model = network(name)
    o = Objective(model, *samples())
    before, weights = everything(o), [t.clone() for t in model.state_dict().values()]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.no_grad():
        first = MEASURES[measure](o)
    assert all(torch.equal(a, b) for a, b in zip(everything(o), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert all(p.grad is None for p in [*model.parameters(), *o.model.parameters()])
    assert not any(m._forward_hooks for m in o.model.modules())
    again = MEASURES[measure](o)
    assert torch.equal(first, again) if isinstance(first, Tensor) else first == again
    if isinstance(first, Tensor):
        assert not first.requires_grad


def test_numbers_along_the_way_do_not_change_with_the_noise_given() -> None:
    noise, table = gaussian(20, 3), skewed(9, 2)
    kept = noise.clone(), table.clone()
    direction_tails(noise)
    minibatch_noise(table, 2, alpha=2)
    minibatch_cumulants(table, 2)
    assert torch.equal(noise, kept[0])
    assert torch.equal(table, kept[1])


def test_an_exception_leaves_the_objective_as_it_was() -> None:
    model = network("dense")
    next(model.parameters()).data.fill_(math.inf)
    o = Objective(model, *samples())
    before = everything(o)
    for measure in (gradient_noise, gram, squared_gradient_norms):
        with pytest.raises(InputError, match="not finite"):
            measure(o)
    assert all(torch.equal(a, b) for a, b in zip(everything(o), before, strict=True))
    assert not any(m._forward_hooks for m in o.model.modules())


@pytest.mark.parametrize("measure", MEASURES)
def test_networks_and_data_that_have_no_gradients_are_refused(measure) -> None:
    x, y = samples()
    with pytest.raises(InputError, match="training mode"):
        MEASURES[measure](Objective(network("dense").train(), x, y))
    with pytest.raises(InputError, match="needs samples"):
        MEASURES[measure](Objective(network("dense"), x[:0], y[:0]))
    x[4, 2] = math.nan
    with pytest.raises(InputError, match="not finite"):
        MEASURES[measure](
            Objective(network("dense"), x, y, criterion=lambda out, y: F.cross_entropy(out, y, reduction="none"))
        )


class Mixed(nn.Module):
    """Subtracts the mean over whatever samples come together."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize("n", [2, N])
@pytest.mark.parametrize("measure", MEASURES)
def test_networks_that_mix_samples_are_refused(measure, n) -> None:
    model = nn.Sequential(nn.Linear(12, 5), Mixed(), nn.Linear(5, CLASSES)).double().eval()
    with pytest.raises(InputError, match="depends on the others"):
        MEASURES[measure](Objective(model, *samples(n)))


def test_criteria_that_average_are_refused() -> None:
    x, y = samples()
    for name in ("dense", "layer norm"):
        with pytest.raises(InputError, match="one loss a sample"):
            gram(Objective(network(name), x, y, criterion=F.cross_entropy))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gradient_noise(objective("dense", 1)), "at least two samples"),
        (lambda: gradient_diversity(objective("dense", 1)), "at least two samples"),
        (lambda: gradient_noise(objective("dense"), k=0), "k, the number of eigenvalues"),
        (lambda: projections(objective("dense"), 0), "at least 1 direction"),
        (
            lambda: noise_of_update(GradientDiversity(50, 1.0, 1.0), 51),
            "between 0 and the 50 samples, not 51",
        ),
        (lambda: noise_of_update(GradientDiversity(50, 1.0, 1.0), 0), "between 0 and the 50 samples, not 0"),
        (lambda: noise_of_update(GradientDiversity(50, 1.0, 1.0), 9, alpha=0.5), "alpha must be"),
        (lambda: minibatch_noise(torch.ones(5), 2), "must be a table"),
        (lambda: minibatch_noise(torch.ones(1, 2), 1), "must be a table"),
        (lambda: minibatch_cumulants(torch.ones(5), 2), "must be a table"),
        (lambda: minibatch_noise(skewed(5), 6), "whole number from 1 to the 5 samples, not 6"),
        (lambda: minibatch_noise(skewed(5), 0), "whole number from 1"),
        (lambda: minibatch_noise(skewed(5), 2.5), "whole number from 1"),
        (lambda: minibatch_cumulants(skewed(5), 6), "whole number from 1"),
        (lambda: minibatch_noise(skewed(5), 2, alpha=0), "alpha must be"),
        (lambda: minibatch_cumulants(skewed(5), 2, alpha=0), "alpha must be"),
        (lambda: minibatch_noise(skewed(5), 2, count=0), "count, the number of updates"),
        (lambda: cumulant_ratios(math.nan), "alpha must be"),
        (lambda: direction_tails(gaussian(7, 2)), "8 to 5000 updates"),
        (lambda: direction_tails(gaussian(5001, 2)), "8 to 5000 updates"),
        (lambda: direction_tails(torch.ones(20)), "8 to 5000 updates"),
        (lambda: direction_tails(torch.ones(20, 2)), "0 or not finite"),
        (lambda: direction_tails(minibatch_noise(skewed(9, 2), 9)), "0 or not finite"),
        (lambda: direction_tails(torch.full((20, 2), math.nan)), "0 or not finite"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(call, match) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
