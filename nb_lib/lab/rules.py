"""What a `Run` may be: known names, numbers in range, and no field that has no effect under the others."""

import dataclasses
import math
from typing import TYPE_CHECKING

from nb_lib.errors import InputError, check_alpha, check_strength, known
from nb_lib.lab import names

if TYPE_CHECKING:
    from nb_lib.lab.runs import Run


def check(run: "Run") -> None:
    """Raise `InputError` for the first field of a run that cannot be."""
    _check_names(run)
    _check_numbers(run)
    _check_image_size(run)
    _check_schedule(run)
    _check_effects(run)
    check_batches(run, run.train_size or math.inf, run.network in names.DENSE_NORMALIZED)


def _check_names(run: "Run") -> None:
    names.check_network(run.network)
    if not run.dataset.startswith("folder:"):
        known("dataset", run.dataset, names.DATASETS)
    known("input normalization", run.inputs, names.NORMALIZATIONS)
    known("distribution", run.distribution, names.DISTRIBUTIONS)
    known("selection of parameters", run.perturb, names.SELECTIONS)
    known("augmentation", run.augment, names.AUGMENTATIONS)
    known("optimizer", run.optimizer, names.OPTIMIZERS)
    known("learning-rate scaling", run.lr_scaling, names.LR_SCALINGS)
    known("precision", run.precision, names.PRECISIONS)
    known("cutting", run.cutting, names.CUTTINGS)


def _check_numbers(run: "Run") -> None:
    check_alpha(run.alpha)
    check_strength(run.a)
    for name in ("batch_size", "epochs", "image_size", "lr_reference", "noise_batch", "train_size"):
        _require(run, name, "at least 1", least=1)
    _require(run, "ghost_batch", "at least 2", least=2)
    for name in ("lr", "clip", "halve_at", "stop_below"):
        value = getattr(run, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be a positive finite number, not {value!r}.")
    for name in ("weight_decay", "valid_size", "seed", "split_seed"):
        _require(run, name, "at least 0", least=0)
    _require(run, "momentum", "in [0, 1)", least=0, below=1)


def _require(run: "Run", name: str, what: str, *, least: float, below: float = math.inf) -> None:
    value = getattr(run, name)
    if value is not None and not least <= value < below:
        raise InputError(f"{name} must be {what}, not {value!r}.")


def _check_image_size(run: "Run") -> None:
    """Refuse images of many sizes, and the augmentation that resizes, without a size."""
    if run.image_size is not None:
        return
    if run.dataset in names.TOO_LARGE:
        raise InputError(f"the images of {run.dataset} have many sizes: give image_size, the published one is 224.")
    if run.augment == "resized-crop-flip":
        raise InputError("augment 'resized-crop-flip' resizes to image_size: give it, or choose 'crop-flip'.")


def _check_schedule(run: "Run") -> None:
    for epoch, lr in run.lr_steps:
        if epoch < 0 or not 0 < lr < math.inf:
            raise InputError(f"lr_steps must be pairs of epoch and rate, not {run.lr_steps!r}.")
        if epoch == 0:
            raise InputError("lr_steps begin after epoch 0: the rate before the first of them is lr.")
        if epoch >= run.epochs:
            remedy = "leave it out, or shorten all as protocols.regime does"
            raise InputError(f"lr_steps has one at epoch {epoch}, after the last of {run.epochs}: {remedy}.")
    if run.halve_at and run.stop_below and run.halve_at < run.stop_below:
        raise InputError(f"halve_at {run.halve_at:g} is never reached above stop_below {run.stop_below:g}: raise it.")


def _check_effects(run: "Run") -> None:
    """Refuse a field that is not at its default though it has no effect, whatever its value."""
    defaults = {f.name: f.default for f in dataclasses.fields(run)}
    for name, reason in _without_effect(run).items():
        value = getattr(run, name)
        if reason and value != defaults[name]:
            raise InputError(f"{name} {value!r} has no effect, {reason}: leave it out.")


def _without_effect(run: "Run") -> dict[str, str]:
    """Why a field has no effect under the others; empty if it has one."""
    no_noise = "" if run.a else "there is no weight noise"
    published = names.published_ghost_batch(run.network)
    is_cut = published or (run.a and run.noise_batch)
    nothing_kept = run.optimizer == "sgd" and run.momentum == 0
    return {
        "distribution": no_noise,
        "adaptive": no_noise,
        "perturb": no_noise,
        "denoise": no_noise,
        "ghost_batch": "" if published else f"{run.network} has no batch normalization",
        "cutting": "" if is_cut else "no batch is cut into parts",
        "momentum": "" if run.optimizer == "sgd" else f"{run.optimizer} has none",
        "fresh_optimizer": "SGD without momentum keeps nothing" if nothing_kept else "",
        "lr_reference": "lr_scaling is none" if run.lr_scaling == "none" else "",
        "split_seed": "" if run.train_size or run.valid_size else "no subset is drawn",
    }


def check_batches(run: "Run", n: float, one_fails: bool) -> None:
    """Refuse a batch larger than the `n` training samples and, if `one_fails`, passes of one sample.

    Normalization that sees a single value a channel, as in dense layers, has no variance of one sample.
    """
    B = run.batch_size
    if n < B:
        raise InputError(f"batch_size {B} is larger than the training set ({n} samples).")
    if not one_fails:
        return
    fails = f"one sample, which the batch normalization of {run.network} cannot train on"
    if B == 1:
        raise InputError(f"batch_size 1 is {fails}: choose 2 or more.")
    if run.a and run.noise_batch == 1 and run.cutting == "rest":
        raise InputError(f"noise_batch 1 is {fails}: choose 2 or more.")
    if n % B == 1:
        raise InputError(f"batch_size {B} leaves of {n} samples {fails}: choose another batch_size or train_size.")
