"""``python -m benchmarks``: what methods, measures and trainings cost on this machine, as ratios."""

import argparse

import pandas as pd

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
    _print(bench(device, rounds=options.rounds))
    print("\nmeasuring a network: ratios of times, and the values reached")
    _print(bench_measures(device))
    print("\ntraining: updates a second, time ÷ a plain loop's, part of the peak of a matrix product")
    _print(bench_training(device))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto [auto]")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions [15]")
    parser.add_argument("--short", action="store_true", help="trainings only, in under a minute on a GPU")
    options = parser.parse_args(arguments)
    try:
        options.rounds = whole("--rounds", options.rounds, 1)
        options.device = pick_device(options.device)
    except InputError as error:
        parser.error(str(error))
    return options


def _print(ratios: pd.DataFrame) -> None:
    print(ratios.to_string(index=False, na_rep="", float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
