"""Ghost batch normalization: statistics of small parts of a batch, so that a large batch trains like a small one.

With ``minibatches=2`` no part mixes the two minibatches of noise enhancement (NE eq. 6), which one pass takes together.
"""

from collections.abc import Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.errors import InputError


def part_sizes(n: int, size: int, batch_size: int | None = None) -> list[int]:
    """Cut `n` samples into parts, for ghost batches and for draws of weight noise: their sizes.

    Parts of `size`, at least 2, and the rest; a last part of one sample joins its neighbor, because one sample has no
    variance.  With `batch_size` B, ``B // size`` nearly equal parts, as ``torch.chunk`` does in the SmoothOut authors'
    code, however many samples there are: the last batch of an epoch gives as many parts.

    >>> part_sizes(300, 128), part_sizes(300, 128, batch_size=300)
    ([128, 128, 44], [150, 150])
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
    group_size : int or None
        Samples a group; None makes each minibatch one group.
    minibatches : int
        How many of equal size lie one after the other in what comes in: 2 for noise enhancement.  No group crosses.
    batch_size : int, optional
        Samples of a whole minibatch, to cut it into nearly equal groups (see `part_sizes`).
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
            raise InputError(f"ghost batch normalization needs groups of at least 2 samples, not {group_size}.")
        self.group_size = group_size
        self.minibatches = minibatches
        self.batch_size = batch_size

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` [n, features, ...]."""
        if not self.training:
            return super().forward(input)
        plain = super().forward
        sizes = self._group_sizes(len(input))
        if len(sizes) == 1:
            return plain(input)
        if input.is_cuda and self._foldable(input, sizes):
            return self._folded(input, len(sizes))
        groups = [plain(group) for group in input.split(sizes)]
        return torch.cat(groups)

    def _group_sizes(self, n: int) -> list[int]:
        size, left_over = divmod(n, self.minibatches)
        if left_over:
            raise InputError(f"{n} samples are not {self.minibatches} minibatches of equal size.")
        if self.group_size is None:
            return self.minibatches * [size]
        return self.minibatches * part_sizes(size, self.group_size, self.batch_size)

    def _foldable(self, input: Tensor, sizes: Sequence[int]) -> bool:
        """Whether `_folded` can do it, and pays."""
        tracked = self.track_running_stats and self.running_mean is not None
        usual = tracked and self.weight is not None and self.momentum is not None
        equal = len(set(sizes)) == 1
        return usual and equal and input.ndim == 2  # folded images would pass convolutions in the slower order

    def _folded(self, input: Tensor, groups: int) -> Tensor:
        """All groups in one call, as channels of their own: two copies, but one launch instead of one a group."""
        features = self.num_features
        by_group = input.unflatten(0, (groups, -1))
        folded = by_group.transpose(0, 1).flatten(1, 2)
        weight = self.weight.repeat(groups)
        bias = self.bias.repeat(groups)
        stats = self.weight.new_zeros(2, groups * features)  # as precise as the weights, also under autocast
        mean, var = stats
        # momentum 1 leaves each group's own mean and unbiased variance in `stats`
        out = F.batch_norm(folded, mean, var, weight, bias, training=True, momentum=1.0, eps=self.eps)
        self._update_running(stats.view(2, groups, features))
        by_group = out.unflatten(1, (groups, features)).transpose(0, 1)
        return by_group.reshape(input.shape)

    @torch.no_grad()
    def _update_running(self, stats: Tensor) -> None:
        """Running statistics after the groups, taken in one by one: group k of K keeps m (1−m)^(K−1−k)."""
        groups = stats.shape[1]
        momentum = self.momentum or 0.0
        keep = 1 - momentum
        later = torch.arange(groups - 1, -1, -1, device=stats.device, dtype=stats.dtype)  # groups after each
        shares = momentum * keep**later
        weighted = stats * shares[:, None]  # no matrix product: those are rounded under tf32 and autocast
        mean, var = weighted.sum(1)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        kept = keep**groups
        self.running_mean.mul_(kept).add_(mean)
        self.running_var.mul_(kept).add_(var)
        self.num_batches_tracked.add_(groups)

    def extra_repr(self) -> str:
        """Show groups and minibatches in ``print(model)``."""
        cut = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"{self.num_features}, group_size={self.group_size}, minibatches={self.minibatches}{cut}"


def ghost_batch_norm_(model: nn.Module, group_size: int | None = None, *, minibatches: int = 1) -> nn.Module:
    """Turn every batch normalization of `model` into a ghost one, in place, keeping weights, statistics and hooks.

    `group_size` None keeps the meaning of the original (one group a minibatch) and, with ``minibatches=2``, makes a
    network with batch normalization fit for noise enhancement: plain normalization of 2B samples would mix B_t with
    B'_t (at initialization of a deep network the gradient then has a cosine of 0.6 to 0.8 with NE's).

    Returns
    -------
    Module
        `model`, or, if it is itself a batch normalization, the ghost one: take what is returned.

    Raises
    ------
    InputError
        At a layer that normalizes in its own way, as SyncBatchNorm does over the ranks of a parallel run, or that does
        not know its features yet.
    """
    plain = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    ghosts: dict[nn.Module | None, nn.Module] = {layer: _ghost_of(layer, group_size, minibatches) for layer in plain}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # also what is there twice
            if child in ghosts:
                setattr(parent, name, ghosts[child])
    return ghosts.get(model, model)


def _ghost_of(plain: nn.modules.batchnorm._BatchNorm, group_size: int | None, minibatches: int) -> GhostBatchNorm:
    usual = nn.modules.batchnorm._BatchNorm.forward
    if type(plain).forward not in (usual, GhostBatchNorm.forward) or not plain.num_features:
        raise InputError(
            f"{type(plain).__name__} normalizes in its own way, or has no features yet: exchange it for a BatchNorm "
            "first, or run one forward pass."
        )
    ghost = GhostBatchNorm(plain.num_features, group_size, minibatches=minibatches)
    ghost.__dict__ = {**plain.__dict__, "group_size": group_size, "minibatches": minibatches, "batch_size": None}
    return ghost
