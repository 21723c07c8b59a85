"""FedISCA (Kang et al., MICCAI 2023, its method section): one student learns along its images' trajectory.

F is the ensemble of all uploads f_i (mean of logits). Each epoch has three parts:

1. Synthesis: x from N(0, 1) and T steps of a new Adam, for labels y in turn and images rolled by up to 2
   pixels, give x^(1), ..., x^(T). The loss is CE(F(x), y) + 2.5e-5 R_TV(x) + 10 sum_i R_BN(x; f_i).
2. Noise adaptation: a reverse sweep, t = T..1, gives the twin F~ its BatchNorm means and variances,
   (mu, var) <- .9 (mu, var) + .1 (mu, var of x^(t) at that layer).
3. Distillation: a forward sweep, t = 1..T, takes one step of SGD an iterate on ::

    tau^2 * [ t/T KL(F || student) + (1 - t/T) KL(F~ || student) ]        at x^(t)

Defaults are the published settings (`FedIscaConfig`). What differs from the released code, and why:

- F~ answers by its adapted statistics, as the paper has it. The released twin stays in training mode: it
  normalises by each batch and never reads them, which is ``fedisca.noise_adaptation = "batch"``.
- The statistics start at the originals in every epoch; the released twin is made once and goes on. An
  interrupted run then goes on behind any epoch, and beta^T of the old ones is all that is lost (`distil`).
- t counts from 1, and from 0 in the released code: its twin still has a share of 1/T in the last image.
- The learning rate falls after half and three quarters of all steps, there one epoch of the 100 earlier.
- The student after the last epoch is the result; the released code keeps the best one by test accuracy.
- The student starts at random, as released for 28x28 images, at weights that all methods of a run share;
  ``fedisca.student_init = "average"`` starts at FedAvg-1 instead.

FedBiCross builds on the same inversion, noise adaptation and loss, which are therefore not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedbicross_flwr.checkpoint import load_training_state, training_state
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_baselines import FedIscaConfig
from fedbicross_flwr.config_fedbicross import InversionConfig, TeacherConfig
from fedbicross_flwr.distillation import fine_tuned, noise_share, trajectory_loss
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.inversion import Synthesis, balanced_labels, check_finite, invert
from fedbicross_flwr.methods.epochs import train_in_parts
from fedbicross_flwr.methods.protocol import (
    ClientUpload,
    Inversion,
    Method,
    ServerOutcome,
    ServerTask,
)
from fedbicross_flwr.methods.student import start_student, student_outcome
from fedbicross_flwr.noise_adaptation import load, teacher_scores
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import SCHEDULES, sgd


def fedisca(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Learn one model for everybody; settings are ``task.config.fedisca``, by default as published.

    Parameters
    ----------
    uploads : sequence of ClientUpload
        In the order of the clients' numbers; every one counts the same, whatever its number of images.

    Returns
    -------
    ServerOutcome
        One model; the findings hold one inversion an epoch, as of cluster 0, and the last epoch's images.

    Raises
    ------
    FedBiCrossError
        When the student diverges.
    """
    training = FedIscaTraining(uploads, task)
    train_in_parts("fedisca", task.config.fedisca.epochs, training, task)
    inversions = (Inversion(epoch, 0, found) for epoch, found in enumerate(training.curves))
    return student_outcome(uploads, training, inversions=tuple(inversions))


class FedIscaTraining:
    """FedISCA's student, with the last images and all inversions' diagnostics (`methods.epochs.Training`)."""

    images: Tensor
    labels: Tensor

    def __init__(self, uploads: Sequence[ClientUpload], task: ServerTask) -> None:
        settings = task.config.fedisca
        self.task = task
        self.ensemble = Ensemble([task.load(upload.state) for upload in uploads], settings.aggregation)
        self.learner = Student(start_student(settings.student_init, uploads, task), settings, task.compute)
        self.curves: list[Tensor] = []

    @property
    def student(self) -> nn.Module:
        """Return the student."""
        return self.learner.model

    def epoch(self, number: int) -> None:
        """Invert the ensemble, and distil it along the iterates."""
        synthesis = synthesise(number, self.ensemble, self.task)
        distil(number, self.ensemble, synthesis, self.learner, self.task)
        self.curves.append(synthesis.diagnostics)
        self.images, self.labels = synthesis.images, synthesis.labels

    def state(self, epochs: range) -> dict[str, Tensor]:
        """Return the student's state, ``diagnostics`` (epochs, T, 6), the images x^(T) and their labels."""
        return {
            **self.learner.state(),
            "diagnostics": torch.stack(self.curves[epochs.start :]),
            "images": self.images.float().cpu().contiguous(),
            "labels": self.labels.cpu(),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        self.learner.load(state)
        self.curves += state["diagnostics"].unbind()
        self.images, self.labels = state["images"], state["labels"]


class Student:
    """The student with the state of its optimiser.

    Parameters
    ----------
    model : nn.Module
        In training mode; changed in place.
    """

    def __init__(self, model: nn.Module, settings: FedIscaConfig, compute: Compute) -> None:
        self.model = model
        self.compute = compute
        self.temperature = settings.temperature
        self.parameters = list(model.parameters())
        self.optimiser = sgd(self.parameters, settings)

    def step(self, images: Tensor, teacher: Tensor, adapted: Tensor, share: float, lr: float) -> None:
        """Take one SGD step on a batch of images.

        Parameters
        ----------
        images : Tensor
            x^(t), float32 (B, channels, 28, 28).
        teacher, adapted : Tensor
            Scores (B, C) of the ensemble and of its noise-adapted twin on them.
        share : float
            1 - t/T, the weight of the twin.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        logits = self.compute.logits(self.model, images)
        trajectory_loss(logits, teacher, adapted, share, self.temperature).backward()
        self.optimiser.step()

    def state(self) -> dict[str, Tensor]:
        """Return copies of the model and its momenta: all that the next step depends on."""
        return training_state(self.model, self.optimiser)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned; other names are passed over."""
        load_training_state(self.model, self.optimiser, state)


def synthesise(epoch: int, ensemble: Ensemble, task: ServerTask) -> Synthesis:
    """Invert the ensemble from noise of this epoch's own, with a new Adam; every iterate is kept."""
    settings = task.config.fedisca
    labels = balanced_labels(settings.batch_size, torch.ones(task.spec.num_classes))
    generator = torch_generator(task.config.seed, "fedisca", round=epoch)

    def after_step(t: int) -> None:
        task.progress.advance("synthesis", epoch * settings.steps + t, settings.epochs * settings.steps)

    every = range(1, settings.steps + 1)
    config = inversion_config(settings, task.config.inversion)
    channels, compute = task.spec.channels, task.compute
    made = invert(ensemble, labels, channels, every, config, generator, compute, after_step)
    check_finite(made, "fedisca.inversion_lr", settings.inversion_lr)
    return made


def distil(epoch: int, ensemble: Ensemble, synthesis: Synthesis, student: Student, task: ServerTask) -> None:
    """Let both teachers answer, which includes the reverse sweep; then take the student's forward sweep.

    The noise-adapted statistics start at the originals in every epoch. With T = 500 and beta = .9 this is
    as good as going on with those of the epoch before, whose weight would be beta^T (1e-23); with few steps
    it is not, and F~ then keeps some of the originals, as Eq. 3 of FedBiCross has it.
    """
    settings, compute = task.config.fedisca, task.compute
    total = settings.epochs * settings.steps
    order = sorted(synthesis.iterates)
    teacher, adapted = teacher_scores(ensemble, synthesis.iterates, order, teacher_config(settings), compute)
    for done, t in enumerate(order, start=epoch * settings.steps):
        images = load(synthesis.iterates, t, compute)
        lr = settings.lr * SCHEDULES[settings.schedule](done / total)
        student.step(images, teacher[t], adapted[t], noise_share(t, settings.steps), lr)
        task.progress.advance("distillation", done + 1, total)


def inversion_config(settings: FedIscaConfig, shared: InversionConfig) -> InversionConfig:
    """Return FedISCA's inversion, with the BatchNorm term summed over clients.

    Of the `shared` one it takes how much is in memory at a time.
    """
    return InversionConfig(
        iterations=settings.steps,
        batch_size=settings.batch_size,
        lr=settings.inversion_lr,
        labels="balanced",
        jitter=settings.jitter,
        tv=settings.tv,
        tv_weight=settings.tv_weight,
        bn_weight=settings.bn_weight,
        bn_models="sum",
        teachers=shared.teachers,
        images_at_once=shared.images_at_once,
        trajectory_dtype="float32",
    )


def teacher_config(settings: FedIscaConfig) -> TeacherConfig:
    """Return how the noise-adapted twin is made; its reverse sweep reads every iterate."""
    return TeacherConfig(
        aggregation=settings.aggregation,
        noise_adaptation=settings.noise_adaptation,
        noise_momentum=settings.noise_momentum,
        noise_window=0,
    )


METHOD = Method("FedISCA", fedisca, fine_tuned, "FedISCA, fine-tuned")
