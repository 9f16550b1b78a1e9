"""Large batches: what of SGD's noise stays, how many draws of weight noise average it out, what an update costs.

A large batch is cut into K ghost batches.  SmoothOut's code draws a θ for each (`lab.runs.Run.noise_batch`), adds up
their gradients, and makes one update.  On W GPUs each has a W-th of the batch, and draws for its own part alone (in the
authors' code, which copies one model to all GPUs, they share each θ).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nb_lib.errors import InputError, check_batch_size, check_strength, positive, whole
from nb_lib.ghost_batch_norm import part_sizes
from nb_lib.lab.runs import Run
from nb_lib.lab.weight_vector import NORMALIZATION
from nb_lib.noise_enhancement import noise_covariance
from nb_lib.toys import Array, Landscape

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(400)  # of Gauss-Legendre quadrature over (−1, 1)
_FLOAT = 4  # bytes
# Bytes that one draw of θ moves in memory for each perturbed weight: the clean weights are kept and put back, both a
# read and a write; random words are filled, and made odd, for four draws at a time; then θ is read and w + θ written.
_KEPT = 2 * _FLOAT
_PUT_BACK = 2 * _FLOAT
_RANDOM = (8 + 8 + 8) / 4
_UNIFORM = _FLOAT + 2 + _FLOAT
_ADAPTIVE = (2 + _FLOAT) + 2 * _FLOAT + 3 * _FLOAT  # numbers from the words, the two norms of SmoothOut eq. 12, w + θ


class Epoch(NamedTuple):
    """What the updates of an epoch do, at weights that hardly move meanwhile: minibatches are drawn independently."""

    updates: int  # ⌈N/B⌉
    noise: float  # trace of the covariance of one update's noise
    drift: float  # what the mean gradient is multiplied with: updates · η
    epoch_noise: float  # trace of the covariance of all updates' noise together


def epoch(S: float, n: int, B: int, *, eta: float, alpha: float = 1.0) -> Epoch:
    """Drift and noise of one update and of the ⌈N/B⌉ updates of an epoch (NE eqs. 4 and 10).

    Parameters
    ----------
    S : float
        Trace of the covariance of the gradients of single samples.
    n, B : int
        Training samples N, and those of a minibatch.  Minibatches are drawn independently: those of one shuffled pass,
        all at the same weights, would have every sample once and noises that add up to 0.

    Examples
    --------
    >>> epoch(3.0, n=4, B=2, eta=0.5)
    Epoch(updates=2, noise=0.25, drift=1.0, epoch_noise=0.5)
    """
    check_batch_size(B, n)
    positive("the learning rate eta", eta)
    updates = math.ceil(n / B)
    noise = noise_covariance(S, n, B, alpha=alpha, eta=eta)
    return Epoch(updates, noise, updates * eta, updates * noise)


def scaled_rate(lr: float, B: int, reference: int, rule: str) -> float:
    """Learning rate of batches of B, scaled from that of `reference` samples as that of a `Run` is.

    `rule` is one of `lab.names.LR_SCALINGS`: "sqrt" multiplies by √(B/reference), "linear" by B/reference.

    >>> scaled_rate(0.1, 512, 128, "sqrt")
    0.2
    """
    scaling: dict[str, Any] = {} if rule == "none" else {"lr_reference": reference}
    run = Run(batch_size=B, lr=lr, lr_scaling=rule, **scaling)
    return run.lr_at(0)


def draw_deviation(loss: Landscape, w: ArrayLike, a: float) -> Array:
    """Standard deviation σ(w) of L'(w + θ) over θ ~ U(−a, a), of the shape of `w`; that of the mean of K is σ/√K.

    The mean over θ is the gradient of the smoothed loss (SmoothOut eq. 15).  An update moves the weight by η times the
    gradient: with the rate η₀√K it strays by η₀σ, as with one draw and the rate η₀.  By quadrature, which is exact to
    rounding for wells wider than a/50.

    Raises
    ------
    InputError
        If the loss has two weights.

    Examples
    --------
    >>> parabola = Landscape((3.0,))
    >>> float(draw_deviation(parabola, 0.5, a=0.2).round(4))  # h a/√3, wherever w is
    0.3464
    """
    if loss.dim != 1:
        raise InputError("the spread of single draws is of a loss in one dimension: give one with one curvature.")
    check_strength(a)
    w = np.asarray(w, dtype=float)
    gradients = loss.gradient(w[..., None] + a * _NODES)
    shares = _WEIGHTS / 2
    mean = gradients @ shares
    variance = (gradients - mean[..., None]) ** 2 @ shares
    return np.sqrt(variance)


class Workload(NamedTuple):
    """What a network asks for: its parameters, those of them that are perturbed, and operations an image."""

    parameters: int
    perturbed: int
    operations: float  # floating-point operations of forward and backward pass


def workload(model: nn.Module, shape: tuple[int, int, int]) -> Workload:
    """Count the parameters of `model`, and the operations that an image [C, H, W] of this shape takes in training.

    Counted are the products of convolutions and dense layers, a multiplication and an addition each, as torch counts
    them.  On the device "meta" nothing is computed.

    >>> workload(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))  # forward 2 · 12 · 5, the same for weights
    Workload(parameters=65, perturbed=65, operations=240.0)
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    normalizing = [layer for layer in model.modules() if isinstance(layer, NORMALIZATION)]
    gains_and_shifts = [p for layer in normalizing for p in layer.parameters() if p.requires_grad]
    images = torch.empty(1, *shape, device=parameters[0].device)
    was_training = model.training
    model.eval()  # a variance of one image would not be one
    with FlopCounterMode(display=False) as counter:
        loss = model(images).sum()
        torch.autograd.grad(loss, parameters)
    model.train(was_training)
    number = _size(parameters)
    return Workload(number, number - _size(gains_and_shifts), float(counter.get_total_flops()))


def _size(tensors: list[nn.Parameter]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def noise_traffic(perturbed: int, adaptive: bool) -> float:
    """Bytes that one draw of `SmoothOut`'s uniform noise in float32 moves in memory, there and back.

    >>> noise_traffic(1, adaptive=False), noise_traffic(1, adaptive=True)
    (32.0, 48.0)
    """
    of_the_noise = _ADAPTIVE if adaptive else _UNIFORM
    return perturbed * (_KEPT + _RANDOM + of_the_noise + _PUT_BACK)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a GPU and what is around it are assumed to do in a second, and how long a message takes at least."""

    operations: float  # floating-point operations that it reaches, not those of its data sheet
    memory: float  # bytes read or written in its memory
    link: float  # bytes sent to another GPU of its node
    network: float  # bytes that a node sends to others, by all its network cards; a ring leaves it once
    decoding: float  # images decoded, cropped and resized for it
    step: float  # seconds, not a rate: what one step of a ring takes at least
    node: int = 8  # GPUs

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            what = "the time of a step" if name == "step" else f"the rate {name}"
            positive(what, value)


@dataclass(frozen=True)
class UpdateCost:
    """One update on each of W GPUs: what it processes, sends and moves, and the seconds of each."""

    images: int
    draws: int  # of θ, one a ghost batch
    sent: float  # bytes of gradients
    moved: float  # bytes in memory for the noise
    computing: float
    exchanging: float
    perturbing: float
    decoding: float

    @property
    def busy(self) -> float:
        """Seconds that the GPU works: it computes, perturbs, and then exchanges."""
        return self.computing + self.perturbing + self.exchanging

    @property
    def seconds(self) -> float:
        """Of the update: images are decoded meanwhile, by others."""
        return max(self.busy, self.decoding)

    @property
    def added_by_noise(self) -> float:
        """Seconds that the update would be shorter without noise: none where it waits for decoding either way."""
        return self.seconds - max(self.computing + self.exchanging, self.decoding)

    @property
    def noise_share(self) -> float:
        """Share of the noise in the time that the GPU works."""
        return self.perturbing / self.busy

    @property
    def limit(self) -> str:
        """What the update waits for: "decoding", or else the longest part of the GPU's own work."""
        if self.decoding > self.busy:
            return "decoding"
        parts = {"computing": self.computing, "exchange": self.exchanging, "noise": self.perturbing}
        return max(parts, key=parts.__getitem__)


def update_cost(
    load: Workload, rates: Rates, B: int, gpus: int, *, ghost_batch: int = 128, adaptive: bool = True
) -> UpdateCost:
    """What one update with SmoothOut costs on each of several GPUs that share a batch: bytes, and seconds on paper.

    Gradients in float32 are added up around a ring, in which each GPU sends 2 (W−1)/W of them, once an update and after
    the last backward pass, in 2 (W−1) steps; the ring is as fast as its slowest link.  θ is not sent at all: each GPU
    draws its own.  Decoding goes on beside all this.

    Raises
    ------
    InputError
        If the batch has fewer images than there are GPUs.

    Examples
    --------
    >>> rates = Rates(operations=1e6, memory=1e6, link=1e3, network=1e2, decoding=10.0, step=0.1)
    >>> cost = update_cost(Workload(1000, 900, 2e4), rates, B=512, gpus=2, adaptive=False)
    >>> cost.images, cost.draws, cost.sent, cost.moved, cost.computing, cost.exchanging, cost.limit
    (256, 2, 4000.0, 57600.0, 5.12, 4.2, 'decoding')
    """
    whole("the number of GPUs", gpus, 1)
    if whole("the batch size B", B, 1) < gpus:
        raise InputError(f"{gpus} GPUs cannot share {B} images: take a larger batch or fewer GPUs.")
    images = math.ceil(B / gpus)
    draws = len(part_sizes(images, whole("the ghost batch", ghost_batch, 2)))
    steps = 2 * (gpus - 1)
    sent = steps / gpus * _FLOAT * load.parameters
    moved = draws * noise_traffic(load.perturbed, adaptive)
    slowest_link = rates.link if gpus <= rates.node else min(rates.link, rates.network)
    return UpdateCost(
        images=images,
        draws=draws,
        sent=sent,
        moved=moved,
        computing=images * load.operations / rates.operations,
        exchanging=sent / slowest_link + steps * rates.step,
        perturbing=moved / rates.memory,
        decoding=images / rates.decoding,
    )
