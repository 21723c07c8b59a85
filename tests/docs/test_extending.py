"""The method that docs/extending.md adds is a method: it runs, does what it says, and can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from snippets import blocks

from fedbicross_flwr.artifacts import read_tensors
from fedbicross_flwr.compare import variants
from fedbicross_flwr.compare.plan import cells_of, plan_runs
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


def shown(language: str, number: int = 0) -> str:
    """Return one of the page's blocks."""
    return [block.text for block in blocks(language) if block.page.name == "extending.md"][number]


def test_the_example_runs_and_averages_each_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "fedbicross_flwr.methods.clustered_fedavg"}
    exec(compile(shown("python"), "clustered_fedavg.py", "exec"), names)
    names |= {"Method": Method, "fine_tuned": fine_tuned}
    for name, entry in eval(f"{{{shown('text')}}}", names).items():
        monkeypatch.setitem(cast(dict[str, Method], METHODS), name, entry)
    run_in_process(RunConfig.from_flat(SMALL), tmp_path / "run")

    rows = [row["name"] for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]]
    assert rows[-2:] == ["FedAvg-1 in clusters", "FedAvg-1 in clusters, fine-tuned"]
    clustering = json.loads((tmp_path / "run" / "clustering.json").read_text())
    assert clustering["clusters"] == 2
    alone = next(k for k in (0, 1) if clustering["assignment"].count(k) == 1)
    client = clustering["assignment"].index(alone)
    shipped = read_tensors(tmp_path / "run" / "models" / f"cluster-{alone}.safetensors")[0]
    upload = read_tensors(tmp_path / "run" / "uploads" / f"client-{client:02d}.safetensors")[0]
    assert all(torch.equal(shipped[name], upload[name]) for name in upload)


def test_the_example_stands_in_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = eval(f"({shown('text', 1)})", dict(vars(variants)))
    every = {**variants.VARIANTS, own.name: own}
    monkeypatch.setattr(variants, "VARIANTS", every)
    monkeypatch.setattr(variants, "_ALL", tuple(every.values()))
    named = variants.variants_named("clustered-fedavg,fedavg")
    assert [one.title for one in named] == ["FedAvg-1", "FedAvg-1 in clusters"]
    assert own in variants.variants_named("all")
    runs = plan_runs(SMALL, cells_of(SMALL, [], "", ""), named, 2, tmp_path)
    assert [run.config.method for run in runs] == ["fedavg", "clustered-fedavg"] * 2
    assert runs[1].folder == tmp_path / "phantom-N3-alphainf" / "clustered-fedavg" / "seed-0"
