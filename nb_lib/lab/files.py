"""Write a file whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from nb_lib.errors import InputError


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
        raise InputError(f"cannot write {path}: {cause.strerror}; free some space or choose another folder.") from error
