"""Which records answer to an experiment, or to one cell of it.

A *cell* is a `Run` without its seed.  A record answers to a cell if it differs from it in no more than the seed and
its *variety*: the copy of the data, the precision, and how batches are cut into ghost batches.  Records of two
varieties are neither averaged nor paired.
"""

import json
import shlex
import statistics
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, NamedTuple

from nb_lib.errors import known
from nb_lib.lab.names import DATASETS
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.store import first_of_each
from nb_lib.papers import grid, scales_of
from nb_lib.protocols import SCALES, protocol

_FOLDER = "folder:"  # what the name of another copy of a data set begins with


class Variety(NamedTuple):
    """What may differ between records of one cell, in words."""

    dataset: str
    precision: str
    cutting: str  # empty where it is the protocol's


Cells = dict[Run, list[Record]]  # records by the cell that they may answer to
Varieties = dict[Variety, list[Record]]


def recorded(records: Iterable[Record], name: str, scale: str) -> dict[str, list[Record]]:
    """Records of an experiment (name and scale as for `papers.grid`) by their variety in words.

    Others' records do no harm; of a run that is given twice the first counts.  The keys say how many runs there are and
    how long one took (the median), from which devices and commits.
    """
    found = by_variety(records, name, scale)
    return {_origin(variety, alike): alike for variety, alike in found.items()}


def by_variety(records: Iterable[Any], name: str, scale: str) -> dict[Variety, list[Any]]:
    """What is recorded of an experiment by its variety: records, or whatever else has a run and a provenance.

    Of a scale that it does not have, nothing is.
    """
    if known("scale", scale, SCALES) not in scales_of(name):
        return {}
    cells = by_cell(records)
    found: Varieties = {}
    for cell in grid(name, scale, seeds=1):
        for variety, alike in answers(cell, cells).items():
            found.setdefault(variety, []).extend(alike)
    return {variety: found[variety] for variety in sorted(found)}


def command(name: str, scale: str = "full") -> str:
    """Write the shell command that runs an experiment.

    >>> command("ne-table2-f1", "small")
    'python -m nb_lib sweep ne-table2-f1 --scale small --store results/ --download'
    """
    at = "" if scale == "full" else f" --scale {scale}"
    return f"python -m nb_lib sweep {name}{at} --store results/ --download"


def commands(name: str, scale: str = "full") -> list[str]:
    """Write the shell commands that run an experiment: `command`, or where it is of ImageNet `command_of` each cell."""
    cells = grid(name, scale, seeds=1)
    sized = [run for run in cells if run.image_size]
    one_for_all = [command(name, scale)] if len(sized) < len(cells) else []
    return one_for_all + [command_of(run) for run in sized]


def command_of(run: Run) -> str:
    """Write the shell command that trains one run with an image size: what differs from its network's protocol.

    >>> command_of(grid("smoothout-table2-resnet18", seeds=1)[0])
    'torchrun --nproc-per-node gpu examples/imagenet.py --network resnet18 --batch-size 16384 --store results/'
    """
    defaults = {f.name: f.default for f in fields(Run)}
    usual = Run.from_dict(defaults | protocol(run.network, epochs=run.epochs))  # rates fall with the epochs
    epochs = protocol(run.network)["epochs"]
    options = []
    for name, value in run.to_dict().items():
        shown = name in ("network", "batch_size")
        differs = value != (epochs if name == "epochs" else getattr(usual, name))
        if shown or differs:
            text = value if isinstance(value, str) else json.dumps(value)
            options.append(f"--{name.replace('_', '-')} {shlex.quote(text)}")
    return f"torchrun --nproc-per-node gpu examples/imagenet.py {' '.join(options)} --store results/"


def _origin(variety: Variety, records: list[Record]) -> str:
    seconds = statistics.median(_seconds(record) for record in records)
    many = "1 run" if len(records) == 1 else f"{len(records)} runs"
    devices = all_of(record.provenance.get("device", "unknown") for record in records)
    commits = all_of(record.provenance.get("commit", "unknown") for record in records)
    words = filter(None, variety)
    return ", ".join([*words, f"{many} of {seconds:,.0f} s", devices, f"commit {commits}"])


def _seconds(record: Record) -> float:
    """How long a run took, or its share of the time of those beside it."""
    return record.wall_time / record.provenance.get("side_by_side", 1)


def all_of(values: Iterable[str]) -> str:
    """Every value, once."""
    return " and ".join(sorted(set(values)))


def by_cell(records: Iterable[Record]) -> Cells:
    """Records by the cell that they may answer to; of a run that is given twice, the first."""
    cells: Cells = {}
    for record in first_of_each(records):
        cells.setdefault(_cell(record.run), []).append(record)
    return cells


def _cell(run: Run) -> Run:
    """All that records of one cell have in common."""
    original = run.dataset.removeprefix(_FOLDER)
    dataset = original if original in DATASETS else run.dataset
    return replace(run, dataset=dataset, seed=0, precision="float32", cutting="rest")


def answers(cell: Run, cells: Cells) -> Varieties:
    """The records that answer to a cell, by their variety."""
    found: Varieties = {}
    for record in cells.get(_cell(cell), []):
        found.setdefault(_variety(record, cell), []).append(record)
    return found


def _variety(record: Record, cell: Run) -> Variety:
    run = record.run
    dataset = record.provenance.get("dataset_variant", "unknown")
    if run.dataset.startswith(_FOLDER):
        dataset = f"{dataset} ({run.dataset})"
    if run.cutting == cell.cutting:
        cutting = ""
    elif run.cutting == "even":
        cutting = "nearly equal parts"
    else:
        cutting = f"parts of {run.noise_batch or run.ghost_batch} and a rest"
    return Variety(dataset, run.precision, cutting)
