"""Random crops and mirror images, for whole batches at once: each training image stands for its 162 *views*.

The image is padded by 4 pixels of gray on every side; a crop of the old size has 9 · 9 places, and may be mirrored.
A view has one number, 162 · image + (18 · top + 2 · left + mirrored): an epoch draws numbers of views instead of
numbers of images, and reading a batch costs one pass over memory either way.  This is "crop-flip" for images that lie
whole on the device, all of one size; what it is for those of a run with `image_size`, see `Run`.
"""

import torch
from torch import Tensor

from nb_lib.lab.data import Split

PADDING = 4  # pixels
PLACES = 2 * PADDING + 1  # of a crop, along each axis
VIEWS = 2 * PLACES * PLACES


def draw_views(index: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of views, one drawn at random of each of the images `index`, in any shape.

    >>> views = draw_views(torch.tensor([0, 7]), torch.Generator().manual_seed(0))
    >>> views // VIEWS
    tensor([0, 7])
    """
    view = torch.randint(VIEWS, index.shape, generator=generator, device=index.device)
    return VIEWS * index + view


class Views:
    """All views of the images of a split; ``views[numbers]`` are images and labels, as of a `Split`.

    Parameters
    ----------
    gray : tuple of float
        Value of the padding in each channel, or one for all (see `Data.gray`).
    """

    def __init__(self, split: Split, gray: tuple[float, ...]) -> None:
        x = split.x.movedim(1, -1)
        n, height, width, channels = x.shape
        border = 2 * PADDING
        inside = slice(PADDING, -PADDING)
        padded = x.new_empty(n, height + border, width + border, channels)  # channels innermost
        padded[:] = x.new_tensor(gray)
        padded[:, inside, inside] = x
        self._padded = padded
        self._rows = torch.arange(height, device=x.device)
        self._columns = torch.arange(width, device=x.device)
        self._y = split.y

    def __getitem__(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Images [..., C, H, W] and labels [...] of the views `numbers` [...]."""
        index = numbers // VIEWS
        mirrored = numbers % 2 == 1
        place = numbers // 2
        left = place % PLACES
        top = place // PLACES % PLACES
        mirror_image = self._columns.flip(0)
        column = torch.where(mirrored.unsqueeze(-1), mirror_image, self._columns)
        row = self._rows + top.unsqueeze(-1)
        column = column + left.unsqueeze(-1)
        # [..., H, W, C]: each picks its image, rows and columns
        image = index[..., None, None]
        x = self._padded[image, row.unsqueeze(-1), column.unsqueeze(-2)]
        return x.movedim(-1, -3), self._y[index]
