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
from fedbicross_flwr.runs.code_version import code_fingerprint

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
CELL = "phantom-N3-alphainf"
LIST_END = ')\n"""In the order of the tables."""'


def shown(language: str) -> str:
    """Return the page's first block in a language."""
    return next(block.text for block in blocks(language) if block.page.name == "extending.md")


def python(home: Path, *words: str) -> str:
    """Return what Python says with the package of a folder."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    ).stdout


def compare(home: Path, methods: str, out: str, *words: str) -> Path:
    """Make a small comparison of one seed with the package of a folder."""
    asked = (
        "--methods",
        methods,
        "--seeds",
        "1",
        "--config",
        "small.toml",
        "--out",
        out,
        "--jobs",
        "1",
        *words,
    )
    python(home, "-m", "fedbicross_flwr", "compare", *asked)
    return home / out


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
    return compare(home, "clustered-fedavg,fedavg", "runs")


@pytest.fixture(scope="module")
def by_pacfl(compared: Path) -> Path:
    """The folder of a comparison by PACFL's clusters, whose clients the page's method trained."""
    for methods in ("clustered-fedavg", "clustered-fedavg,fedavg"):
        out = compare(compared.parent, methods, "pacfl", "--set", "clustering.by=pacfl")
    return out


def test_the_example_runs_and_averages_each_cluster(compared: Path) -> None:
    run = compared / CELL / "clustered-fedavg" / "seed-0"
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
    assert python(compared.parent, "-c", asked).split()[0] == "clustered-fedavg"


def test_the_example_makes_the_program_another_version(compared: Path) -> None:
    run = compared / CELL / "clustered-fedavg" / "seed-0"
    assert json.loads((run / "run.json").read_text())["versions"]["code"] != code_fingerprint()


def test_the_example_clusters_by_pacfl_too(by_pacfl: Path) -> None:
    run = by_pacfl / CELL / "clustered-fedavg" / "seed-0"
    assert json.loads((run / "clustering.json").read_text())["clusters"] == 2
    assert len([*run.glob("uploads/subspace-*.safetensors")]) == 3
    assert not [*by_pacfl.glob(f"{CELL}/fedavg/seed-0/uploads/subspace-*")]


def test_training_beside_subspaces_is_not_taken_for_training_alone(by_pacfl: Path) -> None:
    asked = (
        "from pathlib import Path; from fedbicross_flwr.compare.collect import collect; "
        "from fedbicross_flwr.compare.wall_time import wall_seconds; "
        "(cell,) = collect(Path('pacfl')).cells; print(*(name for name, _ in wall_seconds(cell)))"
    )
    assert python(by_pacfl.parent, "-c", asked).split() == ["clustered-fedavg"]
