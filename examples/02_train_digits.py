"""A Spark DataFrame of handwritten digits trains a small network on two ranks. Needs scikit-learn for its digits.

Run it as: python examples/02_train_digits.py [master] [epochs]
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import mizzle


def main(master: str = "local[2]", epochs: str = "15") -> None:
    """Train on 80 % of the digits, test on the rest."""
    spark = mizzle.session(master, app_name="digits")
    digits = load_digits()
    pictures = (digits.data / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pictures))
    train, test = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
    rows = [(pictures[k].tolist(), int(digits.target[k])) for k in train]
    frame = spark.createDataFrame(rows, "image array<float>, label int").cache()

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip
    trainer = mizzle.Trainer(
        model,
        loss=nn.functional.cross_entropy,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=3e-3),
        global_batch_size=64,
        max_epochs=int(epochs),
        seed=7,
        run=mizzle.RunConfig(ranks=2, group_size=25),
    )
    result = trainer.fit(frame, features="image", label="label", shape=(1, 8, 8), num_classes=10)

    with torch.no_grad():
        guess = result.model(torch.from_numpy(pictures[test]).view(-1, 1, 8, 8)).argmax(1).numpy()
    accuracy = float((guess == digits.target[test]).mean())
    print(f"loss {result.history.losses[0]:.3f} -> {result.history.losses[-1]:.3f}, test accuracy {accuracy:.3f}")
    print(f"seconds: {result.history.time}")
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
