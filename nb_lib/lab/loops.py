"""What a training loop that was written for clean weights may do to perturbed ones, and how that is noticed.

Weight noise is right where the backward pass meets the weights of its forward pass and every write goes to the clean
ones.  Loops break this silently: they call a part of the model, step a second optimizer, or compute a forward pass
anew in the middle of the backward one (activation checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from nb_lib.errors import InputError

if TYPE_CHECKING:
    from nb_lib.smoothout import SmoothOut

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Loop:
    """The training loop around a model whose weights `smooth` perturbs, seen through hooks."""

    def __init__(self, smooth: SmoothOut) -> None:
        self.smooth = smooth
        self.attached = False
        self.parameters = set(smooth.flat.parameters)
        self._first = 0  # draws before it was attached
        self._used: WeakKeyDictionary[torch.optim.Optimizer, int] = WeakKeyDictionary()  # draws at its last step
        _LOOPS.add(self)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, see to it that backward passes meet the weights of their forward passes."""
        model = self.smooth.model
        hook = model.register_forward_hook(Hook(model, self._after_forward))
        try:
            yield
        finally:
            hook.remove()

    def attach(self, optimizer: torch.optim.Optimizer) -> ExitStack:
        """See `smoothout.SmoothOut.attach`."""
        if self.attached:
            raise InputError("this SmoothOut is attached already: close() what attach() gave first.")
        self.smooth.flat.check()
        self._require_steps(optimizer)
        self.attached = True
        self._used.clear()
        self._first = self.smooth.draws
        model = self.smooth.model
        part = next(module for module in model.modules() if not self.parameters.isdisjoint(module._parameters.values()))
        hooks: list[tuple[nn.Module, Callable[[Hook], RemovableHandle], Callable[..., None]]] = [
            (model, model.register_forward_pre_hook, self._before_forward),
            (model, model.register_forward_hook, self._after_forward),
            (model, model.register_state_dict_pre_hook, self._before_state),
            (model, model.register_load_state_dict_pre_hook, self._before_state),
            (part, part.register_forward_pre_hook, self._before_part),
        ]
        stack = ExitStack()
        stack.callback(self._detach)
        for module, register, call in hooks:
            hook = Hook(module, call, self._before_copy)
            stack.callback(register(hook).remove)
        return stack

    def before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        """Before any optimizer's step: come back to clean weights if attached, else refuse a step that would be lost.

        What it gives are the arguments with which the step goes on.
        """
        smooth = self.smooth
        in_block = smooth.noisy and smooth.denoise
        if not (self.attached or in_block) or not self._updated_by(optimizer):
            return None
        if not self.attached:
            raise InputError("a step inside perturbed() would be lost: call optimizer.step() after the block.")
        if _in_backward():
            raise InputError("optimizer.step() in the middle of backward() meets noisy weights: step after it.")
        smooth.take_noise_off()

        def ending_clean(argument: Any) -> Any:
            """Make of the optimizer's closure one that ends at the clean weights, where the update belongs."""
            if not callable(argument):
                return argument

            def closure() -> Any:
                loss = argument()
                smooth.take_noise_off()
                self._require_noise(optimizer)
                return loss

            return closure

        if not any(map(callable, [*args, *kwargs.values()])):
            self._require_noise(optimizer)
        return tuple(map(ending_clean, args)), {name: ending_clean(value) for name, value in kwargs.items()}

    def _detach(self) -> None:
        self.attached = False
        self.smooth.take_noise_off()

    @torch.compiler.disable
    def _before_forward(self, *_: Any) -> None:
        training = self.smooth.model.training and torch.is_grad_enabled()
        if not _in_backward():
            if training:
                self.smooth.add_noise()
            else:
                self.smooth.take_noise_off()
        elif training and not _recomputes():
            raise InputError(
                "a training forward pass in the middle of backward(), as of reentrant activation checkpointing, would "
                "meet other weights: pass use_reentrant=False to checkpoint()."
            )

    def _before_part(self, *_: Any) -> None:
        """Before the first layer that is perturbed: in training it must be reached through the model itself."""
        smooth = self.smooth
        training = smooth.model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if training and smooth.a > 0 and not smooth.noisy and not _in_backward():
            raise self._not_called()

    def _after_forward(self, _: Any, outputs: Any) -> None:
        """Have the backward pass check that it meets the weights of this forward pass."""
        if torch.compiler.is_compiling() or not self.smooth.noisy:
            return
        flat = self.smooth.flat
        version = flat.version()

        def check(_: Tensor) -> None:
            if flat.version() != version:
                raise InputError(
                    "the weights are no longer those of this forward pass: call backward() inside perturbed(), or, "
                    "attached, before the next forward pass, evaluation or step."
                )

        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(check)

    def _before_state(self, *_: Any) -> None:
        self.smooth.take_noise_off()

    def _before_copy(self) -> None:
        if self.smooth.noisy:
            raise InputError("a copy of the model would keep its noise: copy it after optimizer.step().")

    def _updated_by(self, optimizer: torch.optim.Optimizer) -> bool:
        return any(not self.parameters.isdisjoint(group["params"]) for group in optimizer.param_groups)

    def _require_steps(self, optimizer: Any) -> None:
        """Raise unless the steps of this optimizer, perhaps a wrapped one, are seen here."""
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = optimizer.optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(
                f"attach() takes torch's optimizers, and {type(optimizer).__name__} is none: use perturbed() around "
                "forward and backward pass."
            )
        if not self._updated_by(optimizer):
            raise InputError(
                "this optimizer holds no parameter that is perturbed: attach to the one that updates them."
            )

    def _require_noise(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise if there are gradients to step along, but no training forward pass since the optimizer's last step."""
        smooth = self.smooth
        drawn = smooth.draws > self._used.get(optimizer, self._first)
        self._used[optimizer] = smooth.draws
        if drawn or smooth.a == 0 or all(p.grad is None for p in smooth.flat.parameters):
            return
        raise self._not_called()

    def _not_called(self) -> InputError:
        owner = type(self.smooth.model).__name__
        return InputError(
            f"the loop trains without noise: call the attached module itself ({owner}) in training mode, not its "
            "forward(), a part, a wrapper or what was compiled before attach(); or use perturbed()."
        )


class Hook:
    """A hook of one model: a deep copy of the model has `nothing` in its place.

    `before_copy` is called before the model is copied, and may raise.
    """

    def __init__(
        self, model: nn.Module, call: Callable[..., None], before_copy: Callable[[], None] | None = None
    ) -> None:
        self.model = model
        self.call = call
        self.before_copy = before_copy

    def __call__(self, model: nn.Module, *arguments: Any) -> None:
        """Call, if this is the model itself, and not a shallow copy."""
        if model is self.model:
            self.call(*arguments)

    def __deepcopy__(self, _: dict[int, Any]) -> Callable[..., None]:
        if self.before_copy:
            self.before_copy()
        return nothing

    def __reduce__(self) -> NoReturn:
        raise InputError("the model has SmoothOut's hooks: save its state_dict(), or close() what attach() gave first.")


def nothing(*_: Any) -> None:
    """Do nothing, in the place of a hook."""


def before_every_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Before the step of any optimizer, let every loop that lives have its say."""
    for loop in list(_LOOPS):
        args, kwargs = loop.before_step(optimizer, args, kwargs) or (args, kwargs)
    return args, kwargs


# once and for all: torch goes through its hooks in every step, when they must not change, and a loop may end any time
_LOOPS: WeakSet[Loop] = WeakSet()
register_optimizer_step_pre_hook(before_every_step)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _recomputes() -> bool:
    """Whether a forward pass in a backward one is that of activation checkpointing, not reentrant.

    In the reentrant form the first pass went without gradients, as an evaluation does.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
