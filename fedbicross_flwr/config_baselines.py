"""Settings of the one-shot methods that FedBiCross is compared with; defaults are the published ones.

Published budgets are meant for a GPU. A comparison at equal compute sets ``epochs`` and ``steps``, as
``configs/quick.toml`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedbicross_flwr.settings import setting

AGGREGATIONS = ("logits", "probabilities", "confidence", "class_weighted")
STARTS = ("random", "average")


@dataclass(frozen=True)
class FedAvgConfig:
    """FedAvg-1 (McMahan et al., 2017, with a single round)."""

    bn: str = setting(
        "average",
        "BatchNorm statistics of the average: `average` those of the uploads; those of the `first` upload; "
        "`recalibrate` them at each client on its own training images (other methods' row of FedAvg-1 then "
        "has the average's)",
        choices=("average", "first", "recalibrate"),
    )


@dataclass(frozen=True)
class DaflConfig:
    """DAFL (Chen et al., ICCV 2019); the published CIFAR settings."""

    epochs: int = setting(2000, "epochs", low=1, source="DAFL")
    steps: int = setting(120, "generator and student steps an epoch", low=1, source="DAFL")
    batch_size: int = setting(1024, "images a step", low=2, source="DAFL")
    latent: int = setting(1000, "length of the generator's input z", low=1, source="DAFL")
    generator_width: int = setting(
        64,
        "channels before the generator's last layer; the layers before have twice as many",
        low=1,
        source="DAFL",
    )
    generator_lr: float = setting(0.02, "learning rate of Adam, generator", above=0.0, source="DAFL")
    one_hot: float = setting(
        0.05, "weight of the cross-entropy to the teacher's answer", low=0.0, source="DAFL"
    )
    entropy: float = setting(5.0, "weight of the negative entropy of the mean answer", low=0.0, source="DAFL")
    activation: float = setting(0.01, "weight of the features' mean magnitude", low=0.0, source="DAFL")
    lr: float = setting(0.1, "learning rate of SGD, student", above=0.0, source="DAFL")
    momentum: float = setting(0.9, "momentum of SGD, student", low=0.0, high=0.9999, source="DAFL")
    weight_decay: float = setting(5e-4, "weight decay of SGD, student", low=0.0, source="DAFL")
    schedule: str = setting(
        "dafl",
        "the student's learning rate over the epochs; `dafl`: x0.1 at 40 %, x0.01 at 80 %",
        choices=("dafl", "step", "cosine", "constant"),
        source="DAFL",
    )
    output: str = setting(
        "tanh_batch_norm",
        "the generator's last layer; `sigmoid` gives pixels from the range that real ones have",
        choices=("tanh_batch_norm", "sigmoid"),
        source="DAFL",
    )
    aggregation: str = setting("logits", "how the uploads answer together", choices=AGGREGATIONS)
    student_init: str = setting("random", "where the student starts", choices=STARTS)


@dataclass(frozen=True)
class DenseConfig:
    """DENSE (Zhang et al., NeurIPS 2022)."""

    epochs: int = setting(200, "epochs, each with a fresh generator", low=1, source="DENSE")
    steps: int = setting(30, "generator steps an epoch", low=1, source="DENSE")
    batch_size: int = setting(256, "images a step", low=2, source="DENSE")
    latent: int = setting(256, "length of the generator's input z", low=1, source="DENSE")
    generator_width: int = setting(
        64,
        "channels before the generator's last layer; the layers before have twice as many",
        low=1,
        source="DENSE",
    )
    generator_lr: float = setting(1e-3, "learning rate of Adam, generator and z", above=0.0, source="DENSE")
    bn_weight: float = setting(1.0, "weight of the BatchNorm term", low=0.0, source="DENSE")
    boundary: float = setting(1.0, "weight of the boundary-support term", low=0.0, source="DENSE")
    lr: float = setting(5e-3, "learning rate of SGD, student", above=0.0, source="DENSE")
    momentum: float = setting(0.9, "momentum of SGD, student", low=0.0, high=0.9999, source="DENSE")
    weight_decay: float = setting(0.0, "weight decay of SGD, student", low=0.0, source="DENSE")
    temperature: float = setting(20.0, "temperature of the distillation", above=0.0, source="DENSE")
    pool: int = setting(0, "batches that the pool keeps, the newest; 0 keeps all", low=0, source="DENSE: all")
    augment: bool = setting(
        False, "crop and flip the pool's images at random for the student, as the released code does"
    )
    aggregation: str = setting("logits", "how the uploads answer together", choices=AGGREGATIONS)
    student_init: str = setting("random", "where the student starts", choices=STARTS)


@dataclass(frozen=True)
class FedIscaConfig:
    """FedISCA (Kang et al., MICCAI 2023)."""

    epochs: int = setting(100, "epochs, each with fresh noise", low=1, source="FedISCA")
    steps: int = setting(500, "inversion steps and student steps an epoch", low=1, source="FedISCA")
    batch_size: int = setting(256, "images", low=2, source="FedISCA")
    inversion_lr: float = setting(0.05, "learning rate of Adam, images", above=0.0, source="FedISCA")
    jitter: int = setting(2, "pixels that images are rolled by", low=0, high=14, source="FedISCA")
    tv: str = setting(
        "norm", "total variation, as for `inversion.tv`", choices=("norm", "mean_square"), source="FedISCA"
    )
    tv_weight: float = setting(2.5e-5, "weight of total variation", low=0.0, source="FedISCA")
    bn_weight: float = setting(
        10.0, "weight of the BatchNorm term, summed over clients", low=0.0, source="FedISCA"
    )
    noise_adaptation: str = setting(
        "reverse_ema",
        "the noise-adapted teacher: `reverse_ema` as the paper; `batch` as its released code; `none`",
        choices=("reverse_ema", "batch", "none"),
        source="FedISCA",
    )
    noise_momentum: float = setting(
        0.9, "momentum of its BatchNorm statistics", low=0.0, high=0.9999, source="FedISCA"
    )
    temperature: float = setting(20.0, "temperature of the distillation", above=0.0, source="FedISCA")
    lr: float = setting(1e-3, "learning rate of SGD, student", above=0.0, source="FedISCA")
    schedule: str = setting(
        "step",
        "of that rate over all steps; `step`: x0.1 at 50 %, x0.01 at 75 %",
        choices=("step", "cosine", "constant"),
        source="FedISCA",
    )
    momentum: float = setting(0.9, "momentum of SGD, student", low=0.0, high=0.9999, source="FedISCA")
    weight_decay: float = setting(5e-4, "weight decay of SGD, student", low=0.0, source="FedISCA")
    aggregation: str = setting("logits", "how the uploads answer together", choices=AGGREGATIONS)
    student_init: str = setting("random", "where the student starts", choices=STARTS)


@dataclass(frozen=True)
class CoBoostingConfig:
    """Co-Boosting (Dai et al., ICLR 2024)."""

    epochs: int = setting(200, "epochs", low=1, source="Co-Boosting")
    steps: int = setting(30, "generator steps an epoch", low=1, source="Co-Boosting")
    batch_size: int = setting(128, "images a step", low=2, source="Co-Boosting")
    latent: int = setting(256, "length of the generator's input z", low=1, source="Co-Boosting")
    generator_width: int = setting(
        64,
        "channels before the generator's last layer; the layers before have twice as many",
        low=1,
        source="DENSE",
    )
    generator_lr: float = setting(
        1e-3, "learning rate of Adam, generator and z", above=0.0, source="Co-Boosting"
    )
    hardness: float = setting(
        1.0, "exponent h of the hard-sample weight (1 - p_y)^h", low=0.0, source="Co-Boosting"
    )
    adversarial: float = setting(1.0, "weight of the adversarial term", low=0.0, source="Co-Boosting")
    adversarial_temperature: float = setting(
        3.0, "temperature of the adversarial term", above=0.0, source="Co-Boosting"
    )
    bn_weight: float = setting(0.0, "weight of the BatchNorm term", low=0.0, source="Co-Boosting")
    weight_step: float = setting(0.01, "step of the ensemble's weights", low=0.0, source="Co-Boosting")
    weight_decay_rate: float = setting(
        0.99, "factor of that step an epoch", above=0.0, high=1.0, source="Co-Boosting"
    )
    perturbation: float = setting(
        8 / 255,
        "size of the on-the-fly hard-sample step, in normalised pixels",
        low=0.0,
        source="Co-Boosting",
    )
    lr: float = setting(0.01, "learning rate of SGD, student, cosine", above=0.0, source="Co-Boosting")
    momentum: float = setting(0.9, "momentum of SGD, student", low=0.0, high=0.9999, source="Co-Boosting")
    weight_decay: float = setting(1e-4, "weight decay of SGD, student", low=0.0, source="Co-Boosting")
    temperature: float = setting(4.0, "temperature of the distillation", above=0.0, source="Co-Boosting")
    clip: float = setting(10.0, "largest norm of a gradient", above=0.0, source="Co-Boosting")
    pool: int = setting(
        0, "batches that the pool keeps, the newest; 0 keeps all", low=0, source="Co-Boosting: all"
    )
    augment: bool = setting(
        False, "crop and flip the pool's images at random for the student, as the released code does"
    )
    student_init: str = setting("random", "where the student starts", choices=STARTS)


@dataclass(frozen=True)
class FlowerConfig:
    """Flower's own strategies over many rounds (``method = "flower:FedAvg"`` and so on).

    Where Flower's own default would make a strategy the same as FedAvg, the published value stands here.
    """

    rounds: int = setting(5, "rounds; `client.epochs` is divided over them", low=1)
    proximal_mu: float = setting(
        0.01, "FedProx: weight mu of the proximal term", low=0.0, source="Li et al., 2020: .001-1; Flower: 0"
    )
    server_lr: float = setting(1.0, "FedAvgM: learning rate of the server", above=0.0, source="Flower")
    server_momentum: float = setting(
        0.9, "FedAvgM: momentum of the server", low=0.0, high=0.9999, source="Hsu et al., 2019; Flower: 0"
    )
    adam_lr: float = setting(0.1, "FedAdam: learning rate of the server", above=0.0, source="Flower")
    adagrad_lr: float = setting(0.1, "FedAdagrad: learning rate of the server", above=0.0, source="Flower")
    yogi_lr: float = setting(0.01, "FedYogi: learning rate of the server", above=0.0, source="Flower")
    beta_1: float = setting(0.9, "FedAdam, FedYogi: momentum", low=0.0, high=0.9999, source="Flower")
    beta_2: float = setting(
        0.99, "FedAdam, FedYogi: momentum of the squares", low=0.0, high=0.9999, source="Flower"
    )
    tau: float = setting(
        1e-3, "FedAdam, FedAdagrad, FedYogi: added to the root of the squares", above=0.0, source="Flower"
    )
    trim: float = setting(
        0.2, "FedTrimmedAvg: share that is cut off at each end", low=0.0, high=0.4999, source="Flower"
    )
    malicious: int = setting(0, "Krum: clients that are taken to be malicious", low=0, source="Flower")
    q: float = setting(0.1, "QFedAvg: fairness; 0 is near FedAvg", low=0.0, source="Flower")
