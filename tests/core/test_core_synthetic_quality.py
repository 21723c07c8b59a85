"""What synthetic images are worth: each figure against answers counted by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import CPU, TEACHER_SPEC, blobs, noise, settings, teacher_states
from tiny import one_thread as one_thread
from torch import Tensor

from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods import ClientUpload, Findings, ServerOutcome, ServerTask
from fedbicross_flwr.models import StateDict, load_state
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.synthetic_quality import synthetic_quality

SPEC = TEACHER_SPEC
TASK = ServerTask(SPEC, settings(), CPU, Silent())
IMAGES = blobs(24, seed=3).images + 2.0 * noise(24, SPEC.channels, 28, 28)
LABELS = torch.arange(24) % SPEC.num_classes


def probabilities(state: StateDict, images: Tensor = IMAGES) -> Tensor:
    return predict_logits(load_state(SPEC, state).eval(), images, CPU).softmax(1)


def outcome(models: list[StateDict], made: list[tuple[Tensor, Tensor]]) -> ServerOutcome:
    return ServerOutcome(tuple(models), {0: 0}, Findings(synthetic=tuple(made)))


def uploads(*models: StateDict) -> list[ClientUpload]:
    return [ClientUpload(client, 10, state) for client, state in enumerate(models)]


def test_images_that_are_what_they_should_be_and_a_student_that_is_its_teacher() -> None:
    first, _ = teacher_states()
    answers = probabilities(first).argmax(1)
    found = synthetic_quality(uploads(first), outcome([first], [(IMAGES, answers)]), TASK)
    assert found is not None and found.images == 24
    assert (found.agreement, found.learned) == (1.0, 1.0)
    assert found.classes == len(answers.unique())
    assert found.most_frequent == pytest.approx(max(answers.bincount().tolist()) / 24)


def test_images_that_are_never_what_they_should_be() -> None:
    first, _ = teacher_states()
    wrong = (probabilities(first).argmax(1) + 1) % SPEC.num_classes
    found = synthetic_quality(uploads(first), outcome([first], [(IMAGES, wrong)]), TASK)
    assert found is not None and (found.agreement, found.classes, found.learned) == (0.0, 0, 1.0)


def test_all_uploads_judge_and_each_cluster_s_model_answers_for_its_own_images() -> None:
    first, second = teacher_states()
    parts = [IMAGES[:10], IMAGES[10:]]
    together = [((probabilities(first, x) + probabilities(second, x)) / 2).argmax(1) for x in parts]
    students = [probabilities(second, parts[0]).argmax(1), probabilities(first, parts[1]).argmax(1)]
    made = list(zip(parts, LABELS.split([10, 14]), strict=True))
    found = synthetic_quality(uploads(first, second), outcome([second, first], made), TASK)
    judged, learned = torch.cat(together), torch.cat(students)
    assert found is not None
    assert found.agreement == pytest.approx(int((judged == LABELS).sum()) / 24)
    assert found.classes == len(set(LABELS[judged == LABELS].tolist()))
    assert found.learned == pytest.approx(int((learned == judged).sum()) / 24)
    assert found.most_frequent == pytest.approx(sum(max(s.bincount().tolist()) for s in students) / 24)
    assert 0 < found.learned < 1, "the clusters' models must differ for this test to see anything"


def test_models_that_each_say_one_class_to_everything_are_no_better_than_one() -> None:
    constant = []
    for answer, state in enumerate(teacher_states()):
        bias = torch.zeros(SPEC.num_classes)
        bias[answer] = 1.0
        constant.append({**state, "fc.weight": torch.zeros_like(state["fc.weight"]), "fc.bias": bias})
    made = list(zip(IMAGES.split([10, 14]), LABELS.split([10, 14]), strict=True))
    found = synthetic_quality(uploads(*teacher_states()), outcome(constant, made), TASK)
    assert found is not None and found.most_frequent == 1.0


def test_labels_that_are_answers_agree_with_nobody() -> None:
    first, _ = teacher_states()
    answers = probabilities(first).argmax(1)
    found = synthetic_quality(
        uploads(first),
        ServerOutcome((first,), {0: 0}, Findings(synthetic=((IMAGES, answers),), aimed=False)),
        TASK,
    )
    assert found is not None and found.agreement is None and found.classes == len(answers.unique())


@pytest.mark.parametrize(
    "made", [[], [(IMAGES[:0], torch.zeros(0, dtype=torch.int64))], [(IMAGES, LABELS)] * 2]
)
def test_without_one_batch_for_each_model_there_is_no_judgement(made: list[tuple[Tensor, Tensor]]) -> None:
    first, _ = teacher_states()
    assert synthetic_quality(uploads(first), outcome([first], made), TASK) is None
