"""How large the timed pieces are."""

from __future__ import annotations

from dataclasses import dataclass

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.settings import Scalar

TRAINING = (0.02, 0.9, 5e-4)
"""The reference's learning rate, momentum and weight decay of a client, as `Sizes.config` has them."""
DISTILLATION = (1e-3, 0.9, 5e-4, 0.5, 0.3)
"""... of a personal model, with gamma and delta."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of one measurement; the defaults are the quick preset's.

    Parameters
    ----------
    width : int
        Channels of the networks' first stage.
    members : int
        Models of an ensemble N_k.
    images : int
        Synthetic images B.
    clusters : int
        Clusters K.
    batch : int
        Images of a client's batch.
    steps : int
        Steps of one timed piece: batches, or iterates t.
    training_steps : int
        ... of a client's training, whose steps are short.
    inversion_steps : int
        ... of an inversion with all teachers together, whose beginning and end would weigh too much in fewer.
    clients, iterations, client_images, epochs : int
        Of the whole cell: N, T, images of one client, and epochs of both client stages.
    student_lr : float
        eta_G of stage 2.
    """

    width: int = 16
    members: int = 5
    images: int = 128
    clusters: int = 3
    batch: int = 64
    steps: int = 2
    training_steps: int = 10
    inversion_steps: int = 6
    clients: int = 6
    iterations: int = 6
    client_images: int = 128
    epochs: int = 2
    student_lr: float = 1e-3

    @classmethod
    def named(cls, name: str, device: str) -> Sizes:
        """Return the sizes called ``quick`` or ``paper``; ``auto`` is what suits the type of device.

        Raises
        ------
        FedBiCrossError
            For another name.
        """
        known = {"quick": cls(), "paper": PAPER, "auto": cls() if device == "cpu" else PAPER}
        if name not in known:
            raise FedBiCrossError(f"--sizes {name!r} is unknown; there are {', '.join(known)}")
        return known[name]

    @property
    def spec(self) -> ModelSpec:
        """Return the networks: 3 channels, 8 classes, as BloodMNIST has them."""
        return ModelSpec("resnet18", 8, 3, self.width, "small")

    def config(self, **changes: Scalar) -> RunConfig:
        """Return the paper's mathematics at these sizes; ``client__lr=0.1`` stands for ``client.lr``."""
        settings: dict[str, Scalar] = {
            "model.width": self.width,
            "client.batch_size": self.batch,
            "client.epochs": self.epochs,
            "client.schedule": "constant",
            "client.checkpoint": "last",
            "client.validation_fraction": 0.0,
            "clustering.clusters": self.clusters,
            "partition.clients": self.clients,
            "teacher.aggregation": "logits",
            "teacher.scope": "cluster",
            "teacher.noise_window": 0,
            "inversion.iterations": self.iterations,
            "inversion.batch_size": self.images,
            "inversion.lr": 0.05,
            "inversion.labels": "balanced",
            "inversion.tv": "norm",
            "inversion.tv_weight": 2.5e-5,
            "inversion.bn_weight": 10.0,
            "inversion.bn_models": "sum",
            "cross_cluster.temperature": 20.0,
            "cross_cluster.weight_gradient": "none",
            "cross_cluster.lr": self.student_lr,
            "cross_cluster.schedule": "constant",
            "cross_cluster.student_init": "random",
            "cross_cluster.replay_fraction": 1.0,
            "cross_cluster.replay_order": "in_order",
            "cross_cluster.batch_size": 0,
            "cross_cluster.normalisation": "source",
            "cross_cluster.sweeps": 1,
            "personal.epochs": self.epochs,
            "personal.lr": 1e-3,
            "personal.schedule": "constant",
            "personal.gamma": 0.5,
            "personal.delta": 0.3,
            "personal.replay": 0.0,
        }
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return RunConfig.from_flat({**settings, **named})


PAPER = Sizes(
    width=64,
    images=256,
    batch=128,
    steps=50,
    training_steps=50,
    inversion_steps=50,
    clients=5,
    iterations=50,
    client_images=2744,
)
"""The paper's networks and batches, for an accelerator; T is 500 there, and a cell's time grows with it."""
