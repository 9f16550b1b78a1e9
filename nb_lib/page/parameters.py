"""One call that reads a notebook's parameters and refuses impossible ones, in a sentence, before anything is computed.

What needs the data (a batch size of at most N) is left to what loads them.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from nb_lib import errors, papers
from nb_lib.errors import InputError, known
from nb_lib.lab import text
from nb_lib.lab.names import DATASETS, NETWORKS, TOO_LARGE, check_network

#: Raises `InputError` if the parameter of this name cannot have this value.
Check = Callable[[str, Any], object]


@dataclass(frozen=True)
class Rule:
    """What a parameter may be: the kind that text is read as, a check, and the `ends` of what is allowed and not.

    `ends` are accepted, the least and the most among them, `beyond` are refused: ``tests/chapters.py`` tries them all.
    """

    kind: Any
    check: Check
    ends: tuple[Any, ...] = ()
    beyond: tuple[Any, ...] = ()


def read(notebook: str = "", /, **given: Any) -> dict[str, Any]:
    """Return the parameters `given` as values, text read as what is meant, or refuse what is impossible.

    The rules of `notebook`, as ``RULES["escape.steps"]``, go before those for all notebooks, as ``RULES["steps"]``.

    Raises
    ------
    InputError
        For the first impossible value: which parameter, what it must be, and what it was.
    KeyError
        If there is no rule for a name.

    Examples
    --------
    >>> read(eta="1e-3", batch_size=50)
    {'eta': 0.001, 'batch_size': 50}
    >>> read(batch_size=2.5)
    Traceback (most recent call last):
    nb_lib.errors.InputError: batch_size must be a whole number, 1 or more, not 2.5.
    """
    values = {}
    for name, value in given.items():
        rule = RULES.get(f"{notebook}.{name}") or RULES.get(name)
        if rule is None:
            raise KeyError(f"no rule for the parameter {name}: add one to nb_lib.page.parameters.RULES")
        values[name] = text.read(name, value, rule.kind)
        rule.check(name, values[name])
    _check_together(notebook, values)
    return values


def _check_together(notebook: str, values: dict[str, Any]) -> None:
    """Refuse batches of all samples where they shall have noise, and what no `Run` can be."""
    fields = {"train_size": values.get("n")}
    if "network" in values:
        names = ("network", "dataset", "train_size", "epochs", "stop_below")
        fields = papers.protocol(**{name: values[name] for name in names if name in values})
    n = fields.get("train_size")
    if n is not None and notebook in ("escape", "gradient_noise"):
        errors.whole("batch_size", values.get("batch_size", 1), 1, n - 1)
    if "network" in values:
        sizes = [values[name] for name in ("batch_size", "large_batch") if name in values]
        for B in sizes + list(values.get("batch_sizes", [])):
            papers.run(**fields, batch_size=B)


def must_be(what: str, fits: Callable[[Any], bool], kind: Any = str, **tried: Any) -> Rule:
    """A value that `fits`."""

    def check(name: str, value: Any) -> None:
        if not fits(value):
            raise InputError(f"{name} must be {what}, not {value!r}.")

    return Rule(kind, check, **tried)


def whole(least: int, most: float = math.inf, step: int = 1) -> Rule:
    """A whole number from `least` to `most`, and a multiple of `step`."""
    multiple = must_be(f"a multiple of {step}", lambda value: value % step == 0)

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool):
            raise InputError(f"{name} must be a whole number, not {value!r}.")
        errors.whole(name, value, least, most)
        multiple.check(name, value)

    limits = (least,) if most == math.inf else (least, int(most))
    beyond = [least - 1, least + 0.5]
    return Rule(int, check, limits, (*beyond, most + 1))


def number(least: float, most: float) -> Rule:
    """A number from `least` to `most`."""

    def fits(value: Any) -> bool:
        return _is_finite(value) and least <= value <= most

    tried = {"ends": (least, most), "beyond": (math.nan, least - 1, 1.01 * most)}
    return must_be(f"a number from {least:g} to {most:g}", fits, float, **tried)


def one_of(names: Iterable[str]) -> Rule:
    """A name that is known."""
    names = tuple(names)
    return Rule(str, partial(known, names=names), names, ("no such name",))


def optional(rule: Rule) -> Rule:
    """None, or a value that follows another rule."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            rule.check(name, value)

    return Rule(rule.kind | None, check, (None, *rule.ends), rule.beyond)


def several(rule: Rule, number: int | None = None) -> Rule:
    """A list of values that each follow another rule: so many, or any number but none."""
    what = "a list of at least one value" if number is None else f"a list of {number} values"

    def fits(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) > 0 and number in (None, len(value))

    def check(name: str, values: Any) -> None:
        is_list.check(name, values)
        for value in values:
            rule.check(f"each of {name}", value)

    is_list = must_be(what, fits)
    ends = [[end] * (number or 1) for end in rule.ends]
    if number is None and rule.ends:
        ends.append([*rule.ends] * 2)
    beyond = [[], *([one] * (number or 1) for one in rule.beyond)]
    a_list: Any = list
    return Rule(a_list[rule.kind], check, tuple(ends), tuple(beyond))


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)  # True and False are none
    return is_number and math.isfinite(value)


_finite = must_be("a finite number", _is_finite, float)


def _at_least(check: Callable[[Any], float], least: float) -> Rule:
    """A strength that the library checks in its own words, without an upper limit."""

    def both(name: str, value: Any) -> None:
        _finite.check(name, value)
        check(value)

    return Rule(float, both, (least, 100.0), (math.inf, least - 0.5, True))


def _on_large_images(network: str) -> bool:
    """Whether a network is published for images of any size, which no chapter trains on."""
    return "image_size" in papers.protocol(network)


def _check_network(_: str, value: Any) -> None:
    if _on_large_images(check_network(str(value))):
        raise InputError(f"{value} is trained by `torchrun examples/imagenet.py` alone: choose another network.")


def _check_dataset(name: str, value: Any) -> None:
    if not (isinstance(value, str) and value.startswith("folder:")):
        known(name, value, [*DATASETS, "folder:NAME"])
    if value in TOO_LARGE:
        raise InputError(f"{value} is trained on by `torchrun examples/imagenet.py` alone: choose another {name}.")


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and os.fspath(value) != ""


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z]+(:\d+)?", value) is not None


_alpha = _at_least(errors.check_alpha, 1.0)
_strength = _at_least(errors.check_strength, 0.0)
_networks = [name for name in NETWORKS if not _on_large_images(name)]
_datasets = [name for name in DATASETS if name not in TOO_LARGE]
_network = Rule(str, _check_network, (*_networks, "resnet8"), ("resnet9", "alexnet"))
_dataset = Rule(str, _check_dataset, tuple(_datasets), ("mnis", *TOO_LARGE))
_flag = must_be("True or False", lambda value: isinstance(value, bool), bool, ends=(True, False), beyond=(2,))
_path = must_be("the path of a folder", _is_path, beyond=("", 5))
_device = must_be("'cpu', 'cuda' or 'auto'", _is_device, ends=("cpu", "auto"), beyond=(0,))
_address = must_be("an address like 'tcp://host:8786'", lambda value: isinstance(value, str) and value != "")

_OF_NE = [name for name in papers.GRIDS if name.startswith("ne-")]
_OF_TABLE_1 = papers.matching("smoothout-table1")

#: By the name of a parameter; "notebook.name" for one that needs more in one notebook than elsewhere.
RULES: dict[str, Rule] = {
    # trainings
    "network": _network,
    "dataset": optional(_dataset),
    "train_size": optional(whole(10)),
    "gradient_noise.train_size": optional(whole(40, 4000)),
    "epochs": optional(whole(1)),
    "same_or_different.epochs": whole(1),
    "large_batches.epochs": whole(1),
    "batch_size": whole(1),
    "large_batches.batch_size": whole(2),
    "batch_sizes": several(whole(1)),
    "sharpness.batch_sizes": several(whole(1), 2),
    "large_batch": whole(1),
    "large_batches.large_batch": whole(2),
    "alpha": _alpha,
    "alphas": several(_alpha),
    "strengths": several(_strength),
    "landscape.strengths": several(number(0, 1), 2),
    "sharpness.strengths": several(number(0.001, 10), 2),
    "adaptive_strengths": several(_strength),
    "seeds": whole(1),
    "landscape.seeds": whole(2),
    "ne_experiments.seeds": optional(whole(1)),
    "smoothout_experiments.seeds": optional(whole(1)),
    "samples": whole(4),
    "gradient_noise.count": whole(8, 5000),
    "stop_below": optional(number(1e-9, 100)),
    "level": number(1e-4, 10),
    "data_root": optional(_path),
    "store": optional(_path),
    "download": _flag,
    "train": _flag,
    "device": _device,
    # experiments
    "grid": one_of(_OF_NE),
    "smoothout_experiments.grid": one_of(_OF_TABLE_1),
    "scale": one_of(papers.SCALES),
    "compare.scale": optional(one_of(papers.SCALES)),
    "budget": optional(number(0, 1e9)),
    "scheduler": optional(_address),
    "stores": several(_path),
    "profiles": _path,
    "select": one_of(("test", "validation")),
    # an assumed GPU
    "gpu_operations": number(0.01, 1e5),
    "gpu_memory": number(1, 1e6),
    "gpu_link": number(0.01, 1e5),
    "gpu_network": number(0.01, 1e5),
    "gpu_decoding": number(1, 1e7),
    # toys
    "seed": whole(0),
    "n": whole(10),
    "sgd_noise.n": whole(20),
    "turning_up.n": whole(100),
    "B": whole(1, 1000),
    "count": whole(1),
    "sgd_noise.count": whole(500),
    "turning_up.count": whole(500),
    "walkers": whole(1),
    "steps": whole(1),
    "escape.steps": whole(50, step=50),
    "turn": number(-100, 100),
    "spread": number(0, 100),
    "escape.spread": number(0.1, 100),
    "sgd_noise.spread": several(number(0.01, 100), 2),
    "turning_up.spread": several(number(0.01, 100), 2),
    "shifts": several(number(0, 0.6)),
    "eta": number(1e-4, 0.1),
    "one_copy.eta": number(1e-4, 0.003),
    "escape.eta": number(1e-4, 0.006),
    "curvature": number(0.01, 100),
    "curvatures": several(number(25, 2000)),
    "sharp_curvature": number(50, 1000),
    "one_copy.sharp_curvature": number(50, 600),
    "escape.sharp_curvature": number(60, 200),
    "flat_curvature": number(1, 8),
    "sharp_depth": number(0.3, 2),
    "escape.sharp_depth": number(0.8, 2),
    "flat_depth": number(0.3, 0.95),
    "flat_depths": several(number(0.3, 0.95)),
    "half_width": number(0.01, 2),
    "small": several(number(0, 3)),
    "large": several(number(0, 3)),
}
