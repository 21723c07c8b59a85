"""Co-Boosting (Dai et al., ICLR 2024): the synthetic images and the ensemble make each other better.

Each epoch e has three parts. Below, s = sum_k w_k f_k / sum_k w_k are the weighted ensemble's logits, and g
the student's.

1. A fresh generator and its z make one batch for random labels y, by 30 steps of Adam (gradient norm at most
   10) on hard samples: mean[(1 - p_y)^h CE(s, y)] with p = softmax(s) detached, minus KL(s || g) at
   temperature 3, plus ``bn_weight`` (default 0) times R_BN. The step with the lowest loss joins the pool,
   after part 2.
2. From the second epoch on, one sweep over the pool of the epochs before, as in the released code, moves the
   weights, which start at 1/n: w <- clip(w - .01 * .99^e sign(grad_w CE(s, y)), 0, 1).
3. The student takes one pass over the pool. Each batch is made harder on the fly, for u ~ U(-1, 1)^(B x C):
   x <- x + (8/255) sign(grad_x sum u softmax(s(x) / 4)). The loss is KL(s || g) at temperature 4, times its
   square; SGD follows a cosine, with the same bound on the gradient.

Defaults are the published settings (`CoBoostingConfig`). What they leave open is taken from DENSE, whose loop
this is: the generator's weights N(0, .02), Adam's betas, the student in eval mode while images are made,
gradients through both networks in the KL term. KL at temperature 3 is multiplied by 9, as KL at temperature 4
is by 16. The released code crops and flips the pool's images for part 3, of which the paper says nothing;
``coboosting.augment = true`` does so. The on-the-fly step is taken in normalised pixels and is not clipped to
their range. Where a step would set all weights to zero, by whose sum is divided, the weights stay as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.compute import Compute, moved
from fedbicross_flwr.config_baselines import CoBoostingConfig
from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.methods.epochs import train_in_parts
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask
from fedbicross_flwr.methods.student import check_finite, start_student, student_outcome
from fedbicross_flwr.pool_distillation import (
    GeneratorLoss,
    Lesson,
    Pool,
    PoolTraining,
    Teacher,
    distil,
    divergence,
    lesson_of,
    synthesise,
    teacher_with_statistics,
)
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import SCHEDULES, batches


def coboosting(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Distil all uploads into one model for everybody.

    Raises
    ------
    FedBiCrossError
        When a loss is no longer finite.
    """
    training = CoBoostingTraining(uploads, task)
    train_in_parts("coboosting", task.config.coboosting.epochs, training, task)
    return student_outcome(uploads, training)


class WeightedEnsemble(Ensemble):
    """An ensemble whose logits are averaged with one weight for each member, from [0, 1], 1/m at first."""

    weights: Tensor

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__(models, "logits")
        self.register_buffer("weights", self.class_weights.new_full((len(models),), 1.0 / len(models)))

    def combine(self, logits: Tensor) -> Tensor:
        """Return s (n, C) from the members' logits (m, n, C)."""
        return weighted_logits(self.weights, logits)


def weighted_logits(weights: Tensor, logits: Tensor) -> Tensor:
    """Return sum_k w_k f_k / sum_k w_k, shape (n, C), for weights (m,) and logits (m, n, C)."""
    mean: Tensor = torch.tensordot(weights, logits, dims=1) / weights.sum()
    return mean


class CoBoostingTraining(PoolTraining):
    """Co-Boosting's student, what it learns from, and the weights of its teachers."""

    def __init__(self, uploads: Sequence[ClientUpload], task: ServerTask) -> None:
        config, compute = task.config.coboosting, task.compute
        super().__init__(start_student(config.student_init, uploads, task), config, compute)
        self.task, self.config = task, config
        self.ensemble = WeightedEnsemble([task.load(upload.state) for upload in uploads])
        teacher = teacher_with_statistics(self.ensemble, config.bn_weight, compute)
        self.loss = generator_loss(teacher, self.student, config, compute)

    def epoch(self, number: int) -> None:
        """Take the three parts of an epoch."""
        config, task = self.config, self.task
        self.student.eval()
        random = torch_generator(task.config.seed, "coboosting/synthesis", round=number)
        images, labels, lowest = synthesise(self.loss, config, task.spec, random, self.compute, config.clip)
        if number:
            self.sweep(number)
        self.pool.add(images, labels, self.ensemble, self.compute)
        last = self.distil(number)
        # The student first: one that diverged spoils the generator's loss too, but not the other way round.
        losses = {"coboosting.lr": last, "coboosting.generator_lr": lowest}
        check_finite("Co-Boosting", number, losses, task)
        task.progress.advance("Co-Boosting", number + 1, config.epochs)

    def sweep(self, epoch: int) -> None:
        """Move the weights by one sweep over the pool."""
        order = torch_generator(self.task.config.seed, "coboosting/weights", round=epoch)
        size = self.config.weight_step * self.config.weight_decay_rate**epoch
        for rows in batches(len(self.pool), self.config.batch_size, order):
            rows = moved(rows, self.compute.device)
            logits, labels = self.pool.logits[:, rows], self.pool.labels[rows]
            self.ensemble.weights = stepped_weights(self.ensemble.weights, logits, labels, size)

    def distil(self, epoch: int) -> Tensor:
        """Take the student's pass over the pool; return its last loss."""
        config, seed = self.config, self.task.config.seed
        lr = config.lr * SCHEDULES["cosine"](epoch / config.epochs)
        self.optimiser.param_groups[0]["lr"] = lr
        order = torch_generator(seed, "coboosting/distillation", round=epoch)
        directions = torch_generator(seed, "coboosting/perturbation", round=epoch)
        augment = torch_generator(seed, "coboosting/augmentation", round=epoch) if config.augment else None
        lesson = harder_lesson(self.pool, self.ensemble, config, directions, augment, self.compute)
        count = len(self.pool)
        return distil(self.student, self.optimiser, count, lesson, config, order, self.compute, config.clip)

    def state(self, epochs: range) -> dict[str, Tensor]:
        """Return the weights besides what `PoolTraining` has."""
        return {**super().state(epochs), "weights": self.ensemble.weights.cpu().clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        super().load(state)
        self.ensemble.weights = state["weights"].to(self.compute.device)


def generator_loss(
    teacher: Teacher, student: nn.Module, config: CoBoostingConfig, compute: Compute
) -> GeneratorLoss:
    """Return the loss of a batch (part 1 of the module's description)."""

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        scores, batch_norm = teacher(images)
        value = hard_cross_entropy(scores, labels, config.hardness) + batch_norm
        if config.adversarial:
            answers = compute.logits(student, images)
            gap = divergence(scores, answers, config.adversarial_temperature).mean()
            value = value - config.adversarial * gap
        return value

    return loss


def hard_cross_entropy(scores: Tensor, labels: Tensor, hardness: float) -> Tensor:
    """Return mean[(1 - p_y)^h CE]; the factor counts as a constant. Scores (n, C), labels int64 (n,)."""
    cross_entropy = F.cross_entropy(scores, labels, reduction="none")
    # CE = -log p_y; it may be a rounding error below zero.
    difficulty = (1.0 - torch.exp(-cross_entropy.detach())).clamp_min(0.0) ** hardness
    return (difficulty * cross_entropy).mean()


def stepped_weights(weights: Tensor, logits: Tensor, labels: Tensor, size: float) -> Tensor:
    """Return w (m,) after one step of `size` (part 2) on the members' logits (m, n, C) and labels (n,)."""
    variable = weights.detach().clone().requires_grad_(True)
    loss = F.cross_entropy(weighted_logits(variable, logits), labels)
    (gradient,) = torch.autograd.grad(loss, variable)
    stepped = (weights - size * gradient.sign()).clamp(0.0, 1.0)
    return torch.where(stepped.sum() > 0.0, stepped, weights)


def harder_lesson(
    pool: Pool,
    ensemble: Ensemble,
    config: CoBoostingConfig,
    random: torch.Generator,
    augment: torch.Generator | None,
    compute: Compute,
) -> Lesson:
    """Return part 3's view of the pool: perturbed images, and what the ensemble says of them.

    `random` draws the directions; `augment`, where it is given, crops and flips before that.
    """
    if not config.perturbation:
        return lesson_of(pool, ensemble, augment, compute)

    def lesson(rows: Tensor) -> tuple[Tensor, Tensor]:
        images = pool.shown(rows, augment)
        harder = perturb(images, ensemble, config.temperature, config.perturbation, random, compute)
        with torch.no_grad():
            return harder, ensemble.scores(harder, compute)

    return lesson


def perturb(
    images: Tensor,
    ensemble: Ensemble,
    temperature: float,
    size: float,
    random: torch.Generator,
    compute: Compute,
) -> Tensor:
    """Return images moved by `size` along the sign of a random direction in the ensemble's answers.

    Parameters
    ----------
    images : Tensor
        (n, channels, h, w).
    ensemble : Ensemble
        Whose probabilities at `temperature` are moved.
    size : float
        By how much each value of an image moves, in normalised pixels.
    random : torch.Generator
        Draws the direction, uniform in -1..1, one value for each image and class.
    """
    start = compute.images(images).detach().requires_grad_(True)
    answers = F.softmax(ensemble.scores(start, compute) / temperature, 1)
    direction = 2.0 * torch.rand(answers.shape, generator=random) - 1.0
    objective = (direction.to(answers.device) * answers).sum()
    (gradient,) = torch.autograd.grad(objective, start)
    return start.detach() + size * gradient.sign()


METHOD = Method("Co-Boosting", coboosting, fine_tuned, "Co-Boosting, fine-tuned")
