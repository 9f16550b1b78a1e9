"""How far one of several processes has come that train a network together, and its random numbers, in checkpoints."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from nb_lib.errors import InputError
from nb_lib.lab.processes import BEGIN_ANEW, are_alike, load_together, save_together
from nb_lib.smoothout import SmoothOut

CURVE = ("epoch", "updates", "lr", "loss", "test_accuracy")


class Progress:
    """Weights, moments of the optimizer, random numbers, and counts: all that a training goes on from.

    Attributes
    ----------
    n : int
        Training images.
    epoch, done : int
        Epochs that are over, and updates in the present one.
    total : Tensor
        Sum of this process's losses in the present epoch, float64.
    curve : Tensor, shape [epochs, 5]
        What `CURVE` names, of each epoch that is over; NaN for the others.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, streams: "Streams", epochs: int, n: int
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.streams = streams
        self.device = streams.device
        self.n = n
        self.epoch, self.done = 0, 0
        self.total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.curve = torch.full((epochs, len(CURVE)), math.nan, dtype=torch.float64)
        self._earlier, self._began = 0.0, time.monotonic()

    @property
    def wall_time(self) -> float:
        """Seconds of training, those before it was resumed among them."""
        return self._earlier + time.monotonic() - self._began

    def end_epoch(self, *point: float) -> None:
        """Count an epoch, with its point of the curve."""
        self.curve[self.epoch] = torch.tensor(point, dtype=torch.float64)
        self.epoch, self.done = self.epoch + 1, 0
        self.total.zero_()

    def points(self) -> list[dict[str, float]]:
        """The curve, as a `Record` has it."""
        return [dict(zip(CURVE, point, strict=True)) for point in self.curve[: self.epoch].tolist()]

    def share_statistics(self) -> None:
        """Give everybody the running statistics of the first process, as DistributedDataParallel does at updates."""
        for buffer in self.model.buffers():
            dist.broadcast(buffer, 0)

    def save(self, folder: Path, number: int) -> None:
        """Keep all in checkpoint `number` of a folder, after a look at what DistributedDataParallel promises.

        There must have been an update: an optimizer without moments would be given some.
        """
        self.share_statistics()
        if not are_alike(self.device, self.model.parameters()):
            raise RuntimeError("the weights of the processes differ")
        totals = [torch.zeros_like(self.total) for _ in range(dist.get_world_size())]
        dist.all_gather(totals, self.total)
        state = self._state(get_optimizer_state_dict(self.model, self.optimizer)["state"])
        state |= {"counts": self._counts(), "totals": torch.stack(totals), self._own: self.streams.state_dict()}
        save_together(state, folder, number, self.device)

    def load(self, checkpoint: Path) -> bool:
        """Go on from a checkpoint; whether bit for bit, as with as many processes on the same kind of device.

        If not, this process's random numbers are left for the caller to begin anew.
        """
        here, there = self._counts(), self._counts()
        load_together({"counts": there}, checkpoint)
        if here[2] != there[2]:
            n, then = int(here[2]), int(there[2])
            raise InputError(f"{checkpoint} is of {then:,} images, and there are {n:,} now: {BEGIN_ANEW}.")
        alike = torch.equal(here[:2], there[:2])
        moments = get_optimizer_state_dict(self.model, self.optimizer)
        totals = torch.zeros(int(there[0]), dtype=torch.float64, device=self.device)
        streams = self.streams.state_dict()
        own = {self._own: streams} if alike else {}
        load_together(self._state(moments["state"]) | {"totals": totals} | own, checkpoint)
        set_optimizer_state_dict(self.model, self.optimizer, moments)
        *_, epoch, done, self._earlier = there.tolist()
        self.epoch, self.done = int(epoch), int(done)
        if alike:
            self.total = totals[dist.get_rank()]
            self.streams.load_state_dict(streams)
        else:
            self.total = totals.sum() if dist.get_rank() == 0 else torch.zeros_like(self.total)
        return alike

    def _state(self, moments: Any) -> dict[str, Any]:
        """What is the same in all processes, as tensors; what is loaded into them is in the network."""
        return {"model": self.model.state_dict(), "moments": moments, "curve": self.curve}

    @property
    def _own(self) -> str:
        return f"process {dist.get_rank()}"

    def _counts(self) -> Tensor:
        """Processes, whether on CUDA, images, epoch, updates in it, seconds."""
        place = dist.get_world_size(), self.device.type == "cuda"
        return torch.tensor([*place, self.n, self.epoch, self.done, self.wall_time], dtype=torch.float64)


class Streams:
    """Random numbers of this process: torch's global generators, and that of its weight noise, if it has any."""

    def __init__(self, device: torch.device, smooth: SmoothOut | None) -> None:
        self.device = device
        self.smooth = smooth

    def begin(self, *words: int) -> None:
        """Begin both anew: other words, as another rank, give other numbers."""
        noise, others = np.random.SeedSequence(words).generate_state(2)
        torch.manual_seed(int(others))
        if self.smooth:
            self.smooth.generator.manual_seed(int(noise))

    def state_dict(self) -> dict[str, Tensor]:
        """Where they are, as tensors."""
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.smooth:
            noise = self.smooth.state_dict()
            state |= {"noise": noise["generator"], "used": torch.tensor(noise["used"])}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        if self.smooth:
            noise = {"a": self.smooth.a, "generator": state["noise"], "used": int(state["used"])}
            self.smooth.load_state_dict(noise)
