"""Sites on a Flower Grid in this process: nodes that connect late, die, come back, and are told things."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity
from no_grid import NoGrid

from client_app.app import app as client_app
from fedbicross_flwr.config import RunConfig

SUPERLINK = 1
RUN_ID = 11


@dataclass
class SiteNode:
    """One SuperNode: its configuration, whether it is connected, and what it does to its own replies."""

    id: int
    config: dict[str, Any]
    online: bool = True
    activated: str = "first"
    change: Callable[[Message], Message | None] = lambda reply: reply
    told: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def come_back(self) -> None:
        """Connect again under the same id, as a SuperNode with a key does."""
        self.online, self.activated = True, self.activated + "+"


class SitesGrid(NoGrid):
    """Delivers a message when its answer is pulled, if its node is there then.

    ``script(look)`` is called at every look at the nodes, 1, 2, ...: it makes nodes come and go.
    """

    def __init__(self, config: RunConfig, nodes: list[SiteNode], script: Callable[[int], None] | None = None):
        self.config = config
        self.nodes = {node.id: node for node in nodes}
        self.script = script or (lambda look: None)
        self.looks = 0
        self.pushed: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.replies: list[tuple[int, Message]] = []
        self.turn = Lock()

    def get_node_ids(self) -> Iterable[int]:
        return [info.node_id for info in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        self.looks += 1
        self.script(self.looks)
        return [
            NodeInfo(node_id=node.id, last_activated_at=node.activated)
            for node in self.nodes.values()
            if node.online
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = self.nodes[message.metadata.dst_node_id]
            message_id = f"message-{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.sent.append(message)
            ids.append(message_id)
            if message.metadata.message_type.startswith("query"):
                self.deliver(message, node)
            else:
                node.asked.append(message.metadata.message_type)
                self.pushed[message_id] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        arrived = []
        for message_id in message_ids:
            message = self.pushed.get(message_id)
            if message is None:
                continue
            node = self.nodes[message.metadata.dst_node_id]
            reply = self.deliver(message, node) if node.online else unavailable(message)
            if reply is not None:
                del self.pushed[message_id]
                arrived.append(reply)
        return arrived

    def deliver(self, message: Message, node: SiteNode) -> Message | None:
        """Do what a node does; an exception becomes an error reply, None is a node that is still at work."""
        context = Context(RUN_ID, node.id, node.config, RecordDict(), dict(self.config.flat()))
        try:
            with self.turn:  # all are pulled side by side; one that trains has the machine to itself
                reply = client_app(message, context)
        except Exception as error:
            text = f"{type(error)}:<'{error}'>"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=message)
        if message.metadata.message_type == "query.refused":
            node.told.append(str(message.content["config"]["reason"]))
            return None
        self.replies.append((node.id, reply))
        return node.change(reply)


def unavailable(
    message: Message, code: int = ErrorCode.NODE_UNAVAILABLE, reason: str = "unavailable"
) -> Message:
    """What Flower says in the place of a reply that there is none of: it is the sender, not the node."""
    metadata = Metadata(
        run_id=RUN_ID,
        message_id="",
        src_node_id=SUPERLINK,
        dst_node_id=SUPERLINK,
        reply_to_message_id=message.metadata.message_id,
        group_id="",
        message_type=message.metadata.message_type,
        created_at=0.0,
        ttl=1.0,
    )
    return make_message(metadata=metadata, error=Error(code, reason))


def in_its_own_name(message: Message, node_id: int) -> Message:
    """The same as a reply that the node itself has sent."""
    message.metadata.__dict__["_src_node_id"] = node_id
    return message


def identify() -> None:
    """Messages carry the identity of the process's task, which Flower's own processes set at their start."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SUPERLINK, 1


def node_for(index: int, folder: Path, name: str, **more: str) -> SiteNode:
    """The node of the site with its own folder: images and store."""
    config = {
        "data-path": str(folder / name / "images.npz"),
        "site-name": name,
        "store-path": str(folder / name / "store"),
        **more,
    }
    return SiteNode(1000 - 10 * index, config)
