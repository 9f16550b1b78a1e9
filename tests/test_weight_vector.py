"""A module's parameters as one vector: nothing else about the module may change."""

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.prune import random_unstructured

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab.names import SELECTIONS
from nb_lib.lab.networks import build
from nb_lib.lab.stacked import stack
from nb_lib.lab.weight_vector import FlatParameters

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUT = {  # of `network` below: normalization, then weights by row width, then biases
    "weights": ["6.weight", "4.weight", "0.weight"],
    "no-norm": ["6.weight", "4.weight", "0.weight", "0.bias", "4.bias", "6.bias"],
    "all": ["1.weight", "1.bias", "6.weight", "4.weight", "0.weight", "0.bias", "4.bias", "6.bias"],
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Rows of 18 (convolution), 12 and 5 (dense); and batch normalization."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        body = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU()]
        return nn.Sequential(*body, nn.Linear(5, 4)).to(dtype)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


def random_like(vector: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed)).to(vector.dtype)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def assert_lives_in(flat: FlatParameters, model: nn.Module) -> None:
    """Every parameter of the selection is the next stretch of `work`."""
    parameters = dict(model.named_parameters())
    address = flat.work.data_ptr()
    for name, p in zip(flat.names, flat.parameters, strict=True):
        assert parameters[name] is p
        assert p.is_contiguous()
        assert p.data_ptr() == address, name
        address += p.numel() * p.element_size()
    assert address == flat.work.data_ptr() + len(flat) * flat.work.element_size()


# -------------------------------------------------------------------------------------------- what building changes


@pytest.mark.parametrize("include", SELECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_building_changes_neither_values_nor_outputs(dtype, include) -> None:
    model = network(dtype).eval()
    before, output = values(model), model(images(dtype))
    flat = FlatParameters(model, include)
    assert same(values(model), before)
    assert torch.equal(model(images(dtype)), output)
    assert torch.equal(flat.clean, torch.cat([before[name].flatten() for name in LAYOUT[include]]))
    assert flat.clean.dtype == flat.work.dtype == dtype


@pytest.mark.parametrize("include", SELECTIONS)
def test_parameters_lie_in_work_as_normalization_weights_biases(include) -> None:
    model = network()
    flat = FlatParameters(model, include)
    assert flat.names == LAYOUT[include]
    assert_lives_in(flat, model)


@pytest.mark.parametrize("include", SELECTIONS)
@pytest.mark.parametrize("name", ["ne-c1-quarter", "smoothout-c1", "smoothout-f1", "resnet8"])
def test_gains_and_shifts_are_aligned_as_cudnn_reads_them(name, include) -> None:
    model = build(name, (3, 32, 32), 10)  # ten biases at its end
    FlatParameters(model, include)
    norms = [layer for layer in model.modules() if isinstance(layer, GhostBatchNorm)]
    assert {p.data_ptr() % 16 for layer in norms for p in layer.parameters()} == {0}


def test_parameters_stay_the_same_objects() -> None:
    model = network()
    before = dict(model.named_parameters())
    FlatParameters(model, "all")
    assert all(p is before[name] for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    ],
    ids=["sgd", "adam", "foreach", "fused"],
)
def test_an_optimizer_made_before_updates_the_model_in_place(optimizer) -> None:
    plain, flattened = network(), network()
    optimizers = [optimizer(model.parameters()) for model in (plain, flattened)]
    flat = FlatParameters(flattened, "all")
    start = flat.work.clone()
    for _ in range(3):
        for model, opt in zip((plain, flattened), optimizers, strict=True):
            opt.zero_grad()
            model(images()).square().mean().backward()
            opt.step()
    assert same(values(flattened), values(plain))
    assert_lives_in(flat, flattened)
    assert not torch.equal(flat.work, start)


def test_writing_work_writes_the_model() -> None:
    model = network()
    flat = FlatParameters(model, "no-norm")
    flat.work.copy_(torch.arange(len(flat)))
    assert model[6].weight.tolist() == torch.arange(20.0).view(4, 5).tolist()
    assert model[6].bias.tolist() == [len(flat) - 4, len(flat) - 3, len(flat) - 2, len(flat) - 1]
    assert model[1].weight.tolist() == [1, 1, 1]


# ------------------------------------------------------------------------------------------------------- selections


@pytest.mark.parametrize(("first", "second"), [(a, b) for a in SELECTIONS for b in SELECTIONS])
@pytest.mark.parametrize("make", [network, lambda: nn.Linear(3, 2)], ids=["network", "one layer"])
def test_named_selections_share_one_vector_in_any_order(make, first, second) -> None:
    model = make()
    flats = [FlatParameters(model, include) for include in (first, second)]
    for flat in flats:
        flat.check()
        assert_lives_in(flat, model)
    flats[0].work.fill_(3.0)
    both = set(flats[0].names) & set(flats[1].names)
    assert all(p.eq(3.0).all() for name, p in model.named_parameters() if name in both)
    assert flats[1].work.eq(3.0).sum() == sum(model.get_parameter(name).numel() for name in both)


def test_a_callable_selects_by_name_and_parameter() -> None:
    model = network()
    flat = FlatParameters(model, lambda name, p: name.startswith("4.") or p.shape == (4,))
    assert sorted(flat.names) == ["4.bias", "4.weight", "6.bias"]
    assert_lives_in(flat, model)
    before = values(model)
    flat.work.zero_()
    changed = {name for name, tensor in values(model).items() if not torch.equal(tensor, before[name])}
    assert changed == set(flat.names)


def test_a_vector_whose_memory_a_later_one_took_is_refused() -> None:
    model = network()
    stale = FlatParameters(model, lambda name, _: name.startswith("4."))
    fresh = FlatParameters(model, "all")
    fresh.check()
    for use in (stale.check, stale.save, lambda: stale.at(stale.clean).__enter__()):
        with pytest.raises(InputError, match="moved, replaced or added after their vector was built"):
            use()


def test_a_later_vector_that_needs_no_move_leaves_the_earlier_one_good() -> None:
    model = network()
    everything = FlatParameters(model, "all")
    part = FlatParameters(model, lambda name, _: name in ("0.weight", "4.weight"))
    everything.check()
    part.work.fill_(2.0)
    assert everything.work.eq(2.0).sum() == len(part) == 3 * 18 + 5 * 12


@pytest.mark.parametrize(
    ("include", "message"),
    [
        (lambda *_: False, "takes in no trainable parameter of Sequential"),
        ("wieghts", "unknown selection of parameters 'wieghts': did you mean 'weights'"),
    ],
)
def test_selections_without_meaning_are_refused(include, message) -> None:
    with pytest.raises(InputError, match=message):
        FlatParameters(network(), include)


def test_frozen_parameters_are_left_out_and_where_they_were() -> None:
    model = network()
    model[0].requires_grad_(False)
    address = model[0].weight.data_ptr()
    flat = FlatParameters(model, "all")
    assert flat.names == [name for name in LAYOUT["all"] if not name.startswith("0.")]
    flat.work.zero_()
    assert model[0].weight.data_ptr() == address
    assert model[0].weight.all()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight


def test_tied_weights_are_taken_once_and_stay_tied() -> None:
    model = Tied()
    flat = FlatParameters(model)
    assert flat.names == ["encode.weight", "encode.bias", "decode.bias"]
    flat.work.fill_(2.0)
    assert model.decode.weight is model.encode.weight
    assert model.decode.weight.eq(2.0).all()
    flat.check()


# -------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("include", SELECTIONS)
def test_every_row_is_one_filter_one_neuron_or_one_bias(include) -> None:
    model = network()
    flat = FlatParameters(model, include)
    expected = []
    for name in LAYOUT[include]:
        p = model.get_parameter(name).detach()
        expected += list(p.flatten(1) if p.ndim > 1 else p.view(-1, 1))
    rows = [row for matrix in flat.rows(flat.work) for row in matrix]
    assert [row.tolist() for row in rows] == [row.tolist() for row in expected]


@pytest.mark.parametrize("include", SELECTIONS)
def test_rows_of_a_residual_network_are_its_filters_also_those_of_shortcuts(include) -> None:
    model = build("resnet8", (3, 8, 8), 10)
    before = values(model)
    flat = FlatParameters(model, include)
    assert_lives_in(flat, model)
    assert same(values(model), before)
    matrices = flat.rows(flat.work)
    filters = {
        16: 32,  # the shortcut from 16 to 32 channels
        3 * 9: 16,
        32: 64,
        64: 10,  # the dense layer
        16 * 9: 16 + 16 + 32,
        32 * 9: 32 + 64,
        64 * 9: 64,
    }
    singles = {"weights": [], "no-norm": [10], "all": [2 * (16 + 2 * 16 + 3 * 32 + 3 * 64), 10]}[include]
    assert {m.shape[1]: m.shape[0] for m in matrices if m.shape[1] > 1} == filters
    assert [m.shape[0] for m in matrices if m.shape[1] == 1] == singles
    rows = [row.tolist() for matrix in matrices for row in matrix]
    expected = []
    for name in flat.names:
        p = before[name]
        expected += p.flatten(1).tolist() if p.ndim > 1 else p[:, None].tolist()
    assert rows == expected


def test_rows_of_any_vector_are_views_of_it() -> None:
    flat = FlatParameters(network())
    vector = random_like(flat.work)
    for matrix in flat.rows(vector):
        matrix.zero_()
    assert not vector.any()


def same_module(model: nn.Module) -> nn.Module:
    return model


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


@pytest.mark.parametrize("way", [same_module, copy.deepcopy, through_a_file])
def test_rows_of_stacked_networks_are_the_rows_of_each(way) -> None:
    models = [build("digits-mlp", (1, 4, 4), 3, seed=seed) for seed in (0, 1)]
    flat = FlatParameters(way(stack(models)))
    layers = [[model[i] for model in models] for i in (1, 3, 5)]
    weights = [row.tolist() for layer in layers for m in layer for row in m.weight]
    biases = [[b] for layer in layers for m in layer for b in m.bias.tolist()]
    assert [row.tolist() for matrix in flat.rows(flat.work) for row in matrix] == weights + biases


# ------------------------------------------------------------------------------------------- elsewhere and back again


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("include", SELECTIONS)
def test_at_evaluates_there_and_returns_to_the_bit(include, dtype) -> None:
    model, moved = network(dtype).eval(), network(dtype).eval()
    flat = FlatParameters(model, include)
    before, clean, vector = values(model), flat.clean.clone(), random_like(flat.work)
    start = 0
    with torch.no_grad():
        for name in LAYOUT[include]:
            p = moved.get_parameter(name)
            p.copy_(vector[start : start + p.numel()].view(p.shape))
            start += p.numel()
    with flat.at(vector):
        assert torch.equal(model(images(dtype)), moved(images(dtype)))
    assert same(values(model), before)
    assert torch.equal(flat.clean, clean)


def test_at_returns_after_an_exception_and_when_nested() -> None:
    model = network()
    flat = FlatParameters(model, "all")
    before, outer, inner = values(model), random_like(flat.work, 1), random_like(flat.work, 2)

    def fail_inside() -> None:
        with flat.at(inner):
            assert torch.equal(flat.work, inner)
            raise KeyError("stop")

    with flat.at(outer):
        with pytest.raises(KeyError):
            fail_inside()
        assert torch.equal(flat.work, outer)
    assert same(values(model), before)


def test_at_returns_to_where_it_was_and_not_to_the_clean_copy() -> None:
    flat = FlatParameters(network())
    flat.work.mul_(1.5)
    here = flat.work.clone()
    with flat.at(flat.clean):
        pass
    assert torch.equal(flat.work, here)


def test_at_keeps_the_graph_of_its_vector_out_of_the_model() -> None:
    flat = FlatParameters(network())
    with flat.at(random_like(flat.work).requires_grad_() * 2):
        assert not flat.work.requires_grad
    assert not flat.work.requires_grad


@pytest.mark.parametrize("size", [0, 1, 5])
def test_at_refuses_a_vector_of_another_length(size) -> None:
    flat = FlatParameters(network())
    before = flat.work.clone()
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        flat.at(torch.zeros(size)).__enter__()
    assert torch.equal(flat.work, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_restore_brings_back_what_save_took_to_the_bit(dtype) -> None:
    model = network(dtype)
    flat = FlatParameters(model, "all")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.3)
    saved = values(model)
    flat.save()
    flat.work.add_(random_like(flat.work)).sub_(random_like(flat.work))  # drifts by rounding
    assert not same(values(model), saved)
    flat.restore()
    assert same(values(model), saved)


@pytest.mark.parametrize("write", [FlatParameters.restore, FlatParameters.written])
def test_a_backward_pass_through_older_weights_raises(write) -> None:
    model = network()
    flat = FlatParameters(model)
    loss = model(images()).sum()
    write(flat)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_backward_pass_must_stay_on_its_side_of_at() -> None:
    model = network()
    flat = FlatParameters(model)
    outside = model(images()).sum()
    with flat.at(flat.clean):
        inside = model(images()).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            outside.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        inside.backward()


def test_reading_leaves_the_version_counters_alone() -> None:
    model = network()
    flat = FlatParameters(model)
    loss = model(images()).sum()
    flat.save()
    flat.check()
    flat.rows(flat.work)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


# ------------------------------------------------------------------------------------ moved, copied, saved and loaded


def assign(model: nn.Module) -> None:
    model.load_state_dict(values(model), assign=True)


def replace_one(model: nn.Module) -> None:
    model[6].bias = nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize(
    "move",
    [
        lambda model: model.to(torch.float64),
        lambda model: model[4].to(torch.bfloat16),
        lambda model: model.to(memory_format=torch.channels_last),
        assign,
        replace_one,
    ],
    ids=["to", "to of one layer", "channels last", "assigned state", "replaced parameter"],
)
def test_parameters_that_moved_afterwards_are_noticed(move) -> None:
    model = network()
    flat = FlatParameters(model)
    flat.check()
    move(model)
    with pytest.raises(InputError, match="moved, replaced or added after their vector was built"):
        flat.check()
    if len({p.dtype for p in model.parameters()}) == 1:
        FlatParameters(model).check()


def add_parameter(model: nn.Module) -> None:
    model.register_parameter("temperature", nn.Parameter(torch.ones(())))


def add_layer(model: nn.Module) -> None:
    model.append(nn.Linear(4, 4))


def exchange_layer(model: nn.Module) -> None:
    model[6] = nn.Linear(5, 4)


def normalize_weight(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model[4])


def prune(model: nn.Module) -> None:
    random_unstructured(model[4], "weight", 0.5)


def remove_layer(model: nn.Module) -> None:
    del model[6]


CHANGES = [add_parameter, add_layer, exchange_layer, normalize_weight, prune, remove_layer]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_and_layers_that_come_and_go_afterwards_are_noticed(change) -> None:
    model = network()
    flat = FlatParameters(model)
    change(model)
    with pytest.raises(InputError, match="moved, replaced or added after their vector was built"):
        flat.save()
    FlatParameters(model).save()


@pytest.mark.parametrize("include", ["weights", "all", lambda name, _: name != "0.weight"])
@pytest.mark.parametrize("thaw", [False, True], ids=["frozen", "thawed"])
def test_parameters_that_are_frozen_or_thawed_afterwards_are_noticed(include, thaw) -> None:
    model = network()
    model[4].weight.requires_grad_(not thaw)
    flat = FlatParameters(model, include)
    flat.save()
    model[4].weight.requires_grad_(thaw)
    with pytest.raises(InputError, match="frozen or thawed after their vector was built"):
        flat.save()


class LlamaRMSNorm(nn.Module):
    """A norm by name only, with one gain a channel."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))


class LayerNorm2d(LlamaRMSNorm):
    """The same for images."""


class NormalizedLinear(nn.Module):
    """A dense layer whose weights are a matrix: its gain alone belongs to a normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 3))
        self.gain = nn.Parameter(torch.ones(3))


class NormalNoise(LlamaRMSNorm):
    """A layer that has to do with the normal distribution."""


@pytest.mark.parametrize(
    ("layer", "perturbed"),
    [
        (nn.BatchNorm2d(3), []),
        (nn.InstanceNorm2d(3, affine=True), []),
        (nn.RMSNorm(3), []),
        (nn.LayerNorm([2, 3]), []),
        (nn.GroupNorm(1, 3), []),
        (nn.SyncBatchNorm(3), []),
        (LlamaRMSNorm(3), []),
        (LayerNorm2d(1, 3, 1, 1), []),
        (NormalizedLinear(), ["1.weight"]),
        (NormalNoise(3), ["1.weight"]),
        (nn.PReLU(3), ["1.weight"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_normalization_is_known_by_type_or_by_name(layer, perturbed) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), layer)
    assert sorted(FlatParameters(model).names) == sorted(["0.weight", *perturbed])
    assert len(FlatParameters(model, "all").names) == len(list(model.parameters()))


def sparse_parameter() -> nn.Parameter:
    return nn.Parameter(torch.eye(3).to_sparse())


@torch.inference_mode()
def made_in_inference_mode() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


class Wrapped(Tensor):
    """As packages for quantized or sharded weights have them."""


@pytest.mark.parametrize(
    ("parameter", "remedy"),
    [
        (lambda: nn.Parameter(torch.ones(3, dtype=torch.complex64)), "view_as_real"),
        (sparse_parameter, "make it dense"),
        (lambda: nn.UninitializedParameter(), "run one forward pass first"),
        (lambda: nn.Parameter(torch.ones(3, device="meta")), "load the model first"),
        (made_in_inference_mode, "make the model outside of it"),
        (lambda: nn.Parameter(torch.ones(3).as_subclass(Wrapped)), "is a Wrapped, not one plain tensor"),
    ],
    ids=["complex", "sparse", "lazy", "meta", "of inference mode", "a subclass of Tensor"],
)
def test_what_cannot_lie_in_a_vector_is_named(parameter, remedy) -> None:
    model = nn.Linear(3, 3)
    model.odd = parameter()
    with pytest.raises(InputError, match=f"the parameter odd .*{remedy}"):
        FlatParameters(model)
    assert FlatParameters(model, lambda name, _: name != "odd").names == ["weight", "bias"]
    if not nn.parameter.is_lazy(model.odd):
        model.odd.requires_grad_(False)
        assert FlatParameters(model).names == ["weight", "bias"]


def test_a_saved_part_brings_the_vector_along_and_its_clones_do_not() -> None:
    def size(state: object) -> int:
        file = io.BytesIO()
        torch.save(state, file)
        return file.tell()

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5_000))
    alone = size(model[0].state_dict())
    FlatParameters(model)
    state = model[0].state_dict()
    assert size(state) > 10 * alone
    assert size({name: value.clone() for name, value in state.items()}) < 1.1 * alone


def test_mixed_types_are_refused() -> None:
    model = network()
    model[4].to(torch.float64)
    with pytest.raises(InputError, match="differ in type or device"):
        FlatParameters(model)


def test_channels_last_weights_keep_their_values() -> None:
    model = network().to(memory_format=torch.channels_last)
    before = values(model)
    flat = FlatParameters(model)
    assert same(values(model), before)
    assert_lives_in(flat, model)


def test_a_deep_copy_is_independent_and_can_have_its_own_vector() -> None:
    model = network().eval()
    flat = FlatParameters(model, "all")
    twin = copy.deepcopy(model)
    output, of_twin = model(images()), FlatParameters(twin, "all")
    flat.work.zero_()
    assert torch.equal(twin(images()), output)
    assert math.isclose(of_twin.work.norm(), flat.clean.norm(), rel_tol=1e-6)
    assert_lives_in(of_twin, twin)


def test_a_state_dict_loads_into_the_vector() -> None:
    model, source = network(), network()
    FlatParameters(source).work.mul_(-0.5)  # what is saved is itself laid out flat
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    flat = FlatParameters(model)
    assert list(model.state_dict()) == list(network().state_dict())
    model.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    assert same(values(model), values(source))
    assert torch.equal(flat.work, -0.5 * flat.clean)
    assert_lives_in(flat, model)
