"""Scaling of images to the networks' input, and the phantom through the registry."""

from __future__ import annotations

import numpy as np
import torch

from fedbicross_flwr.data.phantom import PhantomSource
from fedbicross_flwr.data.registry import open_source
from fedbicross_flwr.data.source import normalise


def test_normalise_values_and_layout() -> None:
    images = np.arange(2 * 28 * 28 * 3, dtype=np.int64).reshape(2, 28, 28, 3).astype(np.uint8)
    scaled = normalise(images)
    assert scaled.shape == (2, 3, 28, 28) and scaled.dtype == torch.float32 and scaled.is_contiguous()
    expected = (images.transpose(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    np.testing.assert_allclose(scaled.numpy(), expected, atol=2e-7)
    assert scaled.min() == -1 and scaled.max() == 1


def test_normalise_leaves_its_input_alone_and_takes_none() -> None:
    images = np.full((1, 28, 28, 1), 7, np.uint8)
    normalise(images).zero_()
    assert (images == 7).all()
    assert normalise(images[:0]).shape == (0, 1, 28, 28)


def test_phantom_settings_pass_through_the_registry() -> None:
    source = open_source("phantom", phantom_train=40, phantom_test=9, phantom_channels=1, seed=4)
    assert source == PhantomSource(train=40, test=9, channels=1, seed=4)
    assert source.images("test").shape == (9, 28, 28, 1)
    assert len(open_source("phantom").labels("train")) == 6000
