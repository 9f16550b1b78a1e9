"""What the methods cost, as ratios of whole training steps timed in turn in one run (``make bench``).

Times of one machine mean little on another, and drift on a busy one; a ratio of two steps taken one after the other,
and the median of many such ratios, does not.
"""

import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.lab.networks import build
from nb_lib.noise_enhancement import noise_enhanced_loss
from nb_lib.smoothout import SmoothOut

Step = Callable[[], None]
_ALPHA, _A = 1.5, 0.0375
_IMAGES = {"ne-f1": (1, 28, 28), "ne-c1": (3, 32, 32)}


def bench(device: torch.device, *, rounds: int = 15) -> pd.DataFrame:
    """Time NE and SmoothOut against plain steps on NE's F1 and C1; a row a ratio.

    Returns
    -------
    pandas.DataFrame
        Columns network, B, what, ratio (median over rounds), low and high (quartiles).
    """
    cpu = device.type == "cpu"
    sizes = {"ne-f1": (100, 1000), "ne-c1": (16,) if cpu else (100, 1000)}
    rows = []
    for network, batch_sizes in sizes.items():
        for b in batch_sizes:
            times = interleaved(_steps(network, b, device), device, rounds)
            rows += [{"network": network, "B": b, **row} for row in _ratios(times)]
    return pd.DataFrame(rows)


def interleaved(steps: dict[str, Step], device: torch.device, rounds: int) -> pd.DataFrame:
    """Seconds of each step, one row a round, the steps in turn within a round; two rounds of warm-up are dropped."""
    rows = []
    for _ in range(rounds + 2):
        row = {}
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            row[name] = time.perf_counter() - start
        rows.append(row)
    return pd.DataFrame(rows[2:])


def _ratios(times: pd.DataFrame) -> list[dict[str, object]]:
    series = {
        "NE ÷ plain step of 2B": times["NE"] / times["plain 2B"],
        "NE ÷ NE in two passes": times["NE"] / times["NE in two passes"],
        "SmoothOut ÷ plain step": times["SmoothOut"] / times["plain B"],
        "AdaSmoothOut ÷ plain step": times["AdaSmoothOut"] / times["plain B"],
        "naive SmoothOut ÷ plain step": times["naive SmoothOut"] / times["plain B"],
        # perturbation and return alone: as a difference of whole steps they drown in the noise of a convolution
        "noise of SmoothOut ÷ of naive": times["noise alone"] / times["naive noise alone"],
    }
    return [
        {"what": what, "ratio": r.median(), "low": r.quantile(0.25), "high": r.quantile(0.75)}
        for what, r in series.items()
    ]


def _steps(network: str, b: int, device: torch.device) -> dict[str, Step]:
    """Whole training steps (forward, backward, fused Adam), each with a model of its own."""
    x = torch.rand(2 * b, *_IMAGES[network], device=device)
    y = torch.randint(10, (2 * b,), device=device)

    def model(minibatches: int = 1) -> nn.Module:
        return build(network, _IMAGES[network], 10, minibatches=minibatches, device=device).train()

    def losses(net: nn.Module, part: slice) -> Tensor:
        return F.cross_entropy(net(x[part]), y[part], reduction="none")

    first, second, both = slice(b), slice(b, None), slice(None)

    def step(net: nn.Module, backward: Callable[[nn.Module], None]) -> Step:
        optimizer = torch.optim.Adam(net.parameters(), fused=True)

        def whole() -> None:
            backward(net)
            optimizer.step()
            optimizer.zero_grad()

        return whole

    def smooth(adaptive: bool) -> Step:
        net = model()
        noise = SmoothOut(net, 0.15 if adaptive else _A, adaptive=adaptive)

        def backward(net: nn.Module) -> None:
            with noise.perturbed():
                losses(net, first).mean().backward()

        return step(net, backward)

    def noise_alone() -> Step:
        noise = SmoothOut(model(), _A)

        def alone() -> None:
            with noise.perturbed():
                pass

        return alone

    def naive_alone() -> Step:
        net = model()
        return lambda: _naive(net, lambda: None)

    def two_passes(net: nn.Module) -> None:
        (_ALPHA * losses(net, first).mean()).backward()
        ((1 - _ALPHA) * losses(net, second).mean()).backward()

    return {
        "plain B": step(model(), lambda net: losses(net, first).mean().backward()),
        "SmoothOut": smooth(adaptive=False),
        "AdaSmoothOut": smooth(adaptive=True),
        "naive SmoothOut": step(
            model(), lambda net: _naive(net, lambda: losses(net, first).mean().backward())
        ),
        "noise alone": noise_alone(),
        "naive noise alone": naive_alone(),
        "plain 2B": step(model(2), lambda net: losses(net, both).mean().backward()),
        "NE": step(model(2), lambda net: noise_enhanced_loss(losses(net, both), _ALPHA).backward()),
        "NE in two passes": step(model(), two_passes),
    }


def _naive(net: nn.Module, backward: Step) -> None:
    """SmoothOut as a loop over parameters, noise added and subtracted: what one writes first (and what drifts)."""
    with torch.no_grad():
        noise = [(torch.rand_like(p) * 2 - 1) * _A for p in net.parameters()]
        for p, n in zip(net.parameters(), noise, strict=True):
            p.add_(n)
    backward()
    with torch.no_grad():
        for p, n in zip(net.parameters(), noise, strict=True):
            p.sub_(n)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
