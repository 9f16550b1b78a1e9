"""One update of training: that of noise enhancement (NE eq. 6), at SmoothOut's perturbed weights (Algorithm 1).

On a GPU most steps of the papers are too short to be launched operation by operation, so forward and backward pass
are recorded as one CUDA graph and the update of the weights as another (`graphs.Graphs`).  What draws random numbers
of its own, order of the samples and weight noise, stays outside: runs are the same with and without graphs.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.lab.augmentation import Views
from nb_lib.lab.data import Data
from nb_lib.lab.graphs import Graphs
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import make_network, make_optimizer, make_smoothout, noise_parts
from nb_lib.lab.weight_vector import FlatParameters
from nb_lib.noise_enhancement import noise_enhanced_loss


class TrainingStep:
    """Network, optimizer and weight noise of a run, or of K side by side; calling it makes one update.

    It learns from the training samples of `data`.  Its `model`, in training mode when this is called, is the network,
    or for K runs one that holds K (see `stacked.stack`).

    >>> from nb_lib.lab.setup import load_for
    >>> run = Run(train_size=100, batch_size=60, a=0.1)
    >>> step = TrainingStep([run], load_for(run, device="cpu"))
    >>> step(torch.arange(60).view(1, 1, 60)).shape  # of 100 digits the first 60, all at once
    torch.Size([1])
    """

    def __init__(self, runs: Sequence[Run], data: Data) -> None:
        self.run = runs[0]
        self.alone = len(runs) == 1
        self.samples = data.train if self.run.augment == "none" else Views(data.train, data.gray)
        self.model = make_network(runs, data)
        self.optimizer = make_optimizer(self.run, self.model)
        self.smooth = make_smoothout(self.run, self.model)
        self._device = data.device
        self.graphs = Graphs(self._device)
        self.rates = Rates(self.model, self.optimizer, len(runs), recorded=self.graphs.recording)

    def __call__(self, index: Tensor) -> Tensor:
        """Make one update.

        Parameters
        ----------
        index : Tensor, shape [K, 1 or 2, b]
            Which samples, or views of samples, are in B_t, and with α > 1 in B'_t.

        Returns
        -------
        Tensor, shape [K]
            Losses of B_t at the perturbed weights, summed.
        """
        alpha = self.run.alpha

        def backward(part: Tensor, share: float) -> Tensor:
            losses = self._losses(part)  # [K, b] of B_t, or with α > 1 [K, 2b] of B_t and then B'_t
            # L_B, or α L_B + (1 − α) L_B' (NE eq. 6), of each network
            loss = noise_enhanced_loss(losses, alpha) if alpha > 1 else losses.mean(-1)
            (loss.sum() * share).backward()  # g += share · ∇loss
            return losses.detach()[:, : part.shape[-1]].sum(-1)

        perturbed = self.smooth.perturbed if self.smooth else nullcontext
        batch_size = index.shape[-1]
        total = torch.tensor(0.0)
        for part in index.split(noise_parts(self.run, batch_size), dim=-1):
            with perturbed():  # w + θ, a new θ for each part (Algorithm 1)
                total = total + self.graphs(backward, part, part.shape[-1] / batch_size)
        # w again, to the last bit
        self.graphs(self._update)  # w ← w − η g
        return total

    def _losses(self, index: Tensor) -> Tensor:
        """Cross-entropies of the samples `index` [K, 1 or 2, b], one minibatch after the other, [K, b or 2b]."""
        index = index.flatten(1)
        x, y = self.samples[index[0] if self.alone else index]
        logits = self.model(x).float()
        losses = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
        return losses.view_as(index)

    def _update(self) -> None:
        """Let the optimizer make its step, w ← w − η g for plain SGD, and set g to 0."""
        if self.run.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.clip)
        self.rates.step()
        self.optimizer.zero_grad(set_to_none=not self.graphs.recording)  # a recorded step needs them to stay put

    def forget_gradients(self) -> None:
        """Let the optimizer begin anew: momentum, averages and the count of steps become 0, where they are."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def set_factors(self, factors: list[float]) -> None:
        """Give each network its factor of the learning rate (see `Rates`); 0 ends its training."""
        if self.rates.set_factors(factors):
            self.graphs.forget(self._update)

    def state_dict(self) -> dict[str, Any]:
        """State of the network, the optimizer, the weight noise and the factors of the learning rate."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "smooth": self.smooth.state_dict() if self.smooth else None,
            "factors": self.rates.factors,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.smooth:
            self.smooth.load_state_dict(state["smooth"])
        self.rates.set_factors(state["factors"])
        self.graphs = Graphs(self._device)  # the optimizer's state lies elsewhere now: record anew


class Rates:
    """Take the optimizer's steps, each network's with its own factor of the learning rate η, in `factors`: 1 at first.

    A network alone has its factor f in the optimizer's η.  Networks side by side share η, and once their factors part
    each one's change is scaled after the step: w ← w + f (w' − w).  That is the same up to rounding, as the steps of
    SGD and Adam are proportional to η, but it takes longer.  With `recorded` steps, those of CUDA graphs, η is read
    from a tensor of fixed address.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, networks: int, *, recorded: bool) -> None:
        self.factors = [1.0] * networks
        self._optimizer = optimizer
        self._recorded = recorded
        self._eta = torch.zeros((), device=next(model.parameters()).device)
        self._alone = networks == 1
        self._scale: Tensor | None = None  # the factors along the weights of all; None while they are all 1
        if not self._alone:
            self._weights = FlatParameters(model, "all")

    def set_lr(self, lr: float) -> None:
        """Take steps with the learning rate `lr`, times each network's factor, from now on."""
        eta: float | Tensor = lr * self.factors[0] if self._alone else lr
        if self._recorded:
            eta = self._eta.fill_(eta)
        for group in self._optimizer.param_groups:
            group["lr"] = eta

    def set_factors(self, factors: list[float]) -> bool:
        """Give each network its factor; alone it counts from the next `set_lr` on.

        True says that `step` consists of other operations from now on, and must be recorded anew.
        """
        changed = factors != self.factors
        self.factors = factors
        if self._alone or not changed:
            return False
        each = torch.tensor(factors, device=self._eta.device)
        sizes = [parameter.numel() // len(factors) for parameter in self._weights.parameters]  # of one network
        scale = torch.cat([each.repeat_interleave(size) for size in sizes])
        if self._scale is None:
            self._scale = scale
            return True
        self._scale.copy_(scale)
        return False

    @torch.no_grad()
    def step(self) -> None:
        """Let the optimizer make its step, w ← w − f η g for plain SGD with gradients g."""
        if self._scale is None:
            self._optimizer.step()
            return
        self._weights.save()
        self._optimizer.step()
        before, after = self._weights.clean, self._weights.work
        torch.lerp(before, after, self._scale, out=after)
