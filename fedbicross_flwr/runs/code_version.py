"""Which code computes: what is kept for other runs must not outlive the code that made it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import torch

from fedbicross_flwr.config import RunConfig

PARTS = (
    *("*.py", "data/*.py", "methods/*.py", "models/*.py", "runs/*.py", "site/*.py"),
    "compare/central.py",
)
"""Modules that shape what is kept, or keep it; reports, tables and a deployment's centre do not."""


@cache
def code_fingerprint() -> str:
    """Return 16 hexadecimal digits that stand for this package's modules and the release of PyTorch."""
    total = hashlib.sha256(str(torch.__version__).encode())
    home = Path(__file__).parents[1]
    for part in PARTS:
        for file in sorted(home.glob(part)):
            total.update(f"|{file.relative_to(home)}|".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def shared_folder(config: RunConfig) -> Path | None:
    """Return the part of the configured cache that this very code may read and write, if there is a cache."""
    return Path(config.cache) / code_fingerprint() if config.cache else None
