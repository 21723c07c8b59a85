"""Which code computes: what is kept must not outlive the code that made it."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.files import expanded

PARTS = (
    *("*.py", "data/*.py", "methods/*.py", "models/*.py", "runs/*.py", "site/*.py"),
    "compare/central.py",
)
"""Modules that shape what is kept, or keep it; reports, tables and a deployment's centre do not."""

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "flwr", "flwr-datasets")
"""What computes besides: torchvision has the blocks of the networks, NumPy draws phantoms, scikit-learn makes
the clusters, SciPy fits temperatures, and Flower has the strategies and deals the images."""


@cache
def code_fingerprint() -> str:
    """Return 16 hexadecimal digits that stand for this package's modules and the releases of `LIBRARIES`."""
    total = hashlib.sha256("|".join(version(library) for library in LIBRARIES).encode())
    home = Path(__file__).parents[1]
    for part in PARTS:
        for file in sorted(home.glob(part)):
            total.update(f"|{file.relative_to(home)}|".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def made_by(config: RunConfig, compute: Compute) -> str:
    """Return what a client's models are tied to besides settings and data.

    A site may renew its software between the rounds: its upload stands, whatever made it. A simulation that
    goes on under other code would mix two.
    """
    arithmetic = f"{compute.device.type}/{compute.precision}"
    return arithmetic if config.is_deployment else f"{arithmetic}/{code_fingerprint()}"


def shared_folder(config: RunConfig) -> Path | None:
    """Return the part of the configured cache that this very code may read and write, if there is a cache."""
    return expanded(Path(config.cache)) / code_fingerprint() if config.cache else None
