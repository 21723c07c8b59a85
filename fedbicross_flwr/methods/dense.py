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

import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_baselines import DenseConfig
from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.methods.epochs import train_in_parts
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask
from fedbicross_flwr.methods.student import check_finite, start_student, student_outcome
from fedbicross_flwr.pool_distillation import (
    GeneratorLoss,
    PoolTraining,
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
    training = DenseTraining(uploads, task)
    train_in_parts("dense", task.config.dense.epochs, training, task)
    return student_outcome(uploads, training)


class DenseTraining(PoolTraining):
    """DENSE's student and what it learns from."""

    def __init__(self, uploads: Sequence[ClientUpload], task: ServerTask) -> None:
        config, compute = task.config.dense, task.compute
        super().__init__(start_student(config.student_init, uploads, task), config, compute)
        self.task = task
        self.ensemble = Ensemble([task.load(upload.state) for upload in uploads], config.aggregation)
        teacher = teacher_with_statistics(self.ensemble, config.bn_weight, compute)
        self.loss = generator_loss(teacher, self.student, config, compute)

    def epoch(self, number: int) -> None:
        """Make a batch, which joins the pool, and take a pass over the pool."""
        config, compute, seed = self.task.config.dense, self.compute, self.task.config.seed
        self.student.eval()
        random = torch_generator(seed, "dense/synthesis", round=number)
        images, labels, lowest = synthesise(self.loss, config, self.task.spec, random, compute)
        self.pool.add(images, labels, self.ensemble, compute)
        order = torch_generator(seed, "dense/distillation", round=number)
        augment = torch_generator(seed, "dense/augmentation", round=number) if config.augment else None
        lesson = lesson_of(self.pool, self.ensemble, augment, compute)
        last = distil(self.student, self.optimiser, len(self.pool), lesson, config, order, compute)
        # The student first: one that diverged spoils the generator's loss too, but not the other way round.
        check_finite("DENSE", number, {"dense.lr": last, "dense.generator_lr": lowest}, self.task)
        self.task.progress.advance("DENSE", number + 1, config.epochs)


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
