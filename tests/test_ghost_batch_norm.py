"""Ghost batch normalization against plain loops."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm, ghost_batch_norm_, part_sizes
from nb_lib.lab.device import precision
from nb_lib.lab.networks import build

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


def random_images(n: int, *shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return 1 + 2 * torch.randn(n, *shape, generator=g, dtype=torch.float64)


def plain_norm(shape: Sequence[int]) -> nn.modules.batchnorm._BatchNorm:
    """A batch normalization in float64 of which nothing is as it was initialized."""
    kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    norm = kind(3, eps=1e-3, momentum=0.3).double()
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(3, generator=g) + 0.5)
    return norm


def ghost_of(norm: nn.Module, group_size: int | None, minibatches: int) -> GhostBatchNorm:
    holder = nn.Sequential(copy.deepcopy(norm))
    ghost_batch_norm_(holder, group_size, minibatches=minibatches)
    return holder[0]


def by_groups(norm: nn.Module, x: Tensor, sizes: int | list[int]) -> Tensor:
    """What plain batch normalization makes of one group after the other."""
    return torch.cat([norm(group) for group in x.split(sizes)])


def assert_same_statistics(a: nn.Module, b: nn.Module) -> None:
    of_a, of_b = dict(a.named_buffers()), dict(b.named_buffers())
    torch.testing.assert_close(of_a, of_b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize(("n", "group_size", "minibatches", "groups"), CASES)
def test_training_is_plain_batch_norm_group_by_group(n, group_size, minibatches, groups, shape) -> None:
    norm = plain_norm(shape)
    ghost = ghost_of(norm, group_size, minibatches)
    for seed in (0, 1):  # twice: the running statistics carry over
        x = random_images(n, *shape, seed=seed)
        expected = by_groups(norm, x, groups)
        torch.testing.assert_close(ghost(x), expected, rtol=0, atol=1e-12)
    assert_same_statistics(ghost, norm)
    assert norm.num_batches_tracked == 2 * len(groups)


def chunked(n: int, size: int, batch_size: int) -> list[int]:
    """As the SmoothOut authors' loop cuts a batch: torch.chunk into as many parts as a whole batch has."""
    parts = max(1, batch_size // size)
    return [len(part) for part in torch.arange(n).chunk(parts)]


@pytest.mark.parametrize("size", [16, 100, 128])
@pytest.mark.parametrize("batch_size", [20, 128, 256, 300, 848, 2048, 5000, 6000])
def test_even_parts_are_those_of_torchs_chunk(size, batch_size) -> None:
    last_of_an_epoch = {50_000 % batch_size, 60_000 % batch_size}
    for n in {batch_size, batch_size - 1, 88, 848} | last_of_an_epoch:
        if not 0 < n <= batch_size:
            continue
        expected = chunked(n, size, batch_size)
        if min(expected) > 1:
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
    expected = by_groups(norm, x, groups)
    torch.testing.assert_close(ghost(x), expected, rtol=0, atol=1e-12)
    assert_same_statistics(ghost, norm)


@pytest.mark.parametrize("minibatches", [1, 2])
def test_a_sample_moves_the_outputs_of_its_own_group_only(minibatches) -> None:
    ghost = GhostBatchNorm(3, 4, minibatches=minibatches)
    x = random_images(20, 3).float()
    before = ghost(x)
    x[9] += 1
    moved = (ghost(x) != before).any(1).nonzero().flatten()
    # 20 samples in groups of four, or two halves of 4 + 4 + 2
    expected = {1: [8, 9, 10, 11], 2: [8, 9]}
    assert moved.tolist() == expected[minibatches]


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
    groups = len(loop._group_sizes(n))
    slope = random_images(n, *shape, seed=9)
    for seed in (0, 1):
        x = random_images(n, *shape, seed=seed).requires_grad_()
        outputs = [loop(x), folded._folded(x, groups)]
        gradients = []
        for ghost, output in zip((loop, folded), outputs, strict=True):
            gradients.append(torch.autograd.grad(output, [x, ghost.weight, ghost.bias], slope))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)
    assert_same_statistics(folded, loop)


def test_only_equal_groups_of_vectors_are_folded() -> None:
    ghost = GhostBatchNorm(3, 4)
    x = random_images(12, 3)
    images = random_images(12, 3, 5, 5)
    assert ghost._foldable(x, [4, 4, 4])
    assert not ghost._foldable(x, [4, 4, 3])
    assert not ghost._foldable(images, [4, 4, 4]), "they would leave the fast order in memory"
    moved = images.contiguous(memory_format=torch.channels_last)
    out = ghost_of(plain_norm((3, 5, 5)), 4, 1)(moved)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["float32", "tf32", "bfloat16"])
def test_running_statistics_are_exact_in_every_precision(kind) -> None:
    """No matrix product takes part in them: bfloat16 has three digits."""
    exact = ghost_of(plain_norm((3,)), 4, 2)
    ghost = copy.deepcopy(exact).float()
    x = random_images(40, 3, seed=3)
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
    torch.testing.assert_close(ghost(x), by_groups(norm, x, 4), rtol=0, atol=1e-12)
    torch.testing.assert_close(ghost.eval()(x), norm.eval()(x), rtol=0, atol=1e-12)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def test_conversion_in_place_keeps_everything_but_the_type() -> None:
    inner = nn.Sequential(nn.Conv2d(2, 3, 3), plain_norm((3, 1, 1)).eval())
    model = nn.Sequential(inner, nn.Flatten(), nn.Linear(12, 3), plain_norm((3,)))
    tensors = named_tensors(model)
    values = copy.deepcopy(model.state_dict())
    modes = {name: m.training for name, m in model.named_modules()}

    assert ghost_batch_norm_(model, 5, minibatches=2) is model
    for ghost in (model[0][1], model[3]):
        assert isinstance(ghost, GhostBatchNorm)
        assert (ghost.eps, ghost.momentum, ghost.group_size, ghost.minibatches) == (1e-3, 0.3, 5, 2)
    now = named_tensors(model)
    assert list(now) == list(tensors)
    assert all(now[name] is tensors[name] for name in tensors)
    state = model.state_dict()
    assert list(state) == list(values)
    assert all(torch.equal(state[name], values[name]) for name in values)
    assert {name: m.training for name, m in model.named_modules()} == modes


def test_a_model_that_is_a_batch_norm_is_returned_converted() -> None:
    root = nn.BatchNorm1d(3)
    ghost = ghost_batch_norm_(root, minibatches=2)
    assert isinstance(ghost, GhostBatchNorm)
    assert ghost.weight is root.weight
    assert isinstance(ghost_batch_norm_(ghost, 4), GhostBatchNorm)


def test_a_layer_that_is_there_twice_stays_one_layer() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.Linear(3, 3), shared), "c": shared})
    ghost_batch_norm_(model, minibatches=2)
    assert isinstance(model["a"], GhostBatchNorm)
    assert model["a"] is model["b"][1] is model["c"]


def test_hooks_of_a_layer_stay() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    calls = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    ghost_batch_norm_(model, minibatches=2)(torch.randn(8, 3))
    assert calls == [1]
    handle.remove()
    model(torch.randn(8, 3))
    assert calls == [1]


class Frozen(nn.BatchNorm1d):
    """Normalizes by its running statistics always."""

    def forward(self, input):
        return input * self.weight


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm(3), nn.LazyBatchNorm1d(), Frozen(3)])
@pytest.mark.parametrize("inside", [False, True])
def test_layers_with_a_way_of_their_own_are_refused(layer, inside) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), layer) if inside else layer
    with pytest.raises(InputError, match=f"{type(layer).__name__} normalizes in its own way, or has no features yet"):
        ghost_batch_norm_(model, minibatches=2)
    assert not inside or type(model[0]) is nn.BatchNorm1d, "nothing was changed"


@pytest.mark.parametrize(("minibatches", "sizes"), [(1, [8, 8, 6]), (2, [8, 3, 8, 3])])
def test_a_residual_network_takes_each_ghost_batch_as_if_it_were_alone(minibatches, sizes) -> None:
    shape = (2, 8, 8)
    ghost = build("resnet8", shape, 5, group_size=8, minibatches=minibatches).double()
    plain = build("resnet8", shape, 5, group_size=100).double()  # every pass is one group
    x = random_images(22, *shape)
    shares = random_images(22, 5)  # of each output in a loss
    outputs = ghost(x)
    (outputs * shares).sum().backward()
    alone = []
    for part, share in zip(x.split(sizes), shares.split(sizes), strict=True):
        of_part = plain(part)
        (of_part * share).sum().backward()
        alone.append(of_part)
    torch.testing.assert_close(outputs, torch.cat(alone), rtol=1e-10, atol=1e-10)
    assert_same_statistics(ghost, plain)
    for p, q in zip(ghost.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [1, 7])
def test_an_odd_batch_is_not_two_minibatches(n) -> None:
    with pytest.raises(InputError, match=f"{n} samples are not 2 minibatches of equal size"):
        GhostBatchNorm(3, 2, minibatches=2)(torch.ones(n, 3))


@pytest.mark.parametrize("size", [1, 0, -3])
def test_groups_of_fewer_than_two_samples_are_refused(size) -> None:
    with pytest.raises(InputError, match="groups of at least 2 samples"):
        GhostBatchNorm(3, size)
