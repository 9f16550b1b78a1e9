"""``python -m benchmarks``: what methods, measures and trainings cost on this machine, as ratios."""

import argparse

import pandas as pd

from benchmarks.accumulated import bench_accumulated
from benchmarks.measuring import bench_measures
from benchmarks.steps import bench
from benchmarks.trainings import bench_training, short_cases
from nb_lib.errors import InputError, whole
from nb_lib.lab.device import pick_device
from nb_lib.lab.provenance import provenance


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    device = options.device
    origin = provenance(device)
    machine = f"{origin['device']}, {origin['threads']} threads, torch {origin['torch']}"
    print(f"{machine}; ratios of steps timed in turn")
    if options.short:
        _print(bench_training(device, rounds=2, chosen=short_cases(device), limit=45))
        return
    if options.accumulated:
        _print(bench_accumulated(device, rounds=options.rounds or 3))
        return
    _print(bench(device, rounds=options.rounds or 15))
    print("\nmeasuring a network: ratios of times, and the values reached")
    _print(bench_measures(device))
    print("\ntraining: updates a second, time ÷ a plain loop's, part of the peak of a matrix product")
    _print(bench_training(device))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto [auto]")
    parser.add_argument("--rounds", type=int, help="repetitions of steps [15] and of accumulated updates [3]")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--short", action="store_true", help="trainings only, in under a minute on a GPU")
    part.add_argument(
        "--accumulated", action="store_true", help="updates accumulated over ghost batches, as on ImageNet"
    )
    options = parser.parse_args(arguments)
    try:
        if options.rounds is not None:
            options.rounds = whole("--rounds", options.rounds, 1)
        options.device = pick_device(options.device)
    except InputError as error:
        parser.error(str(error))
    return options


def _print(ratios: pd.DataFrame) -> None:
    print(ratios.to_string(index=False, na_rep="", float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
