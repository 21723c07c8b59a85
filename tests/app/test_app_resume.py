"""A run that was interrupted goes on: the same bits come out, and nothing that was finished is done again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from small_runs import Step, Watch, flip_byte, outcome, reference, run_tiny, tiny

from fedbicross_flwr import server
from fedbicross_flwr.artifacts import read_tensors, write_tensors
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.runs import code_version
from fedbicross_flwr.runs.folder import RunFolder

Work = set[tuple[str, int | None]]

TRAINING: list[Work] = [{("training", client)} for client in range(3)]
SERVER: list[Work] = [
    {("clustering", None)},
    {("synthesis, cluster 0", None)},
    {("synthesis, cluster 1", None)},
    {("cross-cluster optimisation", None)},
]
PERSONAL: list[Work] = [{("personalisation", client), ("fine-tuning", client)} for client in range(3)]
EVERYTHING = [*TRAINING, *SERVER, *PERSONAL]


def from_step(first: int) -> Work:
    """All work from one step of `EVERYTHING` on."""
    return set().union(*EVERYTHING[first:])


def interrupt(folder: Path, stop: Step) -> Work:
    """Run until `stop`; return the work that was done."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(folder)
    return watch.work


def go_on(folder: Path) -> Work:
    """Run to the end; return the work that was done."""
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        run_tiny(folder)
    assert not (folder / "stages").exists()
    return watch.work


@pytest.mark.parametrize(
    ("stop", "first"),
    [
        (("training", 1, 1), 1),
        (("synthesis, cluster 1", None, 2), 5),
        (("cross-cluster optimisation", None, 1), 6),
        (("personalisation", 1, 1), 8),
    ],
)
def test_an_interrupted_run_goes_on(tmp_path: Path, stop: Step, first: int) -> None:
    interrupt(tmp_path / "run", stop)
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert go_on(tmp_path / "run") == from_step(first)
    assert outcome(tmp_path / "run") == outcome(reference())


def test_an_interruption_between_the_rounds_repeats_no_training(tmp_path: Path) -> None:
    calls: list[None] = []

    def after_client() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process(tiny(), tmp_path / "run", after_client)
    assert go_on(tmp_path / "run") == from_step(3)
    assert outcome(tmp_path / "run") == outcome(reference())


def is_finished(folder: Path) -> bool:
    return RunFolder(folder).finished


def test_a_run_without_its_report_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(server, "write_report", interrupted)
        run_in_process(tiny(), tmp_path / "run")
    assert (tmp_path / "run" / "run.json").exists() and not is_finished(tmp_path / "run")
    assert go_on(tmp_path / "run") == set()
    assert is_finished(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(reference())


def test_a_killed_process_leaves_a_folder_that_goes_on(tmp_path: Path) -> None:
    source = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from small_runs import run_tiny
        from fedbicross_flwr.progress import EventLog
        from fedbicross_flwr.runs.folder import RunFolder

        def kill(*arguments, **options):
            os.kill(os.getpid(), signal.SIGKILL)

        def killed_while_writing(source, target):
            kill() if "optimisation" in str(target) else rename(source, target)

        rename = Path.replace
        Path.replace = killed_while_writing
        run_tiny(Path({str(tmp_path / "run")!r}))
    """
    root = Path(server.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = [path.name for path in (tmp_path / "run" / "stages").glob("*.safetensors")]
    stages = ("answers-0-0", "answers-0-1", "clustering", "synthesis-0-0", "synthesis-0-1")
    assert sorted(kept) == [f"{name}.safetensors" for name in stages]
    assert go_on(tmp_path / "run") == from_step(6)
    assert outcome(tmp_path / "run") == outcome(reference())


def cut_short(path: Path) -> None:
    """Leave the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


OPTIMISING: Step = ("cross-cluster optimisation", None, 1)


@pytest.mark.parametrize(
    ("damaged", "again"),
    [
        (["stages/clustering"], SERVER[0]),
        (["stages/synthesis-0-0", "stages/synthesis-0-1"], SERVER[1] | SERVER[2]),
        (["uploads/client-01"], set()),  # the client has its own copy
        (["uploads/client-01", "sites/client-01/local"], TRAINING[1]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damaged: list[str], again: Work) -> None:
    folder = tmp_path / "run"
    interrupt(folder, OPTIMISING)
    for name in damaged[:1]:
        flip_byte(folder / f"{name}.safetensors")
    for name in damaged[1:]:
        cut_short(folder / f"{name}.safetensors")
    assert go_on(folder) == from_step(6) | again
    assert outcome(folder) == outcome(reference())
    for upload in (folder / "uploads").iterdir():
        read_tensors(upload)


@pytest.mark.parametrize(
    ("count", "said", "usable"), [("3", "{}", True), ("many", "{}", False), ("3", "nothing", False)]
)
def test_an_upload_whose_facts_cannot_be_read_can_be_had_again(
    tmp_path: Path, count: str, said: str, usable: bool
) -> None:
    folder, facts = RunFolder(tmp_path), {"num_samples": count, "said": said}
    write_tensors(folder.upload_path(0), {"fc.bias": torch.zeros(2)}, facts)
    assert (folder.load_upload(0) is not None) == usable
    write_tensors(folder.upload_path(1), {"fc.bias": torch.zeros(2)}, {})
    assert folder.load_upload(1) is None


def test_a_personal_model_that_is_gone_is_distilled_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupt(folder, ("personalisation", 2, 1))
    (folder / "sites" / "client-00" / "personal.safetensors").unlink()
    done = {event for event in PERSONAL[0] if event[0] == "personalisation"} | PERSONAL[2]
    assert go_on(folder) == done, "the scores of its own model were kept"
    assert outcome(folder) == outcome(reference())


def test_what_another_version_made_is_made_again(tmp_path: Path) -> None:
    interrupt(tmp_path / "run", ("personalisation", 1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_version, "code_fingerprint", lambda: "another")
        assert go_on(tmp_path / "run") == from_step(0)
    assert outcome(tmp_path / "run") == outcome(reference())
    assert "client 0 trains again: " in (tmp_path / "run" / "progress.jsonl").read_text()


def test_a_run_of_software_without_a_setting_is_one_with_its_default(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, tiny(), "data")
    identity = tmp_path / "identity.json"
    content = json.loads(identity.read_text())
    del content["settings"]["inversion.images_at_once"]
    identity.write_text(json.dumps(content))
    RunFolder.open(tmp_path, tiny(), "data")
    other = tiny(inversion__teachers="in_turn", inversion__images_at_once=8)
    content["settings"]["inversion.teachers"] = "in_turn"
    identity.write_text(json.dumps(content))
    with pytest.raises(FedBiCrossError, match=r"inversion.images_at_once = 0, this one has 8"):
        RunFolder.open(tmp_path, other, "data")


def test_another_arithmetic_takes_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(tmp_path / "run", ("personalisation", 1, 1))
    monkeypatch.setattr(Compute, "precision", "another")
    assert go_on(tmp_path / "run") == from_step(0)


def test_own_models_that_are_gone_are_trained_again(tmp_path: Path) -> None:
    interrupt(tmp_path / "run", ("synthesis, cluster 1", None, 2))
    shutil.rmtree(tmp_path / "run" / "sites")
    assert go_on(tmp_path / "run") == from_step(5) | from_step(0) - from_step(3)
    assert outcome(tmp_path / "run") == outcome(reference())


def test_models_of_an_earlier_outcome_are_removed(tmp_path: Path) -> None:
    interrupt(tmp_path / "run", ("personalisation", 1, 1))
    models = tmp_path / "run" / "models"
    shutil.copy(models / "cluster-1.safetensors", models / "cluster-2.safetensors")
    go_on(tmp_path / "run")
    assert sorted(file.name for file in models.iterdir()) == [
        "cluster-0.safetensors",
        "cluster-1.safetensors",
    ]


def test_images_that_diverged_are_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FedBiCrossError, match=r"its images are not finite; lower inversion\.lr = 1e\+30"):
        run_tiny(folder, tiny(inversion__lr=1e30))
    assert not list(folder.glob("stages/synthesis-*"))
