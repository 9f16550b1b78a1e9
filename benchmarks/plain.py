"""Training loops as a competent user of PyTorch writes them for data that fit on the device.

Images, shuffles and indexing are there and the optimizer is fused, but nothing is recorded, and minibatches and ghost
batches take their turns.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.steps import Step, naive_smoothout, two_passes
from nb_lib.lab.device import precision
from nb_lib.lab.networks import build
from nb_lib.lab.runs import Run

PADDING = 4  # pixels


def noise_enhanced_loop(run: Run, x: Tensor, y: Tensor) -> Step:
    """Epochs of NE: two backward passes an update, and Adam."""
    net = _network(run, x)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def epoch() -> None:
        order = _minibatches(run, x)
        other_order = _minibatches(run, x)
        with precision(run.precision, x.device):
            for index, other in zip(order, other_order, strict=True):
                first = x[index], y[index]
                second = x[other], y[other]
                optimizer.zero_grad()
                two_passes(net, first, second, run.alpha)
                optimizer.step()

    return epoch


def ghost_batch_loop(run: Run, x: Tensor, y: Tensor) -> Step:
    """Epochs of a residual network: random crops, a backward pass for each ghost batch, and SGD with momentum."""
    net = _network(run, x).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        net.parameters(),
        lr=run.scaled_lr_steps[0][1],
        momentum=run.momentum,
        weight_decay=run.weight_decay,
        fused=True,
    )

    def backward(images: Tensor, labels: Tensor, share: float) -> None:
        loss = F.cross_entropy(net(images), labels)
        (share * loss).backward()

    def update(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        n = len(labels)
        size = run.noise_batch or n
        parts = zip(images.split(size), labels.split(size), strict=True)
        for part, part_labels in parts:
            share = len(part) / n
            of_part = partial(backward, part, part_labels, share)
            if run.a:
                naive_smoothout(net, of_part)
            else:
                of_part()
        if run.clip:
            nn.utils.clip_grad_norm_(net.parameters(), run.clip)
        optimizer.step()

    def epoch() -> None:
        with precision(run.precision, x.device):
            for index in _minibatches(run, x):
                images = crop_and_flip(x[index])
                update(images, y[index])

    return epoch


def crop_and_flip(x: Tensor) -> Tensor:
    """Random crops of images [n, C, H, W] with zeros around them, half of them mirrored."""
    device = x.device
    n, _, height, width = x.shape
    padded = F.pad(x, 4 * [PADDING])
    padded = padded.movedim(1, -1)
    image = torch.arange(n, device=device)
    image = image.view(n, 1, 1)
    places = 2 * PADDING + 1
    top = torch.randint(places, (n, 1, 1), device=device)
    left = torch.randint(places, (n, 1, 1), device=device)
    rows = top + torch.arange(height, device=device).view(-1, 1)
    columns = left + torch.arange(width, device=device)
    crops = padded[image, rows, columns]
    crops = crops.movedim(-1, 1)
    mirrored = torch.rand(n, 1, 1, 1, device=device) < 0.5
    return torch.where(mirrored, crops.flip(-1), crops)


def _network(run: Run, x: Tensor) -> nn.Sequential:
    channels, height, width = x.shape[1:]
    return build(run.network, (channels, height, width), 10, device=x.device).train()


def _minibatches(run: Run, x: Tensor) -> Sequence[Tensor]:
    return torch.randperm(len(x), device=x.device).split(run.batch_size)
