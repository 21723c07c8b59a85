"""What stands between one of Flower's strategies and the nodes, so that the strategy runs as it is.

The strategy is given the arrays that its arithmetic suits, and nothing else; clients are sent whole models.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.models import StateDict
from fedbicross_flwr.models.checks import tensor_problem
from fedbicross_flwr.runs.record import ClientRecord
from fedbicross_flwr.uploads import check_upload, payload_bytes
from server_app.strategy import OneShot, wait_for_nodes

if TYPE_CHECKING:
    from flwr.supercore.run import Run


@dataclass
class RoundsGrid(Grid):
    """A grid as a strategy sees it: the nodes still in the run, and replies it can do arithmetic on.

    Parameters
    ----------
    grid : Grid
        Flower's own.
    one_shot : OneShot
        Knows the run, and which client answered, failed or refused; one that did is left out from then on.
    state : StateDict
        The global model, at first the shared initial one. Types stay as they are here: strategies that
        compute in float64 keep their own precision, and what travels is cast back.
    names : frozenset of str
        Arrays that the strategy sees. The others are kept here: the sample-weighted mean of the clients'
        (integers: their maximum), as FedAvg-1 does.
    """

    grid: Grid
    one_shot: OneShot
    state: StateDict
    names: frozenset[str]
    seconds: list[float] = field(default_factory=list)
    nodes: dict[int, int] = field(default_factory=dict)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of all clients, and after the first round of those still in.

        A strategy waits without end for nodes that it misses, so this waits for them, once and not for ever.
        """
        if not self.nodes:
            wanted = self.one_shot.server.data.partition.num_clients
            return wait_for_nodes(self.grid, wanted, self.one_shot.node_timeout)
        return [node for client, node in sorted(self.nodes.items()) if not self.one_shot.is_out(client)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send each node the whole model; return the replies in the order of the clients' numbers.

        Raises
        ------
        FedBiCrossError
            When no client sent a usable model.
        """
        asked = list(messages)
        if not asked:  # evaluation, which is not done at the clients
            return []
        start = time.perf_counter()
        self.state = self.merged(cast(ArrayRecord, asked[0].content["arrays"]))
        config = cast(ConfigRecord, asked[0].content["config"])
        content = RecordDict({"arrays": ArrayRecord(dict(self.state)), "config": config})
        kind = f"{MessageType.TRAIN}.local"
        sent = [self.one_shot.message(content, message.metadata.dst_node_id, kind) for message in asked]
        taken = self.one_shot.take(self.grid.send_and_receive(sent, timeout=timeout))
        states = {client: self.accepted(client, message) for client, message in taken.items()}
        usable = {client: state for client, state in states.items() if state is not None}
        self.seconds.append(time.perf_counter() - start)
        if not usable:
            reasons = sorted({record.reason for record in self.one_shot.server.clients.values()})
            raise FedBiCrossError(f"no client sent a usable model: {'; '.join(reasons)}")
        weights = [float(samples_of(taken[client])) for client in usable]
        self.state = average_states(list(usable.values()), weights)
        return [self.for_strategy(taken[client], state) for client, state in usable.items()]

    def accepted(self, client: int, message: Message) -> StateDict | None:
        """Return a client's arrays and note what travelled; a bad model leaves the client out."""
        server = self.one_shot.server
        state = dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
        samples = samples_of(message)
        record = server.clients.setdefault(client, ClientRecord(client))
        record.num_samples = samples
        record.bytes_received += payload_bytes(self.state)
        record.bytes_sent += payload_bytes(state)
        try:
            check_upload(client, state, samples, server.spec)
        except FedBiCrossError as error:
            self.one_shot.leave_out(client, str(error))
            return None
        self.nodes[client] = message.metadata.src_node_id
        return state

    def for_strategy(self, message: Message, state: StateDict) -> Message:
        """Return a reply with what a strategy expects: one record of arrays, and one of metrics."""
        reply = copy.copy(message)
        arrays = ArrayRecord({name: tensor for name, tensor in state.items() if name in self.names})
        reply.content = RecordDict({"arrays": arrays, "metrics": message.content["metrics"]})
        return reply

    def merged(self, arrays: ArrayRecord) -> StateDict:
        """Return the whole model: the strategy's arrays, and those that are kept beside it.

        Raises
        ------
        FedBiCrossError
            When the strategy's step left the numbers.
        """
        own = arrays.to_torch_state_dict()
        whole = {
            name: own[name].to(kept.dtype) if name in self.names else kept
            for name, kept in self.state.items()
        }
        problems = (tensor_problem(name, whole[name], kept) for name, kept in self.state.items())
        if problem := next(filter(None, problems), ""):
            raise FedBiCrossError(
                f"{self.one_shot.server.config.method} went astray in round {len(self.seconds)}: {problem}; "
                "lower the server's learning rate in the section flower, or client.lr"
            )
        return whole

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        """Return Flower's run."""
        return self.grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on."""
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return self.grid.pull_messages(message_ids)


def samples_of(message: Message) -> int:
    """Return how many images a client says that it has."""
    return int(
        cast(int, cast(Mapping[str, object], cast(MetricRecord, message.content["metrics"]))["num-examples"])
    )
