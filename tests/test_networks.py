"""The papers' networks against the tables of the papers, ghost batch normalization and stacking against plain loops."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm, ghost_batch_norm_, part_sizes
from nb_lib.lab.device import precision
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.networks import build, convolutional, stackable
from nb_lib.lab.stacked import stack, unstack

GREY, COLOR = (1, 28, 28), (3, 32, 32)

# name, images, classes, total, weights, biases, gains and shifts of batch normalization (paper-spec, section 1.1)
COUNTS = [
    ("ne-f1", GREY, 10, 1_900_510, 1_897_000, 3_510, 0),
    ("ne-c1", COLOR, 10, 1_962_314, 1_959_616, 10, 2_688),
    ("ne-c2", COLOR, 100, 7_663_012, 7_657_152, 1_124, 4_736),
    ("smoothout-f1", GREY, 10, 1_462_794, 1_455_104, 2_570, 5_120),
    ("smoothout-c1", COLOR, 10, 1_388_490, 1_387_072, 10, 1_408),
    ("smoothout-c3", COLOR, 100, 1_405_860, 1_404_352, 100, 1_408),
]


def random_images(n: int, *shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 1 + 2 * torch.randn(n, *shape, generator=g, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- the architectures


@pytest.mark.parametrize(("name", "shape", "classes", "total", "weights", "biases", "norm"), COUNTS)
def test_parameter_counts_are_those_of_the_table(name, shape, classes, total, weights, biases, norm) -> None:
    count = {"weight": 0, "bias": 0, "norm": 0}
    model = build(name, shape, classes)
    for module in model.modules():
        for key, p in module.named_parameters(recurse=False):
            count["norm" if isinstance(module, nn.modules.batchnorm._BatchNorm) else key] += p.numel()
    assert count == {"weight": weights, "bias": biases, "norm": norm}
    assert sum(p.numel() for p in model.parameters()) == total


def vgg_stack(convolutions: int, width: int, side: int) -> list[tuple[str, tuple[int, ...]]]:
    block = [(kind, (width, side, side)) for kind in ("Conv2d", "GhostBatchNorm", "ReLU")]
    return [*(convolutions * block), ("MaxPool2d", (width, side // 2, side // 2))]


NE_STACKS = [*vgg_stack(3, 64, 32), *vgg_stack(3, 128, 16), *vgg_stack(3, 256, 8)]
LAYERS = {  # paper-spec, sections 1.3 and 1.4
    "ne-c1": [*NE_STACKS, ("Flatten", (4096,)), ("Linear", (10,))],
    "ne-c2": [
        *NE_STACKS,
        *vgg_stack(2, 512, 4),
        ("Flatten", (2048,)),
        ("Linear", (1024,)),
        ("ReLU", (1024,)),
        ("Linear", (10,)),
    ],
    "smoothout-c1": [
        ("Conv2d", (64, 32, 32)),
        ("MaxPool2d", (64, 15, 15)),
        ("GhostBatchNorm", (64, 15, 15)),
        ("ReLU", (64, 15, 15)),
        ("Conv2d", (64, 15, 15)),
        ("MaxPool2d", (64, 7, 7)),
        ("GhostBatchNorm", (64, 7, 7)),
        ("ReLU", (64, 7, 7)),
        ("Flatten", (3136,)),
        *[(kind, (384,)) for kind in ("Linear", "GhostBatchNorm", "ReLU", "Dropout")],
        *[(kind, (192,)) for kind in ("Linear", "GhostBatchNorm", "ReLU", "Dropout")],
        ("Linear", (10,)),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_output_shapes_are_those_of_the_table(name) -> None:
    x, seen = torch.zeros(2, *COLOR), []
    for layer in build(name, COLOR, 10).eval():
        x = layer(x)
        seen.append((type(layer).__name__, tuple(x.shape[1:])))
    assert seen == LAYERS[name]


@pytest.mark.parametrize(
    ("name", "kernel", "padding"), [("ne-c1", 3, 1), ("ne-c2", 3, 1), ("smoothout-c1", 5, 2)]
)
def test_convolutions_have_the_papers_kernels_and_no_bias(name, kernel, padding) -> None:
    for layer in build(name, COLOR, 10):
        if isinstance(layer, nn.Conv2d):
            assert (layer.kernel_size, layer.padding, layer.stride) == (2 * (kernel,), 2 * (padding,), (1, 1))
            assert layer.bias is None


@pytest.mark.parametrize(("name", "published"), [("ne-c1", 100), ("ne-c2", 100), ("smoothout-c1", 128)])
@pytest.mark.parametrize("asked", [None, 32])
def test_ghost_batches_are_the_published_ones_unless_asked_for(name, published, asked) -> None:
    model = build(name, COLOR, 10, group_size=asked, minibatches=2)
    norms = [m for m in model if isinstance(m, GhostBatchNorm)]
    assert {(m.group_size, m.minibatches) for m in norms} == {(asked or published, 2)}
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


@pytest.mark.parametrize("name", ["ne-c1", "ne-c2", "smoothout-c1", "smoothout-c3"])
def test_too_small_images_are_refused(name) -> None:
    with pytest.raises(InputError, match="images of 4x4 pixels are too small"):
        build(name, (3, 4, 4), 10)


@pytest.mark.parametrize("call", [lambda name: build(name, COLOR, 10), stackable])
def test_an_unknown_name_suggests_the_nearest(call) -> None:
    with pytest.raises(InputError, match="unknown network 'smothout-c1': did you mean 'smoothout-c1'"):
        call("smothout-c1")


# ---------------------------------------------------------------------------------------------------- initialization

NE_NAMES = ["digits-mlp", "ne-f1", "ne-c1", "ne-c2"]
SMOOTHOUT_NAMES = ["smoothout-f1", "smoothout-c1", "smoothout-c3"]


def fans(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.Conv2d)
    pixels = math.prod(layer.kernel_size)
    return layer.in_channels * pixels, layer.out_channels * pixels


def assert_uniform(values: Tensor, bound: float) -> None:
    """Within ±bound, nearly reaching it at both ends, with the mean and the variance of U(±bound)."""
    values, n = values.detach().double() / bound, values.numel()
    assert -1 - 1e-6 <= values.min() < -1 + 24 / n
    assert 1 - 24 / n < values.max() <= 1 + 1e-6
    assert abs(values.mean()) < 5 * math.sqrt(1 / 3 / n)
    assert abs(values.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize("name", NE_NAMES)
def test_ne_networks_start_from_glorot_weights_and_zero_biases(name) -> None:
    for layer in build(name, COLOR, 10, seed=1):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert_uniform(layer.weight, math.sqrt(6 / sum(fans(layer))))
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("name", SMOOTHOUT_NAMES)
def test_smoothout_networks_start_uniform_within_the_root_of_fan_in(name) -> None:
    for layer in build(name, COLOR, 10, seed=1):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for p in layer.parameters():
                assert_uniform(p, 1 / math.sqrt(fans(layer)[0]))


@pytest.mark.parametrize("name", ["ne-c1", "smoothout-f1"])
def test_batch_norm_starts_as_the_standardization(name) -> None:
    values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for layer in build(name, COLOR, 10):
        if isinstance(layer, GhostBatchNorm):
            for key, value in layer.state_dict().items():
                assert torch.equal(value, torch.full_like(value, values[key])), key


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_alone_decides_the_weights(name) -> None:
    same = []
    for noise, seed in ((0, 7), (1, 7), (1, 8)):
        with torch.random.fork_rng():
            torch.manual_seed(noise)
            same.append([p.detach() for p in build(name, COLOR, 10, seed=seed).parameters()])
    first, again, other = same
    assert all(map(torch.equal, first, again))
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True) if a.ndim > 1)


@pytest.mark.parametrize("name", NETWORKS)
def test_building_leaves_the_global_generator_alone(name) -> None:
    before = torch.get_rng_state()
    build(name, COLOR, 10, seed=3)
    stackable(name)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------- ghost batch normalization

CASES = [
    # samples, group_size, minibatches, the groups that must come out
    pytest.param(12, 4, 1, [4, 4, 4], id="full groups"),
    pytest.param(11, 4, 1, [4, 4, 3], id="short last group"),
    pytest.param(9, 4, 1, [4, 5], id="last group of one sample"),
    pytest.param(3, 4, 1, [3], id="batch smaller than the group"),
    pytest.param(7, None, 1, [7], id="one group"),
    pytest.param(12, None, 2, [6, 6], id="each half one group"),
    pytest.param(16, 4, 2, [4, 4, 4, 4], id="full groups in two halves"),
    pytest.param(20, 4, 2, [4, 4, 2, 4, 4, 2], id="short last groups in two halves"),
    pytest.param(18, 4, 2, [4, 5, 4, 5], id="last groups of one sample in two halves"),
    pytest.param(12, 8, 2, [6, 6], id="groups larger than the halves"),
]
INPUTS = [pytest.param((3,), id="1d"), pytest.param((3, 4, 2), id="2d")]


def plain_norm(shape: Sequence[int]) -> nn.modules.batchnorm._BatchNorm:
    """A batch normalization in float64 of which nothing is as it was initialized."""
    norm = (nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d)(3, eps=1e-3, momentum=0.3).double()
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(3, generator=g) + 0.5)
    return norm


def ghost_of(norm: nn.Module, group_size: int | None, minibatches: int) -> GhostBatchNorm:
    holder = ghost_batch_norm_(nn.Sequential(copy.deepcopy(norm)), group_size, minibatches=minibatches)
    return holder[0]


def assert_same_statistics(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(dict(a.named_buffers()), dict(b.named_buffers()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize(("n", "group_size", "minibatches", "groups"), CASES)
def test_training_is_plain_batch_norm_group_by_group(n, group_size, minibatches, groups, shape) -> None:
    norm = plain_norm(shape)
    ghost = ghost_of(norm, group_size, minibatches)
    for seed in (0, 1):  # twice: the running statistics carry over
        x = random_images(n, *shape, seed=seed)
        expected = torch.cat([norm(group) for group in x.split(groups)])
        torch.testing.assert_close(ghost(x), expected, rtol=0, atol=1e-12)
    assert_same_statistics(ghost, norm)
    assert norm.num_batches_tracked == 2 * len(groups)


def chunked(n: int, size: int, batch_size: int) -> list[int]:
    """As the SmoothOut authors' loop cuts a batch: torch.chunk into as many parts as a whole batch has."""
    return [len(part) for part in torch.arange(n).chunk(max(1, batch_size // size))]


@pytest.mark.parametrize("size", [16, 100, 128])
@pytest.mark.parametrize("batch_size", [20, 128, 256, 300, 848, 2048, 5000, 6000])
def test_even_parts_are_those_of_torchs_chunk(size, batch_size) -> None:
    for n in {batch_size, batch_size - 1, 88, 848, 50_000 % batch_size, 60_000 % batch_size}:
        expected = chunked(n, size, batch_size) if 0 < n <= batch_size else []
        if expected and min(expected) > 1:
            assert part_sizes(n, size, batch_size) == expected


def test_the_parts_that_the_specification_names() -> None:
    assert part_sizes(5000, 128, 5000) == 38 * [129] + [98]
    assert part_sizes(6000, 128, 6000) == 45 * [131] + [105]
    assert part_sizes(848, 128, 2048) == 16 * [53]
    assert part_sizes(848, 128, 1024) == 8 * [106]
    assert part_sizes(80, 128, 256) == [40, 40]
    assert part_sizes(256, 128, 256) == [128, 128]


@pytest.mark.parametrize("batch_size", [None, 40, 300, 5000])
def test_parts_are_all_samples_and_never_a_single_one_beside_others(batch_size) -> None:
    for n in range(1, 301):
        for size in (2, 7, 128):
            sizes = part_sizes(n, size, batch_size)
            assert sum(sizes) == n
            assert min(sizes) > 1 or sizes == [1]
            assert batch_size is not None or max(sizes) <= size + 1


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize(
    ("minibatches", "groups"),
    [(1, [5, 5, 5, 5, 2]), (1, [2, 2, 2, 3]), (2, 2 * [5, 5, 5, 5, 2]), (2, 2 * [2, 2, 2, 3])],
)
def test_even_groups_are_plain_batch_norm_group_by_group(minibatches, groups, shape) -> None:
    """A minibatch of 22 is cut into 22 // 4 = 5 groups, and so is the last one, of 9, whose last sample joins."""
    norm = plain_norm(shape)
    ghost = copy.deepcopy(ghost_of(norm, 4, minibatches))
    ghost.batch_size = 22
    x = random_images(sum(groups), *shape)
    torch.testing.assert_close(
        ghost(x), torch.cat([norm(group) for group in x.split(groups)]), rtol=0, atol=1e-12
    )
    assert_same_statistics(ghost, norm)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_sample_moves_the_outputs_of_its_own_group_only(minibatches) -> None:
    ghost = GhostBatchNorm(3, 4, minibatches=minibatches)
    x = random_images(20, 3).float()
    before = ghost(x)
    x[9] += 1
    moved = (ghost(x) != before).any(1).nonzero().flatten().tolist()
    # 20 samples in groups of four, or two halves of 4 + 4 + 2
    assert moved == ([8, 9, 10, 11] if minibatches == 1 else [8, 9])


@pytest.mark.parametrize("shape", INPUTS)
def test_evaluation_is_plain_batch_norm_on_any_number_of_samples(shape) -> None:
    norm = plain_norm(shape).eval()
    ghost = ghost_of(norm, 4, 2)
    x = random_images(7, *shape)
    assert torch.equal(ghost(x), norm(x))
    assert_same_statistics(ghost, plain_norm(shape))


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize(
    ("n", "group_size", "minibatches"), [(12, 4, 1), (16, 4, 2), (12, None, 2), (7, None, 1), (12, 8, 2)]
)
def test_the_folded_path_of_cuda_is_the_loop(n, group_size, minibatches, shape) -> None:
    loop, folded = (ghost_of(plain_norm(shape), group_size, minibatches) for _ in range(2))
    sizes = loop._group_sizes(n)
    for seed in (0, 1):
        x, into = random_images(n, *shape, seed=seed).requires_grad_(), random_images(n, *shape, seed=9)
        results = []
        for ghost, out in ((loop, loop(x)), (folded, folded._folded(x, len(sizes)))):
            results.append([out, *torch.autograd.grad(out, [x, ghost.weight, ghost.bias], into)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    assert_same_statistics(folded, loop)


def test_only_equal_groups_of_vectors_are_folded() -> None:
    ghost, x, images = GhostBatchNorm(3, 4), random_images(12, 3), random_images(12, 3, 5, 5)
    assert ghost._foldable(x, [4, 4, 4])
    assert not ghost._foldable(x, [4, 4, 3])
    assert not ghost._foldable(images, [4, 4, 4]), "they would leave the fast order in memory"
    moved = images.contiguous(memory_format=torch.channels_last)
    assert ghost_of(plain_norm((3, 5, 5)), 4, 1)(moved).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
def test_running_statistics_are_exact_in_every_precision(kind) -> None:
    """No matrix product takes part in them: bfloat16 has three digits."""
    exact = ghost_of(plain_norm((3,)), 4, 2)
    ghost, x = copy.deepcopy(exact).float(), random_images(40, 3, seed=3)
    with precision(kind, torch.device("cpu")):
        ghost._folded(x.float(), 10)
    exact(x)
    torch.testing.assert_close(ghost.running_mean.double(), exact.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ghost.running_var.double(), exact.running_var, rtol=1e-6, atol=1e-6)


def test_the_folded_path_takes_what_autocast_feeds_it() -> None:
    loop, folded = (ghost_of(plain_norm((3, 4, 2)).float(), 4, 1) for _ in range(2))
    x = random_images(12, 3, 4, 2).bfloat16()
    torch.testing.assert_close(folded._folded(x, 3), loop(x))
    torch.testing.assert_close(folded.running_var, loop.running_var)
    assert folded.running_var.dtype == torch.float32


@pytest.mark.parametrize("option", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_unusual_batch_norms_convert_too_and_keep_to_the_loop(option) -> None:
    norm = nn.BatchNorm1d(3, **option).double()
    ghost = ghost_of(norm, 4, 1)
    x = random_images(12, 3)
    assert not ghost._foldable(x, [4, 4, 4])
    torch.testing.assert_close(ghost(x), torch.cat([norm(group) for group in x.split(4)]), rtol=0, atol=1e-12)
    torch.testing.assert_close(ghost.eval()(x), norm.eval()(x), rtol=0, atol=1e-12)


def test_conversion_in_place_keeps_everything_but_the_type() -> None:
    inner = nn.Sequential(nn.Conv2d(2, 3, 3), plain_norm((3, 1, 1)).eval())
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(12, 3), plain_norm((3,)))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = copy.deepcopy(model.state_dict())
    modes = {name: m.training for name, m in model.named_modules()}

    assert ghost_batch_norm_(model, 5, minibatches=2) is model
    for ghost in (model[0][1], model[3]):
        assert isinstance(ghost, GhostBatchNorm)
        assert (ghost.eps, ghost.momentum, ghost.group_size, ghost.minibatches) == (1e-3, 0.3, 5, 2)
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(now) == list(tensors)
    assert all(now[name] is tensors[name] for name in tensors)
    assert list(model.state_dict()) == list(values)
    assert all(torch.equal(model.state_dict()[name], values[name]) for name in values)
    assert {name: m.training for name, m in model.named_modules()} == modes


@pytest.mark.parametrize("n", [1, 7])
def test_an_odd_batch_is_not_two_minibatches(n) -> None:
    with pytest.raises(InputError, match=f"{n} samples are not 2 minibatches of equal size"):
        GhostBatchNorm(3, 2, minibatches=2)(torch.ones(n, 3))


@pytest.mark.parametrize("size", [1, 0, -3])
def test_groups_of_fewer_than_two_samples_are_refused(size) -> None:
    with pytest.raises(InputError, match="groups of at least 2 samples"):
        GhostBatchNorm(3, size)


# ------------------------------------------------------------------------------------------------------------ stacking


@pytest.mark.parametrize("name", NETWORKS)
def test_stackable_are_the_dense_networks_without_batch_norm(name) -> None:
    assert stackable(name) == (name in {"digits-mlp", "ne-f1"})
    assert convolutional(name) == ("-c" in name)


def test_stacked_networks_have_the_logits_and_gradients_of_the_separate_ones() -> None:
    models = [build("digits-mlp", (1, 8, 8), 10, seed=seed).double() for seed in range(3)]
    for k, p in enumerate(p for model in models for p in model.parameters() if p.ndim == 1):
        nn.init.constant_(p, 0.01 * k)  # biases start at zero, where a mix-up would not show
    together = stack(models)
    x = random_images(3 * 5, 1, 8, 8).unflatten(0, (3, 5))
    y = torch.arange(15).view(3, 5) % 10

    logits = together(x)
    F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").backward()
    for k, model in enumerate(models):
        expected = model(x[k])
        F.cross_entropy(expected, y[k], reduction="sum").backward()
        torch.testing.assert_close(logits[k], expected, rtol=0, atol=1e-12)
        for stacked, p in zip(together.parameters(), model.parameters(), strict=True):
            assert torch.equal(stacked[k], p)
            torch.testing.assert_close(stacked.grad[k], p.grad, rtol=0, atol=1e-12)


def test_unstacking_gives_the_networks_back() -> None:
    models = [build("digits-mlp", (1, 8, 8), 10, seed=seed) for seed in range(3)]
    together, x = stack(models), random_images(5, 1, 8, 8).float()
    for k, model in enumerate(models):
        alone = unstack(together, k)
        assert torch.equal(alone(x), model(x))
        alone[1].weight.detach().zero_()
        assert together[1].weight[k].any(), "a copy"


def test_stacking_copies_the_weights() -> None:
    model = build("digits-mlp", (1, 8, 8), 10)
    before = model[1].weight.clone()
    with torch.no_grad():
        next(stack([model, model]).parameters()).zero_()
    assert torch.equal(model[1].weight, before)
