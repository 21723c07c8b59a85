"""FedBiCross on Flower: one-shot personalised federated learning for medical images.

`load_model` and `RunConfig` are what a notebook starts from. They are imported when they are first asked
for, so that ``import fedbicross_flwr`` costs nothing and does not load PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedbicross_flwr.artifacts import load_model
    from fedbicross_flwr.config import RunConfig

__all__ = ["RunConfig", "__version__", "load_model"]

# As in pyproject.toml, and written out, since Flower runs the package from a bundle that is not installed.
__version__ = "0.1.0"

_HOMES = {"RunConfig": "fedbicross_flwr.config", "load_model": "fedbicross_flwr.artifacts"}


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
