"""What the server sends a client in round 2: one model, and with it the images that taught it, if it has any.

The images are synthetic: they were made from uploaded models, without data. Rehearsing them keeps a client
from forgetting in stage 3 what its own images do not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbicross_flwr.artifacts import digest
from fedbicross_flwr.compute import moved
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import StateDict


@dataclass(frozen=True)
class Replay:
    """Synthetic images and what the server's teacher says of them.

    Parameters
    ----------
    images : Tensor
        float16 (n, channels, 28, 28) in normalised space; half the bytes of float32, and far finer than the
        noise that is left in such images.
    scores : Tensor
        float32 (n, C): their softmax is the teacher's distribution.
    """

    images: Tensor
    scores: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Return both by name, as they travel and are counted."""
        return {"images": self.images, "scores": self.scores}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Replay:
        """Return what `tensors` gave.

        Raises
        ------
        FedBiCrossError
            When a part is missing, or the two do not fit.
        """
        try:
            replay = cls(tensors["images"], tensors["scores"])
        except KeyError as error:
            raise FedBiCrossError(f"the synthetic images that the server sent lack {error}") from error
        if len(replay.images) != len(replay.scores) or not len(replay.images):
            raise FedBiCrossError(
                f"the server sent {len(replay.images)} synthetic images and {len(replay.scores)} answers"
            )
        return replay


@dataclass(frozen=True)
class Shipment:
    """One client's share of the server's work."""

    model: StateDict
    replay: Replay | None = None

    @property
    def num_bytes(self) -> int:
        """Return the bytes of its arrays."""
        tensors = [*self.model.values(), *(self.replay.tensors().values() if self.replay else ())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def digest(self) -> str:
        """Return a checksum of all that is shipped."""
        return digest(self.model) + (digest(self.replay.tensors()) if self.replay else "")


class Rehearsal:
    """Draws replayed images for one batch after another, and remembers which were drawn last."""

    def __init__(self, replay: Replay, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.images = replay.images.float().to(device)
        self.scores = replay.scores.to(device)
        self.count = min(count, len(self.images))
        self.generator = generator
        self._rows = torch.arange(0)

    def draw(self) -> Tensor:
        """Return the next images, (count, channels, 28, 28), drawn without replacement."""
        self._rows = torch.randperm(len(self.images), generator=self.generator)[: self.count]
        self._rows = moved(self._rows, self.images.device)
        return self.images[self._rows]

    def answers(self) -> Tensor:
        """Return the teacher's scores (count, C) of the images that were drawn last."""
        return self.scores[self._rows]
