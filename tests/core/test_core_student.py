"""The student of a global method: its start, the one kept stage, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from generated import SPEC, server_task, trained_uploads
from generated import smooth_model as smooth_model
from tiny import all_equal, noise
from tiny import one_thread as one_thread
from torch import Tensor, nn

from fedbicross_flwr.config_baselines import STARTS
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.fedavg import fedavg
from fedbicross_flwr.methods.protocol import ServerTask, StageResult
from fedbicross_flwr.methods.student import STUDENTS, check_finite, start_student, student_outcome
from fedbicross_flwr.models import load_state, state_of


def test_settings_offer_every_start_and_no_other() -> None:
    assert set(STARTS) == set(STUDENTS)


@pytest.mark.parametrize("kind", STUDENTS)
def test_a_student_is_trainable_and_depends_on_the_seed_as_it_should(kind: str) -> None:
    uploads = trained_uploads()
    student = start_student(kind, uploads, server_task(seed=1))
    assert student.training and all(parameter.requires_grad for parameter in student.parameters())
    assert all_equal(state_of(student), state_of(start_student(kind, uploads, server_task(seed=1))))
    other = state_of(start_student(kind, uploads, server_task(seed=2)))
    assert all_equal(state_of(student), other) is (kind == "average")


def test_the_average_is_fedavg_and_shares_no_memory_with_it() -> None:
    uploads, task = trained_uploads(), server_task()
    student = start_student("average", uploads, task)
    expected = fedavg(uploads, task).models[0]
    assert all_equal(state_of(student), expected)
    before = uploads[0].state["fc.weight"].clone()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(uploads[0].state["fc.weight"], before)


def test_an_unknown_start_is_named() -> None:
    with pytest.raises(FedBiCrossError, match=r"'averge'.*did you mean average"):
        start_student("averge", trained_uploads(), server_task())


class Kept:
    """Stages that are computed once."""

    def __init__(self) -> None:
        self.results: dict[tuple[str, str], StageResult] = {}

    def run(
        self, name: str, kind: str, compute: Callable[[], StageResult], shaped_by: str = ""
    ) -> StageResult:
        if (name, kind) not in self.results:
            self.results[name, kind] = compute()
        return self.results[name, kind]


def test_a_finished_stage_is_not_computed_again() -> None:
    uploads, stages = trained_uploads(), Kept()
    task = server_task()
    task = ServerTask(SPEC, task.config, task.compute, task.progress, stages)
    calls: list[int] = []

    def make() -> tuple[nn.Module, Tensor, Tensor]:
        calls.append(1)
        return load_state(SPEC, uploads[0].state), noise(4, 1, 28, 28), torch.arange(4) % 3

    first = student_outcome("dense", uploads, task, make)
    again = student_outcome("dense", uploads, task, make)
    assert calls == [1] and set(stages.results) == {("dense", "distillation")}
    for outcome in (first, again):
        assert all_equal(outcome.models[0], uploads[0].state) and outcome.assignment == {0: 0, 1: 0}
        images, labels = outcome.findings.synthetic[0]
        assert torch.equal(images, noise(4, 1, 28, 28)) and labels.tolist() == [0, 1, 2, 0]


def test_a_student_without_finite_weights_is_refused() -> None:
    uploads = trained_uploads()
    student = load_state(SPEC, uploads[0].state)
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(FedBiCrossError, match=r"lower dafl\.lr"):
        student_outcome("dafl", uploads, server_task(), lambda: (student, noise(1, 1, 28, 28), torch.ones(1)))


def test_a_diverged_loss_names_the_setting_to_lower() -> None:
    task = server_task(dense__lr=7.0)
    fine = torch.tensor(1.0)
    check_finite("DENSE", 0, {"dense.generator_lr": fine, "dense.lr": fine}, task)
    with pytest.raises(
        FedBiCrossError, match=r"DENSE diverged in epoch 3 \(loss inf\); lower dense\.lr = 7$"
    ):
        check_finite("DENSE", 2, {"dense.generator_lr": fine, "dense.lr": fine / 0}, task)
