"""SmoothOut's noise and the return from it, against closed forms and written-out loops; loops are tested next door."""

import math
import re
from itertools import combinations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab.networks import build
from nb_lib.smoothout import SmoothOut

FLOATS = [torch.float32, torch.float64]
ALL_TYPES = [torch.float16, torch.bfloat16, *FLOATS]
#: The four kinds of noise, as keyword arguments.
KINDS = [
    pytest.param({"distribution": distribution, "adaptive": adaptive}, id=f"{distribution}{'-adaptive' * adaptive}")
    for distribution in ("uniform", "normal")
    for adaptive in (False, True)
]
N = 40_000


class Weights(nn.Module):
    """A module that is nothing but `rows` x `width` weights."""

    def __init__(self, rows: int, width: int, value: float = 0.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((rows, width), value, dtype=dtype))


class ManyCopies(nn.Module):
    """A loss C(w) at many copies of one w [m], one a row: a perturbation of it is as many independent draws."""

    def __init__(self, loss, w: Tensor, copies: int) -> None:
        super().__init__()
        self.loss, self.weight = loss, nn.Parameter(w.repeat(copies, 1))

    def forward(self) -> Tensor:
        return self.loss(self.weight)


@pytest.fixture
def convnet():
    """Build convolutional and dense layers, with and without bias, and three kinds of normalization."""

    def make(dtype: torch.dtype = torch.float32) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 6, 3, bias=False),
                nn.GroupNorm(2, 6),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(24, 10),
                nn.LayerNorm(10),
                nn.Linear(10, 5),
            )
        return model.to(dtype)

    return make


def values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, copied, in double precision: half and single ones fit in exactly."""
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def bits(model: nn.Module) -> list[Tensor]:
    """Every parameter's bit pattern, so that -0 is not 0."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [p.detach().clone().view(integer[p.element_size()]) for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def draw(smooth: SmoothOut) -> dict[str, Tensor]:
    """One θ by parameter name, in double precision."""
    clean = values(smooth.model)
    with smooth.perturbed():
        return {name: w - clean[name] for name, w in values(smooth.model).items()}


def draws(smooth: SmoothOut, count: int) -> Tensor:
    """Rows: `count` successive θ of a `Weights`."""
    return torch.stack([draw(smooth)["weight"].flatten() for _ in range(count)])


def rows_of(tensor: Tensor) -> Tensor:
    """Filters or neurons, one a row; entries of a bias stand alone."""
    return tensor.reshape(len(tensor), -1)


# ------------------------------------------------------------------------------------- what the noise does to the loss


def sampled(model: ManyCopies, smooth: SmoothOut, perturbations: int) -> tuple[Tensor, Tensor]:
    """Loss [draws] and gradient [draws, m] at w + θ."""
    losses, gradients = [], []
    for _ in range(perturbations):
        with smooth.perturbed():
            loss = model()
            (gradient,) = torch.autograd.grad(loss.sum(), model.weight)
        losses.append(loss.detach())
        gradients.append(gradient)
    return torch.cat(losses), torch.cat(gradients)


def standard_errors_off(samples: Tensor, expected: Tensor) -> Tensor:
    return (samples.mean(0) - expected).abs() / (samples.std(0) / len(samples) ** 0.5)


@pytest.fixture
def quadratic():
    """C(w) = ½ wᵀHw + bᵀw with a positive definite H, and a point w."""
    generator = torch.Generator().manual_seed(3)
    root, b, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in [(6, 6), (6,), (6,)])
    hessian = root @ root.T
    return (lambda v: 0.5 * torch.einsum("ki,ij,kj->k", v, hessian, v) + v @ b), hessian, b, w


@pytest.mark.parametrize(("distribution", "variance"), [("uniform", 1 / 3), ("normal", 1.0)])
def test_mean_loss_and_gradient_on_a_quadratic_are_those_of_the_smoothed_loss(quadratic, distribution, variance):
    loss, hessian, b, w = quadratic
    a = 0.3
    model = ManyCopies(loss, w, 20_000)
    losses, gradients = sampled(model, SmoothOut(model, a, distribution=distribution, seed=5), 10)
    clean = 0.5 * w @ hessian @ w + b @ w
    lift = variance * a**2 / 2 * hessian.trace()  # a²/6 tr H for uniform noise, a²/2 tr H for normal noise
    assert standard_errors_off(losses, clean + lift) < 4.5
    assert standard_errors_off(losses, clean) > 20, "the lift must stand out, or this test could not fail"
    assert (standard_errors_off(gradients, hessian @ w + b) < 4.5).all()


@pytest.mark.parametrize(
    ("distribution", "damping"),
    [
        ("uniform", lambda om, a: math.sin(om * a) / (om * a)),
        ("normal", lambda om, a: math.exp(-((om * a) ** 2) / 2)),
    ],
)
def test_mean_gradient_of_a_cosine_is_damped_as_in_closed_form(distribution, damping):
    om, a = 3.0, 0.5
    w = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    model = ManyCopies(lambda v: torch.cos(om * v).sum(1), w, 20_000)
    _, gradients = sampled(model, SmoothOut(model, a, distribution=distribution, seed=7), 10)
    undamped = -om * torch.sin(om * w)
    assert (standard_errors_off(gradients, undamped * damping(om, a)) < 4.5).all()
    assert (standard_errors_off(gradients, undamped) > 20).all()


# ------------------------------------------------------------------------------------------- what the noise itself is


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("a", [0.0375, 1e-4])
def test_uniform_noise_is_uniform(dtype, a):
    for theta in draws(SmoothOut(Weights(200, N // 200, dtype=dtype), a, seed=1), 4) / a:
        assert theta.abs().max() <= 1
        assert abs(theta.mean()) < 4.5 * (1 / 3 / N) ** 0.5
        second, fourth = (theta**2).mean(), (theta**4).mean()
        assert abs(second - 1 / 3) < 4.5 * (4 / 45 / N) ** 0.5
        assert abs(fourth / second**2 - 1.8) < 4.5 * (1.317 / N) ** 0.5  # delta method
        assert stats.kstest(theta, "uniform", args=(-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("a", [0.0375, 1e-4])
def test_normal_noise_is_normal(dtype, a):
    for theta in draws(SmoothOut(Weights(200, N // 200, dtype=dtype), a, distribution="normal", seed=1), 4) / a:
        assert abs(theta.mean()) < 4.5 * (1 / N) ** 0.5
        assert abs(theta.var() - 1) < 4.5 * (2 / N) ** 0.5
        assert abs(stats.kurtosis(theta, fisher=False) - 3) < 4.5 * (24 / N) ** 0.5
        assert stats.kstest(theta, "norm").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("a", [0.0375, 1e-3])
def test_noise_in_half_precision_has_the_strength_asked_for(dtype, distribution, a):
    """A step of 1e-3/2¹⁵ is no number of float16: a product taken there would be off by a factor."""
    theta = draws(SmoothOut(Weights(200, N // 200, dtype=dtype), a, distribution=distribution, seed=2), 4) / a
    last_digit = torch.finfo(dtype).eps
    variance, kurtosis = {"uniform": (1 / 3, 1.8), "normal": (1, 3)}[distribution]
    assert abs(theta.var() / variance - 1) < 4.5 * ((kurtosis - 1) / theta.numel()) ** 0.5 + last_digit
    assert distribution == "normal" or theta.abs().max() <= 1 + last_digit


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_noise_is_independent_between_parameters_and_between_perturbations(dtype, distribution):
    """Four neighbors share a random word and four perturbations a filling of them: neither may show."""
    theta = draws(SmoothOut(Weights(200, N // 200, dtype=dtype), 0.1, distribution=distribution, seed=4), 9)
    for signal in (theta, theta.abs()):
        signal = (signal - signal.mean(1, keepdim=True)) / signal.std(1, keepdim=True)
        for lag in range(1, 9):
            assert ((signal[:, lag:] * signal[:, :-lag]).mean(1).abs() < 4.5 / N**0.5).all(), f"parameters {lag} apart"
        for i, j in combinations(range(9), 2):
            for lag in range(-3, 4):
                assert abs((signal[i].roll(lag) * signal[j]).mean()) < 4.5 / N**0.5, f"perturbations {i} and {j}"


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_deterministic_under_its_seed_and_differs_between_seeds(convnet, kind):
    def noise(seed):
        smooth = SmoothOut(convnet(), 0.1, seed=seed, **kind)
        return torch.stack([torch.cat([t.flatten() for t in draw(smooth).values()]) for _ in range(6)])

    first, again, other = noise(1), noise(1), noise(2)
    assert torch.equal(first, again)
    moved = (first != 0).all(0)
    assert moved.sum() > 900
    assert (first != other)[:, moved].double().mean() > 0.9, "all but signs of adaptive biases"


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_random_generator_is_not_touched(convnet, kind):
    model = convnet()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    smooth = SmoothOut(model, 0.1, **kind)
    for _ in range(5):
        draw(smooth)
    smooth.load_state_dict(smooth.state_dict())
    with smooth.attach(torch.optim.SGD(model.parameters(), lr=0.1)):
        model(torch.zeros(4, 3, 6, 6))
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------------- AdaSmoothOut


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("a", [0.15, 2.0])
def test_adaptive_noise_of_every_filter_and_neuron_has_a_times_its_norm(convnet, distribution, dtype, tolerance, a):
    model = convnet(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p[1] = 0  # one filter, neuron or bias entry of each is zero
    clean = values(model)
    smooth = SmoothOut(model, a, distribution=distribution, adaptive=True, include="all", seed=3)
    for _ in range(6):
        for name, theta in draw(smooth).items():
            assert theta.isfinite().all(), name
            wanted = [a * w.norm() for w in rows_of(clean[name])]
            for row, norm in zip(rows_of(theta), wanted, strict=True):
                assert abs(row.norm() - norm) <= tolerance * norm, name
    assert not any(theta[1].any() for theta in draw(smooth).values()), "a zero row has no direction to go"


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_adaptive_noise_of_a_bias_is_a_fair_sign_times_a_times_its_size(distribution, dtype):
    layer = nn.Linear(3, 5_000, dtype=dtype)
    b = values(layer)["bias"]
    theta = draw(SmoothOut(layer, 0.15, distribution=distribution, adaptive=True))["bias"]
    torch.testing.assert_close(theta.abs(), 0.15 * b.abs(), rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)
    assert abs((theta / b).sign().mean()) < 4.5 / len(b) ** 0.5


@pytest.mark.parametrize(("distribution", "isotropic"), [("normal", True), ("uniform", False)])
def test_adaptive_direction_is_isotropic_for_normal_noise_only(distribution, isotropic):
    """Archimedes: the coordinates of a uniformly distributed direction in three dimensions are U(−1, 1)."""
    smooth = SmoothOut(Weights(30_000, 3, value=0.7), 0.5, distribution=distribution, adaptive=True, seed=6)
    direction = nn.functional.normalize(draw(smooth)["weight"], dim=1)
    diagonal = direction.sum(1, keepdim=True) / 3**0.5
    coordinates = torch.cat([direction, diagonal], dim=1)
    assert ((coordinates.mean(0)).abs() < 4.5 * (1 / 3 / len(direction)) ** 0.5).all()
    p_values = [stats.kstest(column, "uniform", args=(-1, 2)).pvalue for column in coordinates.T]
    assert min(p_values) > 1e-3 if isotropic else max(p_values) < 1e-6


# ----------------------------------------------------------------------------------------------- which parameters move

WEIGHTS, BIASES = {"0.weight", "3.weight", "7.weight", "9.weight"}, {"0.bias", "7.bias", "9.bias"}
NORM = {f"{layer}.{leaf}" for layer in (1, 4, 8) for leaf in ("weight", "bias")}


@pytest.mark.parametrize(
    ("include", "moved"),
    [
        pytest.param({}, WEIGHTS | BIASES, id="default"),
        pytest.param({"include": "no-norm"}, WEIGHTS | BIASES, id="no-norm"),
        pytest.param({"include": "weights"}, WEIGHTS, id="weights"),
        pytest.param({"include": "all"}, WEIGHTS | BIASES | NORM, id="all"),
        pytest.param({"include": lambda name, p: name.startswith("7") or p.ndim == 4}, {"0.weight", "3.weight"} | {
            "7.weight", "7.bias"}, id="callable"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_include_says_which_parameters_are_perturbed(convnet, include, moved, kind):
    model = convnet()
    with torch.no_grad():
        for name in BIASES | NORM:
            model.get_parameter(name).fill_(0.5)  # a zero would get no adaptive noise
    noise = draw(SmoothOut(model, 0.1, **include, **kind))
    assert {name for name, theta in noise.items() if theta.any()} == moved
    assert all((noise[name] != 0).double().mean() > 0.99 for name in moved), "every entry of them"


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_network_is_perturbed_but_for_its_normalization_and_comes_back(kind):
    model = build("resnet8", (3, 8, 8), 10, seed=2)
    before = bits(model)
    norms = {name for name, module in model.named_modules() if isinstance(module, GhostBatchNorm)}
    assert len(norms) == 1 + 2 + 3 + 3
    smooth = SmoothOut(model, 0.1, **kind)
    for name, theta in draw(smooth).items():
        owner = name.rpartition(".")[0]
        weight = model.get_parameter(name).detach().double()
        if owner in norms:
            assert not theta.any()
        elif kind["adaptive"]:
            lengths = rows_of(theta).norm(dim=1)  # of filters, neurons, and the dense layer's biases
            of_weights = rows_of(weight).norm(dim=1)
            torch.testing.assert_close(lengths, 0.1 * of_weights, rtol=1e-4, atol=1e-7)
        else:
            variance = 1.0 if kind["distribution"] == "normal" else 1 / 3
            ratio = float(theta.square().mean()) / (0.01 * variance)
            assert ratio == pytest.approx(1, abs=7 / theta.numel() ** 0.5)
    x = torch.ones(6, 3, 8, 8)
    for _ in range(3):
        with smooth.perturbed():
            model(x).sum().backward()
        assert same(bits(model), before)


def test_frozen_parameters_stay_where_they_are(convnet):
    model = convnet()
    model.get_parameter("3.weight").requires_grad_(False)
    noise = draw(SmoothOut(model, 0.1))
    assert {name for name, theta in noise.items() if theta.any()} == (WEIGHTS | BIASES) - {"3.weight"}


# --------------------------------------------------------------------------------------------------- the way back


class StopInside(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
@pytest.mark.parametrize("raising", [False, True], ids=["", "after an exception"])
def test_weights_come_back_to_the_last_bit(convnet, kind, dtype, raising):
    model = convnet(dtype)
    with torch.no_grad():
        model.get_parameter("7.bias")[:3] = torch.tensor([-0.0, torch.finfo(dtype).tiny / 2, 3e4])
    before = bits(model)
    smooth = SmoothOut(model, 0.05, include="all", **kind)
    assert same(bits(model), before), "building it moves memory, not values"
    for _ in range(5):
        try:
            with smooth.perturbed():
                assert not any(torch.equal(x, y) for x, y in zip(bits(model), before, strict=True) if x.ndim > 1)
                if raising:
                    raise StopInside
        except StopInside:
            pass
        assert same(bits(model), before)


@pytest.mark.parametrize("dtype", ALL_TYPES, ids=str)
def test_a_thousand_cycles_change_no_bit_where_add_then_subtract_drifts(convnet, dtype):
    model, drifting = convnet(dtype), convnet(dtype)
    before, smooth = bits(model), SmoothOut(model, 0.05)
    for _ in range(1_000):
        with smooth.perturbed():
            pass
    assert same(bits(model), before)

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in drifting.parameters():
            for _ in range(1_000 if p.ndim == 4 else 0):
                theta = torch.empty_like(p).uniform_(-0.05, 0.05, generator=generator)
                p.add_(theta).sub_(theta)
    assert not same(bits(drifting), before)


def test_parameters_keep_identity_and_address(convnet):
    model = convnet()
    identity = [id(p) for p in model.parameters()]
    smooth = SmoothOut(model, 0.05)
    address = [p.data_ptr() for p in model.parameters()]
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(3):
        with smooth.perturbed():
            assert [p.data_ptr() for p in model.parameters()] == address
            model(torch.ones(2, 3, 6, 6) * step).sum().backward()
        optimizer.step()
    assert [p.data_ptr() for p in model.parameters()] == address
    assert [id(p) for p in model.parameters()] == identity


@pytest.mark.parametrize("perturbations", [1, 5])
@pytest.mark.parametrize(("distribution", "unit", "kurtosis"), [("uniform", 1 / 3, 1.8), ("normal", 1.0, 3.0)])
def test_without_denoising_the_noise_accumulates(perturbations, distribution, unit, kurtosis):
    model, a = Weights(200, N // 200), 0.01
    smooth = SmoothOut(model, a, distribution=distribution, denoise=False, seed=8)
    for _ in range(perturbations):
        with smooth.perturbed():
            inside = values(model)["weight"]
        assert torch.equal(values(model)["weight"], inside)
    variance = perturbations * unit * a**2
    excess = (kurtosis - 3) / perturbations  # of a sum
    assert abs(inside.var() / variance - 1) < 4.5 * ((2 + excess) / N) ** 0.5


# --------------------------------------------------------------------------------------------- strength 0, and refusals


class Ops(TorchDispatchMode):
    """The operations dispatched inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_dispatches_no_operation(convnet, kind):
    smooth = SmoothOut(convnet(), 0, **kind)
    with Ops() as ops, smooth.perturbed():
        pass
    assert ops.names == []
    smooth.a = 0.1
    with Ops() as ops, smooth.perturbed():
        pass
    assert len(ops.names) > 2, "the counter sees what there is"


def test_strength_may_change_between_steps():
    smooth = SmoothOut(Weights(100, 100), 0.1)
    for a in (0.1, 0.02, 0.0, 0.3):
        smooth.a = a
        assert a * 0.99 <= draw(smooth)["weight"].abs().max() <= a


@pytest.mark.parametrize("a", [-0.1, math.nan, math.inf, -math.inf])
def test_a_strength_that_is_none_is_refused(convnet, a):
    with pytest.raises(InputError, match=r"noise strength a must be .* at least 0"):
        SmoothOut(convnet(), a)


@pytest.mark.parametrize(
    ("argument", "match"),
    [
        ({"distribution": "unifrom"}, "did you mean 'uniform'"),
        ({"distribution": "cauchy"}, "Known are uniform, normal"),
        ({"include": "weight"}, "did you mean 'weights'"),
        ({"include": lambda name, p: False}, "no trainable parameter"),
    ],
    ids=["misspelled distribution", "unknown distribution", "unknown selection", "nothing selected"],
)
def test_what_is_not_known_is_refused(convnet, argument, match):
    with pytest.raises(InputError, match=match):
        SmoothOut(convnet(), 0.1, **argument)


def test_perturbed_inside_perturbed_is_refused_and_the_first_still_comes_back(convnet):
    model = convnet()
    before, smooth = bits(model), SmoothOut(model, 0.1)
    with smooth.perturbed():
        noisy = bits(model)
        with pytest.raises(InputError, match="perturbed already"), smooth.perturbed():
            pass
        assert same(bits(model), noisy)
    assert same(bits(model), before)


def assigned(model: nn.Module) -> None:
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(lambda model: model.to(torch.float64), id="to float64"),
        pytest.param(lambda model: model.half(), id="half"),
        pytest.param(lambda model: model.to(torch.float64).to(torch.float32), id="there and back"),
        pytest.param(lambda model: model.to(memory_format=torch.channels_last), id="channels last"),
        pytest.param(lambda model: model[9].to(torch.float64), id="one layer"),
        pytest.param(assigned, id="load_state_dict(assign=True)"),
    ],
)
@pytest.mark.parametrize("use", ["perturbed", "attach"])
def test_a_model_moved_after_construction_is_refused_in_one_sentence(convnet, move, use):
    model = convnet()
    smooth = SmoothOut(model, 0.1)
    move(model)
    before = bits(model)
    if use == "perturbed":
        with pytest.raises(InputError) as refusal, smooth.perturbed():
            pass
    else:
        with pytest.raises(InputError) as refusal:
            smooth.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    message = str(refusal.value)
    assert "moved" in message
    assert "\n" not in message
    assert re.findall(r"[.!?](?=\s|$)", message) == ["."], "one sentence"
    assert same(bits(model), before)


# ----------------------------------------------------------------------------------------------------------- its cost


@pytest.mark.parametrize(
    ("distribution", "most"), [("uniform", [3, 3, 3, 5]), ("normal", [3, 3, 3, 3])], ids=["uniform", "normal"]
)
def test_a_step_dispatches_three_more_operations_and_five_when_words_are_drawn(convnet, distribution, most):
    x = torch.ones(4, 3, 6, 6)

    def operations(smooth: SmoothOut, steps: int) -> list[int]:
        optimizer = torch.optim.SGD(smooth.model.parameters(), lr=0.01)
        counts = []
        for _ in range(steps):
            with Ops() as ops:
                optimizer.zero_grad()
                with smooth.perturbed():
                    smooth.model(x).sum().backward()
                optimizer.step()
            counts.append(len(ops.names))
        return counts

    plain, *_ = operations(SmoothOut(convnet(), 0), 1)
    noisy = operations(SmoothOut(convnet(), 0.05, distribution=distribution), 8)
    for block in (noisy[:4], noisy[4:], noisy[2:6]):  # any four consecutive steps
        extra = sorted(count - plain for count in block)
        assert all(0 < e <= m for e, m in zip(extra, most, strict=True)), extra


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_adaptive_noise_costs_no_more_operations_for_more_layers_of_one_width(distribution):
    def operations(model: nn.Module) -> list[int]:
        smooth = SmoothOut(model, 0.15, distribution=distribution, adaptive=True)
        counts = []
        for _ in range(4):
            with Ops() as ops, smooth.perturbed():
                pass
            counts.append(len(ops.names))
        return counts

    deeper = nn.Sequential(nn.Linear(64, 500), *(nn.Linear(500, 500) for _ in range(13)), nn.Linear(500, 10))
    f1 = build("ne-f1", (1, 8, 8), 10)
    assert len(list(deeper.parameters())) == len(list(f1.parameters())) + 14
    assert operations(f1) == operations(deeper)
