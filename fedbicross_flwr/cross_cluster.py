"""Stage 2: bi-level cross-cluster optimisation (Section III-B, Eqs. 4-8).

For a target cluster k, one step at iterate t is::

    inner (Eq. 7)   G' = SGD step of G on  sum_j w_j L_j,   L_j = L_KD on the training images of source j
    outer (Eq. 8)   w  <- project(w - eta_w dL_val/dw),     L_val = L_KD of G' on k's validation images

The step is linear in w, also with momentum and weight decay, so the outer gradient is exact without
second derivatives: dG'/dw_j = -eta_G grad L_j, hence dL_val/dw_j = -eta_G <grad L_val(G'), grad L_j(G)>.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedbicross_flwr.batch_norm import SourceStatistics, batch_norms
from fedbicross_flwr.checkpoint import load_training_state, training_state
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import CrossClusterConfig, split_sizes
from fedbicross_flwr.cross_weights import SCALES, outer_gradient, project_onto_simplex
from fedbicross_flwr.distillation import noise_share, trajectory_loss
from fedbicross_flwr.parallel import Call, Check, Step, call_here, side_by_side
from fedbicross_flwr.training import SCHEDULES


@dataclass(frozen=True)
class Source:
    """What a cluster offers to all targets.

    Parameters
    ----------
    iterates : mapping of int to Tensor
        The replayed x^(t), (B, channels, 28, 28).
    teacher, adapted : mapping of int to Tensor
        Scores of F_j and F~_j on them, (B, C).
    train, validation : Tensor
        The fixed index partition of 1..B, int64.
    """

    iterates: Mapping[int, Tensor]
    teacher: Mapping[int, Tensor]
    adapted: Mapping[int, Tensor]
    train: Tensor
    validation: Tensor


def split_indices(labels: Tensor, train_fraction: float) -> tuple[Tensor, Tensor]:
    """Return the fixed (train, validation) indices, label-balanced, each sorted.

    Validation images are taken at even distances from the images in order of their label, so that every
    label gives its share.
    """
    _, count = split_sizes(len(labels), train_fraction)
    order = labels.argsort(stable=True)
    picks = (torch.arange(count, dtype=torch.float64) + 0.5) * (len(labels) / count)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[order[picks.long()]] = True
    every = torch.arange(len(labels))
    return every[~chosen], every[chosen]


def draw_rows(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` of the rows, drawn without replacement; all of them for 0 or when there are no more."""
    if not 0 < count < len(rows):
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


class Target:
    """A cluster model G_k with its weights w_k and the state of its optimiser.

    Parameters
    ----------
    cluster : int
        k: whose validation images judge.
    model : nn.Module
        G_k, changed in place.
    weights : Tensor
        w_k at the start, (K,), on the model's device.
    """

    def __init__(
        self, cluster: int, model: nn.Module, weights: Tensor, config: CrossClusterConfig, compute: Compute
    ) -> None:
        self.cluster = cluster
        self.model = model.train()
        self.weights = weights
        self.config = config
        self.compute = compute
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.SGD(
            self.parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.layers = batch_norms(model)

    def step(
        self, sources: Sequence[Source], t: int, iterations: int, lr: float, generator: torch.Generator
    ) -> None:
        """Do one inner and, when the weights are learned, one outer step at iterate t.

        `generator` draws the images of the inner step, if it does not read all of them.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        rows = [draw_rows(source.train, self.config.batch_size, generator) for source in sources]
        gradients = self.inner_step(sources, t, iterations, rows)
        if self.config.weights == "learned" and len(sources) > 1:
            self.outer_step(sources[self.cluster], gradients, t, iterations, lr)

    def inner_step(
        self, sources: Sequence[Source], t: int, iterations: int, rows: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Take the SGD step of Eq. 7; return grad L_j of every source before it, (K, P).

        `rows` are the images of each source that are read; None reads all of its training images.

        Each source has a forward pass of its own, as BatchNorm must not mix sources. The running
        statistics then move towards the w-weighted mean of the sources' statistics, which does not
        depend on their order. Fixed weights of zero cost nothing.
        """
        running = SourceStatistics(self.layers)
        learned = self.config.weights == "learned"
        gradients: list[Tensor | None] = []
        every = [source.train for source in sources]
        for source, chosen, weight in zip(sources, rows or every, self.weights.tolist(), strict=True):
            if not learned and weight == 0.0:
                gradients.append(None)
                continue
            with running.record(weight):
                loss = self.loss(source, chosen, t, iterations)
            gradients.append(flat(torch.autograd.grad(loss, self.parameters)))
        running.commit()
        nothing = torch.zeros(sum(p.numel() for p in self.parameters), device=self.compute.device)
        stacked = torch.stack([nothing if gradient is None else gradient for gradient in gradients])
        self.set_gradient(self.weights @ stacked)
        self.optimiser.step()
        return stacked

    def outer_step(self, own: Source, source_gradients: Tensor, t: int, iterations: int, lr: float) -> None:
        """Move w_k against the exact gradient of the updated model's validation loss (Eq. 8)."""
        with SourceStatistics(self.layers).record(0.0):
            loss = self.loss(own, own.validation, t, iterations)
        validation_gradient = flat(torch.autograd.grad(loss, self.parameters))
        gradient = outer_gradient(validation_gradient, source_gradients, lr)
        scale = SCALES[self.config.weight_gradient]
        gradient = scale(gradient, validation_gradient, source_gradients, lr)
        self.weights = project_onto_simplex(self.weights - self.config.weight_lr * gradient)

    def loss(self, source: Source, rows: Tensor, t: int, iterations: int) -> Tensor:
        """Return L_KD^(t) (Eq. 5) of the model on some images of a source, by batch statistics."""
        images = self.compute.images(source.iterates[t][rows].float())
        student = self.compute.logits(self.model, images)
        return trajectory_loss(
            student,
            source.teacher[t][rows],
            source.adapted[t][rows],
            noise_share(t, iterations),
            self.config.temperature,
        )

    def state(self) -> dict[str, Tensor]:
        """Return copies of the model, its momenta and w_k: all that the next step depends on."""
        return {**training_state(self.model, self.optimiser), "w": self.weights.detach().cpu().clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        load_training_state(self.model, self.optimiser, state)
        self.weights = state["w"].to(self.weights.device)

    def set_gradient(self, gradient: Tensor) -> None:
        """Give the optimiser its gradient from one flat vector (P,)."""
        for parameter, part in zip(
            self.parameters, gradient.split([p.numel() for p in self.parameters]), strict=True
        ):
            parameter.grad = part.view(parameter.shape)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def replay_schedule(iterations: int, config: CrossClusterConfig, generator: torch.Generator) -> list[int]:
    """Return the iterates t in the order of one synthesis round's replay: all sweeps one after another."""
    replayed = replayed_steps(iterations, config)
    order: list[int] = []
    for _ in range(config.sweeps):
        if config.replay_order == "shuffled":
            picks = torch.randperm(len(replayed), generator=generator).tolist()
            order += [replayed[index] for index in picks]
        else:
            order += replayed
    return order


def replayed_steps(iterations: int, config: CrossClusterConfig) -> list[int]:
    """Return the t that are replayed: the last ``replay_fraction`` of 1..T, at least one."""
    count = max(round(iterations * config.replay_fraction), 1)
    return list(range(iterations - count + 1, iterations + 1))


def optimise(
    targets: Sequence[Target],
    sources: Sequence[Source],
    order: Sequence[int],
    iterations: int,
    done: int,
    total: int,
    generators: Sequence[torch.Generator],
    after_step: Callable[[int], None] = lambda step: None,
    workers: int = 1,
    call: Call = call_here,
) -> Tensor:
    """Replay one synthesis round over all targets, which do not depend on each other.

    Parameters
    ----------
    order : sequence of int
        The t of each step.
    iterations : int
        T.
    done, total : int
        Steps before this round, and steps of all rounds: the learning-rate schedule is in fractions of
        the whole.
    generators : sequence of torch.Generator
        One a target: draws the images of its steps.
    after_step : callable
        Called with 1, 2, ... for each step of each target.
    workers : int, default 1
        Targets that are worked on at once.
    call : callable, optional
        Works on one target, here or elsewhere.

    Returns
    -------
    Tensor
        w after each step, (steps, K, K).
    """
    steps = itertools.count(1)

    def replay(work: tuple[Target, torch.Generator], check: Check) -> Tensor:
        target, generator = work
        history, state = call(
            replay_target,
            *(target, sources, order, iterations, done, total, generator),
            after_step=lambda step: after_step(next(steps)),
            check=check,
        )
        target.load(state)
        return history

    pairs = list(zip(targets, generators, strict=True))
    return torch.stack(side_by_side(replay, pairs, workers), dim=1)


def replay_target(
    target: Target,
    sources: Sequence[Source],
    order: Sequence[int],
    iterations: int,
    done: int,
    total: int,
    generator: torch.Generator,
    after_step: Step,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Replay one synthesis round over one target; see `optimise`.

    Returns
    -------
    tuple of Tensor and dict of str to Tensor
        w_k after each step, (steps, K), and the target's state after the last.
    """
    config, history = target.config, []
    for step, t in enumerate(order):
        lr = config.lr * SCHEDULES[config.schedule]((done + step) / total)
        target.step(sources, t, iterations, lr, generator)
        history.append(target.weights.detach().cpu())
        after_step(step + 1)
    return torch.stack(history), target.state()
