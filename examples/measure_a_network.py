"""How sharp is the minimum of a network of yours, and what does its gradient noise look like?

    python examples/measure_a_network.py

Any ``nn.Module`` in evaluation mode will do.  The measures work on a copy: the network is not changed.
"""

import torch
import torch.nn.functional as F
from torch import nn

from nb_lib.gradient_noise import gradient_noise
from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.data import load
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective
from nb_lib.sharpness import box_sharpness


def trained(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """Train a small network on all images at once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def main() -> None:
    """Print every measure of one network."""
    digits = load("digits", train_size=500)
    x, y = digits.train.x, digits.train.y
    objective = Objective(trained(x, y), x, y)  # the mean loss over x, y as a function of the weights
    print(box_sharpness(objective, starts=1))
    print(noise_sensitivity(objective, [0.01, 0.05]))
    print(hessian_trace(objective))
    print(hessian_eigenvalues(objective, 3))
    print(gradient_noise(objective, k=3))


if __name__ == "__main__":
    main()
