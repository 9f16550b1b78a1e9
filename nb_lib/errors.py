"""The one exception for input a person can mend, and the one way to say which names are known."""

import difflib
import math
from collections.abc import Iterable


class InputError(ValueError):
    """A value, file or name that cannot be used; the message is one sentence that says what to do.

    Notebooks show that sentence instead of a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """Return `name` if it is one of `names`, else raise with the nearest known one suggested.

    Raises
    ------
    InputError
        If `name` is not among `names`.
    """
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"unknown {kind} {name!r}: {hint}Known are {', '.join(names)}.")


def check_alpha(alpha: float) -> float:
    """Return `alpha` if it is a finite number of at least 1, else raise `InputError`."""
    if not (math.isfinite(alpha) and alpha >= 1):
        raise InputError(f"alpha must be a finite number of at least 1 (1 is ordinary SGD), not {alpha!r}.")
    return float(alpha)


def check_strength(a: float) -> float:
    """Return the noise strength `a` if it is a finite number of at least 0, else raise `InputError`."""
    if not (math.isfinite(a) and a >= 0):
        raise InputError(
            f"the noise strength a must be a finite number of at least 0 (0 is no noise), not {a!r}."
        )
    return float(a)
