"""The one-shot strategy: two rounds of messages around `fedbicross_flwr.server.Server`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from logging import INFO, WARNING
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import disk_is_full
from fedbicross_flwr.server import Server
from fedbicross_flwr.site.store import RowScores
from server_app.nodes import MARGIN

NO_ANSWER = "it did not answer in time"


class OneShot(Strategy):
    """Upload once, learn on the server, ship each client one model.

    Round 1 asks every node to train and upload (``train``). `aggregate_train` hands the uploads to the
    method. Round 2 sends each client the model of its cluster (``train.personalise``); scores come back.

    Parameters
    ----------
    server : Server
        The run. Clients whose upload it already holds are asked for their number only.
    node_timeout : float, default 120.0
        Seconds to wait for all nodes to connect.
    """

    def __init__(self, server: Server, node_timeout: float = 120.0) -> None:
        self.server = server
        self.node_timeout = node_timeout
        self.seconds: dict[str, float] = {}
        self._nodes: dict[int, int] = {}
        self._asked = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one message a node: the request to train, then each client's cluster model."""
        self._asked = time.perf_counter()
        return self.ask_for_uploads(grid) if server_round == 1 else self.ship_models()

    def ask_for_uploads(self, grid: Grid) -> list[Message]:
        """Wait for the nodes and ask each for its upload."""
        wanted = self.server.data.partition.num_clients
        config = ConfigRecord(
            {"folder": str(self.server.folder.path), "received": sorted(self.server.uploads)}
        )
        return [
            self.message(RecordDict({"config": config}), node, MessageType.TRAIN)
            for node in wait_for_nodes(grid, wanted, self.node_timeout)
        ]

    def message(self, content: RecordDict, node: int, kind: str) -> Message:
        """Return a message that lives as long as its reply is waited for; Flower's end after 12 hours."""
        return Message(content, node, kind, ttl=self.server.config.runtime.reply_timeout + MARGIN)

    def ship_models(self) -> list[Message]:
        """Send each client the one model of its cluster, if its node is known.

        After an interruption a client's upload may be at hand though its node did not answer this time: the
        method learns from it, and the client stays left out.
        """
        assert self.server.outcome is not None
        config = ConfigRecord({"folder": str(self.server.folder.path)})
        messages = []
        for client in sorted(self.server.outcome.assignment.keys() & self._nodes.keys()):
            shipment = self.server.shipment(client)
            content = RecordDict({"config": config, "arrays": ArrayRecord(dict(shipment.model))})
            if shipment.replay is not None:
                content["replay"] = ArrayRecord(shipment.replay.tensors())
            messages.append(self.message(content, self._nodes[client], f"{MessageType.TRAIN}.personalise"))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies in the order of the clients' numbers; after round 1, run the method."""
        taken = self.take(replies)
        kind = "upload round" if server_round == 1 else "personalisation round"
        self.seconds[kind] = time.perf_counter() - self._asked
        if server_round == 1:
            self.take_uploads(taken)
            self.server.run_method()
        else:
            for client, message in taken.items():
                self.server.record(client, scores_of(message))
        return None, MetricRecord({"clients": len(taken)})

    def take(self, replies: Iterable[Message]) -> dict[int, Message]:
        """Sort the replies by client; note who refused, failed or did not answer.

        Raises
        ------
        FedBiCrossError
            When a client's disk is full: in a simulation it is the disk of all.
        """
        taken: dict[int, Message] = {}
        failures: dict[int, str] = {}
        for message in replies:
            node = message.metadata.src_node_id
            if message.has_error():
                # Such a reply does not say which client it is; only its node tells that.
                said = message.error.reason or "no reason given"
                failures[node] = f"its ClientApp failed ({said.splitlines()[0]})"
                continue
            if "client" not in message.content:  # a node that does not know which client it is
                failures[node] = reason_in(message)
                continue
            client = int(cast(int, cast(MetricRecord, message.content["client"])["client"]))
            self._nodes[client] = node
            taken[client] = message
        expected = range(self.server.data.partition.num_clients)
        missing = [client for client in expected if client not in taken and not self.is_out(client)]
        for client, reason in self.reasons(missing, failures).items():
            self.leave_out(client, reason)
        for client, message in list(taken.items()):
            if "refusal" in message.content:
                refusal = FedBiCrossError(reason_in(message))
                if disk_is_full(refusal):
                    raise refusal
                self.leave_out(client, str(refusal))
                del taken[client]
        return dict(sorted(taken.items()))

    def reasons(self, missing: Sequence[int], failures: Mapping[int, str]) -> dict[int, str]:
        """Return why each of the missing clients is left out, given what failed at which node.

        Before its first reply nobody knows which node is a client's: what may be its reason is named with
        all others that may be.
        """
        known = {self._nodes[client] for client in missing if client in self._nodes}
        others = sorted({reason for node, reason in failures.items() if node not in known})
        silent = len(missing) - len(known) > sum(node not in known for node in failures)
        either = " or ".join([*others, NO_ANSWER] if silent else others)
        return {
            client: failures.get(self._nodes[client], NO_ANSWER) if client in self._nodes else either
            for client in missing
        }

    def is_out(self, client: int) -> bool:
        """Return whether the run already goes on without this client."""
        record = self.server.clients.get(client)
        return record is not None and bool(record.reason)

    def leave_out(self, client: int, reason: str) -> None:
        """Go on without a client and say so."""
        log(WARNING, "client %s is left out: %s", client, reason)
        self.server.refuse(client, reason)

    def take_uploads(self, taken: Mapping[int, Message]) -> None:
        """Hand the uploads to the server; clients that it holds already sent none."""
        for client, message in taken.items():
            if "arrays" in message.content:
                metrics = cast(MetricRecord, message.content["metrics"])
                state = cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict()
                said = {"validation_accuracy": float(cast(float, metrics["validation-accuracy"]))}
                count = int(cast(int, metrics["num-examples"]))
                self.server.accept(client, count, dict(state), said, subspace_in(message))
        log(INFO, "%s upload(s) at hand", len(self.server.uploads))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: round 2 scores the models where they are."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing."""
        return None

    def summary(self) -> None:
        """Log what this run is."""
        log(INFO, "\t├──> %s client(s)", self.server.data.partition.num_clients)
        log(INFO, "\t└──> run folder %s", self.server.folder.path)


def wait_for_nodes(grid: Grid, wanted: int, timeout: float) -> list[int]:
    """Return the ids of all connected nodes, sorted, once there are `wanted`.

    Raises
    ------
    FedBiCrossError
        When fewer connect in time, or there are more.
    """
    end = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < wanted and time.monotonic() < end:
        time.sleep(0.2)
    if len(nodes) != wanted:
        raise FedBiCrossError(
            f"partition.clients = {wanted}, but {len(nodes)} node(s) are connected; "
            f"start Flower with num-supernodes={wanted}"
        )
    return nodes


def reason_in(message: Message) -> str:
    """Return why a client refuses to take part."""
    return str(cast(ConfigRecord, message.content["refusal"])["reason"])


def subspace_in(message: Message) -> Tensor | None:
    """Return the subspace that PACFL has a client send, if there is one."""
    if "subspace" not in message.content:
        return None
    return cast(ArrayRecord, message.content["subspace"]).to_torch_state_dict().get("subspace")


def scores_of(message: Message) -> RowScores:
    """Return the scores that a client sent, by row and protocol."""
    scores: RowScores = {}
    for key, value in cast(MetricRecord, message.content["scores"]).items():
        row, protocol, metric = key.split("/")
        scores.setdefault(row, {}).setdefault(protocol, {})[metric] = float(cast(float, value))
    return scores
