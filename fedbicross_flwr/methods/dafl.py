"""DAFL (Chen et al., ICCV 2019, Section 3): a generator and a student, trained side by side on the ensemble.

At each step the generator G makes a fresh batch x = G(z), z ~ N(0, 1), and minimises (L_oh, L_ie, L_a) ::

    one_hot * CE(s, argmax s) + entropy * sum_c p_c log10 p_c - activation * mean |f|

where s are the ensemble's scores, p is the batch mean of softmax(s) and f are the penultimate features:
answers should be sure, classes equally frequent, features strong. The student minimises
KL(ensemble || student) on the same images, detached. Defaults are the published settings for CIFAR
(`DaflConfig`). The paper does not settle two things that its weights depend on, so the released code does:

- The base of the logarithm, 10. With the natural one, the weight 5 would ask for 2.3 times as much balance;
  who wants a natural logarithm of weight a sets ``dafl.entropy`` to 2.303 a.
- An epsilon of .8 in the BatchNorm layers behind the generator's first two convolutions (`EPSILON`). It may
  have been meant as a momentum, which would change nothing in training; as an epsilon it makes contrasts
  smaller wherever the variance is not far above .8, and the published settings go with it.

The student's learning rate falls at 40 % and 80 % of the epochs and the generator's stays; Adam's betas and
the generator's initial weights are PyTorch's: as released. What differs from the released code, and why:

- There is one teacher there. Here features are averaged over the uploads, and scores are combined as
  ``dafl.aggregation`` says (default: mean of logits).
- Images have 28x28 pixels, not 32x32. As released, each of their channels has mean 0 and deviation 1, which
  is how CIFAR is normalised there; real pixels are from [-1, 1] here, and with ``dafl.output = "sigmoid"``
  so are the generator's.
- The student after the last epoch is the result; the released code keeps the best one by test accuracy.
- p has a floor in the logarithm, as 0 log 0 has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedbicross_flwr.artifacts import under
from fedbicross_flwr.checkpoint import load_training_state, training_state
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config_baselines import DaflConfig
from fedbicross_flwr.distillation import fine_tuned, kl_divergence
from fedbicross_flwr.ensemble import Ensemble
from fedbicross_flwr.generator import Generator, draw_images
from fedbicross_flwr.methods.epochs import train_in_parts
from fedbicross_flwr.methods.protocol import ClientUpload, Method, ServerOutcome, ServerTask
from fedbicross_flwr.methods.student import check_finite, start_student, student_outcome
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import SCHEDULES, sgd

EPSILON = 0.8
"""Of the generator's second and third BatchNorm layer: in the released code it stands where eps does."""
GENERATOR = "generator."
STUDENT_SCHEDULES: Mapping[str, Callable[[float], float]] = {
    **SCHEDULES,
    "dafl": lambda done: 1.0 if done < 0.4 else 0.1 if done < 0.8 else 0.01,
}
"""Factor of the student's learning rate by the fraction of the epochs; ``dafl`` is the published one."""


class Classifier(Protocol):
    """What every model of `fedbicross_flwr.models` offers."""

    fc: nn.Module

    def features(self, images: Tensor) -> Tensor:
        """Return what `fc` reads."""


def dafl(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Distil all uploads into one model for everybody; settings are ``task.config.dafl``.

    Raises
    ------
    FedBiCrossError
        When a loss is no longer finite.
    """
    training = DaflTraining(uploads, task)
    train_in_parts("dafl", task.config.dafl.epochs, training, task)
    return student_outcome(uploads, training, aimed=False)


class DaflTraining:
    """DAFL's student and generator with their optimisers (`methods.epochs.Training`).

    `images` is the last batch (B, channels, 28, 28), `labels` the ensemble's answers to it (B,).
    """

    images: Tensor
    labels: Tensor

    def __init__(self, uploads: Sequence[ClientUpload], task: ServerTask) -> None:
        config = task.config.dafl
        self.task, self.config, self.compute = task, config, task.compute
        self.ensemble = Ensemble([task.load(upload.state) for upload in uploads], config.aggregation)
        self.student = start_student(config.student_init, uploads, task)
        weights = torch_generator(task.config.seed, "dafl/generator")
        shape = (config.latent, task.spec.channels, config.output, "uniform", weights, config.generator_width)
        self.generator = task.compute.place(Generator(*shape, eps=EPSILON))
        self.adam = torch.optim.Adam(self.generator.parameters(), config.generator_lr)
        self.sgd = sgd(self.student.parameters(), config)

    def epoch(self, number: int) -> None:
        """Train generator and student side by side."""
        config, compute = self.config, self.compute
        lr = config.lr * STUDENT_SCHEDULES[config.schedule](number / config.epochs)
        self.sgd.param_groups[0]["lr"] = lr
        random = torch_generator(self.task.config.seed, "dafl/z", round=number)
        for _ in range(config.steps):
            z = torch.randn(config.batch_size, config.latent, generator=random).to(compute.device)
            losses = self.step(z)
        check_finite("DAFL", number, losses, self.task)
        self.task.progress.advance("DAFL", number + 1, config.epochs)

    def step(self, z: Tensor) -> dict[str, Tensor]:
        """Take a step of each on the images of z (B, latent); return both losses."""
        images = draw_images(self.generator, z, self.compute)
        scores, features = answer_with_features(self.ensemble, images, self.compute)
        losses = {"dafl.generator_lr": generator_loss(scores, features, self.config)}
        take_step(self.adam, losses["dafl.generator_lr"])
        images, scores = images.detach(), scores.detach()
        losses["dafl.lr"] = kl_divergence(scores, self.compute.logits(self.student, images))
        take_step(self.sgd, losses["dafl.lr"])
        self.images, self.labels = images, scores.argmax(1)
        return losses

    def state(self, epochs: range) -> dict[str, Tensor]:
        """Return both networks, what their optimisers remember, and the last batch."""
        generator = training_state(self.generator, self.adam)
        return {
            **training_state(self.student, self.sgd),
            **{f"{GENERATOR}{name}": value for name, value in generator.items()},
            "images": self.images.cpu().contiguous(),
            "labels": self.labels.cpu(),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        load_training_state(self.student, self.sgd, state)
        load_training_state(self.generator, self.adam, under(GENERATOR, state))
        self.images, self.labels = state["images"], state["labels"]


def answer_with_features(ensemble: Ensemble, images: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Return the ensemble's scores (n, C) and its members' mean penultimate features (n, d), float32."""
    logits, features = [], []
    for model in ensemble.members:
        classifier = cast(Classifier, model)
        with compute.autocast():
            features.append(classifier.features(images))
            logits.append(classifier.fc(features[-1]).float())
    return ensemble.combine(torch.stack(logits)), torch.stack(features).float().mean(0)


def generator_loss(scores: Tensor, features: Tensor, config: DaflConfig) -> Tensor:
    """Return the generator's loss (see the module's equation) from scores (n, C) and features (n, d).

    The cross-entropy's target, argmax s, carries no gradient; all three terms are means over the batch.
    """
    one_hot = F.cross_entropy(scores, scores.argmax(1))
    mean = F.softmax(scores, 1).mean(0)
    # A floor, so that a class which no image is given (p = 0 in float32) has no infinite logarithm.
    mean = mean.clamp_min(torch.finfo(mean.dtype).tiny)
    negative_entropy = (mean * mean.log10()).sum()
    sure = config.one_hot * one_hot
    strong = config.activation * features.abs().mean()
    loss: Tensor = sure + config.entropy * negative_entropy - strong
    return loss


def take_step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Follow the gradient of `loss` by one step."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


METHOD = Method("DAFL", dafl, fine_tuned, "DAFL, fine-tuned")
