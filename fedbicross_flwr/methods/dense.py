"""DENSE (Zhang et al., NeurIPS 2022): a generator's images, then distillation of the uploads' ensemble.

Each epoch a fresh generator (weights N(0, .02)) and its z make one batch for random labels y, by 30 steps of
Adam on ::

    CE(s, y) + bn_weight * R_BN - boundary * mean_i [argmax s_i != argmax g_i] KL(s_i || g_i)

where s are the ensemble's scores and g the student's logits: the images belong to their class, look to the
uploads like their training data, and lie where student and ensemble disagree. The step with the lowest loss
joins a pool, and the student takes one pass over the whole pool: KL(ensemble || student) at temperature 20,
times its square. Defaults are the published settings (`DenseConfig`).

- The released code registers no BatchNorm hook for an ensemble, so its R_BN is always zero. Here each
  upload's own layers are compared, as the paper has it, and the mean over the uploads is taken;
  ``dense.bn_weight = 0`` gives the released behaviour.
- In the boundary term the student is in eval mode and gradients reach the images through both networks.
- The released code crops and flips the pool's images for the student, of which the paper says nothing;
  ``dense.augment = true`` does so.
- ``dense.aggregation`` combines the uploads (default: mean of logits); ``dense.pool`` may bound the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_baselines import DenseConfig
from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask
from fedbicross_flwr.methods.student import check_finite, start_student, student_outcome
from fedbicross_flwr.pool_distillation import (
    GeneratorLoss,
    Pool,
    Teacher,
    distil,
    divergence,
    lesson_of,
    synthesise,
    teacher_with_statistics,
)
from fedbicross_flwr.seeds import torch_generator


def dense(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Distil all uploads into one model for everybody.

    Raises
    ------
    FedBiCrossError
        When a loss is no longer finite.
    """
    return student_outcome("dense", uploads, task, lambda: synthesise_and_distil(uploads, task))


def synthesise_and_distil(
    uploads: Sequence[ClientUpload], task: ServerTask
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the student, the last batch (B, channels, 28, 28), and its labels (B,)."""
    config, compute, seed = task.config.dense, task.compute, task.config.seed
    ensemble = Ensemble([task.load(upload.state) for upload in uploads], config.aggregation)
    student = start_student(config.student_init, uploads, task)
    sgd = torch.optim.SGD(
        student.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    loss = generator_loss(
        teacher_with_statistics(ensemble, config.bn_weight, compute), student, config, compute
    )
    pool = Pool(config.pool)
    images = labels = torch.zeros(())

    for epoch in range(config.epochs):
        student.eval()
        random = torch_generator(seed, "dense/synthesis", round=epoch)
        images, labels, lowest = synthesise(loss, config, task.spec, random, compute)
        pool.add(images, labels, ensemble, compute)
        order = torch_generator(seed, "dense/distillation", round=epoch)
        augment = torch_generator(seed, "dense/augmentation", round=epoch) if config.augment else None
        lesson = lesson_of(pool, ensemble, augment, compute)
        last = distil(student, sgd, len(pool), lesson, config, order, compute)
        # The student first: one that diverged spoils the generator's loss too, but not the other way round.
        check_finite("DENSE", epoch, {"dense.lr": last, "dense.generator_lr": lowest}, task)
        task.progress.advance("DENSE", epoch + 1, config.epochs)
    return student, images, labels


def generator_loss(
    teacher: Teacher, student: nn.Module, config: DenseConfig, compute: Compute
) -> GeneratorLoss:
    """Return the loss of a batch (see the module's equation)."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        scores, batch_norm = teacher(images)
        value = F.cross_entropy(scores, labels) + batch_norm
        if config.boundary:
            value = value + config.boundary * boundary_support(scores, compute.logits(student, images))
        return value

    return loss


def boundary_support(teacher: Tensor, student: Tensor) -> Tensor:
    """Return minus KL(teacher || student) of the images that the two classify differently, over all n images.

    Both are scores (n, C).
    """
    disagree = teacher.argmax(1) != student.argmax(1)
    return -(divergence(teacher, student) * disagree).mean()


METHOD = Method("DENSE", dense, fine_tuned, "DENSE, fine-tuned")
