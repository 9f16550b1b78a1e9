"""SmoothOut and AdaSmoothOut: minimize a smoothed loss, which has no sharp minima.

Wen et al., *SmoothOut: Smoothing out sharp minima to improve generalization in deep learning*, arXiv:1805.07898.
Every update is taken at randomly perturbed weights and applied to the clean ones (Algorithm 1, SmoothOut eq. 11):

    theta ~ U(-a, a)^m;   g = grad C(w + theta);   w <- w - eta g

so that, on average, it follows the gradient of the smoothed loss C̄(w; a) = E C(w + theta) (SmoothOut eqs. 1, 5, 8),
in which theta counts as a constant (SmoothOut eq. 10).  AdaSmoothOut scales the noise of each filter or neuron f to
its weights (SmoothOut eq. 12): theta_f = a |w_f| n_f / |n_f|.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError, check_strength, known
from nb_lib.lab.loops import Loop
from nb_lib.lab.names import DISTRIBUTIONS
from nb_lib.lab.weight_vector import FlatParameters, Selection

# Random numbers are most of SmoothOut's cost on a CPU, so one 64-bit word gives four of them: odd 16-bit integers,
# uniform on ±1, ±3 ... ±(2¹⁵−1).  Times a/2¹⁵ that is U(−a, a) on a grid of 2¹⁵ points, with mean exactly 0 and
# variance a²/3 to one part in 10⁹.
_UNIT = 2.0**-15
_ODD = 0x0001_0001_0001_0001
_DRAWS = 4  # perturbations that one filling of the words serves


def scaled_to_rows(n: Tensor, w: Tensor) -> Tensor:
    """Noise as long as the weights, ‖w_f‖ n_f / ‖n_f‖ for every row f of [rows, width]: SmoothOut eq. 12 without a.

    >>> scaled_to_rows(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]]))
    tensor([[6., 8.]])
    """
    return n * _length_ratio(n, w)


def _length_ratio(n: Tensor, w: Tensor) -> Tensor:
    smallest = torch.finfo(n.dtype).eps  # a draw of exactly 0 gets no noise, not 0 · ∞
    n_norm = torch.linalg.vector_norm(n, dim=1, keepdim=True).clamp_min_(smallest)
    w_norm = torch.linalg.vector_norm(w, dim=1, keepdim=True)
    return w_norm.div_(n_norm)


class SmoothOut:
    """Weight noise for a training step (SmoothOut eqs. 5, 11), taken off again to the last bit.

    Either around forward and backward pass, ``with smooth.perturbed(): criterion(model(x), y).backward()``, or, for a
    loop you cannot edit, as hooks: ``smooth.attach(optimizer)``.

    Parameters
    ----------
    model : Module
        Already on its device and in its precision.
    a : float
        Noise strength, at least 0: half-width of the uniform noise, standard deviation of the normal one, or, if
        `adaptive`, the ratio |theta_f| / |w_f|.  0 is no noise; ``smooth.a = ...`` changes it between steps.
    distribution : {"uniform", "normal"}
    adaptive : bool
        AdaSmoothOut (SmoothOut eq. 12).  A bias entry has noise of its own, ±a|b|, as in the authors' code.
    include : str or callable
        Which parameters are perturbed (see `lab.weight_vector`); by default all but those of normalization.
    denoise : bool
        False leaves the noise in the weights, where it accumulates: the ablation of section IV-C.
    seed : int
        Of this object's own random generator.  Give every rank of a parallel run its own.

    Attributes
    ----------
    flat : FlatParameters
        What is perturbed: ``smooth.flat.names``.
    noisy : bool
        Whether the weights are w + θ now.

    Examples
    --------
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> clean = layer.weight.clone()
    >>> with SmoothOut(layer, a=0.1).perturbed():
    ...     theta = layer.weight - clean
    >>> bool((theta.abs() < 0.1).all()), torch.equal(layer.weight, clean)
    (True, True)
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
        self.model = model
        self.a = a
        self.distribution = known("distribution", distribution, DISTRIBUTIONS)
        self.adaptive = adaptive
        self.denoise = denoise
        self.flat = flat = FlatParameters(model, include)
        self.generator = torch.Generator(flat.work.device).manual_seed(seed)
        self.noisy = False
        self.version = 0  # of the noisy weights, see `FlatParameters.version`
        self.draws = 0  # so often were weights perturbed, or would have been but for a = 0
        self._loop = Loop(self)
        self._unused: list[Tensor] = []
        if distribution == "uniform":
            self._words = torch.empty(len(flat), dtype=torch.int64, device=flat.work.device)
            self._draws = list(self._words.view(torch.int16).view(_DRAWS, -1))
        if adaptive:
            self._noise = torch.empty_like(flat.work)
            n, w, noisy = flat.rows(self._noise), flat.rows(flat.clean), flat.rows(flat.work)
            self._rows = list(zip(n, w, noisy, strict=True))

    @property
    def a(self) -> float:
        """Noise strength."""
        return self._a

    @a.setter
    def a(self, strength: float) -> None:
        self._a = check_strength(strength)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Weights w + θ inside, where ``backward()`` belongs, and bitwise w again outside, also after an exception.

        Raises
        ------
        InputError
            Inside, at the step of an optimizer, and at the end, if something else wrote to the weights: that would be
            lost.  Outside, at a ``backward()`` through what the model gave inside; it cannot be noticed with activation
            checkpointing in its reentrant form around the model, or of a part of it that was called by itself.
        """
        if self.noisy:
            raise InputError("the weights are perturbed already: leave the first perturbed() block before the next.")
        self.add_noise()
        try:
            with self._loop.watched():
                yield
        except BaseException:
            with suppress(InputError):  # the first exception counts
                self.take_noise_off()
            raise
        self.take_noise_off()

    def attach(self, optimizer: torch.optim.Optimizer) -> ExitStack:
        """Do the same through hooks, for a training loop that cannot be edited.

        Every training forward pass (``model.training`` and gradients enabled) draws fresh noise, but for the second one
        of activation checkpointing; the step of any optimizer of these parameters, an evaluation and ``state_dict()``
        come first back to the clean weights.  Between a training forward pass and the step the parameters are noisy.
        ``close()`` the result, or leave its ``with``, to end this.

        Raises
        ------
        InputError
            If `optimizer` does not update these parameters.  Later, whenever the loop would go on with other weights
            or gradients than Algorithm 1 has: at a step with gradients but no noise since the last one (the loop called
            ``model.forward``, a part or a wrapper of the model), a step in the backward pass, a backward pass through
            an earlier forward pass, a copy of the noisy model, reentrant checkpointing, and a write to noisy weights
            (but for one through ``.data``, which torch does not count).
        """
        return self._loop.attach(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, beside model and optimizer, to continue bit for bit."""
        if self._unused:
            return {"a": self.a, "generator": self._drawn_from, "used": _DRAWS - len(self._unused)}
        return {"a": self.a, "generator": self.generator.get_state(), "used": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the noise where `state_dict` was taken."""
        self.a = state["a"]
        self.generator.set_state(state["generator"].cpu())
        self._unused = []
        for _ in range(state["used"]):
            self._next_odd()

    @torch.no_grad()
    def add_noise(self) -> None:
        """Set the weights to w + θ; those there now are the clean w, unless they are noisy already."""
        self.draws += 1
        if self.a == 0:
            self.take_noise_off()
            return
        if self.noisy and self.denoise:
            self._refuse_lost()
        else:
            self.flat.save()
        self.noisy = True
        w, noisy, unit = self.flat.clean, self.flat.work, self.a * _UNIT
        if self.adaptive:
            self._add_adaptive_noise()
        elif self.distribution == "normal":  # θ ~ N(0, a²)
            torch.normal(w, self.a, generator=self.generator, out=noisy)
        elif w.itemsize < 4:  # half precision, in which a/2¹⁵ as a factor of torch's may be no number at all
            torch.add(w, self._next_odd() * unit, out=noisy)
        else:  # θ ~ U(−a, a), in one pass over memory; torch calls the factor alpha, which is not that of NE
            torch.add(w, self._next_odd(), alpha=unit, out=noisy)
        self.flat.written()
        self.version = self.flat.version()

    @torch.no_grad()
    def take_noise_off(self) -> None:
        """Put the clean weights back, where the update belongs (Algorithm 1); raise if others' writes are lost so."""
        noisy, self.noisy = self.noisy, False
        if noisy and self.denoise:
            try:
                self._refuse_lost()
            finally:
                self.flat.restore()

    def _refuse_lost(self) -> None:
        if self.flat.version() != self.version:
            raise InputError(
                "something wrote to the weights while they were perturbed, which is lost: write to them (clamp, "
                "average, load, renormalize) before the forward pass, or after the block or optimizer.step()."
            )

    def _add_adaptive_noise(self) -> None:
        """Set every filter or neuron to w_f + a ‖w_f‖ n_f / ‖n_f‖ (SmoothOut eq. 12)."""
        if self.distribution == "normal":
            self._noise.normal_(generator=self.generator)
        else:
            torch.mul(self._next_odd(), _UNIT, out=self._noise)
        for n, w, noisy in self._rows:  # a handful of matrices: the layout keeps rows of equal width together
            torch.addcmul(w, n, _length_ratio(n, w), value=self.a, out=noisy)

    def _next_odd(self) -> Tensor:
        """Odd 16-bit integers, one for each perturbed parameter, each used once."""
        if not self._unused:
            self._drawn_from = self.generator.get_state()
            self._words.random_(-(2**63), None, generator=self.generator).bitwise_or_(_ODD)
            self._unused = self._draws.copy()
        return self._unused.pop()
