"""ResNet-18 for images of 28x28 pixels, from torchvision's own residual blocks.

With 3 channels, 8 classes and width 64 it has 11,172,936 parameters and 20 BatchNorm layers with 4,800
channels. `width` scales every stage, for small machines.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class ResNet(nn.Module):
    """A residual network with four stages of two blocks.

    Parameters
    ----------
    num_classes : int
        Outputs C.
    channels : int
        Image channels, 1 or 3.
    width : int, default 64
        Channels of the first stage; the others have twice as many as the one before.
    stem : {"small", "imagenet"}, default "small"
        ``small`` keeps 28x28 (3x3 convolution, stride 1, no pooling); ``imagenet`` begins with 7x7, stride
        2 and max-pooling.
    """

    def __init__(self, num_classes: int, channels: int, width: int = 64, stem: str = "small") -> None:
        super().__init__()
        self.stem = STEMS[stem](channels, width)
        stages = []
        for index in range(4):
            inputs, outputs = width * 2 ** max(index - 1, 0), width * 2**index
            stages.append(stage(inputs, outputs, stride=1 if index == 0 else 2))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 8, num_classes)
        for module in self.modules():
            # A network that is built only to be given weights lives on the meta device: nothing to draw.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> list[nn.Module]:
        """Return the stem and the residual blocks, in their order."""
        return [self.stem, *(module for module in self.stages.modules() if isinstance(module, BasicBlock))]

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features, shape (n, 8 * width)."""
        return torch.flatten(self.pool(self.stages(self.stem(images))), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, C) for images (n, channels, h, w) in normalised space."""
        logits: Tensor = self.fc(self.features(images))
        return logits


def small_stem(channels: int, width: int) -> nn.Sequential:
    """Return the stem for small images."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )


def imagenet_stem(channels: int, width: int) -> nn.Sequential:
    """Return the original stem of He et al. (2016)."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


STEMS = {"small": small_stem, "imagenet": imagenet_stem}


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return two residual blocks; the first one changes width and resolution."""
    shortcut = None
    if stride != 1 or inputs != outputs:
        # A pooling window of one pixel takes every `stride`-th, as the usual 1x1 convolution with a stride
        # does; that one writes out of bounds on CPUs for fewer than 16 channels in channels-last layout.
        shortcut = nn.Sequential(
            nn.AvgPool2d(1, stride), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
    return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))
