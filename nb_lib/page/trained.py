"""What a chapter trains, in a sentence made from its parameters.

>>> split = range(600)
>>> from types import SimpleNamespace as Fake
>>> digits = Fake(name="digits", train=split, test=split, classes="0123456789", shape=(1, 8, 8))
>>> described(Run(optimizer="sgd", lr=0.2, stop_below=0.01), digits)
'Trained here is digits-mlp (2 x 64 ReLU, for the digits) on 600 images of digits, 8 × 8 pixels in 10 classes; tested \
on 600 others. The optimizer is plain SGD with η = 0.2; a run ends when the mean training loss of an epoch is below \
L** = 0.01, at most after 100 epochs.'
"""

from nb_lib.lab.data import Data
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.runs import Run


def described(run: Run, data: Data) -> str:
    """Say which network is trained on how many of which images, with which optimizer, η, and end."""
    kind = f" ({NETWORKS[run.network]})" if run.network in NETWORKS else ""
    _, height, width = data.shape
    images = f"{len(data.train):,} images of {data.name}, {height} × {width} pixels in {len(data.classes)} classes"
    return (
        f"Trained here is {run.network}{kind} on {images}; tested on {len(data.test):,} others. "
        f"The optimizer is {_optimizer(run)}; {_end(run)}."
    )


def _optimizer(run: Run) -> str:
    name = {"sgd": "SGD" if run.momentum else "plain SGD", "adam": "Adam"}.get(run.optimizer, run.optimizer)
    extras = [f"momentum {run.momentum:g}"] if run.momentum else []
    if run.halve_at is not None:
        extras.append(f"halved when the loss reaches L* = {run.halve_at:g}")
    if run.lr_steps:
        extras.append("falling in steps")
    eta = run.lr_at(0)
    return ", ".join([f"{name} with η = {eta:g}", *extras])


def _end(run: Run) -> str:
    if run.stop_below is None:
        return f"a run takes {run.epochs} epochs"
    rule = f"the mean training loss of an epoch is below L** = {run.stop_below:g}"
    return f"a run ends when {rule}, at most after {run.epochs} epochs"
