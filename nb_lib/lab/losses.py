"""Losses of single samples, and what a measure keeps of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nb_lib.errors import InputError

_NO_CLASS = -(2**62)  # torch's own, -100, would give such targets the loss 0


class Value(NamedTuple):
    """What a network does at one point, or with a leading axis at several."""

    loss: Tensor  # mean over the samples, float64
    accuracy: Tensor  # fraction of the samples, float64; NaN if the outputs are not one score a class

    @classmethod
    def stack(cls, values: Sequence["Value"]) -> "Value":
        """Values at single points as one, with a leading axis."""
        return cls(torch.stack([v.loss for v in values]), torch.stack([v.accuracy for v in values]))

    @classmethod
    def total(cls, losses: Tensor, outputs: Any, y: Tensor) -> "Value":
        """Sums of loss and of right answers over some samples."""
        loss = losses.double().sum()
        scores = isinstance(outputs, Tensor) and outputs.ndim == 2
        if not scores or y.ndim != 1 or y.is_floating_point():
            return cls(loss, torch.full_like(loss, torch.nan))
        right = outputs.argmax(1) == y
        return cls(loss, right.double().sum())


def cross_entropy(outputs: Any, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, in nats."""
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the network gives a {type(outputs).__name__}, not a tensor of scores: say where they are, as in "
            "criterion=lambda out, y: F.cross_entropy(out['logits'], y, reduction='none')."
        )
    return F.cross_entropy(outputs, y, reduction="none", ignore_index=_NO_CLASS)
