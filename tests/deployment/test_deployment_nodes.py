"""Answers are pulled side by side: none waits for another, and none is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from flwr.app import Message, RecordDict
from no_grid import NoGrid
from sites_grid import identify, in_its_own_name, unavailable

from server_app.nodes import GONE, Node, Nodes, is_lost

STALLED, OTHER = Node(1001), Node(1002)


class StallingGrid(NoGrid):
    """Answers the question of one node when that is allowed, and says of others what has come."""

    def __init__(self) -> None:
        self.is_free = threading.Event()
        self.come: set[str] = set()
        self.questions: dict[str, Message] = {}
        self.pulled: list[str] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            ids.append(str(message.metadata.dst_node_id))
            self.questions[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        self.pulled.append(message_id)
        time.sleep(0.02)  # as on a real line
        if message_id == str(STALLED.id):
            self.is_free.wait(60)
        return [unavailable(self.questions[message_id])] if message_id in self.come else []


@pytest.fixture
def grid() -> Iterator[StallingGrid]:
    identify()
    grid = StallingGrid()
    yield grid
    grid.is_free.set()


def ask_both(grid: StallingGrid) -> Nodes:
    nodes = Nodes(grid)
    for node in (STALLED, OTHER):
        nodes.ask(node, RecordDict(), "train", 60.0)
    return nodes


def answered(nodes: Nodes, patience: float) -> list[int]:
    return [node.id for node, _ in nodes.answers(patience)]


def test_an_answer_is_dealt_with_while_an_earlier_one_stalls(grid: StallingGrid) -> None:
    nodes = ask_both(grid)
    grid.come = {str(STALLED.id), str(OTHER.id)}
    answers = nodes.answers(5.0)
    assert next(answers)[0].id == OTHER.id
    grid.is_free.set()
    assert [node.id for node, _ in answers] == [STALLED.id]
    assert not nodes.waiting and not nodes.pulls


def test_who_has_not_answered_is_looked_for_at_every_look(grid: StallingGrid) -> None:
    nodes = ask_both(grid)
    for look in range(1, 4):
        assert answered(nodes, 0.2) == []
        assert grid.pulled.count(str(OTHER.id)) == look
    assert grid.pulled.count(str(STALLED.id)) == 1
    grid.come = {str(OTHER.id)}
    assert answered(nodes, 0.2) == [OTHER.id]


def test_an_empty_answer_of_an_earlier_look_is_pulled_again_at_this_one(grid: StallingGrid) -> None:
    nodes = ask_both(grid)
    assert answered(nodes, 0.2) == []
    under_way = nodes.pulls[str(STALLED.id)]
    grid.is_free.set()
    assert under_way.result(10) == []
    grid.come = {str(STALLED.id)}
    assert answered(nodes, 0.2) == [STALLED.id]


@pytest.mark.parametrize("code", GONE)
def test_only_what_flower_says_itself_is_a_loss(grid: StallingGrid, code: int) -> None:
    ask_both(grid)
    question = grid.questions[str(OTHER.id)]
    assert is_lost(OTHER, unavailable(question, code))
    assert not is_lost(OTHER, in_its_own_name(unavailable(question, code), OTHER.id))
