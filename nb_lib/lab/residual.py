"""The block that residual networks are made of (He et al. 2016)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # batch normalization of so many features


class ResidualBlock(nn.Module):
    """Basic block ReLU(P x + F(x)): F is convolution, normalization, ReLU, convolution, normalization.

    P is the identity, or where the block halves the image and widens it a normalized 1x1 convolution.

    >>> import torch
    >>> ResidualBlock(16, 32, nn.BatchNorm2d)(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(self, channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        stride = 1 if channels == width else 2
        self.residual = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
            norm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width),
        )
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, width, 1, stride, bias=False))
            self.shortcut.append(norm(width))

    def forward(self, input: Tensor) -> Tensor:
        """Map [n, channels, H, W] to [n, width, H, W], or half of H and W."""
        return F.relu(self.shortcut(input) + self.residual(input))
