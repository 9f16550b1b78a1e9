"""``python -m nb_lib``: train, sweep, measure and compare on machines without Jupyter.

Commands import what they need when they run, so that help and lists come at once.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, NoReturn

from nb_lib import LOADED
from nb_lib.errors import InputError, whole
from nb_lib.lab import store
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.plans import NEXT, plan
from nb_lib.lab.runs import Record, Run
from nb_lib.lab.text import read, seconds
from nb_lib.papers import METHOD, TABLES, overview
from nb_lib.protocols import SCALES, SIZES, not_none

# read by torch when it is loaded: threads that wait leave the cores to others' work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: list[str] | None = None, *, started: float | None = None) -> int:
    """Run one command; returns the exit status.

    It is 2 for input that cannot be used, said in one sentence, and for runs that failed, in one line each; 128 and the
    signal's number for what a signal stops.  A budget counts from `started`, of ``time.monotonic()``, or from now.
    """
    options = _parser().parse_args(arguments)
    options.started = time.monotonic() if started is None else started
    try:
        for name in _COUNTS:
            count = read(name, getattr(options, name, None), int)
            if count is not None:
                setattr(options, name, whole(name, count, least=1))
        options.command(options)
        sys.stdout.flush()
    except InputError as error:
        print(f"nb_lib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print("nb_lib: stopped; what is stored stays, and the same call goes on.", file=sys.stderr)
        return 128 + (stopped.args or [signal.SIGINT])[0]
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to be written at the end
        return 128 + signal.SIGPIPE
    return 0


_COUNTS = ("seeds", "samples", "hessian_samples")  # options
_STORE = "folder of records: stored runs are skipped, killed ones resumed"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nb_lib", description="Noise in SGD: train, measure, compare.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add = commands.add_parser
    _add_train(add("train", help="train one configuration with one or more seeds"))
    measure = add("measure", help="the same, and measure sharpness, curvature and gradient noise")
    _add_train(measure)
    measure.add_argument("--samples", default=10_000, help="most samples for box and noise [10000]")
    measure.add_argument("--hessian-samples", default=2_000, help="and for what costs more [2000]")
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
        add(f"--{f.name.replace('_', '-')}", metavar="V", help=shown)
    add("--seeds", default=1, help="train this many seeds, counted up from --seed [1]")
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
    add("--budget", metavar="TIME", help="be done after this long, the account included: 90s, 8m, 2h")
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
    add("--samples", default=1_000, help="most samples of each split [1000]")
    _add_place(parser)
    parser.set_defaults(command=_profile, scheduler=None)


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs of a grid are meant."""
    add = parser.add_argument
    add("--scale", default="full", help=f"{', '.join(SCALES)} [full]")
    add("--seeds", help="[the scale's]")
    for name, example in (("dataset", "folder:cifar10"), ("precision", "tf32"), ("valid-size", "5000")):
        add(f"--{name}", metavar="V", help=f"another than the protocol's, e.g. {example}")


def _train(options: argparse.Namespace) -> None:
    run = Run.from_dict(not_none({f.name: getattr(options, f.name) for f in dataclasses.fields(Run)}))
    runs = [dataclasses.replace(run, seed=run.seed + number) for number in range(options.seeds)]
    measure = None
    if options.samples is not None:
        from nb_lib.measures import measures

        measure = partial(measures, samples=options.samples, hessian_samples=options.hessian_samples)
    _sweep_and(_print_runs, runs, options.store, **_where(options), measure=measure)


def _print_runs(records: list[Record]) -> None:
    """Print what came of each run, and the means."""
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
    budget = None
    if options.budget is not None:  # what began to run before, and the account, take theirs
        given = seconds("budget", options.budget)
        budget = max(0, given - min(2, given / 10) - time.monotonic() + options.started)
    from nb_lib.measures import measures

    where = _where(options)
    _sweep_and(
        _print_cells,
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


def _sweep_and(show: Callable[[list[Record]], None], *what: Any, **how: Any) -> None:
    """Sweep and show what there is then, also if some runs failed."""
    from nb_lib.lab.sweeps import SomeFailed, sweep

    try:
        records = sweep(*what, **how)
    except SomeFailed as failed:
        if failed.records:
            show(failed.records)
        raise
    if records:
        show(records)


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

    from nb_lib.lab.device import hidden
    from nb_lib.lab.setup import trained
    from nb_lib.lab.tasks import data_for
    from nb_lib.profiles import profile_of, save_profiles, stored_profiles

    stored_profiles(options.into)  # raises before anything is measured if nothing can be added there
    where = _where(options)
    for run in tqdm(runs, unit="network", disable=hidden(progress=True)):
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
        print(f"{network}: " + "; ".join(f"{scale}: {sizes[scale].doc}" for scale in SCALES if scale in sizes))


def _compare(options: argparse.Namespace) -> None:
    from nb_lib.compare import compare
    from nb_lib.page.comparison import readable

    table = readable(compare(options.table, store.load_records(options.store), scale=options.scale))
    print("accuracies in %, gains in points, ± standard errors")
    print(table.to_string(index=False, justify="left"))


def _merge(options: argparse.Namespace) -> None:
    for file, count in store.merge(options.stores, options.into).items():
        print(f"{file}: {count} records")


def _terminated(number: int, _: object) -> NoReturn:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # latin-1 has no α
    sys.exit(main(started=LOADED))
