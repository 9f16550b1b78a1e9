"""Networks side by side are the separate ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.lab.networks import build
from nb_lib.lab.stacked import stack, unstack

SHAPE = (1, 8, 8)


def three_networks() -> list[nn.Sequential]:
    """Three networks whose biases differ: they start at zero, where a mix-up would not show."""
    models = [build("digits-mlp", SHAPE, 10, seed=seed).double() for seed in range(3)]
    for k, model in enumerate(models):
        for i, p in enumerate(model.parameters()):
            if p.ndim == 1:
                nn.init.constant_(p, 0.1 * k + 0.01 * i)
    return models


def images(*n: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*n, *SHAPE, generator=generator, dtype=torch.float64)


def test_stacked_networks_have_the_logits_and_gradients_of_the_separate_ones() -> None:
    models = three_networks()
    together = stack(models)
    x = images(3, 5)
    y = torch.arange(15).view(3, 5) % 10
    logits = together(x)
    losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
    losses.backward()
    for k, model in enumerate(models):
        expected = model(x[k])
        loss = F.cross_entropy(expected, y[k], reduction="sum")
        loss.backward()
        torch.testing.assert_close(logits[k], expected, rtol=0, atol=1e-12)
        for stacked, p in zip(together.parameters(), model.parameters(), strict=True):
            assert torch.equal(stacked[k], p)
            torch.testing.assert_close(stacked.grad[k], p.grad, rtol=0, atol=1e-12)


def test_unstacking_gives_the_networks_back() -> None:
    models = three_networks()
    together = stack(models)
    x = images(5)
    for k, model in enumerate(models):
        alone = unstack(together, k)
        assert torch.equal(alone(x), model(x))
        alone[1].weight.detach().zero_()
        assert together[1].weight[k].any(), "a copy"


def test_stacking_copies_the_weights() -> None:
    model = build("digits-mlp", SHAPE, 10)
    before = model[1].weight.clone()
    together = stack([model, model])
    together[1].weight.detach().zero_()
    assert torch.equal(model[1].weight, before)
