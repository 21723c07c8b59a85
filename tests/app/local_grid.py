"""A Flower Grid whose nodes are calls of the ClientApp in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity
from no_grid import NoGrid

from client_app.app import app as client_app
from fedbicross_flwr.config import RunConfig
from server_app.app import app as server_app

Change = Callable[[int, int, Message], Message | None]
"""``change(round, client, reply)``: what arrives at the server instead; None loses it."""

RUN_ID = 7


def node_config(client: int) -> dict[str, bool | float | int | str]:
    """What Flower's simulation tells a node."""
    return {"partition-id": client}


class LocalGrid(NoGrid):
    """Delivers each message to the ClientApp at once; replies arrive in the opposite order.

    Node ids run against the clients' numbers, so that nothing can take the one for the other.
    """

    def __init__(self, config: RunConfig, clients: int, change: Change | None = None):
        self.nodes = {1000 - 10 * client: client for client in range(clients)}
        self.config = config
        self.change = change or (lambda _round, _client, reply: reply)
        self.rounds: list[list[Message]] = []
        self.replies: list[list[Message]] = []
        self.states = {node: RecordDict() for node in self.nodes}

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        if not sent:  # Flower asks for evaluation after each round, and there is none
            return []
        self.rounds.append(sent)
        self.replies.append([])
        arrived = []
        for message in sent:
            client = self.nodes[message.metadata.dst_node_id]
            self.replies[-1].append(self.deliver(message, client))
            changed = self.change(len(self.rounds), client, self.replies[-1][-1])
            if changed is not None:
                arrived.append(changed)
        return arrived[::-1]

    def deliver(self, message: Message, client: int) -> Message:
        """Do what a node does: call the ClientApp; an exception becomes an error reply."""
        node = message.metadata.dst_node_id
        context = Context(RUN_ID, node, node_config(client), self.states[node], dict(self.config.flat()))
        try:
            return client_app(message, context)
        except Exception as error:
            return error_reply(message, f"{type(error)}:<'{error}'>")


def error_reply(message: Message, reason: str) -> Message:
    """The reply of a node whose ClientApp raised."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


@contextmanager
def identity() -> Iterator[None]:
    """Messages carry the identity of the process's task, which Flower's own processes set at their start."""
    former = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, 1, 1
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = former


def run_app(config: RunConfig, grid: LocalGrid) -> None:
    """Run the ServerApp over a grid."""
    with identity():
        server_app(grid, Context(RUN_ID, 1, {}, RecordDict(), dict(config.flat())))


def arrays_of(message: Message) -> dict[str, ArrayRecord]:
    """The array records that a message carries, by name."""
    if not message.has_content():
        return {}
    return {name: record for name, record in message.content.items() if isinstance(record, ArrayRecord)}
