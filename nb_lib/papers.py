"""The papers' protocols as fields of a `Run`, and their published numbers.

Where a paper is silent the choice made here is marked; the numbers are those printed in the papers' tables.
"""

from typing import Any

import pandas as pd

from nb_lib.errors import known

_NE: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "inputs": "unit", "epochs": 2000}  # the epoch limit is ours
_SMOOTHOUT: dict[str, Any] = {  # sec. IV; epochs, input scaling and noise by ghost batch are those of the authors' code
    "optimizer": "adam",
    "lr": 1e-3,
    "epochs": 200,
    "noise_batch": 128,
    "inputs": "imagenet",
}
#: How each network is trained: fields of a `Run`, without method, batch size and seed.
PROTOCOLS: dict[str, dict[str, Any]] = {
    # ours, for the embedded digits: few samples and plain SGD, the algorithm that NE's theory is about
    "digits-mlp": {
        "dataset": "digits",
        "train_size": 600,
        "optimizer": "sgd",
        "lr": 0.2,
        "stop_below": 0.01,
        "epochs": 400,
    },
    # NE, sec. 3 and Table 1: Adam with default hyperparameters, learning rate halved at L*, stop below L**
    "ne-f1": _NE | {"dataset": "fashion-mnist", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c1": _NE | {"dataset": "cifar10", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c2": _NE | {"dataset": "cifar100", "halve_at": 0.02, "stop_below": 0.001},
    "smoothout-f1": _SMOOTHOUT | {"dataset": "mnist", "epochs": 50, "inputs": "symmetric"},
    "smoothout-c1": _SMOOTHOUT | {"dataset": "cifar10"},
    "smoothout-c3": _SMOOTHOUT | {"dataset": "cifar100"},
}

_TABLE_2 = """
ne-f1  1    900  90.17 0.14  10934  816
ne-f1  1.5 2000  90.39 0.17   7914  528
ne-c1  1    100  88.05 0.18  24500 2775
ne-c1  1.5  200  88.69 0.11  20825 2113
ne-c1  2    300  88.77 0.30  15932 1870
ne-c1  2.5  500  88.66 0.22  10040 1153
ne-c2  1    600  61.40 0.54   5292  935
ne-c2  1.5 1000  61.75 0.48   5175  748
"""
_TABLE_I = """
smoothout-f1  256 98.49 98.61
smoothout-f1 6000 98.01 98.42
smoothout-c1  256 79.67 81.72
smoothout-c1 5000 77.30 80.34
smoothout-c3  256 47.99 51.17
smoothout-c3 5000 44.37 48.43
"""


def protocol(network: str, **given: Any) -> dict[str, Any]:
    """Fields of a `Run` that train `network` as published; what is `given`, and not None, goes first."""
    fields = PROTOCOLS[known("network", network, PROTOCOLS)]
    return {"network": network, **fields, **{name: value for name, value in given.items() if value is not None}}


def ne_table_2() -> pd.DataFrame:
    """NE Table 2: the best test accuracy for each α, 10 runs each.

    Returns
    -------
    pandas.DataFrame
        Columns network, alpha, batch_size (B_opt), accuracy and accuracy_std (percent), updates and updates_std.
    """
    columns = ["network", "alpha", "batch_size", "accuracy", "accuracy_std", "updates", "updates_std"]
    return _table(_TABLE_2, columns)


def smoothout_table_1() -> pd.DataFrame:
    """SmoothOut Table I without its sharpness column, which rests on a gradient of the wrong sign.

    Returns
    -------
    pandas.DataFrame
        Columns network, batch_size, a (0 is the baseline) and accuracy (percent).
    """
    wide = _table(_TABLE_I, ["network", "batch_size", "0.0", "0.0375"])
    long = wide.melt(["network", "batch_size"], var_name="a", value_name="accuracy")
    return long.astype({"a": float}).sort_values(["network", "batch_size", "a"], ignore_index=True)


def _table(text: str, columns: list[str]) -> pd.DataFrame:
    rows = pd.DataFrame([line.split() for line in text.strip().splitlines()], columns=columns)
    return rows.astype({column: float for column in columns[1:]})
