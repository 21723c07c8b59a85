"""The reference ``central``: one model trained on the pooled images of all clients, as no federation could.

It is scored for every client as a shipped model would be, and leaves an ordinary run folder.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from fedbicross_flwr.artifacts import save_model
from fedbicross_flwr.compute import Compute, client_work, cpu_threads
from fedbicross_flwr.config import RunConfig, hash_settings
from fedbicross_flwr.evaluation import Probabilities
from fedbicross_flwr.federated_data import FederatedData
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.models import ModelSpec, StateDict, load_state
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.report import write_report
from fedbicross_flwr.rows import Row
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.runs.opening import open_run, sole_use
from fedbicross_flwr.runs.record import ClientRecord, write_metrics, write_run
from fedbicross_flwr.runs.trackers import track
from fedbicross_flwr.seeds import numpy_generator
from fedbicross_flwr.server_rows import add_row
from fedbicross_flwr.site.store import SiteStore, short_hash
from fedbicross_flwr.training import ClientTask, train_client
from fedbicross_flwr.uploads import payload_bytes

KEY = "central"
ROW = Row(
    "central model on pooled data",
    "ceiling",
    "One model trained on the images of all clients together, which federated learning keeps apart.",
    models_down=1,
)
CENTRE = -1
"""The number under which the centre draws and reports; no client has it."""


def run_central(config: RunConfig, path: Path) -> Path:
    """Train, score and write the run folder; return the path of the report.

    A model that was trained before on the same images with the same settings is used again from
    ``config.cache``: it does not depend on how the images were dealt.

    Parameters
    ----------
    config : RunConfig
        Its client's recipe is the centre's; ``config.method`` is not read.
    path : Path
        The run's folder.

    Raises
    ------
    FedBiCrossError
        When the data or the folder cannot be used, another run works there, or the training diverges.
    """
    with sole_use(path):
        return run_alone(config, path)


def run_alone(config: RunConfig, path: Path) -> Path:
    """Run in a folder that nobody else works in."""
    started = time.perf_counter()
    folder, data = open_run(config, path)
    info = data.source.info
    spec = ModelSpec.of(config, info.num_classes, info.channels)
    task = ClientTask(CENTRE, spec, config, Compute.of(config.runtime), EventLog(path / "progress.jsonl"))
    state = central_model(data, task, SiteStore.of(config, path, info.class_names))
    trained = time.perf_counter()
    save_model(path / "models" / "central.safetensors", spec, state, info.class_names)
    clients = [ClientRecord(one, len(rows)) for one, rows in enumerate(data.partition.train)]
    with cpu_threads(1), torch.inference_mode():
        add_row(KEY, data.source.labels("test"), answers(state, data, task), clients, data)
    seconds = {"training": trained - started, "evaluation": time.perf_counter() - trained}
    return write_folder(folder, config, data, clients, seconds, payload_bytes(state))


def central_model(data: FederatedData, task: ClientTask, store: SiteStore) -> StateDict:
    """Train on all clients' images, or take the model from the store.

    The images are shuffled, as the first part of them serves as validation and they lie client by client,
    or class by class.
    """
    rows = np.sort(np.concatenate(data.partition.train))
    key = central_key(data, task, rows)
    kept = store.local(key)
    if kept is not None:
        return kept.state
    order = numpy_generator(task.config.seed, KEY).permutation(len(rows))
    with client_work(task.config.runtime):
        model = train_client(data.read("train", rows[order]), task)
    store.save_local(model, task.spec, key)
    return model.state


def central_key(data: FederatedData, task: ClientTask, rows: np.typing.NDArray[np.int64]) -> str:
    """Return what identifies everything that shapes the model; how images are dealt does not."""
    sections = ("seed", "data", "model", "client", "runtime")
    shaping = {key: v for key, v in task.config.shaping().items() if key.split(".")[0] in sections}
    precision = f"{task.compute.device.type}/{task.compute.precision}"
    parts = (KEY, hash_settings(shaping), data.source.fingerprint(), short_hash(rows.tobytes().hex()))
    return short_hash("/".join([*parts, precision, str(asdict(task.spec))]))


def answers(state: StateDict, data: FederatedData, task: ClientTask) -> Probabilities:
    """Return the model's probabilities (n, C) on the whole test split."""
    tests = data.test_images().to(task.compute)
    model = task.compute.place(load_state(task.spec, state))
    logits = predict_logits(model, tests.images, task.compute)
    probabilities: Probabilities = logits.softmax(1).cpu().double().numpy()
    return probabilities


def write_folder(
    folder: RunFolder,
    config: RunConfig,
    data: FederatedData,
    clients: list[ClientRecord],
    seconds: dict[str, float],
    model_bytes: int,
) -> Path:
    """Write what a run leaves behind; return the path of the report."""
    write_metrics(folder, {KEY: ROW}, clients, model_bytes, 0)
    write_run(folder, config, data, clients, {**seconds, "total": sum(seconds.values())}, "in-process")
    report = write_report(folder.path)
    track(config, folder.path, EventLog(folder.path / "progress.jsonl"))
    return report
