"""The ClientApp: round 1 trains and uploads, round 2 distils and answers with scores alone.

What leaves a client is written down here and nowhere else: in round 1 the arrays of f_i, how many images
it was trained on, and its accuracy on the client's validation images, with ``clustering.by = "pacfl"`` also
the subspaces of its images; in round 2 scores. What Flower's own strategies are sent in their many rounds is
written in `client_app.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client_app.rounds import local_round
from fedbicross_flwr.client import ClientImages, first_round, second_round, subspace_of
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import FederatedData, open_data
from fedbicross_flwr.methods.flower_rounds import is_flower
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.run_folder import RunFolder
from fedbicross_flwr.shipment import Replay, Shipment
from fedbicross_flwr.site_store import SiteStore
from fedbicross_flwr.training import ClientTask

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Round 1: train f_i, keep a copy at the site, upload it once."""
    return answer(message, context, upload)


@app.train("personalise")
def personalise(message: Message, context: Context) -> Message:
    """Round 2: distil the cluster model into a personal one; only scores leave."""
    return answer(message, context, distil)


@app.train("local")
def local(message: Message, context: Context) -> Message:
    """One of many rounds, for Flower's own strategies: train the received model, answer with its arrays."""
    return answer(message, context, train_received)


def answer(
    message: Message, context: Context, work: Callable[[Message, Context, int], RecordDict]
) -> Message:
    """Do the work and reply; a mistake that the site can mend is told to the server in one line.

    An exception would reach the server as "the ClientApp failed", without a reason and without saying
    which client it was.
    """
    client = int(context.node_config["partition-id"])
    try:
        content = work(message, context, client)
    except FedBiCrossError as error:
        content = RecordDict({"refusal": ConfigRecord({"reason": str(error)})})
    content["client"] = MetricRecord({"client": client})
    return Message(content, reply_to=message)


def upload(message: Message, context: Context, client: int) -> RecordDict:
    """Train, unless the server says that it has this client's upload from before an interruption."""
    received = cast(list[int], config_of(message).get("received", []))
    if client in received:
        return RecordDict()
    images, task, store = open_client(message, context, client)
    model = first_round(images, task, store)
    metrics = MetricRecord(
        {"num-examples": len(images.train), "validation-accuracy": model.best_validation_accuracy}
    )
    content = RecordDict({"arrays": ArrayRecord(cast(Any, model.state)), "metrics": metrics})
    if (subspace := subspace_of(images, task)) is not None:
        content["subspace"] = ArrayRecord({"subspace": subspace})
    return content


def distil(message: Message, context: Context, client: int) -> RecordDict:
    """Personalise the cluster model that the message carries."""
    images, task, store = open_client(message, context, client)
    cluster = cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict()
    if is_flower(task.config.method):
        first_round(images, task, store)  # many rounds upload no f_i; the controls are made of it
    replay = None
    if "replay" in message.content:
        replay = Replay.of(cast(ArrayRecord, message.content["replay"]).to_torch_state_dict())
    scores = second_round(images, Shipment(dict(cluster), replay), task, store)
    flat: dict[str, int | float | list[int] | list[float]] = {
        f"{row}/{protocol}/{metric}": value
        for row, protocols in scores.items()
        for protocol, metrics in protocols.items()
        for metric, value in metrics.items()
    }
    return RecordDict({"scores": MetricRecord(flat)})


def train_received(message: Message, context: Context, client: int) -> RecordDict:
    """Do one of many rounds."""
    images, task, _ = open_client(message, context, client)
    return local_round(message, images, task)


def open_client(
    message: Message, context: Context, client: int
) -> tuple[ClientImages, ClientTask, SiteStore]:
    """Open a simulated client's images and its own directory inside the run's folder."""
    config = RunConfig.from_flat(context.run_config)
    folder = RunFolder(Path(str(config_of(message)["folder"])))
    source = open_data(config)
    partition = Partition.load(folder.path / "partition.json")
    spec = ModelSpec.of(config, source.info.num_classes, source.info.channels)
    progress = EventLog(folder.path / "progress.jsonl")
    task = ClientTask(client, spec, config, Compute.of(config.runtime), progress)
    images = FederatedData(source, partition).client(client)
    return images, task, SiteStore.of(config, folder.site(client), source.info.class_names)


def config_of(message: Message) -> Mapping[str, Any]:
    """Return the message's configuration."""
    return cast(ConfigRecord, message.content["config"])
