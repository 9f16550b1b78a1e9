"""How the papers' networks are trained: protocols as fields of a `Run`, and the sizes that experiments have.

``full`` is the published protocol, ``small`` and ``tiny`` ask the same question of less data, fewer batch sizes and
fewer seeds (`SIZES` says what they are); on ImageNet there is no less than ``full``.  Where a paper is silent the
choice made here is marked.

>>> protocol("resnet44")["lr_steps"]  # a tenth from these epochs on, before the rate is scaled to the batch
((162, 0.01), (244, 0.001), (328, 0.0001))
"""

from dataclasses import dataclass, field
from typing import Any

from nb_lib.errors import known
from nb_lib.lab.names import residual_blocks
from nb_lib.lab.text import read

Fields = dict[str, Any]  # some fields of a `Run`

_FEW_DIGITS: Fields = {"dataset": "digits", "train_size": 600}
_NE: Fields = {"optimizer": "adam", "lr": 1e-3, "inputs": "unit", "epochs": 2000}  # the epoch limit is ours
_AUTHORS_CODE: Fields = {"epochs": 200, "inputs": "imagenet", "noise_batch": 128, "cutting": "even"}
_SMOOTHOUT: Fields = {"optimizer": "adam", "lr": 1e-3, **_AUTHORS_CODE}  # SmoothOut, sec. IV
_HOFFER: Fields = {"epochs": 200, "lr_steps": ((81, 0.01), (122, 0.001), (164, 0.0001))}


def regime(epochs: int, like: Fields = _HOFFER) -> Fields:
    """Learning rates that fall at the same shares of so many epochs as in `like`, whose own are Hoffer's.

    >>> regime(100)
    {'epochs': 100, 'lr_steps': ((40, 0.01), (61, 0.001), (82, 0.0001))}
    """
    steps = [(round(epoch * epochs / like["epochs"]), lr) for epoch, lr in like["lr_steps"]]
    return {"epochs": epochs, "lr_steps": tuple((epoch, lr) for epoch, lr in steps if 0 < epoch < epochs)}


# SmoothOut, Table II: momentum, the learning rate scaled to the batch, and trained longer, which is twice the epochs
_TRAINED_LONGER = regime(400)
_MOMENTUM: Fields = {"optimizer": "sgd", "momentum": 0.9, "lr_scaling": "sqrt", "clip": 5.0}  # clip: their code's
_RESNET: Fields = _MOMENTUM | {"lr": 0.1, "weight_decay": 1e-4}
# and on ImageNet, without weight decay; the first rates, and the epochs at which they fall, are the authors' code's
_IMAGENET: Fields = _AUTHORS_CODE | _MOMENTUM | {"dataset": "imagenet", "image_size": 224}
_ALEXNET = _IMAGENET | {"lr": 0.01, "augment": "crop-flip", "epochs": 60, "lr_steps": ((20, 0.001), (40, 0.0001))}
_RESNET18 = _IMAGENET | {"lr": 0.1, "augment": "resized-crop-flip", "epochs": 90, "lr_steps": ((30, 0.01), (60, 0.001))}
#: How each network is trained: fields of a `Run`, without method, batch size and seed.
PROTOCOLS: dict[str, Fields] = {
    # ours, for the embedded digits: few samples and plain SGD, the algorithm that NE's theory is about
    "digits-mlp": _FEW_DIGITS | {"optimizer": "sgd", "lr": 0.2, "stop_below": 0.01, "epochs": 400},
    # NE, sec. 3 and Table 1: Adam with default hyperparameters, learning rate halved at L*, stop below L**
    "ne-f1": _NE | {"dataset": "fashion-mnist", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c1": _NE | {"dataset": "cifar10", "halve_at": 0.01, "stop_below": 0.001},
    "ne-c2": _NE | {"dataset": "cifar100", "halve_at": 0.02, "stop_below": 0.001},
    "smoothout-f1": _SMOOTHOUT | {"dataset": "mnist", "epochs": 50, "inputs": "symmetric"},
    "smoothout-c1": _SMOOTHOUT | {"dataset": "cifar10"},
    "smoothout-c3": _SMOOTHOUT | {"dataset": "cifar100"},
    "resnet44": _AUTHORS_CODE | _RESNET | _TRAINED_LONGER | {"dataset": "cifar10", "augment": "crop-flip"},
    "alexnet": _ALEXNET,
    # as in the authors' code, which has these two besides
    "alexnet-dropout": _ALEXNET | {"weight_decay": 5e-4},
    "alexnet-light-dropout": _ALEXNET | {"weight_decay": 1e-4},
    "resnet18": _RESNET18,
}


def protocol(network: str, **given: Any) -> Fields:
    """Fields of a `Run` that train `network` as published; what is `given`, and not None, goes first.

    A quarter of C1 is trained as C1, residual networks of other depths as ResNet44.  Where rates fall at given epochs,
    they fall at the same shares of other epochs.

    >>> protocol("resnet8", epochs=100)["lr_steps"]
    ((40, 0.01), (61, 0.001), (82, 0.0001))
    """
    named = "resnet44" if residual_blocks(network) else network.removesuffix("-quarter")
    like = known("network", named, PROTOCOLS)
    fields = PROTOCOLS[like]
    given = not_none(given)
    if "lr_steps" in fields and "epochs" in given:
        fields = fields | regime(read("epochs", given["epochs"], int), like=fields)
    return {"network": network, **fields, **given}


def not_none(given: Fields) -> Fields:
    """Those of the fields that are given."""
    return {name: value for name, value in given.items() if value is not None}


#: The scales of an experiment, in the order of their cost.
SCALES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Size:
    """One scale of a network's experiments."""

    doc: str  # what it is, in print
    batch_sizes: tuple[int, ...]  # B; the smallest and the largest are SmoothOut's small and large batch
    curves: tuple[float, ...] = ()  # NE's α of Figs. 1 and 2, at every B
    routes: tuple[float, ...] = ()  # and of Fig. 3, at the largest B
    seeds: int = 3
    fields: Fields = field(default_factory=dict)  # what differs from the protocol, the network included


_B = (*range(100, 1001, 100), 2000, 3000, 5000)  # NE, sec. 3
_UP_TO_7, _UP_TO_11 = tuple(range(1, 8)), tuple(range(1, 12))  # α of NE Fig. 3
_TINY_NE = Size(
    "a small network on 600 of the embedded digits, plain SGD",
    batch_sizes=(20, 60, 200),  # of 600 images, whose noise with B = N would be none (NE eq. 4)
    curves=(1, 1.5, 2),
    routes=(1, 1.5, 2, 3, 4),
    seeds=6,
    fields=protocol("digits-mlp", valid_size=300, epochs=1000),
)
_TINY_SMOOTHOUT = Size(
    "SmoothOut's F1 on 600 of the embedded digits, 15 epochs",
    batch_sizes=(30, 300),
    seeds=5,
    fields=protocol("smoothout-f1", **_FEW_DIGITS, valid_size=300, epochs=15),
)
_1500_IMAGES = {"train_size": 1500, "valid_size": 5000}
_QUARTER = "C1 with a quarter of its filters on 500 images of"
_QUARTER_C1 = {"network": "ne-c1-quarter", "train_size": 500, "valid_size": 2000}
_3000_IMAGES = {"train_size": 3000, "valid_size": 5000}  # B = 300: the paper's updates an epoch
_FEW_EPOCHS = {"train_size": 1000, "valid_size": 2000, "epochs": 30}


def _in_parts_of(size: int) -> Fields:
    """Noise, ghost batches and the learning rate's reference for smaller batches; they have 128 in the paper."""
    return {"noise_batch": size, "ghost_batch": size, "lr_reference": size}


_RESNET8: Fields = {"network": "resnet8", "train_size": 1000, "valid_size": 2000, **regime(120), **_in_parts_of(16)}
# without augmentation: digits that are mirrored are others
_PLAIN_DIGITS = _FEW_DIGITS | {"network": "resnet8", "valid_size": 300, "inputs": "unit", "augment": "none"}
_TINY_RESNET = Size(
    "ResNet8 on 600 of the embedded digits, 6 epochs",
    batch_sizes=(20, 100),
    seeds=2,
    fields=_PLAIN_DIGITS | regime(6) | _in_parts_of(20),
)
_CIFAR100 = {"dataset": "cifar100", **_TRAINED_LONGER}
#: For each network (and data set) with experiments of its own, what each scale of them is; on ImageNet there is one.
SIZES: dict[str, dict[str, Size]] = {
    "ne-f1": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5), _UP_TO_11, seeds=10),
        "small": Size("F1 on 1,500 images of Fashion-MNIST", (30, 100, 500), (1, 1.5), (1, 2, 3), fields=_1500_IMAGES),
        "tiny": _TINY_NE,
    },
    "ne-c1": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5, 2, 2.5), _UP_TO_11, seeds=10),
        "small": Size(f"{_QUARTER} CIFAR-10", (25, 250), (1, 1.5, 2.5), (1, 1.5, 2.5, 4), fields=_QUARTER_C1),
        "tiny": _TINY_NE,
    },
    "ne-c2": {
        "full": Size("as published, 10 seeds", _B, (1, 1.5), _UP_TO_7, seeds=10),
        "small": Size(f"{_QUARTER} CIFAR-100", (25, 250), (1, 1.5), (1, 1.5, 2.5, 4), fields=_QUARTER_C1),
        "tiny": _TINY_NE,
    },
    "smoothout-f1": {
        "full": Size("as published, 3 seeds", (256, 6000)),
        "small": Size("F1 on 3,000 images of MNIST", (25, 300), fields=_3000_IMAGES),
        "tiny": _TINY_SMOOTHOUT,
    },
    "smoothout-c1": {
        "full": Size("as published, 3 seeds", (256, 5000)),
        "small": Size("C1 on 1,000 images of CIFAR-10, 30 epochs", (25, 100), fields=_FEW_EPOCHS),
        "tiny": _TINY_SMOOTHOUT,
    },
    "smoothout-c3": {
        "full": Size("as published, 3 seeds", (256, 5000)),
        "small": Size("C3 on 1,000 images of CIFAR-100, 30 epochs", (25, 100), fields=_FEW_EPOCHS),
        "tiny": _TINY_SMOOTHOUT,
    },
    "resnet44": {
        "full": Size("as published, 3 seeds", (128, 2048)),
        "small": Size("ResNet8 on 1,000 images of CIFAR-10, 120 epochs", (16, 128), fields=_RESNET8),
        "tiny": _TINY_RESNET,
    },
    "resnet44-cifar100": {
        "full": Size("as published, 3 seeds", (128, 1024), fields=_CIFAR100),
        "small": Size(
            "ResNet8 on 1,000 images of CIFAR-100, 60 and 120 epochs",
            (16, 128),
            fields=_RESNET8 | {"dataset": "cifar100"},
        ),
        "tiny": _TINY_RESNET,
    },
    "alexnet": {"full": Size("as published, 3 seeds", (16384,))},
    "resnet18": {"full": Size("as published, 3 seeds", (16384,))},
}
