"""Read the text of a record, whoever wrote it; what is none is said, and never that it should be deleted."""

import dataclasses
import json
import reprlib
from collections.abc import Callable
from typing import Any

from nb_lib.errors import InputError
from nb_lib.lab.runs import Record, Run

_RECORD = {f.name: f for f in dataclasses.fields(Record)}
_TELLING = {"run", "status", "provenance"}  # what every version writes, and others do not
_ORIGIN = ("dataset_variant", "device", "commit")  # texts of it that others read


def parsed(text: str, where: str) -> Record:
    """The record in a text of JSON; an `InputError` says of `where` it stood what that is instead."""
    try:
        record = Record.from_json(text)
    except (ValueError, IndexError, RecursionError) as error:
        raise InputError(f"{where} {_instead(text)}.") from error
    for name, f in _RECORD.items():
        value = getattr(record, name)
        if not _FITS.get(f.type, _anything)(value):
            found = reprlib.repr(value)
            raise InputError(f"{where} is not a record of a run ({name} is {found}): move it elsewhere.")
    return record


def _instead(text: str) -> str:
    """What a text is that is no record, and what to do with it."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return "is not a record of a run, or not a whole one: move it elsewhere"
    if not isinstance(fields, dict) or not fields.keys() >= _TELLING or not isinstance(fields["run"], dict):
        return "is not a record of a run: move it elsewhere, or name another"
    required = _RECORD.keys() - {"measures"}
    foreign = fields.keys() - _RECORD.keys() | fields["run"].keys() - Run.__dataclass_fields__.keys()
    differing = foreign or required - fields.keys()
    if differing:
        return f"was written by another version, which differs in {min(differing)!r}: update nb_lib"
    try:
        Run.from_dict(fields["run"])
    except InputError as error:
        reason = str(error).removesuffix(".")
        return f"is of a run that this version does not accept ({reason}): read it with the version that wrote it"
    return "is not a record of a run: move it elsewhere, or name another"


def _anything(_: Any) -> bool:
    return True


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(one is None or _number(one) for one in value.values())


def _origin(value: Any) -> bool:
    if not isinstance(value, dict) or not _count(value.get("side_by_side", 1)):
        return False
    return all(isinstance(value.get(name, ""), str) for name in _ORIGIN)


#: Whether a value is of a field's type, which JSON does not know.
_FITS: dict[Any, Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str),
    int: _count,
    float: _number,
    float | None: lambda value: value is None or _number(value),
    list[dict[str, float]]: lambda value: isinstance(value, list) and all(map(_numbers, value)),
    dict[str, Any]: _origin,
    dict[str, float] | None: lambda value: value is None or _numbers(value),
}
