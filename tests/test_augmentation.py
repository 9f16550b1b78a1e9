"""Random views of images against torchvision's transforms of the same offsets."""

from dataclasses import replace

import pytest
import torch
from made_data import write_folder
from torchvision.transforms import functional as transforms

from nb_lib.lab.augmentation import PADDING, PLACES, VIEWS, Views, draw_views
from nb_lib.lab.data import Split, load
from nb_lib.lab.runs import Run
from nb_lib.lab.setup import channels_last
from nb_lib.lab.training import Training, train

MEAN_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_view_is_torchvisions_pad_crop_flip_and_normalization(root):
    write_folder(root, size=(8, 6), n=(2, 1))
    pixels = load("folder:pets", root=root)
    colored = load("folder:pets", root=root, normalization="imagenet")
    marked = pixels.train.x.clone()
    marked[:, 0] = (
        torch.rand(marked[:, 0].shape, generator=generator()).mul(255).round().div(255)
    )  # no two pixels alike
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in MEAN_STD)
    split = Split((marked - mean) / std, pixels.train.y)
    views = Views(split, colored.gray)
    height, width = marked.shape[-2:]
    for image in range(len(marked)):
        for view in range(VIEWS):
            x, y = views[torch.tensor([VIEWS * image + view])]
            place, mirrored = divmod(view, 2)
            top, left = divmod(place, PLACES)
            bytes_ = marked[image].mul(255).round().to(torch.uint8)
            expected = transforms.crop(transforms.pad(bytes_, [PADDING], fill=127), top, left, height, width)
            if mirrored:
                expected = transforms.hflip(expected)
            expected = transforms.normalize(expected.float() / 255, *MEAN_STD)
            torch.testing.assert_close(x[0], expected, rtol=1e-6, atol=1e-6)
            assert y.tolist() == [int(split.y[image])]


def test_the_view_in_the_middle_is_the_image_and_its_neighbor_the_mirror_image():
    split = Split(torch.rand(3, 1, 5, 4, generator=generator()), torch.arange(3))
    views = Views(split, (0.5,))
    middle = VIEWS * torch.arange(3) + 2 * (PLACES * PADDING + PADDING)
    assert torch.equal(views[middle][0], split.x)
    assert torch.equal(views[middle + 1][0], split.x.flip(-1))


def test_views_come_in_any_shape_and_in_the_order_of_convolutions():
    split = Split(torch.rand(3, 3, 5, 4, generator=generator()), torch.arange(3))
    views = Views(split, (0.5,))
    numbers = draw_views(torch.tensor([[0, 1], [2, 2]]), generator())
    x, y = views[numbers]
    assert x.shape == (2, 2, 3, 5, 4)
    assert y.tolist() == [[0, 1], [2, 2]]
    assert torch.equal(x[1, 0], views[numbers[1, :1]][0][0])
    assert views[numbers[0]][0].is_contiguous(memory_format=torch.channels_last)


def test_all_views_are_equally_likely():
    numbers = draw_views(torch.zeros(400 * VIEWS, dtype=torch.long), generator())
    counts = numbers.bincount(minlength=VIEWS).float()
    assert len(counts) == VIEWS
    chi_square = ((counts - 400) ** 2 / 400).sum()  # mean 161, standard deviation 18
    assert abs(chi_square - 161) < 5 * 18


RUN = Run(
    network="resnet8", inputs="unit", augment="crop-flip", train_size=100, batch_size=40, epochs=2, ghost_batch=20
)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_step_trains_on_views_of_the_samples_of_the_same_shuffle(streams):
    run = replace(RUN, alpha=float(streams))
    plain, augmented = (Training([r], load("digits", train_size=100)) for r in (replace(run, augment="none"), run))
    shuffled, viewed = plain._batches(), augmented._batches()
    assert [part.shape for part in shuffled] == [(1, streams, 40), (1, streams, 40), (1, streams, 20)]
    for index, views in zip(shuffled, viewed, strict=True):
        assert torch.equal(views // VIEWS, index)
        assert len((views % VIEWS).unique()) > 10
    again = augmented._batches()
    assert not torch.equal(again[0] % VIEWS, viewed[0] % VIEWS)


def test_the_seed_decides_the_views_and_evaluation_has_none():
    data = channels_last(load("digits", train_size=100))
    first, again = (train(RUN, data, progress=False) for _ in range(2))
    without = train(replace(RUN, augment="none"), data, progress=False)
    assert first.train_loss == again.train_loss != without.train_loss
    training = Training([RUN], data)
    training.finish(progress=False)
    loss, _ = training.evaluate(data.train)
    assert first.train_loss == loss.item()
    with torch.no_grad():
        logits = training.model.eval()(data.train.x)
    expected = torch.nn.functional.cross_entropy(logits, data.train.y)
    torch.testing.assert_close(loss[0], expected)


def test_seeds_side_by_side_each_draw_views_of_their_own():
    run = Run(train_size=100, batch_size=40, epochs=2, augment="crop-flip", optimizer="sgd", lr=0.1)
    data = load("digits", train_size=100)
    runs = [replace(run, seed=seed) for seed in (0, 1)]
    together = Training(runs, data).finish(progress=False)
    for alone, beside in zip((train(each, data, progress=False) for each in runs), together, strict=True):
        assert beside.train_loss == pytest.approx(alone.train_loss, rel=1e-4)
    assert together[0].train_loss != together[1].train_loss
