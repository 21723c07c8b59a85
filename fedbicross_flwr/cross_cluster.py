"""Stage 2: bi-level cross-cluster optimisation (Section III-B, Eqs. 4-8).

For a target cluster k, one step at iterate t is::

    inner (Eq. 7)   G' = SGD step of G on  sum_j w_j L_j,   L_j = L_KD on the training images of source j
    outer (Eq. 8)   w  <- project(w - eta_w dL_val/dw),     L_val = L_KD of G' on k's validation images

The step is linear in w, also with momentum and weight decay, so the outer gradient is exact without
second derivatives: dG'/dw_j = -eta_G grad L_j, hence dL_val/dw_j = -eta_G <grad L_val(G'), grad L_j(G)>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedbicross_flwr.batch_norm import SourceStatistics, batch_norms
from fedbicross_flwr.checkpoint import load_training_state, training_state
from fedbicross_flwr.compute import Compute, moved
from fedbicross_flwr.config_fedbicross import CrossClusterConfig, split_sizes
from fedbicross_flwr.cross_weights import SCALES, outer_gradient, project_onto_simplex
from fedbicross_flwr.distillation import noise_share, trajectory_loss
from fedbicross_flwr.models import blocks_of
from fedbicross_flwr.recomputation import recomputed
from fedbicross_flwr.sgd import sgd
from fedbicross_flwr.source_gradients import DirectionalDerivatives, GradientRows, SourceGradients

FEW_SOURCES = 3
"""In a mixture, up to so many sources have a backward pass each, which is cheaper for few but grows with K.

The products that Eq. 8 needs are one forward-mode pass, whatever K. On a CPU core it is cheaper from four
sources on (``python -m benchmarks.choices``).
"""


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

    def tensors(self) -> dict[str, Tensor]:
        """Return images and scores by name."""
        parts = {"iterates": self.iterates, "teacher": self.teacher, "adapted": self.adapted}
        return {f"{part}.{t}": tensor for part, found in parts.items() for t, tensor in found.items()}


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


class Batch(NamedTuple):
    """Some images of one source, by indices on the device."""

    source: Source
    rows: Tensor


class Target:
    """A cluster model G_k with its weights w_k and the state of its optimiser.

    Parameters
    ----------
    cluster : int
        k: whose validation images judge.
    model : nn.Module
        G_k, changed in place.
    weights : Tensor
        w_k at the start, float32 (K,), on the model's device.
    config : CrossClusterConfig
        Steps, momentum, weight decay, batches, and what is normalised together.
    compute : Compute
        The device and the arithmetic.
    """

    def __init__(
        self, cluster: int, model: nn.Module, weights: Tensor, config: CrossClusterConfig, compute: Compute
    ) -> None:
        self.cluster = cluster
        self.model = model.train()
        self.weights = weights
        self.config = config
        self.recomputed = blocks_of(model) if config.activations == "recomputed" else []
        self.compute = compute
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = sgd(self.parameters, config)
        self.layers = batch_norms(model)
        self.learned = config.weights == "learned"
        self.together = config.normalisation == "mixture"

    def step(
        self, sources: Sequence[Source], t: int, iterations: int, lr: float, generator: torch.Generator
    ) -> None:
        """Do one inner and, when the weights are learned, one outer step at iterate t.

        Parameters
        ----------
        sources : sequence of Source
            Those of all K clusters, by cluster.
        t, iterations : int
            The iterate 1..T that is replayed, and T.
        lr : float
            eta_G of this step.
        generator : torch.Generator
            Draws the images of the inner step, if it does not read all of them.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        rows = [draw_rows(source.train, self.config.batch_size, generator) for source in sources]
        gradients = self.inner_step(sources, t, iterations, rows)
        if self.learned and len(sources) > 1:
            self.outer_step(sources, gradients, t, iterations, lr)

    def inner_step(
        self, sources: Sequence[Source], t: int, iterations: int, rows: Sequence[Tensor] | None = None
    ) -> SourceGradients:
        """Take the SGD step of Eq. 7; return grad L_j before it, of every source that was read.

        `rows` are the images of each source that are read; None reads all of its training images. Fixed
        weights of zero leave a source out: it costs nothing, and has no part in a mixture.
        """
        chosen = [source.train for source in sources] if rows is None else rows
        batches, weights = [], []
        for source, drawn, weight in zip(sources, chosen, self.weights.tolist(), strict=True):
            if self.learned or weight > 0.0:
                batches.append(Batch(source, moved(drawn, self.compute.device)))
                weights.append(weight)
        weigh = self.weigh_together if self.together else self.weigh_apart
        total, gradients = weigh(batches, weights, t, iterations)
        self.set_gradient(total)
        self.optimiser.step()
        # Nobody needs it any more, and the next step has gradients of its own.
        self.optimiser.zero_grad(set_to_none=True)
        return gradients

    def weigh_apart(
        self, batches: Sequence[Batch], weights: Sequence[float], t: int, iterations: int
    ) -> tuple[Tensor, SourceGradients]:
        """Return sum_j w_j grad L_j and its parts, each source in a forward pass of its own.

        The running statistics then move towards the w-weighted mean of the sources' statistics, which
        does not depend on their order.
        """
        running = SourceStatistics(self.layers)
        rows = self.empty_rows(len(batches))
        for row, batch, weight in zip(rows, batches, weights, strict=True):
            with running.record(weight):
                (loss,) = self.losses([batch], t, iterations)
            self.gradient(loss, row)
        running.commit()
        return weighted_sum(weights, rows), GradientRows(rows)

    def weigh_together(
        self, batches: Sequence[Batch], weights: Sequence[float], t: int, iterations: int
    ) -> tuple[Tensor, SourceGradients]:
        """Return sum_j w_j grad L_j and its parts, all sources in one forward pass.

        The weights have no part in the running statistics: every image counts once.
        """
        losses = self.losses(batches, t, iterations)
        if self.learned and len(batches) <= FEW_SOURCES:
            rows = self.empty_rows(len(losses))
            for left, row, loss in zip(reversed(range(len(losses))), rows, losses, strict=True):
                self.gradient(loss, row, keep=left > 0)
            return weighted_sum(weights, rows), GradientRows(rows)
        total = self.gradient(torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)]).sum())
        if not self.learned:
            return total, GradientRows(total.unsqueeze(0))
        before = {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        return total, DirectionalDerivatives(before, lambda at: self.losses_at(at, batches, t, iterations))

    def empty_rows(self, count: int) -> Tensor:
        """Return room for so many gradients, (count, P)."""
        return self.parameters[0].new_empty(count, sum(parameter.numel() for parameter in self.parameters))

    def gradient(self, loss: Tensor, out: Tensor | None = None, keep: bool = False) -> Tensor:
        """Return the gradient in one vector (P,); `keep` the graph for other losses of the same pass."""
        parts = torch.autograd.grad(loss, self.parameters, retain_graph=keep)
        return flat(parts, out)

    def outer_step(
        self, sources: Sequence[Source], source_gradients: SourceGradients, t: int, iterations: int, lr: float
    ) -> None:
        """Move w_k against the exact gradient of the updated model's validation loss (Eq. 8).

        In a mixture the cluster's own validation images are normalised together with those of all sources.
        """
        batches = [Batch(source, moved(source.validation, self.compute.device)) for source in sources]
        with SourceStatistics(self.layers).record(0.0):
            if self.together:
                loss = self.losses(batches, t, iterations)[self.cluster]
            else:
                (loss,) = self.losses([batches[self.cluster]], t, iterations)
        validation_gradient = self.gradient(loss)
        gradient = outer_gradient(validation_gradient, source_gradients, lr)
        scale = SCALES[self.config.weight_gradient]
        gradient = scale(gradient, validation_gradient, source_gradients, lr)
        self.weights = project_onto_simplex(self.weights - self.config.weight_lr * gradient)

    def losses(self, batches: Sequence[Batch], t: int, iterations: int) -> list[Tensor]:
        """Return L_KD^(t) (Eq. 5) on each batch, all in one pass by batch statistics."""
        with recomputed(self.recomputed):
            student = self.compute.logits(self.model, self.images(batches, t))
        return self.losses_of(student, batches, t, iterations)

    def losses_at(
        self, at: Mapping[str, Tensor], batches: Sequence[Batch], t: int, iterations: int
    ) -> Tensor:
        """Return the same losses (K,) at other parameters, which leaves the running statistics alone.

        Nothing is recomputed: that would be after the call, when the model has other parameters. In full
        precision and not compiled: forward-mode differentiation in bfloat16 took twice as long as in
        float32 on a CPU, and compiled code does not know it.
        """
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        student = functional_call(self.model, {**at, **buffers}, self.images(batches, t))
        return torch.stack(self.losses_of(student, batches, t, iterations))

    def images(self, batches: Sequence[Batch], t: int) -> Tensor:
        """Return all images of the batches at iterate t."""
        drawn = torch.cat([batch.source.iterates[t][batch.rows] for batch in batches])
        return self.compute.images(drawn.float())

    def losses_of(self, student: Tensor, batches: Sequence[Batch], t: int, iterations: int) -> list[Tensor]:
        """Return Eq. 5 of each batch, of the student's answers to all of them."""
        share = noise_share(t, iterations)
        return [
            trajectory_loss(
                part,
                batch.source.teacher[t][batch.rows],
                batch.source.adapted[t][batch.rows],
                share,
                self.config.temperature,
            )
            for part, batch in zip(
                student.split([len(batch.rows) for batch in batches]), batches, strict=True
            )
        ]

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


def weighted_sum(weights: Sequence[float], rows: Tensor) -> Tensor:
    """Return sum_j w_j rows_j, (P,)."""
    return moved(torch.tensor(weights, dtype=rows.dtype), rows.device) @ rows


def flat(tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Return tensors in one vector, written into `out` if it is given."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors], out=out)
