"""The student of a global method: its start, and what is refused."""

from __future__ import annotations

import pytest
import torch
from generated import server_task, trained_uploads
from generated import smooth_model as smooth_model
from tiny import all_equal
from tiny import one_thread as one_thread

from fedbicross_flwr.config_baselines import STARTS
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.fedavg import fedavg
from fedbicross_flwr.methods.student import STUDENTS, check_finite, start_student
from fedbicross_flwr.models import state_of


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


def test_a_diverged_loss_names_the_setting_to_lower() -> None:
    task = server_task(dense__lr=7.0)
    fine = torch.tensor(1.0)
    check_finite("DENSE", 0, {"dense.generator_lr": fine, "dense.lr": fine}, task)
    with pytest.raises(
        FedBiCrossError, match=r"DENSE diverged in epoch 3 \(loss inf\); lower dense\.lr = 7$"
    ):
        check_finite("DENSE", 2, {"dense.generator_lr": fine, "dense.lr": fine / 0}, task)
