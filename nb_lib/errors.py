"""The one exception for input a person can mend, and the checks of values that several modules share."""

import difflib
import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any


class InputError(ValueError):
    """A value, file or name that cannot be used; the message is one sentence that says what to do."""

    def _render_traceback_(self) -> list[str]:  # notebooks show the sentence instead of a traceback
        return [f"{type(self).__name__}: {self}"]


class CannotWrite(InputError):
    """What was computed cannot be kept where it should be: nothing more is to be computed before that is mended."""


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`, else raise `InputError` with the nearest known one suggested.

    >>> known("color", "blew", ["blue", "red"])
    Traceback (most recent call last):
    nb_lib.errors.InputError: unknown color 'blew': did you mean 'blue'? Known are blue, red.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown {kind} {name!r}: {hint}Known are {', '.join(names)}.")


def whole(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return `value` if it is a whole number from `least` to `most`, else raise `InputError`."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if is_whole and least <= value <= most:
        return int(value)
    limits = f"{least} or more" if most == math.inf else f"from {least} to {most}"
    raise InputError(f"{name} must be a whole number, {limits}, not {value!r}.")


def positive(name: str, value: float) -> float:
    """Return `value` if it is a finite number greater than 0, else raise `InputError`."""
    number = _number(value)
    if not 0 < number < math.inf:
        raise InputError(f"{name} must be a finite number greater than 0, not {value!r}.")
    return number


def check_alpha(alpha: float) -> float:
    """Return the strength α of noise enhancement if it is a finite number of at least 1, else raise `InputError`."""
    number = _number(alpha)
    if not 1 <= number < math.inf:
        raise InputError(f"alpha must be a finite number of at least 1 (1 is ordinary SGD), not {alpha!r}.")
    return number


def check_strength(a: float) -> float:
    """Return the noise strength a of SmoothOut if it is a finite number of at least 0, else raise `InputError`."""
    number = _number(a)
    if not 0 <= number < math.inf:
        raise InputError(f"the noise strength a must be a finite number of at least 0 (0 is no noise), not {a!r}.")
    return number


def _number(value: Any) -> float:
    """The value as a number; NaN, which is in no range, if it is none."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_batch_size(B: int, n: int) -> int:
    """Return `B` if that many of `n` samples can be drawn, else raise `InputError`."""
    if isinstance(B, Integral) and 1 <= B <= n:
        return int(B)
    raise InputError(f"the batch size B must be a whole number from 1 to the {n} samples, not {B!r}.")
