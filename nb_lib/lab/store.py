"""The folder that keeps records (`RunStore`), and files of them as JSON lines."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from nb_lib.errors import InputError
from nb_lib.lab.files import write_atomically
from nb_lib.lab.runs import Record, Run

_CURVE_FIELDS = ("network", "dataset", "batch_size", "alpha", "a", "adaptive", "seed")


class RunStore:
    """A folder of records, one file ``<key>.json`` a run: present means done.

    Any number of processes and machines may share it.

    Parameters
    ----------
    folder : path
        Made at the first write.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(self, run: Run) -> Path:
        """Where the record of `run` lies, or would."""
        return self.folder / f"{run.key}.json"

    def weights(self, run: Run) -> Path:
        """Where the final weights of `run` lie, or would, if they are kept."""
        return self.folder / f"{run.key}.pt"

    def __contains__(self, run: Run) -> bool:
        return self.path(run).exists()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.json"))

    def __iter__(self) -> Iterator[Record]:
        for path in sorted(self.folder.glob("*.json")):
            yield self._read(path)

    def save(self, record: Record) -> None:
        """Keep a record; it is on the disk, whole, when this returns."""
        write_atomically(self.path(record.run), lambda file: file.write(record.to_json().encode()))

    def save_weights(self, run: Run, model: nn.Module) -> None:
        """Keep the weights of a trained network, beside its record."""
        write_atomically(self.weights(run), lambda file: torch.save(model.state_dict(), file))

    def load(self, run: Run) -> Record:
        """Return the record of `run`.

        Raises
        ------
        InputError
            If it is not stored or its file is damaged.
        """
        if run not in self:
            raise InputError(f"no record of run {run.key} in {self.folder}: train it first.")
        return self._read(self.path(run))

    def _read(self, path: Path) -> Record:
        try:
            return Record.from_json(path.read_text())
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged: delete it and run again ({error}).") from error

    def frame(self) -> pd.DataFrame:
        """All records as a table, one row a run (see `Record.row`)."""
        return frame(self)


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """Records as a table, one row a run (see `Record.row`)."""
    return pd.DataFrame([record.row() for record in records])


def read_lines(path: str | os.PathLike[str]) -> list[Record]:
    """Read records from a file of JSON lines, as `write_lines` makes them and the book publishes them.

    Raises
    ------
    InputError
        If the file is missing or a line is not a record.
    """
    try:
        return [Record.from_json(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read the records in {path}: {error.strerror}.") from error


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Read a store or a file of JSON lines, whichever lies there."""
    return list(RunStore(path)) if Path(path).is_dir() else read_lines(path)


def write_lines(records: Iterable[Record], path: str | os.PathLike[str]) -> None:
    """Write records as JSON lines, sorted by their runs, so that changed results are a readable difference."""
    lines = [
        record.to_json() for record in sorted(records, key=lambda record: json.dumps(record.run.to_dict()))
    ]
    write_atomically(Path(path), lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))


def merge(sources: Iterable[str | os.PathLike[str]], into: str | os.PathLike[str]) -> int:
    """Add the records of stores and of files of JSON lines to such a file, and return how many it has then.

    Records already in it stay; of a run that several sources hold the first counts.
    """
    paths = [*([into] if Path(into).exists() else []), *sources]
    records = {record.key: record for path in reversed(paths) for record in read_records(path)}
    write_lines(records.values(), into)
    return len(records)


def merge_by_network(
    sources: Iterable[str | os.PathLike[str]], folder: str | os.PathLike[str]
) -> dict[Path, int]:
    """Add the records of stores and files to the files of a folder, and return how many each changed file has then.

    A record goes to ``<network>.jsonl``; one that any file of the folder holds already stays where and as it is.
    """
    there = {record.key for file in Path(folder).glob("*.jsonl") for record in read_lines(file)}
    records = {record.key: record for source in sources for record in read_records(source)}
    new: dict[Path, list[Record]] = {}
    for record in records.values():
        if record.key not in there:
            new.setdefault(Path(folder, f"{record.run.network.replace('-', '_')}.jsonl"), []).append(record)
    for file, found in new.items():
        write_lines([*(read_lines(file) if file.exists() else []), *found], file)
    return {file: len(read_lines(file)) for file in sorted(new)}


def curves(records: Iterable[Record]) -> pd.DataFrame:
    """Training curves as a tidy table: one row an epoch a run, with the run's fields beside it."""
    parts = [pd.DataFrame(r.curve).assign(**{f: getattr(r.run, f) for f in _CURVE_FIELDS}) for r in records]
    return pd.concat(parts, ignore_index=True)
