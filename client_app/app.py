"""The ClientApp: round 1 trains and uploads, round 2 distils and answers with scores alone.

What leaves a client is written down here and nowhere else: in round 1 the arrays of f_i, how many images
the client holds, and its accuracy on those kept for validation, with ``clustering.by = "pacfl"`` also
the subspaces of its images; in round 2 scores; in both the client's number and, of a site, its name. A client
that cannot take part says why, without its paths. What Flower's own strategies are sent in their many rounds
is written in `client_app.rounds`.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.logger import log

from client_app.opened import Opened, config_of, open_site, places_of_client
from client_app.rounds import local_round
from fedbicross_flwr.centre.registry import check_claim
from fedbicross_flwr.client import first_round, second_round, subspace_of
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import FederatedData, open_data, sizes
from fedbicross_flwr.files import shown
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.shipment import Replay, Shipment
from fedbicross_flwr.site.identity import Site
from fedbicross_flwr.site.path_free import path_free
from fedbicross_flwr.site.store import SiteStore
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


@app.query("refused")
def refused(message: Message, context: Context) -> Message:
    """Write into the site's log why the server does without what the site sent."""
    log(ERROR, "error: the server refused this site: %s", config_of(message).get("reason", "no reason given"))
    return Message(RecordDict(), reply_to=message)


Work = Callable[[Message, Opened], RecordDict]


def answer(message: Message, context: Context, work: Work) -> Message:
    """Do the work and reply; a mistake that the site can mend is told to the server in one line.

    The site's own log has the line with its paths. An exception would reach the server as "the ClientApp
    failed", without a reason and without saying which client it was.
    """
    reply = RecordDict()
    try:
        config = RunConfig.from_flat(context.run_config)
        reach = at_site if config.is_deployment else in_simulation
        reach(message, context, config, work, reply)
    except FedBiCrossError as error:
        reply["refusal"] = refusal(str(error), message, context)
    return Message(reply, reply_to=message)


def in_simulation(
    message: Message, context: Context, config: RunConfig, work: Work, reply: RecordDict
) -> None:
    """Do the work of a simulated client, whose number Flower's simulation gives it."""
    if "partition-id" not in context.node_config:
        raise FedBiCrossError(
            "this node has no partition-id, and deployment.sites, which would make it a site, is empty"
        )
    client = int(context.node_config["partition-id"])
    reply["client"] = MetricRecord({"client": client})
    if work is not upload or client not in received(message):
        reply.update(work(message, open_client(message, config, client)))


def at_site(message: Message, context: Context, config: RunConfig, work: Work, reply: RecordDict) -> None:
    """Do the work at a site, which says its name; no fault of the site's machine is told with its paths."""
    reply["site"] = ConfigRecord({"name": str(context.node_config.get("site-name", ""))})
    try:
        site = Site.of(config, context.node_config)
        check_claim(str(config_of(message).get("registered-as", "")), site.name)
        reply["client"] = MetricRecord({"client": site.client})
        if work is not upload or site.client not in received(message):
            reply.update(work(message, open_site(site, config)))
    except FedBiCrossError:
        raise
    except Exception as error:
        log(ERROR, "the work of this site failed", exc_info=True)
        ended = f"an unexpected {type(error).__name__} ended the site's work"
        if isinstance(error, OSError) and error.filename is not None:
            ended = f"a file of the site cannot be used ({error.strerror})"
        raise FedBiCrossError(f"{ended}; the SuperNode's log has the details") from error


def received(message: Message) -> list[int]:
    """Return the clients whose upload the server has, from before an interruption or from another node."""
    return cast(list[int], config_of(message).get("received", []))


def refusal(reason: str, message: Message, context: Context) -> ConfigRecord:
    """Log a reason as it is, and return it as others may read it."""
    log(ERROR, "error: %s", shown(reason))
    return ConfigRecord({"reason": path_free(reason, places_of_client(message, context))})


def upload(message: Message, opened: Opened) -> RecordDict:
    """Train, and answer with the model."""
    images, task = opened.images(), opened.task
    model = first_round(images, task, opened.store)
    metrics = MetricRecord(
        {"num-examples": len(images.train), "validation-accuracy": model.best_validation_accuracy}
    )
    content = RecordDict({"arrays": ArrayRecord(cast(Any, model.state)), "metrics": metrics})
    if (subspace := subspace_of(images, task)) is not None:
        content["subspace"] = ArrayRecord({"subspace": subspace})
    return content


def distil(message: Message, opened: Opened) -> RecordDict:
    """Personalise the cluster model that the message carries."""
    images, task, store = opened.images(), opened.task, opened.store
    cluster = cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict()
    replay = None
    if "replay" in message.content:
        replay = Replay.of(cast(ArrayRecord, message.content["replay"]).to_torch_state_dict())
    scores = second_round(images, Shipment(dict(cluster), replay), task, store)
    if not images.tests:
        log(WARNING, "this site has no test images, so its models are not scored")
    log(INFO, "the personal model is %s", store.folder / "personal.safetensors")
    flat: dict[str, int | float | list[int] | list[float]] = {
        f"{row}/{protocol}/{metric}": value
        for row, protocols in scores.items()
        for protocol, metrics in protocols.items()
        for metric, value in metrics.items()
    }
    return RecordDict({"scores": MetricRecord(flat)})


def train_received(message: Message, opened: Opened) -> RecordDict:
    """Do one of many rounds."""
    return local_round(message, opened.images(), opened.task)


def open_client(message: Message, config: RunConfig, client: int) -> Opened:
    """Open a simulated client's images and its own directory inside the run's folder."""
    folder = RunFolder(Path(str(config_of(message)["folder"])))
    source = open_data(config)
    partition = Partition.load(folder.path / "partition.json", config.partition.clients, sizes(source))
    spec = ModelSpec.of(config, source.info.num_classes, source.info.channels)
    progress = EventLog(folder.path / "progress.jsonl")
    task = ClientTask(client, spec, config, Compute.of(config.runtime), progress)
    data = FederatedData(source, partition)
    store = SiteStore.of(config, folder.site(client), source.info.class_names)
    return Opened(lambda: data.client(client), task, store)
