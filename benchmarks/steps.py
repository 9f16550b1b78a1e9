"""What the methods cost, as ratios of whole training steps timed in turn in one run (``make bench``).

Times of one machine mean little on another, and drift on a busy one; a ratio of two steps taken one after the other,
and the median of many such ratios, does not.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.lab.networks import build
from nb_lib.noise_enhancement import noise_enhanced_loss
from nb_lib.smoothout import SmoothOut

Step = Callable[[], object]
Backward = Callable[[nn.Module], None]  # leaves gradients in a network
Batch = tuple[Tensor, Tensor]  # images and labels of a minibatch
Row = dict[str, object]  # of a table

ALPHA = 1.5
A = 0.0375  # strength of SmoothOut's noise
ADAPTIVE_A = 0.15
_IMAGES = {"ne-f1": (1, 28, 28), "ne-c1": (3, 32, 32)}
_RATIOS = {  # of the times of two steps
    "NE ÷ plain step of 2B": ("NE", "plain 2B"),
    "NE ÷ NE in two passes": ("NE", "NE in two passes"),
    "SmoothOut ÷ plain step": ("SmoothOut", "plain B"),
    "AdaSmoothOut ÷ plain step": ("AdaSmoothOut", "plain B"),
    "naive SmoothOut ÷ plain step": ("naive SmoothOut", "plain B"),
    # perturbation and return alone: as a difference of whole steps they drown in the noise of a convolution
    "noise of SmoothOut ÷ of naive": ("noise alone", "naive noise alone"),
}


def bench(device: torch.device, *, rounds: int = 15) -> pd.DataFrame:
    """Time NE and SmoothOut against plain steps on NE's F1 and C1: medians and quartiles over rounds, a row a ratio."""
    cpu = device.type == "cpu"
    sizes = {"ne-f1": (100, 1000), "ne-c1": (16,) if cpu else (100, 1000)}
    rows = []
    for network, batch_sizes in sizes.items():
        for b in batch_sizes:
            times = interleaved(_steps(network, b, device), device, rounds)
            for row in ratios_of(times, _RATIOS):
                rows.append({"network": network, "B": b, **row})
    return pd.DataFrame(rows)


def interleaved(steps: Mapping[str, Step], device: torch.device, rounds: int, *, warm_up: int = 2) -> pd.DataFrame:
    """Time steps in turn: seconds, a column a step and a row a round, less the first `warm_up` rounds.

    >>> steps = {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.01)}
    >>> times = interleaved(steps, torch.device("cpu"), rounds=3)
    >>> len(times), bool((times["short"] < times["long"]).all())
    (3, True)
    """
    rows = []
    for _ in range(warm_up + rounds):
        row = {}
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            row[name] = time.perf_counter() - start
        rows.append(row)
    return pd.DataFrame(rows[warm_up:])


def two_passes(net: nn.Module, first: Batch, second: Batch, alpha: float) -> None:
    """Add NE's gradient (eq. 6) to `net`, one minibatch after the other: what one writes first."""
    for factor, (x, y) in ((alpha, first), (1 - alpha, second)):
        loss = F.cross_entropy(net(x), y)
        (factor * loss).backward()


def naive_smoothout(net: nn.Module, backward: Step) -> None:
    """SmoothOut as a loop over parameters, noise added and subtracted: what one writes first (and what drifts)."""
    with torch.no_grad():
        noise = [(torch.rand_like(p) * 2 - 1) * A for p in net.parameters()]
        for p, theta in zip(net.parameters(), noise, strict=True):
            p.add_(theta)
    backward()
    with torch.no_grad():
        for p, theta in zip(net.parameters(), noise, strict=True):
            p.sub_(theta)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratios_of(times: pd.DataFrame, ratios: Mapping[str, tuple[str, str]]) -> list[Row]:
    """Medians and quartiles over rounds of the ratios of two steps' times, a row a ratio."""
    rows: list[Row] = []
    for what, (step, other) in ratios.items():
        ratio = times[step] / times[other]
        low, high = ratio.quantile(0.25), ratio.quantile(0.75)
        rows.append({"what": what, "ratio": ratio.median(), "low": low, "high": high})
    return rows


def _steps(network: str, b: int, device: torch.device) -> dict[str, Step]:
    """Whole training steps (forward, backward, fused Adam), each with a model of its own."""
    shape = _IMAGES[network]
    x = torch.rand(2 * b, *shape, device=device)
    y = torch.randint(10, (2 * b,), device=device)
    first = (x[:b], y[:b])
    second = (x[b:], y[b:])

    def model(minibatches: int = 1) -> nn.Module:
        return build(network, shape, 10, minibatches=minibatches, device=device).train()

    def plain(net: nn.Module) -> None:
        _losses(net, first).mean().backward()

    def plain_2b(net: nn.Module) -> None:
        _losses(net, (x, y)).mean().backward()

    def noise_enhanced(net: nn.Module) -> None:
        noise_enhanced_loss(_losses(net, (x, y)), ALPHA).backward()

    def in_two_passes(net: nn.Module) -> None:
        two_passes(net, first, second, ALPHA)

    def naive(net: nn.Module) -> None:
        naive_smoothout(net, partial(plain, net))

    return {
        "plain B": _whole(model(), plain),
        "SmoothOut": _smoothout(model(), plain, A),
        "AdaSmoothOut": _smoothout(model(), plain, ADAPTIVE_A, adaptive=True),
        "naive SmoothOut": _whole(model(), naive),
        "noise alone": _noise_alone(model()),
        "naive noise alone": partial(naive_smoothout, model(), _nothing),
        "plain 2B": _whole(model(2), plain_2b),
        "NE": _whole(model(2), noise_enhanced),
        "NE in two passes": _whole(model(), in_two_passes),
    }


def _losses(net: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(net(x), y, reduction="none")


def _whole(net: nn.Module, backward: Backward) -> Step:
    """A step that updates `net` with the gradients that `backward` leaves."""
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def step() -> None:
        backward(net)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _smoothout(net: nn.Module, backward: Backward, a: float, adaptive: bool = False) -> Step:
    noise = SmoothOut(net, a, adaptive=adaptive)

    def perturbed(net: nn.Module) -> None:
        with noise.perturbed():
            backward(net)

    return _whole(net, perturbed)


def _noise_alone(net: nn.Module) -> Step:
    noise = SmoothOut(net, A)

    def there_and_back() -> None:
        with noise.perturbed():
            pass

    return there_and_back


def _nothing() -> None:
    pass
