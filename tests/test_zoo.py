"""Every measure on every kind of network: against dense Hessians and loops over samples, or refused in one sentence."""

import re
from collections.abc import Callable
from functools import cache, cached_property
from types import SimpleNamespace

import pytest
import torch
from shared import refused
from tables import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from zoo import ALL, TARGETS, ZOO, N, as_function, copied_by_state, cross_entropy

from nb_lib.gradient_noise import gradient_noise
from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.foreign import PlainWeightNorm
from nb_lib.landscape import interpolate, loss_line, loss_surface
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective
from nb_lib.sample_gradients import gram, squared_gradient_norms
from nb_lib.sharpness import box_sharpness

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of what is old or slow


class Truth:
    """What a measure must find, from the network itself."""

    def __init__(self, name: str) -> None:
        self.specimen = ZOO[name]
        self.criterion = self.specimen.criterion or cross_entropy
        self.model = self.specimen.network()
        self.f = self.objective()

    def objective(self) -> Objective:
        options = {"criterion": self.specimen.criterion} if self.specimen.criterion else {}
        return Objective(self.model, self.specimen.x, TARGETS, batch_norm="stored", **options)

    @cached_property
    def losses(self) -> Callable[[Tensor], Tensor]:
        model = copied_by_state(self.specimen, self.model)
        model = getattr(model, "module", model)
        for module in model.modules():
            if hasattr(module, "sparse"):
                module.sparse = False
        return as_function(model, self.f.flat.names, self.specimen.x, self.criterion)

    def loss(self, w: Tensor) -> float:
        with torch.no_grad(), slow_attention():
            return float(self.losses(w).mean())

    @cached_property
    def gradients(self) -> Tensor:
        """One backward pass a sample."""
        w = self.f.weights.clone().requires_grad_()
        with slow_attention():
            losses = self.losses(w)
        return torch.stack([torch.autograd.grad(losses[i], w, retain_graph=True)[0].to_dense() for i in range(N)])

    @cached_property
    def hessian(self) -> Tensor:
        with slow_attention(), PlainWeightNorm():
            return torch.autograd.functional.hessian(lambda w: self.losses(w).mean(), self.f.weights)


def slow_attention():
    torch.backends.mha.set_fastpath_enabled(False)
    return sdpa_kernel(SDPBackend.MATH)


@pytest.fixture(autouse=True)
def fast_attention_again():
    yield
    torch.backends.mha.set_fastpath_enabled(True)


truth = cache(Truth)


def test_the_table_has_these_networks_and_no_others():
    assert set(Table("zoo").committed) == set(ZOO)


def directions(f: Objective, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.empty_like(f.weights).uniform_(-1, 1, generator=generator) for _ in range(count)])


def loss_under_noise(t: Truth) -> None:
    a, w = 0.2, t.f.weights
    found = noise_sensitivity(t.f, [a], draws=4)
    points = torch.cat([w + a * directions(t.f, 2), w - a * directions(t.f, 2)])
    expected = [t.loss(point) for point in points]
    assert found.loss == pytest.approx(t.loss(w), rel=1e-9)
    assert float(found.frame["loss"][0]) == pytest.approx(sum(expected) / 4, rel=1e-9)
    if t.f.vectorizes:  # as on a GPU
        assert t.f.side_by_side(points, 4).loss.tolist() == pytest.approx(expected, rel=1e-9)


def box(t: Truth) -> None:
    found = box_sharpness(t.f, epsilon=0.01, starts=1, steps=4)
    w, half = t.f.weights, 0.01 * (t.f.weights.abs() + 1)
    assert found.max_loss == pytest.approx(t.loss(found.highest), rel=1e-9)
    assert bool(((found.highest - w).abs() <= half * (1 + 1e-9)).all())
    uphill = t.loss(w + half * t.gradients.mean(0).sign())
    assert found.max_loss >= uphill * (1 - 1e-9) > t.loss(w)


def eigenvalues(t: Truth) -> None:
    found = hessian_eigenvalues(t.f, 2, tolerance=1e-6)
    expected = torch.linalg.eigvalsh(t.hessian).flip(0)
    assert found.values == pytest.approx(expected[:2].tolist(), abs=1e-6 * float(expected.abs().max()))
    product = t.f.hessian_product(t.f.weights)
    for v in directions(t.f, 2):
        torch.testing.assert_close(product(v), t.hessian @ v, rtol=1e-8, atol=1e-10)


def trace(t: Truth) -> None:
    found = hessian_trace(t.f)
    assert found.value == pytest.approx(float(t.hessian.trace()), abs=5 * found.error + 1e-9)
    product = t.f.hessian_product(t.f.weights)
    elsewhere = t.f.weights + 0.1 * directions(t.f, 1)[0]
    along = directions(t.f, 2)[1]
    gradient = t.f.gradient(elsewhere + 1e-5 * along)[1] - t.f.gradient(elsewhere - 1e-5 * along)[1]
    torch.testing.assert_close(t.f.hessian_product(elsewhere)(along), gradient / 2e-5, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(product(along), t.hessian @ along, rtol=1e-8, atol=1e-10)


def surfaces(t: Truth) -> None:
    w, (d, e) = t.f.weights, directions(t.f, 2)
    line = loss_line({"train": t.f}, d, [-0.5, 0.3], progress=False)
    assert line["loss"].tolist() == pytest.approx([t.loss(w - 0.5 * d), t.loss(w + 0.3 * d)], rel=1e-9)
    plane = loss_surface({"train": t.f}, (d, e), [0.2], [-0.4], progress=False)
    assert float(plane["loss"][0]) == pytest.approx(t.loss(w + 0.2 * d - 0.4 * e), rel=1e-9)
    other, between = t.specimen.network(1), t.specimen.network()
    states = zip(t.model.state_dict().items(), other.state_dict().values(), strict=True)
    between.load_state_dict({name: 0.7 * a + 0.3 * b if b.is_floating_point() else a for (name, a), b in states})
    splits = {"train": SimpleNamespace(x=t.specimen.x, y=TARGETS)}
    found = interpolate(t.model, other, splits, [0.3], criterion=t.criterion, progress=False)
    x = t.specimen.x
    with torch.no_grad(), slow_attention():
        outputs = between(*x) if isinstance(x, tuple) else between(**x) if isinstance(x, dict) else between(x)
        assert float(found["loss"][0]) == pytest.approx(float(t.criterion(outputs, TARGETS).mean()), rel=1e-9)


def gradients_of_samples(t: Truth) -> None:
    torch.testing.assert_close(squared_gradient_norms(t.f), t.gradients.square().sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gram(t.f), t.gradients @ t.gradients.T, rtol=1e-9, atol=1e-12)


def spectrum(t: Truth) -> None:
    found = gradient_noise(t.f, k=3)
    g = t.gradients - t.gradients.mean(0)
    values = torch.linalg.eigvalsh(g.T @ g / N).flip(0)
    assert found.trace == pytest.approx(float(values.sum()), rel=1e-8)
    assert found.eigenvalues == pytest.approx(values[:3].tolist(), rel=1e-8)


CHECKS = dict(
    zip(ALL, [loss_under_noise, box, eigenvalues, trace, surfaces, gradients_of_samples, spectrum], strict=True)
)


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("name", ZOO)
def test_measures_agree_with_the_network_itself_or_say_why_not(name, measure, table) -> None:
    specimen = ZOO[name]
    if measure in specimen.refused:
        sentence = refused(lambda: CHECKS[measure](Truth(name)))
        assert re.search(specimen.match, sentence), sentence
        table("zoo", name, measure, f"refused: {specimen.short}")
    else:
        CHECKS[measure](truth(name))
        table("zoo", name, measure, "agrees")
