"""What stands behind ``start-run``: check the configuration, start the run under Flower, say how it ended.

``flwr run`` finds a wrong setting only at the server, does not mind a second run in the same folder, and
leaves with status 0 after a failed run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flower_cli import Arguments, as_command, flwr

from fedbicross_flwr.centre.server import DATA, check_settings
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded, reading, write_bytes
from fedbicross_flwr.launch.app_folder import check_app, find_app, run_config_toml, stage_app
from fedbicross_flwr.runs.folder import IDENTITY, compare_identity, identity_of
from fedbicross_flwr.settings import Scalar, read_toml

#: Seconds between two looks at the state of a run that is waited for.
POLL_SECONDS = 2.0


def main() -> int:
    """Start the run and, if asked to, wait for its end.

    Raises
    ------
    FedBiCrossError
        When the configuration cannot be used, another run is not over, or Flower refuses the run.
    """
    parser = Arguments("start-run")
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--wait", action="store_true")
    chosen = parser.parse_args()
    settings: dict[str, Scalar] = read_toml(chosen.config)
    configured = str(settings.get("out", "")) or f"runs/{chosen.config.stem}"
    out = (chosen.out or chosen.centre / expanded(Path(configured))).resolve()
    settings["out"] = str(out)
    name_registry(settings, chosen.centre)
    app = find_app()
    check_app(app, settings)
    config = RunConfig.from_flat(settings)
    if not config.is_deployment:
        raise FedBiCrossError(
            f"{chosen.config} names no sites, so it is a simulation: name the sites in deployment.sites, as "
            "configs/site.toml does, or use fedbicross simulate"
        )
    check_settings(config)
    with reading(out):
        former = opened_last(out)
        if former is not None:
            compare_identity(out, identity_of(config, DATA))
    refuse_a_second_run(chosen.connection)
    run_id = start(app, chosen.connection, settings)
    print(f"run {run_id} started; its folder is {out}", flush=True)
    if chosen.wait:
        return wait_for(chosen.connection, run_id)
    return wait_for_folder(out, former, chosen.connection, run_id)


def name_registry(settings: dict[str, Scalar], centre: Path) -> None:
    """Have the server hold names against the registry of keys, unless the SuperLink knows no keys.

    Without authentication a node has a new number at each start, which is in no registry.
    """
    if "root-certificates" not in (centre / "flwr" / "config.toml").read_text():
        return
    registry = centre / "sites.json"
    if not registry.exists():
        write_bytes(registry, b"{}\n")  # nobody is registered yet
    settings["deployment.registry"] = settings.get("deployment.registry") or str(registry)


def refuse_a_second_run(connection: str) -> None:
    """Refuse to start a run beside one that is not over.

    Raises
    ------
    FedBiCrossError
        When there is one.
    """
    for run in flwr("list", connection)["runs"]:
        if not str(run["status"]).startswith("finished"):
            raise FedBiCrossError(
                f"run {run['run-id']} is not over ({run['status']}): wait for it, or end it with "
                f"stop-run; a run whose server was killed is over within a few minutes"
            )


def start(app: Path, connection: str, settings: dict[str, Scalar]) -> str:
    """Hand the app and its configuration to the SuperLink; return Flower's number of the run."""
    with tempfile.TemporaryDirectory(prefix="fbx-run-") as scratch:
        overrides = Path(scratch) / "run-config.toml"
        overrides.write_text(run_config_toml(settings), encoding="utf-8")
        bundle = stage_app(app, Path(scratch) / "app")
        said = flwr("run", str(bundle), connection, "--run-config", str(overrides))
    if "run-id" not in said:
        raise FedBiCrossError(f"Flower refused the run: {said}")
    return str(said["run-id"])


def opened_last(out: Path) -> int | None:
    """Return when a run last took a folder, in nanoseconds; None while none has."""
    try:
        return (out / IDENTITY).stat().st_mtime_ns  # written anew by each
    except FileNotFoundError:
        return None


def wait_for_folder(out: Path, former: int | None, connection: str, run_id: str) -> int:
    """Wait until a run has taken its folder, so that its status can be asked for; return the exit status."""
    while opened_last(out) == former:
        if (ended := end_of(connection, run_id)) is not None:
            return ended
        time.sleep(POLL_SECONDS)
    return 0


def end_of(connection: str, run_id: str) -> int | None:
    """Return the exit status that tells how a run ended; None while it is not over."""
    (run,) = flwr("list", connection, "--run-id", run_id)["runs"]
    state, _, how = str(run["status"]).partition(":")
    if state != "finished":
        return None
    if how == "completed":
        print(f"run {run_id} completed")
        return 0
    print(f"error: run {run_id} {how}: {' '.join(str(run['status-details']).split())}", file=sys.stderr)
    return 1


def wait_for(connection: str, run_id: str) -> int:
    """Show the log of a run until its end; return the exit status that tells how it ended."""
    with subprocess.Popen(["flwr", "log", run_id, connection, "--stream"]) as log:
        try:
            while (ended := end_of(connection, run_id)) is None:
                time.sleep(POLL_SECONDS)
            time.sleep(POLL_SECONDS)  # the last lines of the log are on their way
        except KeyboardInterrupt:
            print(f"run {run_id} goes on; stop-run ends it", file=sys.stderr)
            return 130
        finally:
            log.terminate()
    return ended


if __name__ == "__main__":
    as_command(main)
