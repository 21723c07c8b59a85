"""What every one-shot method is: uploads in, models for the clients out.

The server's part is a function of (uploads, task). It touches neither Flower nor files nor the clock:
progress goes to ``task.progress``, and work worth keeping passes through ``task.stages``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor, nn

from fedbicross_flwr.artifacts import digest
from fedbicross_flwr.clustering import Clustering
from fedbicross_flwr.compute import Compute, server_threads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.models import ModelSpec, StateDict, with_tensors
from fedbicross_flwr.parallel import Call, call_here
from fedbicross_flwr.progress import Progress
from fedbicross_flwr.shipment import Replay, Shipment
from fedbicross_flwr.training import ClientTask


@dataclass(frozen=True)
class ClientUpload:
    """What a client sent in round 1.

    Parameters
    ----------
    client : int
        Its number.
    num_samples : int
        How many images it holds, its validation images among them.
    state : StateDict
        f_i, to be read and not written to: see `ServerTask.load`.
    subspace : Tensor, optional
        With ``clustering.by = "pacfl"`` alone: see `fedbicross_flwr.pacfl`.
    """

    client: int
    num_samples: int
    state: StateDict
    subspace: Tensor | None = None

    @cached_property
    def digest(self) -> str:
        """Return the checksum of f_i, which every stage of every cluster is known by."""
        return digest(self.state)


@dataclass(frozen=True)
class StageResult:
    """What a stage gives: tensors by name, and facts that fit into JSON."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Stages(Protocol):
    """Runs the stages of a method; an implementation may keep results and skip what is done."""

    def run(
        self, name: str, kind: str, compute: Callable[[], StageResult], shaped_by: str = ""
    ) -> StageResult:
        """Return the result of the stage `name`; `kind` is what its time counts as.

        `shaped_by` stands for all that shapes the result (`ServerTask.shaped_by`): runs that share a cache
        then take it from one another. Empty keeps the result to this run.
        """


class Unkept:
    """Stages that are computed each time and kept nowhere."""

    def run(
        self, name: str, kind: str, compute: Callable[[], StageResult], shaped_by: str = ""
    ) -> StageResult:
        """Compute the stage."""
        return compute()


class Elsewhere(Protocol):
    """Other processes that take pieces of the server's work, such as `fedbicross_flwr.ray_tasks.RayTasks`."""

    @property
    def count(self) -> int:
        """Return how many pieces at once."""

    @property
    def call(self) -> Call:
        """Return what calls one of them."""


@dataclass(frozen=True)
class ServerTask:
    """What the server's work needs besides the uploads.

    Without `elsewhere` all of it is done in this process.
    """

    spec: ModelSpec
    config: RunConfig
    compute: Compute
    progress: Progress
    stages: Stages = field(default_factory=Unkept)
    elsewhere: Elsewhere | None = None

    @property
    def workers(self) -> int:
        """Return how many clusters are computed on at once: one an accelerator, or one a CPU core."""
        if self.elsewhere is not None:
            return self.elsewhere.count
        return server_threads(self.config.runtime) if self.compute.device.type == "cpu" else 1

    @property
    def call(self) -> Call:
        """Return what calls an independent piece of work, such as one cluster's."""
        return call_here if self.elsewhere is None else self.elsewhere.call

    def shaped_by(self, uploads: Sequence[ClientUpload], sections: Sequence[str], *more: object) -> str:
        """Return what stands for all that shapes a stage: uploads, settings, arithmetic, and `more`.

        `sections` are those of the configuration that the stage reads; `more` is told by its ``repr``.
        """
        settings = {k: v for k, v in self.config.shaping().items() if k.split(".")[0] in sections}
        compute = self.compute
        arithmetic = (compute.device.type, compute.precision, compute.compiled, self.config.seed, self.spec)
        models = [(upload.client, upload.num_samples, upload.digest) for upload in uploads]
        text = repr((models, sorted(settings.items()), arithmetic, more))
        return hashlib.sha256(text.encode()).hexdigest()

    def content(self, tensors: Mapping[str, Tensor]) -> str:
        """Return what stands for these very tensors among `more` of `shaped_by`.

        On an accelerator equal settings do not give equal values. Of several runs that share a cache and are
        at the same stage, each computes its own; what was made of one's must not be taken for another's.
        """
        return digest(tensors) if self.config.cache else ""

    def load(self, state: StateDict) -> nn.Module:
        """Return a network with these weights on the device, frozen and in eval mode.

        On a CPU they are the very ones of `state`, in its layout: with as many uploads as there are clients,
        a copy would double them. A convolution brings them into its own order at each call, whatever theirs.
        So never train it, and never put it into training mode, where BatchNorm layers renew their statistics:
        take ``copy.deepcopy`` of it. A run whose method changed an upload is refused.
        """
        model = with_tensors(self.spec, state)
        if self.compute.device.type != "cpu":
            model = self.compute.place(model)
        return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Inversion:
    """Diagnostics of one inversion: see `fedbicross_flwr.inversion.DIAGNOSTICS`; curves is (T, 6)."""

    round: int
    cluster: int
    curves: Tensor


@dataclass(frozen=True)
class Findings:
    """What a method learned on the way, for the report; parts that it does not have stay empty.

    `weights` is (steps + 1, K, K), from the start on; `synthetic` holds ``(images, labels)`` for each of the
    models, in their order. `aimed` says whether an image was made for its label: DAFL's have none until the
    ensemble answers.
    """

    clustering: Clustering | None = None
    inversions: tuple[Inversion, ...] = ()
    weights: Tensor | None = None
    synthetic: tuple[tuple[Tensor, Tensor], ...] = ()
    aimed: bool = True


@dataclass(frozen=True)
class ServerOutcome:
    """A method's result: models, and which of them each client gets.

    Parameters
    ----------
    models : tuple of StateDict
        One a cluster; a global method has one.
    assignment : mapping of int to int
        Client number to index into `models`.
    replay : Replay, optional
        Synthetic images that every client is sent besides its model.
    """

    models: tuple[StateDict, ...]
    assignment: Mapping[int, int]
    findings: Findings = field(default_factory=Findings)
    replay: Replay | None = None


def as_shipped(data: LabelledImages, shipment: Shipment, task: ClientTask) -> Shipment:
    """Return the shipment."""
    return shipment


@dataclass(frozen=True)
class Method:
    """A one-shot method: what the server does with the uploads, and the clients with its models.

    Parameters
    ----------
    title : str
        As printed.
    serve : callable
        ``serve(uploads, task)`` learns the models; the uploads come in the order of the clients' numbers.
    personalise : callable
        ``personalise(images, shipment, own, task)`` makes a client's personal model on its own images from
        the model it was sent and from f_i, within stage 3's budget.
    personal_title : str
        What the personal model is called in the table.
    kind : {"baseline", "ours"}
        How the table sets it off.
    receive : callable, optional
        ``receive(images, shipment, task)`` is what a client makes of its shipment before it is scored and
        made personal; it is left as it is by default.
    """

    title: str
    serve: Callable[[Sequence[ClientUpload], ServerTask], ServerOutcome]
    personalise: Callable[[LabelledImages, Shipment, StateDict, ClientTask], StateDict]
    personal_title: str
    kind: str = "baseline"
    receive: Callable[[LabelledImages, Shipment, ClientTask], Shipment] = as_shipped
