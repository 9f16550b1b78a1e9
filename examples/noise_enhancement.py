"""Noise enhancement in a training loop of your own: two minibatches, one pass, a weighted loss (NE eq. 6).

    python examples/noise_enhancement.py [alpha]

Large batches of the digits, without NE (alpha = 1) and with it.  The table shows how noisy the updates are (the batch
size of plain SGD that would be as noisy) and how well the network does on images it has not seen.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nb_lib.lab.data import load
from nb_lib.noise_enhancement import effective_batch_size, noise_enhanced_loss

BATCH_SIZE = 300
EPOCHS = 60


def train(alpha: float, data: TensorDataset) -> nn.Module:
    """Train a small network with SGD; alpha = 1 is plain SGD."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, drop_last=True)
    other_loader = DataLoader(data, BATCH_SIZE, shuffle=True, drop_last=True)
    for _ in range(EPOCHS):
        for (x, y), (x2, y2) in zip(loader, other_loader, strict=True):
            logits = model(torch.cat([x, x2]))
            losses = F.cross_entropy(logits, torch.cat([y, y2]), reduction="none")
            noise_enhanced_loss(losses, alpha).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def main() -> None:
    """Train with and without NE and print what came of it."""
    strongest = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    digits = load("digits")
    data = TensorDataset(digits.train.x, digits.train.y)
    print("alpha  as noisy as B =  test accuracy")
    for alpha in (1.0, strongest):
        model = train(alpha, data)
        right = model(digits.test.x).argmax(1) == digits.test.y
        b_eff = effective_batch_size(BATCH_SIZE, alpha, n=len(data))
        print(f"{alpha:5g}  {b_eff:15.1f}  {right.double().mean():13.1%}")


if __name__ == "__main__":
    main()
