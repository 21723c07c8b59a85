"""Records that are published: the tables come out of them again, and nothing of the machine is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparison_builder import build_comparison, log_work, set_config
from run_builder import dump, edit

from fedbicross_flwr.compare import records
from fedbicross_flwr.compare.collect import collect
from fedbicross_flwr.compare.commands import table_text
from fedbicross_flwr.compare.records import write_records
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.runs.folder import IDENTITY

CELL, CELLS = "cells-N5-alpha0.3", (("cells", 5, 0.3),)
DATA = "/home/rosa meier/cells.npz"
SECONDS = {"upload round": 100.0, "synthesis": 30.0, "evaluation": 5.0, "total": 170.0}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three methods and two seeds; own data, as `--data` has them."""
    out = build_comparison(tmp_path / "out", CELLS, ("fedavg", "dense", "fedbicross"), (0, 1))
    for run in out.glob(f"{CELL}/*/*"):
        set_config(run, data__path=DATA, data__root="/home/rosa/sets", deployment__registry="/home/rosa/keys")
        set_config(run, out=str(run), cache=str(out / "cache"))
        edit(run / "run.json", lambda said: said["dataset"].update(source=DATA))
        log_work(run, SECONDS, range(5), range(5), lasted=160.0)
    return out


@pytest.mark.parametrize("format", ["markdown", "csv", "latex"])
def test_tables_of_the_records_are_those_of_the_runs(out: Path, tmp_path: Path, format: str) -> None:
    written, left_out = write_records(out, tmp_path / "records")
    assert len(written) == 6 and left_out == []
    found, expected = (table_text(CELL, where, format) for where in (tmp_path / "records", out))
    assert found == expected and "170.0" in found, "wall seconds are in the log"


def test_no_path_no_model_and_no_image_is_in_them(out: Path, tmp_path: Path) -> None:
    run = out / CELL / "dense" / "seed-0"
    reason = f"{DATA} cannot be read; look into {tmp_path}/out"
    edit(run / "run.json", lambda said: said["clients"][2].update(status="failed", reason=reason))
    (run / "models").mkdir(exist_ok=True)
    (run / "models" / "cluster-0.safetensors").write_bytes(b"weights")
    write_records(out, tmp_path / "records")
    files = [file for file in (tmp_path / "records").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".toml"}
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "rosa" not in text and "meier" not in text and str(tmp_path) not in text, file
    kept = (tmp_path / "records" / CELL / "dense" / "seed-0" / "run.json").read_text(encoding="utf-8")
    assert '"source": "cells.npz"' in kept and "cannot be read" in kept


def test_a_record_that_is_replaced_half_way_is_none(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(out, tmp_path / "records")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_records(out, tmp_path / "records")
    (cell,) = collect(tmp_path / "records").cells
    assert len(list(cell.records())) == 5, "the first is neither the old nor the new one"


def test_unfinished_and_failed_runs_are_named_and_left_out(out: Path, tmp_path: Path) -> None:
    (out / CELL / "dense" / "seed-1" / "run.json").unlink()
    (failed := out / CELL / "dafl" / "seed-0").mkdir(parents=True)
    dump(failed / "failed.json", {"error": "it diverged"})
    written, left_out = write_records(out, tmp_path / "records")
    assert len(written) == 5
    assert [line.rpartition("/")[2] for line in left_out] == [
        "seed-0: failed: it diverged",
        "seed-1: not finished",
    ]


def test_a_second_export_adds_runs_and_replaces_those_of_the_same_name(out: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    write_records(build_comparison(tmp_path / "more", CELLS, ("dafl", "dense"), (0,)), records)
    write_records(out, records)
    (cell,) = collect(records).cells
    assert {(run.variant.name, run.seed) for run in cell.runs} == {
        ("dafl", 0),
        *((name, seed) for name in ("fedavg", "dense", "fedbicross") for seed in (0, 1)),
    }
    found = (records / CELL / "dense" / "seed-0" / "metrics.json").read_bytes()
    assert found == (out / CELL / "dense" / "seed-0" / "metrics.json").read_bytes()


def test_what_a_record_no_longer_has_is_gone(out: Path, tmp_path: Path) -> None:
    records = tmp_path / "records"
    write_records(out, records)
    (out / CELL / "dense" / "seed-0" / "synthetic.json").unlink()
    write_records(out, records)
    assert not (records / CELL / "dense" / "seed-0" / "synthetic.json").exists()
    assert (records / CELL / "dense" / "seed-1" / "synthetic.json").exists()


def test_runs_are_not_replaced_by_records(out: Path, tmp_path: Path) -> None:
    # As with the two folders of the command in each other's place.
    write_records(out, tmp_path / "records")
    run = out / CELL / "fedbicross" / "seed-1"
    (run / IDENTITY).write_text("{}")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    for source in (tmp_path / "records", out):
        with pytest.raises(FedBiCrossError, match="is a run, not its record; name another folder") as caught:
            write_records(source, out)
        assert str(run) in str(caught.value)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_records_are_not_scattered_in_a_run_s_folder(out: Path, tmp_path: Path) -> None:
    run = out / CELL / "fedbicross" / "seed-1"
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(FedBiCrossError, match="is a run's folder") as caught:
        write_records(out, run)
    assert str(run) in str(caught.value)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


def test_a_comparison_without_a_finished_run_is_one_line(out: Path, tmp_path: Path) -> None:
    for file in out.rglob("run.json"):
        file.unlink()
    with pytest.raises(FedBiCrossError, match="has no finished run; `fedbicross compare`") as caught:
        write_records(out, tmp_path / "records")
    assert "\n" not in str(caught.value) and not (tmp_path / "records").exists()
