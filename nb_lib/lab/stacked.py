"""Several networks of one shape as one batched model: seeds that train side by side.

>>> models = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
>>> x = torch.ones(2, 5, 1, 2, 2)  # five images for each of the two
>>> torch.allclose(stack(models)(x)[1], models[1](x[1]))
True
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """Linear layers of K networks as one batched product: [K, n, in] to [K, n, out]."""

    side_by_side = True  # the first axis of the parameters counts networks, see `weight_vector`

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weights = [layer.weight.detach() for layer in layers]
        biases = [layer.bias.detach() for layer in layers]
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.stack(biases))

    def forward(self, input: Tensor) -> Tensor:
        """Apply network k's layer to ``input[k]``."""
        return torch.baddbmm(self.bias.unsqueeze(1), input, self.weight.transpose(1, 2))

    def layer(self, k: int) -> nn.Linear:
        """Network k's layer, with a copy of its weights."""
        _, outputs, inputs = self.weight.shape
        like = {"device": self.weight.device, "dtype": self.weight.dtype}
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs, **like)
        layer.load_state_dict({"weight": self.weight[k], "bias": self.bias[k]})
        return layer


def stack(models: Sequence[nn.Module]) -> nn.Sequential:
    """K networks of one `stackable` shape as one that maps [K, n, C, H, W] to logits [K, n, classes]."""
    stacked = nn.Sequential()
    for layers in zip(*(model.children() for model in models), strict=True):  # the same layer of each network
        first = layers[0]
        if isinstance(first, nn.Linear):
            stacked.append(StackedLinear(layers))
        elif isinstance(first, nn.Flatten):
            stacked.append(nn.Flatten(2))
        else:
            stacked.append(nn.ReLU())
    return stacked


def unstack(model: nn.Sequential, k: int) -> nn.Sequential:
    """Network number `k` of those that `stack` put together, with a copy of its weights."""
    alone = nn.Sequential()
    for layer in model:
        if isinstance(layer, StackedLinear):
            alone.append(layer.layer(k))
        elif isinstance(layer, nn.Flatten):
            alone.append(nn.Flatten())
        else:
            alone.append(nn.ReLU())
    return alone
