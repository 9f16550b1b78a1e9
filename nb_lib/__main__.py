"""``python -m nb_lib``: train, sweep, measure and compare on machines without Jupyter."""

import os

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # read by torch: threads that wait leave the cores to others' work

import argparse
import dataclasses
import json
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from nb_lib import LOADED
from nb_lib.compare import compare, readable
from nb_lib.errors import InputError
from nb_lib.lab.device import pick_device
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.provenance import device_name
from nb_lib.lab.runs import Run
from nb_lib.lab.store import frame, merge, merge_by_network, read_records
from nb_lib.lab.sweeps import Measure, sweep
from nb_lib.measures import measures
from nb_lib.papers import METHOD, MISSING, NEXT, SCALES, SIZES, TABLES, overview, plan


def main(arguments: list[str] | None = None, *, started: float | None = None) -> int:
    """Run one command; returns the exit status (2 for input that cannot be used, said in one sentence).

    A budget counts from `started`, of ``time.monotonic()``, or from now.
    """
    options = _parser().parse_args(arguments)
    options.started = time.monotonic() if started is None else started
    try:
        options.command(options)
    except InputError as error:
        print(f"nb_lib: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nb_lib", description="Noise in SGD: train, measure, compare."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    train = commands.add_parser("train", help="train one configuration with one or more seeds")
    measure = commands.add_parser(
        "measure", help="the same, and measure sharpness, curvature and gradient noise"
    )
    for command in (train, measure):
        _add_run(command)
        command.set_defaults(command=_train)
    measure.add_argument("--samples", type=int, default=10_000, help="most samples for box and noise [10000]")
    measure.add_argument("--hessian-samples", type=int, default=2_000, help="and for what costs more [2000]")

    _add_sweep(commands.add_parser("sweep", help="train the runs of some of the papers' tables and figures"))
    grids = commands.add_parser("grids", help="list what `sweep` and `compare` know")
    grids.set_defaults(command=_grids)
    _add_compare(commands.add_parser("compare", help="a published table beside ours"))
    merge = commands.add_parser(
        "merge", help="add the records of stores to a file of JSON lines, as the book has them"
    )
    merge.add_argument("stores", nargs="+", metavar="STORE", help="folders of records, or other such files")
    merge.add_argument(
        "--into",
        required=True,
        metavar="FILE",
        help="records already in it stay; of a folder the file of each network",
    )
    merge.set_defaults(command=_merge)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of a run, and where to find and keep things."""
    known_networks = "; ".join(f"{name}: {what}" for name, what in NETWORKS.items())
    for f in dataclasses.fields(Run):
        shown = f"{known_networks} " if f.name == "network" else ""
        parser.add_argument(
            f"--{f.name.replace('_', '-')}",
            type=_value,
            metavar="V",
            help=f"{shown}[{json.dumps(f.default)}]",
        )
    parser.add_argument(
        "--seeds", type=int, default=1, help="train this many seeds, counted up from --seed [1]"
    )
    parser.add_argument("--store", help="folder of records: stored runs are skipped, killed ones resumed")
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="folder of the data sets [$NB_LIB_DATA, else a per-user cache]")
    parser.add_argument("--download", action="store_true", help="fetch a missing data set")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto [auto]")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "grids",
        nargs="+",
        metavar="GRID",
        help="names from `grids`, or beginnings of several (ne-table2), in the order in which to train them; "
        "next: what is missing most",
    )
    parser.add_argument("--scale", default="full", help=f"{', '.join(SCALES)} [full]")
    parser.add_argument("--seeds", type=int, help="[the scale's]")
    parser.add_argument(
        "--store", required=True, help="folder of records: stored runs are skipped, killed ones resumed"
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="TIME",
        help="be done after this long, the account included: 90s, 8m, 2h",
    )
    parser.add_argument(
        "--have",
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSON lines, or stores, of runs that count as done",
    )
    parser.add_argument(
        "--into", metavar="FILE", help="keep all records of the store in this file too, to carry home"
    )
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster whose workers shall train")
    parser.add_argument("--measure", action="store_true", help="also measure every trained network (slow)")
    parser.add_argument("--keep-weights", action="store_true", help="also keep the trained weights")
    for name, what in (("dataset", "folder:cifar10"), ("precision", "tf32"), ("valid-size", "5000")):
        parser.add_argument(
            f"--{name}", type=_value, metavar="V", help=f"another than the protocol's, e.g. {what}"
        )
    _add_place(parser)
    parser.set_defaults(command=_sweep)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", help=", ".join(TABLES))
    parser.add_argument("--store", nargs="+", default=[], help="folders of records, or files of JSON lines")
    parser.add_argument("--scale", help="[all of which there are records]")
    parser.set_defaults(command=_compare)


def _seconds(text: str) -> float:
    """Read 90s, 8m or 2h."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write 90s, 8m or 2h")
    return seconds


def _value(text: str) -> Any:
    """Read a number, true, false, null or a list as JSON does, anything else as a string."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _train(options: argparse.Namespace) -> None:
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(Run)}
    run = Run.from_dict({name: value for name, value in given.items() if value is not None})
    runs = [dataclasses.replace(run, seed=run.seed + k) for k in range(options.seeds)]
    where = {"device": options.device, "root": options.root, "download": options.download}
    _say_where(options.device)
    records = sweep(runs, options.store, **where, measure=_measure(options))
    shown = [
        "seed",
        "status",
        "test_accuracy",
        "best_test_accuracy",
        "train_loss",
        "test_loss",
        "updates",
        "wall_time",
    ]
    table = frame(records)[shown]
    print(table.to_string(index=False, float_format="{:.4f}".format))
    for record in records:
        for name, value in (record.measures or {}).items():
            print(f"seed {record.run.seed}: {name} {value:.5g}")
    if len(table) > 1:
        accuracy = 100 * table.test_accuracy
        print(
            f"test accuracy {accuracy.mean():.2f} ± {accuracy.std():.2f} %, "
            f"updates {table.updates.mean():.0f} ± {table.updates.std():.0f} (mean ± std of {len(table)} seeds)"
        )


def _sweep(options: argparse.Namespace) -> None:
    given = {name: getattr(options, name) for name in ("dataset", "precision", "valid_size")}
    named = plan(options.grids, options.scale, seeds=options.seeds, **given)
    if not options.scheduler:
        _say_where(options.device)
    records = sweep(
        [run for runs in named.values() for run in runs],
        options.store,
        named=named,
        budget=options.budget
        and options.budget - (time.monotonic() - options.started) - min(2, options.budget / 10),
        have=[record for source in options.have for record in read_records(source)],
        into=options.into,
        client=options.scheduler,
        device=options.device,
        root=options.root,
        download=options.download,
        measure=measures if options.measure else None,
        keep_weights=options.keep_weights,
    )
    if records:
        fields = ("dataset", "precision", *METHOD)
        varied = [name for name in fields if len({getattr(record.run, name) for record in records}) > 1]
        found = frame(records).assign(test_accuracy=lambda table: 100 * table.test_accuracy)
        columns = {
            "n": ("seed", "count"),
            "accuracy_%": ("test_accuracy", "mean"),
            "std": ("test_accuracy", "std"),
        }
        cells = found.groupby(["network", "batch_size", *varied])
        print(cells.agg(**columns, updates=("updates", "mean")).reset_index().to_string(index=False))


def _say_where(device: str) -> None:
    """Say before anything long begins where it will run, and if that is not where one may have meant it to."""
    found = pick_device(device)
    fallback = "there is no CUDA device: " if device == "auto" and found.type == "cpu" else ""
    print(f"{fallback}training on {device_name(found)}", file=sys.stderr, flush=True)


def _grids(_: argparse.Namespace) -> None:
    print("runs at each scale:")
    print(overview().to_string(index=False))
    print("next: " + "; ".join(step.name for step in NEXT))
    for network, sizes in SIZES.items():
        print(f"{network}: " + "; ".join(f"{scale}: {sizes[scale].doc}" for scale in SCALES))
    print("not here: " + "; ".join(f"{what} (lacks {why})" for what, why in MISSING.items()))


def _compare(options: argparse.Namespace) -> None:
    records = [record for store in options.store for record in read_records(store)]
    print("accuracies in %, gains in points, ± standard errors")
    print(
        readable(compare(options.table, records, scale=options.scale)).to_string(index=False, justify="left")
    )


def _merge(options: argparse.Namespace) -> None:
    into = Path(options.into)
    if not into.is_dir():
        print(f"{into}: {merge(options.stores, into)} records")
        return
    for file, count in merge_by_network(options.stores, into).items():
        print(f"{file}: {count} records")


def _measure(options: argparse.Namespace) -> Measure | None:
    """What `measure` adds to `train`."""
    if "samples" not in options:
        return None
    return partial(measures, samples=options.samples, hessian_samples=options.hessian_samples)


if __name__ == "__main__":
    sys.exit(main(started=LOADED))
