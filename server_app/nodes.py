"""Nodes that come and go: who is connected, who was asked, and what came back.

A node that died may come back under the same id. Flower delivers a message once, so one that went down with
the node is never answered; the node has to be asked again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from threading import Thread

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

PATIENCE = 5.0
"""Seconds at a look for replies that have begun to come; slower ones come on beside the others."""

MARGIN = 60.0
"""Seconds that a message outlives its window: a reply that is under way when it closes is not an error."""

ATTEMPTS = 3
"""How often a node whose ClientApp fails without a reason is asked."""

GONE = (3, 4, 5)
"""Flower's error codes of a message or reply that was lost with its node (MESSAGE_UNAVAILABLE,
REPLY_MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE): the node is asked again when it is back."""

BROKEN_OFF = "objects are unavailable"
"""What Flower says in the place of a reply whose sender stopped in the middle of it."""

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    DecodeError,
)
"""What Flower's own code and protobuf raise at a reply whose parts do not fit; a connection that fails raises
others."""


@dataclass
class Node:
    """One node.

    Parameters
    ----------
    id : int
        Flower's.
    activated : str
        When it last came, as Flower has it; empty where Flower does not say.
    client : int or None
        The site that it is, once it has said so.
    asked : bool
        Whether an answer of it is waited for.
    settled : bool
        Whether nothing is to be asked of it at the moment.
    failures : int
        How often its ClientApp failed.
    lost : int
        How often a reply of it broke off on the way.
    told : str
        Why it is not asked, though it could be.
    behind : int or None
        The node that is its site already: while that one is connected, this one is not asked.
    """

    id: int
    activated: str = ""
    client: int | None = None
    asked: bool = False
    settled: bool = False
    failures: int = 0
    lost: int = 0
    told: str = ""
    behind: int | None = None


@dataclass
class Nodes:
    """All nodes that were ever seen in this run.

    Parameters
    ----------
    grid : Grid
        Flower's own.
    patience : float
        Seconds at a look for replies that have begun to come.
    """

    grid: Grid
    patience: float = PATIENCE
    known: dict[int, Node] = field(default_factory=dict)
    online: set[int] = field(default_factory=set)
    waiting: dict[str, Node] = field(default_factory=dict)
    pulls: dict[str, Future[list[Message | str]]] = field(default_factory=dict)

    def free(self) -> list[Node]:
        """Look who is connected; return the nodes that can be asked for something, by their ids."""
        infos = sorted(self.grid.get_nodes(), key=lambda info: info.node_id)
        self.online = {info.node_id for info in infos}
        for info in infos:
            node = self.known.setdefault(info.node_id, Node(info.node_id, info.last_activated_at))
            if node.activated != info.last_activated_at:
                # It was away. What it was doing may be lost, and what it refused for may be mended.
                node.activated, node.asked, node.settled = info.last_activated_at, False, False
                node.failures, node.told, node.lost, node.behind = 0, "", 0, None
        for node in self.known.values():
            if node.behind is not None and node.behind not in self.online:
                # As after a change of its key: its site's former node was thought to be there for a while.
                node.behind, node.settled = None, False
        return [self.known[one] for one in sorted(self.online) if self.is_free(self.known[one])]

    def is_free(self, node: Node) -> bool:
        """Return whether a node can be asked for something."""
        return not node.asked and not node.settled

    def busy(self) -> int:
        """Return how many connected nodes have not answered yet."""
        return sum(self.known[one].asked for one in self.online)

    def ask(self, node: Node, content: RecordDict, kind: str, seconds: float) -> None:
        """Send a node a message whose answer is good for some seconds."""
        message = Message(content, node.id, kind, ttl=max(seconds, 0.0) + MARGIN)
        for message_id in self.grid.push_messages([message]):
            if message_id:
                self.waiting[message_id] = node
                node.asked = True

    def tell(self, node: Node, reason: str) -> None:
        """Have a node write into its log why the run does without it; it has nothing to answer."""
        content = RecordDict({"config": ConfigRecord({"reason": reason})})
        self.grid.push_messages([Message(content, node.id, f"{MessageType.QUERY}.refused", ttl=3600.0)])

    def answers(self, patience: float | None = None) -> Iterator[tuple[Node, Message | str]]:
        """Yield the answers that are there; one that was lost, with its node or on its way, is an error.

        All are pulled side by side, and each is dealt with as it comes. Flower hands out an answer whose
        sender has only begun to send it, and then waits for the rest for up to two hours: a site with a slow
        line, or one that means harm, would keep all others waiting, and the windows open. Such an answer is
        left to its thread, and looked for again.

        Flower drops an answer once it is pulled. One that is not dealt with yet lies in memory alone: if the
        server is killed then, its site has to be asked again.

        In the place of one that Flower cannot put together stands what is wrong with it. A node whose answer
        was lost is free again.

        Parameters
        ----------
        patience : float, optional
            Another one than usual.
        """
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        earlier = set(self.pulls)
        under_way = {self.pulls.get(one) or self.start_pull(one): one for one in self.waiting}
        while wait(under_way, max(deadline - time.monotonic(), 0.0), FIRST_COMPLETED).done:
            pull = next(one for one in under_way if one.done())
            message_id = under_way.pop(pull)
            del self.pulls[message_id]
            messages = pull.result()
            if not messages and message_id in earlier:
                # It says what was so at an earlier look; the answer may have come since.
                earlier.remove(message_id)
                under_way[self.start_pull(message_id)] = message_id
            for message in messages:
                node = self.waiting.pop(message_id)
                node.asked = any(one is node for one in self.waiting.values())
                yield node, message

    def start_pull(self, message_id: str) -> Future[list[Message | str]]:
        """Begin to pull the answer to a message; nothing comes of it while there is none."""
        self.pulls[message_id] = Future()
        # A daemon, as the process ends with the run; what Flower waits for ends with its connection.
        Thread(target=self.pull, args=(message_id, self.pulls[message_id]), daemon=True).start()
        return self.pulls[message_id]

    def pull(self, message_id: str, answer: Future[list[Message | str]]) -> None:
        """Pull the answer to a message; a connection that fails is raised where the answer is looked at."""
        try:
            answer.set_result(list(self.grid.pull_messages([message_id])))
        except UNREADABLE as error:
            answer.set_result([f"its reply cannot be put together ({type(error).__name__})"])
        except BaseException as error:
            answer.set_exception(error)


def is_lost(node: Node, message: Message) -> bool:
    """Return whether a message stands for one of a node's that was lost with it, or on its way.

    Flower says so in the SuperLink's name; an error in the node's own is its answer, whatever the code. Only
    a site that means harm writes the other name into its answer: Flower checks what it is sent in, not that.
    """
    is_own = message.metadata.src_node_id == node.id
    return bool(message.has_error() and message.error.code in GONE and not is_own)
