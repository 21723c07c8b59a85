"""A student's epochs in parts, each of which is kept: an interrupted run goes on behind the last one.

At their published budgets the methods with one student for everybody train for hours, as a single stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from torch import Tensor, nn

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.protocol import ServerTask, StageResult
from fedbicross_flwr.models import all_finite

PARTS: Final = 10
"""How often a student is kept on the way: after each of 100 epochs it would fill 8.9 GB at full width."""


class Training(Protocol):
    """A student's training that can stop behind an epoch and go on in another process."""

    @property
    def student(self) -> nn.Module:
        """Return the student, on the device."""

    @property
    def images(self) -> Tensor:
        """Return the last synthetic batch, (B, channels, 28, 28)."""

    @property
    def labels(self) -> Tensor:
        """Return its labels, int64 (B,)."""

    def epoch(self, number: int) -> None:
        """Train for an epoch: 0, 1, ..."""

    def state(self, epochs: range) -> dict[str, Tensor]:
        """Return what the epoch behind `epochs` depends on; of what only grows, what came in them."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; parts are loaded in their order, from the first on."""


def train_in_parts(name: str, epochs: int, training: Training, task: ServerTask) -> None:
    """Train for all epochs, but for those that `ServerTask.stages` has kept.

    Parameters
    ----------
    name : str
        The method, which is the section of its settings.
    training : Training
        Before its first epoch. Afterwards it is as after the last one, whatever of it was kept.

    Raises
    ------
    FedBiCrossError
        When the student diverged.
    """
    for part in parts(epochs):
        train_part(name, part, training, task)


def parts(epochs: int) -> list[range]:
    """Return the epochs in up to `PARTS` parts."""
    length = -(-epochs // PARTS)
    return [range(first, min(first + length, epochs)) for first in range(0, epochs, length)]


def train_part(name: str, epochs: range, training: Training, task: ServerTask) -> None:
    """Train for some epochs as a stage that is kept until the run is finished, or load it."""
    trained = False

    def compute() -> StageResult:
        nonlocal trained
        trained = True
        for epoch in epochs:
            training.epoch(epoch)
            check_student(name, epoch, training.student, task)
        return StageResult(training.state(epochs))

    kept = task.stages.run(f"{name}-{epochs.start}-{epochs.stop}", "distillation", compute)
    if not trained:
        training.load(kept.tensors)


def check_student(name: str, epoch: int, student: nn.Module, task: ServerTask) -> None:
    """Refuse a student that diverged, before it is kept or shipped."""
    if not all_finite(student.parameters()):
        key = f"{name}.lr"
        raise FedBiCrossError(
            f"{name}: the student diverged in epoch {epoch + 1}; lower {key} = {task.config.flat()[key]:g}"
        )
