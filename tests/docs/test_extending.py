"""The method that docs/extending.md adds is a method: one file and one line, and it runs and is compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from snippets import blocks

import fedbicross_flwr
from fedbicross_flwr.artifacts import read_tensors

ROOT = Path(fedbicross_flwr.__file__).parents[1]
SMALL = """
data.phantom_train = 96
data.phantom_test = 24
partition.clients = 3
partition.alpha = inf
model.width = 2
client.epochs = 1
client.batch_size = 16
clustering.clusters = 2
clustering.num_probes = 8
personal.epochs = 1
runtime.device = "cpu"
"""
LIST_END = ')\n"""In the order of the tables."""'


def shown(language: str) -> str:
    """Return the page's first block in a language."""
    return next(block.text for block in blocks(language) if block.page.name == "extending.md")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that a copy of the package made, with the page's file and line in it."""
    home = tmp_path_factory.mktemp("own")
    package = home / "fedbicross_flwr"
    shutil.copytree(ROOT / "fedbicross_flwr", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "methods" / "clustered_fedavg.py").write_text(shown("python"), encoding="utf-8")
    names = package / "method_names.py"
    listed = names.read_text(encoding="utf-8")
    assert listed.count(LIST_END) == 1
    names.write_text(listed.replace(LIST_END, f"    {shown('text').strip()}\n{LIST_END}"), encoding="utf-8")
    (home / "small.toml").write_text(SMALL, encoding="utf-8")
    words = ["compare", "--methods", "clustered-fedavg,fedavg", "--seeds", "1", "--config", "small.toml"]
    subprocess.run(
        [sys.executable, "-m", "fedbicross_flwr", *words, "--out", "runs"],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
        check=True,
        timeout=300,
    )
    return home / "runs"


def test_the_example_runs_and_averages_each_cluster(compared: Path) -> None:
    run = compared / "phantom-N3-alphainf" / "clustered-fedavg" / "seed-0"
    rows = [row["name"] for row in json.loads((run / "metrics.json").read_text())["rows"]]
    assert rows[-2:] == ["FedAvg-1 in clusters", "FedAvg-1 in clusters, fine-tuned"]
    clustering = json.loads((run / "clustering.json").read_text())
    assert clustering["clusters"] == 2
    alone = next(k for k in (0, 1) if clustering["assignment"].count(k) == 1)
    client = clustering["assignment"].index(alone)
    shipped = read_tensors(run / "models" / f"cluster-{alone}.safetensors")[0]
    upload = read_tensors(run / "uploads" / f"client-{client:02d}.safetensors")[0]
    assert all(torch.equal(shipped[name], upload[name]) for name in upload)


def test_the_example_stands_in_the_comparison(compared: Path) -> None:
    table = (compared / "comparison.md").read_text(encoding="utf-8")
    lines = [line for line in table.splitlines() if line.startswith("| FedAvg-1")]
    assert [line.split("|")[1].strip() for line in lines] == [
        *("FedAvg-1", "FedAvg-1, fine-tuned"),
        *("FedAvg-1 in clusters", "FedAvg-1 in clusters, fine-tuned"),
    ]
    assert all("not run" not in line for line in lines)


def test_the_example_has_its_line_in_accuracy_by_alpha(compared: Path) -> None:
    asked = "from fedbicross_flwr.compare.figures.by_alpha import SHOWN; print(*SHOWN)"
    home = compared.parent
    said = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.split()[0] == "clustered-fedavg"
