"""Text as values: what comes from a shell, papermill, YAML or the environment is read here, by the type that is meant.

YAML 1.1 and papermill leave as text much that is none to a person: ``1e-3``, ``[1, 2]`` after ``-p``, ``"false"``.

>>> read("alphas", "1, 1.5", list[float]), read("lr", "1e-3", float), read("train", "no", bool)
([1.0, 1.5], 0.001, False)
"""

import math
import re
import types
import typing
from contextlib import suppress
from typing import Any

from nb_lib.errors import InputError

_TRUE = ("true", "yes", "on", "y", "1")
_FALSE = ("false", "no", "off", "n", "0")
_NONE = ("none", "null", "~", "")
_EXAMPLES = {bool: "true", int: "10", float: "0.1", str: "text"}
_SEVERAL = {bool: "flags", int: "whole numbers", float: "numbers", str: "texts"}
_MEANT = {bool: "true or false", int: "a whole number, as 100", float: "a number, as 0.1 or 1e-3", str: "a text"}
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_TOKENS = re.compile(r"""'[^']*'|"[^"]*"|.""", flags=re.DOTALL)  # what is quoted at once, else letters


def read(name: str, value: Any, kind: Any) -> Any:
    """Return what the text `value` of the option, field or parameter `name` says; what is no text is left as it is.

    Parameters
    ----------
    value : Any
        Flags are true, yes, on, y, 1 and their opposites, in any case; None is none, null, ~ or nothing (where text may
        be meant, the first two); numbers are as in Python, JSON and YAML; lists as ``[1, 2]``, ``(1, 2)`` or ``1, 2``.
        A text that is meant as one loses quotes around it and nothing else.  Of a list each text is read.
    kind : type
        As annotated: bool, int, float, str, tuples and lists of them, one of these or None.

    Raises
    ------
    InputError
        If the text cannot be read so.
    """
    try:
        return _read(value, kind)
    except ValueError as error:
        raise InputError(f"{name} must be {meant(kind)}, not {value!r}.") from error


def seconds(name: str, text: str) -> float:
    """Read a time.

    >>> seconds("budget", "90s"), seconds("budget", "8m"), seconds("budget", "2h")
    (90.0, 480.0, 7200.0)
    """
    unit = text[-1:] if text[-1:] in _UNITS else ""
    with suppress(ValueError):
        number = float(_number(text.removesuffix(unit)))
        value = number * _UNITS[unit]
        if 0 < value < math.inf:
            return value
    raise InputError(f"{name} must be a time, as 90s, 8m or 2h, not {text!r}.")


def meant(kind: Any) -> str:
    """What a value of this kind is, and how to type it.

    >>> meant(list[int]), meant(float | None)
    ('a list of whole numbers, as [10, 10]', 'a number, as 0.1 or 1e-3, or none')
    """
    kinds, may_be_none = _alternatives(kind)
    words = " or ".join(_MEANT.get(one) or _list_of(one) for one in kinds)
    return f"{words}, or none" if may_be_none else words


def _list_of(kind: Any) -> str:
    part = typing.get_args(kind)[0]
    return f"a list of {_several(part)}, as {_example(kind)}"


def _alternatives(kind: Any) -> tuple[list[Any], bool]:
    """The kinds that a value may be of, text last, and whether it may be None."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    kinds = typing.get_args(kind) if is_union else (kind,)
    others = [one for one in kinds if one is not type(None)]
    return sorted(others, key=[str].count), len(others) < len(kinds)


def _example(kind: Any) -> str:
    if kind in _EXAMPLES:
        return _EXAMPLES[kind]
    parts = [_example(part) for part in _kinds_of_parts(kind, 2)]
    return f"[{', '.join(parts)}]"


def _several(kind: Any) -> str:
    """What the parts of a list, or of its parts, are."""
    if kind in _SEVERAL:
        return _SEVERAL[kind]
    parts = [_several(part).removesuffix("s") for part in _kinds_of_parts(kind, 1)]
    return f"({', '.join(parts)})"


def _kinds_of_parts(kind: Any, number: int) -> tuple[Any, ...]:
    """The kinds of the parts of a list or tuple, if it has so many where any number may be."""
    parts = typing.get_args(kind)
    fixed = typing.get_origin(kind) is tuple and parts[-1] is not Ellipsis
    return parts if fixed else parts[:1] * number


def _read(value: Any, kind: Any) -> Any:
    if not isinstance(value, str | list | tuple):
        return value
    kinds, may_be_none = _alternatives(kind)
    if may_be_none and _is_none(value, kinds):
        return None
    for one in kinds[:-1]:
        with suppress(ValueError):
            return _read(value, one)
    return _read_as(value, kinds[-1])


def _is_none(value: Any, kinds: list[Any]) -> bool:
    words = _NONE[:2] if str in kinds else _NONE  # "~" may be a folder, and "" is not to be overlooked
    return isinstance(value, str) and value.strip().lower() in words


def _read_as(value: Any, kind: Any) -> Any:
    """Read a text, or the texts in a list, as one kind."""
    container = typing.get_origin(kind)
    if container is None:
        return _READERS[kind](value) if isinstance(value, str) else value
    if isinstance(value, str):
        value = container(_split(value))
    parts = zip(value, _kinds_of_parts(kind, len(value)), strict=True)
    return type(value)(_read(part, kind_of_part) for part, kind_of_part in parts)


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return word in _TRUE


def _number(text: str) -> float:
    """Read a number; with zeros before it, it would be octal to some, and is refused."""
    digits = text.strip().lower()
    if re.match(r"[+-]?0\d", digits):
        raise ValueError
    try:
        return int(digits, base=0)
    except ValueError:
        return float(re.sub(r"^([+-]?)\.(inf|nan)$", r"\1\2", digits))  # of YAML


def _whole_number(text: str) -> int:
    number = _number(text)
    if number % 1:  # NaN for what is not finite, which is true
        raise ValueError
    return int(number)


def _text(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _split(text: str) -> list[str]:
    """The parts of a list, between the commas that are in no brackets or quotes of their own."""
    parts = _at_commas(text)
    if len(parts) == 1 and parts[0][:1] + parts[0][-1:] in ("[]", "()"):
        parts = _at_commas(parts[0][1:-1])
        if parts == [""]:
            return []
    if parts[-1] == "" and len(parts) > 1:  # after a last comma
        parts.pop()
    return parts


def _at_commas(text: str) -> list[str]:
    parts, depth = [""], 0
    for token in _TOKENS.findall(text):
        depth += (token in "[(") - (token in "])")
        if token == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts]


_READERS = {bool: _flag, int: _whole_number, float: lambda text: float(_number(text)), str: _text}
