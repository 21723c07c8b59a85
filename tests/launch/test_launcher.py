"""The launcher of simulated runs: sharing out the machine, handing over the configuration, cleaning up.

One real scenario on Ray serves several tests: three runs side by side, of which one completes, one fails
and one is interrupted while it hangs. Its app is tiny and imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.launch import keeper
from fedbicross_flwr.launch.app_folder import find_app, run_config_toml, stage_app
from fedbicross_flwr.launch.launcher import Resources, fit_resources, simulate
from fedbicross_flwr.launch.resources import share_out

on_linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")


# --- resources


@pytest.mark.parametrize(
    ("clients", "cpus", "gpus", "expected"),
    [
        (5, 1, 0, Resources(5, 1, 0.0, 1, 0)),
        (5, 2, 0, Resources(5, 1, 0.0, 2, 0)),
        (5, 16, 0, Resources(5, 3, 0.0, 15, 0)),
        (5, 16, 1, Resources(5, 3, 0.2, 15, 1)),
        (6, 16, 2, Resources(6, 2, 0.3333, 12, 2)),
        (2, 16, 4, Resources(2, 8, 1.0, 16, 4)),
        (100, 64, 1, Resources(100, 8, 0.125, 64, 1)),
    ],
)
def test_share_out_uses_the_machine(clients: int, cpus: int, gpus: int, expected: Resources) -> None:
    assert share_out(clients, cpus, gpus) == expected


@pytest.mark.parametrize(("threads", "at_once"), [(1, 5), (2, 5), (4, 4), (16, 1), (32, 1)])
def test_clients_with_several_threads_get_cores_for_them(threads: int, at_once: int) -> None:
    fitted = share_out(5, 16, 0, threads)
    assert fitted.at_once == at_once and fitted.client_cpus >= min(threads, 16)


@given(st.integers(1, 300), st.integers(1, 256), st.integers(0, 16), st.integers(1, 300))
def test_share_out_never_asks_for_more_than_there_is(
    clients: int, cpus: int, gpus: int, threads: int
) -> None:
    fitted = share_out(clients, cpus, gpus, threads)
    assert 1 <= fitted.at_once <= clients
    assert fitted.at_once * fitted.client_cpus == fitted.total_cpus <= cpus
    if gpus:  # Ray makes min(by cores, by GPUs) actors: the GPUs must not be the narrower gate
        assert int(fitted.total_gpus / fitted.client_gpus) >= fitted.at_once
        assert -(-fitted.at_once // gpus) * fitted.client_gpus <= 1.0


def test_fit_resources_stays_within_this_process_s_cores() -> None:
    assert 1 <= fit_resources(3).total_cpus <= (os.cpu_count() or 1)
    with pytest.raises(FedBiCrossError, match="clients is 0"):
        fit_resources(0)


# --- run configuration


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]+(-[a-z]+)*(\.[a-z]+)?", fullmatch=True),
        st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.text(st.characters(codec="utf-8")),
    )
)
def test_run_config_survives_toml(config: dict[str, bool | int | float | str]) -> None:
    read = tomllib.loads(run_config_toml(config))
    assert read == config
    assert [type(value) for value in read.values()] == [type(value) for value in config.values()]


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def test_unknown_key_and_missing_app_are_told_before_anything_starts(tmp_path: Path) -> None:
    app = _write(tmp_path / "app", {"pyproject.toml": "[tool.flwr.app.config.optim]\nlr = 0.1\n"})
    with pytest.raises(FedBiCrossError, match=r"'optim.rl'.*did you mean optim.lr"):
        simulate(app, {"optim.rl": 1.0}, share_out(2, 1, 0), on_line=print)
    with pytest.raises(FedBiCrossError, match=r"nowhere holds no pyproject.toml"):
        simulate(tmp_path / "nowhere", {}, share_out(2, 1, 0), on_line=print)


def test_find_app_is_this_checkout() -> None:
    assert (find_app() / "fedbicross_flwr" / "launch" / "launcher.py").exists()


def test_stage_app_takes_what_the_bundle_is_made_of(tmp_path: Path) -> None:
    files = {".venv/lib/x.py": "", "pkg/a/b.py": "1", "pkg/a/__pycache__/b.pyc": "", "other/c.py": ""}
    pyproject = '[tool.flwr.app]\nfab-include = ["pkg/**/*.py", "/LICENSE"]\n'
    app = _write(tmp_path / "app", files | {"pyproject.toml": pyproject, "LICENSE": "", ".gitignore": ""})
    staged = stage_app(app, tmp_path / "staged")
    found = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert found == {"pkg/a/b.py", "LICENSE", "pyproject.toml", ".gitignore"}
    for loose in ('"**/*.py"', '"pkg"', '"*.py"'):
        (app / "pyproject.toml").write_text(f"[tool.flwr.app]\nfab-include = [{loose}]\n")
        assert stage_app(app, tmp_path / "unused") == app


# --- cleaning up, without Flower


def _sleeper(code: str = "", **options: object) -> subprocess.Popen[str]:
    """Start a process that says so when it is up and then sleeps."""
    source = f"import os, subprocess, sys, time\n{code}\nprint('up', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    )
    assert process.stdout.readline() == "up\n"
    return process  # type: ignore[no-any-return]


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "run"
    (folder / keeper.WORKING_DIRECTORY).mkdir(parents=True)
    yield folder
    for pid, _ in keeper.living(folder):
        os.kill(pid, signal.SIGKILL)


@on_linux
def test_sweep_ends_the_run_and_nobody_else(run_folder: Path, tmp_path: Path) -> None:
    marked = dict(os.environ) | {keeper.MARKER: str(run_folder)}
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    # A child that has lost the mark and the session, as Ray's agents do.
    orphan = "subprocess.Popen(['sleep', '60'], env={'PATH': os.defpath}, cwd='/', start_new_session=True)"
    ours = [
        _sleeper(stubborn, env=marked),
        _sleeper(orphan, env=marked),
        _sleeper(cwd=run_folder / keeper.WORKING_DIRECTORY),
    ]
    other_copy = _sleeper(env=dict(os.environ) | {keeper.MARKER: str(tmp_path / "run-of-another")})
    bystander = _sleeper(cwd=run_folder)
    try:
        assert len(keeper.living(run_folder)) == 4
        keeper.sweep(run_folder, set())
        assert [process.wait(1) for process in ours] == [-signal.SIGKILL, -signal.SIGTERM, -signal.SIGTERM]
        assert keeper.living(run_folder) == set()
        assert not run_folder.exists()
        assert other_copy.poll() is None and bystander.poll() is None
    finally:
        for process in (other_copy, bystander):
            process.kill()
            process.wait()


@on_linux
@pytest.mark.parametrize("how", ["launcher killed", "keeper killed", "regular end"])
def test_keeper_cleans_up_whoever_dies(run_folder: Path, how: str) -> None:
    source = f"""
        import os, subprocess, sys
        from pathlib import Path
        from fedbicross_flwr.launch.keeper import MARKER, Keeper
        folder = Path({str(run_folder)!r})
        with Keeper(folder) as keeper:
            env = dict(os.environ) | {{MARKER: str(folder)}}
            keeper.watch(subprocess.Popen(["sleep", "60"], text=True, env=env, start_new_session=True))
            print(keeper._process.pid, flush=True)
            sys.stdin.read()
    """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(keeper.__file__).parents[1],
    )
    assert launcher.stdin is not None and launcher.stdout is not None
    keeper_pid = int(launcher.stdout.readline())
    # The system shows a process's environment a moment after it has become another program.
    assert _wait(lambda: len(keeper.living(run_folder)) == 1, 30)
    if how == "launcher killed":
        launcher.kill()
    elif how == "keeper killed":
        os.kill(keeper_pid, signal.SIGKILL)
    launcher.stdin.close()
    assert launcher.wait(30) == (-signal.SIGKILL if how == "launcher killed" else 0)
    assert _wait(lambda: not keeper.living(run_folder) and not run_folder.exists(), 30)
    launcher.stdout.close()


# --- real runs on Ray

APP = {
    "pyproject.toml": """
        [project]
        name = "tiny"
        version = "0.1.0"
        [tool.flwr.app]
        publisher = "tests"
        fab-include = ["server_app/*.py", "client_app/*.py"]
        [tool.flwr.app.components]
        serverapp = "server_app.app:app"
        clientapp = "client_app.app:app"
        [tool.flwr.app.config]
        mode = ""
        text = ""
        optim.lr = 0.1
        """,
    "server_app/__init__.py": "",
    "server_app/app.py": """
        import json, time
        from pathlib import Path
        import numpy as np
        from flwr.app import ArrayRecord, Message, RecordDict
        from flwr.serverapp import ServerApp
        app = ServerApp()

        @app.main()
        def main(grid, context):
            print("FACTS", json.dumps({"server": __file__, "cwd": str(Path.cwd()), **context.run_config}))
            while len(nodes := list(grid.get_node_ids())) < 2:
                time.sleep(0.05)
            ask = [Message(RecordDict({"x": ArrayRecord([np.arange(3.0)])}), node, "train") for node in nodes]
            for reply in grid.send_and_receive(ask):
                content = reply.content
                print("REPLY", content["x"].to_numpy_ndarrays()[0].sum(), content["where"]["client"])
            print("ROUND DONE")
            if context.run_config["mode"] == "raise":
                raise ValueError("the server gives up")
            if context.run_config["mode"] == "hang":
                time.sleep(600)
        """,
    "client_app/__init__.py": "",
    "client_app/app.py": """
        from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
        from flwr.clientapp import ClientApp
        app = ClientApp()

        @app.train()
        def train(message, context):
            doubled = ArrayRecord([2 * array for array in message.content["x"].to_numpy_ndarrays()])
            where = ConfigRecord({"client": __file__})
            return Message(RecordDict({"x": doubled, "where": where}), reply_to=message)
        """,
}

TEXT = 'it\'s "quoted" \\ and\nbroken é 😀'

DRIVER = """
    import signal
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us with &
    import json, sys
    from pathlib import Path
    from fedbicross_flwr.launch.launcher import simulate
    from fedbicross_flwr.launch.resources import share_out
    polls = []
    config = {"mode": sys.argv[2], "text": sys.argv[3], "optim.lr": 1e-05}
    status = simulate(
        Path(sys.argv[1]), config, share_out(2, 1, 0),
        on_line=lambda line: print(line, flush=True), poll=lambda: polls.append(1),
    )
    print("STATUS", json.dumps({"status": status.status, "details": status.details, "polls": len(polls)}))
"""


@dataclass(frozen=True)
class Outcome:
    """What one launcher process printed, how it left, and whether it left its run behind."""

    output: str
    code: int
    folder: Path
    clean: bool

    def said(self, word: str) -> str:
        """Return what follows `word` on the one line that starts with it."""
        (line,) = [line for line in self.output.splitlines() if line.startswith(word + " ")]
        return line[len(word) + 1 :]

    @property
    def status(self) -> dict[str, object]:
        return dict(json.loads(self.said("STATUS")))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    base = tmp_path_factory.mktemp("runs")
    app = _write(base / "app", APP)
    # The folder we start from holds another app's client: the run must not pick it up.
    trap = _write(base / "trap", {"client_app/__init__.py": "", "client_app/app.py": "raise OSError"})
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment["PYTHONPATH"] = str(Path(keeper.__file__).parents[1])
    environment["http_proxy"] = "http://127.0.0.1:9"  # nobody there
    started = {}
    for mode in ("complete", "raise", "hang"):
        with (base / f"{mode}.log").open("w") as log:
            started[mode] = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(DRIVER), str(app), mode, TEXT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=trap,
                env=environment,
            )
    texts = {mode: base / f"{mode}.log" for mode in started}
    hanging = started["hang"]
    _wait(lambda: "ROUND DONE" in texts["hang"].read_text() or hanging.poll() is not None, 120)
    hanging.send_signal(signal.SIGINT)
    # Long enough for a machine that is busy with other work; a run that hangs would outlast them all.
    seconds = {"hang": 60.0, "complete": 180.0, "raise": 180.0}
    outcomes = {}
    for mode in ("hang", "complete", "raise"):
        code = started[mode].wait(seconds[mode])
        output = texts[mode].read_text()
        facts = next(line for line in output.splitlines() if line.startswith("FACTS "))
        folder = Path(json.loads(facts[6:])["cwd"]).parent
        outcomes[mode] = Outcome(output, code, folder, not folder.exists() and not keeper.living(folder))
    return outcomes


@pytest.mark.ray
@on_linux
def test_a_run_completes_and_passes_its_log_on(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["complete"]
    assert run.code == 0, run.output
    assert run.status["status"] == "completed" and run.status["details"] == ""
    assert run.output.count("REPLY 6.0") == 2
    assert int(str(run.status["polls"])) > 20


@pytest.mark.ray
@on_linux
def test_a_run_s_configuration_and_code_are_its_own(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["complete"]
    facts = json.loads(run.said("FACTS"))
    assert (facts["text"], facts["optim.lr"], facts["mode"]) == (TEXT, 1e-05, "complete")
    modules = [facts["server"]] + [line.split()[-1] for line in run.output.splitlines() if "REPLY" in line]
    assert len(modules) == 3
    assert all(Path(module).is_relative_to(run.folder / "apps") for module in modules)


@pytest.mark.ray
@on_linux
def test_a_raising_server_app_is_a_failed_run(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["raise"]
    assert run.code == 0, run.output
    assert run.status["status"] == "failed"
    assert "the server gives up" in str(run.status["details"])


@pytest.mark.ray
@on_linux
def test_an_interrupted_run_ends_at_once(outcomes: dict[str, Outcome]) -> None:
    run = outcomes["hang"]
    assert run.code == -signal.SIGINT, run.output  # Python's way to leave after KeyboardInterrupt
    assert "STATUS" not in run.output


@pytest.mark.ray
@on_linux
@pytest.mark.parametrize("mode", ["complete", "raise", "hang"])
def test_a_run_leaves_nothing_behind(outcomes: dict[str, Outcome], mode: str) -> None:
    assert outcomes[mode].clean
    assert len({run.folder for run in outcomes.values()}) == 3
