"""Stage 1 of FedBiCross after its clusters: images of every cluster, and what their teachers say of them.

Both are stages that runs with a shared cache take from one another: the ablations of stage 2 differ only in
what they make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedbicross_flwr.clustering import Clustering
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.cross_cluster import Source, split_indices
from fedbicross_flwr.cross_replay import replayed_steps
from fedbicross_flwr.ensemble import Ensemble, class_shares
from fedbicross_flwr.inversion import LABELS, Synthesis, check_finite, invert
from fedbicross_flwr.methods.protocol import ClientUpload, ServerTask, StageResult
from fedbicross_flwr.noise_adaptation import steps_read, teacher_scores
from fedbicross_flwr.parallel import Check, call_here, side_by_side
from fedbicross_flwr.seeds import torch_generator


@dataclass(frozen=True)
class Cluster:
    """A cluster on its way through stage 1.

    Parameters
    ----------
    number : int
        k.
    members : sequence of ClientUpload
        Whose ensemble is inverted.
    ensemble : Ensemble
        F_k.
    answerers : sequence of ClientUpload
        Whose ensemble answers for the images (``teacher.scope``).
    teacher : Ensemble
        Theirs, and this cluster's alone: noise adaptation exchanges its statistics.
    """

    number: int
    members: Sequence[ClientUpload]
    ensemble: Ensemble
    answerers: Sequence[ClientUpload]
    teacher: Ensemble


def synthesise_all(
    round: int, clusters: Sequence[Cluster], clustering: Clustering, task: ServerTask
) -> list[Synthesis]:
    """Invert every cluster's ensemble; they do not depend on each other."""

    def work(cluster: Cluster, check: Check) -> Synthesis:
        return synthesise(cluster, round, clustering, task, check)

    return side_by_side(work, clusters, task.workers, in_turns=task.call is call_here)


def synthesise(
    cluster: Cluster, round: int, clustering: Clustering, task: ServerTask, check: Check
) -> Synthesis:
    """Invert one cluster's ensemble, as a stage that is kept until the run is finished."""
    config, inversion = task.config, task.config.inversion
    prior = PRIORS.get(inversion.labels, predicted_prior)(cluster, clustering)
    labels = LABELS[inversion.labels](inversion.batch_size, prior)
    keep = iterates_needed(config)

    def compute() -> StageResult:
        generator = torch_generator(config.seed, "inversion", cluster.number, round)

        def after_step(t: int) -> None:
            task.progress.advance(f"synthesis, cluster {cluster.number}", t, inversion.iterations)

        made = task.call(
            invert,
            *(cluster.ensemble, labels, task.spec.channels, keep, inversion, generator, task.compute),
            after_step=after_step,
            check=check,
        )
        check_finite(made, "inversion.lr", inversion.lr)
        tensors = {f"iterate.{t}": images for t, images in made.iterates.items()}
        return StageResult({**tensors, "labels": made.labels, "diagnostics": made.diagnostics})

    shaped_by = task.shaped_by(
        cluster.members, ("inversion", "teacher"), cluster.number, round, labels.tolist(), sorted(keep)
    )
    kept = task.stages.run(f"synthesis-{round}-{cluster.number}", "synthesis", compute, shaped_by).tensors
    iterates = {
        int(key.removeprefix("iterate.")): tensor.to(task.compute.device)
        for key, tensor in kept.items()
        if key.startswith("iterate.")
    }
    return Synthesis(dict(sorted(iterates.items())), kept["labels"], kept["diagnostics"])


def predicted_prior(cluster: Cluster, clustering: Clustering) -> Tensor:
    """Return the cluster's mean prediction on the probes, (C,)."""
    return torch.from_numpy(clustering.mean_prediction[clustering.members(cluster.number)].mean(0))


def estimated_prior(cluster: Cluster, clustering: Clustering) -> Tensor:
    """Return the mean of the label distributions that the members' classifiers tell, (C,)."""
    return torch.stack([class_shares(model) for model in cluster.ensemble.members]).mean(0).cpu()


PRIORS: Mapping[str, Callable[[Cluster, Clustering], Tensor]] = {"classifier_norms": estimated_prior}


def iterates_needed(config: RunConfig) -> set[int]:
    """Return the t that the replay or the noise adaptation reads; nothing else is kept."""
    iterations = config.inversion.iterations
    return {
        *replayed_steps(iterations, config.cross_cluster),
        *steps_read(iterations, config.teacher),
    }


def build_sources(
    round: int, clusters: Sequence[Cluster], syntheses: Sequence[Synthesis], task: ServerTask
) -> list[Source]:
    """Return what every cluster offers to all targets; its teachers answer once, here."""
    pairs = list(zip(clusters, syntheses, strict=True))

    def work(pair: tuple[Cluster, Synthesis], check: Check) -> Source:
        return build_source(round, *pair, task, check)

    return side_by_side(work, pairs, task.workers, in_turns=task.call is call_here)


def build_source(
    round: int, cluster: Cluster, synthesis: Synthesis, task: ServerTask, check: Check
) -> Source:
    """Return what one cluster offers; the answers of F and F~ are a stage of their own."""
    config, labels = task.config, synthesis.labels
    replayed = replayed_steps(config.inversion.iterations, config.cross_cluster)

    def compute() -> StageResult:
        answers = task.call(
            teacher_scores,
            *(cluster.teacher, synthesis.iterates, replayed, config.teacher, task.compute),
            check=check,
        )
        plain, adapted = (torch.stack([scores[t] for t in replayed]) for scores in answers)
        return StageResult({"plain": plain, "adapted": adapted})

    members = [upload.client for upload in cluster.members]
    shaped_by = task.shaped_by(
        # The images, by all that shaped them and as they are, and who answers.
        [*cluster.members, *cluster.answerers],
        ("inversion", "teacher"),
        members,
        cluster.number,
        round,
        labels.tolist(),
        replayed,
        sorted(synthesis.iterates),
        task.content({str(t): images for t, images in synthesis.iterates.items()}),
    )
    kept = task.stages.run(f"answers-{round}-{cluster.number}", "teacher answers", compute, shaped_by).tensors
    plain, adapted = (
        dict(zip(replayed, kept[name].to(task.compute.device), strict=True)) for name in ("plain", "adapted")
    )
    train, validation = split_indices(labels, config.cross_cluster.train_fraction)
    return Source({t: synthesis.iterates[t] for t in replayed}, plain, adapted, train, validation)
