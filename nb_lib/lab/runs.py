"""What was trained (`Run`), what came out (`Record`), and the folder that keeps it (`RunStore`)."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import Any

from nb_lib.errors import InputError, check_alpha, check_strength, known
from nb_lib.lab.names import (
    CUTTINGS,
    DATASETS,
    DISTRIBUTIONS,
    LR_SCALINGS,
    NETWORKS,
    NORMALIZATIONS,
    OPTIMIZERS,
    PRECISIONS,
    SELECTIONS,
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the outcome of one training, and nothing else.

    Defaults are plain large-batch Adam on the embedded digits.  α = 1 is ordinary SGD and a = 0 is no weight noise:
    the papers' methods are values, not modes.

    Parameters
    ----------
    network, dataset : str
        A name in `networks.NETWORKS`; one in `data.DATASETS` or ``"folder:<name>"``.
    train_size, valid_size, split_seed
        Optional stratified subset, and samples held out of the training set, see `data.load`.
    inputs : str
        One of `data.NORMALIZATIONS`.
    batch_size : int
        B; one update of NE processes 2B samples.
    alpha : float
        NE's α ≥ 1 (NE eq. 6).
    a, distribution, adaptive, perturb, denoise
        SmoothOut's noise, see `smoothout.SmoothOut`; `perturb` is one of `flat.SELECTIONS`.
    noise_batch : int or None
        Samples that share one draw of the weight noise: None is the whole batch (Algorithm 1), 128 the authors' code.
    ghost_batch : int or None
        Group size of ghost batch normalization; None takes the network's published one.
    cutting : str
        How a batch is cut into parts of these two sizes, one of `networks.CUTTINGS`: "rest" cuts parts of exactly that
        size and what is left over, "even" B // size nearly equal parts, as the SmoothOut authors' code does.
    optimizer, lr, momentum, weight_decay, clip
        `momentum` for "sgd" only; `clip` is the largest global gradient norm.
    lr_scaling : str
        "sqrt" or "linear" multiplies the learning rates by (B / lr_reference) to the power 1/2 or 1.
    lr_reference : int
    lr_steps : tuple of (epoch, lr)
        SmoothOut's schedules: from that epoch (counted from 0) on, this learning rate.
    halve_at, stop_below : float or None
        NE's L* and L**: halve the learning rate once when an epoch's mean training loss reaches `halve_at`, stop when
        it is below `stop_below`.
    epochs : int
        Length of the training, or its limit if `stop_below` is given.
    precision : str
        "float32", "tf32" (matrix products on CUDA) or "bfloat16" (autocast).
    seed : int
        Of initialization, order of the data, weight noise and dropout, each with a stream of its own.

    Raises
    ------
    InputError
        For any impossible value, with the nearest known name where a name is unknown.
    """

    network: str = "digits-mlp"
    dataset: str = "digits"
    train_size: int | None = None
    valid_size: int = 0
    split_seed: int = 0
    inputs: str = "unit"
    batch_size: int = 100
    alpha: float = 1.0
    a: float = 0.0
    distribution: str = "uniform"
    adaptive: bool = False
    perturb: str = "no-norm"
    denoise: bool = True
    noise_batch: int | None = None
    ghost_batch: int | None = None
    cutting: str = "rest"
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float | None = None
    lr_scaling: str = "none"
    lr_reference: int = 128
    lr_steps: tuple[tuple[int, float], ...] = ()
    halve_at: float | None = None
    stop_below: float | None = None
    epochs: int = 100
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _coerced(f, getattr(self, f.name)))
        known("network", self.network, NETWORKS)
        if not self.dataset.startswith("folder:"):
            known("dataset", self.dataset, DATASETS)
        known("input normalization", self.inputs, NORMALIZATIONS)
        known("distribution", self.distribution, DISTRIBUTIONS)
        known("selection of parameters", self.perturb, SELECTIONS)
        known("optimizer", self.optimizer, OPTIMIZERS)
        known("learning-rate scaling", self.lr_scaling, LR_SCALINGS)
        known("precision", self.precision, PRECISIONS)
        known("cutting", self.cutting, CUTTINGS)
        check_alpha(self.alpha)
        check_strength(self.a)
        for name in ("batch_size", "epochs", "lr_reference", "noise_batch", "train_size"):
            self._require(name, lambda v: v >= 1, "at least 1")
        if self.train_size is not None and self.batch_size > self.train_size:
            raise InputError(
                f"batch_size {self.batch_size} is larger than the training set ({self.train_size} samples)."
            )
        self._require("ghost_batch", lambda v: v >= 2, "at least 2")
        for name in ("lr", "clip", "halve_at", "stop_below"):
            self._require(name, lambda v: 0 < v < math.inf, "a positive finite number")
        for name in ("weight_decay", "valid_size", "seed", "split_seed"):
            self._require(name, lambda v: 0 <= v < math.inf, "at least 0")
        self._require("momentum", lambda v: 0 <= v < 1, "in [0, 1)")
        self._require(
            "lr_steps", lambda v: all(e >= 0 and 0 < r < math.inf for e, r in v), "pairs of epoch and rate"
        )

    def _require(self, name: str, holds: Any, what: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise InputError(f"{name} must be {what}, not {value!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Run":
        """Build a run from plain values; an unknown name raises `InputError` with the nearest known one."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{known("field of a run", name, names): value for name, value in fields.items()})

    @property
    def key(self) -> str:
        """Hash of the content, 16 hexadecimal digits.

        Fields at their defaults do not enter, so a field added later leaves the keys of stored runs alone.
        """
        content = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The run in a few words, for progress bars and messages."""
        return f"{self.network} B={self.batch_size} α={self.alpha:g} a={self.a:g}"

    @property
    def scaled_lr_steps(self) -> tuple[tuple[int, float], ...]:
        """The learning rates and the epochs they start at, scaled for the batch size."""
        factor = (self.batch_size / self.lr_reference) ** LR_SCALINGS[self.lr_scaling]
        return tuple((epoch, lr * factor) for epoch, lr in ((0, self.lr), *sorted(self.lr_steps)))


def _coerced(f: "dataclasses.Field[Any]", value: Any) -> Any:
    """Bring a value to its field's type, so that 1, 1.0 and a JSON round trip give one key."""
    optional, kind = "None" in str(f.type), f.type
    if value is None and optional:
        return None
    try:
        if f.name == "lr_steps":
            return tuple((int(epoch), float(lr)) for epoch, lr in value)
        if kind is bool or kind is str:
            if not isinstance(value, kind):
                raise TypeError
            return value
        if isinstance(value, bool | str):
            raise TypeError
        if "float" in str(kind):
            return float(value)
        if int(value) != value:
            raise TypeError
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise InputError(f"{f.name} must be of type {name}, not {value!r}.") from error


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one `Run`, with its provenance.

    Accuracies are fractions in [0, 1] and losses means over whole sets at the clean weights in evaluation mode;
    `curve` has at most 200 entries: epoch, updates, lr, the epoch's mean minibatch loss (NE's convergence criterion,
    of B_t only) and the test accuracy. They are of every epoch, or, where the test set is larger than the training
    set, of as many as keep testing cheaper than training, and of the last; `best_test_accuracy` is the best of them.
    `updates` is NE's convergence time; `samples` counts both minibatches.  `measures` are those of `nb_lib.measures`,
    if they were asked for.
    """

    run: Run
    status: str
    test_accuracy: float
    best_test_accuracy: float
    valid_accuracy: float | None
    train_accuracy: float
    train_loss: float
    test_loss: float
    epochs: int
    updates: int
    samples: int
    wall_time: float
    curve: list[dict[str, float]] = field(repr=False)
    provenance: dict[str, Any] = field(repr=False)
    measures: dict[str, float] | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """The run's key."""
        return self.run.key

    def to_json(self) -> str:
        """One line of JSON; NaN and infinities, which JSON lacks, become null."""
        return json.dumps(_finite(dataclasses.asdict(self)), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Inverse of `to_json`.

        Raises
        ------
        InputError
            If the text is not a record.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["run"] = Run.from_dict(fields["run"])
            for metric in (f.name for f in dataclasses.fields(cls) if f.type is float):
                fields[metric] = math.nan if fields[metric] is None else fields[metric]
            if found := fields.get("measures"):
                fields["measures"] = {name: math.nan if v is None else v for name, v in found.items()}
            return cls(**fields)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"not a record of a run ({type(error).__name__}).") from error

    def row(self) -> dict[str, Any]:
        """Run, outcome, measures and provenance as one flat row, without the curve."""
        outcome = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for nested in ("run", "curve", "provenance", "measures"):
            del outcome[nested]
        # a name both have, `epochs`, is the limit in the run and the number trained in the outcome
        limit = {"epochs_limit": self.run.epochs}
        return {
            "key": self.key,
            **self.run.to_dict(),
            **limit,
            **outcome,
            **(self.measures or {}),
            **self.provenance,
        }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
