"""Records that are published: the tables come out of them again, and nothing of the machine is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comparison_builder import build_comparison, log_work, set_config
from run_builder import dump, edit

from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.commands import table_text
from fedbicross_flwr.compare.records import export_records
from fedbicross_flwr.errors import FedBiCrossError

CELL = "phantom-N5-alpha0.3"
SECONDS = {"upload round": 100.0, "synthesis": 30.0, "evaluation": 5.0, "total": 170.0}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three methods and two seeds; own data, as `--data` has them."""
    out = build_comparison(tmp_path / "out", variants=("fedavg", "dense", "fedbicross"), seeds=(0, 1))
    for run in out.glob(f"{CELL}/*/*"):
        set_config(run, data__path="/home/rosa/cells.npz", out=str(run), cache=str(out / "cache"))
        edit(run / "run.json", lambda said: said["dataset"].update(source="/home/rosa/cells.npz"))
        log_work(run, SECONDS, range(5), range(5), lasted=160.0)
    return out


@pytest.mark.parametrize("format", ["markdown", "csv", "latex"])
def test_tables_of_the_records_are_those_of_the_runs(out: Path, tmp_path: Path, format: str) -> None:
    written, left_out = export_records(out, tmp_path / "records")
    assert len(written) == 6 and left_out == []
    found, expected = (table_text(CELL, where, format) for where in (tmp_path / "records", out))
    assert found == expected and "170.0" in found, "wall seconds are in the log"


def test_no_path_no_model_and_no_image_is_in_them(out: Path, tmp_path: Path) -> None:
    run = out / CELL / "dense" / "seed-0"
    reason = f"{tmp_path}/out/cells.npz cannot be read; look at /home/rosa/cells.npz"
    edit(run / "run.json", lambda said: said["clients"][2].update(status="failed", reason=reason))
    (run / "models").mkdir(exist_ok=True)
    (run / "models" / "cluster-0.safetensors").write_bytes(b"weights")
    export_records(out, tmp_path / "records")
    files = [file for file in (tmp_path / "records").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".toml"}
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "rosa" not in text and str(tmp_path) not in text, file
    kept = (tmp_path / "records" / CELL / "dense" / "seed-0" / "run.json").read_text(encoding="utf-8")
    assert '"source": "cells.npz"' in kept and "cannot be read" in kept


def test_unfinished_and_failed_runs_are_named_and_left_out(out: Path, tmp_path: Path) -> None:
    (out / CELL / "dense" / "seed-1" / "run.json").unlink()
    (failed := out / CELL / "dafl" / "seed-0").mkdir(parents=True)
    dump(failed / "failed.json", {"error": "it diverged"})
    written, left_out = export_records(out, tmp_path / "records")
    assert len(written) == 5
    assert [line.rpartition("/")[2] for line in left_out] == [
        "seed-0: failed: it diverged",
        "seed-1: not finished",
    ]


def test_a_second_export_adds_runs_and_replaces_those_of_the_same_name(out: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    export_records(build_comparison(tmp_path / "more", variants=("dafl", "dense"), seeds=(0,)), records)
    export_records(out, records)
    (cell,) = collect(records).cells
    assert {(run.variant.name, run.seed) for run in cell.runs} == {
        ("dafl", 0),
        *((name, seed) for name in ("fedavg", "dense", "fedbicross") for seed in (0, 1)),
    }
    found = (records / CELL / "dense" / "seed-0" / "metrics.json").read_bytes()
    assert found == (out / CELL / "dense" / "seed-0" / "metrics.json").read_bytes()


def inside(out: Path) -> Path:
    return out / "records"


def unfinished(out: Path) -> Path:
    for file in out.rglob("run.json"):
        file.unlink()
    return out.parent / "records"


@pytest.mark.parametrize(
    ("prepare", "said"),
    [(inside, "lies in the comparison"), (unfinished, "has no finished run; `fedbicross compare`")],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    out: Path, prepare: Callable[[Path], Path], said: str
) -> None:
    to = prepare(out)
    with pytest.raises(FedBiCrossError, match=said) as caught:
        export_records(out, to)
    assert "\n" not in str(caught.value) and not to.exists()
