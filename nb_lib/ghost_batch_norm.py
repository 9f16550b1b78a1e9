"""Ghost batch normalization: statistics of small parts of a batch, so that a large batch trains like a small one."""

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.errors import InputError


def part_sizes(n: int, size: int, batch_size: int | None = None) -> list[int]:
    """Sizes of the parts into which `n` samples are cut, for ghost batches and for draws of weight noise.

    A last part of one sample joins its neighbor, because one sample has no variance.

    Parameters
    ----------
    n : int
        Samples to be cut.
    size : int
        Samples a part, at least 2.
    batch_size : int, optional
        None cuts parts of `size` and the rest.  B cuts ``B // size`` nearly equal parts, as ``torch.chunk`` does in
        the SmoothOut authors' code, however many samples there are: the last batch of an epoch gives as many parts.

    >>> part_sizes(300, 128), part_sizes(300, 128, batch_size=300)
    ([128, 128, 44], [150, 150])
    >>> part_sizes(5000, 128, batch_size=5000) == 38 * [129] + [98]
    True
    >>> part_sizes(88, 128, batch_size=256)
    [44, 44]
    """
    if batch_size is not None:
        parts = max(1, batch_size // size)
        size = max(2, ceil(n / parts))
    sizes = n // size * [size]
    rest = n % size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over groups of at most `group_size` samples (Hoffer et al. 2017).

    Takes [n, features] and [n, features, height, width].  In training mode each group is normalized by its own
    statistics, and the running ones take the groups in one after the other, each with `momentum`.  In evaluation mode
    it is plain batch normalization with the running statistics.

    Parameters
    ----------
    features : int
    group_size : int or None
        Samples a group; None makes each minibatch one group.
    minibatches : int
        How many minibatches of equal size lie one after the other in what comes in: 2 for noise enhancement.  No
        group crosses from one into the next.
    batch_size : int, optional
        Samples of a whole minibatch: cut it into ``batch_size // group_size`` nearly equal groups; None cuts groups of
        `group_size` and the rest (see `part_sizes`).
    """

    def __init__(
        self,
        features: int,
        group_size: int | None = None,
        *,
        minibatches: int = 1,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(features)
        if group_size is not None and group_size < 2:
            raise InputError(
                f"ghost batch normalization needs groups of at least 2 samples, not {group_size}."
            )
        self.group_size, self.minibatches, self.batch_size = group_size, minibatches, batch_size

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` [n, features, ...]."""
        if not self.training:
            return super().forward(input)
        sizes = self._group_sizes(len(input))
        if len(sizes) == 1:
            return super().forward(input)
        if input.is_cuda and self._foldable(input, sizes):
            return self._folded(input, len(sizes))
        return torch.cat([super(GhostBatchNorm, self).forward(group) for group in input.split(sizes)])

    def _group_sizes(self, n: int) -> list[int]:
        size, left_over = divmod(n, self.minibatches)
        if left_over:
            raise InputError(f"{n} samples are not {self.minibatches} minibatches of equal size.")
        if self.group_size is None:
            return self.minibatches * [size]
        return self.minibatches * part_sizes(size, self.group_size, self.batch_size)

    def _foldable(self, input: Tensor, sizes: Sequence[int]) -> bool:
        """Whether `_folded` can do it, and pays.

        It cannot for groups of unequal size, nor for layers without gain or running statistics, or with averaged ones.
        Images are better left as they are: folded, they would go through all later convolutions in the slower order,
        channels first, and in a recorded step the launches that folding saves cost nothing.
        """
        tracked = self.track_running_stats and self.running_mean is not None
        usual = tracked and self.weight is not None and self.momentum is not None
        return usual and input.ndim == 2 and len(set(sizes)) == 1

    def _folded(self, input: Tensor, groups: int) -> Tensor:
        """All groups in one call, as channels of their own: two copies, but one launch instead of one a group."""
        shape, features = input.shape, self.num_features
        folded = input.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        stats = self.weight.new_zeros(2, groups * features)  # as precise as the weights, also under autocast
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        # momentum 1 leaves each group's own mean and unbiased variance in `stats`
        out = F.batch_norm(folded, stats[0], stats[1], weight, bias, True, 1.0, self.eps)
        self._update_running(stats.view(2, groups, features))
        return out.unflatten(1, (groups, features)).transpose(0, 1).reshape(shape)

    @torch.no_grad()
    def _update_running(self, stats: Tensor) -> None:
        """Running statistics after the groups, taken in one by one: group k of K keeps m (1−m)^(K−1−k)."""
        groups, momentum = stats.shape[1], self.momentum or 0.0
        keep = 1 - momentum
        weights = momentum * keep ** torch.arange(groups - 1, -1, -1, device=stats.device, dtype=stats.dtype)
        mean, var = (stats * weights[:, None]).sum(
            1
        )  # no matrix product: those are rounded under tf32 and autocast
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.mul_(keep**groups).add_(mean)
        self.running_var.mul_(keep**groups).add_(var)
        self.num_batches_tracked.add_(groups)

    def extra_repr(self) -> str:
        """Show groups and minibatches in ``print(model)``."""
        cut = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"{self.num_features}, group_size={self.group_size}, minibatches={self.minibatches}{cut}"


def ghost_batch_norm_(model: nn.Module, group_size: int | None = None, *, minibatches: int = 1) -> nn.Module:
    """Turn every batch normalization of `model` into a ghost one, in place, keeping weights and statistics.

    `group_size` None keeps the meaning of the original (one group a minibatch) and, with ``minibatches=2``, makes a
    network with batch normalization fit for noise enhancement.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                ghost = GhostBatchNorm(child.num_features, group_size, minibatches=minibatches)
                for setting in ("eps", "momentum", "affine", "track_running_stats", "training"):
                    setattr(ghost, setting, getattr(child, setting))
                ghost._parameters, ghost._buffers = child._parameters, child._buffers
                setattr(parent, name, ghost)
    return model
