"""SmoothOut in a training loop of your own: noise on the weights around the backward pass (Algorithm 1).

    python examples/smoothout.py [a]

The same network is trained without weight noise (a = 0) and with it; then noise of growing strength is put on the
weights of both.  Which of the two bears more of it?
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nb_lib.lab.data import load
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective
from nb_lib.smoothout import SmoothOut


def train(a: float, data: TensorDataset) -> nn.Module:
    """Train a small network with Adam; a = 0 is no weight noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters())
    smooth = SmoothOut(model, a=a)  # adaptive=True: AdaSmoothOut
    for _ in range(100):
        for x, y in DataLoader(data, 100, shuffle=True):
            with smooth.perturbed():  # at w + θ
                F.cross_entropy(model(x), y).backward()
            optimizer.step()  # at w again, to the last bit
            optimizer.zero_grad()
    return model.eval()


def main() -> None:
    """Train with and without SmoothOut and print the loss under weight noise."""
    strongest = float(sys.argv[1]) if len(sys.argv) > 1 else 0.2
    digits = load("digits")
    data = TensorDataset(digits.train.x, digits.train.y)
    for a in (0.0, strongest):
        objective = Objective(train(a, data), digits.test.x, digits.test.y)
        print(f"trained with a = {a:g}, test {noise_sensitivity(objective, [0.0, strongest, 2 * strongest])}")


if __name__ == "__main__":
    main()
