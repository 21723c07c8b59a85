"""A client's part of the two rounds, as it runs in process, in a simulation and at a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fedbicross_flwr.artifacts import digest
from fedbicross_flwr.calibration import validation_temperature
from fedbicross_flwr.compute import client_work
from fedbicross_flwr.distillation import fine_tune
from fedbicross_flwr.evaluation import score_model
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods import method_named
from fedbicross_flwr.models import StateDict, load_state
from fedbicross_flwr.pacfl import data_subspace
from fedbicross_flwr.runs.code_version import made_by
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.site.store import RowScores, SiteStore, short_hash
from fedbicross_flwr.training import ClientTask, LocalModel, train_client
from fedbicross_flwr.uploads import check_shipment

SERVER_SECTIONS = ("clustering", "inversion", "teacher", "cross_cluster")
"""Settings that no client reads, but for the subspace that PACFL asks for."""


@dataclass(frozen=True)
class ClientImages:
    """A client's own images.

    Parameters
    ----------
    train : LabelledImages
        D_i; its first part serves as local validation.
    tests : mapping of str to LabelledImages
        Test images by protocol: ``global`` and ``local`` in a simulation, ``local`` alone at a site.
    fingerprint : str
        Identifies the data, so that no model of other data is used by mistake.
    """

    train: LabelledImages
    tests: Mapping[str, LabelledImages]
    fingerprint: str


def first_round(images: ClientImages, task: ClientTask, store: SiteStore) -> LocalModel:
    """Train f_i and keep a copy; what was trained before under the same settings is used again."""
    key = upload_key(images, task)
    kept = store.local(key)
    if kept is not None:
        return kept
    with client_work(task.config.runtime):
        model = train_client(images.train, task)
    store.save_local(model, task.spec, key, images.fingerprint)
    return model


def subspace_of(images: ClientImages, task: ClientTask) -> Tensor | None:
    """Return the subspace of the client's images where the clustering needs it, and nothing elsewhere.

    It depends on the images, not only on the model: see `fedbicross_flwr.pacfl`.
    """
    if not task.config.needs_subspaces:
        return None
    with client_work(task.config.runtime):
        return data_subspace(images.train, task.spec.num_classes, task.config.clustering.pacfl_rank)


def second_round(
    images: ClientImages,
    shipment: Shipment,
    task: ClientTask,
    store: SiteStore,
    sent: LocalModel | None = None,
) -> RowScores:
    """Make the shipped model the client's own, keep it, and return scores: only they leave.

    Parameters
    ----------
    sent : LocalModel, optional
        f_i as it was sent, where that was not in this task's arithmetic. Without it f_i is the store's, and
        one that is no longer there is trained again.

    Raises
    ------
    FedBiCrossError
        When the shipment is none of this federation's.
    """
    check_shipment(shipment, task.spec)
    local_key = upload_key(images, task)
    if sent is not None:
        local_key = short_hash(f"{local_key}/{digest(sent.state)}")
    own = sent or first_round(images, task, store)
    key = personal_key(local_key, shipment, images, task)
    kept = store.personal_scores(key, local_key)
    if kept is not None:
        return kept
    method = method_named(task.config.method)
    with client_work(task.config.runtime):
        received = method.receive(images.train, shipment, task)
        personal = method.personalise(images.train, received, own.state, task)
        shipped = {"cluster-model": received.model, "personal": personal}
        scores = {**controls(images, own.state, local_key, task, store), **score_all(shipped, images, task)}
        temperature = validation_temperature(images.train, personal, task)
    store.save_personal(personal, task.spec, scores, key, local_key, temperature)
    return scores


def controls(
    images: ClientImages, own: StateDict, local_key: str, task: ClientTask, store: SiteStore
) -> RowScores:
    """Return the scores of f_i, and of f_i trained on for stage 3's budget; kept ones are used again."""
    personal = task.config.personal
    key = short_hash(
        f"{local_key}/{personal.epochs}/{personal.lr}/{personal.schedule}/{sorted(images.tests)}"
    )
    kept = store.controls(local_key, key)
    if kept is None:
        models = {"local-only": own, "same-budget": fine_tune(images.train, own, task)}
        kept = score_all(models, images, task)
        store.save_controls(kept, local_key, key)
    return kept


def score_all(models: Mapping[str, StateDict], images: ClientImages, task: ClientTask) -> RowScores:
    """Score models on the client's test images, under each protocol that it has."""
    tests = {protocol: part.to(task.compute) for protocol, part in images.tests.items()}
    return {
        row: score_model(task.compute.place(load_state(task.spec, state)), tests, task.compute)
        for row, state in models.items()
    }


def upload_key(images: ClientImages, task: ClientTask) -> str:
    """Return what identifies everything that shaped a client's upload."""
    maker = made_by(task.config, task.compute)
    return short_hash(f"{task.config.upload_fingerprint()}/{images.fingerprint}/{task.client}/{maker}")


def personal_key(local_key: str, shipment: Shipment, images: ClientImages, task: ClientTask) -> str:
    """Return what identifies everything that shaped a client's personal model and its scores.

    The shipment stands for all that the server did: two ways to cluster that find the same clusters ship
    the same.
    """
    settings = {k: v for k, v in task.config.shaping().items() if k.split(".")[0] not in SERVER_SECTIONS}
    reads = short_hash(f"{local_key}/{sorted(settings.items())}/{sorted(images.tests)}")
    return f"{reads}/{task.client}/{shipment.digest()}"
