"""A deployment: the two rounds as windows in time, through which sites come and go.

Round 1 ends when every site has answered, or its window has: then the method runs with who is there. Round 2
ships each site its model when it is connected, a late one after its own upload.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid

from fedbicross_flwr.centre.server import SiteServer
from fedbicross_flwr.errors import FedBiCrossError, MachineError, harmless
from server_app.nodes import ATTEMPTS, BROKEN_OFF, PATIENCE, Node, Nodes, is_lost
from server_app.site_replies import refusal_in, scores_in, site_in, upload_in

LAST_LOOK = 3
"""The last look of a window is that many times as patient as others."""
POLL = 1.0
"""Seconds between two looks at who is connected and what has come."""


class Deployment:
    """Drives a `SiteServer` over a grid.

    Parameters
    ----------
    server : SiteServer
        The run.
    grid : Grid
        Flower's own.
    poll : float
        Seconds between two looks.
    patience : float
        Seconds that an answer is waited for once it has begun to come; see `Nodes.answers`.
    """

    def __init__(
        self, server: SiteServer, grid: Grid, poll: float = POLL, patience: float = PATIENCE
    ) -> None:
        self.server = server
        self.nodes = Nodes(grid, patience)
        self.poll = poll
        self.owners: dict[int, Node] = {}
        self.problem = ""

    def run(self) -> Path:
        """Go through all that is left to do; return the report's path."""
        server = self.server
        if server.outcome is None:
            if server.roster.closed is None:
                left = server.open_uploads()
                self.wait(left, self.ask_for_upload, self.all_answered)
                server.close_uploads()
            log(INFO, "%s upload(s) at hand", len(server.method_uploads()))
            server.roster.enter("method")
            server.learn()
        left = server.open_shipping()
        for node in self.nodes.known.values():
            # Who has uploaded gets its model now; who was refused has to come anew.
            node.settled = node.settled and node.client not in server.uploads
        self.wait(left, self.ask_for_next, self.all_served)
        return server.finish(server.seconds())

    def wait(self, left: float, ask: Callable[[Node, float], None], is_over: Callable[[], bool]) -> None:
        """Ask and listen until all is there or the window ends."""
        end = time.monotonic() + left
        while True:
            remaining = end - time.monotonic()
            for node in filter(self.lets_in, self.nodes.free()):
                ask(node, remaining)
            for node, message in self.nodes.answers():
                self.take(node, message)
            self.server.roster.count(self.nodes.busy())
            if is_over():
                return
            if time.monotonic() > end:
                # What has begun to come in time may be here in a moment.
                for node, message in self.nodes.answers(LAST_LOOK * self.nodes.patience):
                    self.take(node, message)
                return
            time.sleep(min(self.poll, max(end - time.monotonic(), 0.0)))

    def all_answered(self) -> bool:
        """Return whether round 1 can end before its time; with too few uploads it goes on."""
        clients = range(self.server.federation.num_clients)
        return self.server.enough and all(self.server.is_answered(client) for client in clients)

    def all_served(self) -> bool:
        """Return whether round 2 can end before its time."""
        return all(self.server.is_served(client) for client in range(self.server.federation.num_clients))

    # --- who is asked, and what

    def lets_in(self, node: Node) -> bool:
        """Return whether a node is a registered one; another is told so once, and looked up again later."""
        self.read_registry()
        try:
            self.server.registry.site_of(node.id)
        except FedBiCrossError as error:
            if node.told != str(error):
                node.told = str(error)
                self.dismiss(node, str(error))
            return False
        return True

    def read_registry(self) -> None:
        """Read the registry anew; while it cannot be read, what it said before holds."""
        problem = ""
        try:
            self.server.registry.read()
        except FedBiCrossError as error:
            problem = str(error)
        if problem and problem != self.problem:
            self.note(f"the registry stays as it was: {problem}")
        self.problem = problem

    def ask_for_upload(self, node: Node, left: float) -> None:
        """Ask a node who it is, and for its upload unless the server has it.

        It is told whose it is, so that it need not train for days to be refused for its name, and of itself
        alone whether its upload is here; without a registry nobody knows who it is.
        """
        registered = self.server.registry.site_of(node.id)
        names = self.server.federation_names
        received = [one for one in sorted(self.server.uploads) if registered in ("", names[one])]
        config = ConfigRecord({"received": received, "registered-as": registered})
        self.nodes.ask(node, RecordDict({"config": config}), MessageType.TRAIN, left)
        if node.client is not None and node.client not in self.server.uploads:
            self.server.roster.change(node.client, state="asked", reason="")

    def ask_for_next(self, node: Node, left: float) -> None:
        """Ship a node its model; one that has not uploaded, or said who it is, is asked for that."""
        if node.client is None or node.client not in self.server.uploads:
            self.ask_for_upload(node, left)
        elif self.server.is_done(node.client):
            node.settled = True
        else:
            try:
                shipment = self.server.shipment(node.client)
            except MachineError:
                raise
            except FedBiCrossError as error:
                self.leave_out(node.client, str(error))
                self.turn_away(node, str(error))
                return
            content = RecordDict({"config": ConfigRecord({}), "arrays": ArrayRecord(dict(shipment.model))})
            if shipment.replay is not None:
                content["replay"] = ArrayRecord(shipment.replay.tensors())
            self.nodes.ask(node, content, f"{MessageType.TRAIN}.personalise", left)

    # --- what comes back

    def take(self, node: Node, message: Message | str) -> None:
        """Take one answer; whatever is wrong with it concerns its sender alone."""
        if isinstance(message, str):
            self.turn_away(node, message)
            return
        if is_lost(node, message):
            self.take_loss(node, message.error.reason or "no reason given")
            return
        if message.has_error():
            self.take_failure(node, message.error.reason or "no reason given")
            return
        node.failures = 0
        try:
            client = site_in(message, self.server.federation_names)
            reason = refusal_in(message)
            if client is not None:
                self.read_registry()
                self.server.registry.check(node.id, self.server.site(client).site)
        except FedBiCrossError as error:
            self.turn_away(node, str(error))
            return
        if client is None:
            node.settled = True
            self.note(f"node {node.id} is left out: {reason or 'it does not say which site it is'}")
        elif self.is_taken(client, node):
            self.put_behind(node, client)
        else:
            self.owners[client], node.client = node, client
            self.take_from(client, node, message, reason)

    def is_taken(self, client: int, node: Node) -> bool:
        """Return whether another node is the site already, and still there."""
        owner = self.owners.get(client)
        return owner is not None and owner is not node and owner.id in self.nodes.online

    def put_behind(self, node: Node, client: int) -> None:
        """Turn a node away for as long as the one that is its site already is there."""
        node.behind = self.owners[client].id
        self.turn_away(
            node,
            f"site-name = {self.server.site(client).site!r} is that of another node, {node.behind}, which is "
            "connected; give each SuperNode the name of its own site. If that is this site's former node, "
            "wait: this one is let in once it is offline",
        )

    def take_from(self, client: int, node: Node, message: Message, reason: str) -> None:
        """Take what a site has sent: a refusal, an upload, scores, or only who it is."""
        server, name = self.server, self.server.site(client).site
        if reason:
            node.settled = True
            if not server.is_done(client):
                self.leave_out(client, reason)
            return
        try:
            if "scores" in message.content:
                if not server.was_shipped(client):
                    raise FedBiCrossError("it sent scores of a model that it was not shipped")
                server.record(client, scores_in(message, server.config.method))
                log(INFO, "site %s is done", name)
                node.settled = True
                return
            upload = upload_in(message, server.upload_bytes)
        except MachineError:  # such as a full disk of the centre's, for which no site is to blame
            raise
        except FedBiCrossError as error:
            self.leave_out(client, str(error))
            self.turn_away(node, str(error))
            return
        if upload is not None and client not in server.uploads:
            server.accept(client, upload.num_samples, upload.state, upload.said)
            if client not in server.uploads:
                self.turn_away(node, server.site(client).reason)
                return
            log(INFO, "site %s has uploaded (%s of %s)", name, len(server.uploads), len(self.server.clients))
        # In round 2 it is shipped its model at the next look.
        node.settled = server.outcome is None

    def take_loss(self, node: Node, said: str) -> None:
        """Note that a reply broke off on its way; it is asked for again, as one lost with its node."""
        who = self.name_of(node)
        if not self.nodes.is_free(node) or self.has_all(node):  # it began anew, and was asked anew
            log(INFO, "%s is not asked again for what was lost: %s", who, harmless(said))
            return
        if BROKEN_OFF not in said:  # gone, or the question was too old
            log(INFO, "%s is asked again: %s", who, harmless(said))
            return
        node.lost += 1
        reason = f"what {who} sent broke off on its way, and is asked for again"
        if node.lost == 1:
            self.note(reason)
        else:
            log(WARNING, "%s (%s times by now)", reason, node.lost)

    def has_all(self, node: Node) -> bool:
        """Return whether all is here that a node's site was asked for: its upload, its model's scores."""
        if node.client is None or node.client not in self.server.uploads:
            return False
        return self.server.is_done(node.client) or not self.server.was_shipped(node.client)

    def name_of(self, node: Node) -> str:
        """Return what a node is called: its site's name, as it said or as it is registered, or its number."""
        if node.client is not None:
            return f"site {self.server.site(node.client).site}"
        try:
            name = self.server.registry.site_of(node.id)
        except FedBiCrossError:  # put out a moment ago
            name = ""
        return f"site {name}" if name else f"node {node.id}"

    def take_failure(self, node: Node, said: str) -> None:
        """Note that a node's ClientApp failed; it is asked again, but not for ever."""
        node.failures += 1
        reason = harmless(f"its ClientApp failed ({said.splitlines()[0][:200]})")
        if node.failures < ATTEMPTS:
            log(WARNING, "node %s is asked again: %s", node.id, reason)
            return
        node.settled = True
        if node.client is not None:
            self.leave_out(node.client, reason)
        else:
            self.note(f"node {node.id} is left out: {reason}")

    def leave_out(self, client: int, reason: str) -> None:
        """Go on without a site and say so."""
        log(WARNING, "site %s is left out: %s", self.server.site(client).site, harmless(reason))
        self.server.refuse(client, reason)

    def turn_away(self, node: Node, reason: str) -> None:
        """Do without what a node sent, and tell it why."""
        node.settled = True
        self.dismiss(node, reason)

    def dismiss(self, node: Node, reason: str) -> None:
        """Say here and to the node why the run does without it."""
        self.note(f"node {node.id} is turned away: {reason}")
        self.nodes.tell(node, harmless(reason))

    def note(self, text: str) -> None:
        """Say something here and in the run's folder."""
        log(WARNING, harmless(text))
        self.server.progress.note(harmless(text))
