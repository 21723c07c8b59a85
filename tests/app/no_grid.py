"""A Flower Grid that does nothing: those of the tests replace what their part of the app calls."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run


class NoGrid(Grid):
    """Every call fails the test."""

    def set_run(self, run: Run) -> None:
        raise AssertionError("set_run was called")

    @property
    def run(self) -> Run:
        raise AssertionError("run was read")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise AssertionError("create_message was called")

    def get_node_ids(self) -> Iterable[int]:
        raise AssertionError("get_node_ids was called")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise AssertionError("push_messages was called")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise AssertionError("pull_messages was called")

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise AssertionError("send_and_receive was called")
