"""Random crops and flips: each image stays a window of its own padded self."""

from __future__ import annotations

import numpy as np
import torch
from tiny import generator

from fedbicross_flwr.sgd import crop_and_flip


def test_augmentation_by_crop_and_flip() -> None:
    images = torch.arange(80 * 2 * 28 * 28, dtype=torch.float32).view(80, 2, 28, 28)
    cropped = crop_and_flip(images, generator(5))
    assert cropped.shape == images.shape
    assert torch.equal(cropped, crop_and_flip(images, generator(5)))
    assert not torch.equal(cropped, crop_and_flip(images, generator(6)))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), constant_values=-1.0)
    places = set()
    for image, border in zip(cropped.numpy(), padded, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(border, (28, 28), axis=(1, 2))
        found = [
            (flip, row, column)
            for flip in (False, True)
            for row in range(9)
            for column in range(9)
            if np.array_equal(windows[:, row, column], image[..., ::-1] if flip else image)
        ]
        assert len(found) == 1, "each image is one window of its own padded self"
        places.update(found)
    assert len(places) > 25 and {flip for flip, _, _ in places} == {False, True}
    assert {row for _, row, _ in places} == set(range(9)) == {column for _, _, column in places}
