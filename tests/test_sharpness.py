"""Sharpness against quadratics in closed form, all corners of small boxes, dense Hessians, quadrature and scipy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.measuring import lbfgsb_sharpness
from nb_lib.errors import InputError
from nb_lib.hessian import Estimate, hessian_eigenvalues, hessian_trace
from nb_lib.noise_sensitivity import noise_sensitivity, second_order
from nb_lib.objective import Objective, Value
from nb_lib.sharpness import box_sharpness


class Quadratic(Objective):
    """f(w) = c + g·(w − w*) + (w − w*)·H (w − w*)/2: all the measures need, and no network."""

    def __init__(self, h: Tensor, g: Tensor | None = None, w: Tensor | None = None, c: float = 0.5) -> None:
        self.h, self.c, self.calls = h, c, 0
        self.x, self.N, self.chunk = torch.zeros(1), 1, 1
        self.g = torch.zeros_like(h[0]) if g is None else g
        self.weights = torch.zeros_like(h[0]) if w is None else w

    def __call__(self, w: Tensor) -> Value:
        self.calls += 1
        d = w - self.weights
        return Value(self.c + self.g @ d + d @ self.h @ d / 2, torch.tensor(0.25, dtype=torch.float64))

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        return self(w).loss, self.g + self.h @ (w - self.weights)

    def hessian_product(self, w: Tensor):
        return lambda v: self.h @ v

    def rows(self, vector: Tensor) -> list[Tensor]:
        return [vector[:4].view(2, 2), vector[4:, None]]  # two filters of two weights, then biases


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convex(n: int, seed: int = 0, scale: float = 1.0) -> Quadratic:
    root = normal(n, n, seed=seed)
    return Quadratic(scale * (root @ root.T), scale * normal(n, seed=seed + 1), normal(n, seed=seed + 2))


def spectrum(*values: float, seed: int = 5) -> Quadratic:
    """Return a quadratic with these eigenvalues, in random directions."""
    q = torch.linalg.qr(normal(len(values), len(values), seed=seed))[0]
    return Quadratic(q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a small batch-normalized network trained on the digits, in float64, in evaluation mode."""
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x, y = x[:600, ::2] / 16, y[:600]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 10)).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), x, y


@pytest.fixture(scope="module")
def trained(digits) -> Objective:
    return Objective(*digits)


@pytest.fixture(scope="module")
def dense_hessian(digits, trained) -> Tensor:
    """Hessian [n, n] at w*, of the network written out by hand, by forward over reverse mode."""
    _, x, y = digits
    layers, names = trained.model, trained.flat.names

    def loss(w: Tensor) -> Tensor:
        p = dict(zip(names, trained.tensors(w), strict=True))
        h = x @ p["0.weight"].T + p["0.bias"]
        h = (h - layers[1].running_mean) / (layers[1].running_var + layers[1].eps).sqrt()
        h = torch.tanh(h * p["1.weight"] + p["1.bias"])
        return F.cross_entropy(h @ p["3.weight"].T + p["3.bias"], y)

    assert float(loss(trained.weights)) == pytest.approx(float(trained.start.loss), rel=1e-12)
    return torch.func.hessian(loss)(trained.weights)


# -------------------------------------------------------------------------------------------------------- sharpness

SEARCHES = [box_sharpness, lbfgsb_sharpness]  # ours, and scipy's as the literature uses it


def highest_corner(f: Objective, half: Tensor) -> float:
    """Maximum of a convex f over the box, by trying all its corners."""
    corners = [half * torch.tensor(s, dtype=half.dtype) for s in itertools.product((-1, 1), repeat=len(half))]
    return max(float(f(f.weights + y).loss) for y in corners)


@pytest.mark.parametrize("epsilon", [5e-4, 0.3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("search", SEARCHES)
def test_the_maximum_is_that_of_the_corners(search, seed, epsilon) -> None:
    f = convex(8, 10 * seed)
    half = torch.tensor([epsilon * (abs(float(w)) + 1) for w in f.weights], dtype=torch.float64)
    expected = highest_corner(f, half)
    found = search(f, epsilon=epsilon, starts=20, steps=50)
    assert found.max_loss == pytest.approx(expected, rel=1e-9)
    assert found.maximum == pytest.approx(100 * (expected - 0.5) / 1.5, rel=1e-9)
    assert float(f(found.highest).loss) == pytest.approx(expected, rel=1e-9)
    assert bool(((found.highest - f.weights).abs() <= half * (1 + 1e-12)).all())
    assert found.loss == 0.5


def test_a_linear_loss_rises_by_its_slopes_times_the_half_widths() -> None:
    g, w = normal(6), 3 * normal(6, seed=1)
    f = Quadratic(torch.zeros(6, 6, dtype=torch.float64), g, w, c=2.0)
    expected = 100 * sum(0.01 * (abs(a) + 1) * abs(b) for a, b in zip(w.tolist(), g.tolist(), strict=True)) / 3
    for search in SEARCHES:
        found = search(f, epsilon=0.01, starts=3)
        assert found.values == pytest.approx(4 * [expected], rel=1e-9)
        assert found.std == pytest.approx(0, abs=1e-9 * expected)


def test_vertices_reach_at_least_what_scipy_reaches_on_a_trained_network(trained) -> None:
    vertex = box_sharpness(trained, epsilon=5e-3, starts=3)
    scipys = lbfgsb_sharpness(trained, epsilon=5e-3, starts=3, steps=50)
    assert vertex.maximum == pytest.approx(scipys.maximum, rel=2e-3)
    assert vertex.maximum >= scipys.maximum * (1 - 1e-4)
    assert vertex.std < 0.2 * vertex.mean  # corners that are local maxima
    assert vertex.evaluations < scipys.evaluations


class Seen(Objective):
    """Notes at which points, and on which samples, its gradient is taken."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.points, self.samples = [], []

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        self.points.append(w)
        self.samples.append(self.x[:, 0].tolist())
        return super().gradient(w)


def regression(n: int = 5000) -> Seen:
    """Logistic regression: convex in its weights, six and two biases; the first input numbers the samples."""
    x = torch.cat([torch.linspace(-1, 1, n, dtype=torch.float64)[:, None], normal(n, 2)], dim=1)
    model = nn.Linear(3, 2).double().eval()
    with torch.no_grad():
        model.weight.copy_(normal(2, 3, seed=1))
        model.bias.copy_(normal(2, seed=2))
    return Seen(model, x, (x @ normal(3, seed=3) + normal(n, seed=4) > 0).long())


@pytest.mark.parametrize("epsilon", [5e-4, 0.3])
def test_steps_on_parts_of_the_samples_come_to_the_highest_corner_too(epsilon) -> None:
    f = regression()
    half = epsilon * (f.weights.abs() + 1)
    found = box_sharpness(f, epsilon=epsilon, starts=4)
    assert found.max_loss == pytest.approx(highest_corner(f, half), rel=1e-12)
    assert float(f(found.highest).loss) == pytest.approx(found.max_loss, rel=1e-12)
    assert all(bool(((w - f.weights).abs() <= half * (1 + 1e-12)).all()) for w in f.points)


def test_many_samples_are_climbed_in_parts_after_the_first_step() -> None:
    f = regression(6001)
    found = box_sharpness(f, starts=0, steps=3)
    sizes = [len(numbers) for numbers in f.samples]
    assert sizes[:22] == [6001, *[150] * 20, 6001]
    assert set(sizes[22:]) <= {6001}
    assert found.evaluations == 1 + sizes.count(6001)  # f at w* too
    parts = [number for numbers in f.samples[1:21] for number in numbers]
    assert len(set(parts)) == 3000, "no sample twice"
    assert stats.kstest(parts, stats.uniform(-1, 2).cdf).pvalue > 0.01, "from anywhere in the data set"

    again, other = regression(6001), regression(6001)
    assert box_sharpness(again, starts=0, steps=3) == found
    assert again.samples == f.samples
    box_sharpness(other, starts=0, steps=3, seed=1)
    assert other.samples[1] != f.samples[1]


def test_few_samples_are_not_cut_into_parts() -> None:
    f = regression(4999)
    box_sharpness(f, starts=1)
    assert {len(numbers) for numbers in f.samples} == {4999}


def test_parts_that_lead_downhill_are_done_without() -> None:
    """All losses but one fall where their mean rises; left of 0 no slope leads back."""
    y = torch.full((5000,), -1.0, dtype=torch.float64)
    y[1234] = 10_000
    model = nn.Linear(1, 1, bias=False).double().eval()
    nn.init.constant_(model.weight, 0.01)
    f = Objective(model, torch.ones_like(y)[:, None], y, criterion=lambda out, y: y * out[:, 0].relu())
    mean = (10_000 - 4999) / 5000
    found = box_sharpness(f, epsilon=0.1, starts=0)
    assert found.loss == pytest.approx(0.01 * mean, rel=1e-12)
    assert found.max_loss == pytest.approx((0.01 + 0.1 * 1.01) * mean, rel=1e-12)


def test_parts_of_a_trained_networks_samples_reach_what_scipy_reaches(digits) -> None:
    model, x, y = digits
    f = Seen(model, x.repeat(9, 1) + 0.05 * normal(9 * len(x), 32), y.repeat(9))
    vertex = box_sharpness(f, epsilon=5e-3, starts=3)
    assert [len(numbers) for numbers in f.samples[:22]] == [5400, *[135] * 20, 5400]
    scipys = lbfgsb_sharpness(f, epsilon=5e-3, starts=3, steps=50)
    assert vertex.maximum == pytest.approx(scipys.maximum, rel=2e-3)
    assert vertex.maximum >= scipys.maximum * (1 - 1e-4)


def test_slopes_too_small_for_scipys_tolerances_still_count() -> None:
    f = convex(6, scale=1e-8)
    expected = highest_corner(f, 0.1 * (f.weights.abs() + 1)) - 0.5
    assert box_sharpness(f, epsilon=0.1, starts=10).max_loss - 0.5 == pytest.approx(expected, rel=1e-6)
    assert lbfgsb_sharpness(f, epsilon=0.1).values == (0,)  # all below its absolute tolerance


def test_an_exact_minimum_is_left_by_the_random_starts() -> None:
    f = Quadratic(torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64)), c=0.0)
    found = box_sharpness(f, epsilon=0.1, starts=3)
    assert found.values == pytest.approx([0] + 3 * [100 * 0.01 * 2.5], rel=1e-12)
    alone = box_sharpness(f, epsilon=0.1, starts=0)
    assert alone.values == (0,)
    assert math.isnan(alone.std)


def test_weights_without_a_slope_stay_put() -> None:
    slopes = torch.tensor([1.0, 0.0, -2.0, 0.0], dtype=torch.float64)
    found = box_sharpness(Quadratic(torch.zeros(4, 4, dtype=torch.float64), slopes), epsilon=0.1, starts=0)
    assert found.highest.tolist() == pytest.approx([0.1, 0, -0.1, 0])


def test_a_search_ends_at_a_vertex_it_does_not_leave() -> None:
    f = Quadratic(torch.eye(6, dtype=torch.float64), 9 * normal(6))  # slopes that no point of the box turns
    assert box_sharpness(f, epsilon=0.01, starts=0).evaluations == 3  # f(w*), and the gradients at w* and at the vertex


def test_a_maximum_inside_the_box_is_found_though_its_vertices_are_low() -> None:
    hill = Quadratic(-2 * torch.eye(3, dtype=torch.float64), torch.tensor([0.1, -0.04, 0.0], dtype=torch.float64))
    expected = 100 * (0.1**2 + 0.04**2) / 4 / 1.5  # at w* + (0.05, -0.02, 0), in a box of ±0.1
    found = box_sharpness(hill, epsilon=0.1, starts=0, steps=30)
    assert found.maximum == pytest.approx(expected, rel=0.1)
    assert found.maximum <= expected


def test_counts_statistics_and_seeds() -> None:
    f = convex(8)
    found = box_sharpness(f, epsilon=0.2, starts=4, seed=3)
    assert found.evaluations == f.calls
    assert len(found.values) == 5
    assert found.maximum == max(found.values)
    assert found.mean == pytest.approx(sum(found.values) / 5)
    assert found.std == pytest.approx(math.sqrt(sum((v - found.mean) ** 2 for v in found.values) / 4))
    assert box_sharpness(f, epsilon=0.2, starts=4, seed=3) == found
    assert box_sharpness(f, epsilon=0.2, starts=9, seed=3).values[:5] == found.values
    one = box_sharpness(convex(8), epsilon=0.2, starts=0, steps=1)
    assert one.evaluations == 3  # at w*, its gradient, the first vertex
    assert one.values[0] <= found.values[0]


def test_random_starts_are_uniform_in_the_box() -> None:
    seen = []

    class Spy(Quadratic):
        def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((w - self.weights) / (0.1 * (self.weights.abs() + 1)))
            return torch.zeros(()), torch.zeros_like(w)

    spy = Spy(torch.zeros(500, 500, dtype=torch.float64), w=normal(500))
    box_sharpness(spy, epsilon=0.1, starts=1, steps=1)
    assert not seen[0].any()
    assert stats.kstest(seen[1].numpy(), stats.uniform(-1, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": -1}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon"),
        ({"starts": -1}, "the number of random starts must be .* 0 or more, not -1"),
        ({"steps": 0}, "the number of steps must be .* 1 or more, not 0"),
    ],
)
def test_boxes_that_make_no_sense_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        box_sharpness(convex(8), **arguments)


@pytest.mark.parametrize("measure", [box_sharpness, lambda f: noise_sensitivity(f, [0.1])])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_at_the_start_is_refused(measure, value) -> None:
    with pytest.raises(InputError, match=f"^the loss at the network's own weights is {value:g}: train it again"):
        measure(Quadratic(torch.eye(8, dtype=torch.float64), c=value))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_loss_that_is_not_finite_in_the_box_is_refused(search) -> None:
    class Cliff(Quadratic):
        def __call__(self, w: Tensor) -> Value:
            value = super().__call__(w)
            return value if torch.equal(w, self.weights) else Value(value.loss * math.nan, value.accuracy)

    with pytest.raises(InputError, match="the loss is nan inside the box: choose a smaller epsilon"):
        search(Cliff(torch.eye(8, dtype=torch.float64)), starts=1)


# ------------------------------------------------------------------------------------------------ noise sensitivity


def within(found: float, error: float, expected: float) -> None:
    """Four standard errors, and an error that is small enough to say something."""
    assert abs(found - expected) < 4 * error + 1e-12 * abs(expected)
    assert error < 0.2 * abs(expected)


A = [0.0, 0.05, 0.4]


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_the_smoothed_quadratic_is_its_closed_form(distribution) -> None:
    f = convex(6)
    curve = noise_sensitivity(f, A, distribution=distribution, draws=4000)
    assert list(curve.frame.columns) == ["a", "loss", "loss_error", "accuracy", "accuracy_error"]
    assert curve.frame["a"].tolist() == A
    variance = {"uniform": 1 / 3, "normal": 1.0}[distribution]
    for row in curve.frame.to_dict("records"):
        expected = 0.5 + variance * row["a"] ** 2 / 2 * float(f.h.trace())  # exact for a quadratic
        within(row["loss"], row["loss_error"], expected)
        assert (row["accuracy"], row["accuracy_error"]) == (0.25, 0)
    assert curve.frame["loss_error"][0] == 0
    assert curve.frame["loss"][0] == 0.5
    assert curve.evaluations == f.calls == 1 + 2 * 4000
    gap = curve.frame["loss"] - curve.loss
    prediction = second_order(float(f.h.trace()), A, distribution=distribution)
    assert np.all(np.abs(gap - prediction) <= 4 * curve.frame["loss_error"])


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_loss_that_is_no_quadratic_is_smoothed_as_by_quadrature(distribution) -> None:
    class Waves(Quadratic):  # f = sum_i (1 - cos(3 (w_i - m_i))) + w_i^4, not stationary at w*
        def __call__(self, w: Tensor) -> Value:
            return Value((1 - torch.cos(3 * (w - 0.2)) + w**4).sum(), torch.tensor(math.nan))

    f = Waves(torch.eye(5, dtype=torch.float64), w=normal(5))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    if distribution == "normal":
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    curve = noise_sensitivity(f, [0.3, 0.8], distribution=distribution, draws=4000)
    for row in curve.frame.to_dict("records"):
        points = f.weights.numpy()[:, None] + row["a"] * nodes
        expected = float(((1 - np.cos(3 * (points - 0.2)) + points**4) * weights).sum())
        within(row["loss"], row["loss_error"], expected)
        assert math.isnan(row["accuracy"])


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_noise_per_filter_is_eq_12(distribution) -> None:
    """|θ_f| = a |w_f|, in a direction as symmetric as the noise: the mean of θθᵀ is a² |w_f|²/n_f on the diagonal."""
    f = convex(6)
    squares = [float(f.weights[:2].square().sum()) / 2] * 2 + [float(f.weights[2:4].square().sum()) / 2] * 2
    squares += f.weights[4:].square().tolist()
    weighted = sum(s * float(h) for s, h in zip(squares, f.h.diagonal(), strict=True))
    curve = noise_sensitivity(f, [0.3], distribution=distribution, adaptive=True, draws=4000)
    row = curve.frame.iloc[0]
    within(row["loss"], row["loss_error"], 0.5 + 0.09 / 2 * weighted)
    trace = hessian_trace(f, adaptive=True)
    assert trace.value == pytest.approx(weighted, rel=1e-9)  # exact: more probes than weights
    assert second_order(trace, [0.3], distribution=distribution).tolist() == pytest.approx(
        [0.09 / 2 * weighted], rel=1e-9
    )


def test_every_draw_of_noise_per_filter_has_the_length_of_eq_12() -> None:
    seen = []

    class Spy(Quadratic):
        def __call__(self, w: Tensor) -> Value:
            seen.append(w - self.weights)
            return super().__call__(w)

    spy = Spy(torch.eye(6, dtype=torch.float64), w=normal(6))
    spy.weights[5] = 0
    noise_sensitivity(spy, [0.7], adaptive=True, draws=10)
    for noise in seen[1:]:
        for mine, own in zip(spy.rows(noise), spy.rows(spy.weights), strict=True):
            assert mine.norm(dim=1).tolist() == pytest.approx((0.7 * own.norm(dim=1)).tolist(), rel=1e-12)
    assert len({tuple(noise.tolist()) for noise in seen[1:]}) == 10


def test_pairs_cancel_the_slope_exactly() -> None:
    linear = Quadratic(torch.zeros(6, 6, dtype=torch.float64), normal(6))
    pairs = noise_sensitivity(linear, [0.5], draws=20).frame.iloc[0]
    assert pairs["loss"] == pytest.approx(0.5, rel=1e-14)
    assert pairs["loss_error"] < 1e-15


@pytest.mark.parametrize("adaptive", [True, False])
def test_standard_errors_are_the_spread_over_seeds(adaptive) -> None:
    f, runs = convex(6), 300
    found = pd.concat(noise_sensitivity(f, [0.4], draws=12, adaptive=adaptive, seed=seed).frame for seed in range(runs))
    spread, claimed = found["loss"].std(), math.sqrt((found["loss_error"] ** 2).mean())
    assert claimed == pytest.approx(spread, rel=0.2)


def test_draws_of_all_strengths_share_their_directions_and_go_in_any_order() -> None:
    f = convex(6)
    curve = noise_sensitivity(f, [0.4, 0.1, 0.4], draws=8, seed=2).frame
    assert curve["loss"][0] == curve["loss"][2]
    alone = noise_sensitivity(f, [0.1], draws=8, seed=2).frame
    assert alone["loss"][0] == pytest.approx(curve["loss"][1], rel=1e-12)
    assert noise_sensitivity(f, [0.1], draws=8, seed=3).frame["loss"][0] != alone["loss"][0]


def test_how_many_are_held_at_once_does_not_matter(monkeypatch) -> None:
    expected = noise_sensitivity(convex(6), A, draws=14).frame
    monkeypatch.setattr("nb_lib.noise_sensitivity._TOGETHER", 6 * 2 * 3)
    pd.testing.assert_frame_equal(noise_sensitivity(convex(6), A, draws=14).frame, expected, rtol=1e-12)


def test_accuracy_and_loss_of_a_network_under_written_out_noise(digits, trained) -> None:
    _, x, y = digits
    curve = noise_sensitivity(trained, [0.3], draws=40)
    g = torch.Generator().manual_seed(11)
    losses, rights = [], []
    for _ in range(200):
        w = trained.weights + 0.3 * (2 * torch.rand(len(trained), generator=g, dtype=torch.float64) - 1)
        outputs = torch.func.functional_call(
            trained.model, dict(zip(trained.flat.names, trained.tensors(w), strict=True)), (x,)
        )
        losses.append(float(F.cross_entropy(outputs, y)))
        rights.append(float((outputs.argmax(1) == y).double().mean()))
    row = curve.frame.iloc[0]
    for column, reference in (("loss", losses), ("accuracy", rights)):
        combined = math.hypot(row[f"{column}_error"], np.std(reference) / math.sqrt(200))
        assert abs(row[column] - np.mean(reference)) < 4 * combined
        assert row[f"{column}_error"] < 0.1 * row[column]
    assert curve.accuracy - row["accuracy"] > 5 * row["accuracy_error"] > 0


def test_small_noise_follows_the_trace(trained, dense_hessian) -> None:
    curve = noise_sensitivity(trained, [0.01], draws=200)
    row = curve.frame.iloc[0]
    within(
        row["loss"] - curve.loss,
        row["loss_error"],
        float(second_order(float(dense_hessian.trace()), [0.01])[0]),
    )


def test_slope_is_eq_9() -> None:
    curve = noise_sensitivity(convex(6), [0, 0.1, 0.2], draws=20)
    rows = curve.frame.set_index("a")
    assert curve.slope() == curve.slope(0.2)
    for a in (0.1, 0.2):
        assert curve.slope(a) == pytest.approx(((rows["loss"][a] - 0.5) / a, rows["loss_error"][a] / a))
    for a in (0, 0.15, -0.1):
        with pytest.raises(InputError, match=r"choose among 0\.1, 0\.2\."):
            curve.slope(a)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strengths": [0.1, -0.1]}, "noise strength a must be a finite number of at least 0"),
        ({"strengths": [math.nan]}, "noise strength"),
        ({"strengths": []}, "at least one noise strength"),
        ({"distribution": "gaussian"}, "Known are uniform, normal"),
        ({"draws": 5}, "in pairs, .* not 5"),
        ({"draws": 2}, "in pairs, .* not 2"),
    ],
)
def test_curves_that_make_no_sense_are_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        noise_sensitivity(convex(6), **({"strengths": [0.1]} | arguments))


# -------------------------------------------------------------------------------------------------------- curvature


def test_eigenvalues_of_a_trained_network_are_those_of_its_dense_hessian(trained, dense_hessian) -> None:
    exact = torch.linalg.eigvalsh(dense_hessian)
    found = hessian_eigenvalues(trained, 6)
    assert np.all(np.abs(np.array(found.values) - exact.flip(0)[:6].numpy()) <= np.array(found.errors) + 1e-12)
    assert max(found.errors) <= 1e-3 * found.values[0]
    assert found.products < 60
    # the error bounds the way to some eigenvalue, and no estimate is below the smallest of all
    assert (exact - found.smallest.value).abs().min() <= found.smallest.error + 1e-12
    assert exact[0] - 1e-12 <= found.smallest.value < 0.01 * exact[-1]


def test_eigenvalues_agree_with_scipys(trained) -> None:
    product = trained.hessian_product(trained.weights)
    operator = LinearOperator(2 * (len(trained),), lambda v: product(torch.from_numpy(v.ravel())).numpy(), dtype=float)
    start = np.random.default_rng(0).normal(size=len(trained))
    expected = eigsh(operator, k=4, which="LA", v0=start, return_eigenvectors=False)[::-1]
    found = hessian_eigenvalues(trained, 4, tolerance=1e-9)
    assert found.values == pytest.approx(expected, rel=1e-9)


def test_all_eigenvalues_of_a_small_hessian_are_exact_with_signs_and_copies() -> None:
    values = [9.0, 4, 4, 4, 0.5, 0, 0, -1, -20]
    found = hessian_eigenvalues(spectrum(*values), 9)
    assert found.values == pytest.approx(values, abs=1e-12)
    assert found.smallest.value == pytest.approx(-20, rel=1e-12)
    assert found.products == 9


@pytest.mark.parametrize("k", [1, 3, 4])
def test_copies_of_an_eigenvalue_are_found_though_one_vector_sees_one_of_them(k) -> None:
    found = hessian_eigenvalues(spectrum(*[5.0] * 3, *[1.0] * 40), k)
    assert found.values == pytest.approx([5, 5, 5, 1][:k], rel=1e-9)


def test_largest_means_largest_not_largest_in_magnitude() -> None:
    found = hessian_eigenvalues(spectrum(-100, *np.linspace(0, 3, 30)), 2, tolerance=1e-9)
    assert found.values[0] == pytest.approx(3, rel=1e-6)
    assert found.smallest.value == pytest.approx(-100, rel=1e-6)


def test_no_curvature_at_all_is_no_trouble() -> None:
    flat = Quadratic(torch.zeros(5, 5, dtype=torch.float64))
    assert hessian_eigenvalues(flat, 2).values == (0, 0)
    assert hessian_trace(flat).value == 0


def test_too_few_products_show_in_the_errors(monkeypatch) -> None:
    f = spectrum(*np.linspace(0, 1, 60))
    monkeypatch.setattr("nb_lib.hessian._MOST", 6)
    found = hessian_eigenvalues(f, 3)
    assert found.products == 6
    assert found.errors[0] > 1e-3
    exact = torch.linalg.eigvalsh(f.h)
    for value, error in zip(found.values, found.errors, strict=True):
        assert float((exact - value).abs().min()) <= error


def test_single_precision_finds_the_same_eigenvalues(digits, dense_hessian) -> None:
    model, x, y = digits
    objective = Objective(nn.Sequential(*model).float().eval(), x.float(), y)
    try:
        found = hessian_eigenvalues(objective, 4)
        trace = hessian_trace(objective, probes=300)
    finally:
        model.double()
    exact = torch.linalg.eigvalsh(dense_hessian).flip(0)
    assert found.values == pytest.approx(exact[:4].tolist(), rel=2e-3)
    assert abs(trace.value - float(dense_hessian.trace())) < 4 * trace.error + 1e-3 * float(dense_hessian.trace())


def test_traces_are_unbiased_and_their_errors_are_the_spread_over_seeds() -> None:
    values = [50, 20, 10, -3, *(1 / k for k in range(1, 30))]
    f, runs = spectrum(*values), 200
    found = [hessian_trace(f, probes=24, seed=seed) for seed in range(runs)]
    estimates = np.array([trace.value for trace in found])
    spread = estimates.std(ddof=1)
    assert abs(estimates.mean() - sum(values)) < 4 * spread / math.sqrt(runs)
    claimed = math.sqrt(np.mean([trace.error**2 for trace in found]))
    assert claimed == pytest.approx(spread, rel=0.3)
    assert {trace.products for trace in found} == {24}
    signs = 2.0 * np.random.default_rng(0).integers(2, size=(runs, 24, len(values))) - 1
    plain = np.einsum("rpi,ij,rpj->rp", signs, f.h.numpy(), signs, optimize=True).mean(1)  # Hutchinson's estimator
    assert spread < 0.2 * plain.std(ddof=1)


def test_the_trace_of_a_trained_network_is_that_of_its_dense_hessian(trained, dense_hessian) -> None:
    found = hessian_trace(trained, probes=120)
    within(found.value, found.error, float(dense_hessian.trace()))


def test_as_many_probes_as_weights_leave_nothing_to_chance() -> None:
    found = hessian_trace(spectrum(3, 2, 1, -5), probes=12)
    assert found.value == pytest.approx(1, rel=1e-10)
    assert found.error < 1e-10


def test_the_weighted_trace_is_that_of_eq_12s_noise() -> None:
    f = Quadratic(torch.diag(normal(6) ** 2), w=normal(6, seed=9))
    curvature = f.h.diagonal()
    filters = f.weights[:4].view(2, 2).square().mean(1).repeat_interleave(2)  # |w_f|²/n_f
    expected = float((filters * curvature[:4]).sum() + (f.weights[4:] ** 2 * curvature[4:]).sum())
    assert hessian_trace(f, adaptive=True).value == pytest.approx(expected, rel=1e-9)


def test_the_second_order_prediction_is_a_squared_over_six_or_over_two() -> None:
    assert second_order(12, [0, 1, 2]).tolist() == pytest.approx([0, 2, 8])
    assert second_order(12, [0, 1, 2], distribution="normal").tolist() == pytest.approx([0, 6, 24])
    trace = hessian_trace(spectrum(3, 2, 1), probes=12)
    assert second_order(trace, [1.0]).tolist() == pytest.approx([1])
    with pytest.raises(InputError, match="unknown distribution"):
        second_order(12, [1], distribution="cauchy")


@pytest.mark.parametrize(
    ("k", "arguments", "message"),
    [
        (0, {}, "of 6, must be a whole number, from 1 to 6, not 0"),
        (7, {}, "from 1 to 6, not 7"),
        (2.5, {}, "whole number"),
        (3, {"tolerance": 0.0}, "tolerance must be a finite number greater than 0"),
    ],
)
def test_eigenvalues_that_cannot_be_had_are_refused(k, arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        hessian_eigenvalues(convex(6), k, **arguments)


def test_too_few_probes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 6 probes, not 5"):
        hessian_trace(convex(6), probes=5)
    assert math.isfinite(hessian_trace(convex(60), probes=6).error)


@pytest.mark.parametrize("measure", [hessian_eigenvalues, hessian_trace])
def test_a_hessian_that_is_not_finite_is_refused(measure) -> None:
    with pytest.raises(InputError, match="the Hessian is not finite there"):
        measure(Quadratic(torch.full((8, 8), math.nan, dtype=torch.float64)))


# ------------------------------------------------------------------------------------------------------ all of them

MEASURES = [
    lambda f: box_sharpness(f, starts=2, steps=3),
    lambda f: noise_sensitivity(f, [0.1, 0.2], draws=4, adaptive=True),
    lambda f: noise_sensitivity(f, [0.1], draws=4, distribution="normal").slope(),
    lambda f: hessian_eigenvalues(f, 2),
    lambda f: hessian_trace(f, probes=6),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_results_repeat_and_print_in_a_line_or_two(trained, measure) -> None:
    weights, state = trained.weights.clone(), torch.get_rng_state()
    first = measure(trained)
    assert first == measure(trained) or isinstance(first, tuple)
    assert torch.equal(trained.weights, weights)
    assert torch.equal(trained.flat.work, weights)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(len(line) < 200 for line in str(first).splitlines())
    assert "tensor" not in str(first)


def test_what_is_printed() -> None:
    assert str(Estimate(12.345678, 0.0123)) == "12.35 ± 0.012"
    box = str(box_sharpness(Quadratic(torch.eye(4, dtype=torch.float64)), epsilon=0.1, starts=1))
    assert box.startswith("sharpness 1.333 (mean 0.6667, std 0.94 over 2 starts): loss 0.5 rises to 0.52\n")
    assert box.endswith("in a box of ε = 0.1 in 4 dimensions; 4 evaluations")
    curve = str(noise_sensitivity(Quadratic(torch.zeros(6, 6, dtype=torch.float64)), [0, 0.25], draws=4))
    assert curve.splitlines()[0] == "loss under uniform noise, 4 draws a strength, 5 evaluations"
    assert " ".join(curve.splitlines()[2].split()) == "a = 0.25 loss 0.5 ± 0, accuracy 25.00% ± 0.00%"
    values = str(hessian_eigenvalues(spectrum(2, 1, -1), 1))
    assert values.startswith("Hessian eigenvalues 2 ± ")
    assert values.endswith("; 3 products")
    assert str(hessian_trace(spectrum(2, 1, 1), probes=9)).startswith("tr H = 4 ± ")
    assert "|w_f|²/n_f" in str(hessian_trace(convex(6), adaptive=True))
