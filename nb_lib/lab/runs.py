"""What is trained (`Run`) and what came out (`Record`), as plain values; `lab.store` keeps them."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from nb_lib.errors import InputError, known
from nb_lib.lab import names, rules
from nb_lib.lab.text import meant, read

LrSteps = tuple[tuple[int, float], ...]  # pairs of an epoch and the learning rate that holds from it on


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the outcome of one training, and nothing else.

    Defaults are plain large-batch Adam on the embedded digits.  α = 1 is ordinary SGD and a = 0 is no weight noise:
    the papers' methods are values, not modes.  Text is read by the type of its field (see `lab.text`).  An impossible
    value raises `InputError`, and so does one other than the default in a field that has no effect under the others
    (but `noise_batch` without noise: protocols name it for both).

    Parameters
    ----------
    network, dataset : str
        A name in `names.NETWORKS`, or ``"resnet<6n+2>"``; one in `names.DATASETS` or ``"folder:<name>"``.
    train_size, valid_size, split_seed
        Optional stratified subset, and samples held out of the training set, see `data.load`.
    inputs, optimizer, precision : str
        In `names.NORMALIZATIONS`, `OPTIMIZERS`, `PRECISIONS` ("tf32" for products on CUDA, "bfloat16" by autocast).
    augment : str
        In `names.AUGMENTATIONS`: "crop-flip" trains with a random view of each image (see `lab.augmentation`), or, with
        an `image_size`, resizes its shorter side to image_size · 256/224 and crops at random; "resized-crop-flip" crops
        a random part, 8 to 100 percent of the area, and resizes it.  Each may be mirrored.
    image_size : int or None
        Side in pixels of what training sees of images of any size, which ``torchrun examples/imagenet.py`` alone can;
        None uses images as they are, of a data set that lies whole on the device.
    batch_size, alpha
        B, and NE's α ≥ 1 (NE eq. 6): one update of NE processes 2B samples.
    a, distribution, adaptive, perturb, denoise
        SmoothOut's noise, see `smoothout.SmoothOut`; `perturb` is one of `names.SELECTIONS`.
    noise_batch : int or None
        Samples that share one draw of the weight noise: None is the whole batch (Algorithm 1), 128 the authors' code.
    ghost_batch : int or None
        Group size of ghost batch normalization; None takes the network's published one.
    cutting : str
        How a batch is cut into parts of these two sizes: "rest" into parts of exactly that size and what is left over,
        "even" into B // size nearly equal parts, as the SmoothOut authors' code does.
    lr, momentum, weight_decay, clip
        `momentum` for "sgd" only; `clip` is the largest global gradient norm.
    fresh_optimizer : bool
        Forget momentum, or Adam's averages, after each epoch, as the SmoothOut authors' code does.
    lr_scaling, lr_reference
        "sqrt" or "linear" multiplies the learning rates by (B / lr_reference) to the power 1/2 or 1.
    lr_steps : tuple of (epoch, lr)
        SmoothOut's schedules: from that epoch (counted from 0) on, this learning rate.
    halve_at, stop_below : float or None
        NE's L* and L**: halve the learning rate once when an epoch's mean training loss reaches `halve_at`, stop when
        it is below `stop_below`; `epochs` is then the limit.
    seed : int
        Of initialization, order (and views) of the data, weight noise and dropout, each with a stream of its own.

    Examples
    --------
    >>> Run(batch_size=512, lr=0.1, lr_scaling="sqrt").scaled_lr_steps
    ((0, 0.2),)
    """

    network: str = "digits-mlp"
    dataset: str = "digits"
    train_size: int | None = None
    valid_size: int = 0
    split_seed: int = 0
    inputs: str = "unit"
    augment: str = "none"
    image_size: int | None = None
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
    fresh_optimizer: bool = False
    lr_scaling: str = "none"
    lr_reference: int = 128
    lr_steps: LrSteps = ()
    halve_at: float | None = None
    stop_below: float | None = None
    epochs: int = 100
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = _as_declared(f.name, getattr(self, f.name), f.type)
            object.__setattr__(self, f.name, value)
        rules.check(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Run":
        """Build a run from plain values; an unknown name raises `InputError` with the nearest known one."""
        for name in fields:
            known("field of a run", name, cls.__dataclass_fields__)
        return cls(**fields)

    @property
    def key(self) -> str:
        """Hash of the fields that are not at their defaults (one added later leaves old keys alone), 16 digits."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        content = {name: value for name, value in vars(self).items() if value != defaults[name]}
        text = json.dumps(content, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The run in a few words, for progress bars and messages."""
        return f"{self.network} B={self.batch_size} α={self.alpha:g} a={self.a:g}"

    @property
    def scaled_lr_steps(self) -> LrSteps:
        """The learning rates and the epochs they start at, scaled for the batch size."""
        factor = (self.batch_size / self.lr_reference) ** names.LR_SCALINGS[self.lr_scaling]
        in_order = sorted(self.lr_steps, key=itemgetter(0))  # of several in one epoch the last counts
        return tuple((epoch, lr * factor) for epoch, lr in [(0, self.lr), *in_order])

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0, scaled for the batch size."""
        return [rate for start, rate in self.scaled_lr_steps if start <= epoch][-1]


def _as_declared(name: str, value: Any, kind: Any) -> Any:
    """Bring a value to its field's declared type, so that "1", 1, 1.0 and a JSON round trip give one key."""
    value = read(name, value, kind)
    if value is None and kind == kind | None:
        return None
    try:
        return _converted(value, kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{name} must be {meant(kind)}, not {value!r}.") from error


def _converted(value: Any, kind: Any) -> Any:
    """The value as a text, flag, number or schedule; a TypeError, or what Python makes of it, if it is none."""
    if kind == LrSteps:
        return tuple((_converted(epoch, int), _converted(lr, float)) for epoch, lr in value)
    for one in (int, float):
        if kind in (one, one | None):
            return _number(value, one)
    if not isinstance(value, kind):
        raise TypeError
    return value


def _number(value: Any, kind: type[int] | type[float]) -> float:
    if isinstance(value, bool | str):  # Python would make numbers of them
        raise TypeError
    number = kind(value)
    if kind is int and number != value:
        raise TypeError
    return number


@dataclass(frozen=True, kw_only=True)
class Record:
    """The outcome of one `Run`, with its provenance.

    Accuracies are fractions in [0, 1] and losses means over whole sets at the clean weights in evaluation mode;
    `curve` has at most 200 entries: epoch, updates, lr, the epoch's mean minibatch loss (NE's convergence criterion,
    of B_t only) and the test accuracy.  They are of every epoch, or, where the test set is larger than the training
    set, of as many as keep testing cheaper than training, and of the last; `best_test_accuracy` is the best of them.
    `updates` is NE's convergence time; `samples` counts both minibatches; `measures` are those of `nb_lib.measures`.
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

    def to_json(self) -> str:
        """One line of JSON; NaN and infinities, which JSON lacks, become null."""
        return json.dumps(_none_for_nan(dataclasses.asdict(self)), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Inverse of `to_json`; an `InputError` if the text is not a record."""
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["run"] = Run.from_dict(fields["run"])
            for f in dataclasses.fields(cls):
                if f.type is float and fields[f.name] is None:
                    fields[f.name] = math.nan
            measures = fields.get("measures") or {}
            for name in measures:
                measures[name] = math.nan if measures[name] is None else measures[name]
            return cls(**fields)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"not a record of a run ({type(error).__name__}).") from error

    def row(self) -> dict[str, Any]:
        """Run, outcome, measures and provenance as one flat row, without the curve.

        `epochs` and `samples` are of the training: the run's limit is `epochs_limit`, and the samples that the measures
        are of are `measured_samples`.
        """
        nested = ("run", "curve", "provenance", "measures")
        outcome = {name: value for name, value in vars(self).items() if name not in nested}
        run = self.run.to_dict() | {"epochs_limit": self.run.epochs}
        measures = dict(self.measures or {})
        if "samples" in measures:
            measures["measured_samples"] = measures.pop("samples")
        return {"key": self.run.key, **run, **outcome, **measures, **self.provenance}


def _none_for_nan(value: Any) -> Any:
    """A nested value with None for every number that is not finite."""
    if isinstance(value, dict):
        return {name: _none_for_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_none_for_nan(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
