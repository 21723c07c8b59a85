"""Distillation losses (Eqs. 5 and 9) and stage 3, a client's personalised distillation (Section III-C)."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from fedbicross_flwr.labelled_images import LabelledImages, predict_logits
from fedbicross_flwr.models import StateDict, load_state, state_of
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import Loss, Recipe, fit
from fedbicross_flwr.shipment import Rehearsal, Shipment
from fedbicross_flwr.training import ClientTask


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student), averaged over the batch and multiplied by temperature^2.

    Parameters
    ----------
    teacher : Tensor
        Scores (n, C): logits or log-probabilities. No gradient reaches them.
    student : Tensor
        Logits (n, C).
    temperature : float, default 1.0
        Divides both; the factor temperature^2 keeps the size of the gradient (Hinton et al., 2015).
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher.detach() / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def noise_share(t: int, iterations: int) -> float:
    """Return lambda^(t) = 1 - t/T, the weight of the noise-adapted teacher (below Eq. 5)."""
    return 1.0 - t / iterations


def trajectory_loss(
    student: Tensor, teacher: Tensor, adapted: Tensor, share: float, temperature: float
) -> Tensor:
    """Return L_KD (Eq. 5): ``share`` of KL to the noise-adapted teacher, the rest to the teacher.

    Parameters
    ----------
    student : Tensor
        Logits of G_k, float32 (n, C).
    teacher, adapted : Tensor
        Scores of F and F~ on the same images, float32 (n, C); neither gets a gradient.
    share : float
        lambda^(t), in 0..1; see `noise_share`.
    temperature : float
        tau, of both terms; see `kl_divergence`.

    Returns
    -------
    Tensor
        A scalar: the mean over the batch.
    """
    loss = (1.0 - share) * kl_divergence(teacher, student, temperature)
    if share:
        loss = loss + share * kl_divergence(adapted, student, temperature)
    return loss


def personal_loss(
    student: Tensor,
    labels: Tensor,
    cluster: Tensor,
    own: Tensor,
    gamma: float,
    delta: float,
    temperature: float = 1.0,
    offset: Tensor | float = 0.0,
) -> Tensor:
    """Return L_pers (Eq. 9): CE + gamma KL(G_k || f_pers) + delta KL(f_i || f_pers).

    Parameters
    ----------
    student, cluster, own : Tensor
        Logits (n, C) of f_pers, G_k and f_i on the same images.
    labels : Tensor
        int64 (n,).
    offset : Tensor or float, default 0.0
        Added to the logits in CE alone, (C,); see `class_offset`.
    """
    loss = F.cross_entropy(student + offset, labels)
    if gamma:
        loss = loss + gamma * kl_divergence(cluster, student, temperature)
    if delta:
        loss = loss + delta * kl_divergence(own, student, temperature)
    return loss


def class_offset(labels: Tensor, num_classes: int, strength: float) -> Tensor:
    """Return what logit adjustment adds to the logits of each class: ``strength`` times its log-frequency.

    With it a network need not learn how frequent the client's classes are, and above all not that it lacks
    some: as cross-entropy would, by pushing the logits of these down on every image.

    Parameters
    ----------
    labels : Tensor
        int64 (n,), those that are trained on.
    num_classes : int
        C.
    strength : float
        0 leaves cross-entropy as it is, 1 makes it the balanced softmax (Ren et al., NeurIPS 2020).

    Returns
    -------
    Tensor
        (C,). Each class counts one image more than there are, so that absent ones have a logarithm too.

    References
    ----------
    Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Section 4.2.
    """
    counts = labels.bincount(minlength=num_classes) + 1.0
    return strength * (counts / counts.sum()).log()


def personalise(data: LabelledImages, shipment: Shipment, own: StateDict, task: ClientTask) -> StateDict:
    """Distil a cluster model into the client's personal one (stage 3), on the client's own images.

    Parameters
    ----------
    data : LabelledImages
        All of the client's images; its validation images stay unseen.
    shipment : Shipment
        G_k, from which the personal model starts. Synthetic images that came with it are rehearsed: a few of
        them beside every batch, with ``personal.replay`` as the weight of KL to the server's teacher.
    own : StateDict
        f_i, which never left the client. It and G_k are teachers: frozen and in eval mode. As stage 3 does
        not augment, their answers are computed once.
    task : ClientTask
        Whose work this is.

    Returns
    -------
    StateDict
        f_pers after ``personal.epochs`` epochs.
    """
    settings, compute = task.config.personal, task.compute
    training, _ = data.to(compute).split(task.config.client.validation_fraction)
    teachers = [compute.place(load_state(task.spec, state)) for state in (shipment.model, own)]
    fixed = [predict_logits(teacher, training.images, compute) for teacher in teachers]

    offset = class_offset(training.labels, task.spec.num_classes, settings.logit_adjustment)
    rehearsal = rehearse(shipment, task)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        answers = (training.labels[rows], fixed[0][rows], fixed[1][rows])
        own_logits, companions = logits[: len(rows)], logits[len(rows) :]
        weights = (settings.gamma, settings.delta, settings.temperature)
        total = personal_loss(own_logits, *answers, *weights, offset)
        if rehearsal is not None:
            said = rehearsal.answers()
            total = total + settings.replay * kl_divergence(said, companions, settings.replay_temperature)
        return total

    draw = rehearsal.draw if rehearsal is not None else None
    return adapt(shipment.model, training, loss, "personalisation", task, draw)


def rehearse(shipment: Shipment, task: ClientTask) -> Rehearsal | None:
    """Return what draws the synthetic images of stage 3, if any came and the settings want them."""
    settings = task.config.personal
    if shipment.replay is None or not settings.replay:
        return None
    generator = torch_generator(task.config.seed, "rehearsal", task.client)
    return Rehearsal(shipment.replay, settings.replay_batch, generator, task.compute.device)


def fine_tune(data: LabelledImages, start: StateDict, task: ClientTask) -> StateDict:
    """Train a model on the client's own images with stage 3's budget and plain cross-entropy.

    From f_i this is the control ``local-only, same budget``; from a global model, ``fine-tuned``.
    """
    training, _ = data.to(task.compute).split(task.config.client.validation_fraction)

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(logits, training.labels[rows])

    return adapt(start, training, loss, "fine-tuning", task)


def fine_tuned(data: LabelledImages, shipment: Shipment, own: StateDict, task: ClientTask) -> StateDict:
    """Fine-tune the model that a global method shipped; f_i takes no part."""
    return fine_tune(data, shipment.model, task)


def adapt(
    start: StateDict,
    training: LabelledImages,
    loss: Loss,
    stage: str,
    task: ClientTask,
    companions: Callable[[], Tensor] | None = None,
) -> StateDict:
    """Run stage 3's epochs: the client's recipe at stage 3's learning rate, without augmentation.

    Every model that is adapted sees the same batches in the same order, so that rows compare.
    """
    settings, local = task.config.personal, task.config.client
    model = task.compute.place(load_state(task.spec, start))
    recipe = Recipe(
        settings.epochs,
        settings.lr,
        local.momentum,
        local.weight_decay,
        settings.schedule,
        local.batch_size,
        augment=False,
        lr_key="personal.lr",
    )

    def after_epoch(epoch: int) -> None:
        task.progress.advance(stage, epoch, settings.epochs, client=task.client)

    order = torch_generator(task.config.seed, "personalisation", task.client)
    fit(model, training.images, loss, recipe, order, task.compute, after_epoch, companions)
    return state_of(model)
