"""Logs a finished run to TensorBoard or MLflow, if ``runtime.tracker`` asks for it.

Both are optional packages, imported when they are needed. What is logged is `fedbicross_flwr.runs.facts`; a
tracker that fails costs a note and never the run, which is finished by then.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fedbicross_flwr.config import RunConfig, RuntimeConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.progress import Progress
from fedbicross_flwr.report import load_run
from fedbicross_flwr.runs.facts import RunFacts, facts_of

NONE = "none"
TENSORBOARD_FOLDER, MLFLOW_FOLDER = "tensorboard", "mlruns"
EXPERIMENT, MLFLOW_RUN = "fedbicross", "mlflow.json"
MLFLOW_URI = "MLFLOW_TRACKING_URI"
"""The environment variable with the address of MLflow's server."""
CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")
MOST_PARAMETERS, MOST_METRICS = 100, 1000
"""What MLflow takes in one call."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Tracker:
    """One way to log a run.

    Parameters
    ----------
    module : str
        What must be importable.
    package : str
        What to install for that.
    write : callable
        Takes the run's folder, its name in the tracker, and its facts; called again for the same run, it
        replaces what it wrote.
    unsafe_server : callable
        Returns the machine to which the run would go in the clear; nothing where it stays here or has TLS.
    """

    module: str
    package: str
    write: Callable[[Path, str, RunFacts], None]
    unsafe_server: Callable[[], str] = lambda: ""


def check_tracker(runtime: RuntimeConfig) -> None:
    """Find out before the run whether it can be logged.

    Raises
    ------
    FedBiCrossError
        When the package of ``runtime.tracker`` is not installed, or MLflow is another machine's without TLS.
    """
    if runtime.tracker == NONE:
        return
    tracker = TRACKERS[runtime.tracker]
    if importlib.util.find_spec(tracker.module) is None:
        raise FedBiCrossError(
            f"runtime.tracker = {runtime.tracker!r} needs a package that is not installed here: "
            f"pip install {tracker.package}, or set runtime.tracker to {NONE}"
        )
    if server := tracker.unsafe_server():
        raise FedBiCrossError(
            f"{MLFLOW_URI} names {server} without TLS, so scores and synthetic images would go in the clear; "
            f"give it an https address, or set runtime.tracker to {NONE}"
        )


def mlflow_without_tls() -> str:
    """Return the other machine that MLflow's server runs on, if it is spoken to in the clear."""
    server = urlsplit(os.environ.get(MLFLOW_URI, ""))
    host = server.hostname or ""
    return host if server.scheme == "http" and not is_loopback(host) else ""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this very machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def track(config: RunConfig, folder: Path, progress: Progress) -> None:
    """Log a finished run as configured; what fails is noted in `progress`.

    Parameters
    ----------
    config : RunConfig
        Says whether and where.
    folder : Path
        The run's, with ``run.json`` and ``metrics.json`` in it.
    progress : Progress
        Takes the note.
    """
    if config.runtime.tracker == NONE:
        return
    try:
        run = load_run(folder)
        name = f"{run.id} ({config.method}, {run.dataset.name})"
        TRACKERS[config.runtime.tracker].write(folder, name, facts_of(run, config))
    # Whatever another package raises: the run has its results, and must not end as a failed one.
    except Exception as error:
        reason = CREDENTIALS.sub("", " ".join(f"{type(error).__name__}: {error}".split()))
        progress.note(f"the run is finished but not logged to {config.runtime.tracker} ({reason})")


def write_tensorboard(folder: Path, name: str, facts: RunFacts) -> None:
    """Write ``<run>/tensorboard``, one file of events; TensorBoard knows a run by its folder, not by `name`.

    The file's name is given anew, as TensorBoard's own would tell the name of this machine.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    made = Path(tempfile.mkdtemp(dir=folder, prefix=f".{TENSORBOARD_FOLDER}."))
    try:
        with SummaryWriter(str(made)) as writer:
            # Not `add_hparams`, which begins a second run inside the first.
            for summary in hparams(dict(facts.settings), dict(facts.figures)):
                writer.file_writer.add_summary(summary)
            for title, value in facts.figures.items():
                writer.add_scalar(title, value)
            for title, curve in facts.curves.items():
                for step, value in curve:
                    writer.add_scalar(title, value, step)
            for title, picture in facts.pictures.items():
                writer.add_image(title, picture, dataformats="HWC")
        (events,) = made.iterdir()
        events.rename(made / "events.out.tfevents.0.fedbicross")
        made.chmod(0o755)
        shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
        made.replace(folder / TENSORBOARD_FOLDER)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_mlflow(folder: Path, name: str, facts: RunFacts) -> None:
    """Write a run of the experiment ``fedbicross``.

    It goes to ``MLFLOW_TRACKING_URI``, or else into files, ``mlruns`` beside the run's folder. Its id is kept
    in the run's folder, in ``mlflow.json``. The client is used and not the module's functions, which would
    add the user's name and the command.
    """
    # MLflow would tell its makers that it is used, and has files of its own refused unless asked for.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    # By name: the package brings no types, and is absent from most machines.
    mlflow, entities = importlib.import_module("mlflow"), importlib.import_module("mlflow.entities")
    local = (folder.resolve().parent / MLFLOW_FOLDER).as_uri()
    client = mlflow.MlflowClient(tracking_uri=os.environ.get(MLFLOW_URI) or local)
    experiment = experiment_of(client)
    if (former := former_run(folder)) is not None:
        # Another server, or the same one cleaned up, does not know it: then there is nothing to replace.
        with contextlib.suppress(mlflow.MlflowException):
            client.delete_run(former)
    run_id = client.create_run(experiment, run_name=name).info.run_id
    write_bytes(folder / MLFLOW_RUN, json.dumps({"run_id": run_id}).encode())
    now = int(1000 * time.time())
    metrics = [entities.Metric(title, value, now, 0) for title, value in facts.figures.items()]
    metrics += [
        entities.Metric(title, value, now, step)
        for title, curve in facts.curves.items()
        for step, value in curve
    ]
    parameters = [entities.Param(key, str(value)) for key, value in facts.settings.items()]
    for several in batches(parameters, MOST_PARAMETERS):
        client.log_batch(run_id, params=several)
    for several in batches(metrics, MOST_METRICS):
        client.log_batch(run_id, metrics=several)
    for title, picture in facts.pictures.items():
        client.log_image(run_id, picture, artifact_file=f"{title}.png")
    client.set_terminated(run_id)


def experiment_of(client: Any) -> str:
    """Return the id of MLflow's experiment, which is made when there is none."""
    found = client.get_experiment_by_name(EXPERIMENT)
    return str(found.experiment_id if found else client.create_experiment(EXPERIMENT))


def former_run(folder: Path) -> str | None:
    """Return under which id MLflow was given this run before, if it was."""
    try:
        return str(json.loads((folder / MLFLOW_RUN).read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield items in groups of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


TRACKERS: Mapping[str, Tracker] = {
    "tensorboard": Tracker("tensorboard", "tensorboard", write_tensorboard),
    "mlflow": Tracker("mlflow", "mlflow-skinny", write_mlflow, mlflow_without_tls),
}
"""All trackers by the value of ``runtime.tracker``."""
