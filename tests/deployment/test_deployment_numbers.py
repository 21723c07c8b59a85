"""A deployment gives the numbers of the simulation of the same split; its record keeps to what may leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from site_runs import (
    NAMES,
    cluster_models,
    deploy,
    deployed,
    make_sites,
    personal_models,
    read_json,
    reference,
    roster,
    simulated,
    states,
)

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.report import load_run, results_table
from fedbicross_flwr.runs.folder import RunFolder


def rows_of(folder: Path) -> dict[str, dict[int, object]]:
    """Local scores by row and client."""
    rows = read_json(folder / "metrics.json")["rows"]
    return {row["name"]: {one["client"]: one["local"] for one in row["clients"]} for row in rows}


def test_cluster_models_personal_models_and_local_scores_are_the_simulation_s() -> None:
    folder, sites = reference()
    assert cluster_models(folder) == cluster_models(simulated())
    personal = [
        digest(read_tensors(simulated() / "sites" / f"client-{client:02d}" / "personal.safetensors")[0])
        for client in range(3)
    ]
    assert list(personal_models(sites).values()) == personal
    mine, theirs = rows_of(folder), rows_of(simulated())
    assert set(theirs) - set(mine) == {"FedAvg-1", "ensemble of all uploads"}
    for name, scores in mine.items():
        assert scores == theirs[name]


def test_the_record_names_the_sites_and_counts_no_class_of_theirs() -> None:
    folder, sites = reference()
    run = read_json(folder / "run.json")
    assert [entry["site"] for entry in run["clients"]] == list(NAMES)
    assert run["finished"] and run["runner"] == "flower" and RunFolder(folder).finished
    former = read_json(simulated() / "run.json")["clients"]
    for entry, other in zip(run["clients"], former, strict=True):
        assert "class_counts" not in entry and "class_counts" in other
        assert all(entry[key] == other[key] for key in ("num_samples", "bytes_sent", "bytes_received"))
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(sites).encode() not in path.read_bytes(), path
    assert not (folder / "sites").exists() and not (folder / "partition.json").exists()


def test_the_roster_tells_what_became_of_every_site() -> None:
    folder, _ = reference()
    content = read_json(folder / "roster.json")
    assert content["stage"] == "finished" and content["reason"] == "" and content["connected"] == 0
    assert content["upload_window"] == content["personal_window"] == 60.0
    assert content["opened"] <= content["closed"] <= content["shipping"]
    clustering = read_json(folder / "clustering.json")["assignment"]
    for client, entry in enumerate(content["sites"]):
        assert entry["client"] == client and entry["site"] == NAMES[client]
        assert (entry["state"], entry["cluster"]) == ("done", clustering[client])
        assert content["opened"] <= entry["uploaded"] <= content["closed"] <= entry["done"]
        assert not entry["late"] and not entry["flags"] and not entry["reason"]


def test_what_leaves_a_site_is_its_model_two_numbers_and_scores_under_its_name(tmp_path: Path) -> None:
    grid = deploy(deployed(tmp_path / "run"), make_sites(tmp_path))
    known = {"client", "site"}
    contents = [set(reply.content) for _, reply in grid.replies]
    assert contents[:3] == [known | {"arrays", "metrics"}] * 3
    assert contents[3:] == [known | {"scores"}] * 3
    for _, reply in grid.replies[:3]:
        assert set(parts(reply, "metrics")) == {"num-examples", "validation-accuracy"}
    for _, reply in grid.replies:
        assert set(parts(reply, "site")) == {"name"} and set(parts(reply, "client")) == {"client"}
    asked = [set(message.content) for message in grid.sent]
    assert asked == [{"config"}] * 3 + [{"config", "arrays", "replay"}] * 3


def parts(message: Message, name: str) -> Any:
    return message.content[name]


def test_a_store_has_both_models_their_scores_and_nothing_of_the_others(tmp_path: Path) -> None:
    _, sites = reference()
    for name in NAMES:
        store = sites / name / "store"
        names = {path.name.partition("-")[0] for path in store.iterdir()}
        assert names == {
            "local.safetensors", "personal.safetensors", "scores.json", "controls", "progress.jsonl",
        }  # fmt: skip
        assert store.stat().st_mode & 0o077 == 0, "others may not look into a site's store"


@pytest.mark.parametrize("without", [(1,), (0, 1, 2)], ids=["one", "all"])
def test_sites_without_test_images_are_done_without_scores(tmp_path: Path, without: tuple[int, ...]) -> None:
    nodes = make_sites(tmp_path)
    for index in without:
        path = Path(nodes[index].config["data-path"])
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files if not name.startswith("test")}
        np.savez(path, **kept)
    folder = tmp_path / "run"
    deploy(deployed(folder), nodes, report=len(without) == 3)
    assert set(states(folder).values()) == {"done"}
    assert [entry["reason"] for entry in roster(folder).values()] == [
        "no test images" if index in without else "" for index in range(3)
    ]
    scored = {one["client"] for row in read_json(folder / "metrics.json")["rows"] for one in row["clients"]}
    assert scored == {0, 1, 2} - set(without)
    assert all(entry["status"] == "ok" for entry in read_json(folder / "run.json")["clients"])
    assert personal_models(tmp_path)


def test_the_report_is_that_of_sites_that_were_scored_at_home(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    deploy(deployed(folder), make_sites(tmp_path), report=True)
    table = results_table(load_run(folder))
    assert table.protocols == ("local",)
    assert [row.name for row in table.rows] == [
        "local-only", "local-only, same budget", "FedBiCross without personal distillation", "FedBiCross",
    ]  # fmt: skip
    page = (folder / "report.html").read_text()
    assert "FedBiCross" in page and "Dirichlet" not in page
