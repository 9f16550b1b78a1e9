"""Networks, samples and criteria of other people: what a measure takes of them, and what it says where it cannot."""

import copy
from collections import UserDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shared import refused
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from zoo import CLASSES, PADDED, SEQUENCES, TARGETS, TOKENS, VECTORS, WIDTH, ZOO, chain, cross_entropy

from nb_lib.gradient_noise import gradient_noise
from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.data import Split
from nb_lib.landscape import interpolate
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective
from nb_lib.sample_gradients import projections, squared_gradient_norms
from nb_lib.sharpness import box_sharpness


def dense(*more: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return chain(nn.Linear(WIDTH, WIDTH), nn.Tanh(), *more).double().eval()


def measured(f: Objective) -> list[float]:
    norms = squared_gradient_norms(f).tolist()
    return [float(f.start.loss), hessian_trace(f).value, gradient_noise(f).trace, box_sharpness(f).maximum, *norms]


# --------------------------------------------------------------------------- what does not fit together, in a sentence

MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "another width": ({"x": VECTORS[:, :3]}, "do not fit together.*shapes cannot be multiplied"),
    "single precision": ({"x": VECTORS.float()}, "do not fit together.*same dtype"),
    "an array": ({"x": VECTORS.numpy()}, "x must be a tensor, or a tuple or dictionary"),
    "two arguments": ({"x": (VECTORS, VECTORS)}, "do not fit together.*positional arguments"),
    "unknown argument": ({"x": {"images": VECTORS}}, "do not fit together.*unexpected keyword argument"),
    "tensors of two lengths": ({"x": (VECTORS, VECTORS[:3])}, "not 3 or 8 samples and 8 targets"),
    "no samples": ({"x": VECTORS[:0], "y": TARGETS[:0]}, "needs samples"),
    "a number for targets": ({"y": torch.tensor(1)}, "not 8 samples and 0 targets"),
    "a list of targets": ({"y": TARGETS.tolist()}, "y a tensor, not Tensor and list"),
    "targets as a column": ({"y": TARGETS[:, None]}, "do not fit together.*target"),
    "targets in floating point": ({"y": TARGETS.double()}, "do not fit together.*target"),
    "a class that is not": ({"y": TARGETS + 1}, "do not fit together.*out of bounds"),
    "a class that torch ignores": ({"y": TARGETS - 100}, "do not fit together.*-100 is out of bounds"),
    "a criterion of dictionaries": ({"criterion": lambda out, y: out.get("logits")}, "do not fit together"),
    "a criterion of attributes": ({"criterion": lambda out, y: out.logits}, "do not fit together.*logits"),
    "no losses": ({"criterion": lambda out, y: 1.0}, "do not fit together"),
    "a mean": ({"criterion": F.cross_entropy}, "one loss a sample, 8 here.*reduction='none'"),
    "negatives in the batch": (
        {"criterion": lambda out, y: cross_entropy(out @ out.T, torch.arange(len(out)))},
        "the network or the criterion gives for one sample depends on the others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_told_at_once(name) -> None:
    given, match = MISFITS[name]
    options = {"x": VECTORS, "y": TARGETS} | given
    with pytest.raises(Exception, match=match):
        Objective(dense(), **options)
    refused(lambda: Objective(dense(), **options))


def test_a_misfit_beyond_what_is_tried_is_told_as_well() -> None:
    x, y = torch.zeros(300, dtype=torch.long), torch.zeros(300, dtype=torch.long)
    x[101] = 7
    f = Objective(nn.Embedding(7, CLASSES).eval(), x, y)
    assert "index out of range" in refused(lambda: f.start)
    y[101], x[101] = CLASSES, 0
    assert "out of bounds" in refused(lambda: f.start)


@pytest.mark.parametrize("argument", [4.5, "20", 2])
def test_numbers_of_draws_are_whole(argument) -> None:
    f = Objective(dense(), VECTORS, TARGETS)
    assert "draws" in refused(lambda: noise_sensitivity(f, [0.1], draws=argument))
    assert "probes" in refused(lambda: hessian_trace(f, probes=argument))


# --------------------------------------------------------------------------------------------------- samples and modes


def test_named_samples_may_come_in_any_mapping_and_with_what_is_no_tensor() -> None:
    specimen = ZOO["language model, named inputs"]
    f = Objective(specimen.network(), UserDict(specimen.x), TARGETS, criterion=specimen.criterion)
    plain = Objective(specimen.network(), specimen.x, TARGETS, criterion=specimen.criterion)
    assert f.start.loss == plain.start.loss
    without = Objective(
        specimen.network(), {**specimen.x, "attention_mask": None}, TARGETS, criterion=specimen.criterion
    )
    bare = Objective(specimen.network(), TOKENS, TARGETS, criterion=specimen.criterion)
    assert measured(without) == pytest.approx(measured(bare), rel=1e-12)
    assert float(bare.start.loss) != pytest.approx(float(f.start.loss), rel=1e-3)


def test_several_inputs_in_chunks() -> None:
    specimen = ZOO["transformer, padded"]
    f, whole = (Objective(specimen.network(), specimen.x, TARGETS, chunk=size) for size in (3, 1000))
    w = f.weights
    assert float(f.start.loss) == pytest.approx(float(whole.start.loss), rel=1e-12)
    torch.testing.assert_close(f.gradient(w)[1], whole.gradient(w)[1])
    torch.testing.assert_close(f.hessian_product(w)(w), whole.hessian_product(w)(w))
    torch.testing.assert_close(squared_gradient_norms(f), squared_gradient_norms(whole))
    on_some = whole.on(*whole.part(slice(2, 5)))
    assert on_some.N == 3
    assert on_some.start.accuracy * 3 == pytest.approx(round(float(on_some.start.accuracy) * 3))


def test_boxes_take_parts_of_many_samples_by_name_too() -> None:
    x, y = torch.randn(5000, WIDTH, generator=torch.Generator().manual_seed(0)).double(), torch.arange(5000) % CLASSES
    by_name = box_sharpness(Objective(dense(), {"input": x}, y), starts=0)
    assert by_name == box_sharpness(Objective(dense(), x, y), starts=0)


def test_statistics_of_normalization_are_those_of_several_inputs_and_of_named_ones() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.last(self.norm(input=x + y.mean(1)))

    f = Objective(Two().double().eval(), {"x": VECTORS, "y": SEQUENCES}, TARGETS, chunk=3)
    torch.testing.assert_close(f.model.norm.running_mean, (VECTORS + SEQUENCES.mean(1)).mean(0))
    torch.testing.assert_close(f.model.norm.running_var, (VECTORS + SEQUENCES.mean(1)).var(0))


def test_samples_with_a_history_and_made_for_inference_give_what_plain_ones_give() -> None:
    expected = measured(Objective(dense(), VECTORS, TARGETS))
    assert measured(Objective(dense(), VECTORS.clone().requires_grad_(), TARGETS)) == expected
    with torch.inference_mode():
        model, x, y = dense(), VECTORS.clone(), TARGETS.clone()
    assert measured(Objective(model, x, y)) == expected
    with torch.inference_mode():
        f = Objective(dense(), VECTORS, TARGETS)
        assert float(f.start.loss) == expected[0]
        assert "outside of" in refused(lambda: hessian_trace(f))


def test_targets_may_have_a_place_each_in_a_sequence() -> None:
    model, y = nn.Embedding(7, 4).double().eval(), TOKENS.clone() % 4
    y[:, -1] = -100

    def of_each(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out.transpose(1, 2), y, reduction="none").sum(1)

    f = Objective(model, TOKENS, y, criterion=of_each)
    assert float(f.start.loss) == pytest.approx(float(of_each(model(TOKENS), y).detach().mean()), rel=1e-12)
    assert f.start.accuracy.isnan()


# -------------------------------------------------------------------------------------------------------------- copies


def test_what_cannot_be_copied_is_shared_and_the_network_stays_as_it_is() -> None:
    for name in ("cannot be copied", "weight norm, old hooks", "hooks"):
        model = ZOO[name].network()
        state = copy.deepcopy(model.state_dict())
        hooks = [[len(m._forward_hooks), len(m._forward_pre_hooks)] for m in model.modules()]
        f = Objective(model, VECTORS, TARGETS)
        measured(f)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
        assert [[len(m._forward_hooks), len(m._forward_pre_hooks)] for m in model.modules()] == hooks
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert f(f.weights).loss == f.start.loss
        assert gradient_noise(f).trace > 0


def test_a_scripted_or_unshaped_network_and_cached_weights_are_refused() -> None:
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(dense())
    assert "scripted" in refused(lambda: Objective(scripted, VECTORS, TARGETS))
    assert "no shape yet" in refused(lambda: Objective(nn.LazyLinear(3).eval(), VECTORS, TARGETS))
    model = parametrizations.weight_norm(nn.Linear(WIDTH, CLASSES)).double().eval()
    f = Objective(model, VECTORS, TARGETS)
    with parametrize.cached():
        assert "measure outside" in refused(lambda: f(f.weights))
        assert "measure outside" in refused(lambda: Objective(model, VECTORS, TARGETS))


class Sized(nn.Linear):
    """Is false, as what has no length is."""

    def __len__(self) -> int:
        return 0


def test_a_network_may_have_a_length() -> None:
    assert hessian_trace(Objective(Sized(WIDTH, CLASSES).double().eval(), VECTORS, TARGETS)).value > 0


def test_a_network_that_does_not_depend_on_its_weights_is_told() -> None:
    class Constant(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), CLASSES).double()

    f = Objective(Constant(WIDTH, CLASSES).double().eval(), VECTORS, TARGETS)
    assert "does not depend on these weights" in refused(lambda: gradient_noise(f))


class Numeric(torch.autograd.Function):
    """A backward pass in numpy: a constant to whoever differentiates it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.from_numpy(g.detach().numpy() * ctx.saved_tensors[0].cos().detach().numpy())


class Analytic(torch.autograd.Function):
    """A backward pass that can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.relu().square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0].relu()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_second_derivatives_of_functions_in_python_are_taken_if_right(dtype) -> None:
    class Bend(nn.Module):
        def __init__(self, bend) -> None:
            super().__init__()
            self.bend = bend

        def forward(self, x: Tensor) -> Tensor:
            return self.bend(x)

    ours, plain = (
        Objective(dense(nn.ReLU(), Bend(bend)).to(dtype), VECTORS.to(dtype), TARGETS)
        for bend in (Analytic.apply, lambda x: x.relu().square())
    )
    assert hessian_trace(ours).value == pytest.approx(hessian_trace(plain).value, rel=1e-6)


@pytest.mark.parametrize("where", ["network", "criterion"])
def test_second_derivatives_that_torch_gets_wrong_are_refused(where) -> None:
    class Wave(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Numeric.apply(x)

    model = dense(Wave()) if where == "network" else dense()
    options = {} if where == "network" else {"criterion": lambda out, y: Numeric.apply(out).square().sum(1)}
    f = Objective(model, VECTORS, TARGETS, **options)
    for measure in (hessian_trace, hessian_eigenvalues):
        assert "second derivative of this network is wrong" in refused(lambda measure=measure: measure(f))
    assert gradient_noise(f).trace > 0


def test_a_loss_that_is_nearly_nothing_has_a_hessian() -> None:
    """Where softmax is saturated its second derivative is rounding, which is no fault of the network."""
    model = dense().float()
    y = model(VECTORS.float()).argmax(1)
    with torch.no_grad():
        model[-1].weight.mul_(300)
        model[-1].bias.mul_(300)
    assert hessian_trace(Objective(model, VECTORS.float(), y)).value >= 0


def test_parameters_of_a_criterion_are_constants() -> None:
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    f = Objective(dense(), VECTORS, TARGETS, criterion=lambda out, y: scale * cross_entropy(out, y))
    plain = Objective(dense(), VECTORS, TARGETS)
    assert hessian_trace(f).value == pytest.approx(2 * hessian_trace(plain).value, rel=1e-9)
    assert gradient_noise(f).trace == pytest.approx(4 * gradient_noise(plain).trace, rel=1e-9)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_are_measured_as_they_were() -> None:
    expected = measured(Objective(dense(), VECTORS, TARGETS))
    inside = dense()
    inside[0] = torch.compile(inside[0])
    in_place = dense()
    in_place[0].compile()
    for model in (torch.compile(dense()), inside, in_place):
        assert measured(Objective(model, VECTORS, TARGETS)) == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------------------- interpolation


class Phase(nn.Module):
    """A complex buffer, a counter, and a state of another kind."""

    def __init__(self, angle: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(CLASSES, dtype=torch.float64))
        self.register_buffer("phase", torch.polar(torch.ones(CLASSES).double(), angle * torch.arange(CLASSES).double()))
        self.register_buffer("steps", torch.tensor(3))
        self.angle = angle

    def get_extra_state(self) -> dict[str, float]:
        return {"angle": self.angle}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.angle = state["angle"]

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x[:, :CLASSES] * self.phase).real


def test_complex_buffers_are_interpolated_too_and_other_states_kept() -> None:
    first, second = Phase(0.2).eval(), Phase(1.1).eval()
    found = interpolate(first, second, {"train": Split(VECTORS, TARGETS)}, [0.25], progress=False)
    real = 0.75 * first.phase.real + 0.25 * second.phase.real
    assert float(found["loss"][0]) == pytest.approx(float(cross_entropy(VECTORS[:, :CLASSES] * real, TARGETS).mean()))
    assert "complex" in refused(
        lambda: interpolate(*(ZOO["complex"].network(k) for k in (0, 1)), {"a": Split(VECTORS, TARGETS)}, [0.5])
    )


def test_nothing_to_evaluate_is_refused() -> None:
    assert "needs data" in refused(lambda: interpolate(dense(), dense(), {}, [0.5]))


# ----------------------------------------------------------------------------------------------------- a real library


@dataclass
class Scores:
    logits: Tensor


def test_scores_in_an_object_need_a_criterion() -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Scores:
            return Scores(super().forward(x))

    model = Model(WIDTH, CLASSES).double().eval()
    assert "gives a Scores, not a tensor" in refused(lambda: Objective(model, VECTORS, TARGETS))
    f = Objective(model, VECTORS, TARGETS, criterion=lambda out, y: cross_entropy(out.logits, y))
    assert measured(f)[0] == pytest.approx(float(cross_entropy(model(VECTORS).logits, TARGETS).detach().mean()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_transformer_of_the_transformers_library() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=4,
        num_labels=CLASSES, max_position_embeddings=5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).double().eval()
    x = {"input_ids": TOKENS.clamp(min=1), "attention_mask": (~PADDED).long()}
    assert "not a tensor of scores" in refused(lambda: Objective(model, x, TARGETS))
    f = Objective(model, x, TARGETS, criterion=lambda out, y: cross_entropy(out.logits, y))
    losses = cross_entropy(model(**x).logits, TARGETS)
    assert float(f.start.loss) == pytest.approx(float(losses.mean()), rel=1e-9)
    parameters = [dict(model.named_parameters())[name] for name in f.flat.names]
    for i, found in enumerate(squared_gradient_norms(f)):
        gradients = torch.autograd.grad(losses[i], parameters, retain_graph=True, materialize_grads=True)
        assert float(found) == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-9)
    product, w = f.hessian_product(f.weights), f.weights
    along = torch.randn(len(f), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    difference = f.gradient(w + 1e-5 * along)[1] - f.gradient(w - 1e-5 * along)[1]
    torch.testing.assert_close(product(along), difference / 2e-5, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_whole_numbers_of_numpy_count(kind) -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    f = Objective(nn.Linear(3, 2).eval(), x, torch.arange(6) % 2)
    assert hessian_trace(f, probes=kind(6)) == hessian_trace(f, probes=6)
    assert torch.equal(projections(f, kind(4)), projections(f, 4))
    assert noise_sensitivity(f, [0.1], draws=kind(4)) == noise_sensitivity(f, [0.1], draws=4)
