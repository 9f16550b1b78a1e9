"""The benchmark compares what it says: every step trains, and ratios are of steps of the same round."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as shell
from benchmarks import accumulated, measuring, plain, steps, trainings
from nb_lib.lab.augmentation import PADDING, PLACES, VIEWS, Views
from nb_lib.lab.data import Data, Split
from nb_lib.lab.networks import build
from nb_lib.lab.training_step import TrainingStep
from nb_lib.noise_enhancement import noise_enhanced_loss
from nb_lib.smoothout import SmoothOut

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_every_step_runs_and_no_ratio_lacks_its_times():
    times = steps.interleaved(steps._steps("ne-f1", 4, CPU), CPU, rounds=2)
    assert len(times) == 2
    assert (times > 0).all(axis=None)
    for row in steps.ratios_of(times, steps._RATIOS):
        assert row["low"] <= row["ratio"] <= row["high"]


def test_ratios_are_medians_over_rounds_of_steps_timed_in_turn():
    names = list(steps._steps("ne-f1", 2, CPU))
    times = pd.DataFrame({name: [1.0, 10.0, 2.0] for name in names})  # the machine drifts tenfold
    times["NE"] = 1.5 * times["plain 2B"]
    ratios = {row["what"]: row["ratio"] for row in steps.ratios_of(times, steps._RATIOS)}
    assert ratios["NE ÷ plain step of 2B"] == pytest.approx(1.5)
    assert ratios["SmoothOut ÷ plain step"] == pytest.approx(1.0)


def test_the_naive_loop_puts_its_noise_on_and_off():
    net = torch.nn.Linear(50, 50)
    before = net.weight.detach().clone()
    moved = []

    def backward():
        moved.append((net.weight.detach() - before).abs().max())

    steps.naive_smoothout(net, backward)
    assert 0.9 * steps.A < moved[0] <= 1.01 * steps.A
    torch.testing.assert_close(net.weight.detach(), before)


@pytest.mark.slow
def test_measures_are_compared_at_the_same_points(monkeypatch):
    monkeypatch.setattr(measuring, "POINTS", 2)
    monkeypatch.setattr(measuring, "_trained", lambda *_: build("digits-mlp", (1, 28, 28), 10).eval())
    table = measuring.bench_measures(CPU, images=40, rounds=2)
    naive = table[table["what"].str.contains("naive")].iloc[0]
    assert naive["ours"] == pytest.approx(naive["theirs"], rel=1e-5)
    boxes = table[table["what"].str.contains("box")]
    assert len(boxes) == 2
    assert (boxes["ours"] >= 0.99 * boxes["theirs"]).all()
    assert (boxes["theirs"] > 0).all()
    assert (table["ratio"] > 0).all()
    assert any(table["what"].str.contains("PyPI"))
    assert table["data"].str.startswith("40 images").all()


def test_networks_of_a_small_and_a_large_batch_are_as_published():
    data = measuring._data("no such data set", 300, CPU, normalization="symmetric")
    assert data.train.x.shape == (300, 1, 28, 28)
    small, large = (measuring._trained("smoothout-f1", b, data, epochs=1) for b in (100, 300))
    for model in (small, large):
        assert not any(module.training for module in model.modules())
        layers = [module for module in model if isinstance(module, torch.nn.Linear)]
        assert [layer.in_features for layer in layers] == [784, *5 * [512]]
        assert sum(p.numel() for p in model.parameters()) == 1_462_794
        assert next(m for m in model if hasattr(m, "num_batches_tracked")).num_batches_tracked > 0
    assert not torch.equal(small[1].weight, large[1].weight)


class Counted(measuring._Watched):
    """Its clock is the number of losses taken; those of scipy's search are also kept."""

    def __init__(self, *arguments):
        self.seen = []
        super().__init__(*arguments)

    def __call__(self, w):
        return self._kept(super().__call__(w))

    def gradient(self, w):
        return self._kept(super().gradient(w))

    def _kept(self, found):
        self.seen.append(float(found[0]))
        return found


@pytest.fixture
def regression(monkeypatch):
    """Softmax regression away from its minimum, so that both searches come to the same corner."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3)).eval()
    objective = Counted(model, torch.rand(50, 1, 3, 3), torch.arange(50) % 3)
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(len(objective.seen)))
    return objective


def test_a_box_is_timed_until_as_high_as_scipys(regression):
    ratio, ours, theirs = measuring._as_high(regression)
    losses = regression.seen  # that at w*, known to both, before the clock is read
    first = losses[theirs.evaluations :]
    assert theirs.max_loss == max(losses[: theirs.evaluations]) > theirs.loss
    assert len(first) == ours.evaluations - 1
    high = [loss >= theirs.max_loss for loss in first]
    before = high.index(True)  # the clock is read before a loss is counted
    assert ratio == before / (theirs.evaluations - 1)
    assert 1 <= before < theirs.evaluations - 1
    assert measuring._as_high(regression)[0] == ratio, "in the next round too"


def test_losses_of_part_of_the_samples_do_not_stop_the_watch(regression):
    regression.level = -1.0
    regression.on(regression.x[:5], regression.y[:5]).gradient(regression.weights)
    assert np.isnan(regression.reached)
    regression.gradient(regression.weights)
    assert regression.reached >= 0


def test_a_box_that_scipy_does_not_enter_says_so(monkeypatch):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(14 * torch.eye(10)[0])  # slopes of 10⁻⁶ where every label is 0
    data = measuring._data("no such data set", 30, CPU)
    data.train.y.zero_()
    monkeypatch.setattr(measuring, "_trained", lambda *_: model)
    row = measuring._box(10, data, epochs=1, rounds=1)
    assert row["what"].endswith("; scipy does not leave w*")
    assert np.isnan(row["ratio"])
    assert row["theirs"] == pytest.approx(0, abs=1e-9)
    assert row["ours"] > 1e-5


def test_a_box_in_which_scipy_comes_higher_says_so(monkeypatch):
    search = measuring.box_sharpness

    def poor(objective, starts=0):
        return search(objective, starts=starts, epsilon=1e-6)

    monkeypatch.setattr(measuring, "box_sharpness", poor)
    monkeypatch.setattr(measuring, "_trained", lambda *_: build("digits-mlp", (1, 28, 28), 10).eval())
    data = measuring._data("no such data set", 30, CPU)
    row = measuring._box(10, data, epochs=1, rounds=1)
    assert row["what"].endswith("; ours ends lower")
    assert np.isnan(row["ratio"])
    assert row["ours"] < row["theirs"]


NAMED = ["network", "method", "B", "precision", "seeds"]
NUMBERS = ["ours_per_s", "plain_per_s", "images_per_s", "plain_images_per_s", "ms", "ratio", "of_peak"]
COLUMNS = [*NAMED, *NUMBERS[:-1], "views", "of_peak", "note"]


@pytest.mark.slow
def test_trainings_are_timed_beside_a_plain_loop_and_the_peak(monkeypatch):
    monkeypatch.setitem(trainings.PEAK_SIZE, "cpu", 512)
    chosen = [
        trainings.Case("ne-f1", 4, updates=2),
        trainings.Case("ne-c1", 2, updates=1),
        trainings.Case("digits-mlp", 5, updates=3, seeds=10),
        trainings.Case("resnet8", 4, updates=1, method="SmoothOut"),
    ]
    table = trainings.bench_training(CPU, rounds=2, chosen=chosen)
    assert list(table) == COLUMNS
    assert list(table["network"]) == ["ne-f1", "ne-c1", "digits-mlp", "resnet8"]
    assert list(table["method"]) == ["NE", "NE", "NE", "SmoothOut"]
    assert list(table["seeds"]) == [1, 1, 10, 1]
    assert list(table["views"].isna()) == [True, True, True, False]
    numbers = table[NUMBERS].to_numpy()
    assert np.isfinite(numbers).all()
    assert (numbers > 0).all()
    assert (table["of_peak"] < 1.5).all()
    assert table.attrs["left_out"] == []
    assert set(table["note"]) == {""}


@pytest.mark.parametrize(
    ("device", "precisions", "side_by_side"),
    [("cpu", {"float32"}, "digits-mlp"), ("cuda", {"float32", "tf32", "bfloat16"}, "ne-f1")],
)
def test_a_cpu_is_asked_for_less_than_a_gpu(device, precisions, side_by_side):
    cases = trainings.cases(torch.device(device))
    alone = [c for c in cases if c.seeds == 1]
    together = [c for c in cases if c.seeds == 10]
    assert [(c.network, c.batch_size) for c in together] == [(side_by_side, 100)]
    assert [c.batch_size for c in alone if c.network == "ne-f1"] == [100, 1000, 5000]
    c1 = {(c.precision, c.batch_size) for c in alone if c.network == "ne-c1"}
    sizes = (100,) if device == "cpu" else (100, 1000, 5000)
    assert c1 == {(p, b) for p in precisions for b in sizes}
    residual = {(c.network, c.batch_size, c.method, c.precision) for c in alone if c.network.startswith("resnet")}
    network, size = ("resnet8", 256) if device == "cpu" else ("resnet44", 2048)
    assert residual == {(network, size, method, p) for method in ("baseline", "SmoothOut") for p in precisions}
    if device == "cuda":
        assert min(c.updates for c in cases) >= 3, "graphs are recorded while warming up"


def test_a_short_bench_of_a_gpu_begins_with_what_says_most():
    cases = trainings.short_cases(CUDA)
    f1 = {(c.batch_size, c.seeds, c.precision) for c in cases if c.network == "ne-f1"}
    assert f1 == set(product((100, 900, 5000), (1, 10), ("float32",)))
    c1 = {(c.batch_size, c.precision) for c in cases if c.network == "ne-c1"}
    assert c1 == set(product((100, 500, 5000), ("float32", "tf32", "bfloat16")))
    resnet = [(c.network, c.batch_size, c.method, c.precision) for c in cases[2:4]]
    assert resnet == [("resnet44", 2048, method, "bfloat16") for method in ("baseline", "SmoothOut")]
    assert len(cases) == 17
    assert min(c.updates for c in cases) >= 3
    assert cases[0] == trainings.Case("ne-f1", 900, cases[0].updates, seeds=10)
    operations = [c.updates * c.batch_size * trainings.flops_per_sample(c.network) for c in cases]
    assert operations[-1] == max(operations)
    assert cases[-1].precision == "float32"


def test_a_short_bench_of_a_cpu_takes_what_a_cpu_can():
    assert trainings.short_cases(CPU) == trainings.cases(CPU)


TINY = [trainings.Case("digits-mlp", b, updates=3, seeds=seeds) for b in (2, 3, 4) for seeds in (1, 2)]


def test_no_case_is_begun_after_the_limit(monkeypatch, capsys):
    now = [100.0]

    def slow(case, device):
        now[0] += 10
        return {"ours": lambda: None, "plain": lambda: None, "peak": lambda: None}

    monkeypatch.setattr(trainings.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(trainings, "_steps", slow)
    table = trainings.bench_training(CPU, rounds=1, chosen=TINY, limit=25)
    begun = table[["B", "seeds"]].to_numpy()
    assert begun.tolist() == [[2, 1], [2, 2], [3, 1]]  # after 0, 10 and 20 seconds
    left_out = [
        "digits-mlp NE B=3 float32, 2 seeds",
        "digits-mlp NE B=4 float32",
        "digits-mlp NE B=4 float32, 2 seeds",
    ]
    assert table.attrs["left_out"] == left_out
    assert capsys.readouterr().out == f"not begun within 25 s: {'; '.join(left_out)}\n"


@pytest.mark.slow
def test_a_case_that_does_not_fit_into_memory_does_not_end_the_bench(monkeypatch):
    monkeypatch.setitem(trainings.PEAK_SIZE, "cpu", 64)
    train_epoch = trainings.Training.train_epoch

    def full(training):
        if training.run.batch_size == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return train_epoch(training)

    monkeypatch.setattr(trainings.Training, "train_epoch", full)
    table = trainings.bench_training(CPU, rounds=1, chosen=TINY)
    assert table["note"].tolist() == ["", "", "out of memory", "out of memory", "", ""]
    full = table["note"] == "out of memory"
    assert table.loc[full, NUMBERS].isna().all(axis=None)
    assert table.loc[~full, NUMBERS].notna().all(axis=None)
    assert table["B"].tolist() == [2, 2, 3, 3, 4, 4]


def test_other_errors_end_the_bench(monkeypatch):
    def broken(case, device):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(trainings, "_steps", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        trainings.bench_training(CPU, rounds=1, chosen=TINY)


def test_a_row_counts_the_updates_of_every_network_side_by_side():
    case = trainings.Case("ne-f1", 100, updates=4, seeds=10)
    times = pd.DataFrame({"ours": [2.0, 20.0, 4.0], "plain": [1.0, 10.0, 2.0], "peak": [0.1, 1.0, 0.2]})
    row = trainings._row(case, times, 1000)
    assert row["ours_per_s"] == pytest.approx(40 / 4)
    assert row["plain_per_s"] == pytest.approx(4 / 2)
    assert row["images_per_s"] == pytest.approx(2 * 100 * 10)
    assert row["plain_images_per_s"] == pytest.approx(2 * 100 * 2)
    assert row["ms"] == pytest.approx(1000)  # the four updates of all ten took 4 s
    assert row["ratio"] == pytest.approx(0.2)
    assert row["of_peak"] == pytest.approx(10 * 200 * trainings.flops_per_sample("ne-f1") / 2e10)


def test_a_row_says_which_part_of_a_step_views_take_beyond_the_images():
    case = trainings.Case("resnet8", 128, updates=4, method="baseline")
    times = pd.DataFrame({"ours": [2.0, 20.0, 4.0], "plain": [1.0, 10.0, 2.0], "peak": 3 * [0.1]})
    times["views"] = [0.5, 5.0, 1.0]
    times["images"] = [0.2, 2.0, 0.4]
    row = trainings._row(case, times, 1000)
    assert row["views"] == pytest.approx(0.15)
    assert row["images_per_s"] == pytest.approx(128), "without NE each image counts once"


def test_a_residual_network_is_timed_by_its_protocol():
    run = trainings.Case("resnet44", 2048, 3, "bfloat16", method="SmoothOut").run
    assert (run.optimizer, run.momentum, run.weight_decay, run.clip) == ("sgd", 0.9, 1e-4, 5.0)
    assert (run.augment, run.noise_batch, run.a, run.precision) == ("crop-flip", 128, 0.0375, "bfloat16")
    assert run.scaled_lr_steps[0] == (0, pytest.approx(0.4))
    assert trainings.Case("resnet44", 2048, 3, method="baseline").run.a == 0


def test_the_readings_are_of_all_samples_in_the_parts_of_a_step(monkeypatch):
    run = replace(trainings.Case("resnet8", 8, 2, method="SmoothOut").run, noise_batch=4)
    x = torch.rand(16, 3, 8, 8)
    y = torch.arange(16)  # so that a label says which image was read
    seen = []

    class Watched(trainings.Graphs):
        def __call__(self, function, *arguments):
            seen.append(super().__call__(function, *arguments))

    monkeypatch.setattr(trainings, "Graphs", Watched)
    for what, reading in trainings._readings(run, x, y).items():
        seen.clear()
        reading()
        assert [len(labels) for _, labels in seen] == [4, 4, 4, 4]
        images = torch.cat([part for part, _ in seen])
        labels = torch.cat([part for _, part in seen])
        assert sorted(labels.tolist()) == list(range(16))
        assert torch.equal(images, x[labels]) == (what == "images")


@pytest.mark.parametrize("network", ["digits-mlp", "ne-c1-quarter"])
def test_the_plain_loop_computes_the_update_of_noise_enhancement(network):
    torch.manual_seed(0)
    shape = (1, 8, 8) if network == "digits-mlp" else (3, 32, 32)
    x, y = torch.rand(12, *shape, dtype=torch.float64), torch.randint(10, (12,))
    plain, ours = (build(network, shape, 10, minibatches=m).double() for m in (1, 2))
    steps.two_passes(plain, (x[:6], y[:6]), (x[6:], y[6:]), 1.5)
    noise_enhanced_loss(F.cross_entropy(ours(x), y, reduction="none"), 1.5).backward()
    for a, b in zip(plain.parameters(), ours.parameters(), strict=True):
        assert a.grad.abs().max() > 0
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-10)


def test_the_plain_loop_trains_on_two_shuffles_of_all_samples(monkeypatch):
    x = torch.rand(12, 1, 8, 8)
    y = torch.arange(12) % 10
    seen = ([], [])  # minibatches (images, labels) of either stream

    def watched(net, first, second, alpha):
        assert alpha == 1.5
        seen[0].append(first)
        seen[1].append(second)

    monkeypatch.setattr(plain, "two_passes", watched)
    run = trainings.Case("digits-mlp", 4, updates=3).run
    plain.noise_enhanced_loop(run, x, y)()
    orders = []
    for stream in seen:
        assert len(stream) == 3
        images = torch.cat([batch[0] for batch in stream])
        labels = torch.cat([batch[1] for batch in stream])
        order = [int(torch.nonzero((x == image).all((1, 2, 3)))) for image in images]
        assert sorted(order) == list(range(12))
        assert torch.equal(labels, y[order])
        orders.append(order)
    assert orders[0] != orders[1]


def test_the_plain_loop_moves_its_weights(monkeypatch):
    net = build("digits-mlp", (1, 8, 8), 10)
    monkeypatch.setattr(plain, "build", lambda *_, **__: net)
    run = trainings.Case("digits-mlp", 4, updates=3).run
    epoch = plain.noise_enhanced_loop(run, torch.rand(12, 1, 8, 8), torch.arange(12) % 10)
    before = [p.detach().clone() for p in net.parameters()]
    epoch()
    for p, old in zip(net.parameters(), before, strict=True):
        assert not torch.equal(p, old)


@pytest.mark.parametrize("clip", [1.0, 1e6])
def test_the_plain_loop_of_a_residual_network_makes_our_updates(clip, monkeypatch):
    """Three of them, of the same samples in the same order: ghost batches, weight decay, clipping and momentum."""
    given = {"noise_batch": 6, "ghost_batch": 6, "lr": 0.01, "clip": clip}
    run = replace(trainings.Case("resnet8", 12, 1, method="baseline").run, **given)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 3, 8, 8, generator=generator)
    y = torch.arange(12) % 10
    ours = TrainingStep([run], Data("random", "random", tuple("0123456789"), Split(x, y), Split(x, y)))
    ours.rates.set_lr(run.scaled_lr_steps[0][1])
    net = build("resnet8", (3, 8, 8), 10)
    net.load_state_dict(ours.model.state_dict())
    before = [p.detach().clone() for p in net.parameters()]
    monkeypatch.setattr(plain, "build", lambda *_, **__: net)
    monkeypatch.setattr(plain, "crop_and_flip", lambda x: x)
    monkeypatch.setattr(plain.torch, "randperm", lambda n, device: torch.arange(n, device=device))
    epoch = plain.ghost_batch_loop(run, x, y)
    middle = VIEWS * torch.arange(12) + 2 * (PLACES * PADDING + PADDING)  # the images themselves
    for _ in range(3):
        epoch()
        ours(middle.view(1, 1, 12))
    for p, q, old in zip(net.parameters(), ours.model.parameters(), before, strict=True):
        apart = (p - q).norm()
        assert apart < 1e-3 * (q - old).norm()


def test_the_plain_loop_has_noise_of_its_own_for_each_ghost_batch(monkeypatch):
    run = replace(trainings.Case("resnet8", 12, 1, method="SmoothOut").run, noise_batch=4)
    perturbed = []

    def watched(net, backward):
        steps.naive_smoothout(net, backward)
        perturbed.append([p.grad.abs().max() for p in net.parameters()])

    monkeypatch.setattr(plain, "naive_smoothout", watched)
    plain.ghost_batch_loop(run, torch.rand(24, 3, 8, 8), torch.arange(24) % 10)()
    assert len(perturbed) == 2 * 3  # updates, parts of each
    assert torch.tensor(perturbed).min() > 0


def test_the_plain_crops_are_views_and_all_kinds_of_them():
    torch.manual_seed(0)
    x = torch.rand(3, 2, 6, 5)
    split = Split(x, torch.arange(3))
    views, _ = Views(split, (0.0,))[torch.arange(3 * VIEWS).view(3, VIEWS)]
    found = []
    for _ in range(500):
        same = (views == plain.crop_and_flip(x)[:, None]).all(-1).all(-1).all(-1)
        assert (same.sum(1) == 1).all()
        found.append(same.int().argmax(1))
    drawn = torch.stack(found)
    for views_of_image in drawn.T:
        assert len(views_of_image.unique()) > 0.9 * VIEWS
    assert len((drawn % 2).unique(dim=0)) == 2**3, "each image is mirrored or not for itself"


def test_operations_are_counted_as_by_hand():
    f1 = 784 * 500 + 6 * 500 * 500 + 500 * 10
    # side of the images, channels before and in the stack
    stacks = ((32, 3, 64), (16, 64, 128), (8, 128, 256))
    c1 = 256 * 4 * 4 * 10
    for side, before, width in stacks:
        c1 += 9 * side**2 * (before + 2 * width) * width
    first = 9 * 32**2 * 3 * 16
    resnet44 = first + 64 * 10
    for side, width, alike in ((32, 16, 14), (16, 32, 13), (8, 64, 13)):
        resnet44 += alike * 9 * side**2 * width**2
    for side, before, width in ((16, 16, 32), (8, 32, 64)):
        resnet44 += (9 + 1) * side**2 * before * width  # with the shortcut's
    resnet44 = 6 * resnet44 - 2 * first
    f1 = 6 * f1 - 2 * 784 * 500  # no gradient of the images
    c1 = 6 * c1 - 2 * 9 * 32**2 * 3 * 64
    assert f1 == pytest.approx(10.6e6, rel=1e-3)
    assert c1 == pytest.approx(1593e6, rel=1e-3)
    assert trainings.flops_per_sample("ne-f1") == pytest.approx(f1)
    assert trainings.flops_per_sample("ne-c1") == pytest.approx(c1)
    assert trainings.flops_per_sample("resnet44") == pytest.approx(resnet44)


SMALL = accumulated.Case("resnet8", ghost_batches=3, images=4, pixels=8)


@pytest.fixture
def ghost_batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(1000, (3, 4), generator=generator)
    return list(zip(images, labels, strict=True))


def loss_and_gradient(net, batches):
    """Mean over the batches, in one graph and without leaving anything in the network."""
    losses = [F.cross_entropy(net(2 * images.float() / 255 - 1), labels) for images, labels in batches]
    loss = torch.stack(losses).mean()
    return loss.detach(), torch.autograd.grad(loss, list(net.parameters()))


@torch.no_grad()
def momentum_step(net, velocities, gradients):
    """v ← μ v + g, w ← w − η v."""
    for p, v, g in zip(net.parameters(), velocities, gradients, strict=True):
        v.mul_(0.9).add_(g)
        p.sub_(0.01 * v)


def assert_moved_alike(net, by_hand, before):
    for p, q, old in zip(net.parameters(), by_hand.parameters(), before.parameters(), strict=True):
        assert (q - old).norm() > 0
        assert (p - q).norm() < 1e-3 * (q - old).norm()


def test_an_accumulated_update_is_a_step_along_the_mean_gradient(ghost_batches):
    net = accumulated.network(SMALL, CPU)
    before, by_hand = deepcopy(net), deepcopy(net)
    velocities = [torch.zeros_like(p) for p in net.parameters()]
    update = accumulated.accumulated(net, ghost_batches, 3)
    for _ in range(2):
        loss, gradients = loss_and_gradient(by_hand, ghost_batches)
        torch.testing.assert_close(update(), loss)
        momentum_step(by_hand, velocities, gradients)
    assert_moved_alike(net, by_hand, before)


@pytest.mark.parametrize("adaptive", [False, True])
def test_each_ghost_batch_has_noise_of_its_own_and_the_step_is_from_the_clean_weights(adaptive, ghost_batches):
    net = accumulated.network(SMALL, CPU)
    before, by_hand = deepcopy(net), deepcopy(net)
    noisy = []

    def keep_copy(net, _):
        copy = deepcopy(before)
        weights = [p.detach() for p in net.parameters()]
        torch.nn.utils.vector_to_parameters(torch.cat([w.flatten() for w in weights]), copy.parameters())
        noisy.append(copy)

    handle = net.register_forward_pre_hook(keep_copy)
    loss = accumulated.accumulated(net, ghost_batches, 3, SmoothOut(net, 0.1, adaptive=adaptive))()
    handle.remove()
    assert len(noisy) == 3
    for first, second in combinations([before, *noisy], 2):
        assert not torch.equal(first[0].weight, second[0].weight)
    parts = [loss_and_gradient(copy, [batch]) for copy, batch in zip(noisy, ghost_batches, strict=True)]
    torch.testing.assert_close(loss, torch.stack([part for part, _ in parts]).mean())
    gradients = [torch.stack(of_parts).mean(0) for of_parts in zip(*(g for _, g in parts), strict=True)]
    momentum_step(by_hand, [torch.zeros_like(p) for p in net.parameters()], gradients)
    assert_moved_alike(net, by_hand, before)


def test_the_reference_loop_makes_a_step_for_each_ghost_batch(ghost_batches):
    net = accumulated.network(SMALL, CPU)
    before, by_hand = deepcopy(net), deepcopy(net)
    velocities = [torch.zeros_like(p) for p in net.parameters()]
    for batch in ghost_batches:
        _, gradients = loss_and_gradient(by_hand, [batch])
        momentum_step(by_hand, velocities, gradients)
    accumulated.reference(net, ghost_batches)()
    assert_moved_alike(net, by_hand, before)


def test_the_noise_of_an_update_is_drawn_alone_as_often_as_in_one():
    smooth = SmoothOut(accumulated.network(SMALL, CPU), 0.1)
    before = smooth.flat.work.clone()
    accumulated.noise_alone(smooth, 3)()
    assert smooth.draws == 3
    assert not smooth.noisy
    assert torch.equal(smooth.flat.work, before)


def test_ways_differ_in_their_noise_alone(monkeypatch):
    noises = []

    class Watched(SmoothOut):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            noises.append(self)

    networks = []

    def build_watched(*arguments, **options):
        networks.append(build(*arguments, **options))
        return networks[-1]

    monkeypatch.setattr(accumulated, "SmoothOut", Watched)
    monkeypatch.setattr(accumulated, "build", build_watched)
    ways = accumulated.ways(SMALL, CPU)
    smooth, adaptive = noises
    assert (smooth.a, smooth.adaptive, adaptive.a, adaptive.adaptive) == (0.0375, False, 0.15, True)
    assert len(networks) == 4
    for net in networks:
        torch.testing.assert_close(net.state_dict(), networks[0].state_dict(), rtol=0, atol=0)
    before = networks[0][0].weight.detach().clone()
    draws = {}
    for name, way in ways.items():
        already = smooth.draws, adaptive.draws
        way()
        draws[name] = (smooth.draws - already[0], adaptive.draws - already[1])
    assert draws == {
        "reference": (0, 0),
        "accumulated": (0, 0),
        "SmoothOut": (3, 0),
        "AdaSmoothOut": (0, 3),
        "noise of SmoothOut": (3, 0),
        "noise of AdaSmoothOut": (0, 3),
    }
    for net in networks:
        assert not torch.equal(net[0].weight, before), "every network is trained by its way"


def test_ghost_batches_are_cut_anew_from_a_small_pool(monkeypatch):
    monkeypatch.setattr(accumulated, "POOL", 5)
    torch.manual_seed(0)
    batches = accumulated.ghost_batches(SMALL, CPU)
    updates = []
    for _ in range(2):
        images, labels = zip(*batches, strict=True)
        assert [x.shape for x in images] == 3 * [(4, 3, 8, 8)]
        updates.append(torch.cat(labels))
        assert images[0].dtype == torch.uint8
        assert accumulated._inputs(images[0]).abs().max() <= 1
        pairs = {(bytes(x.flatten().tolist()), int(y)) for x, y in zip(torch.cat(images), updates[-1], strict=True)}
        assert len({image for image, _ in pairs}) == len(pairs) <= 5, "an image has one label"
    assert not torch.equal(*updates)


TIMES = pd.DataFrame({name: [1.0, 2.0] for pair in accumulated._RATIOS.values() for name in pair})
COLUMNS_OF_ACCUMULATED = ["network", "K", "images", "pixels", "precision", "what", "ratio", "low", "high"]


def test_accumulated_updates_have_a_row_a_ratio_with_their_sizes():
    chosen = [SMALL, replace(SMALL, ghost_batches=5, images=2)]
    table = accumulated.bench_accumulated(CPU, rounds=2, chosen=chosen)
    assert list(table) == COLUMNS_OF_ACCUMULATED
    whats = list(accumulated._RATIOS)
    assert list(table["what"]) == 2 * whats
    sizes = table[["network", "K", "images", "pixels", "precision"]].drop_duplicates()
    assert sizes.to_numpy().tolist() == [["resnet8", 3, 4, 8, "float32"], ["resnet8", 5, 2, 8, "float32"]]
    assert (table["low"] > 0).all()
    assert (table["low"] <= table["ratio"]).all()
    assert (table["ratio"] <= table["high"]).all()


def test_few_ghost_batches_are_warmed_up_for(monkeypatch):
    seen = []
    monkeypatch.setattr(accumulated, "interleaved", lambda ways, device, rounds, warm_up: seen.append(warm_up) or TIMES)
    monkeypatch.setattr(accumulated, "ways", lambda case, device: {})
    chosen = [replace(SMALL, ghost_batches=k) for k in (8, 128)]
    accumulated.bench_accumulated(CPU, chosen=chosen)
    assert seen == [1, 0]


def test_ratios_of_accumulated_updates_are_medians_over_rounds():
    drift = pd.Series([1.0, 10.0, 2.0])
    times = pd.DataFrame({"reference": drift, "accumulated": 0.8 * drift, "SmoothOut": 0.9 * drift})
    times["AdaSmoothOut"] = [1.0, 10.0, 1.8]
    times["noise of SmoothOut"] = 0.09 * drift
    times["noise of AdaSmoothOut"] = [0.1, 2.0, 0.54]
    rows = {row["what"]: row for row in accumulated.ratios_of(times, accumulated._RATIOS)}
    assert rows["accumulated ÷ reference"]["ratio"] == pytest.approx(0.8)
    assert rows["SmoothOut ÷ accumulated"]["ratio"] == pytest.approx(1.125)
    assert rows["AdaSmoothOut ÷ accumulated"]["ratio"] == pytest.approx(1.25)
    assert rows["noise of SmoothOut ÷ its update"]["ratio"] == pytest.approx(0.1)
    share = rows["noise of AdaSmoothOut ÷ its update"]
    assert [share["low"], share["ratio"], share["high"]] == pytest.approx([0.15, 0.2, 0.25])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_networks_accumulate_few_and_many_ghost_batches(device):
    cases = accumulated.cases(torch.device(device))
    assert [(c.network, c.ghost_batches) for c in cases] == list(product(("alexnet", "resnet18"), (8, 128)))
    if device == "cuda":  # the published sizes
        assert {(c.images, c.pixels) for c in cases} == {(128, 224)}
        assert cases[1].ghost_batches * cases[1].images == 16_384
    else:
        assert max(c.ghost_batches * c.images for c in cases) <= 512


@pytest.mark.slow
def test_the_networks_of_the_paper_are_accumulated_on_a_cpu():
    chosen = [replace(case, ghost_batches=2) for case in accumulated.cases(CPU)[1::2]]
    table = accumulated.bench_accumulated(CPU, rounds=1, chosen=chosen)
    assert table["network"].unique().tolist() == ["alexnet", "resnet18"]
    assert np.isfinite(table[["ratio", "low", "high"]].to_numpy()).all()


def test_the_accumulated_bench_prints_its_updates_alone(capsys, monkeypatch):
    monkeypatch.setattr(accumulated, "cases", lambda device: [SMALL])
    seen = []
    monkeypatch.setattr(accumulated, "interleaved", lambda ways, device, rounds, warm_up: seen.append(rounds) or TIMES)
    shell.main(["--accumulated", "--device", "cpu"])
    shell.main(["--accumulated", "--device", "cpu", "--rounds", "7"])
    assert seen == [3, 7]
    printed = capsys.readouterr().out
    assert printed.count("AdaSmoothOut ÷ accumulated") == 2
    assert printed.count("1.000") == 2 * 3 * 5
    assert "training:" not in printed


def test_the_short_bench_prints_its_trainings(capsys, monkeypatch):
    monkeypatch.setitem(trainings.PEAK_SIZE, "cpu", 256)
    chosen = [trainings.Case("digits-mlp", 50, updates=3)]
    monkeypatch.setattr(shell, "short_cases", lambda device: chosen)
    shell.main(["--short", "--device", "cpu"])
    assert "digits-mlp" in capsys.readouterr().out


def test_the_whole_bench_has_every_part(capsys, monkeypatch):
    called = {}

    def stand_in(name):
        def part(device, **options):
            called[name] = options
            return pd.DataFrame({"what": [f"table of {name}"]})

        return part

    for name in ("bench", "bench_measures", "bench_training"):
        monkeypatch.setattr(shell, name, stand_in(name))
    shell.main(["--device", "cpu"])
    assert called == {"bench": {"rounds": 15}, "bench_measures": {}, "bench_training": {}}
    printed = capsys.readouterr().out
    assert all(f"table of {name}\n" in printed for name in called)
    shell.main(["--device", "cpu", "--rounds", "2"])
    assert called["bench"] == {"rounds": 2}


@pytest.mark.parametrize("options", [["--device", "tpu"], ["--rounds", "0"], ["--short", "--accumulated"]])
def test_a_mistake_on_the_command_line_is_one_sentence(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        shell.main(options)
    assert options[1] in capsys.readouterr().err.splitlines()[-1]
