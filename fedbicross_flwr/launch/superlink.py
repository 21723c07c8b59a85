"""A Flower SuperLink of one's own: a private folder, a free port, and an environment nobody else shares.

``flwr run`` would otherwise use, or start and leave behind, one SuperLink shared by everything this user
runs, with the environment of whoever came first. Nothing here imports Flower: it is driven by the console
scripts that are installed beside the running Python.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import base_for_sockets
from fedbicross_flwr.launch.keeper import MARKER, WORKING_DIRECTORY, Keeper

#: The name of the connection to the private SuperLink, for ``flwr run <app> <connection>``.
CONNECTION = "private"
#: How often to look for another free port, and the seconds a SuperLink may take to start.
PORT_ATTEMPTS, START_SECONDS = 5, 120.0


def _console_script(name: str) -> str:
    script = Path(sys.executable).parent / name
    if not script.exists():
        raise FedBiCrossError(
            f"{script} is missing: Flower is not installed beside this Python; run `make setup`"
        )
    return str(script)


def _private_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fbx-", dir=base_for_sockets())).resolve()
    for inside in (WORKING_DIRECTORY, "tmp"):
        (folder / inside).mkdir()
    return folder


def _environment(folder: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the run's processes: the caller's, with everything shared made private."""
    environment = {name: value for name, value in outer.items() if name not in ("RAY_ADDRESS", "FORCE_COLOR")}
    loopback = "127.0.0.1,localhost"
    environment |= {
        MARKER: str(folder),
        "FLWR_HOME": str(folder),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which is to say: on loopback alone
        "RAY_prestart_worker_first_driver": "0",  # Flower's clients cannot use the workers Ray prestarts
        "TMPDIR": str(folder / "tmp"),
        # Flower starts its own console scripts by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), outer.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "COLUMNS": "1000",  # else Flower's command line breaks its messages into lines
        "no_proxy": ",".join(filter(None, [outer.get("no_proxy", outer.get("NO_PROXY", "")), loopback])),
    }
    environment["NO_PROXY"] = environment["no_proxy"]
    environment.setdefault("HOME", str(folder))
    # Threads of OpenMP that spin while they wait take the cores from whoever else is on the machine.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("RAY_DEDUP_LOGS", "0")
    environment.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:ray._private.worker")
    return environment


@dataclass(frozen=True)
class SuperLink:
    """A running private SuperLink; see `private_superlink`."""

    folder: Path
    environment: Mapping[str, str]
    keeper: Keeper

    def start(self, script: str, *arguments: str, output: int) -> subprocess.Popen[str]:
        """Start a console script of Flower's in this SuperLink's environment.

        Parameters
        ----------
        script : str
            Such as ``"flwr"``.
        *arguments : str
            Its arguments.
        output : int
            Where standard output and standard error go together: `subprocess.PIPE` or a descriptor.
        """
        process = subprocess.Popen(
            [_console_script(script), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.folder / WORKING_DIRECTORY,
            env=dict(self.environment),
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.keeper.watch(process)
        return process

    def log_tail(self) -> str:
        """Return the last line of the SuperLink's own log, for error messages."""
        lines = [line for line in self._log().splitlines() if line.strip()]
        return lines[-1].strip() if lines else "nothing was logged"

    def _log(self) -> str:
        path = self.folder / "superlink.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _serves(self, poll: Callable[[], None]) -> bool:
        """Start the server on a port that is free now; False if somebody else took the port meanwhile."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        (self.folder / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n'
            f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        arguments = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        with (self.folder / "superlink.log").open("w") as log:
            server = self.start(
                "flower-superlink",
                *arguments,
                "--disable-runtime-dependency-installation",
                output=log.fileno(),
            )
        # Asking the port would not tell our SuperLink from a stranger's that took it; its log does.
        deadline = time.monotonic() + START_SECONDS
        while f"Uvicorn running on http://127.0.0.1:{port}" not in self._log():
            if server.poll() is not None:
                if "address already in use" in self._log().lower():
                    return False
                raise FedBiCrossError(f"Flower's SuperLink did not start: {self.log_tail()}")
            if time.monotonic() > deadline:
                raise FedBiCrossError(
                    f"Flower's SuperLink did not start within {START_SECONDS:.0f} s: {self.log_tail()}"
                )
            poll()
            time.sleep(0.1)
        return True


@contextlib.contextmanager
def private_superlink(poll: Callable[[], None]) -> Iterator[SuperLink]:
    """Run a SuperLink in simulation mode; on leaving, end all that came of it and remove its folder.

    Processes of the run work in an empty folder inside the private one: Ray puts the working directory
    first on its workers' import path, and a user's folder may well hold a ``client_app`` of its own.

    Parameters
    ----------
    poll : callable
        Called several times a second while waiting.

    Raises
    ------
    FedBiCrossError
        If Flower is not installed beside this Python, or its SuperLink does not start.
    """
    folder = _private_folder()
    with Keeper(folder) as keeper:
        superlink = SuperLink(folder, _environment(folder, os.environ), keeper)
        for _ in range(PORT_ATTEMPTS):
            if superlink._serves(poll):
                break
        else:
            raise FedBiCrossError(f"no free port on 127.0.0.1 in {PORT_ATTEMPTS} attempts; try again")
        yield superlink
