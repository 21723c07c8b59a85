"""FedBiCross (Xia, Zhang, Liu, Dai and Xia), the server's part: stages 1 and 2 of Algorithm 1.

Clusters, teachers and synthesis first, for all clusters; then the replay that learns the cluster models
G_k and the cross-cluster weights w_k. Modules are those of `fedbicross_flwr`::

    line    what                                                                          where
    1-3     clusters of the f_i by their answers to probes (III-A1)                       clustering
    6       F_k = mean of the f_i of cluster k                                            ensemble
    7-8     Eq. 1: x <- x - eta_s grad L_DI(x; F_k, y), by Adam                           inversion
            Eq. 2: L_DI = CE(F_k(x), y) + a_TV R_TV(x) + a_BN R_BN(x)         inversion_loss, batch_norm
    9       Eq. 3: (mu, var) <- beta (mu, var) + (1 - beta) (mu, var of x^(t)), t = T..1  noise_adaptation
    11-12   G_k at its start, w_k = 1/K                             methods.cluster_starts, cross_weights
    13-15   Eq. 5: L_KD = lambda KL(F~ || G) + (1 - lambda) KL(F || G), lambda = 1 - t/T  distillation
            Eq. 7: G_k <- G_k - eta_G grad_G sum_j w_kj L_KD(G_k on j's training images)  cross_cluster
            Eq. 8: w_k <- project(w_k - eta_w grad_w L_KD(G_k on k's validation images))  cross_weights
    16-20   Eq. 9, stage 3, at the clients                                                distillation

Eq. 4, the problem over the whole trajectory, is never solved as such: Eq. 6 is the same at one iterate, and
Eqs. 7 and 8 are one step of it.

This was written from the paper. Its settings (Section IV-A) are in ``configs/paper.toml``. The defaults are
this project's own, smaller and other on purpose: clusters, labels and teachers by classifier row norms, as
Gaussian probes tell little of a client's labels; all uploads answer, as those of a cluster may not know a
class; a lighter R_BN, as at weight 10 it drowns the labels; the later half of the trajectory, in mini-batches
and four times, as early iterates hurt; G_k from the average of all uploads; all sources normalised as one
mixture; synthetic images to rehearse in stage 3. Reasons and figures: ``docs/method.md``, which also says
what the paper leaves open: tau^2 before Eq. 5, the unit length of the gradient in Eq. 8, steps t = 1..T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedbicross_flwr.artifacts import under
from fedbicross_flwr.batch_norm import share_tensors
from fedbicross_flwr.clustering import Clustering, cluster_clients
from fedbicross_flwr.cross_cluster import Target
from fedbicross_flwr.cross_replay import optimise, replay_schedule
from fedbicross_flwr.cross_weights import initial_weights
from fedbicross_flwr.distillation import personalise
from fedbicross_flwr.ensemble import Ensemble, ensemble_scores
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.inversion import Synthesis
from fedbicross_flwr.methods.cluster_starts import STARTS
from fedbicross_flwr.methods.cluster_synthesis import Cluster, build_sources, synthesise_all
from fedbicross_flwr.methods.protocol import (
    ClientUpload,
    Findings,
    Inversion,
    Method,
    ServerOutcome,
    ServerTask,
    StageResult,
)
from fedbicross_flwr.models import all_finite, state_of
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.shipment import Replay


def fedbicross(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
    """Learn one model for each cluster of clients (Algorithm 1, lines 1-15).

    Parameters
    ----------
    uploads : sequence of ClientUpload
        In the order of the clients' numbers.
    """
    clustering = find_clusters(uploads, task)
    clusters = build_clusters(uploads, clustering, task)
    targets = build_targets(uploads, clustering, task)
    inversions: list[Inversion] = []
    weights = [torch.stack([target.weights.cpu() for target in targets]).unsqueeze(0)]
    syntheses: list[Synthesis] = []
    for round in range(task.config.cross_cluster.synthesis_rounds):
        syntheses = synthesise_all(round, clusters, clustering, task)
        inversions += [Inversion(round, k, one.diagnostics) for k, one in enumerate(syntheses)]
        weights.append(replay(round, targets, clusters, syntheses, task))
    replay_images = made_to_rehearse(clusters, syntheses, task) if task.config.personal.replay else None
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


def made_to_rehearse(clusters: Sequence[Cluster], syntheses: Sequence[Synthesis], task: ServerTask) -> Replay:
    """Return the final images of all clusters with their teachers' answers, for stage 3."""
    pairs = list(zip(clusters, syntheses, strict=True))
    scores = [ensemble_scores(cluster.teacher, one.images.float(), task.compute) for cluster, one in pairs]
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


def build_clusters(
    uploads: Sequence[ClientUpload], clustering: Clustering, task: ServerTask
) -> list[Cluster]:
    """Return every cluster with the ensemble F_k that is inverted, and the one that answers."""
    aggregation = task.config.teacher.aggregation
    models = [task.load(upload.state) for upload in uploads]

    def ensemble(members: Sequence[int]) -> Ensemble:
        # Layers of its own, as noise adaptation exchanges their statistics; the weights are there once.
        return Ensemble([share_tensors(models[i]) for i in members], aggregation)

    clusters = []
    for k in range(clustering.clusters):
        indices = clustering.members(k)
        members, own = [uploads[i] for i in indices], ensemble(indices)
        if task.config.teacher.scope == "cluster":
            clusters.append(Cluster(k, members, own, members, own))
        else:
            # A cluster's members answer classes that they never saw with great confidence and wrongly;
            # others know better.
            clusters.append(Cluster(k, members, own, uploads, ensemble(range(len(uploads)))))
    return clusters


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


def replay(
    round: int,
    targets: Sequence[Target],
    clusters: Sequence[Cluster],
    syntheses: Sequence[Synthesis],
    task: ServerTask,
) -> Tensor:
    """Run stage 2 over one synthesis round; return w after each step, (steps, K, K).

    The stage keeps models, momenta and weights, so that a run can go on after it, and one that came to the
    same clusters in another way need not repeat it.
    """
    config = task.config
    iterations = config.inversion.iterations
    generator = torch_generator(config.seed, "replay", round=round)
    order = replay_schedule(iterations, config.cross_cluster, generator)
    total = len(order) * config.cross_cluster.synthesis_rounds
    sources = build_sources(round, clusters, syntheses, task)
    shaped_by = task.shaped_by(
        [upload for cluster in clusters for upload in cluster.members],
        ("inversion", "teacher", "cross_cluster"),
        [[upload.client for upload in cluster.members] for cluster in clusters],
        [one.labels.tolist() for one in syntheses],
        [target.weights.tolist() for target in targets],
        round,
        [task.content(source.tensors()) for source in sources],
    )

    def compute() -> StageResult:
        def after_step(step: int) -> None:
            before = round * len(order) * len(targets)
            task.progress.advance("cross-cluster optimisation", before + step, total * len(targets))

        generators = [
            torch_generator(config.seed, "replay-batches", target.cluster, round) for target in targets
        ]
        done = round * len(order)
        history = optimise(
            targets, sources, order, iterations, done, total, generators, after_step, task.workers, task.call
        )
        check_finite(targets, history)
        tensors = {"weights": history}
        for target in targets:
            tensors.update({f"{target.cluster}.{name}": value for name, value in target.state().items()})
        return StageResult(tensors)

    name = f"optimisation-{round}"
    kept = task.stages.run(name, "cross-cluster optimisation", compute, shaped_by).tensors
    for target in targets:
        target.load(under(f"{target.cluster}.", kept))
    return kept["weights"]


def check_finite(targets: Sequence[Target], history: Tensor) -> None:
    """Refuse cluster models that diverged, before they are kept or shipped."""
    if not all_finite([history, *(parameter for target in targets for parameter in target.parameters)]):
        raise FedBiCrossError(
            f"the cross-cluster optimisation diverged; lower cross_cluster.lr = {targets[0].config.lr:g}"
        )


METHOD = Method("FedBiCross without personal distillation", fedbicross, personalise, "FedBiCross", "ours")
