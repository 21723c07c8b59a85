"""How a simulated run shares out this machine: how many clients at once, with how many cores and GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedbicross_flwr.errors import FedBiCrossError

#: More clients at once than this make the start slower (each is a Python with torch) but the run no faster.
MOST_AT_ONCE = 16
#: Clients that share one GPU at a time: each brings a CUDA context of about half a gigabyte.
MOST_PER_GPU = 8


@dataclass(frozen=True)
class Resources:
    """What one simulated run takes of the machine.

    Parameters
    ----------
    num_supernodes : int
        Simulated sites.
    client_cpus : int
        CPU cores, and with them PyTorch threads, of one client; Flower takes whole cores only.
    client_gpus : float
        Share of a GPU that one client takes; 0.0 without a GPU.
    total_cpus, total_gpus : int
        What Ray hands out to clients in all. ``total_cpus // client_cpus`` clients run at once.
    """

    num_supernodes: int
    client_cpus: int
    client_gpus: float
    total_cpus: int
    total_gpus: int

    @property
    def at_once(self) -> int:
        """How many clients run at the same time."""
        return self.total_cpus // self.client_cpus

    def federation_config(self) -> str:
        """Return the value of ``flwr run --federation-config``."""
        return (
            f"num-supernodes={self.num_supernodes} "
            f"client-resources-num-cpus={self.client_cpus} client-resources-num-gpus={self.client_gpus:.4f} "
            f"init-args-num-cpus={self.total_cpus} init-args-num-gpus={self.total_gpus}"
        )


def share_out(clients: int, cpus: int, gpus: int, threads: int = 1) -> Resources:
    """Share `cpus` cores and `gpus` GPUs evenly among as many of the `clients` as can run at once.

    Parameters
    ----------
    clients : int
        Simulated sites.
    cpus, gpus : int
        What this machine has.
    threads : int, default 1
        CPU threads that each client takes: no more clients at once than there are cores for.

    Raises
    ------
    FedBiCrossError
        If `clients` is less than 1.
    """
    if clients < 1:
        raise FedBiCrossError(f"clients is {clients}: a run needs at least 1 client")
    at_once = min(clients, max(cpus // threads, 1), MOST_AT_ONCE, gpus * MOST_PER_GPU or clients)
    client_cpus = cpus // at_once
    # Rounded down: Ray counts in 1/10000 of a GPU, and shares that add up to more than 1 would not fit.
    share = math.floor(10_000 / math.ceil(at_once / gpus)) / 10_000 if gpus else 0.0
    return Resources(clients, client_cpus, share, total_cpus=at_once * client_cpus, total_gpus=gpus)


def fit_resources(clients: int, threads: int = 1) -> Resources:
    """Fit a run with `clients` sites to this machine: as many at once as is useful, cores shared evenly.

    Cores are those this process may use (affinity and container limits count); GPUs are those PyTorch
    sees. See `share_out` for the rule and the error.
    """
    import joblib
    import torch

    return share_out(clients, int(joblib.cpu_count()), torch.cuda.device_count(), threads)
