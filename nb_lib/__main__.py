"""``python -m nb_lib``: train, sweep, measure and compare on machines without Jupyter.

Commands import what they need when they run, so that help and lists come at once.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from functools import partial
from itertools import chain
from typing import Any

from nb_lib import LOADED
from nb_lib.errors import InputError
from nb_lib.lab import store
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.plans import NEXT, plan
from nb_lib.lab.runs import Record, Run
from nb_lib.papers import METHOD, MISSING, TABLES, overview
from nb_lib.protocols import SCALES, SIZES, not_none

# read by torch when it is loaded: threads that wait leave the cores to others' work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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


_STORE = "folder of records: stored runs are skipped, killed ones resumed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nb_lib", description="Noise in SGD: train, measure, compare.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add = commands.add_parser
    _add_train(add("train", help="train one configuration with one or more seeds"))
    measure = add("measure", help="the same, and measure sharpness, curvature and gradient noise")
    _add_train(measure)
    measure.add_argument("--samples", type=int, default=10_000, help="most samples for box and noise [10000]")
    measure.add_argument("--hessian-samples", type=int, default=2_000, help="and for what costs more [2000]")
    _add_sweep(add("sweep", help="train the runs of some of the papers' tables and figures"))
    add("grids", help="list what `sweep` and `compare` know").set_defaults(command=_grids)
    _add_profile(add("profile", help="loss and accuracy around trained networks, along a line and under noise"))
    beside = add("compare", help="a published table beside ours")
    beside.add_argument("table", help=", ".join(TABLES))
    beside.add_argument("--store", nargs="+", default=[], help="folders of records, or files of JSON lines")
    beside.add_argument("--scale", help="[all of which there are records]")
    beside.set_defaults(command=_compare)
    merge = add("merge", help="add the records of stores to a file of JSON lines, as the book has them")
    merge.add_argument("stores", nargs="+", metavar="STORE", help="folders of records, or other such files")
    stay = "records already in it stay; of a folder the file of each network"
    merge.add_argument("--into", required=True, metavar="FILE", help=stay)
    merge.set_defaults(command=_merge)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    """Add an option for every field of a run, and where to find and keep things."""
    add = parser.add_argument
    known_networks = "; ".join(f"{name}: {what}" for name, what in NETWORKS.items())
    for f in dataclasses.fields(Run):
        shown = f"[{json.dumps(f.default)}]"
        if f.name == "network":
            shown = f"{known_networks} {shown}"
        add(f"--{f.name.replace('_', '-')}", type=_value, metavar="V", help=shown)
    add("--seeds", type=int, default=1, help="train this many seeds, counted up from --seed [1]")
    add("--store", help=_STORE)
    _add_place(parser)
    parser.set_defaults(command=_train, samples=None, scheduler=None)


def _add_place(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", help="folder of the data sets [$NB_LIB_DATA, else a per-user cache]")
    add("--download", action="store_true", help="fetch a missing data set")
    add("--device", default="auto", help="cpu, cuda or auto [auto]")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    names = "names from `grids`, or beginnings of several (ne-table2), in the order in which to train them"
    add("grids", nargs="+", metavar="GRID", help=f"{names}; next: what is missing most")
    _add_choice(parser)
    add("--store", required=True, help=_STORE)
    add("--budget", type=_seconds, metavar="TIME", help="be done after this long, the account included: 90s, 8m, 2h")
    add("--have", nargs="+", default=[], metavar="FILE", help="JSON lines, or stores, of runs that count as done")
    add("--into", metavar="FILE", help="keep all records of the store in this file too, to carry home")
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster whose workers shall train")
    add("--measure", action="store_true", help="also measure every trained network (slow)")
    add("--keep-weights", action="store_true", help="also keep the trained weights")
    _add_place(parser)
    parser.set_defaults(command=_sweep)


def _add_profile(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("grids", nargs="+", metavar="GRID", help="names from `grids`, trained with `sweep --keep-weights`")
    _add_choice(parser)
    add("--store", required=True, help="folder of records and weights; runs without weights are left out")
    add("--into", required=True, metavar="FILE", help="JSON of profiles; those of other runs stay in it")
    add("--samples", type=int, default=1_000, help="most samples of each split [1000]")
    _add_place(parser)
    parser.set_defaults(command=_profile, scheduler=None)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs of a grid are meant."""
    add = parser.add_argument
    add("--scale", default="full", help=f"{', '.join(SCALES)} [full]")
    add("--seeds", type=int, help="[the scale's]")
    for name, example in (("dataset", "folder:cifar10"), ("precision", "tf32"), ("valid-size", "5000")):
        add(f"--{name}", type=_value, metavar="V", help=f"another than the protocol's, e.g. {example}")


def _seconds(text: str) -> float:
    """Read a time.

    >>> _seconds("90s"), _seconds("8m"), _seconds("2h")
    (90.0, 480.0, 7200.0)
    """
    units = {"": 1, "s": 1, "m": 60, "h": 3600}
    unit = text[-1:] if text[-1:] in units else ""
    try:
        seconds = float(text.removesuffix(unit)) * units[unit]
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
    run = Run.from_dict(not_none({f.name: getattr(options, f.name) for f in dataclasses.fields(Run)}))
    runs = [dataclasses.replace(run, seed=run.seed + number) for number in range(options.seeds)]
    from nb_lib.lab.sweeps import sweep

    measure = None
    if options.samples is not None:
        from nb_lib.measures import measures

        measure = partial(measures, samples=options.samples, hessian_samples=options.hessian_samples)
    records = sweep(runs, options.store, **_where(options), measure=measure)
    outcome = ["status", "test_accuracy", "best_test_accuracy", "train_loss", "test_loss", "updates"]
    table = store.frame(records)[["seed", *outcome, "wall_time"]]
    print(table.to_string(index=False, float_format="{:.4f}".format))
    for record in records:
        for name, value in (record.measures or {}).items():
            print(f"seed {record.run.seed}: {name} {value:.5g}")
    if len(table) > 1:
        accuracy, updates = 100 * table.test_accuracy, table.updates
        print(
            f"test accuracy {accuracy.mean():.2f} ± {accuracy.std():.2f} %, "
            f"updates {updates.mean():.0f} ± {updates.std():.0f} (mean ± std of {len(table)} seeds)"
        )


def _sweep(options: argparse.Namespace) -> None:
    named = _chosen(options)
    from nb_lib.lab.sweeps import sweep
    from nb_lib.measures import measures

    where = _where(options)
    budget = options.budget
    if budget is not None:  # what began to run before, and the account, take theirs
        already = time.monotonic() - options.started
        budget -= already + min(2, budget / 10)
    records = sweep(
        chain.from_iterable(named.values()),
        options.store,
        named=named,
        budget=budget,
        have=store.load_records(options.have),
        into=options.into,
        client=options.scheduler,
        measure=measures if options.measure else None,
        keep_weights=options.keep_weights,
        **where,
    )
    if records:
        _print_cells(records)


def _print_cells(records: list[Record]) -> None:
    """Print the means over the seeds of each network, batch size and method, and of what else differs."""
    fields = ("dataset", "precision", *METHOD)
    varied = [name for name in fields if len({getattr(record.run, name) for record in records}) > 1]
    table = store.frame(records)
    table["test_accuracy"] *= 100
    columns = {
        "n": ("seed", "count"),
        "accuracy_%": ("test_accuracy", "mean"),
        "std": ("test_accuracy", "std"),
        "updates": ("updates", "mean"),
    }
    cells = table.groupby(["network", "batch_size", *varied])
    print(cells.agg(**columns).reset_index().to_string(index=False))


def _profile(options: argparse.Namespace) -> None:
    named = _chosen(options)
    weights = store.RunStore(options.store)
    runs = [run for run in dict.fromkeys(chain.from_iterable(named.values())) if weights.weights(run).exists()]
    if not runs:
        raise InputError(f"no weights of these runs in {options.store}: train them with sweep --keep-weights.")
    from tqdm.auto import tqdm

    from nb_lib.lab.setup import trained
    from nb_lib.lab.tasks import data_for
    from nb_lib.profiles import profile_of, save_profiles

    where = _where(options)
    for run in tqdm(runs, unit="network"):
        data = data_for(run, **where)
        found = profile_of(run, trained(run, weights, data), data, samples=options.samples)
        count = save_profiles([found], options.into)
    print(f"{options.into}: {count} profiles")


def _chosen(options: argparse.Namespace) -> dict[str, list[Run]]:
    """The runs that are meant, by the names of their grids."""
    given = {name: getattr(options, name) for name in ("dataset", "precision", "valid_size")}
    return plan(options.grids, options.scale, seeds=options.seeds, **given)


def _where(options: argparse.Namespace) -> dict[str, Any]:
    """Where to train and to find the data, said before anything long begins; also if it may not be what was meant."""
    from nb_lib.lab.device import pick_device
    from nb_lib.lab.provenance import device_name

    if not options.scheduler:
        found = pick_device(options.device)
        fallback = "there is no CUDA device: " if options.device == "auto" and found.type == "cpu" else ""
        print(f"{fallback}training on {device_name(found)}", file=sys.stderr, flush=True)
    return {"device": options.device, "root": options.root, "download": options.download}


def _grids(_: argparse.Namespace) -> None:
    rows = overview()
    lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(entry) for entry in column) for column in zip(*lines, strict=True)]
    print("runs at each scale:")
    for line in lines:
        print("  ".join(entry.rjust(width) for entry, width in zip(line, widths, strict=True)))
    print("next: " + "; ".join(step.name for step in NEXT))
    for network, sizes in SIZES.items():
        print(f"{network}: " + "; ".join(f"{scale}: {sizes[scale].doc}" for scale in SCALES))
    print("not here: " + "; ".join(f"{what} (lacks {why})" for what, why in MISSING.items()))


def _compare(options: argparse.Namespace) -> None:
    from nb_lib.compare import compare
    from nb_lib.page.comparison import readable

    table = readable(compare(options.table, store.load_records(options.store), scale=options.scale))
    print("accuracies in %, gains in points, ± standard errors")
    print(table.to_string(index=False, justify="left"))


def _merge(options: argparse.Namespace) -> None:
    for file, count in store.merge(options.stores, options.into).items():
        print(f"{file}: {count} records")


if __name__ == "__main__":
    sys.exit(main(started=LOADED))
