"""The training loop against loops written out by hand, its protocol, and its resuming."""

import math
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from nb_lib import papers
from nb_lib.errors import InputError
from nb_lib.lab import networks
from nb_lib.lab.augmentation import draw_views
from nb_lib.lab.data import Data, Split, epoch_indices
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import seed_for
from nb_lib.lab.store import RunStore, frame
from nb_lib.lab.sweeps import sweep
from nb_lib.lab.training import Training, load_for, side_by_side, train
from nb_lib.noise_enhancement import covariance_factor
from nb_lib.smoothout import SmoothOut

SMALL = Run(train_size=250, batch_size=60, epochs=4)  # five updates an epoch, the last of 10 samples


def finished(run: Run) -> Training:
    training = Training([run], load_for(run))
    training.finish(progress=False)
    return training


def weights(training: Training) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def model_of(run: Run, data, minibatches: int = 1) -> torch.nn.Module:
    return networks.build(
        run.network, data.shape, len(data.classes), seed=seed_for(run, "weights"), minibatches=minibatches
    )


def by_hand(run: Run, gradients, model: torch.nn.Module | None = None) -> torch.Tensor:
    """Ordinary PyTorch: model, shuffled epochs, optimizer; `gradients(model, x, y)` fills in .grad."""
    data = load_for(run)
    x, y = data.train.x, data.train.y
    n = len(y)
    model = model or model_of(run, data)
    optimizer = new_optimizer(run, model)
    generator = torch.Generator().manual_seed(seed_for(run, "order"))
    streams = 2 if run.alpha > 1 else 1
    for epoch in range(run.epochs):
        if run.fresh_optimizer:
            optimizer = new_optimizer(run, model)
        [group] = optimizer.param_groups
        group["lr"] = rate_in(run, epoch)
        [shuffle] = epoch_indices(n, n, streams=streams, generator=generator)
        augmented = run.augment == "crop-flip"
        views = draw_views(shuffle, generator) if augmented else shuffle
        batches = [part.split(run.batch_size, dim=1) for part in (shuffle, views)]
        for index, views_of_batch in zip(*batches, strict=True):
            images = seen(x, views_of_batch) if augmented else x[index]
            optimizer.zero_grad()
            gradients(model, images, y[index])
            if run.clip:
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip)
                assert norm > run.clip, "this one would not be clipped"
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def new_optimizer(run: Run, model: torch.nn.Module) -> torch.optim.Optimizer:
    parameters = model.parameters()
    if run.optimizer == "adam":
        return torch.optim.Adam(parameters, weight_decay=run.weight_decay, fused=True)
    return torch.optim.SGD(parameters, momentum=run.momentum, weight_decay=run.weight_decay, fused=True)


def rate_in(run: Run, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: of the last drop before it, times (B / reference)^power."""
    rate = run.lr
    for start, lower in run.lr_steps:
        if epoch >= start:
            rate = lower
    powers = {"none": 0, "sqrt": 0.5, "linear": 1}
    power = powers[run.lr_scaling]
    return rate * (run.batch_size / run.lr_reference) ** power


def seen(x: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Images [..., C, H, W] of the views [...], one after the other: padded, cropped, mirrored.

    Their channels are innermost, which decides how convolutions round.
    """
    height, width = x.shape[-2:]
    images = []
    for number in views.flatten().tolist():
        image, view = divmod(number, 162)
        place, mirrored = divmod(view, 2)
        top, left = divmod(place, 9)
        padded = F.pad(x[image], (4, 4, 4, 4), value=127 / 255)
        crop = padded[:, top : top + height, left : left + width]
        if mirrored:
            crop = crop.flip(-1)
        images.append(crop.movedim(0, -1))
    return torch.stack(images).unflatten(0, views.shape).movedim(-1, -3)


def plainly_normalized(run: Run) -> torch.nn.Module:
    """The run's network, with torch's own batch normalization in the place of that of ghost batches."""
    model = model_of(run, load_for(run))
    for name, layer in list(model.named_modules()):
        if isinstance(layer, networks.GhostBatchNorm):
            plain = torch.nn.BatchNorm2d(layer.num_features)
            model.set_submodule(name, plain)
    return model


def plain_gradients(model, x, y) -> None:
    F.cross_entropy(model(x[0]), y[0]).backward()


@pytest.mark.parametrize(
    "method", [{"optimizer": "sgd", "lr": 0.1}, {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}, {}]
)
def test_alpha_1_and_a_0_are_bitwise_ordinary_sgd(method):
    run = replace(SMALL, alpha=1, a=0, **method)
    plain = by_hand(run, lambda model, x, y: F.cross_entropy(model(x[0]), y[0]).backward())
    assert torch.equal(weights(finished(run)), plain)


def test_noise_enhancement_is_equation_6_in_two_passes():
    run = replace(SMALL, alpha=1.5, optimizer="sgd", lr=0.1)

    def two_passes(model, x, y):
        for k, coefficient in enumerate((run.alpha, 1 - run.alpha)):
            (coefficient * F.cross_entropy(model(x[k]), y[k])).backward()

    torch.testing.assert_close(weights(finished(run)), by_hand(run, two_passes), rtol=1e-4, atol=1e-5)


def test_a_smoothout_run_is_algorithm_1():
    run = replace(SMALL, a=0.1, optimizer="sgd", lr=0.1, epochs=2)
    data = load_for(run)
    model = model_of(run, data)
    smooth = SmoothOut(model, run.a, seed=seed_for(run, "noise"))
    generator = torch.Generator().manual_seed(seed_for(run, "order"))
    for _ in range(run.epochs):
        for index in epoch_indices(len(data.train), run.batch_size, generator=generator):
            clean = [p.detach().clone() for p in model.parameters()]
            with smooth.perturbed():
                gradients = torch.autograd.grad(
                    F.cross_entropy(model(data.train.x[index[0]]), data.train.y[index[0]]),
                    list(model.parameters()),
                )
            with torch.no_grad():
                for p, w, g in zip(model.parameters(), clean, gradients, strict=True):
                    p.copy_(w - run.lr * g)
    explicit = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights(finished(run)), explicit, rtol=1e-6, atol=1e-7)


# ResNet44's protocol in the small: 100 digits in batches of 40, 40 and 20
RESNET = Run(
    network="resnet8",
    train_size=100,
    augment="crop-flip",
    batch_size=40,
    optimizer="sgd",
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    lr_scaling="sqrt",
    lr_steps=((1, 0.01), (3, 0.001)),
    clip=0.3,
    epochs=4,
)


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"lr_scaling": "linear", "lr_reference": 20},
        {"fresh_optimizer": True},
        {"optimizer": "adam", "lr": 0.01, "momentum": 0.0, "fresh_optimizer": True},
        {"augment": "none"},
    ],
    ids=["published", "linear", "fresh", "fresh adam", "not augmented"],
)
def test_residual_networks_train_bitwise_as_a_plain_loop(option):
    run = replace(RESNET, **option)
    plain = by_hand(run, plain_gradients, plainly_normalized(run))
    assert torch.equal(weights(finished(run)), plain)


@pytest.mark.parametrize("method", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adam"}])
def test_an_optimizer_remembers_unless_it_is_made_anew_every_epoch(method):
    run = replace(SMALL, lr=0.01, epochs=3, **method)
    fresh = replace(run, fresh_optimizer=True)
    for each in (run, fresh):
        assert torch.equal(weights(finished(each)), by_hand(each, plain_gradients))
    assert not torch.allclose(weights(finished(run)), weights(finished(fresh)), rtol=1e-3)
    first, of_fresh = (finished(replace(each, epochs=1)) for each in (run, fresh))
    assert torch.equal(weights(first), weights(of_fresh)), "the first epoch is fresh for both"


@pytest.mark.parametrize("noise", [{"a": 0.02}, {"a": 0.15, "adaptive": True, "distribution": "normal"}])
def test_noise_per_ghost_batch_is_the_authors_loop_with_momentum_clipping_and_augmentation(noise):
    """Each batch in B // size chunks: new noise, a forward and a backward pass for each, then one clipped step."""
    run = replace(RESNET, noise_batch=16, ghost_batch=16, cutting="even", **noise)
    model = plainly_normalized(run)
    smooth = SmoothOut(model, seed=seed_for(run, "noise"), **noise)

    def chunk_by_chunk(model, x, y):
        [images], [labels] = x, y
        chunks = 40 // 16
        for some, of_some in zip(images.chunk(chunks), labels.chunk(chunks), strict=True):
            share = len(some) / len(images)
            with smooth.perturbed():
                loss = F.cross_entropy(model(some), of_some)
                (loss * share).backward()

    assert torch.equal(weights(finished(run)), by_hand(run, chunk_by_chunk, model))


def test_noise_enhancement_of_augmented_ghost_batches_is_equation_6_group_by_group():
    run = replace(RESNET, alpha=1.5, ghost_batch=16, lr_steps=((1, 0.01),), epochs=2)
    model = plainly_normalized(run)

    def group_by_group(model, x, y):
        for images, labels, coefficient in zip(x, y, (1.5, -0.5), strict=True):
            for some, of_some in zip(images.split(16), labels.split(16), strict=True):
                share = coefficient * len(some) / len(images)
                loss = F.cross_entropy(model(some), of_some)
                (share * loss).backward()

    start = weights(Training([run], load_for(run)))
    training = finished(run)
    by_groups = by_hand(run, group_by_group, model)
    apart = weights(training) - by_groups
    way = by_groups - start
    assert apart.norm() < 1e-4 * way.norm()
    statistics = dict(training.model.named_buffers())
    for name, expected in model.named_buffers():
        torch.testing.assert_close(statistics[name], expected, rtol=1e-3, atol=1e-5)


def test_noise_per_ghost_batch_averages_over_as_many_draws_and_keeps_the_mean_gradient():
    run = replace(SMALL, a=1e-9, optimizer="sgd", lr=0.1)  # so small that only the chunking can matter
    chunked = replace(run, noise_batch=16)
    torch.testing.assert_close(weights(finished(chunked)), weights(finished(run)), rtol=1e-4, atol=1e-5)
    training = Training([replace(chunked, a=0.1)], load_for(run))
    draws = []
    smooth = training.step.smooth
    smooth._next_odd = lambda original=smooth._next_odd: draws.append(1) or original()
    training.train_epoch()
    assert len(draws) == 4 * math.ceil(60 / 16) + 1  # four batches of 60 and one of 10


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("noisy", [True, False])
def test_parts_are_cut_as_in_the_authors_code(noisy, streams):
    """Their loop: each batch into B // size chunks, a forward and backward pass of its own for each."""
    run = Run(network="smoothout-f1", train_size=250, batch_size=60, ghost_batch=16, noise_batch=16, cutting="even")
    run = replace(run, a=0.1 * noisy, alpha=float(streams))
    training = Training([run], load_for(run))
    sizes = []  # of what is normalized together, by the first layer
    norm = next(m for m in training.model.modules() if isinstance(m, networks.GhostBatchNorm))
    forward = torch.nn.modules.batchnorm._BatchNorm.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.modules.batchnorm._BatchNorm,
            "forward",
            lambda self, x: (self is norm and sizes.append(len(x))) or forward(self, x),
        )
        training.train_epoch()
    whole, last = ([len(part) for part in torch.arange(n).chunk(60 // 16)] for n in (60, 10))
    assert (whole, last) == ([20, 20, 20], [4, 4, 2])
    once = [size for batch in (4 * [whole], [last]) for parts in batch for size in parts]
    if noisy or streams == 1:  # a part at a time: both minibatches of the part, then the next part
        assert sizes == [size for size in once for _ in range(streams)]
    else:  # all parts of one minibatch, then of the other, in one pass
        assert sizes == [size for batch in (4 * [whole], [last]) for parts in batch for size in 2 * parts]


@pytest.mark.parametrize(
    "method",
    [
        {"alpha": 1.5},
        {"a": 0.1},
        {"a": 0.2, "adaptive": True, "distribution": "normal"},
        {"alpha": 2, "a": 0.05, "noise_batch": 16},
        {"network": "smoothout-f1", "a": 0.03, "batch_size": 125},
        {"network": "smoothout-c1", "batch_size": 125, "epochs": 2},  # dropout
    ],
)
def test_a_seed_gives_the_same_bits_and_another_seed_others(method):
    run = replace(SMALL, **{"epochs": 3, **method})
    first = weights(finished(run))
    torch.manual_seed(1234)  # the global generator must not matter
    before = torch.get_rng_state()
    assert torch.equal(weights(finished(run)), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(weights(finished(replace(run, seed=1))), first)


RESIDUAL = {"network": "resnet8", "augment": "crop-flip", "optimizer": "sgd", "lr": 0.05, "train_size": 120}


@pytest.mark.parametrize(
    "method",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {"alpha": 1.5, "halve_at": 2.2},
        {"a": 0.1},
        {"a": 0.1, "adaptive": True},
        {"network": "smoothout-c1", "batch_size": 125, "a": 0.02},
        {"optimizer": "adam", "fresh_optimizer": True},
        {**RESIDUAL, "momentum": 0.9, "clip": 5.0},
        {**RESIDUAL, "momentum": 0.9, "fresh_optimizer": True, "a": 0.02, "noise_batch": 30},
        {**RESIDUAL, "momentum": 0.5, "fresh_optimizer": True, "alpha": 1.5, "a": 0.2, "adaptive": True},
    ],
)
def test_resuming_from_a_checkpoint_is_bitwise_an_uninterrupted_run(method, tmp_path, monkeypatch):
    run = replace(SMALL, **{"epochs": 5, **method})
    whole = finished(run)

    class Killed(Exception):
        pass

    def killed_after(epochs):
        def train_epoch(self, original=Training.train_epoch):
            if self.epoch == epochs:
                raise Killed
            return original(self)

        return train_epoch

    path = tmp_path / "state"
    for epochs in (2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(Training, "train_epoch", killed_after(epochs))
            with pytest.raises(Killed):
                Training([run], load_for(run)).finish(checkpoint=path, progress=False, every=0)
    resumed = Training([run], load_for(run))
    [record] = resumed.finish(checkpoint=path, progress=False)
    assert resumed.epoch == 5
    assert torch.equal(weights(resumed), weights(whole))
    assert record.curve == whole.curves[0]
    assert not path.exists()


@pytest.mark.parametrize("noise", [{}, {"a": 0.05}])
@pytest.mark.parametrize("chosen", [[0, 2], [1]])
def test_some_of_the_runs_side_by_side_go_on_as_they_would_have(chosen, noise, tmp_path):
    run = replace(SMALL, epochs=8, optimizer="sgd", lr=0.1, momentum=0.5, halve_at=2.0, **noise)
    runs, data = [replace(run, seed=seed) for seed in range(3)], load_for(run)
    together = Training(runs, data)
    for _ in range(5):
        together.train_epoch()
    torch.save(together.state_dict(), tmp_path / "state")
    some = Training([runs[k] for k in chosen], data)
    some.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for training in (together, some):
        training.finish(progress=False)
    for mine, k in enumerate(chosen):
        assert some.curves[mine][:2] == together.curves[k][:2]  # what was looked at before
        if not noise:  # they share one draw of it, which is another for other networks
            losses = ([point["loss"] for point in curve] for curve in (some.curves[mine], together.curves[k]))
            assert next(losses) == pytest.approx(next(losses), rel=1e-4)
            for p, q in zip(some.member(mine).parameters(), together.member(k).parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_another_kind_of_device_is_refused_in_one_sentence():
    training = Training([SMALL], load_for(SMALL))
    state = training.state_dict()
    assert state["device"] == "cpu"
    with pytest.raises(InputError, match="made with device 'cuda', whose random numbers 'cpu' cannot go on with"):
        training.load_state_dict({**state, "device": "cuda"})
    training.load_state_dict({name: value for name, value in state.items() if name != "device"})  # an older one


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "state"
    training = Training([SMALL], load_for(SMALL))
    torch.save(training.state_dict(), path)
    with pytest.raises(InputError, match="another run"):
        Training([replace(SMALL, seed=1)], load_for(SMALL)).finish(checkpoint=path, progress=False)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a checkpoint, or not a whole one: move it elsewhere"):
        training.finish(checkpoint=path, progress=False)


# ------------------------------------------------------------------------------------------------------- protocol


def test_the_learning_rate_is_halved_once_and_training_stops_below_the_second_threshold():
    run = Run(train_size=800, batch_size=80, halve_at=0.2, stop_below=0.05, epochs=200, lr=3e-3)
    record = train(run, progress=False)
    losses = [point["loss"] for point in record.curve]
    rates = [point["lr"] for point in record.curve]
    first = next(i for i, loss in enumerate(losses) if loss <= 0.2)
    assert rates == [3e-3] * (first + 1) + [1.5e-3] * (len(rates) - first - 1)
    assert record.status == "converged"
    assert losses[-1] < 0.05 <= min(losses[:-1])
    assert record.updates == 10 * record.epochs == 10 * len(losses)
    assert record.samples == 800 * record.epochs


def test_noise_enhancement_counts_one_update_and_two_minibatches():
    record = train(replace(SMALL, alpha=2), progress=False)
    assert (record.updates, record.samples) == (4 * 5, 4 * 2 * 250)


def test_the_judged_loss_is_the_mean_over_the_epoch_of_the_first_minibatches_losses():
    run = replace(SMALL, alpha=3, optimizer="sgd", lr=1e-12, epochs=1)  # weights all but fixed
    training = finished(run)
    loss, _ = training.evaluate(training.data.train)
    assert training.curves[0][0]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_runs_end_as_out_of_epochs_finished_or_diverged(capsys):
    assert train(replace(SMALL, stop_below=1e-9), progress=False).status == "out of epochs"
    assert train(SMALL, progress=False).status == "finished"
    diverged = train(replace(SMALL, optimizer="sgd", lr=1e9, epochs=50), progress=False)
    assert diverged.status == "diverged"
    assert re.search(r"seed=0 diverged in epoch \d+: its loss is not finite", capsys.readouterr().err)
    assert diverged.epochs < 50
    assert "null" in diverged.to_json()  # NaN losses survive as JSON


def test_learning_rates_follow_the_epoch_schedule_and_the_batch_scaling():
    run = replace(SMALL, train_size=800, lr=0.1, lr_steps=((1, 0.01), (3, 0.5)), lr_scaling="sqrt", lr_reference=15)
    rates = [point["lr"] for point in train(run, progress=False).curve]
    assert rates == pytest.approx([0.2, 0.02, 0.02, 1.0])
    assert replace(run, lr_scaling="linear").scaled_lr_steps[0] == (0, pytest.approx(0.4))


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
@pytest.mark.parametrize("times", [1, 2], ids=["", "longer"])
def test_every_update_is_taken_with_the_scaled_rate_of_its_epoch(scaling, factor, times):
    steps = ((times, 0.01), (2 * times, 0.001), (3 * times, 1e-4))
    scaled = {} if scaling == "none" else {"lr_scaling": scaling, "lr_reference": 15}
    run = replace(SMALL, optimizer="sgd", lr=0.1, lr_steps=steps, epochs=4 * times, **scaled)
    training = Training([run], load_for(run))
    taken = []

    def note(optimizer, *_):
        [group] = optimizer.param_groups
        taken.append(group["lr"])

    training.step.optimizer.register_step_post_hook(note)
    [record] = training.finish(progress=False)
    updates = 5 * times  # at each rate
    expected = [factor * rate for rate in (0.1, 0.01, 0.001, 1e-4) for _ in range(updates)]
    assert taken == pytest.approx(expected)
    for epoch, rate in run.scaled_lr_steps:
        assert taken[5 * epoch] == rate
    for point in record.curve:
        last = 5 * point["epoch"] - 1
        assert point["lr"] == taken[last]


def test_training_longer_of_table_2_doubles_the_epochs_of_every_rate():
    grid = papers.grid("smoothout-table2-cifar100", seeds=1)
    by_length = {run.epochs: run for run in grid if run.lr_scaling == "sqrt"}
    short, long = by_length[200], by_length[400]
    for epoch in range(200):
        rate = rate_in(short, epoch)
        assert rate_in(long, 2 * epoch) == rate_in(long, 2 * epoch + 1) == rate


def test_clipping_bounds_the_step():
    run = replace(SMALL, optimizer="sgd", lr=1.0, clip=1e-3, epochs=1)
    data = load_for(run)
    start = torch.cat([p.detach().flatten() for p in model_of(run, data).parameters()])
    assert torch.linalg.vector_norm(weights(finished(run)) - start) <= 5 * 1e-3 * 1.001


def test_a_batch_larger_than_the_training_set_is_refused():
    with pytest.raises(InputError, match=r"batch_size 1201 is larger than the training set \(1200"):
        train(Run(batch_size=1201), progress=False)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precisions_train_and_leave_torchs_settings_alone(precision):
    before = torch.backends.cuda.matmul.fp32_precision
    record = train(replace(SMALL, precision=precision), progress=False)
    assert record.curve[-1]["loss"] < record.curve[0]["loss"]
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_bfloat16_reads_the_weights_of_every_step():
    """Not those of the epoch's first: autocast would keep them, and weight noise would never be seen."""
    run = replace(SMALL, precision="bfloat16", optimizer="sgd", lr=0.1)

    def gradients(model, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x[0])
        F.cross_entropy(logits.float(), y[0]).backward()

    mine, full = by_hand(run, gradients), finished(replace(run, precision="float32"))
    assert (weights(finished(run)) - mine).norm() < 0.1 * (weights(full) - mine).norm()


def test_images_of_several_channels_lie_channels_last_and_have_the_same_gradient():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 3, 32, 32, generator=generator, dtype=torch.float64), torch.arange(60) % 10
    data = Data("random", "random", tuple("0123456789"), Split(x, y), Split(x[:20], y[:20]))
    run, gradients = Run(network="ne-c1-quarter", batch_size=30, alpha=1.5), []
    for moved in (True, False):
        training = Training([run], data)
        assert training.data.train.x.is_contiguous(memory_format=torch.channels_last)
        training.model.double()
        training.step.samples = training.data.train if moved else data.train
        training.step._update = lambda: None  # the gradients stay
        training.step(next(iter(training._batches())))
        gradients.append(torch.cat([p.grad.flatten() for p in training.model.parameters()]))
    assert gradients[0].norm() > 0
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


def test_testing_does_not_outweigh_training(monkeypatch):
    looks = []
    evaluate = Training.evaluate
    monkeypatch.setattr(Training, "evaluate", lambda self, split: looks.append(len(split)) or evaluate(self, split))
    record = train(replace(SMALL, epochs=8), progress=False)  # 250 training images, twice as many test images
    tests = len(load_for(SMALL).test)
    assert round(tests / 250) == 2
    assert [point["epoch"] for point in record.curve] == [2, 4, 6, 8]
    assert sorted(looks) == sorted([tests] * 4 + [250, tests])  # the last two for the record
    assert record.best_test_accuracy == max(point["test_accuracy"] for point in record.curve)


def test_an_epoch_that_would_not_end_in_time_is_not_begun_but_for_the_first(tmp_path):
    """Else a time too short to load the data, or for one epoch, would never lead anywhere."""
    path = tmp_path / "state"
    for _ in range(2):
        training = Training([SMALL], load_for(SMALL))
        assert training.finish(checkpoint=path, progress=False, until=time.monotonic() - 1) == []
    assert training.epoch == 2
    training._lately.extend(2 * [2000.0])  # an epoch takes that long, it seems
    assert training.finish(checkpoint=path, progress=False, until=time.monotonic() + 500) == []
    assert training.epoch == 3
    [record] = Training([SMALL], load_for(SMALL)).finish(checkpoint=path, progress=False)
    assert record.curve[-1]["loss"] == finished(SMALL).curves[0][-1]["loss"]


def test_noise_enhancement_refits_batch_normalization():
    run = replace(SMALL, network="smoothout-f1", alpha=1.5, epochs=1)
    layers = [m for m in finished(run).model.modules() if isinstance(m, networks.GhostBatchNorm)]
    assert {layer.minibatches for layer in layers} == {2}


def test_the_noise_of_the_sampled_update_has_the_enhanced_covariance():
    """What the sampler and the loss produce together, against eqs. 4 and 10: trace of the gradients' covariance."""
    data = load_for(SMALL)
    x, y, n, b = data.train.x, data.train.y, 250, 25
    model = model_of(SMALL, data)
    per_sample = torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]),
                                                             list(model.parameters()))]) for i in range(n)]
    )  # fmt: skip
    scatter = (per_sample - per_sample.mean(0)).square().sum(1).mean()  # tr S
    run = replace(SMALL, batch_size=b, alpha=2.0, optimizer="sgd", lr=1e-6, epochs=1)
    training, noise = Training([run], data), []

    def record_gradient():
        gradient = torch.cat([p.grad.flatten() for p in training.model.parameters()])
        noise.append((gradient - per_sample.mean(0)).square().sum())
        training.step.optimizer.zero_grad()

    training.step._update = record_gradient
    for _ in range(60):
        training.train_epoch()
    predicted = covariance_factor(2.0) / b * (n - b) / (n - 1) * scatter
    noise = torch.stack(noise)
    error = noise.std() / math.sqrt(60)  # batches of one shuffle are dependent; epochs are not
    assert abs(noise.mean() - predicted) < 4 * error
    assert error < predicted / 10


# --------------------------------------------------------------------------------------------------- side by side


@pytest.mark.parametrize("method", [{}, {"alpha": 1.5}, {"optimizer": "sgd", "lr": 0.1, "momentum": 0.5}])
def test_seeds_side_by_side_are_the_same_runs_up_to_rounding(method):
    run = Run(train_size=250, batch_size=60, epochs=30, halve_at=1.0, stop_below=0.4, lr=3e-3)
    run = replace(run, **{**method, "lr": method.get("lr", 3e-3)})
    runs = [replace(run, seed=seed) for seed in range(3)]
    together = Training(runs, load_for(run)).finish(progress=False)
    alone = [train(r, progress=False) for r in runs]
    for a, b in zip(together, alone, strict=True):
        assert (a.run, a.status, a.updates) == (b.run, b.status, b.updates)
        assert [p["loss"] for p in a.curve] == pytest.approx([p["loss"] for p in b.curve], rel=2e-3)
        assert a.test_loss == pytest.approx(b.test_loss, rel=2e-3)
        assert a.provenance["side_by_side"] == 3
    assert len({r.updates for r in alone}) > 1 or "sgd" in method.values()  # one did stop before another


def test_a_run_is_handed_over_as_soon_as_it_ends():
    run = Run(train_size=250, batch_size=60, epochs=60, stop_below=0.4, lr=3e-3)
    runs = [replace(run, seed=seed) for seed in range(3)]
    training, kept = Training(runs, load_for(run)), []

    def keep(k, record):
        kept.append((k, training.epoch, record.epochs, record.wall_time))
        return replace(record, measures={"k": k})

    records = training.finish(progress=False, keep=keep)
    assert sorted(k for k, *_ in kept) == [0, 1, 2]
    assert all(now == ended for _, now, ended, _ in kept)
    assert len({ended for *_, ended, _ in kept}) > 1
    assert [record.measures for record in records] == [{"k": k} for k in range(3)]
    assert max(seconds for *_, seconds in kept) == training.wall_time


def test_a_training_that_its_pace_says_will_not_end_stops_after_three_epochs(tmp_path, monkeypatch):
    """With 60 epochs expected at a second each, 40 seconds are too few and 60 are enough; also where it resumed."""
    clock = SimpleNamespace(now=0.0)
    fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=lambda: clock.now)
    monkeypatch.setattr("nb_lib.lab.training.time", fake)

    def batches(self, original=Training._batches):
        clock.now += 1
        return original(self)

    monkeypatch.setattr(Training, "_batches", batches)
    run = replace(SMALL, epochs=60)
    path = tmp_path / "state"
    for epochs in (3, 6):
        assert Training([run], load_for(run)).finish(
            checkpoint=path, progress=False, until=clock.now + 40, expected=60
        ) == []  # fmt: skip
        assert clock.now == epochs
    [record] = Training([run], load_for(run)).finish(checkpoint=path, progress=False, until=clock.now + 60, expected=60)
    assert (clock.now, record.epochs) == (60, 60)
    assert not path.exists()


def test_only_runs_alike_but_for_the_seed_share_a_model():
    runs = [replace(SMALL, seed=s, batch_size=b) for b in (10, 20) for s in range(3)]
    assert [len(g) for g in side_by_side(runs)] == [3, 3]
    others = [replace(runs[0], alpha=alpha, seed=s) for alpha in (1.5, 2.0) for s in range(2)]
    assert [len(g) for g in side_by_side([*runs, *others])] == [3, 3, 2, 2]
    assert [len(g) for g in side_by_side([replace(r, network="ne-c1") for r in runs])] == [1] * 6
    assert [len(g) for g in side_by_side(runs, most=2)] == [2, 1, 2, 1]


# --------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_trains_what_is_missing_and_returns_all_in_order(tmp_path, capsys):
    runs = [replace(SMALL, seed=s, batch_size=b) for b in (125, 60) for s in (1, 0)]
    sweep(runs[:2], tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    assert [record.run for record in sweep([*runs, runs[0]], tmp_path)] == runs
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    assert "4 runs: 2 trained now, 2 were stored; 4 finished." in capsys.readouterr().out
    assert not list(tmp_path.glob("*.checkpoint"))


LOOP = """
import sys
from nb_lib.lab.runs import Run
from nb_lib.lab.sweeps import sweep
runs = [Run(train_size=250, batch_size=25 + k, epochs=30) for k in range(20)]
sweep(runs, sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_a_loop_of_20_runs_killed_again_and_again_ends_with_20_records_none_done_twice(tmp_path):
    done: dict[Path, int] = {}
    for kill_after in (4, 9, 15, None):
        loop = subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path)])
        if kill_after:
            while len(RunStore(tmp_path)) < kill_after and loop.poll() is None:
                time.sleep(0.005)
            time.sleep(random.random() / 10)
            loop.send_signal(signal.SIGKILL)
        loop.wait()
        now = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
        assert done.items() <= now.items()  # what was done stays as it was
        assert len(now) < 20 or kill_after is None
        done = now
    assert loop.returncode == 0
    assert len(frame(RunStore(tmp_path)).key.unique()) == len(done) == 20
