"""The folder that keeps records (`RunStore`), files of them as JSON lines, and tables of them (`frame`, `curves`)."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nb_lib.errors import InputError
from nb_lib.lab.files import Source, place, read_text, write_atomically
from nb_lib.lab.record_text import parsed
from nb_lib.lab.runs import Record, Run

if TYPE_CHECKING:  # what only lists or merges records shall not wait until these are loaded
    import pandas as pd
    from torch import nn

_RECORDS = f"{16 * '[0-9a-f]'}.json"  # named by the keys of their runs; other files in the folder are left alone
_CURVE_FIELDS = ("network", "dataset", "batch_size", "alpha", "a", "adaptive", "seed")


class RunStore:
    """A folder of records, one file ``<key>.json`` a run: present means done.

    Any number of processes and machines may share it; it is made at the first write.

    >>> RunStore("no/such/folder").path(Run()).name  # the hash of a run whose fields are all at their defaults
    '44136fa355b3678a.json'
    """

    def __init__(self, folder: Source) -> None:
        self.folder = place(folder)

    def path(self, run: Run) -> Path:
        """Where the record of `run` lies, or would."""
        return self.folder / f"{run.key}.json"

    def weights(self, run: Run) -> Path:
        """Where the final weights of `run` lie, or would, if they are kept."""
        return self.folder / f"{run.key}.pt"

    def __contains__(self, run: Run) -> bool:
        return self.path(run).exists()

    def __len__(self) -> int:
        return len(list(self.folder.glob(_RECORDS)))

    def __iter__(self) -> Iterator[Record]:
        return map(_stored, sorted(self.folder.glob(_RECORDS)))

    def save(self, record: Record) -> None:
        """Keep a record; it is on the disk, whole, when this returns."""
        content = record.to_json().encode()
        write_atomically(self.path(record.run), lambda file: file.write(content))

    def save_weights(self, run: Run, model: "nn.Module") -> None:
        """Keep the weights of a trained network, beside its record."""
        import torch

        write_atomically(self.weights(run), lambda file: torch.save(model.state_dict(), file))

    def load(self, run: Run) -> Record:
        """Return the record of `run`; an `InputError` if it is not stored, or its file holds something else."""
        if run not in self:
            raise InputError(f"no record of run {run.key} in {self.folder}: train it first.")
        return _stored(self.path(run))


def _stored(path: Path) -> Record:
    """The record in a file of a store, which is named by the run that it is of."""
    record = parsed(read_text(path), str(path))
    key = record.run.key
    if key != path.stem:
        raise InputError(f"{path} holds the record of another run, {key}: move it elsewhere.")
    return record


def frame(records: Iterable[Record]) -> "pd.DataFrame":
    """Records as a table, one row a run (see `Record.row`); without any an `InputError`."""
    import pandas as pd

    return pd.DataFrame([record.row() for record in _some(records)])


def curves(records: Iterable[Record]) -> "pd.DataFrame":
    """Training curves as a tidy table: one row an epoch a run, with the run's fields beside it; see `frame`."""
    import pandas as pd

    parts = []
    for record in _some(records):
        fields = {name: getattr(record.run, name) for name in _CURVE_FIELDS}
        parts.append(pd.DataFrame(record.curve).assign(**fields))
    return pd.concat(parts, ignore_index=True)


def _some(records: Iterable[Record]) -> list[Record]:
    records = list(records)
    if not records:
        raise InputError("there are no records to show: train some runs, or name a store that holds some.")
    return records


def read_lines(path: Source) -> list[Record]:
    """Read a file of JSON lines as `write_lines` makes them; an `InputError` names it, and the line that is no record.

    Blank lines are none.
    """
    lines = read_text(place(path)).split("\n")
    return [parsed(line, f"{path}, line {i},") for i, line in enumerate(lines, start=1) if line.strip()]


def load_records(sources: Source | Iterable[Source]) -> list[Record]:
    """Read every record of stores, of folders of JSON lines as the book's, and of single such files.

    One that is not there, or holds something else, raises `InputError`.  Hidden files are left out.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    records: list[Record] = []
    for source in map(place, sources):
        for file in sorted(source.glob("[!.]*.jsonl")):
            records += read_lines(file)
        records += RunStore(source) if source.is_dir() else read_lines(source)
    return records


def write_lines(records: Iterable[Record], path: Source) -> None:
    """Write records as JSON lines, sorted by their runs, so that changed results are a readable difference."""
    ordered = sorted(records, key=lambda record: json.dumps(record.run.to_dict()))
    content = "".join(f"{record.to_json()}\n" for record in ordered).encode()
    write_atomically(place(path), lambda file: file.write(content))


def merge(sources: Iterable[Source], into: Source) -> dict[Path, int]:
    """Add the records of stores and of files of JSON lines to such a file, or to the files of a folder.

    In a folder a record goes to ``<network>.jsonl``.  What is there already stays where and as it is; of a run that
    several sources hold the first counts.  Returns how many records each file that was written has then.

    Raises
    ------
    InputError
        If the sources have no record, or something there is none.
    """
    into = place(into)
    by_network = into.is_dir()
    there = {record.run for record in load_records(into)} if into.exists() else set()
    new: dict[Path, list[Record]] = {} if by_network else {into: []}
    for record in first_of_each(_some(load_records(sources))):
        if record.run not in there:
            file = into
            if by_network:
                file = into / f"{record.run.network.replace('-', '_')}.jsonl"
            new.setdefault(file, []).append(record)
    counts = {}
    for file in sorted(new):
        before = read_lines(file) if file.exists() else []
        write_lines([*before, *new[file]], file)
        counts[file] = len(before) + len(new[file])
    return counts


def first_of_each(records: Iterable[Record]) -> list[Record]:
    """The records without those of a run that an earlier one is of."""
    distinct: dict[Run, Record] = {}
    for record in records:
        distinct.setdefault(record.run, record)
    return list(distinct.values())
