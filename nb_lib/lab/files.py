"""Read a text, and write a file whole or not at all, with sentences for what a person can mend."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nb_lib.errors import CannotWrite, InputError

Source = str | os.PathLike[str]

_FULL = (errno.ENOSPC, errno.EDQUOT)


def place(path: Source) -> Path:
    """Return a path that a person gave, ``~`` read as their home; an empty one, which would be here, is refused.

    >>> place("")
    Traceback (most recent call last):
    nb_lib.errors.InputError: the path of a file or folder is empty: name one, or '.' for the current folder.
    """
    if not str(path).strip():
        raise InputError("the path of a file or folder is empty: name one, or '.' for the current folder.")
    return Path(os.path.expanduser(path))


def read_text(path: Path) -> str:
    """Read a text in UTF-8; an `InputError` if it cannot be read, or is none."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors mark UTF-8 by three bytes, which are no text
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text in UTF-8: name another file, or convert it.") from error


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """The sentence for a file or folder that cannot be written."""
    remedy = "free some space or choose another folder" if error.errno in _FULL else "choose another place"
    return CannotWrite(f"cannot write {path}: {error.strerror}; {remedy}.")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that at any moment is absent (or old) or whole; `InputError` if it cannot be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "new", "numbers.txt")
    ...     write_atomically(path, lambda file: file.write(b"1 2 3"))
    ...     path.read_text(), os.listdir(path.parent)
    ('1 2 3', ['numbers.txt'])
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as fresh:
            whole = Path(fresh, path.name)
            with whole.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(whole, path)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise cannot_write(path, cause) from error
