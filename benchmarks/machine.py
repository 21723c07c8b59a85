"""What figures depend on: the day, the hardware, the versions."""

from __future__ import annotations

import dataclasses
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.sizes import Sizes
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.runs.record import cpu_name, device_name, versions


def about(compute: Compute, sizes: Sizes) -> dict[str, Any]:
    """Return what the figures depend on."""
    found = about_machine(compute)
    found["hardware"]["precision"] = compute.precision
    return {**found, "sizes": dataclasses.asdict(sizes)}


def about_machine(compute: Compute) -> dict[str, Any]:
    """Return what figures depend on whatever they are of: day, hardware and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": {
            "device": device_name(compute),
            "cpu": cpu_name(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        "versions": versions(),
    }
