"""The demo's network, its data and its training: scikit-learn's handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from woodbury.errors import MissingDependency
from woodbury.model.batches import Batch
from woodbury.monitor import report

TEST_FRACTION = 0.25
"""Of all images."""
HELD_OUT_FRACTION = 0.25
"""Of the training images."""
EPOCHS = 20
BATCH_SAMPLES = 64
MAX_LEARNING_RATE = 3e-3
NOISE = 0.3
"""Standard deviation of the noise on the training images, which go from 0 to 1."""


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1,797 digits, images of 8 × 8 pixels from 0 to 1.

    Attributes:
        calibration: Training images to calibrate on.
        held_out: Training images to choose dampings on.
        test: Images that the network never sees.
    """

    calibration: Batch
    held_out: Batch
    test: Batch


def load_digits(seed: int) -> Digits:
    """Load the digits and split them by a seed, the test images with as many of each class.

    Raises:
        MissingDependency: Without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits as load
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingDependency(
            "The demo needs scikit-learn: pip install 'woodbury[demo]'."
        ) from error
    images, labels = load(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    train, test = train_test_split(
        range(len(y)), test_size=TEST_FRACTION, random_state=seed % 2**32, stratify=labels
    )
    count = round(HELD_OUT_FRACTION * len(train))
    held_out, calibration = train[:count], train[count:]
    return Digits(
        calibration=(x[calibration], y[calibration]),
        held_out=(x[held_out], y[held_out]),
        test=(x[test], y[test]),
    )


def network() -> nn.Module:
    """Two convolutions and two linear layers, 21,612 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 16, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def train_network(digits: Digits, seed: int) -> nn.Module:
    """Train the network on all but the test images, by AdamW with one cycle of the learning rate.

    Noise on the images keeps the loss from vanishing; with it the gradients, of which the Fisher is
    made, would vanish too.

    Args:
        digits: The images.
        seed: Of the network and of the order; the same seed gives the same network.
    """
    x = torch.cat([digits.calibration[0], digits.held_out[0]])
    y = torch.cat([digits.calibration[1], digits.held_out[1]])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    steps = EPOCHS * -(-len(y) // BATCH_SAMPLES)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LEARNING_RATE, total_steps=steps)
    for epoch in range(1, EPOCHS + 1):
        for batch in torch.randperm(len(y), generator=generator).split(BATCH_SAMPLES):
            optimizer.zero_grad()
            noisy = x[batch] + NOISE * torch.randn(x[batch].shape, generator=generator)
            nn.functional.cross_entropy(model(noisy), y[batch]).backward()
            optimizer.step()
            schedule.step()
        report("training", epoch, EPOCHS)
    return model.eval()
