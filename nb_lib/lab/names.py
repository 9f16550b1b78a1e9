"""The names that a `Run` may use, and what they stand for; known without loading torch.

>>> DATASETS["cifar10"]
(3, 32, 32)
"""

import re

from nb_lib.errors import known

#: Networks (see `lab.networks`).
NETWORKS = {
    "digits-mlp": "2 x 64 ReLU, for the digits",
    "ne-f1": "NE's F1: 7 x 500 ReLU",
    "ne-c1": "NE's C1: 9 convolutions",
    "ne-c1-quarter": "C1 with a quarter of its filters, for CPUs",
    "ne-c2": "NE's C2: 11 convolutions",
    "smoothout-f1": "SmoothOut's F1: 5 x 512, batch-normalized",
    "smoothout-c1": "SmoothOut's C1: shallow, for CIFAR-10",
    "smoothout-c3": "SmoothOut's C3: the same, for CIFAR-100",
    "alexnet": "SmoothOut's AlexNet: batch-normalized, without dropout",
    "alexnet-dropout": "the same with dropout, p = 0.5",
    "alexnet-light-dropout": "the same with p = 0.2",
    "resnet18": "torchvision's ResNet18, for ImageNet",
    "resnet44": "SmoothOut's residual network; so is any depth 6n+2, as resnet8",
}
#: Data sets (see `lab.data`) and the shape [C, H, W] of their images; others are called ``folder:<name>``.
DATASETS = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "imagenet": (3, 224, 224),  # as training sees them
}
#: Data sets that no device holds: `examples/imagenet.py` trains on them.
TOO_LARGE = ("imagenet",)
#: Training images of the data sets that the papers train on.
TRAINING_IMAGES = {
    "mnist": 60_000,
    "fashion-mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "imagenet": 1_281_167,
}
#: Networks with batch normalization of single values, in dense layers: they cannot train on one sample.
DENSE_NORMALIZED = (
    "smoothout-f1",
    "smoothout-c1",
    "smoothout-c3",
    "alexnet",
    "alexnet-dropout",
    "alexnet-light-dropout",
)
#: Scales of the pixels (see `lab.data.load`).
NORMALIZATIONS = ("unit", "symmetric", "imagenet", "standardized")
#: Kinds of the weight noise θ: U(−a, a) or N(0, a²).
DISTRIBUTIONS = ("uniform", "normal")
#: Which parameters are meant (see `lab.weight_vector`): the kinds nest, so each is a stretch of one common layout.
SELECTIONS = {"weights": ("weight",), "no-norm": ("weight", "bias"), "all": ("norm", "weight", "bias")}
#: Ways to cut a batch into ghost batches (see `ghost_batch_norm.part_sizes`).
CUTTINGS = ("rest", "even")
#: What training sees of an image: itself, a random crop of it that may be mirrored, or the same of a random part of it,
#: resized.  Small images are padded before they are cropped, large ones (those of a run with an image size) resized.
AUGMENTATIONS = ("none", "crop-flip", "resized-crop-flip")
OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("float32", "tf32", "bfloat16")
#: Powers of B / lr_reference that multiply the learning rate.
LR_SCALINGS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def check_network(name: str) -> str:
    """Return `name` if it is in `NETWORKS`, or a residual network of another depth; else raise `InputError`."""
    return name if residual_blocks(name) else known("network", name, NETWORKS)


def residual_blocks(name: str) -> int:
    """Blocks n in each of the three stages of a residual network of depth 6n+2; 0 for other networks.

    >>> residual_blocks("resnet44"), residual_blocks("resnet8"), residual_blocks("resnet18"), residual_blocks("ne-f1")
    (7, 1, 0, 0)
    """
    depth = re.fullmatch(r"resnet([1-9][0-9]{0,3})", name)
    n, rest = divmod(int(depth[1]) - 2, 6) if depth else (0, 0)
    return 0 if rest else n


def published_ghost_batch(network: str) -> int | None:
    """The ghost batch that a network is published with; None if it has no batch normalization.

    >>> published_ghost_batch("ne-c1"), published_ghost_batch("resnet44"), published_ghost_batch("ne-f1")
    (100, 128, None)
    """
    if network in ("digits-mlp", "ne-f1"):
        return None
    return 100 if network.startswith("ne-") else 128
