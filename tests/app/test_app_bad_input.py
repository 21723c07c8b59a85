"""Each mistake of a user: one line behind ``error:``, status 2, no traceback, earlier results untouched."""

from __future__ import annotations

import dataclasses
import io
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_grid import LocalGrid, run_app
from PIL import Image
from rich.console import Console
from small_runs import TINY, Answer, checksums, read_json, reference, save_site, tiny, without_report

from fedbicross_flwr import cli, server
from fedbicross_flwr import simulate as simulate_module
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.runs import opening as run_opening

Command = Callable[..., Answer]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """``fedbicross simulate --in-process`` on the small configuration with more arguments."""

    def run(*arguments: str, out: Path | None = None, settings: dict[str, object] | None = None) -> Answer:
        flat = [f"--set={key}={value}" for key, value in (TINY | (settings or {})).items()]
        target = str(out or tmp_path / "run")
        argv = ["fedbicross", "simulate", "--in-process", "--out", target, *flat, *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left, without_report():
            cli.main()
        captured = capsys.readouterr()
        return Answer(left.value.code or 0, captured.out, captured.err)

    return run


# --- settings


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("client.epoch=3", ("'client.epoch'", "did you mean client.epochs")),
        ("epochs=3", ("unknown setting 'epochs'",)),
        ("client.epochs=0", ("client.epochs = 0", "at least 1")),
        ("client.momentum=1.5", ("client.momentum", "at most 0.9999")),
        ("client.epochs=2.5", ("client.epochs = 2.5", "int is needed")),
        ("client.epochs=many", ("client.epochs = 'many'", "int is needed")),
        ("client.augment=1", ("client.augment = 1", "bool is needed")),
        ("client.lr=[0.1]", ("client.lr = [0.1]", "float is needed")),
        ("client.lr=nan", ("client.lr = nan", "not a finite number")),
        ("client.schedule=cosin", ("client.schedule = 'cosin'", "did you mean cosine")),
        ("clustering.clusters=4", ("clustering.clusters = 4", "partition.clients = 3")),
        ("clustering.clusters=some", ("clustering.clusters = 'some'", "int is needed")),
        ("partition.alpha=0", ("partition.alpha = 0", "above 0")),
        ("partition.alpha=-1.5", ("partition.alpha = -1.5", "above 0")),
        ("partition.min_samples=40", ("partition.min_samples", "96")),
        ("runtime.device=gpu", ("runtime.device = 'gpu'", "auto or cpu")),
        ("runtime.device=cuda:99", ("runtime.device = 'cuda:99'", "not available")),
        ("model.name=resnet19", ("model.name = 'resnet19'", "did you mean resnet18")),
        ("data.name=bloodmnst", ("data.name = 'bloodmnst'", "did you mean bloodmnist")),
        ("data.phantom_channels=2", ("data.phantom_channels = 2",)),
        ("seed", ("--set 'seed'", "key=value")),
        ("=3", ("--set '=3'", "key=value")),
    ],
)
def test_a_wrong_setting_is_named(command: Command, setting: str, words: tuple[str, ...]) -> None:
    command("--set", setting).is_refusal(*words)


def test_a_count_beyond_all_memory_is_one_line(command: Command) -> None:
    limit, hard = resource.getrlimit(resource.RLIMIT_AS)
    # Twenty terabytes are asked for; a system that promises more than it has shall not give them.
    wanted = 2**41 if hard == resource.RLIM_INFINITY else min(2**41, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        refused = command("--set", "clustering.by=outputs", "--set", f"clustering.num_probes={2**31 - 1}")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    refused.is_refusal("memory is full", "lower the method's batch sizes")


def test_the_minimum_that_a_dirichlet_draw_cannot_meet_is_named(command: Command, tmp_path: Path) -> None:
    skewed = {"partition.alpha": 0.001, "partition.min_samples": 30, "partition.balance": "false"}
    refused = command(settings=skewed)
    refused.is_refusal("partition.min_samples = 30", "partition.alpha = 0.001")
    # The corrected command may use the same folder: nothing was begun there.
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method=fedbicros", ("method = 'fedbicros'", "did you mean fedbicross")),
        ("model.name=resnet19", ("model.name = 'resnet19'",)),
        ("client.min_classes=9", ("client.min_classes = 9", "the 8 classes")),
        ("runtime.device=cuda:99", ("runtime.device = 'cuda:99'",)),
        ("cache=file/inside", ("file/inside", "choose another folder with cache")),
    ],
)
def test_what_clients_would_find_is_found_before_the_folder_is_taken(
    command: Command, tmp_path: Path, setting: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    command("--set", setting).is_refusal(*words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rate", [100.0, 1e6])
def test_clients_whose_training_diverged_are_left_out_for_it(command: Command, rate: float) -> None:
    """Their weights are finite, but numbers that the server makes of them are not, or say nothing."""
    command("--set", f"client.lr={rate}").is_refusal("no client sent a usable model", "client.lr")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("cannot read configuration", "run.toml", "No such file")),
        (b"seed = = 1", ("run.toml is not valid TOML",)),
        (b"\xff\xfe", ("run.toml is not valid TOML",)),
        (b"[client]\nlr = [0.1, 0.2]", ("run.toml", "client.lr is a list")),
        (b"[client]\nlearning_rate = 0.1", ("'client.learning_rate'",)),
        (b"[klient]\nlr = 0.1", ("'klient.lr'", "did you mean client.lr")),
        (b"client = 3", ("'client'",)),
        (b"seed = 2024-01-01", ("seed is a date",)),
    ],
)
def test_a_configuration_file_that_cannot_be_used_is_named(
    command: Command, tmp_path: Path, content: bytes | None, words: tuple[str, ...]
) -> None:
    if content is not None:
        (tmp_path / "run.toml").write_bytes(content)
    command("--config", str(tmp_path / "run.toml")).is_refusal(*words)


def test_a_folder_is_no_configuration(command: Command, tmp_path: Path) -> None:
    command("--config", str(tmp_path)).is_refusal("cannot read configuration", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "--set", "seed", "--data", ""], "--data"),
        (["simulate", "--set", "seed", "--out="], "--out"),
        (["site", "check", "own.npz", "--classes", " "], "--classes"),
        (["site", "check", ""], "check"),
        (["make-signing-key", ""], "make-signing-key"),
        (["export-records", ""], "export-records"),
        (["predict", "--model", "a", "--images", "b", "--out", ""], "--out"),
    ],
)
def test_an_empty_word_is_a_mistake_and_not_the_present_folder(
    words: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedbicross", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main()
    told = capsys.readouterr()
    Answer(left.value.code, told.out, told.err).is_refusal(f"the word behind {said} is empty")


def test_a_setting_may_be_empty(command: Command) -> None:
    command("--set=data.path=", "--set", "client.epoch=3").is_refusal("'client.epoch'")


# --- data


def gray(count: int, size: int = 28, kind: type[np.generic] = np.uint8) -> np.ndarray:
    return np.zeros((count, size, size), kind)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_images": gray(36, 32)}, ("train_images", "28")),
        ({"test_images": gray(12, 64)}, ("test_images", "28")),
        ({"train_images": gray(36, kind=np.float32)}, ("train_images is float32", "uint8")),
        ({"train_images": gray(35)}, ("35", "36")),
        ({"train_labels": np.full(36, -1)}, ("train_labels", "label -1")),
        ({"train_labels": np.arange(36) % 3 * 2}, ("class 1 has no training image",)),
        ({"test_labels": np.full(12, 3)}, ("test label 3",)),
        ({"train_labels": np.zeros(36, np.float32)}, ("train_labels is float32", "integers")),
        ({"train_labels": np.zeros((36, 3), np.int64)}, ("train_labels", "one label an image")),
        ({"train_labels": np.zeros(36, np.int64)}, ("single class",)),
        ({"train_labels": None}, ("missing train_labels",)),
        ({"class_names": np.array(["a", "b"])}, ("class_names lists 2",)),
        ({"class_names": np.array(["a", "b", "c", "d"])}, ("class 3 (d) has no training image",)),
        ({"class_names": np.array([{}, {}], object)}, ("class_names", "never unpickled")),
        ({"test_images": None, "test_labels": None}, ("no test images", "add a test split")),
    ],
)
def test_a_file_with_unfit_arrays_is_named(
    command: Command, tmp_path: Path, arrays: dict[str, Any], words: tuple[str, ...]
) -> None:
    path = save_site(tmp_path / "own.npz", **arrays)
    command("--data", str(path)).is_refusal("own.npz", *words)


def test_a_file_that_is_cut_short_is_named(command: Command, tmp_path: Path) -> None:
    path = save_site(tmp_path / "own.npz")
    path.write_bytes(path.read_bytes()[:5000])
    command("--data", str(path)).is_refusal("own.npz", "cut short")


def test_a_file_of_something_else_is_named(command: Command, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    command("--data", str(tmp_path / "other.npz")).is_refusal("missing train_images", "found x")
    (tmp_path / "text.npz").write_text("not a zip")
    command("--data", str(tmp_path / "text.npz")).is_refusal("text.npz", "not an .npz file")
    command("--data", str(tmp_path / "absent.npz")).is_refusal("absent.npz", "no such file")


def test_a_name_of_no_data_set_is_told_with_the_near_ones(command: Command) -> None:
    command("--data", "bloodmnst").is_refusal("'bloodmnst' is unknown", "did you mean bloodmnist")
    command("--data", "organmnist3d").is_refusal("organmnist3d", "2D")
    command("--data", "site").is_refusal("data.path")


@pytest.mark.parametrize("key", ["--out", "--data-root", "--set=cache=~nosuchuser/x"])
def test_a_home_folder_that_is_nobodys_is_one_line(command: Command, key: str) -> None:
    words = [key] if "=" in key else [key, "~nosuchuser/x"]
    command(*words).is_refusal("~nosuchuser/x: that user has no home folder here")


def save_folder(path: Path, train: int = 36, test: int = 12) -> Path:
    """Write random PNG images of three classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for index in range(count):
            file = path / split / f"class-{index % 3}" / f"{index:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (28, 28), dtype=np.uint8)).save(file)
    return path


def test_an_unreadable_image_is_named(command: Command, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images")
    (folder / "train" / "class-1" / "001.png").write_text("no image")
    command("--data", str(folder)).is_refusal("001.png", "not an image")


def test_an_image_of_another_size_is_named(command: Command, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images")
    Image.new("L", (30, 28)).save(folder / "test" / "class-0" / "000.png")
    command("--data", str(folder)).is_refusal("000.png", "30x28")


def test_an_image_that_breaks_off_is_refused_before_anything_is_run(command: Command, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "images")
    file = folder / "train" / "class-1" / "001.png"
    file.write_bytes(file.read_bytes()[:200])
    command("--data", str(folder)).is_refusal("001.png", "cannot be read as an image")
    assert not (tmp_path / "run" / "run.json").exists()


# --- clients that cannot be trained


def deal_by_hand(monkeypatch: pytest.MonkeyPatch, shares: list[list[int]]) -> None:
    """Deal a site's 36 images, whose labels are 0, 1, 2 in turn, as given."""
    from fedbicross_flwr.data.partition import Partition

    def deal(*arguments: object) -> Partition:
        tests = np.array_split(np.arange(12), len(shares))
        return Partition(tuple(np.array(rows, dtype=np.int64) for rows in shares), tuple(tests))

    monkeypatch.setattr(run_opening, "deal", deal)


@pytest.mark.parametrize(
    ("share", "reason"),
    [([0], "1 training image(s) found"), ([0, 3, 6, 9, 12, 15], "images of 1 class(es) found")],
)
def test_a_client_that_cannot_be_trained_is_left_out(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: list[int], reason: str
) -> None:
    rest = [row for row in range(36) if row not in share]
    deal_by_hand(monkeypatch, [share, rest[::2], rest[1::2]])
    answer = command("--data", str(save_site(tmp_path / "own.npz")))
    assert answer.status == 0, answer
    assert "client 0 is left out" in answer.output and reason in answer.output
    entries = read_json(tmp_path / "run" / "run.json")["clients"]
    assert [entry["status"] for entry in entries] == ["failed", "ok", "ok"]
    assert reason in entries[0]["reason"]


def test_when_no_client_can_be_trained_it_is_one_error(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal_by_hand(monkeypatch, [list(range(label, 36, 3)) for label in range(3)])
    answer = command("--data", str(save_site(tmp_path / "own.npz")))
    answer.is_refusal("no client sent a usable model", "1 class(es)", "client.min_classes")


# --- the run's folder


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return Path(shutil.copytree(reference(), tmp_path_factory.mktemp("earlier") / "run"))


def test_a_folder_of_other_settings_is_refused(command: Command, earlier: Path) -> None:
    before = checksums(earlier)
    command("--set", "client.lr=0.5", out=earlier).is_refusal("client.lr = 0.02", "0.5", "--out")
    command("--set", "partition.alpha=1.0", out=earlier).is_refusal("partition.alpha = 'inf'", "1.0")
    assert checksums(earlier) == before


def test_a_folder_of_other_data_is_refused(command: Command, tmp_path: Path) -> None:
    own = save_site(tmp_path / "own.npz")
    config = tiny(data__name="site", data__path=str(own))
    with run_opening.sole_use(tmp_path / "run"):
        server.Server.open(config, tmp_path / "run", "in-process")
    before = checksums(tmp_path / "run")
    save_site(own, train_labels=np.arange(36)[::-1] % 3)
    command("--data", str(own)).is_refusal("other images", "--out")
    assert checksums(tmp_path / "run") == before


def test_any_mistake_leaves_an_earlier_run_as_it_was(command: Command, earlier: Path, tmp_path: Path) -> None:
    before = checksums(earlier)
    for arguments in (["--set", "client.epoch=3"], ["--config", "absent.toml"], ["--data", "absent.npz"]):
        command(*arguments, out=earlier).is_refusal()
    assert checksums(earlier) == before


def test_a_finished_run_is_not_run_again(
    command: Command, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_module, "run_it", lambda *arguments: pytest.fail("it was run again"))
    before = checksums(earlier)
    # FedBiCross does not read the setting; the file says what the run was made with.
    for changed in ({}, {"dense.epochs": 7}):
        answer = command(out=earlier, settings=changed)
        assert answer.status == 0 and "is finished; nothing was run" in answer.output.replace("\n", " ")
        assert {**checksums(earlier), "identity.json": ""} == {**before, "identity.json": ""}


def test_a_numbered_accelerator_is_refused_where_ray_hands_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedbicross_flwr.compute.resolve_device", lambda name: torch.device("xpu", 1))
    refused = pytest.raises(FedBiCrossError, match=r"runtime\.device = 'cpu' names one of .*--in-process")
    monkeypatch.setattr(simulate_module, "run_it", lambda *arguments: pytest.fail("it was run"))
    with refused:
        simulate_module.simulate_run(tiny(), tmp_path / "run", False, Console())
    config = dataclasses.replace(tiny(), out=str(tmp_path / "flwr-run"))
    with refused:
        run_app(config, LocalGrid(config, config.partition.clients))


def test_a_folder_with_something_else_in_it_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    command(out=tmp_path / "thesis").is_refusal("holds chapter.tex but no run")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_place_that_cannot_be_written_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    command(out=tmp_path / "file").is_refusal("cannot write to", "file")
    command(out=tmp_path / "file" / "run").is_refusal("cannot write to", "file/run")
    if Path("/proc/self").exists():
        command(out=Path("/proc/fedbicross")).is_refusal("cannot write to /proc/fedbicross")


@pytest.mark.parametrize("name", ["identity.json", "partition.json"])
def test_a_damaged_file_of_the_folder_is_named(command: Command, tmp_path: Path, name: str) -> None:
    with run_opening.sole_use(tmp_path / "run"):
        server.Server.open(tiny(), tmp_path / "run", "in-process")
    (tmp_path / "run" / name).write_text("{")
    before = checksums(tmp_path / "run")
    command().is_refusal(name)
    assert checksums(tmp_path / "run") == before


def test_a_partition_that_does_not_fit_is_named(command: Command, tmp_path: Path) -> None:
    with run_opening.sole_use(tmp_path / "run"):
        server.Server.open(tiny(), tmp_path / "run", "in-process")
    kept = tmp_path / "run" / "partition.json"
    shares = read_json(kept)
    for train, words in (
        ([[96], *shares["train"][1:]], "image 96"),
        (shares["train"][:2], "2 clients"),
    ):
        kept.write_text(json.dumps({"train": train, "test": shares["test"][: len(train)]}))
        command().is_refusal("partition.json", words, "delete it to deal anew")


def test_a_data_set_s_name_is_shown_on_one_line(tmp_path: Path) -> None:
    own = save_site(tmp_path / "two\nlines.npz")
    with run_opening.sole_use(tmp_path / "run"):
        opened = server.Server.open(
            tiny(data__name="site", data__path=str(own)), tmp_path / "run", "in-process"
        )
    console = Console(file=io.StringIO())
    with console.capture() as said:
        simulate_module.describe(opened, console)
    first, second = said.get().splitlines()
    assert first.startswith("two\\nlines: 3 classes, 3 clients") and second.startswith("run folder: ")


def test_an_interruption_says_how_to_go_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate_module, "run_it", interrupted)
    answer = command()
    assert answer.status == 130
    assert answer.error.strip() == "interrupted; the same command with the same --out goes on"


def test_a_run_in_process_ends_with_its_table(command: Command) -> None:
    answer = command()
    assert answer.status == 0, answer
    assert "FedBiCross" in answer.output and "local-only" in answer.output
    assert answer.output.rstrip().endswith("report.html")


@pytest.mark.parametrize(
    "command", [[Path(sys.executable).with_name("fedbicross")], [sys.executable, "-m", "fedbicross_flwr"]]
)
def test_the_command_itself_says_it_in_one_line(command: list[str | Path], tmp_path: Path) -> None:
    """The installed command, with its own streams and status."""
    done = subprocess.run(
        [*command, "simulate", "--set", "partition.alpha=-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    Answer(done.returncode, done.stdout, done.stderr).is_refusal("partition.alpha = -1.0")
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "--set", "partition.alpha=-1"], "partition.alpha = -1.0"),
        (["compare", "--methods", "dens"], "did you mean dense?"),
        (["compare", "--methods", "flower:FedAvg", "--set", "partition.alpha=-1"], "partition.alpha = -1.0"),
    ],
)
def test_a_wrong_setting_is_told_before_pytorch_is_loaded(
    words: list[str], said: str, tmp_path: Path
) -> None:
    code = """import atexit, sys
from fedbicross_flwr.cli import main
atexit.register(lambda: print("loaded:", *({"torch", "flwr", "ray", "sklearn"} & {*sys.modules})))
main()"""
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    Answer(done.returncode, done.stdout, done.stderr).is_refusal(said)
    assert done.stdout.split() == ["loaded:"]


def test_a_closed_standard_output_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedbicross_flwr", "make-signing-key", str(tmp_path / "keys")]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *words],
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
    )
    Answer(done.returncode, "", done.stderr).is_refusal("standard output is closed")
    assert not (tmp_path / "keys").exists()


def test_the_reference_run_is_whole() -> None:
    page = (reference() / "report.html").read_text()
    assert "<html" in page and "FedBiCross" in page


def test_flower_s_strategies_without_flower_leave_nothing_behind(command: Command, tmp_path: Path) -> None:
    command("--set", "method=flower:FedAvg").is_refusal("'flower:FedAvg' runs under Flower only")
    assert not (tmp_path / "run" / "identity.json").exists()
