"""SmoothOut and AdaSmoothOut: minimize a smoothed loss, which has no sharp minima.

Wen et al., *SmoothOut: Smoothing out sharp minima to improve generalization in deep learning*, arXiv:1805.07898.
Every update is taken at randomly perturbed weights and applied to the clean ones (Algorithm 1):

    theta ~ U(-a, a)^m;   g = grad C(w + theta);   w <- w - eta g

so that, on average, it follows the gradient of the smoothed loss C̄(w; a) = E C(w + theta) (eqs. 1, 5).
AdaSmoothOut scales the noise of each filter or neuron f to its weights (eq. 12): theta_f = a |w_f| n_f / |n_f|.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError, check_strength, known
from nb_lib.lab.names import DISTRIBUTIONS
from nb_lib.lab.weight_vector import FlatParameters, Selection

# Random numbers are most of SmoothOut's cost on a CPU, so one 64-bit word gives four of them: odd 16-bit integers,
# uniform on ±1, ±3 ... ±(2¹⁵−1).  Times a/2¹⁵ that is U(−a, a) on a grid of 2¹⁵ points, with mean exactly 0 and
# variance a²/3 to one part in 10⁹.
_UNIT = 2.0**-15
_ODD = 0x0001_0001_0001_0001
_DRAWS = 4  # perturbations that one filling of the words serves


class SmoothOut:
    """Weight noise for a training step, taken off again to the last bit.

    Either around forward and backward pass, in a loop of yours::

        smooth = SmoothOut(model, a=0.0375)
        with smooth.perturbed():
            criterion(model(x), y).backward()
        optimizer.step()

    or as hooks, for a loop you cannot edit: ``smooth.attach(optimizer)``.

    Parameters
    ----------
    model : torch.nn.Module
        Already on its device and in its precision.
    a : float
        Noise strength, at least 0: half-width of the uniform noise, standard deviation of the normal one, or, if
        `adaptive`, the ratio |theta_f| / |w_f|.  0 is no noise; ``smooth.a = ...`` changes it between steps.
    distribution : {"uniform", "normal"}
    adaptive : bool
        AdaSmoothOut, eq. 12.  A bias entry is a neuron of its own, so its noise is ±a|b|, as in the authors' code.
    include : str or callable
        Which parameters are perturbed (see `flat.FlatParameters`); weights and biases, not normalization, by default.
    denoise : bool
        False leaves the noise in the weights, where it accumulates: the ablation of section IV-C.
    seed : int
        Of this object's own random generator.  Give every rank of a parallel run its own.

    Notes
    -----
    Beside the model's weights it keeps one clean copy and random words of twice their size in float32 (and one
    vector more if `adaptive`).  A perturbation and its return are three operations, and one draw for every four.
    """

    def __init__(
        self,
        model: nn.Module,
        a: float,
        *,
        distribution: str = "uniform",
        adaptive: bool = False,
        include: Selection = "no-norm",
        denoise: bool = True,
        seed: int = 0,
    ) -> None:
        self.model, self.a, self.denoise = model, a, denoise
        self.distribution, self.adaptive = known("distribution", distribution, DISTRIBUTIONS), adaptive
        self.flat = FlatParameters(model, include)
        device = self.flat.work.device
        self.generator = torch.Generator(device).manual_seed(seed)
        self._unused: list[Tensor] = []
        if distribution == "uniform":
            self._words = torch.empty(len(self.flat), dtype=torch.int64, device=device)
            self._draws = list(self._words.view(torch.int16).view(_DRAWS, -1))
        if adaptive:
            self._noise = torch.empty_like(self.flat.work)
            columns = (self._noise, self.flat.clean, self.flat.work)
            self._rows = list(zip(*(self.flat.rows(vector) for vector in columns), strict=True))
        self._noisy = False

    @property
    def a(self) -> float:
        """Noise strength, at least 0; may be changed between steps."""
        return self._a

    @a.setter
    def a(self, strength: float) -> None:
        self._a = check_strength(strength)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Weights w + θ inside, bitwise w again outside, also after an exception.

        Call ``backward()`` inside: afterwards it raises, because the weights it needs are gone.
        """
        if self._noisy:
            raise InputError(
                "the weights are perturbed already: leave the first perturbed() block before the next."
            )
        self._perturb()
        try:
            yield
        finally:
            self._return()

    def attach(self, optimizer: torch.optim.Optimizer) -> ExitStack:
        """Do the same through hooks, for a training loop that cannot be edited.

        Every training forward pass (``model.training`` and gradients enabled) draws fresh noise; the optimizer's
        step, an evaluation and ``state_dict()`` come first back to the clean weights.  Between a training forward
        pass and the step the parameters are noisy.

        Returns
        -------
        contextlib.ExitStack
            ``close()`` it, or use it in ``with``, to take the hooks off again.
        """

        def before_forward(model: nn.Module, _: Any) -> None:
            if model is not self.model:  # a deep copy (a teacher, an average) carries the hooks along
                return
            if model.training and torch.is_grad_enabled():
                self._perturb()
            else:
                self._return()

        def before_state(model: nn.Module, *_: Any) -> None:
            if model is self.model:
                self._return()

        def before_step(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            self._return()
            return tuple(map(self._then_return, args)), {k: self._then_return(v) for k, v in kwargs.items()}

        stack = ExitStack()
        stack.callback(self._return)
        for handle in (
            self.model.register_forward_pre_hook(before_forward),
            self.model.register_state_dict_pre_hook(before_state),
            self.model.register_load_state_dict_pre_hook(before_state),
            optimizer.register_step_pre_hook(before_step),
        ):
            stack.callback(handle.remove)
        return stack

    def _then_return(self, argument: Any) -> Any:
        """Make of an optimizer's closure one that ends at the clean weights, where the update belongs."""
        if not callable(argument):
            return argument

        def closure() -> Any:
            loss = argument()
            self._return()
            return loss

        return closure

    def state_dict(self) -> dict[str, Any]:
        """State of the noise: what a resumed run needs, beside model and optimizer, to continue bit for bit."""
        if not self._unused:
            return {"a": self.a, "generator": self.generator.get_state(), "used": 0}
        return {"a": self.a, "generator": self._drawn_from, "used": _DRAWS - len(self._unused)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the noise where `state_dict` was taken."""
        self.a = state["a"]
        self.generator.set_state(state["generator"].cpu())
        self._unused = []
        for _ in range(state["used"]):
            self._next_odd()

    @torch.no_grad()
    def _perturb(self) -> None:
        """Set the weights to clean ones + noise; those there now are the clean ones, unless they are noisy already."""
        if not self.a:
            return self._return()
        if not (self._noisy and self.denoise):
            self.flat.save()
        self._noisy = True
        clean, work = self.flat.clean, self.flat.work
        if self.adaptive:
            self._scale_to_rows()
        elif self.distribution == "normal":
            torch.normal(clean, self.a, generator=self.generator, out=work)
        elif (
            work.itemsize < 4
        ):  # alpha would be rounded to half precision, where a/2¹⁵ may be no number at all
            torch.add(clean, self._next_odd() * (self.a * _UNIT), out=work)
        else:
            torch.add(clean, self._next_odd(), alpha=self.a * _UNIT, out=work)
        self.flat.written()
        return None

    @torch.no_grad()
    def _return(self) -> None:
        if self._noisy and self.denoise:
            self.flat.restore()
        self._noisy = False

    def _scale_to_rows(self) -> None:
        """work_f = w_f + a |w_f| n_f / |n_f| for every filter or neuron f (eq. 12)."""
        if self.distribution == "normal":
            self._noise.normal_(generator=self.generator)
        else:
            torch.mul(self._next_odd(), _UNIT, out=self._noise)
        eps = torch.finfo(self._noise.dtype).eps  # a draw of exactly 0 gets no noise, not 0 · ∞
        for n, w, out in self._rows:  # a handful of matrices: the layout keeps rows of equal width together
            n_norm = torch.linalg.vector_norm(n, dim=1, keepdim=True).clamp_min_(eps)
            w_norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
            torch.addcmul(w, n, w_norm.div_(n_norm), value=self.a, out=out)

    def _next_odd(self) -> Tensor:
        """Odd 16-bit integers, one for each perturbed parameter, each used once."""
        if not self._unused:
            self._drawn_from = self.generator.get_state()
            self._words.random_(-(2**63), None, generator=self.generator).bitwise_or_(_ODD)
            self._unused = self._draws.copy()
        return self._unused.pop()
