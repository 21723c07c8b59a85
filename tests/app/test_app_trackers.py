"""Logging a finished run: what is logged, what never is, and what happens without package or server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import reference, run_tiny, tiny

from fedbicross_flwr import cli
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report import load_run
from fedbicross_flwr.runs import trackers
from fedbicross_flwr.runs.facts import RunFacts, facts_of
from fedbicross_flwr.runs.trackers import (
    MLFLOW_FOLDER,
    TENSORBOARD_FOLDER,
    TRACKERS,
    check_tracker,
    track,
)
from fedbicross_flwr.server import Server
from fedbicross_flwr.settings import walk

ABSENT = "a_module_that_is_not_there"


class Notes:
    """Progress that keeps its notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        pass

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def facts() -> RunFacts:
    return facts_of(load_run(reference()), tiny())


def use(monkeypatch: pytest.MonkeyPatch, name: str, module: str, write: Callable[..., None]) -> None:
    """Let a tracker need another module, or write elsewhere."""
    monkeypatch.setattr(
        trackers,
        "TRACKERS",
        {**TRACKERS, name: replace(TRACKERS[name], module=module, package=name, write=write)},
    )


def test_every_choice_of_the_setting_has_its_tracker() -> None:
    declared = {key: one for key, one, _ in walk(RunConfig())}["runtime.tracker"]
    assert declared.metadata["choices"] == ("none", *TRACKERS) and declared.default == "none"


# --- what is logged


def test_the_facts_are_those_of_the_run(facts: RunFacts) -> None:
    run = load_run(reference())
    assert run.results is not None and run.weights is not None and run.inversion is not None
    row = run.results.row("FedBiCross")
    assert row is not None
    scores = [score.accuracy for score in row.scores["global"].values()]
    assert facts.figures["global accuracy/FedBiCross"] == pytest.approx(np.mean(scores))
    assert facts.figures["global accuracy of the worst client/FedBiCross"] == min(scores)
    assert facts.figures["bytes sent/FedBiCross"] == row.bytes_up
    assert facts.figures["seconds/total"] == run.seconds["total"]
    assert facts.figures["local accuracy/local-only same budget"] > 0
    assert facts.settings["client.epochs"] == 2 and facts.settings["partition.alpha"] == "inf"
    for one in run.inversion:
        curve = facts.curves[f"inversion agreement/cluster {one.cluster}"]
        assert [step for step, _ in curve] == list(range(4))
        assert [value for _, value in curve] == one.agreement.tolist()
    learned = facts.curves["weights of cluster 1/from cluster 0"]
    assert learned[-1] == (run.weights.steps[-1], run.weights.weights[-1, 1, 0])
    for sheet in facts.pictures.values():
        assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.shape[2] == 3 and sheet.std() > 0
    assert len(facts.pictures) == 2
    json.dumps([dict(facts.settings), facts.figures, facts.curves], allow_nan=False)


def test_the_rounds_of_a_strategy_are_a_curve(tmp_path: Path) -> None:
    for file in ("run.json", "metrics.json", "config.toml"):
        (tmp_path / file).write_bytes((reference() / file).read_bytes())
    said = json.loads((tmp_path / "run.json").read_text())
    said["flower"] = {"rounds": 2, "accuracy": [0.1, 0.25, 0.5]}
    (tmp_path / "run.json").write_text(json.dumps(said))
    curves = facts_of(load_run(tmp_path), tiny()).curves
    assert curves == {"rounds/global accuracy": [(0, 0.1), (1, 0.25), (2, 0.5)]}


def test_paths_and_names_of_sites_are_not_logged() -> None:
    secret = "secret-hospital"
    names = {"deployment.sites": f"{secret}, other", "deployment.class_names": "a, b"}
    paths = {"out": f"/{secret}", "cache": f"/{secret}", "data.root": f"/{secret}"}
    for settings in (paths, {**paths, **names}):
        config = RunConfig.from_flat({**settings, "runtime.tracker": "mlflow"})
        found = facts_of(load_run(reference()), config)
        assert secret not in repr(found) and found.settings["seed"] == 0


# --- when it is logged


def test_a_run_without_a_package_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, tracker in TRACKERS.items():
        use(monkeypatch, name, ABSENT, tracker.write)
        config = tiny(runtime__tracker=name)
        said = rf"runtime\.tracker = '{name}' .*pip install {name}, or set runtime\.tracker to none"
        with pytest.raises(FedBiCrossError, match=said) as caught:
            Server.open(config, tmp_path / name, "in-process")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / name / "uploads").exists()
        out = tmp_path / f"comparison-{name}"
        (tmp_path / "empty.toml").write_text("")
        settings = ["--config", str(tmp_path / "empty.toml"), "--set", f"runtime.tracker={name}"]
        arguments = ["fedbicross", "compare", "--methods", "fedavg", "--out", str(out), *settings]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as left:
            cli.main()
        error = capsys.readouterr().err
        assert left.value.code == 2 and error.startswith("error: runtime.tracker") and error.count("\n") == 1
        assert not list(out.glob("phantom*"))
    check_tracker(tiny().runtime)


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("http://user:secret@mlflow.clinic.example:5000", True),
        ("http://192.0.2.7", True),
        ("https://mlflow.clinic.example", False),
        ("http://localhost:5000", False),
        ("http://127.0.0.1:5000", False),
        ("http://[::1]:5000", False),
        ("/var/mlruns", False),
    ],
)
def test_mlflow_without_tls_is_on_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, address: str, refused: bool
) -> None:
    use(monkeypatch, "mlflow", "json", TRACKERS["mlflow"].write)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    check_tracker(tiny().runtime)
    if not refused:
        check_tracker(tiny(runtime__tracker="mlflow").runtime)
        return
    with pytest.raises(FedBiCrossError, match=r"without TLS.*give it an https address") as caught:
        check_tracker(tiny(runtime__tracker="mlflow").runtime)
    assert "secret" not in str(caught.value)


def test_a_run_is_logged_once_when_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[Path, str, RunFacts]] = []

    def write(folder: Path, name: str, facts: RunFacts) -> None:
        assert (folder / "report.html").exists()
        logged.append((folder, name, facts))

    use(monkeypatch, "mlflow", "json", write)
    run_tiny(tmp_path / "run", tiny(method="fedavg", runtime__tracker="mlflow"))
    ((folder, name, facts),) = logged
    assert (folder, name) == (tmp_path / "run", "run (fedavg, phantom)")
    assert facts.settings["method"] == "fedavg" and "global accuracy/FedAvg-1" in facts.figures
    run_tiny(tmp_path / "other", tiny(method="fedavg"))
    assert len(logged) == 1, "off by default"


def test_a_tracker_that_fails_costs_a_note_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, name: str, facts: RunFacts) -> None:
        raise ConnectionError("no answer from\nhttps://me:word@server/api")

    use(monkeypatch, "mlflow", "json", write)
    notes = Notes()
    track(tiny(runtime__tracker="mlflow"), reference(), notes)
    (text,) = notes.texts
    assert "not logged to mlflow (ConnectionError: no answer from https://server/api)" in text


# --- the packages themselves


def test_tensorboard_reads_what_was_written(tmp_path: Path, facts: RunFacts) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time replaces the first
        trackers.write_tensorboard(tmp_path, "run", facts)
    assert [entry.name for entry in tmp_path.iterdir()] == [TENSORBOARD_FOLDER]
    (events,) = (tmp_path / TENSORBOARD_FOLDER).iterdir()
    assert events.name == "events.out.tfevents.0.fedbicross"
    read: Any = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER), size_guidance={"scalars": 0})
    read.Reload()
    name = "global accuracy/FedBiCross"
    assert [event.value for event in read.Scalars(name)] == [pytest.approx(facts.figures[name])]
    curve = "inversion cross_entropy/cluster 0"
    assert [(event.step, event.value) for event in read.Scalars(curve)] == [
        (step, pytest.approx(value)) for step, value in facts.curves[curve]
    ]
    assert set(read.Tags()["images"]) == set(facts.pictures)
    assert "_hparams_/experiment" in read.summary_metadata


def test_mlflow_reads_what_was_written(
    tmp_path: Path, facts: RunFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        trackers.write_mlflow(folder, "run", facts)
    import mlflow

    client = mlflow.MlflowClient((tmp_path / MLFLOW_FOLDER).as_uri())
    experiment = client.get_experiment_by_name("fedbicross")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.user_id == "unknown"
    assert run.data.params == {key: str(value) for key, value in facts.settings.items()}
    for name, value in facts.figures.items():
        assert run.data.metrics[name] == pytest.approx(value)
    curve = "weights of cluster 0/from cluster 1"
    found = {one.step: one.value for one in client.get_metric_history(run.info.run_id, curve)}
    assert found == dict(facts.curves[curve])
    pictures = client.list_artifacts(run.info.run_id, "synthetic")
    assert [one.path for one in pictures] == [f"{name}.png" for name in sorted(facts.pictures)]
