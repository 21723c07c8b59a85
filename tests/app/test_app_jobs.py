"""A comparison of several runs at once: what waits for what, what a failure stops, and the same on Ray."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import joblib
import pytest
import torch
from ray_processes import open_to_others, processes_of
from ray_processes import temporary as temporary
from small_runs import TINY, read_json, without_report

from fedbicross_flwr.compare import at_once, engine
from fedbicross_flwr.compare.at_once import (
    Teller,
    apart,
    check_jobs,
    follow,
    make_at_once,
    prerequisites,
    share_of,
    usual_jobs,
)
from fedbicross_flwr.compare.in_turn import make_runs
from fedbicross_flwr.compare.pace import Pace
from fedbicross_flwr.compare.plan import PlannedRun, cells_of, plan_runs
from fedbicross_flwr.compare.single_run import Done, Failure
from fedbicross_flwr.compare.variants import variants_named
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.runs.code_version import shared_folder
from fedbicross_flwr.runs.folder import FAILED, RunFolder

CELL = "phantom-N3-alphainf"


def planned(out: Path, methods: str, seeds: int = 1, clients: str = "", **changes: Any) -> list[PlannedRun]:
    """The runs of a small comparison; ``client__lr=0.1`` stands for ``client.lr``."""
    base = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return plan_runs(base, cells_of(base, [], clients, ""), variants_named(methods), seeds, out)


class Queue:
    """Takes runs and ends them one by one, the last first; `ends` says how some end, by their title."""

    def __init__(self, **ends: Failure | str) -> None:
        self.ends = ends
        self.events: list[str] = []
        self.said: list[str] = []
        self.runs: dict[Path, PlannedRun] = {}

    def submit(self, run: PlannedRun) -> Path:
        self.runs[run.folder] = run
        self.events.append(f"begin {run.cell[8:10]} {run.variant.name} {run.config.seed}")
        return run.folder

    def wait(self, working: Sequence[Any]) -> tuple[Any, Done | str]:
        run = self.runs[working[-1]]
        self.events.append(f"end {run.cell[8:10]} {run.variant.name} {run.config.seed}")
        end = self.ends.get(run.variant.name)
        return run.folder, end if isinstance(end, str) else Done(run, 3.0, end, ())

    def follow(self, runs: list[PlannedRun], made: Sequence[PlannedRun] = ()) -> dict[Path, Failure]:
        """Follow all runs but those that are made already."""
        rest = [run for run in runs if run not in made]
        pace = Pace([run.variant.name for run in rest])
        teller = Teller(len(runs), len(made), pace, 2, self.said.append)
        return follow(rest, prerequisites(runs), self.submit, self.wait, teller)


def test_the_first_run_of_a_cell_and_seed_is_over_before_the_others_begin(tmp_path: Path) -> None:
    runs = planned(tmp_path, "fedavg,dense,fedbicross,central", seeds=2, clients="3,2")
    queue = Queue()
    assert queue.follow(runs) == {}
    when = {event: index for index, event in enumerate(queue.events)}
    assert len(when) == 2 * len(runs)
    for cell in ("N3", "N2"):
        for seed in range(2):
            for variant in ("dense", "fedbicross"):
                assert when[f"begin {cell} {variant} {seed}"] > when[f"end {cell} fedavg {seed}"]
    first = queue.events[: next(i for i, event in enumerate(queue.events) if event.startswith("end"))]
    # The central model waits for nobody's uploads, and for the same model in another cell.
    assert sorted(first) == sorted(
        [f"begin {cell} fedavg {seed}" for cell in ("N3", "N2") for seed in range(2)]
        + [f"begin N3 central {seed}" for seed in range(2)]
    )
    assert all(when[f"begin N2 central {seed}"] > when[f"end N3 central {seed}"] for seed in range(2))


def test_no_more_jobs_are_begun_than_there_are_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    @contextmanager
    def tasks(sample: PlannedRun, jobs: int) -> Iterator[tuple[Any, Any]]:
        asked.append(jobs)
        queue = Queue()
        yield queue.submit, queue.wait

    monkeypatch.setattr(at_once, "tasks_of_ray", tasks)
    runs = planned(tmp_path, "fedavg,dense,fedbicross")
    for jobs in (10**9, 2):
        assert make_at_once(runs, jobs, lambda text: None) == []
    assert asked == [3, 2]


def test_runs_that_may_share_stages_are_set_apart(tmp_path: Path) -> None:
    methods = "fedavg,dense,fedbicross,fedbicross-intra,fedbicross-parameters,fedbicross-hierarchical"
    runs = planned(tmp_path, methods, seeds=2, clients="3,2")
    found = apart(runs)
    wanted = ["fedavg", "fedbicross-intra", "fedbicross-parameters", "dense", "fedbicross-hierarchical"]
    assert [run.variant.name for run in found] == [*wanted, "fedbicross"] * 4
    blocks = [run.title.replace(run.variant.name, "") for run in found[::6]]
    assert blocks == [run.title.replace(run.variant.name, "") for run in runs[::6]]


def test_nothing_waits_for_what_was_finished_before(tmp_path: Path) -> None:
    runs = planned(tmp_path, "fedavg,dense,fedbicross")
    queue = Queue()
    queue.follow(runs, made=runs[:1])
    assert queue.events[:2] == ["begin N3 dense 0", "begin N3 fedbicross 0"]


def test_one_run_trains_again_where_the_finished_ones_left_no_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned(tmp_path, "fedavg,dense,fedbicross")
    finished = runs[0].folder
    asked: list[dict[Path, Path | None]] = []

    def skip(runs: Sequence[PlannedRun], *_: Any) -> list[PlannedRun]:
        return [run for run in runs if run.folder != finished]

    @contextmanager
    def no_ray(*_: Any) -> Iterator[tuple[None, None]]:
        yield None, None

    def note(
        open_runs: Sequence[PlannedRun], before: dict[Path, Path | None], *_: Any
    ) -> dict[Path, Failure]:
        asked.append(before)
        return {}

    monkeypatch.setattr("fedbicross_flwr.compare.at_once.skip_finished", skip)
    monkeypatch.setattr("fedbicross_flwr.compare.at_once.tasks_of_ray", no_ray)
    monkeypatch.setattr("fedbicross_flwr.compare.at_once.follow", note)
    make_at_once(runs, 2, print)
    cache = shared_folder(runs[0].config)
    assert cache is not None
    cache.mkdir(parents=True)
    make_at_once(runs, 2, print)
    dense, ours = runs[1].folder, runs[2].folder
    assert [before[ours] for before in asked] == [dense, finished]
    assert [before[dense] for before in asked] == [None, finished]


def test_what_failed_or_was_killed_stops_no_other_run_and_is_told(tmp_path: Path) -> None:
    runs = planned(tmp_path, "fedavg,dense,fedbicross")
    lost = Failure(runs[1], "no images")
    queue = Queue(fedavg="its process ended early (OutOfMemoryError)", dense=lost)
    found = queue.follow(runs)
    assert found[runs[1].folder] is lost
    killed = Failure(runs[0], "its process ended early (OutOfMemoryError)")
    assert found == {runs[0].folder: killed, runs[1].folder: lost}
    assert read_json(runs[0].folder / FAILED) == {"error": killed.error}
    assert queue.said == [
        f"1/3 {CELL} fedavg seed 0 ... failed after 0.0 s: {killed.error}\n",
        f"2/3 {CELL} fedbicross seed 0 ... 3.0 s, about 3.0 s left\n",
        f"3/3 {CELL} dense seed 0 ... failed after 3.0 s: no images\n",
    ]


class TaskError(Exception):
    """Stands for Ray's ``RayTaskError``: what a task raised is its `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"pages of {cause}")
        self.cause = cause


@pytest.fixture
def ray_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used of Ray, without its processes: a task is worked on when its result is asked for."""

    def remote(**_: Any) -> Callable[[Any], Any]:
        return lambda work: SimpleNamespace(remote=lambda run: partial(work, run))

    def get(task: Callable[[], Done]) -> Done:
        try:
            return task()
        except Exception as error:
            raise TaskError(error) from error

    ray = SimpleNamespace(
        cluster_resources=dict, remote=remote, get=get, wait=lambda tasks, num_returns: (tasks[:1], tasks[1:])
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    # A task's error is one of Ray's errors.
    errors = SimpleNamespace(RayError=Exception, RayTaskError=TaskError)
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    monkeypatch.setattr(at_once, "own_ray", lambda jobs, **_: nullcontext())


@pytest.mark.usefixtures("ray_in_this_process")
def test_a_full_disk_ends_all_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    said: list[str] = []

    def start(run: PlannedRun, flower: bool) -> None:
        begun.append(run.variant.name)
        if run.variant.name == "dense":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedbicross_flwr.compare.single_run.start_run", start)
    runs = planned(tmp_path, "fedavg,dense,fedbicross")
    with pytest.raises(FedBiCrossError, match=r"there is no space left for .*dense.seed-0") as caught:
        make_at_once(runs, 2, said.append)
    assert "\n" not in str(caught.value)
    assert begun == ["fedavg", "dense"] and len(said) == 1
    assert not list(tmp_path.glob(f"*/*/*/{FAILED}"))


def test_what_is_left_is_shared_by_the_runs_at_once() -> None:
    pace = Pace(["a", "b", "a", "b"])
    pace.note("b", 20.0)
    assert (pace.waiting, pace.left(2), pace.left(9)) == (
        ["a", "a", "b"],
        ", about 30 s left",
        ", about 20 s left",
    )


def test_runs_share_the_cores_and_shape_nothing_by_it(tmp_path: Path) -> None:
    run = planned(tmp_path, "fedavg", runtime__server_threads=8)[0]
    shared = [share_of(run, jobs) for jobs in (1, 3, 20)]
    assert [one.config.runtime.server_threads for one in shared] == [8, 2, 1]
    assert {one.config.fingerprint() for one in shared} == {run.config.fingerprint()}
    every = planned(tmp_path, "fedavg", runtime__server_threads=0)[0]
    cores = joblib.cpu_count()
    assert share_of(every, 2).config.runtime.server_threads == max(cores // 2, 1)


def test_what_cannot_be_made_at_once_is_refused(tmp_path: Path) -> None:
    runs = planned(tmp_path, "fedavg")
    certain = [
        dataclasses.replace(
            run,
            config=dataclasses.replace(
                run.config, runtime=dataclasses.replace(run.config.runtime, device="cuda:1")
            ),
        )
        for run in runs
    ]
    with pytest.raises(FedBiCrossError, match=r"--jobs 2 and --flower exclude each other"):
        check_jobs(runs, True, 2)
    with pytest.raises(FedBiCrossError, match=r"runtime.device = 'cuda:1' .* --jobs 2"):
        check_jobs(certain, False, 2)
    with pytest.raises(FedBiCrossError, match=r"flower:FedAvg runs under Flower.* without --jobs 2"):
        check_jobs(planned(tmp_path, "fedavg,flower:FedAvg"), False, 2)
    check_jobs(runs, False, 2)
    check_jobs(certain, True, 1)


def test_two_runs_are_made_at_once_on_a_cpu_if_nobody_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned(tmp_path, "fedavg,dense", runtime__server_threads=4)
    assert usual_jobs(runs, flower=False) == 2
    assert usual_jobs(runs, flower=True) == usual_jobs(runs[:1], flower=False) == 1
    assert usual_jobs(planned(tmp_path, "fedavg,dense", runtime__server_threads=1), flower=False) == 1
    assert usual_jobs(planned(tmp_path, "fedavg,flower:FedAvg"), flower=False) == 1

    def told(runs: Sequence[PlannedRun], jobs: int, say: Callable[[str], None]) -> list[Failure]:
        raise KeyboardInterrupt(jobs)

    monkeypatch.setattr(engine, "make_at_once", told)
    with pytest.raises(KeyboardInterrupt, match="2"):
        engine.compare_all(runs, False, tmp_path)
    monkeypatch.setattr(Compute, "of", lambda runtime: Compute(torch.device("meta")))
    assert usual_jobs(runs, flower=False) == 1


# --- on Ray


@pytest.mark.deploy
def test_runs_at_once_give_the_numbers_of_runs_one_after_another(tmp_path: Path) -> None:
    methods = "fedavg,dafl,fedbicross-intra,fedbicross-uniform"
    small: dict[str, Any] = {"dafl__epochs": 1, "dafl__steps": 2, "dafl__batch_size": 16}
    runs = planned(tmp_path / "at-once", methods, **small)
    broken = next(run for run in runs if run.variant.name == "dafl")
    broken.folder.mkdir(parents=True)
    (broken.folder / "notes.txt").write_text("of somebody else")
    said: list[str] = []
    (failure,) = make_at_once(runs, 2, said.append)
    assert failure.run == broken and "holds notes.txt but no run" in failure.error
    assert [text.partition(" ")[0] for text in said] == ["1/4", "2/4", "3/4", "4/4"]
    assert said[0].startswith(f"1/4 {CELL} fedavg seed 0 ... ")
    # Both ablations computed the same stages at the same time, or one took them from the other; each learned
    # its own. The last is what FedAvg-1 and the ensemble answer to the test images.
    assert len(list((tmp_path / "at-once" / "cache").glob("*/stages/*.safetensors"))) == 4 + 2 + 1
    one_by_one = planned(tmp_path / "one-by-one", methods.replace("dafl,", ""))
    with without_report():
        assert make_runs(one_by_one, say=lambda text: None) == []
    for run in one_by_one:
        there = tmp_path / "at-once" / run.folder.relative_to(tmp_path / "one-by-one")
        assert RunFolder(there).finished
        assert (there / "metrics.json").read_text() == (run.folder / "metrics.json").read_text()


def heed_interruptions() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with &


@pytest.mark.deploy
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_an_interruption_ends_all_runs_and_leaves_no_process(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "tiny.toml").write_text("")
    settings = [f"--set={key}={value}" for key, value in (TINY | {"inversion.iterations": 20000}).items()]
    command = [
        *("env", f"TMPDIR={temporary}", str(Path(sys.executable).with_name("fedbicross")), "compare"),
        *("--config", str(tmp_path / "tiny.toml"), "--methods", "fedavg,fedbicross-intra,fedbicross-uniform"),
        *("--seeds", "1", "--jobs", "2", "--out", str(tmp_path / "out"), *settings),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interruptions,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"1/3 {CELL} fedavg seed 0 ... ")
        logs = [
            tmp_path / "out" / CELL / f"fedbicross-{way}" / "seed-0" / "progress.jsonl"
            for way in ("intra", "uniform")
        ]
        deadline = time.monotonic() + 200
        while not all(log.exists() and "synthesis" in log.read_text() for log in logs):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        assert open_to_others(temporary) == []
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert output == "interrupted; the same command with the same --out goes on\n"
    deadline = time.monotonic() + 30
    while processes_of(temporary) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(temporary) == []
    assert not list((tmp_path / "out").glob(f"*/*/*/{FAILED}"))
