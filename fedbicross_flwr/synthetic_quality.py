"""What synthetic images are worth, told without a real one: classes, what was learned, collapse.

A student that fails has failed in one of a few ways: its images have no classes, or few of them; it has not
learned them; or it says one class to everything. All can be seen at the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedbicross_flwr.ensemble import Ensemble, ensemble_scores
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods import ClientUpload, ServerOutcome, ServerTask

JUDGE = "probabilities"
"""How the uploads judge together, whatever the method's own ensemble: the mean of their probabilities."""


@dataclass(frozen=True)
class SyntheticQuality:
    """Over the final synthetic images of a run.

    Parameters
    ----------
    images : int
        How many.
    agreement : float, optional
        Share that all uploads together take for the image's label; None where labels are answers themselves.
    classes : int
        Labels of which at least one image is taken for its label.
    learned : float
        Share to which the model that was learned from the image answers as the uploads do.
    most_frequent : float
        Share of images to which their model gives its most frequent answer; 1 if each model says the same to
        every image of its own.
    """

    images: int
    agreement: float | None
    classes: int
    learned: float
    most_frequent: float


def synthetic_quality(
    uploads: Sequence[ClientUpload], outcome: ServerOutcome, task: ServerTask
) -> SyntheticQuality | None:
    """Judge the images of an outcome by the uploads that it was learned from.

    None without images, or where it is not said which model was learned from which.
    """
    made = outcome.findings.synthetic
    if len(made) != len(outcome.models) or not all(len(labels) for _, labels in made):
        return None
    together = Ensemble([task.load(upload.state) for upload in uploads], JUDGE)
    answers = [ensemble_scores(together, images, task.compute).argmax(1).cpu() for images, _ in made]
    students = [
        predict_logits(task.load(state), images, task.compute).argmax(1).cpu()
        for state, (images, _) in zip(outcome.models, made, strict=True)
    ]
    label, answer, student = (
        torch.cat([labels for _, labels in made]),
        torch.cat(answers),
        torch.cat(students),
    )
    taken = answer == label
    return SyntheticQuality(
        images=len(label),
        agreement=float(taken.float().mean()) if outcome.findings.aimed else None,
        classes=len(label[taken].unique()),
        learned=float((student == answer).float().mean()),
        # Model by model: several that each say one class to everything are no better than one.
        most_frequent=sum(int(part.bincount().max()) for part in students) / len(student),
    )
