"""FedBiCross, the server's part: stages 1 and 2 of Algorithm 1.

Clusters, teachers and synthesis first, for all clusters; then the replay that learns the cluster models
G_k and the cross-cluster weights w_k. Stage 3 is the clients' (`fedbicross_flwr.distillation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fedbicross_flwr.clustering import Clustering, cluster_clients
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.cross_cluster import (
    Source,
    Target,
    optimise,
    replay_schedule,
    replayed_steps,
    split_indices,
)
from fedbicross_flwr.cross_weights import initial_weights
from fedbicross_flwr.ensemble import Ensemble, class_shares, ensemble_scores
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.inversion import LABELS, Synthesis, invert
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.methods.protocol import (
    ClientUpload,
    Findings,
    Inversion,
    ServerOutcome,
    ServerTask,
    StageResult,
)
from fedbicross_flwr.models import build_model, load_state, state_of
from fedbicross_flwr.noise_adaptation import steps_read, teacher_scores
from fedbicross_flwr.parallel import Check, side_by_side
from fedbicross_flwr.seeds import derive_seed, torch_generator
from fedbicross_flwr.shipment import Replay


def fedbicross(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Learn one model for each cluster of clients (Algorithm 1, lines 1-15).

    Parameters
    ----------
    uploads : sequence of ClientUpload
        In the order of the clients' numbers.
    """
    clustering = find_clusters(uploads, task)
    ensembles = build_ensembles(uploads, clustering, task)
    teachers = TEACHERS[task.config.teacher.scope](ensembles, uploads, task)
    targets = build_targets(uploads, clustering, task)
    inversions: list[Inversion] = []
    weights = [torch.stack([target.weights.cpu() for target in targets]).unsqueeze(0)]
    syntheses: list[Synthesis] = []
    for round in range(task.config.cross_cluster.synthesis_rounds):
        syntheses = synthesise_all(round, ensembles, clustering, task)
        inversions += [Inversion(round, k, one.diagnostics) for k, one in enumerate(syntheses)]
        weights.append(replay(round, targets, teachers, syntheses, task))
    replay_images = made_to_rehearse(teachers, syntheses, task) if task.config.personal.replay else None
    return ServerOutcome(
        tuple(state_of(target.model) for target in targets),
        {upload.client: k for upload, k in zip(uploads, clustering.assignment, strict=True)},
        Findings(
            clustering,
            tuple(inversions),
            torch.cat(weights),
            tuple((one.images.float().cpu(), one.labels) for one in syntheses),
        ),
        replay_images,
    )


def made_to_rehearse(
    teachers: Sequence[Ensemble], syntheses: Sequence[Synthesis], task: ServerTask
) -> Replay:
    """Return the final images of all clusters with their teachers' answers, for stage 3."""
    pairs = list(zip(teachers, syntheses, strict=True))
    scores = [ensemble_scores(teacher, one.images.float(), task.compute) for teacher, one in pairs]
    images = torch.cat([one.images.half().cpu() for one in syntheses])
    return Replay(images, torch.cat(scores).float().cpu())


def find_clusters(uploads: Sequence[ClientUpload], task: ServerTask) -> Clustering:
    """Run stage 1's clustering as a stage of its own."""

    def compute() -> StageResult:
        models = [task.load(upload.state) for upload in uploads]
        config = task.config
        subspaces = [upload.subspace for upload in uploads if upload.subspace is not None]
        found = cluster_clients(
            models, task.spec.channels, config.clustering, config.seed, task.compute, subspaces
        )
        task.progress.advance("clustering", 1, 1)
        arrays = {
            "similarity": found.similarity,
            "centroid_similarity": found.centroid_similarity,
            "mean_prediction": found.mean_prediction,
        }
        return StageResult(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            {"assignment": list(found.assignment), "silhouette": found.silhouette},
        )

    kept = task.stages.run("clustering", "clustering", compute)
    arrays = {name: tensor.numpy() for name, tensor in kept.tensors.items()}
    return Clustering(tuple(kept.facts["assignment"]), silhouette=kept.facts["silhouette"], **arrays)


def build_ensembles(
    uploads: Sequence[ClientUpload], clustering: Clustering, task: ServerTask
) -> list[Ensemble]:
    """Return the ensemble F_k of each cluster, which is inverted."""
    aggregation = task.config.teacher.aggregation
    return [
        Ensemble([task.load(uploads[i].state) for i in clustering.members(k)], aggregation)
        for k in range(clustering.clusters)
    ]


def cluster_teachers(
    ensembles: Sequence[Ensemble], uploads: Sequence[ClientUpload], task: ServerTask
) -> list[Ensemble]:
    """Return F_k for each cluster's images, as the paper has it."""
    return list(ensembles)


def federation_teachers(
    ensembles: Sequence[Ensemble], uploads: Sequence[ClientUpload], task: ServerTask
) -> list[Ensemble]:
    """Return the ensemble of all uploads for each cluster's images.

    A cluster's members answer classes that they never saw with great confidence and wrongly; others know
    better. Each cluster has a copy, as noise adaptation exchanges the statistics of the one it works on.
    """
    aggregation = task.config.teacher.aggregation
    return [Ensemble([task.load(upload.state) for upload in uploads], aggregation) for _ in ensembles]


TEACHERS: Mapping[str, Callable[..., list[Ensemble]]] = {
    "cluster": cluster_teachers,
    "federation": federation_teachers,
}


def build_targets(uploads: Sequence[ClientUpload], clustering: Clustering, task: ServerTask) -> list[Target]:
    """Return every G_k at its start, with uniform or fixed weights w_k."""
    config = task.config.cross_cluster
    weights = initial_weights(config.weights, clustering.clusters, clustering.centroid_similarity)
    targets = []
    for k in range(clustering.clusters):
        members = [uploads[i] for i in clustering.members(k)]
        model = task.compute.place(STARTS[config.student_init](members, uploads, k, task))
        targets.append(Target(k, model, weights[k].to(task.compute.device), config, task.compute))
    return targets


Start = Callable[[Sequence[ClientUpload], Sequence[ClientUpload], int, ServerTask], nn.Module]
"""``start(the cluster's uploads, all uploads, cluster, task)`` gives G_k before its first step."""


def random_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return a network with random weights (Algorithm 1)."""
    return build_model(task.spec, derive_seed(task.config.seed, "cluster-model", cluster))


def average_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return the sample-weighted average of the cluster's uploads."""
    weights = [float(member.num_samples) for member in members]
    return load_state(task.spec, average_states([member.state for member in members], weights))


def federation_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return the sample-weighted average of all uploads, which knows something of every class."""
    return average_start(uploads, uploads, cluster, task)


def member_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return the upload that was trained on the most images; of equal ones the first client's."""
    return load_state(task.spec, max(members, key=lambda member: member.num_samples).state)


STARTS: Mapping[str, Start] = {
    "random": random_start,
    "average": average_start,
    "federation": federation_start,
    "member": member_start,
}


def synthesise_all(
    round: int, ensembles: Sequence[Ensemble], clustering: Clustering, task: ServerTask
) -> list[Synthesis]:
    """Invert every cluster's ensemble; they do not depend on each other."""

    def work(k: int, check: Check) -> Synthesis:
        return synthesise(k, round, ensembles[k], clustering, task, check)

    return side_by_side(work, range(len(ensembles)), task.workers)


def synthesise(
    cluster: int, round: int, ensemble: Ensemble, clustering: Clustering, task: ServerTask, check: Check
) -> Synthesis:
    """Invert one cluster's ensemble, as a stage that is kept until the run is finished."""
    config = task.config
    inversion = config.inversion
    name = f"synthesis-{round}-{cluster}"

    def compute() -> StageResult:
        prior = PRIORS.get(inversion.labels, predicted_prior)(ensemble, cluster, clustering)
        labels = LABELS[inversion.labels](inversion.batch_size, prior)
        generator = torch_generator(config.seed, "inversion", cluster, round)

        def after_step(t: int) -> None:
            task.progress.advance(f"synthesis, cluster {cluster}", t, inversion.iterations)
            check()

        keep = iterates_needed(config)
        made = invert(
            ensemble, labels, task.spec.channels, keep, inversion, generator, task.compute, after_step
        )
        tensors = {f"iterate.{t}": images for t, images in made.iterates.items()}
        return StageResult({**tensors, "labels": made.labels, "diagnostics": made.diagnostics})

    kept = task.stages.run(name, "synthesis", compute).tensors
    iterates = {
        int(key.removeprefix("iterate.")): tensor.to(task.compute.device)
        for key, tensor in kept.items()
        if key.startswith("iterate.")
    }
    return Synthesis(dict(sorted(iterates.items())), kept["labels"], kept["diagnostics"])


def predicted_prior(ensemble: Ensemble, cluster: int, clustering: Clustering) -> Tensor:
    """Return the cluster's mean prediction on the probes, (C,)."""
    return torch.from_numpy(clustering.mean_prediction[clustering.members(cluster)].mean(0))


def estimated_prior(ensemble: Ensemble, cluster: int, clustering: Clustering) -> Tensor:
    """Return the mean of the label distributions that the members' classifiers tell, (C,)."""
    return torch.stack([class_shares(model) for model in ensemble.members]).mean(0).cpu()


PRIORS: Mapping[str, Callable[[Ensemble, int, Clustering], Tensor]] = {"classifier_norms": estimated_prior}


def iterates_needed(config: RunConfig) -> set[int]:
    """Return the t that the replay or the noise adaptation reads; nothing else is kept."""
    iterations = config.inversion.iterations
    return {
        *replayed_steps(iterations, config.cross_cluster),
        *steps_read(iterations, config.teacher),
    }


def replay(
    round: int,
    targets: Sequence[Target],
    teachers: Sequence[Ensemble],
    syntheses: Sequence[Synthesis],
    task: ServerTask,
) -> Tensor:
    """Run stage 2 over one synthesis round; return w after each step, (steps, K, K).

    The stage keeps models, momenta and weights, so that a run can go on after it.
    """
    config = task.config
    iterations = config.inversion.iterations
    generator = torch_generator(config.seed, "replay", round=round)
    order = replay_schedule(iterations, config.cross_cluster, generator)
    total = len(order) * config.cross_cluster.synthesis_rounds

    def compute() -> StageResult:
        pairs = list(zip(teachers, syntheses, strict=True))
        sources = side_by_side(lambda pair, check: build_source(*pair, task), pairs, task.workers)

        def after_step(step: int) -> None:
            before = round * len(order) * len(targets)
            task.progress.advance("cross-cluster optimisation", before + step, total * len(targets))

        generators = [
            torch_generator(config.seed, "replay-batches", target.cluster, round) for target in targets
        ]
        done = round * len(order)
        history = optimise(
            targets, sources, order, iterations, done, total, generators, after_step, task.workers
        )
        check_finite(targets, history)
        tensors = {"weights": history}
        for target in targets:
            tensors.update({f"{target.cluster}.{name}": value for name, value in target.state().items()})
        return StageResult(tensors)

    kept = task.stages.run(f"optimisation-{round}", "cross-cluster optimisation", compute).tensors
    for target in targets:
        prefix = f"{target.cluster}."
        target.load({name.removeprefix(prefix): v for name, v in kept.items() if name.startswith(prefix)})
    return kept["weights"]


def check_finite(targets: Sequence[Target], history: Tensor) -> None:
    """Refuse cluster models that diverged, before they are kept or shipped."""
    finite = torch.isfinite(history).all() and all(
        bool(torch.isfinite(parameter).all()) for target in targets for parameter in target.parameters
    )
    if not finite:
        raise FedBiCrossError(
            f"the cross-cluster optimisation diverged; lower cross_cluster.lr = {targets[0].config.lr:g}"
        )


def build_source(teacher: Ensemble, synthesis: Synthesis, task: ServerTask) -> Source:
    """Return what a cluster offers to all targets; its teachers answer once, here."""
    config = task.config
    replayed = replayed_steps(config.inversion.iterations, config.cross_cluster)
    plain, adapted = teacher_scores(teacher, synthesis.iterates, replayed, config.teacher, task.compute)
    train, validation = split_indices(synthesis.labels, config.cross_cluster.train_fraction)
    return Source({t: synthesis.iterates[t] for t in replayed}, plain, adapted, train, validation)
