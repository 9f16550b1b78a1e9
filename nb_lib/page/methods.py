"""The methods of one experiment beside each other: their accuracies, and what each gains over one of them."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from nb_lib.page.intervals import in_words, with_error
from nb_lib.papers import method_in_words

#: What differs between rows of a published table beside the method; methods are compared where it is the same.
SETTING = ["batch_size", "epochs_limit", "lr_scaling"]


def show_methods(results: pd.DataFrame, over: str = "baseline") -> None:
    """Print accuracies of all methods, and below them what they gain `over` one of them, for each setting.

    `results` are of one experiment and variety, as from `experiments.varieties`.
    """
    for setting, rows in by_setting(results):
        table = scores(rows)
        print(f"\n{setting}: test accuracy, percent")
        print(table.to_string())
        diverged = sum(rows["status"] == "diverged")
        if diverged:
            print(f"{diverged} of {len(rows)} runs diverged")
        if over not in table.index:
            print(f"{over} is not run yet: nothing to compare with")
        elif len(table) > 1:
            print(f"best test accuracy, less that of {over} with the same seed:")
            print(gains(rows, over))
    print()


def by_setting(results: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Runs of one batch size, length and scaling of the learning rate at a time, with these in words.

    The runs have a column more, `method` (see `papers.method_in_words`), whose values are in the order of the rows.
    """
    words = [method_in_words(row) for row in results.to_dict("records")]
    named = results.assign(method=words)
    for (B, epochs, scaling), rows in named.groupby(SETTING, sort=False):
        setting = f"B = {B}, {epochs} epochs"
        if scaling != "none":
            setting = f"{setting}, {scaling} scaling of the rate"
        order = rows["method"].unique()
        ordered = pd.Categorical(rows["method"], order)
        yield setting, rows.assign(method=ordered)


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of each method in percent, mean ± standard error over seeds: the best of a training and the last.

    `rows` are of one setting, see `by_setting`.
    """
    cells = rows.groupby("method", observed=True)
    best = with_error(cells["best_test_accuracy"], scale=100)
    final = with_error(cells["test_accuracy"], scale=100)
    seeds = cells["seed"].nunique()
    table = pd.DataFrame({"best": best, "final": final, "seeds": seeds})
    return table.rename_axis(None)


def gains(rows: pd.DataFrame, over: str) -> str:
    """Say what each method gains over another in best test accuracy, paired by seed, a line each (see `in_words`)."""
    methods = rows["method"].unique()
    width = max(map(len, methods))
    label = f"{{:{width}}} "
    say = partial(in_words, number="+.2f", scale=100, unit="points")
    return say(rows, "method", "best_test_accuracy", baseline=over, label=label)
