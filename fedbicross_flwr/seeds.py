"""Random generators derived from (seed, purpose, client, round); there is no global seed.

Every draw of the project comes from a generator made here, so that a result depends on the run's seed
and on *what* is drawn, never on who drew something before: a client gets the same numbers in process,
in a simulation with any number of workers, and at a hospital.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, client: int | None = None, round: int | None = None) -> int:
    """Return a 63-bit seed for one purpose, independent of every other purpose's.

    Parameters
    ----------
    seed : int
        The run's seed.
    purpose : str
        What is drawn, such as ``"partition"`` or ``"inversion/2"``.
    client, round : int, optional
        Set where each client or each round has a stream of its own.
    """
    text = f"{seed}|{purpose}|{client}|{round}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(
    seed: int, purpose: str, client: int | None = None, round: int | None = None
) -> torch.Generator:
    """Return a CPU `torch.Generator`; draw on the CPU and move, so that devices agree."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, client, round))


def numpy_generator(
    seed: int, purpose: str, client: int | None = None, round: int | None = None
) -> np.random.Generator:
    """Return a NumPy generator for the same derivation."""
    return np.random.default_rng(derive_seed(seed, purpose, client, round))
