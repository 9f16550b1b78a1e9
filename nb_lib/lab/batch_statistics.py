"""Statistics of batch normalization, taken anew over all samples: training with noisy weights leaves noisy ones.

torch's own (``momentum=None``) gives batches of any size equal weights, and leaves out how their means differ.

>>> model = nn.Sequential(nn.BatchNorm1d(1)).eval()
>>> reestimate(model, [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
>>> model[0].running_mean, model[0].running_var  # (1 + 2 + 6)/3, and (4 + 1 + 9)/(3 - 1)
(tensor([3.]), tensor([7.]))
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError
from nb_lib.lab.samples import Samples, feed, part

BatchNorm = nn.modules.batchnorm._BatchNorm


class _Moments(NamedTuple):
    numbers: int  # in each channel
    mean: Tensor  # [channels], float64
    variance: Tensor  # [channels], float64: mean square distance from the mean


@torch.no_grad()
def reestimate(model: nn.Module, chunks: Sequence[Samples]) -> None:
    """Give each batch normalization the mean and the unbiased variance of its inputs over all samples.

    In the order of the forward pass, so that its inputs are made with the new statistics of the layers before it.
    `model` is in evaluation mode; how the samples are cut into `chunks` changes the statistics by rounding only.
    Raises `InputError` if there is a single number in each channel.
    """
    one = part(chunks[0], slice(1))
    in_order = _moments(model, batch_norms(model), [one])
    for layer in in_order:
        parts = _moments(model, [layer], chunks)[layer]
        n = sum(part.numbers for part in parts)
        if n < 2:
            raise InputError("one number a channel has no variance: give more samples, or batch_norm='stored'.")
        means = torch.stack([part.mean for part in parts])
        variances = torch.stack([part.variance for part in parts])
        counts = means.new_tensor([part.numbers for part in parts])[:, None]
        mean = (counts * means).sum(0) / n
        squares = counts * (variances + (means - mean) ** 2)  # Σ (x − mean)² over each part
        variance = squares.sum(0) / (n - 1)
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(variance)


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """All layers of this kind."""
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


def _moments(model: nn.Module, layers: list[BatchNorm], chunks: Sequence[Samples]) -> dict[BatchNorm, list[_Moments]]:
    """Moments of what these layers take in, one a chunk and use; the layers in the order of the forward pass."""
    found = defaultdict(list)

    def note(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, *_ = *args, *kwargs.values()
        numbers = x.numel() // x.shape[1]
        across = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x, across, correction=0)
        found[layer].append(_Moments(numbers, mean.double(), variance.double()))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        for x in chunks:
            feed(model, x)
    finally:
        for handle in handles:
            handle.remove()
    return found
