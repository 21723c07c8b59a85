"""A site that was tampered with: what it uploads is spoiled on the way out, the rest of it is the real thing.

Python loads a module of this name from PYTHONPATH at its start. ``FEDBICROSS_TEST_SPOIL`` names the way.
"""

from __future__ import annotations

import os
import sys
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


WAYS = {way.__name__: way for way in (truncated, not_a_number, another_architecture, oversized, enormous)}
MODULE = "flwr.clientapp.client_app"


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
    """Loads Flower's module as ever and spoils it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Take charge of one module."""
        spec = PathFinder.find_spec(name, path) if name == MODULE else None
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
        spoil(module)


if "FEDBICROSS_TEST_SPOIL" in os.environ:
    sys.meta_path.insert(0, Spoiler())
