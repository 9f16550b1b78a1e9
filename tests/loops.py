"""Training loops as people write them, and as packages bring them, each as ``loop(case)``.

A case has a model, batches, a loss, and `around`: what goes around forward and backward pass in a loop that can be
edited.  In a loop of a package nothing can go there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, SequentialSampler

from nb_lib.smoothout import SmoothOut

STEPS = 5
Loss = Callable[[Tensor, Tensor], Tensor]


def network() -> nn.Sequential:
    """Dense layers and batch normalization; sizes of multiples of 16, so that gathering them changes no alignment."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16)
        )


def batches(steps: int = STEPS, seed: int = 1, size: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Draw inputs and classes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 16, generator=generator), torch.randint(16, (size,), generator=generator))
        for _ in range(steps)
    ]


def sgd(parameters: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    """SGD with momentum, so that every step shows in all later ones."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@dataclass
class Case:
    """One training: its parts, what it attaches, and what the loop notes beside the weights."""

    attach: Callable[[nn.Module, Any], AbstractContextManager] = lambda model, optimizer: nullcontext()
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    loss: Loss = F.cross_entropy
    model: nn.Sequential = field(default_factory=network)
    data: list[tuple[Tensor, Tensor]] = field(default_factory=batches)
    notes: list[Tensor] = field(default_factory=list)
    attached: ExitStack = field(default_factory=ExitStack)

    def attach_to(self, model: nn.Module, optimizer: Any) -> None:
        """Attach, until the result is asked for."""
        self.attached.push(self.attach(model, optimizer))

    def backward(self, x: Tensor, y: Tensor, model: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Forward and backward pass, as it may be edited."""
        with self.around():
            loss = self.loss((model or self.model)(x), y)
            loss.backward()
        return loss

    def result(self) -> list[Tensor]:
        """Where it ended: weights, running statistics, notes."""
        self.attached.close()
        return [t.detach().clone() for t in (*self.model.parameters(), *self.model.buffers(), *self.notes)]


class ByHand:
    """Algorithm 1 written out: clean weights cloned, noise of a twin's draws copied in, clean weights copied back."""

    def __init__(self, model: nn.Module, **noise: Any) -> None:
        self.model = model
        self.twin = deepcopy(model)
        self.smooth = SmoothOut(self.twin, **noise)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for p, value in zip(self.model.parameters(), values, strict=True):
            p.copy_(value)

    @contextmanager
    def perturbed(self):
        """Weights w + θ inside."""
        clean = [p.detach().clone() for p in self.model.parameters()]
        for p, w in zip(self.twin.parameters(), clean, strict=True):
            p.data.copy_(w)
        with self.smooth.perturbed():
            noisy = [p.detach().clone() for p in self.twin.parameters()]
        self._set(noisy)
        yield
        self._set(clean)


# ------------------------------------------------------------------------------------------- loops that can be edited


def plain(case: Case, make=sgd) -> None:
    """Forward, backward, step."""
    optimizer = make(case.model.parameters())
    case.attach_to(case.model, optimizer)
    for x, y in case.data:
        case.backward(x, y)
        optimizer.step()
        optimizer.zero_grad()


def closure(case: Case, make=sgd) -> None:
    """The optimizer calls forward and backward pass."""
    optimizer = make(case.model.parameters())
    case.attach_to(case.model, optimizer)
    for x, y in case.data:

        def evaluate(x=x, y=y):
            optimizer.zero_grad()
            return case.backward(x, y)

        optimizer.step(evaluate)


def closure_of_parts(case: Case) -> None:
    """The optimizer calls passes of several batches."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    for first in range(0, len(case.data) - 1, 2):

        def evaluate(first=first):
            optimizer.zero_grad()
            return sum(case.backward(x, y).detach() for x, y in case.data[first : first + 2])

        optimizer.step(evaluate)


def lbfgs(case: Case) -> None:
    """Several evaluations a step."""
    closure(case, lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=4, history_size=3))


def accumulation(case: Case) -> None:
    """Gradients of several batches in one step."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    for number, (x, y) in enumerate(case.data):
        case.backward(x, y)
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()


def scaler(case: Case) -> None:
    """Scaled losses, gradients unscaled and clipped; one step is skipped."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    scale = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    original = case.loss
    case.loss = lambda outputs, y: scale.scale(original(outputs, y))
    for number, (x, y) in enumerate(case.data):
        case.backward(x, y)
        if number == 2:
            case.model[3].weight.grad[0, 0] = torch.inf
        scale.unscale_(optimizer)
        nn.utils.clip_grad_norm_(case.model.parameters(), 0.5)
        scale.step(optimizer)
        scale.update()
        optimizer.zero_grad()


def clipping(case: Case) -> None:
    """The gradient's norm is clipped before the step."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    for x, y in case.data:
        case.backward(x, y)
        nn.utils.clip_grad_norm_(case.model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()


def two_optimizers(case: Case) -> None:
    """One for the body and one for the head; only one of them is known to SmoothOut."""
    body, head = case.model[:-1], case.model[-1]
    optimizers = [sgd(body.parameters()), torch.optim.Adam(head.parameters(), 0.01, fused=True)]
    case.attach_to(case.model, optimizers[1])
    for x, y in case.data:
        case.backward(x, y)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def average(case: Case) -> None:
    """A running average of the weights, taken after each step and evaluated."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    averaged = AveragedModel(case.model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for x, y in case.data:
        case.backward(x, y)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(case.model)
        case.notes.append(averaged.eval()(x))
        averaged.train()


def swa(case: Case) -> None:
    """Stochastic weight averaging, and the statistics of normalization anew for it."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    averaged = AveragedModel(case.model)
    for x, y in case.data:
        case.backward(x, y)
        optimizer.step()
        optimizer.zero_grad()
        averaged.update_parameters(case.model)
    update_bn(case.data, averaged)
    update_bn(case.data, case.model)
    case.notes += [*averaged.parameters(), *averaged.buffers()]


def checkpointed(case: Case, inside: bool, reentrant: bool) -> None:
    """Activation checkpointing of the whole model, or of its second half."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    outer, half = case.model, case.model[3:]
    if inside:
        original = half[0].forward
        half[0].forward = lambda x: checkpoint(original, x, use_reentrant=reentrant)
        call = outer
    else:

        def call(x):
            return checkpoint(outer, x.requires_grad_(), use_reentrant=reentrant)

    for x, y in case.data:
        case.backward(x, y, call)
        optimizer.step()
        optimizer.zero_grad()


def compiled(case: Case, first: bool) -> None:
    """torch.compile before SmoothOut is attached, or after it."""
    optimizer = sgd(case.model.parameters())
    torch.compiler.reset()
    call = torch.compile(case.model, backend="aot_eager")
    if first:
        statistics = {name: t.clone() for name, t in case.model.named_buffers()}
        call(case.data[0][0]).sum().backward()
        optimizer.zero_grad()
        for name, t in case.model.named_buffers():
            t.copy_(statistics[name])
    case.attach_to(case.model, optimizer)
    for x, y in case.data:
        case.backward(x, y, call)
        optimizer.step()
        optimizer.zero_grad()


def evaluated(case: Case) -> None:
    """Evaluation, and a state_dict, after every step."""
    optimizer = sgd(case.model.parameters())
    case.attach_to(case.model, optimizer)
    for x, y in case.data:
        case.backward(x, y)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            case.notes.append(case.model.eval()(x))
        case.model.train()
        case.notes += [t.clone() for t in case.model.state_dict().values()]


# ------------------------------------------------------------------------------------------------- loops of packages


def schedule_free(case: Case) -> None:
    """An optimizer whose weights are others in evaluation."""
    from schedulefree import SGDScheduleFree

    optimizer = SGDScheduleFree(case.model.parameters(), lr=0.1)
    case.attach_to(case.model, optimizer)
    optimizer.train()
    for x, y in case.data:
        case.backward(x, y)
        optimizer.step()
        optimizer.zero_grad()
        optimizer.eval()
        with torch.no_grad():
            case.notes.append(case.model.eval()(x))
        case.model.train()
        optimizer.train()


def accelerated(case: Case) -> None:
    """Accelerate's wrapped model, optimizer and loader, with accumulation."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    loader = DataLoader(case.data, batch_size=None)
    model, optimizer, loader = accelerator.prepare(case.model, sgd(case.model.parameters()), loader)
    case.attach_to(case.model, optimizer)
    for x, y in loader:
        with accelerator.accumulate(model):
            with case.around():
                accelerator.backward(case.loss(model(x), y))
            optimizer.step()
            optimizer.zero_grad()


def accelerated_by_hand(case: Case) -> None:
    """The same without it: the mean gradient of two batches, and the last batch alone."""
    optimizer = sgd(case.model.parameters())
    original = case.loss
    case.loss = lambda outputs, y: original(outputs, y) / 2
    for number, (x, y) in enumerate(case.data, 1):
        case.backward(x, y)
        if number % 2 == 0 or number == len(case.data):
            optimizer.step()
            optimizer.zero_grad()


def lightning(case: Case, whole: bool = False) -> None:
    """Lightning's automatic optimization with clipped gradients; `whole`: attached to the LightningModule."""
    import logging

    import pytorch_lightning as pl

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = case.model

        def training_step(self, batch, _):
            x, y = batch
            with case.around():
                return case.loss(self.net(x), y)

        def configure_optimizers(self):
            optimizer = sgd(self.parameters())
            case.attach_to(self if whole else self.net, optimizer)
            return optimizer

    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, barebones=True, gradient_clip_val=0.1)
    trainer.fit(Module(), DataLoader(case.data, batch_size=None))


def transformers_trainer(case: Case) -> None:
    """Hugging Face's Trainer, which clips gradients."""
    import tempfile

    from transformers import Trainer, TrainingArguments

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = case.model

        def forward(self, x, labels):
            with case.around():
                outputs = self.net(x)
                return {"loss": case.loss(outputs, labels), "logits": outputs}

    class InOrder(Trainer):
        def _get_train_sampler(self, *_):
            return SequentialSampler(self.train_dataset)

    size = len(case.data[0][1])
    samples = [{"x": x, "labels": y} for xs, ys in case.data for x, y in zip(xs, ys, strict=True)]
    wrapped = Wrapped()
    optimizer = sgd(wrapped.parameters())
    case.attach_to(wrapped, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=size,
            num_train_epochs=1,
            max_grad_norm=0.1,
            lr_scheduler_type="constant",
            learning_rate=0.1,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        InOrder(wrapped, arguments, train_dataset=samples, optimizers=(optimizer, None)).train()


class Halves(nn.Module):
    """Batch normalization of two minibatches, one after the other."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize both halves by themselves."""
        return torch.cat([self.norm(half) for half in x.chunk(2)])
