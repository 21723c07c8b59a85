"""The method that docs/extending.md adds is a method: it runs from end to end, and does what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from snippets import blocks

from fedbicross_flwr.artifacts import read_tensors
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.methods import METHODS
from fedbicross_flwr.methods.protocol import Method

SMALL: dict[str, Any] = {
    "method": "clustered-fedavg", "data.phantom_train": 96, "data.phantom_test": 24, "partition.clients": 3,
    "partition.alpha": float("inf"), "model.width": 2, "client.epochs": 1, "client.batch_size": 16,
    "clustering.clusters": 2, "clustering.num_probes": 8, "personal.epochs": 1, "runtime.device": "cpu",
}  # fmt: skip


def test_the_example_runs_and_averages_each_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(block.text for block in blocks("python") if block.page.name == "extending.md")
    names: dict[str, Any] = {"__name__": "fedbicross_flwr.methods.clustered_fedavg"}
    exec(compile(source, "clustered_fedavg.py", "exec"), names)
    entry = Method("FedAvg-1 in clusters", names["clustered_fedavg"], fine_tuned, "..., fine-tuned")
    monkeypatch.setitem(cast(dict[str, Method], METHODS), "clustered-fedavg", entry)
    run_in_process(RunConfig.from_flat(SMALL), tmp_path / "run")

    rows = [row["name"] for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]]
    assert rows[-2:] == ["FedAvg-1 in clusters", "..., fine-tuned"]
    clustering = json.loads((tmp_path / "run" / "clustering.json").read_text())
    assert clustering["clusters"] == 2
    alone = next(k for k in (0, 1) if clustering["assignment"].count(k) == 1)
    client = clustering["assignment"].index(alone)
    shipped = read_tensors(tmp_path / "run" / "models" / f"cluster-{alone}.safetensors")[0]
    upload = read_tensors(tmp_path / "run" / "uploads" / f"client-{client:02d}.safetensors")[0]
    assert all(torch.equal(shipped[name], upload[name]) for name in upload)
