"""Reading a run folder: what is there is typed, what is absent is None, what is broken is one clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_builder import MakeRun, edit
from safetensors.numpy import save_file

from fedbicross_flwr.compare.pace import total_seconds
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report import load_run
from fedbicross_flwr.runs.folder import RunFolder


def test_everything_is_read(run_folder: Path) -> None:
    run = load_run(run_folder)
    assert (run.id, run.finished, run.seed) == ("20261121-a1b2", True, 0)
    assert run.config["partition.alpha"] == 0.3
    assert [client.client for client in run.clients] == [0, 1, 2, 3, 4]
    assert run.clients[0].class_counts is not None
    assert sum(run.clients[0].class_counts) == run.clients[0].num_samples
    assert run.clustering is not None
    assert run.clustering.similarity.shape == (5, 5)
    assert run.clustering.cluster_of(4) == 1
    assert run.inversion is not None
    assert len(run.inversion) == 6
    assert run.inversion[0].agreement.shape == (80,)
    assert run.weights is not None
    np.testing.assert_allclose(run.weights.weights.sum(axis=2), 1)
    assert [sheet.images.shape for sheet in run.synthetic] == [(96, 3, 28, 28)] * 3
    assert run.results is not None
    assert run.results.rows[-1].name == "FedBiCross"
    assert set(run.files) == {f"models/cluster-{k}.safetensors" for k in range(3)}


def test_null_versions_are_left_out(make_run: MakeRun) -> None:
    assert "flwr" not in load_run(make_run(deployment=True)).versions


@pytest.mark.parametrize(
    ("file", "part", "absent"),
    [
        ("clustering.json", "clustering", None),
        ("inversion.json", "inversion", None),
        ("weights.json", "weights", None),
        ("synthetic.safetensors", "synthetic", ()),
        ("synthetic.json", "quality", None),
        ("metrics.json", "results", None),
    ],
)
def test_an_absent_file_is_an_absent_part(run_folder: Path, file: str, part: str, absent: Any) -> None:
    (run_folder / file).unlink()
    assert getattr(load_run(run_folder), part) == absent


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(FedBiCrossError, match=r"is not a run folder"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "file",
    ["run.json", "clustering.json", "inversion.json", "weights.json", "synthetic.json", "metrics.json"],
)
def test_a_cut_off_file_is_one_line_that_names_it(run_folder: Path, file: str) -> None:
    path = run_folder / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FedBiCrossError) as caught:
        load_run(run_folder)
    message = str(caught.value)
    assert str(path) in message
    assert "not valid JSON" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["[" * 100_000, '{"id": ' + "9" * 5000 + "}"])
@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
def test_json_that_python_cannot_take_is_one_line_that_names_it(
    run_folder: Path, file: str, content: str
) -> None:
    (run_folder / file).write_text(content)
    with pytest.raises(
        FedBiCrossError, match=r"is no JSON that can be read \(.*\); the file is damaged"
    ) as caught:
        load_run(run_folder)
    assert str(run_folder / file) in str(caught.value)
    assert not RunFolder(run_folder).finished


@pytest.mark.parametrize("value", ['"x"', "[1]", "1.5", "9" * 30])
def test_a_setting_of_a_wrong_type_is_named_with_its_file(run_folder: Path, value: str) -> None:
    config = run_folder / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", f"seed = {value}\nfrom_another_version = true"))
    with pytest.raises(FedBiCrossError, match=r"config\.toml.* seed (=|is) ") as caught:
        load_run(run_folder)
    assert str(config) in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{}"])
def test_a_run_is_not_finished_by_a_file_that_says_nothing(run_folder: Path, content: str) -> None:
    (run_folder / "report.html").write_text("")
    assert RunFolder(run_folder).finished
    (run_folder / "run.json").write_text(content)
    assert not RunFolder(run_folder).finished and total_seconds(run_folder) is None


def test_a_cut_off_tensor_file_names_it(run_folder: Path) -> None:
    path = run_folder / "synthetic.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FedBiCrossError, match=r"synthetic\.safetensors is not a readable safetensors file"):
        load_run(run_folder)


def test_labels_of_unknown_classes_are_refused(run_folder: Path) -> None:
    images = np.zeros((2, 3, 28, 28), np.float32)
    labels = np.array([0, 8])
    save_file({"images.0": images, "labels.0": labels}, run_folder / "synthetic.safetensors")
    with pytest.raises(FedBiCrossError, match=r"labels\.0 holds labels outside 0\.\.7"):
        load_run(run_folder)


def drop_total(content: Any) -> None:
    del content["dataset"]["licence"]


BREAKAGES: list[tuple[str, Callable[[Any], None], str]] = [
    ("run.json", drop_total, r"dataset\.licence is missing"),
    ("run.json", lambda c: c["clients"][1].update(status="gone"), r'clients\[1\]\.status is "gone"'),
    ("run.json", lambda c: c["clients"][1]["class_counts"].pop(), r"clients\[1\]\.class_counts .*list of 8"),
    ("run.json", lambda c: c.update(finished="yes"), r"finished is \"yes\", but true or false"),
    ("clustering.json", lambda c: c["clients"].__setitem__(0, 9), r"clients\[0\] is 9, but a client of run"),
    ("clustering.json", lambda c: c["assignment"].__setitem__(0, 3), r"assignment .*cluster ids below 3"),
    ("clustering.json", lambda c: c["similarity"].pop(), r"similarity .*shape 5 x 5"),
    ("inversion.json", lambda c: c[2]["agreement"].pop(), r"\[2\]\.agreement .*shape 80"),
    ("weights.json", lambda c: c["steps"].pop(), r"weights .*shape 40 x 3 x 3"),
    ("synthetic.json", lambda c: c.update(learned=1.2), r"learned is 1\.2, but a number from 0 to 1"),
    (
        "metrics.json",
        lambda c: c["rows"][0]["clients"][0]["global"].update(accuracy=57.6),
        r"rows\[0\]\.clients\[0\]\.global\.accuracy is 57\.6, but a number from 0 to 1",
    ),
    (
        "metrics.json",
        lambda c: c["rows"][0]["clients"][0]["local"].update(ece=float("nan")),
        r"rows\[0\]\.clients\[0\]\.local\.ece is NaN, but a number",
    ),
    ("run.json", lambda c: c["seconds"].update(total=10**400), r"seconds\.total is 1000.*, but a number"),
    ("run.json", lambda c: c["seconds"].update(total=1e308), r"seconds\.total is 1e\+308, but a number"),
    ("run.json", lambda c: c["clients"][0].update(bytes_sent=10**400), r"bytes_sent is 1000.* whole number"),
    ("run.json", lambda c: c.update(id="\ud800"), r'id is "\\ud800", but a text is needed'),
    ("run.json", lambda c: c["seconds"].update({"\ud800": 1}), r"seconds is .* names are text in UTF-8"),
    ("weights.json", lambda c: c["steps"].__setitem__(0, 10**400), r"steps .* but an array of numbers"),
    ("metrics.json", lambda c: c["rows"][1].update(name="local-only"), r"rows .*different names"),
    ("metrics.json", lambda c: c["rows"][0].update(kind="best"), r"rows\[0\]\.kind is \"best\""),
]


@pytest.mark.parametrize(("file", "change", "message"), BREAKAGES)
def test_a_wrong_value_is_named_with_its_place(
    run_folder: Path, file: str, change: Callable[[Any], None], message: str
) -> None:
    edit(run_folder / file, change)
    with pytest.raises(FedBiCrossError, match=message) as caught:
        load_run(run_folder)
    assert str(run_folder / file) in str(caught.value)
    assert "\n" not in str(caught.value)
