"""A site that was tampered with: what it uploads is spoiled on the way out, the rest of it is the real thing.

Python loads a module of this name from PYTHONPATH at its start. ``FEDBICROSS_TEST_SPOIL`` names the way.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def truncated(arrays: dict[str, Any]) -> None:
    """Lose the last tensors."""
    for name in sorted(arrays)[-5:]:
        del arrays[name]


def not_a_number(arrays: dict[str, Any]) -> None:
    """Put one NaN into the last layer."""
    arrays["fc.weight"] = arrays["fc.weight"].clone()
    arrays["fc.weight"][0, 0] = float("nan")


def another_architecture(arrays: dict[str, Any]) -> None:
    """Send a wider last layer."""
    import torch

    arrays["fc.weight"] = torch.cat([arrays["fc.weight"]] * 2, dim=1)


def oversized(arrays: dict[str, Any]) -> None:
    """Add 60 MB that nobody asked for."""
    import torch

    arrays["more"] = torch.zeros(15_000_000)


def enormous(arrays: dict[str, Any]) -> None:
    """Send finite numbers that no training leaves."""
    arrays["fc.weight"] = arrays["fc.weight"] * 1e30


def stalled(module: Any) -> None:
    """Have the SuperNode send the first part of an upload, and then nothing for an hour."""
    push = module.push_object_contents_from_iterable

    def push_one(contents: Any, *arguments: Any, **options: Any) -> None:
        parts = list(contents)
        push(parts[:1], *arguments, **options)
        time.sleep(3600)

    module.push_object_contents_from_iterable = push_one


WAYS = {way.__name__: way for way in (truncated, not_a_number, another_architecture, oversized, enormous)}


def spoil(module: ModuleType) -> None:
    """Wrap the call that every message of a site goes through."""
    from flwr.app import ArrayRecord

    whole = module.ClientApp.__call__

    def call(self: Any, message: Any, context: Any) -> Any:
        reply = whole(self, message, context)
        if reply.has_content() and "arrays" in reply.content:
            arrays = dict(reply.content["arrays"].to_torch_state_dict())
            WAYS[os.environ["FEDBICROSS_TEST_SPOIL"]](arrays)
            reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    module.ClientApp.__call__ = call


class Spoiler(MetaPathFinder, Loader):
    """Loads one of Flower's modules as ever and spoils it."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self.name, self.change = name, change

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Take charge of one module."""
        spec = PathFinder.find_spec(name, path) if name == self.name else None
        if spec is not None and spec.loader is not None:
            self.inner = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let the real loader make it."""
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load it, then spoil it."""
        self.inner.exec_module(module)
        self.change(module)


way = os.environ.get("FEDBICROSS_TEST_SPOIL")
if way == stalled.__name__:
    sys.meta_path.insert(0, Spoiler("flwr.supernode.start_client_internal", stalled))
elif way is not None:
    sys.meta_path.insert(0, Spoiler("flwr.clientapp.client_app", spoil))
