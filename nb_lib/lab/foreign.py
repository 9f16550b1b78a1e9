"""Networks of other people, as measures need them: a copy that computes plainly, and sentences for what torch says."""

import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from nb_lib.errors import InputError
from nb_lib.lab.batch_statistics import batch_norms
from nb_lib.lab.device import out_of_memory, precision

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_TORCHS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)  # what misfits end in


def measurable(model: nn.Module) -> nn.Module:
    """A copy of the network within its wrappers; raises `InputError` if its loss is not one function of its weights."""
    model = _bare(model)
    if any(module.training for module in model.modules()):
        raise InputError("the network is in training mode, where its loss is random: call model.eval() first.")
    if any(layer.running_mean is None for layer in batch_norms(model)):
        raise InputError(
            "batch normalization without running statistics makes a sample's loss depend on the others: "
            "build it with track_running_stats=True."
        )
    if any(getattr(module, "max_norm", None) is not None for module in model.modules()):
        raise InputError("an embedding with max_norm writes to its weights in every pass: set its max_norm to None.")
    for p in model.parameters():
        if p.is_floating_point() and p.itemsize < 4:
            raise InputError(f"sharpness drowns in the rounding of {p.dtype}: call model.float() before measuring.")
    model = copied(model)
    for module in model.modules():
        if getattr(module, "sparse", None) is True:  # embeddings, whose gradients have the same values if dense
            module.sparse = False  # type: ignore[assignment]
    return model


@torch.inference_mode(False)
def copied(model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy with its own tensors, except those `shared`; what cannot be copied, as a lock or a file, is shared."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError("a scripted network cannot be copied: measure the network that it was made from.")
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    try:
        return deepcopy(model, dict(memo))
    except InputError:
        raise
    except Exception:  # whatever an attribute raises
        for module in model.modules():
            _replace_uncopyable(module, memo)
    try:
        return deepcopy(model, memo)
    except Exception as error:
        raise InputError(
            f"the network cannot be copied ({_line(error)}): give its class a __deepcopy__ that works."
        ) from error


@torch.no_grad()
def network_at(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy with these parameters; what else it has is shared."""
    everything = [*model.named_parameters(), *model.named_buffers()]
    network = copied(model, [tensor for name, tensor in everything if name not in weights])
    for name, tensor in weights.items():
        network.get_parameter(name).copy_(tensor)
    return network


def _replace_uncopyable(module: nn.Module, memo: dict[int, Any]) -> None:
    """Enter what stands for a module's attributes that cannot be copied: plain values of tensors with a history."""
    own = [value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")]
    for value in [*own, *module._buffers.values()]:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
            continue
        try:
            deepcopy(value)
        except Exception:
            memo[id(value)] = copy(value) if isinstance(value, dict | list) else value


def _bare(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif _is_compiled(model):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule"


@contextmanager
def plainly(model: nn.Module, device: torch.device, fast_attention: bool) -> Iterator[None]:
    """Compute one and the same differentiable function, with and without gradients, in full float32."""
    if parametrize._cache_enabled:
        raise InputError("inside parametrize.cached() a network does not see its weights change: measure outside.")
    with ExitStack() as stack:
        stack.enter_context(precision("float32", device))
        if not fast_attention:
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)
        for module in model.modules():
            if isinstance(module, nn.RNNBase) and device.type == "cuda":  # cuDNN's have no gradient in evaluation mode
                stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
                torch.backends.cudnn.enabled = False
            if _is_compiled(module):
                stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class PlainWeightNorm(TorchFunctionMode):
    """Computes torch's weight normalization from parts; the second derivative of its own kernel is wrong."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, *dim = args
        return v * (g / torch.norm_except_dim(v, 2, *dim))


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise what torch says of a misfit as one sentence that begins with `what`."""
    try:
        yield
    except InputError:
        raise
    except _TORCHS as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{what} ({_line(error)}).") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Let `vmap` be slow without saying so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def _line(error: Exception) -> str:
    """What an exception says, in one short line."""
    said = textwrap.shorten(str(error), 300, placeholder=" …")
    return f"{type(error).__name__}: {said}".rstrip(".")
