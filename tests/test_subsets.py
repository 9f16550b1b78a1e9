"""Stratified subsets: quotas, and the same draw everywhere."""

import torch

from nb_lib.lab.readers import shuffled, stratified


def test_subsets_are_the_same_on_every_machine():
    assert shuffled(8, 0, 1).tolist() == [7, 4, 5, 1, 6, 2, 0, 3]
    drawn, others = stratified(torch.arange(40) % 4, 8, 0)
    assert drawn.tolist() == [2, 3, 11, 13, 18, 20, 21, 32]
    together = torch.cat([drawn, others])
    assert sorted(together.tolist()) == list(range(40))


def test_stratified_keeps_rare_classes_and_whole_sets():
    y = torch.tensor([0] * 90 + [1] * 9 + [2])
    drawn, others = stratified(y, 10, 0)
    assert y[drawn].bincount().tolist() == [7, 2, 1]  # one each, then 7 as 89 to 8 to 0
    assert len(others) == 90
    for size in range(3, 101):
        drawn, others = stratified(y, size, 1)
        assert len(drawn) == size
        assert len(others) == 100 - size
        counts = y[drawn].bincount(minlength=3)
        assert counts.min() >= 1
    assert drawn.tolist() == list(range(100))


def test_classes_of_one_sample_each_leave_nothing_to_share_out():
    drawn, others = stratified(torch.arange(5), 5, 0)
    assert drawn.tolist() == [0, 1, 2, 3, 4]
    assert len(others) == 0
