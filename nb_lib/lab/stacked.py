"""Several networks of one shape as one batched model: seeds that train side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """Linear layers of K networks as one batched product: [K, n, in] to [K, n, out]."""

    side_by_side = True  # the first axis of the parameters counts networks, see `flat.row_width`

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, input: Tensor) -> Tensor:
        """Apply network k's layer to ``input[k]``."""
        return torch.baddbmm(self.bias.unsqueeze(1), input, self.weight.transpose(1, 2))


def stack(models: Sequence[nn.Module]) -> nn.Sequential:
    """K networks of one `stackable` shape as one that maps [K, n, C, H, W] to logits [K, n, classes].

    Their losses can simply be added: no network's gradient depends on another.
    """
    layers: list[nn.Module] = []
    for row in zip(*(model.children() for model in models), strict=True):
        if isinstance(row[0], nn.Linear):
            layers.append(StackedLinear(row))
        else:
            layers.append(nn.Flatten(2) if isinstance(row[0], nn.Flatten) else nn.ReLU())
    return nn.Sequential(*layers)


def unstack(model: nn.Sequential, k: int) -> nn.Sequential:
    """Network number `k` of those that `stack` put together, with a copy of its weights."""
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, StackedLinear):
            _, out, inputs = layer.weight.shape
            layers.append(nn.utils.skip_init(nn.Linear, inputs, out, device=layer.weight.device))
            layers[-1].load_state_dict({name: p[k] for name, p in layer.state_dict().items()})
        else:
            layers.append(nn.Flatten() if isinstance(layer, nn.Flatten) else nn.ReLU())
    return nn.Sequential(*layers)
