"""The settings of FedBiCross, stage by stage: clusters, teachers, synthesis, stage 2 and stage 3.

The fine-tuning of every global model takes the budget of stage 3, and FedISCA shares the inversion.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedbicross_flwr.settings import setting


@dataclass(frozen=True)
class ClusteringConfig:
    """Stage 1: which clients belong together."""

    clusters: int | str = setting(
        2, "clusters K, or `auto` for the best silhouette", low=1, words=("auto",), source="IV-A: 2-8"
    )
    by: str = setting(
        "classifier_norms",
        "`outputs`: predictions on probes; `classifier_bias`: the last layer's bias; `classifier_norms`: the "
        "label distribution that its row norms tell; `parameters`: all weights; `hierarchical`: "
        "agglomerative on all weights; `pacfl`: subspaces of the clients' images, which are a further upload",
        choices=("outputs", "classifier_bias", "classifier_norms", "parameters", "hierarchical", "pacfl"),
        source="III-A1: outputs, IV-C",
    )
    signature: str = setting(
        "probabilities",
        "what `outputs` compares",
        choices=("probabilities", "logits"),
        source="III-A1",
    )
    probes: str = setting(
        "gaussian",
        "`gaussian`: independent pixels; `smooth`: low-pass noise; `colour`: one colour an image",
        choices=("gaussian", "smooth", "colour"),
        source="III-A1: gaussian",
    )
    probe_amplitude: float = setting(1.0, "standard deviation of the probes, in normalised pixels", above=0.0)
    num_probes: int = setting(256, "probes M", low=1, source="IV-A")
    pacfl_rank: int = setting(
        3, "`pacfl`: directions that a client uploads of each class", low=1, source="PACFL"
    )
    n_init: int = setting(20, "restarts of K-means", low=1)


@dataclass(frozen=True)
class TeacherConfig:
    """The ensemble F_k of a cluster and its noise-adapted twin."""

    aggregation: str = setting(
        "class_weighted",
        "`logits`: mean of logits; `probabilities`: mean of probabilities; `confidence`: weighted by "
        "1 - normalised entropy; `class_weighted`: weighted per class by the label distributions that the "
        "classifiers' row norms tell",
        choices=("logits", "probabilities", "confidence", "class_weighted"),
        source="III-A1: logits",
    )
    scope: str = setting(
        "federation",
        "who says what a cluster's synthetic images show: its own ensemble F_k, or that of all uploads of "
        "the `federation`",
        choices=("cluster", "federation"),
        source="III-B: cluster",
    )
    noise_adaptation: str = setting(
        "reverse_ema",
        "BatchNorm statistics of the noise-adapted teacher: `reverse_ema` (Eq. 3); `batch`: the batch's; "
        "`progressive`: as of each step of the replay; `none`: no such teacher",
        choices=("reverse_ema", "batch", "progressive", "none"),
        source="Eq. 3",
    )
    noise_momentum: float = setting(0.9, "momentum beta of Eq. 3", low=0.0, high=0.9999, source="IV-A")
    noise_window: int = setting(
        64, "iterates that Eq. 3 reads, from the first on; 0 reads all (64 carry 99.9 % at beta = .9)", low=0
    )


@dataclass(frozen=True)
class InversionConfig:
    """Stage 1: synthetic images from a cluster's ensemble."""

    iterations: int = setting(80, "inversion steps T", low=1, source="IV-A: 500")
    batch_size: int = setting(96, "synthetic images B of a cluster", low=4, source="IV-A: 256")
    lr: float = setting(0.1, "learning rate of Adam", above=0.0, source="IV-A: 0.05")
    labels: str = setting(
        "classifier_norms",
        "`balanced`: classes in turn; `cluster_prior`: like the cluster's mean prediction on probes; "
        "`classifier_norms`: like the label distribution that its classifiers' row norms tell",
        choices=("balanced", "cluster_prior", "classifier_norms"),
        source="III-A2: balanced",
    )
    jitter: int = setting(
        2, "images are rolled by up to this many pixels before the teachers see them", low=0, high=14
    )
    tv: str = setting(
        "mean_square",
        "total variation: `norm`, four L2 norms over the batch; `mean_square`, mean squared differences",
        choices=("norm", "mean_square"),
        source="Eq. 2: norm",
    )
    tv_weight: float = setting(5.0, "weight of total variation", low=0.0, source="IV-A: 2.5e-5")
    bn_weight: float = setting(0.1, "weight of the BatchNorm term", low=0.0, source="IV-A: 10")
    bn_models: str = setting(
        "mean",
        "the BatchNorm term is a `sum` or a `mean` over the cluster's models",
        choices=("sum", "mean"),
        source="FedISCA: sum",
    )
    teachers: str = setting(
        "together",
        "whether the models that are inverted (FedISCA's too) pass the gradient on `together`, or `in_turn`: "
        "then one's activations are in memory at a time, and each answers twice (docs/performance.md)",
        choices=("together", "in_turn"),
    )
    images_at_once: int = setting(
        0,
        "with `in_turn`: images that pass through a model at once, whatever B is; 0: all",
        low=0,
    )
    trajectory_dtype: str = setting(
        "auto",
        "how the iterates are kept; `auto`: as the networks compute, so that nothing they see is lost",
        choices=("auto", "float32", "bfloat16", "float16"),
    )


@dataclass(frozen=True)
class CrossClusterConfig:
    """Stage 2: bi-level cross-cluster optimisation."""

    weights: str = setting(
        "learned",
        "w_k: `learned` (Eq. 8); or fixed: `intra` e_k, `uniform` 1/K, `similarity` of centroids",
        choices=("learned", "intra", "uniform", "similarity"),
        source="Eq. 8, IV-C",
    )
    weight_lr: float = setting(2e-3, "step eta_w of the weights", low=0.0)
    weight_gradient: str = setting(
        "l2",
        "scale of the weights' gradient: `none`; `l2`, its norm; `cosine`, of the gradients' norms",
        choices=("none", "l2", "cosine"),
    )
    train_fraction: float = setting(
        0.8, "share of the synthetic images for the inner level", above=0.0, high=0.95, source="IV-A"
    )
    temperature: float = setting(4.0, "temperature tau of Eq. 5", above=0.0, source="IV-A: 20")
    lr: float = setting(0.01, "step eta_G of SGD", above=0.0, source="FedISCA: 1e-3")
    momentum: float = setting(0.9, "momentum of SGD", low=0.0, high=0.9999, source="FedISCA")
    weight_decay: float = setting(5e-4, "weight decay of SGD", low=0.0, source="FedISCA")
    schedule: str = setting(
        "cosine",
        "eta_G over all steps of all synthesis rounds",
        choices=("step", "cosine", "constant"),
        source="FedISCA: step",
    )
    student_init: str = setting(
        "federation",
        "G_k starts at `random` weights, at the `average` of its cluster's uploads, at that of all uploads "
        "of the `federation`, or at the upload of the `member` with the most images",
        choices=("random", "average", "federation", "member"),
        source="Algorithm 1: random",
    )
    replay_fraction: float = setting(
        0.5,
        "share of the trajectory that is replayed, counted from its end",
        above=0.0,
        high=1.0,
        source="Algorithm 1: 1.0",
    )
    replay_order: str = setting(
        "shuffled",
        "order of the replayed iterates",
        choices=("in_order", "shuffled"),
        source="Algorithm 1: in_order",
    )
    batch_size: int = setting(
        32, "images of each source that a step reads, drawn anew; 0 reads all", low=0, source="Algorithm 1: 0"
    )
    normalisation: str = setting(
        "mixture",
        "what BatchNorm normalises together in a step: all sources' images as one `mixture`, as the model "
        "will see it; or each `source` by itself",
        choices=("mixture", "source"),
        source="not said; paper.toml: source",
    )
    activations: str = setting(
        "kept",
        "whether what a student computes is `kept` for its backward passes, or `recomputed` in each of them, "
        "block by block: the same numbers with a fraction of the memory (docs/performance.md)",
        choices=("kept", "recomputed"),
        shapes_result=False,
    )
    sweeps: int = setting(4, "passes over the replayed iterates", low=1, source="Algorithm 1: 1")
    synthesis_rounds: int = setting(
        1,
        "times that fresh noise is inverted and replayed; G_k and w_k go on",
        low=1,
        source="Algorithm 1: 1",
    )


@dataclass(frozen=True)
class PersonalConfig:
    """Stage 3: personalised distillation at the client."""

    epochs: int = setting(5, "passes over the client's images", low=0, source="IV-A: 10")
    lr: float = setting(0.02, "learning rate of SGD", above=0.0, source="IV-A: 1e-3")
    schedule: str = setting(
        "cosine",
        "of all that is trained in stage 3",
        choices=("step", "cosine", "constant"),
        source="IV-A: constant",
    )
    gamma: float = setting(1.0, "weight of KL to the cluster model", low=0.0, source="Eq. 9, IV-A: 0.5")
    delta: float = setting(1.0, "weight of KL to the client's own model", low=0.0, source="Eq. 9, IV-A: 0.3")
    temperature: float = setting(1.0, "temperature of both KL terms", above=0.0)
    logit_adjustment: float = setting(
        0.0,
        "strength of logit adjustment by the frequencies of the client's classes; 0 is plain cross-entropy",
        low=0.0,
        source="Menon et al., 2021",
    )
    replay: float = setting(
        0.5,
        "weight of KL to the server's teacher on the synthetic images, which then travel with the cluster "
        "model; 0 sends none",
        low=0.0,
        source="Eq. 9: 0",
    )
    replay_batch: int = setting(32, "synthetic images that are rehearsed with each batch", low=2)
    replay_temperature: float = setting(4.0, "temperature of that KL term", above=0.0)


def split_sizes(batch_size: int, train_fraction: float) -> tuple[int, int]:
    """Return how many synthetic images the inner and the outer level get."""
    train = round(batch_size * train_fraction)
    return train, batch_size - train
