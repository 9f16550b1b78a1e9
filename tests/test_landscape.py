"""Lines and surfaces against losses known in closed form, explicit loops, and the networks at their ends."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nb_lib import landscape
from nb_lib.errors import InputError
from nb_lib.lab import networks
from nb_lib.lab.data import Split
from nb_lib.lab.outcome import evaluate
from nb_lib.objective import Objective


def squares(outputs, y):
    return ((outputs - y) ** 2).sum(1)


@pytest.fixture
def regression():
    """A linear network with squared loss: along any line and over any plane the loss is a polynomial of degree 2."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=True).double().eval()
    x, y = torch.randn(30, 4).double(), torch.randn(30, 2).double()
    return model, Objective(model, x, y, criterion=squares)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(1)
    sizes = {"train": 90, "test": 40}
    return {
        name: Split(torch.randn(n, 1, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator))
        for name, n in sizes.items()
    }


def network(seed, normalization=False):
    layers = [nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)]
    if normalization:
        layers.insert(2, nn.BatchNorm1d(12))
    torch.manual_seed(seed)
    model = nn.Sequential(*layers)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model.eval()


def objectives(model, images, **options):
    train = Objective(model, images["train"].x, images["train"].y, **options)
    return {"train": train, "test": train.on(images["test"].x, images["test"].y)}


def by_hand(model, split):
    """Loss and accuracy of a network as it is."""
    with torch.no_grad():
        out = model(split.x)
    return F.cross_entropy(out.double(), split.y).item(), (out.argmax(1) == split.y).double().mean().item()


def test_line_through_a_quadratic(regression):
    _, objective = regression
    d = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    table = landscape.loss_line({"all": objective}, d, np.linspace(-1, 2, 7), progress=False)
    loss, gradient = objective.gradient(objective.weights)
    curvature = d @ objective.hessian_product(objective.weights)(d)
    expected = [(loss + t * (gradient @ d) + t**2 / 2 * curvature).item() for t in np.linspace(-1, 2, 7)]
    np.testing.assert_allclose(table["loss"], expected, rtol=1e-12)
    assert table["accuracy"].isna().all()


def test_surface_over_a_quadratic(regression):
    _, objective = regression
    d = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    x, y = [-1.0, 0.0, 0.5], [0.0, 2.0]
    table = landscape.loss_surface({"all": objective}, (d[0], d[1]), x, y, progress=False)
    assert list(zip(table["x"], table["y"], strict=True)) == list(itertools.product(x, y))
    loss, gradient = objective.gradient(objective.weights)
    product = objective.hessian_product(objective.weights)
    for _, row in table.iterrows():
        step = row["x"] * d[0] + row["y"] * d[1]
        assert row["loss"] == pytest.approx((loss + gradient @ step + step @ product(step) / 2).item(), rel=1e-12)


def test_every_point_is_the_network_with_those_weights(images):
    model = network(0)
    both = objectives(model, images)
    d = landscape.filter_normalized_direction(both["train"], seed=5)
    positions = np.linspace(-1, 1, 37)  # more than fit into one group
    table = landscape.loss_line(both, d, positions, progress=False)
    assert list(table.columns) == ["data", "x", "loss", "accuracy"]
    assert len(table) == 2 * len(positions)
    moved, parts = network(0), both["train"].tensors(d)
    names = both["train"].flat.names
    for t in positions[[0, 17, 36]]:
        with torch.no_grad():
            for name, part in zip(names, parts, strict=True):
                moved.get_parameter(name).copy_(model.get_parameter(name) + t * part)
        for name, split in images.items():
            found = table[(table["data"] == name) & (table["x"] == t)][["loss", "accuracy"]].to_numpy()[0]
            np.testing.assert_allclose(found, by_hand(moved, split), rtol=1e-5)


@pytest.mark.parametrize("published", [False, True])
def test_filters_of_a_direction_are_as_long_as_the_network_s(published):
    model = networks.build("ne-c1", (3, 32, 32), 10, seed=0).eval()
    torch.manual_seed(0)
    for p in model.parameters():
        if p.ndim == 1:
            nn.init.normal_(p)
    objective = Objective(model, torch.randn(4, 3, 32, 32), torch.arange(4), batch_norm="stored")
    d = landscape.filter_normalized_direction(objective, seed=1, published=published)
    for name, part in zip(objective.flat.names, objective.tensors(d), strict=True):
        weight = model.get_parameter(name).detach()
        if weight.ndim == 1:
            torch.testing.assert_close(part.abs(), weight.abs() if published else torch.zeros_like(weight))
            continue
        for k in range(len(weight)):  # a filter or neuron is a slice along the first axis
            assert part[k].norm().item() == pytest.approx(weight[k].norm().item(), rel=1e-5)
    spread = torch.cat([(p / p.norm() * p.numel() ** 0.5).flatten() for p in objective.tensors(d) if p.ndim == 4])
    kurtosis = (spread**4).mean() / (spread**2).mean() ** 2
    assert kurtosis.item() == pytest.approx(1.8 if published else 3.0, abs=0.15)  # uniform or normal entries


def test_the_same_seed_gives_two_networks_the_same_direction_but_for_lengths(images):
    first, second = (Objective(network(k), images["train"].x, images["train"].y) for k in (0, 1))
    one, two, other = (
        landscape.filter_normalized_direction(o, seed=s) for o, s in ((first, 3), (second, 3), (first, 4))
    )
    for a, b, c in zip(first.rows(one), second.rows(two), first.rows(other), strict=True):
        if a.shape[1] > 1:
            torch.testing.assert_close(F.normalize(a, dim=1), F.normalize(b, dim=1))
            assert F.cosine_similarity(a, c).abs().mean() < 0.5
    assert not torch.allclose(one, two)


@pytest.mark.parametrize("batch_norm", landscape.BETWEEN)
def test_interpolation_ends_at_the_networks(images, batch_norm):
    ends = network(0), network(1)
    table = landscape.interpolate(*ends, images, [0, 0.25, 1], batch_norm=batch_norm, progress=False)
    for t, model in zip((0, 1), ends, strict=True):
        for name, split in images.items():
            found = table[(table["data"] == name) & (table["t"] == t)][["loss", "accuracy"]].to_numpy()[0]
            np.testing.assert_allclose(found, by_hand(model, split), rtol=1e-6)


def with_statistics(model, seed):
    layer = model[2]
    generator = torch.Generator().manual_seed(seed)
    layer.running_mean.normal_(generator=generator)
    layer.running_var.uniform_(0.5, 2, generator=generator)
    return model


def test_interpolated_statistics(images):
    ends = [with_statistics(network(k, normalization=True), k) for k in (0, 1)]
    table = landscape.interpolate(*ends, images, [-1, 0.3, 1], progress=False)
    for t in (-1, 0.3, 1):
        mixed = network(0, normalization=True)
        state = {}
        for name, value in ends[0].state_dict().items():
            state[name] = (1 - t) * value + t * ends[1].state_dict()[name] if value.is_floating_point() else value
        state["2.running_var"].clamp_(min=0)
        mixed.load_state_dict(state)
        found = table[(table["data"] == "test") & (table["t"] == t)][["loss", "accuracy"]].to_numpy()[0]
        np.testing.assert_allclose(found, by_hand(mixed, images["test"]), rtol=2e-5)


def test_reestimated_statistics_are_those_of_the_training_data_everywhere(images):
    ends = [with_statistics(network(k, normalization=True), k) for k in (0, 1)]
    table = landscape.interpolate(*ends, images, [0.3], batch_norm="reestimated", progress=False)
    mixed = network(0, normalization=True)
    with torch.no_grad():
        for p, a, b in zip(mixed.parameters(), ends[0].parameters(), ends[1].parameters(), strict=True):
            p.copy_(0.7 * a + 0.3 * b)
        hidden = mixed[:2](images["train"].x)
        mixed[2].running_mean.copy_(hidden.mean(0))
        mixed[2].running_var.copy_(hidden.var(0))
    for name, split in images.items():
        found = table[table["data"] == name][["loss", "accuracy"]].to_numpy()[0]
        np.testing.assert_allclose(found, by_hand(mixed, split), rtol=2e-5)


def residual(seed):
    """A residual network whose gains, shifts and statistics are not as they were initialized."""
    model = networks.build("resnet8", (1, 8, 8), 10, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(50, 1, 8, 8, generator=generator)
            model(1 + x)
        for p in model.parameters():
            if p.ndim == 1:
                change = torch.randn(p.shape, generator=generator)
                p.add_(0.3 * change)
    return model.eval()


def row_of(table, name, column, value):
    """Loss and accuracy in the one row of that data and position."""
    rows = table[(table["data"] == name) & (table[column] == value)]
    [row] = rows[["loss", "accuracy"]].to_numpy()
    return row


@pytest.mark.parametrize("published", [False, True])
def test_the_line_of_a_residual_network_is_the_network_moved_filter_by_filter(images, published):
    model = residual(2)
    both = objectives(model, images, batch_norm="stored")
    train = both["train"]
    d = landscape.filter_normalized_direction(train, seed=3, published=published)
    parts = dict(zip(train.flat.names, train.tensors(d), strict=True))
    for name, p in model.named_parameters():
        along = rows_of(parts[name]).norm(dim=1)
        own = rows_of(p.detach()).norm(dim=1)
        moves = p.ndim > 1 or published
        torch.testing.assert_close(along, own if moves else 0 * own, rtol=1e-5, atol=1e-7)
    positions = [-1, 0, 0.5]
    table = landscape.loss_line(both, d, positions, progress=False)
    for t in positions:
        moved = residual(2)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p.add_(t * parts[name])
        for name, split in images.items():
            found = row_of(table, name, "x", t)
            np.testing.assert_allclose(found, by_hand(moved, split), rtol=1e-5)


def rows_of(tensor):
    """Filters or neurons, one a row; gains, shifts and biases each by themselves."""
    return tensor.reshape(len(tensor), -1)


def test_where_a_residual_network_is_the_line_has_the_loss_that_it_is_evaluated_with(images):
    model = residual(2)
    both = objectives(model, images, batch_norm="stored")
    d = landscape.filter_normalized_direction(both["train"])
    table = landscape.loss_line(both, d, [0], progress=False)
    for name, split in images.items():
        losses, accuracies = evaluate(model, split, 1, "float32")
        expected = [float(losses), float(accuracies)]
        np.testing.assert_allclose(row_of(table, name, "x", 0), expected, rtol=1e-6)


@pytest.mark.parametrize("batch_norm", landscape.BETWEEN)
def test_between_two_residual_networks_all_is_mixed_and_at_the_ends_are_they(images, batch_norm):
    first, second = residual(0), residual(1)
    train = images["train"]
    positions = [0, 0.3, 1]
    table = landscape.interpolate(first, second, images, positions, batch_norm=batch_norm, progress=False)
    for t in positions:
        mixed = residual(0)
        state = mixed.state_dict()
        for name, other in second.state_dict().items():
            if other.is_floating_point():
                state[name].mul_(1 - t).add_(other, alpha=t)
        if batch_norm == "reestimated":  # as `Objective` does, which is tested elsewhere
            mixed = Objective(mixed, train.x, train.y).model
        for name, split in images.items():
            found = row_of(table, name, "t", t)
            np.testing.assert_allclose(found, by_hand(mixed, split), rtol=2e-5)


def test_nothing_changes(images):
    models = [with_statistics(network(k, normalization=True), k) for k in (0, 1)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    state = torch.get_rng_state()
    landscape.interpolate(*models, images, [-1, 2], batch_norm="reestimated", progress=False)
    both = objectives(models[0], images)
    d = landscape.filter_normalized_direction(both["train"])
    landscape.loss_line(both, d, [0.5], progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    for model, kept in zip(models, before, strict=True):
        assert not model.training
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in kept.items())
        assert all(p.grad is None for p in model.parameters())


def test_no_more_samples_in_memory_than_allowed(images):
    sizes = []
    model = network(0)
    both = objectives(model, images, chunk=32)
    both["train"].model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    d = landscape.filter_normalized_direction(both["train"])
    table = landscape.loss_surface(both, (d, d), [0, 0.5], [0, 1], progress=False)
    whole = landscape.loss_surface(objectives(model, images), (d, d), [0, 0.5], [0, 1], progress=False)
    assert max(sizes) == 32
    pd.testing.assert_frame_equal(table, whole, rtol=1e-6)


def test_what_cannot_be_is_said_in_a_sentence(images, regression):
    _, objective = regression
    with pytest.raises(InputError, match=r"10 numbers, not \[9\]"):
        landscape.loss_line({"all": objective}, torch.ones(9), [0], progress=False)
    with pytest.raises(InputError, match="at least one objective"):
        landscape.loss_line({}, torch.ones(9), [0], progress=False)
    with pytest.raises(InputError, match="different networks"):
        landscape.loss_line(
            {"a": objectives(network(0), images)["train"], "b": objectives(network(1), images)["train"]},
            torch.zeros(910),
            [0],
            progress=False,
        )
    with pytest.raises(InputError, match="differ in architecture"):
        landscape.interpolate(network(0), network(0, normalization=True), images, [0], progress=False)
    with pytest.raises(InputError, match=r"model\.eval"):
        landscape.interpolate(network(0).train(), network(1), images, [0], progress=False)
    with pytest.raises(InputError, match="treatment of batch normalization"):
        landscape.interpolate(network(0), network(1), images, [0], batch_norm="stored", progress=False)
