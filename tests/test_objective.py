"""The loss as a function of flat weights, against the network itself, dense derivatives and hand-written statistics."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab.networks import build
from nb_lib.lab.residual import ResidualBlock
from nb_lib.objective import Objective, flattened
from nb_lib.smoothout import SmoothOut

N, CLASSES = 23, 3


def made(*layers, dtype=torch.float64) -> nn.Sequential:
    """Build layers from a seed of their own, in evaluation mode, with biases and statistics that are not 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(*(layer() for layer in layers)).to(dtype)
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5) if "bias" not in name else tensor.normal_()
    return model.eval()


def dense(norm=nn.BatchNorm1d, activation=nn.Tanh) -> nn.Sequential:
    first, second = (lambda: nn.Linear(5, 4)), (lambda: nn.Linear(4, 4))
    norms = 2 * [lambda: norm(4)]
    return made(first, norms[0], activation, second, norms[1], activation, nn.Dropout, lambda: nn.Linear(4, CLASSES))


def convolutional() -> nn.Sequential:
    return made(
        lambda: nn.Conv2d(2, 3, 2),
        lambda: nn.BatchNorm2d(3),
        nn.ReLU,
        lambda: nn.MaxPool2d(2),
        nn.Flatten,
        lambda: nn.Linear(3, CLASSES),
    )


def residual() -> nn.Sequential:
    """A residual network with gains, shifts and statistics of normalization that are not 0 and 1."""
    return made(lambda: build("resnet8", (2, 8, 8), CLASSES, seed=1))[0]


IMAGES = {convolutional: (2, 3, 3), residual: (2, 8, 8)}  # shapes of what the others than `dense` take


def samples(*shape: int, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(N, *(shape or (5,)), generator=g, dtype=torch.float64) + 0.3
    return x.to(dtype), torch.randint(CLASSES, (N,), generator=g)


def elsewhere(objective: Objective, seed: int = 0, scale: float = 0.1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return objective.weights + scale * torch.randn(len(objective), generator=g, dtype=objective.weights.dtype)


def moved(model: nn.Module, objective: Objective, w: Tensor) -> nn.Module:
    """Return the network at w, by names, its buffers as the objective has them."""
    other = copy.deepcopy(model)
    other.load_state_dict(objective.model.state_dict())
    named = dict(other.named_parameters())
    first = 0
    with torch.no_grad():
        for name in objective.flat.names:
            named[name].copy_(w[first : first + named[name].numel()].view_as(named[name]))
            first += named[name].numel()
    assert first == len(w)
    return other


# ------------------------------------------------------------------------------------------------------------- purity


class Bits:
    """Everything about a model, and torch's random state, to the last bit."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.identity = [(name, id(p), p.data_ptr(), id(p.grad)) for name, p in model.named_parameters()]
        self.tensors = [t.clone() for t in self.all_tensors()]
        self.flags = self.all_flags()

    def all_tensors(self) -> list[Tensor]:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return [*self.model.state_dict().values(), *gradients, torch.get_rng_state()]

    def all_flags(self) -> list:
        versions = [(p.requires_grad, p._version) for p in self.model.parameters()]
        backends = [b.fp32_precision for b in (torch.backends.cuda.matmul, torch.backends.cudnn.conv)]
        modes = [(m.training, len(m._forward_pre_hooks)) for m in self.model.modules()]
        return [*versions, *modes, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), *backends]

    def assert_same(self) -> None:
        assert self.identity == [(name, id(p), p.data_ptr(), id(p.grad)) for name, p in self.model.named_parameters()]
        assert self.flags == self.all_flags()
        for before, now in zip(self.tensors, self.all_tensors(), strict=True):
            assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (before, now)))


def with_history() -> nn.Sequential:
    """Return a network with gradients, a frozen layer and negative zeros."""
    model = dense()
    F.cross_entropy(model(samples()[0]), samples()[1]).backward()
    model[3].weight.requires_grad_(False)
    with torch.no_grad():
        model[7].bias.mul_(-0.0)
    return model


def use(objective: Objective) -> None:
    w = elsewhere(objective)
    objective(w)
    objective.many(torch.stack([w, objective.weights]))
    objective.side_by_side(torch.stack([w, objective.weights]), 2)
    objective.gradient(w)
    objective.hessian_product(w)(w)
    assert objective.start.loss.isfinite()


@pytest.mark.parametrize("batch_norm", ["reestimated", "stored"])
@pytest.mark.parametrize("chunk", [5, 100])
def test_nothing_about_the_network_or_torch_changes(batch_norm, chunk) -> None:
    model = with_history()
    before = Bits(model)
    use(Objective(model, *samples(), batch_norm=batch_norm, chunk=chunk))
    before.assert_same()


class FailsAt:
    """A criterion that raises at its call number `at`."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, outputs: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError
        return F.cross_entropy(outputs, y, reduction="none")


@pytest.mark.parametrize("at", range(1, 8))
@pytest.mark.parametrize("method", ["__call__", "gradient", "hessian_product", "many", "side_by_side"])
def test_nothing_changes_either_if_the_criterion_raises(method, at) -> None:
    model = with_history()
    before, criterion = Bits(model), FailsAt(at)
    objective = None
    try:
        objective = Objective(model, *samples(), criterion=criterion, chunk=5)
        point = elsewhere(objective)
        arguments = {"many": (point[None],), "side_by_side": (point[None], 1)}
        getattr(objective, method)(*arguments.get(method, (point,)))(point)
    except (ZeroDivisionError, TypeError):
        pass
    before.assert_same()
    if objective is not None:
        criterion.left = 0
        assert torch.equal(objective.flat.work, objective.weights)
        assert objective(objective.weights).loss == Objective(model, *samples(), chunk=5).start.loss


def test_it_measures_a_network_in_use_by_smoothout() -> None:
    model = dense()
    expected = Objective(model, *samples()).start
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    SmoothOut(model, 0.5).attach(optimizer)
    before = Bits(model)
    assert Objective(model, *samples()).start == expected
    before.assert_same()


def test_later_changes_of_the_network_do_not_matter() -> None:
    model = dense()
    objective = Objective(model, *samples())
    loss = objective(objective.weights).loss
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert objective(objective.weights).loss == loss


# ------------------------------------------------------------------------------------------- values and derivatives


@pytest.mark.parametrize("make", [dense, convolutional, residual], ids=lambda make: make.__name__)
@pytest.mark.parametrize("chunk", [6, 100])
def test_loss_and_accuracy_are_the_networks_own(make, chunk) -> None:
    model, (x, y) = make(), samples(*IMAGES.get(make, ()))
    objective = Objective(model, x, y, batch_norm="stored", chunk=chunk)
    for w in (objective.weights, elsewhere(objective)):
        outputs = moved(model, objective, w)(x).detach()
        value = objective(w)
        assert float(value.loss) == pytest.approx(float(F.cross_entropy(outputs, y)), rel=1e-13)
        assert float(value.accuracy) == pytest.approx(float((outputs.argmax(1) == y).double().mean()), rel=1e-15)
        assert value.loss.dtype == value.accuracy.dtype == torch.float64
    assert torch.equal(model(x), moved(model, objective, objective.weights)(x))


@pytest.mark.parametrize("make", [dense, convolutional, residual], ids=lambda make: make.__name__)
@pytest.mark.parametrize("include", ["all", "no-norm", "weights", lambda name, p: p.ndim == 1])
@pytest.mark.parametrize("chunk", [6, 100])
def test_gradient_is_autograds_on_the_network(make, include, chunk) -> None:
    model, (x, y) = make(), samples(*IMAGES.get(make, ()))
    objective = Objective(model, x, y, include=include, chunk=chunk)
    w = elsewhere(objective)
    there = moved(model, objective, w)
    expected = F.cross_entropy(there(x), y)
    expected.backward()
    named = dict(there.named_parameters())
    loss, gradient = objective.gradient(w)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-13)
    torch.testing.assert_close(
        gradient, torch.cat([named[n].grad.flatten() for n in objective.flat.names]), rtol=1e-11, atol=1e-13
    )
    assert not loss.requires_grad
    assert not gradient.requires_grad


def as_function(model: nn.Module, objective: Objective, w: Tensor, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Loss as a function of flat weights, written from the network's own layers."""
    there = moved(model, objective, w)
    named = dict(there.named_parameters())

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([named[name].numel() for name in objective.flat.names])
        at = {name: part.view_as(named[name]) for name, part in zip(objective.flat.names, parts, strict=True)}
        return F.cross_entropy(functional_call(there, at, x), y)

    return loss


@pytest.mark.parametrize("include", ["all", "weights"])
@pytest.mark.parametrize("chunk", [6, 23, 100])
def test_hessian_products_are_those_of_the_dense_hessian(include, chunk) -> None:
    model, (x, y) = dense(), samples()
    objective = Objective(model, x, y, include=include, chunk=chunk)
    w = elsewhere(objective)
    h = hessian(as_function(model, objective, w, x, y))(w)  # forward over reverse mode
    product = objective.hessian_product(w)
    columns = torch.stack([product(e) for e in torch.eye(len(w), dtype=w.dtype)])
    torch.testing.assert_close(columns, h, rtol=1e-10, atol=1e-12)
    assert not columns.requires_grad


@pytest.mark.parametrize("include", ["all", "weights"])
@pytest.mark.parametrize("chunk", [6, 100])
def test_hessian_products_of_a_residual_network_are_slopes_of_its_gradient(include, chunk) -> None:
    model, (x, y) = residual(), samples(2, 8, 8)
    objective = Objective(model, x, y, include=include, chunk=chunk)
    w, v = elsewhere(objective), elsewhere(objective, 1, 1.0) - objective.weights
    _, along = jvp(grad(as_function(model, objective, w, x, y)), (w,), (v,))
    found = objective.hessian_product(w)(v)
    torch.testing.assert_close(found, along, rtol=1e-9, atol=1e-9 * float(along.detach().abs().max()))


@pytest.mark.parametrize("chunk", [6, 100])
def test_a_hessian_product_stays_where_it_was_made(chunk) -> None:
    objective = Objective(dense(), *samples(), chunk=chunk)
    w, v = elsewhere(objective), elsewhere(objective, 1)
    product = objective.hessian_product(w)
    before = product(v)
    w.add_(1)
    objective.gradient(w)
    objective(w)
    assert torch.equal(product(v), before)
    assert torch.equal(product(2 * v), 2 * before)


@pytest.mark.parametrize("make", [dense, lambda: dense(GhostBatchNorm), convolutional, residual])
@pytest.mark.parametrize("chunk", [1, 2, 7, 22])
def test_nothing_depends_on_the_chunks(make, chunk) -> None:
    model = make()
    x, y = samples(*IMAGES.get(make, ()))
    whole, parts = Objective(model, x, y), Objective(model, x, y, chunk=chunk)
    w = elsewhere(whole)
    assert float(parts(w).loss) == pytest.approx(float(whole(w).loss), rel=1e-12)
    assert float(parts(w).accuracy) == float(whole(w).accuracy)
    torch.testing.assert_close(parts.gradient(w)[1], whole.gradient(w)[1], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(parts.hessian_product(w)(w), whole.hessian_product(w)(w), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [6, 100])
@pytest.mark.parametrize("make", [dense, convolutional, residual], ids=lambda make: make.__name__)
def test_many_points_are_as_many_single_ones(make, chunk) -> None:
    objective = Objective(make(), *samples(*IMAGES.get(make, ())), chunk=chunk)
    points = torch.stack([elsewhere(objective, seed, 0.5) for seed in range(5)])
    losses = [float(objective(w).loss) for w in points]
    accuracies = [float(objective(w).accuracy) for w in points]
    assert len(set(losses)) == 5
    for values in (objective.many(points), objective.side_by_side(points, 5), objective.side_by_side(points, 2)):
        assert values.loss.tolist() == pytest.approx(losses, rel=1e-12)
        assert values.accuracy.tolist() == pytest.approx(accuracies, rel=1e-15)


def test_single_precision_networks_have_losses_in_double_precision() -> None:
    x, y = samples(dtype=torch.float32)
    model = dense().float()
    objective = Objective(model, x, y, batch_norm="stored", chunk=4)
    losses = F.cross_entropy(model(x), y, reduction="none").tolist()
    for loss in (objective.start.loss, objective.gradient(objective.weights)[0]):
        assert float(loss) == pytest.approx(sum(losses) / N, rel=1e-7)
    assert objective.gradient(objective.weights)[1].dtype == torch.float32
    torch.testing.assert_close(
        objective.gradient(objective.weights)[1].double(),
        Objective(model.double(), *samples(), batch_norm="stored").gradient(objective.weights.double())[1],
        rtol=1e-4,
        atol=1e-6,
    )


def test_autocast_around_a_measurement_has_no_effect() -> None:
    objective = Objective(dense().float(), *samples(dtype=torch.float32))
    w = elsewhere(objective)

    def everything() -> list[Tensor]:
        more = [
            objective.gradient(w)[1],
            objective.hessian_product(w)(w),
            objective.side_by_side(w[None], 1).loss,
        ]
        return [objective(w).loss, objective.many(w[None]).loss, *more]

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        again = Objective(dense().float(), *samples(dtype=torch.float32))
        assert torch.equal(again.model[4].running_mean, objective.model[4].running_mean)
        assert all(map(torch.equal, everything(), expected))


def test_derivatives_can_be_had_inside_no_grad() -> None:
    objective = Objective(dense(), *samples())
    w = elsewhere(objective)
    gradient, along = objective.gradient(w)[1], objective.hessian_product(w)(w)
    with torch.no_grad():
        assert torch.equal(objective.gradient(w)[1], gradient)
        assert torch.equal(objective.hessian_product(w)(w), along)


def test_a_regression_has_a_loss_and_no_accuracy() -> None:
    x, _ = samples()
    y = x[:, :2].sin()
    model = made(lambda: nn.Linear(5, 2))
    objective = Objective(model, x, y, criterion=lambda outputs, y: ((outputs - y) ** 2).sum(1), chunk=4)
    value = objective.start
    assert float(value.loss) == pytest.approx(float(((model(x) - y) ** 2).sum().detach() / N), rel=1e-12)
    assert value.accuracy.isnan()
    assert objective.many(objective.weights[None]).accuracy.isnan().all()


# ----------------------------------------------------------------------------- parameters that are frozen, tied, unused


def test_frozen_parameters_stay_out_and_stay_put() -> None:
    model = dense()
    model[0].requires_grad_(False)
    model[5 - 1].bias.requires_grad_(False)
    objective = Objective(model, *samples())
    assert set(objective.flat.names) == {name for name, p in model.named_parameters() if p.requires_grad}
    objective(elsewhere(objective))
    assert torch.equal(objective.model[0].weight, model[0].weight)
    assert not any(
        p.requires_grad for name, p in objective.model.named_parameters() if name not in objective.flat.names
    )


class Tied(nn.Module):
    """Two layers that are one parameter, a buffer, and a layer that is never used."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.inner, self.outer, self.unused = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(2, 2)
        self.outer.weight = self.inner.weight
        self.register_buffer("shift", torch.randn(5, generator=g))
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=g)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x) + self.shift))


@pytest.mark.parametrize("chunk", [6, 100])
def test_tied_parameters_count_once_and_unused_ones_have_no_slope(chunk) -> None:
    with torch.random.fork_rng():
        model = Tied().double().eval()
    x, y = samples()
    objective = Objective(model, x, y, chunk=chunk)
    assert len(objective) == 25 + 5 + 5 + 6
    w, v = elsewhere(objective), elsewhere(objective, 1)
    named = dict(zip(objective.flat.names, objective.tensors(w), strict=True))

    def loss(*tensors: Tensor) -> Tensor:  # written out
        p = dict(zip(objective.flat.names, tensors, strict=True))
        hidden = torch.tanh(x @ p["inner.weight"].T + p["inner.bias"] + model.shift)
        return F.cross_entropy(hidden @ p["inner.weight"].T + p["outer.bias"], y)

    points, along = tuple(named.values()), tuple(objective.tensors(v))
    assert float(objective(w).loss) == pytest.approx(float(loss(*points)), rel=1e-13)
    assert float(objective.side_by_side(w[None], 1).loss) == pytest.approx(float(loss(*points)), rel=1e-13)
    gradient = flattened(torch.autograd.functional.jacobian(loss, points))
    torch.testing.assert_close(objective.gradient(w)[1], gradient, rtol=1e-11, atol=1e-13)
    product = flattened(torch.autograd.functional.hvp(loss, points, along)[1])
    torch.testing.assert_close(objective.hessian_product(w)(v), product, rtol=1e-10, atol=1e-12)
    unused = dict(zip(objective.flat.names, objective.tensors(objective.gradient(w)[1]), strict=True))["unused.weight"]
    assert not unused.any()


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    x, y = samples()
    objective = Objective(made(lambda: nn.Linear(5, 2)), x, y, criterion=lambda outputs, y: outputs[:, 0])
    assert not objective.hessian_product(objective.weights)(elsewhere(objective)).any()
    w = dict(zip(objective.flat.names, objective.tensors(objective.gradient(objective.weights)[1]), strict=True))
    torch.testing.assert_close(w["0.weight"][0], x.mean(0), rtol=1e-12, atol=0)


def test_only_what_is_differentiated_is_tracked() -> None:
    objective = Objective(dense(), *samples(), include="weights")
    tracked = {name for name, p in objective.model.named_parameters() if p.requires_grad}
    assert tracked == set(objective.flat.names) == {"0.weight", "3.weight", "7.weight"}


def test_rows_are_filters_and_neurons() -> None:
    objective = Objective(convolutional(), *samples(2, 3, 3))
    shapes = [tuple(rows.shape) for rows in objective.rows(objective.weights)]
    gains_and_shifts, dense, convolution, biases = (3 + 3, 1), (3, 3), (3, 8), (3 + 3, 1)
    assert shapes == [gains_and_shifts, dense, convolution, biases]


# ------------------------------------------------------------------------------------------------ batch normalization


Statistics = dict[nn.Module, tuple[Tensor, Tensor]]


def by_hand(layers: nn.Sequential, x: Tensor, found: Statistics) -> Tensor:
    """Find mean and variance of each normalization's inputs when those before it use theirs, in float64."""
    for layer in layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            flat = x.movedim(1, -1).reshape(-1, x.shape[1])
            mean = flat.sum(0) / len(flat)
            var = ((flat - mean) ** 2).sum(0) / (len(flat) - 1)
            found[layer] = mean, var
            shape = (1, -1, *(1,) * (x.ndim - 2))
            x = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
            x = x * layer.weight.view(shape) + layer.bias.view(shape)
        elif isinstance(layer, ResidualBlock):
            rest = by_hand(layer.residual, x, found)
            x = (by_hand(layer.shortcut, x, found) + rest).clamp(min=0)
        else:
            x = layer(x)
    return x


@pytest.mark.parametrize("chunk", [1, 8, 100])
@pytest.mark.parametrize(
    "make", [dense, lambda: dense(lambda n: GhostBatchNorm(n, 4, minibatches=2)), convolutional, residual]
)
def test_statistics_become_those_of_all_samples_layer_by_layer(make, chunk) -> None:
    model = make()
    x, y = samples(*IMAGES.get(make, ()))
    objective = Objective(model, x, y, chunk=chunk)
    layers = [m for m in objective.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    expected: Statistics = {}
    outputs = by_hand(objective.model, x, expected)
    assert float(objective.start.loss) == pytest.approx(float(F.cross_entropy(outputs.detach(), y)), rel=1e-12)
    assert set(expected) == set(layers)
    for layer, (mean, var) in expected.items():
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(layer.running_var, var, rtol=1e-12, atol=1e-14)
        assert not layer.training
        assert not layer._forward_pre_hooks
    statistics = [layer.running_mean.clone() for layer in layers]
    objective.gradient(elsewhere(objective))
    objective(elsewhere(objective))
    assert all(torch.equal(layer.running_mean, mean) for layer, mean in zip(layers, statistics, strict=True))


def test_one_layer_gets_what_torch_gets_from_one_batch_of_everything() -> None:
    model, (x, y) = convolutional(), samples(2, 3, 3)
    torchs = copy.deepcopy(model).train()
    torchs[1].momentum = 1.0
    torchs(x)
    layer = Objective(model, x, y, chunk=4).model[1]
    torch.testing.assert_close(layer.running_mean, torchs[1].running_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(layer.running_var, torchs[1].running_var, rtol=1e-12, atol=1e-14)


def test_stored_statistics_are_left() -> None:
    model = dense()
    objective = Objective(model, *samples(), batch_norm="stored")
    for name, buffer in model.named_buffers():
        assert torch.equal(dict(objective.model.named_buffers())[name], buffer)


@pytest.mark.parametrize("name", ["smoothout-f1", "resnet8"])
def test_the_papers_ghost_normalized_networks_can_be_measured(name) -> None:
    model = build(name, (1, 6, 6), 10, seed=1, minibatches=2).eval()
    x = torch.rand(31, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    objective = Objective(model, x, torch.arange(31) % 10, chunk=7)
    expected: Statistics = {}
    by_hand(objective.model, x, expected)
    for layer, (mean, var) in expected.items():
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_var, var, rtol=1e-4, atol=1e-5)
    assert objective.start.loss < 20


@pytest.mark.parametrize("batch_norm", ["reestimated", "stored"])
def test_normalization_without_running_statistics_is_refused(batch_norm) -> None:
    model = made(lambda: nn.Linear(5, 5), lambda: nn.BatchNorm1d(5, track_running_stats=False))
    with pytest.raises(InputError, match="build it with track_running_stats=True"):
        Objective(model, *samples(), batch_norm=batch_norm)


def test_one_sample_has_no_statistics() -> None:
    x, y = samples()
    with pytest.raises(InputError, match="no variance: give more samples, or batch_norm='stored'"):
        Objective(dense(), x[:1], y[:1])
    Objective(dense(), x[:1], y[:1], batch_norm="stored")


# -------------------------------------------------------------------------------------------------------- bad input


def test_a_network_in_training_mode_is_refused_also_in_part() -> None:
    for model in (dense().train(), dense()):
        model[6].train()
        with pytest.raises(InputError, match=r"training mode.*call model\.eval\(\) first"):
            Objective(model, *samples())


class Noisy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, training=True))


def test_a_loss_that_is_random_in_evaluation_mode_is_refused() -> None:
    model = made(lambda: Noisy(5, 3))
    before = torch.get_rng_state()
    with pytest.raises(InputError, match="random also in evaluation mode"):
        Objective(model, *samples())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("criterion", [F.cross_entropy, lambda o, y: F.cross_entropy(o, y, reduction="none")[:, None]])
def test_a_criterion_that_is_not_one_loss_a_sample_is_refused(criterion) -> None:
    with pytest.raises(InputError, match=r"one loss a sample, 23 here, not shape .*reduction='none'"):
        Objective(dense(), *samples(), criterion=criterion)


@pytest.mark.parametrize(("xs", "ys"), [(0, 0), (0, 3), (3, 0), (3, 2)])
def test_samples_without_targets_and_no_samples_are_refused(xs, ys) -> None:
    x, y = samples()
    with pytest.raises(InputError, match=f"not {xs} samples and {ys} targets"):
        Objective(dense(), x[:xs], y[:ys])


@pytest.mark.parametrize("chunk", [0, -1])
def test_empty_chunks_are_refused(chunk) -> None:
    with pytest.raises(InputError, match=f"chunk.*1 or more, not {chunk}"):
        Objective(dense(), *samples(), chunk=chunk)


def test_an_unknown_treatment_of_batch_normalization_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'stored'"):
        Objective(dense(), *samples(), batch_norm="store")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype) -> None:
    with pytest.raises(InputError, match=r"rounding of .*float16: call model\.float\(\)"):
        Objective(dense().to(dtype), *samples(dtype=dtype))


def test_samples_on_another_device_are_refused() -> None:
    x, y = samples()
    with pytest.raises(InputError, match="the samples must lie on the model's device, cpu"):
        Objective(dense(), x.to("meta"), y.to("meta"))


@pytest.mark.parametrize("wrong", [lambda w: w[1:], lambda w: w[None], lambda w: w.float(), lambda w: w.to("meta")])
def test_points_and_directions_of_another_kind_are_refused(wrong) -> None:
    objective = Objective(dense(), *samples())
    w = objective.weights
    product = objective.hessian_product(w)
    for call in (objective, objective.gradient, objective.hessian_product, product):
        with pytest.raises(InputError, match=f"is a vector of {len(w)} numbers of type torch.float64 on cpu, not "):
            call(wrong(w))
    with pytest.raises(InputError, match="is a vector of"):
        objective.many(wrong(w)[None])
    with pytest.raises(InputError, match="is a vector of"):
        objective.many(w)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_refused_at_the_start(value) -> None:
    model = dense()
    with torch.no_grad():
        model[7].bias[0] = value
    objective = Objective(model, *samples())
    with pytest.raises(InputError, match=r"^the loss at the network's own weights is nan: train it again"):
        _ = objective.start


# --------------------------------------------------------------------------------------------------- on other samples


def test_other_samples_meet_the_same_network_and_statistics() -> None:
    model, (x, y) = dense(), samples()
    objective = Objective(model, x[:15], y[:15])
    assert objective.start.loss.isfinite()  # cached: must not be taken over
    test = objective.on(x[15:], y[15:])
    outputs = moved(model, objective, objective.weights)(x[15:]).detach()
    assert float(test.start.loss) == pytest.approx(float(F.cross_entropy(outputs, y[15:])), rel=1e-13)
    assert float(objective.start.loss) == pytest.approx(float(objective(objective.weights).loss), rel=1e-13)
    with pytest.raises(InputError, match="not 2 samples and 1 targets"):
        objective.on(x[:2], y[:1])
    with pytest.raises(InputError, match="the samples must lie on the model's device, cpu"):
        objective.on(x.to("meta"), y.to("meta"))
