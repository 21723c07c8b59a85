"""Epochs in parts: how many are kept, going on behind the last one, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from generated import SPEC, server_task, trained_uploads
from generated import smooth_model as smooth_model
from tiny import CPU, all_equal, settings, smooth_net
from tiny import one_thread as one_thread
from torch import nn

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods import epochs as epochs_module
from fedbicross_flwr.methods.coboosting import coboosting
from fedbicross_flwr.methods.dafl import dafl
from fedbicross_flwr.methods.dense import dense
from fedbicross_flwr.methods.epochs import check_student, parts
from fedbicross_flwr.methods.protocol import ClientUpload, ServerOutcome, ServerTask
from fedbicross_flwr.progress import Progress, Silent
from fedbicross_flwr.runs.folder import STAGES, RunFolder

Serve = Callable[[Sequence[ClientUpload], ServerTask], ServerOutcome]

EPOCHS = 9
SMALL: dict[str, Any] = {"epochs": EPOCHS, "steps": 2, "batch_size": 6, "latent": 5, "generator_width": 2}
METHODS: dict[str, tuple[Serve, str, dict[str, Any]]] = {
    "DAFL": (dafl, "dafl", {}),
    "DENSE": (dense, "dense", {}),
    "DENSE, a bounded pool": (dense, "dense", {"pool": 3}),
    "DENSE, augmented": (dense, "dense", {"augment": True}),
    "Co-Boosting": (coboosting, "coboosting", {"weight_step": 0.1}),
    "Co-Boosting, a bounded pool": (coboosting, "coboosting", {"pool": 2, "weight_step": 0.1}),
}


class StoppedError(Exception):
    pass


class StopsAfter(Silent):
    """Progress that ends the run behind an epoch, and remembers what it saw."""

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self.seen: list[int] = []

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        self.seen.append(done)
        if done == self.epoch:
            raise StoppedError


@pytest.mark.parametrize(("most_parts", "first_again"), [(EPOCHS, 7), (3, 7), (2, 6), (1, 1)])
@pytest.mark.parametrize("name", METHODS)
def test_interrupted_and_continued_is_uninterrupted(
    name: str, most_parts: int, first_again: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, section, special = METHODS[name]
    config = settings(**{f"{section}__{key}": value for key, value in (SMALL | special).items()})
    monkeypatch.setattr(epochs_module, "PARTS", most_parts)

    def attempt(progress: Progress) -> ServerOutcome:
        folder = RunFolder.open(tmp_path / "run", config, "data")
        return serve(trained_uploads(), ServerTask(SPEC, config, CPU, progress, folder))

    with pytest.raises(StoppedError):
        attempt(StopsAfter(7))
    progress = StopsAfter()
    again = attempt(progress)
    assert progress.seen == list(range(first_again, EPOCHS + 1))
    whole = serve(trained_uploads(), ServerTask(SPEC, config, CPU, Silent()))
    assert_same(again, whole)
    idle = StopsAfter()
    assert_same(attempt(idle), whole)
    assert idle.seen == [] and len(list((tmp_path / "run" / STAGES).iterdir())) == most_parts


def assert_same(found: ServerOutcome, expected: ServerOutcome) -> None:
    assert all_equal(found.models[0], expected.models[0]) and found.assignment == expected.assignment
    for one, other in zip(found.findings.synthetic[0], expected.findings.synthetic[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (8, 8), (10, 10), (11, 6), (25, 9), (100, 10)])
def test_a_student_is_kept_ten_times_at_most(count: int, kept: int) -> None:
    found = parts(count)
    assert [epoch for part in found for epoch in part] == list(range(count))
    assert len(found) == kept


def test_a_student_without_finite_weights_is_refused() -> None:
    student: nn.Module = smooth_net()
    task = server_task(dafl__lr=7.0)
    check_student("dafl", 0, student, task)
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(FedBiCrossError, match=r"diverged in epoch 3; lower dafl\.lr = 7$"):
        check_student("dafl", 2, student, task)
