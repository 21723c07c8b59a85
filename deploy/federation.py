"""A whole federation on this machine's loopback, made with the scripts of this folder: for demo and tests.

The centre and each site have a folder of their own, as they would have a machine; between the folders pass
the CA's certificate, the sites' public keys, and what goes through the network. Whatever happens to this
process, `fedbicross_flwr.launch.keeper` ends all that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.launch.keeper import MARKER, Keeper, living

SCRIPTS = Path(__file__).resolve().parent
#: Seconds that a SuperLink or a SuperNode may take to start where the cores are busy with other work.
START_SECONDS = 120.0
Command = list[str | Path | int]


@dataclass
class Machine:
    """The folder and the process of the centre or of one site.

    Parameters
    ----------
    name : str
        ``centre``, or the site's name.
    folder : Path
        Stands for its machine.
    port : int
        The port that its process listens on.
    process : subprocess.Popen, optional
        The running one.
    environment : dict of str to str
        More variables for its process.
    """

    name: str
    folder: Path
    port: int
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Return the file that takes what the process prints; a restarted process goes on in it."""
        return self.folder / "process.log"

    def logged(self) -> str:
        """Return what the process has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


@dataclass
class Federation:
    """A centre and its sites on loopback; see `federation`.

    Parameters
    ----------
    folder : Path
        Holds one folder for each machine.
    marker : Path
        The keeper's folder.
    keeper : Keeper
        Ends all processes in the end.
    say : callable
        Told each command before it is run.
    """

    folder: Path
    marker: Path
    keeper: Keeper
    say: Callable[[str], None]
    insecure: bool = False
    sites: dict[str, Machine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the centre's folder."""
        self.centre = Machine("centre", self.folder / "centre", free_port())
        self.centre.folder.mkdir(parents=True)

    @property
    def address(self) -> str:
        """Return where SuperNodes find the SuperLink."""
        return f"127.0.0.1:{self.centre.port}"

    def run(self, script: str, *arguments: str | Path, fail: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script of this folder to its end.

        Raises
        ------
        FedBiCrossError
            When it ends with another status than 0, unless `fail` is false.
        """
        command = [str(SCRIPTS / script), *map(str, arguments)]
        self.say(self.shown(command))
        done = subprocess.run(
            command,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if fail and done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise FedBiCrossError(f"{script} ended with status {done.returncode}: {said}")
        return done

    def make_centre(self) -> None:
        """Make the CA and the server's certificate."""
        self.run("make-ca", self.centre.folder)
        self.run("make-server-certificate", self.centre.folder, "127.0.0.1")

    def make_site(self, name: str) -> Machine:
        """Make a site's folder and key, and give it the CA's certificate."""
        site = Machine(name, self.folder / name, free_port())
        self.run("make-site-key", site.folder, name)
        shutil.copy2(self.centre.folder / "ca.crt", site.folder / "ca.crt")
        self.sites[name] = site
        return site

    def register(self, site: Machine) -> None:
        """Carry a site's public key to the centre and let it in."""
        keys = self.centre.folder / "keys"
        keys.mkdir(exist_ok=True)
        shutil.copy2(site.folder / "node.key.pub", keys / f"{site.name}.pub")
        self.run("register-site", self.centre.folder, site.name, keys / f"{site.name}.pub")

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        insecure = ["--insecure"] if self.insecure else []
        self.start(
            self.centre,
            [
                "start-superlink",
                self.centre.folder,
                "--host",
                "127.0.0.1",
                "--port",
                self.centre.port,
                *insecure,
            ],
            f"Uvicorn running on http{'' if insecure else 's'}://127.0.0.1:{self.centre.port}",
        )

    def start_site(self, site: Machine, data: Path, *arguments: str, wait: bool = True) -> None:
        """Start a site's SuperNode, and wait until its local port is open.

        Parameters
        ----------
        site : Machine
            Which one.
        data : Path
            Its images.
        *arguments : str
            More arguments of start-supernode.
        wait : bool, default True
            Whether to wait.
        """
        insecure = ["--insecure"] if self.insecure else []
        command: Command = ["start-supernode", site.folder, "--superlink", self.address, "--name", site.name]
        command += ["--data", data, "--port", site.port, *insecure, *arguments]
        self.start(site, command, f"Uvicorn running on http://127.0.0.1:{site.port}" if wait else "")

    def start(self, machine: Machine, command: Command, until: str) -> None:
        """Start a machine's process in a session of its own and wait for a line of its log.

        Raises
        ------
        FedBiCrossError
            When it ends, or the line does not come.
        """
        full = [str(SCRIPTS / str(command[0])), *map(str, command[1:])]
        self.say(self.shown(full) + " &")
        before = len(machine.logged())
        with machine.log.open("a") as log:
            machine.process = subprocess.Popen(
                full,
                env=self.environment() | machine.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )
        self.keeper.watch(machine.process)
        deadline = time.monotonic() + START_SECONDS
        while until not in machine.logged()[before:]:
            if machine.process.poll() is not None or time.monotonic() > deadline:
                tail = " ".join(machine.logged()[before:].split()[-40:])
                raise FedBiCrossError(f"{machine.name} did not start: {tail}")
            time.sleep(0.1)

    def start_run(self, config: Path, *arguments: str | Path) -> str:
        """Start a run without waiting for it; return Flower's number of it."""
        return self.run("start-run", self.centre.folder, config, *arguments).stdout.split()[1]

    def run_status(self, run_id: str) -> tuple[str, str]:
        """Return a run's status as Flower has it, such as ``finished:completed``, and details on it."""
        command = [sys.executable, "-m", "flwr.cli.app", "list", "--run-id", run_id, "--format", "json"]
        home = {"FLWR_HOME": str(self.centre.folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0"}
        done = subprocess.run(
            command, env=self.environment() | home, capture_output=True, text=True, check=False
        )
        (run,) = json.loads(done.stdout)["runs"]
        return str(run["status"]), " ".join(str(run["status-details"]).split())

    def wait_for_run(self, run_id: str, seconds: float) -> tuple[str, str]:
        """Wait until a run is over; return its status and details.

        Raises
        ------
        FedBiCrossError
            When it takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not (status := self.run_status(run_id))[0].startswith("finished"):
            if time.monotonic() > deadline:
                raise FedBiCrossError(f"run {run_id} is not over after {seconds:.0f} s: {status[0]}")
            time.sleep(1.0)
        return status

    def kill(self, machine: Machine, number: int = signal.SIGKILL) -> None:
        """End a machine's process and all that it started, as a power cut would; wait for its end."""
        assert machine.process is not None
        for pid in [machine.process.pid, *descendants(machine.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        machine.process.wait()

    def environment(self) -> dict[str, str]:
        """Return the environment of all processes here."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
        loopback = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
        return outer | loopback | {MARKER: str(self.marker), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}

    def shown(self, command: list[str]) -> str:
        """Return a command as the reader would type it."""
        words = [word.replace(f"{self.folder}/", "") for word in command]
        return " ".join([f"deploy/{Path(words[0]).name}", *words[1:]])

    def processes(self) -> int:
        """Return how many processes of this federation are alive (Linux; elsewhere 0)."""
        return len(living(self.marker))


@contextlib.contextmanager
def federation(
    folder: Path, say: Callable[[str], None] = lambda _: None, insecure: bool = False
) -> Iterator[Federation]:
    """Make a federation in an empty or absent folder; on leaving, end its processes and keep its files."""
    marker = Path(tempfile.mkdtemp(prefix="fbx-deploy-")).resolve()
    with Keeper(marker) as keeper:
        yield Federation(folder, marker, keeper, say, insecure)


def descendants(pid: int) -> list[int]:
    """Return the children of a process, theirs, and so on (Linux's /proc)."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
