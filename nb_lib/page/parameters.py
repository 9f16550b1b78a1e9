"""One call that refuses a notebook's impossible parameters before anything is computed, in one sentence each.

What two parameters must fulfill together (a batch size of at most n) is left to the library.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Real
from typing import Any

from nb_lib import errors, papers
from nb_lib.errors import InputError, known
from nb_lib.lab.names import DATASETS, check_network

#: Raises `InputError` if the parameter of this name cannot have this value.
Rule = Callable[[str, Any], object]


def check(notebook: str = "", /, **given: Any) -> None:
    """Refuse impossible values of the parameters `given`, by the `RULES` of their names.

    The rules of `notebook`, as ``RULES["escape.steps"]``, go before those for all notebooks, as ``RULES["steps"]``.

    Raises
    ------
    InputError
        For the first impossible value: which parameter, what it must be, and what it was.
    KeyError
        If there is no rule for a name.

    Examples
    --------
    >>> check(eta=0.1, batch_size=50)
    >>> check(batch_size=2.5)
    Traceback (most recent call last):
    nb_lib.errors.InputError: batch_size must be a whole number, 1 or more, not 2.5.
    """
    for name, value in given.items():
        rule = RULES.get(f"{notebook}.{name}") or RULES.get(name)
        if rule is None:
            raise KeyError(f"no rule for the parameter {name}: add one to nb_lib.page.parameters.RULES")
        rule(name, value)


def must_be(what: str, fits: Callable[[Any], bool]) -> Rule:
    """A value that `fits`."""

    def rule(name: str, value: Any) -> None:
        if not fits(value):
            raise InputError(f"{name} must be {what}, not {value!r}.")

    return rule


def both(first: Rule, second: Rule) -> Rule:
    """A value that follows two rules."""

    def rule(name: str, value: Any) -> None:
        first(name, value)
        second(name, value)

    return rule


def whole(least: int, most: float = math.inf) -> Rule:
    """A whole number from `least` to `most`."""
    not_a_flag = must_be("a whole number", lambda value: not isinstance(value, bool))
    return both(not_a_flag, partial(errors.whole, least=least, most=most))


def one_of(names: Iterable[str]) -> Rule:
    """A name that is known."""
    return partial(known, names=names)


def optional(rule_if_given: Rule) -> Rule:
    """None, or a value that follows another rule."""

    def rule(name: str, value: Any) -> None:
        if value is not None:
            rule_if_given(name, value)

    return rule


def several(rule_of_each: Rule, number: int | None = None) -> Rule:
    """A list of values that each follow another rule: so many, or any number but none."""
    what = "a list of at least one value" if number is None else f"a list of {number} values"

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) > 0 and number in (None, len(value))

    def each(name: str, values: Any) -> None:
        for value in values:
            rule_of_each(f"each of {name}", value)

    return both(must_be(what, fits), each)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)  # True and False are none
    return is_number and math.isfinite(value)


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z]+(:\d+)?", value) is not None


def _network(_: str, value: Any) -> None:
    check_network(str(value))


def _dataset(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value.startswith("folder:")):
        known(name, value, [*DATASETS, "folder:NAME"])


_finite = must_be("a finite number", _is_finite)
_positive = both(_finite, errors.positive)
_not_negative = both(_finite, must_be("a finite number of at least 0", lambda value: value >= 0))
_alpha = both(_finite, lambda name, value: errors.check_alpha(value))
_strength = both(_finite, lambda name, value: errors.check_strength(value))
_flag = must_be("True or False", lambda value: isinstance(value, bool))
_path = must_be("the path of a folder", lambda value: isinstance(value, str | os.PathLike) and os.fspath(value) != "")
_device = must_be("'cpu', 'cuda' or 'auto'", _is_device)
_address = must_be("an address like 'tcp://host:8786'", lambda value: isinstance(value, str) and value != "")

_TABLE_1 = papers.matching("smoothout-table1")
_listed = ", ".join(_TABLE_1)

#: By the name of a parameter; "notebook.name" for one that needs more in one notebook than elsewhere.
RULES: dict[str, Rule] = {}
for _rule, _names in {
    # trainings
    _network: "network",
    optional(_dataset): "dataset",
    optional(whole(1)): "train_size epochs ne_experiments.seeds smoothout_experiments.seeds",
    whole(1): "batch_size large_batch seeds B steps walkers count",
    whole(2): "landscape.seeds samples turning_up.count",
    several(whole(1)): "batch_sizes",
    several(whole(1), 2): "sharpness.batch_sizes",
    _alpha: "alpha",
    several(_alpha): "alphas",
    several(_strength): "strengths adaptive_strengths small large",
    several(_strength, 2): "landscape.strengths sharpness.strengths",
    optional(_positive): "stop_below",
    optional(_path): "data_root store",
    _flag: "download train",
    _device: "device",
    # experiments
    one_of(papers.GRIDS): "grid",
    must_be(f"one of Table I's, {_listed}", lambda value: value in _TABLE_1): "smoothout_experiments.grid",
    one_of(papers.SCALES): "scale",
    optional(one_of(papers.SCALES)): "compare.scale",
    optional(_not_negative): "budget",
    optional(_address): "scheduler",
    several(_path): "stores",
    one_of(("test", "validation")): "select",
    # toys
    whole(0): "seed",
    whole(10): "n",
    whole(20): "sgd_noise.n",
    whole(100): "turning_up.n",
    whole(8, 5000): "gradient_noise.count",
    both(whole(50), must_be("a multiple of 50", lambda value: value % 50 == 0)): "escape.steps",
    _finite: "turn",
    several(_finite): "shifts",
    _positive: "level eta curvature sharp_curvature flat_curvature sharp_depth flat_depth half_width",
    several(_positive): "curvatures flat_depths",
    _not_negative: "spread",
    several(_not_negative, 2): "sgd_noise.spread turning_up.spread",
}.items():
    RULES |= dict.fromkeys(_names.split(), _rule)
