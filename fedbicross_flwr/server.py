"""The server's part of a run: takes uploads, runs the method, scores, writes the run folder.

It knows nothing of how messages travel. Flower's strategy and the in-process runner both drive it:
``accept`` or ``refuse`` each client, ``run_method``, send each its ``shipment``, ``record`` what comes back,
``finish``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedbicross_flwr.artifacts import digest, save_model
from fedbicross_flwr.compute import Compute, cpu_threads, refuse_numbered_device, within_memory
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.federated_data import FederatedData, Federation, refuse_sites
from fedbicross_flwr.methods import ClientUpload, ServerOutcome, ServerTask, method_named
from fedbicross_flwr.methods.flower_rounds import check_rounds
from fedbicross_flwr.models import ModelSpec, StateDict
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.ray_tasks import ray_tasks
from fedbicross_flwr.report import write_report
from fedbicross_flwr.rows import rows_of
from fedbicross_flwr.runs.folder import RunFolder
from fedbicross_flwr.runs.opening import open_run
from fedbicross_flwr.runs.record import ClientRecord, write_findings, write_metrics, write_run
from fedbicross_flwr.runs.trackers import check_tracker, track
from fedbicross_flwr.server_rows import EVALUATION, server_scores
from fedbicross_flwr.shipment import Shipment
from fedbicross_flwr.site.store import RowScores
from fedbicross_flwr.sound import check_sound
from fedbicross_flwr.synthetic_quality import synthetic_quality
from fedbicross_flwr.uploads import check_subspace, check_upload, payload_bytes, upload_bytes, upload_tensors


@dataclass
class Server:
    """One run, from its first upload to its report.

    Parameters
    ----------
    config : RunConfig
        The resolved configuration.
    folder : RunFolder
        Where everything is written.
    federation : Federation
        What is known of the clients' data. Of a simulation's the server reads test images only.
    runner : str
        ``"flower"`` or ``"in-process"``, for the record.
    extra : dict of str to Any
        More that ``run.json`` is to say.
    """

    config: RunConfig
    folder: RunFolder
    federation: Federation
    runner: str
    clients: dict[int, ClientRecord] = field(default_factory=dict)
    uploads: dict[int, ClientUpload] = field(default_factory=dict)
    outcome: ServerOutcome | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(cls, config: RunConfig, path: Path, runner: str) -> Server:
        """Open the data, deal it, and open or continue the run folder; uploads kept there are taken up.

        Raises
        ------
        FedBiCrossError
            When the method is unknown or cannot be run so, a setting, the data, the device or the folder
            cannot be used, or the settings name sites, whose data are not here.
        """
        refuse_sites(config)
        method_named(config.method)
        check_rounds(config, runner)
        check_tracker(config.runtime)
        folder, data = open_run(config, path)
        if runner == "flower" and not folder.finished:
            refuse_numbered_device(config.runtime)
        server = cls(config, folder, data, runner)
        for client in range(data.num_clients):
            if (upload := folder.load_upload(client)) is not None:
                server.take(*upload)
            elif folder.upload_path(client).exists():
                server.progress.note(
                    f"client {client} trains again: its kept model is damaged, or another version or another "
                    "device made it"
                )
        if server.uploads:
            server.extra["resumed"] = True
        return server

    @property
    def spec(self) -> ModelSpec:
        """Return the network of this federation."""
        info = self.federation.info
        return ModelSpec.of(self.config, info.num_classes, info.channels)

    @property
    def data(self) -> FederatedData:
        """Return a simulation's data set with its partition; sites have none that the server could read."""
        assert isinstance(self.federation, FederatedData)
        return self.federation

    @property
    def compute(self) -> Compute:
        """Return the server's device and arithmetic."""
        return Compute.of(self.config.runtime)

    @property
    def progress(self) -> EventLog:
        """Return where progress is noted."""
        return EventLog(self.folder.path / "progress.jsonl")

    @property
    def task(self) -> ServerTask:
        """Return what uploads are checked and late sites placed with; the method's own keeps its stages."""
        return ServerTask(self.spec, self.config, self.compute, self.progress)

    def take(self, upload: ClientUpload, said: Mapping[str, float]) -> None:
        """Take an upload into the run."""
        self.uploads[upload.client] = upload
        self.clients[upload.client] = ClientRecord(
            upload.client, upload.num_samples, said.get("validation_accuracy"), upload_bytes(upload)
        )

    def accept(
        self,
        client: int,
        num_samples: int,
        state: StateDict,
        said: Mapping[str, float],
        subspace: Tensor | None = None,
    ) -> None:
        """Check an upload, keep it, and take it into the run; a bad one is refused with the reason."""
        upload = ClientUpload(client, num_samples, state, subspace)
        try:
            self.check(upload)
        except FedBiCrossError as error:
            self.refuse(client, str(error))
            return
        self.folder.save_upload(upload, self.spec, self.federation.info.class_names, said)
        self.take(upload, said)

    def check(self, upload: ClientUpload) -> None:
        """Hold an upload against what the federation agreed on.

        Raises
        ------
        FedBiCrossError
            See `fedbicross_flwr.uploads` and `fedbicross_flwr.sound`.
        """
        check_upload(upload.client, upload.state, upload.num_samples, self.spec)
        if self.config.needs_subspaces:
            check_subspace(upload.client, upload.subspace, self.spec, self.config.clustering.pacfl_rank)
        with cpu_threads(1):
            check_sound(upload.client, upload.state, self.task)

    def refuse(self, client: int, reason: str) -> None:
        """Go on without a client and say why."""
        record = self.clients.setdefault(client, ClientRecord(client))
        record.reason = reason
        self.progress.note(f"client {client} is left out: {reason}")

    def run_method(self) -> ServerOutcome:
        """Run the method over all uploads, in the order of the clients' numbers.

        Raises
        ------
        FedBiCrossError
            When no client sent a usable upload, or fewer than there are to be clusters, or when the method
            changed an upload.
        """
        if not self.uploads:
            reasons = "; ".join(sorted({record.reason for record in self.clients.values()}))
            raise FedBiCrossError(f"no client sent a usable model: {reasons or 'no client answered'}")
        uploads = self.method_uploads()
        sent = [digest(upload_tensors(upload)) for upload in uploads]
        self.folder.inputs = ",".join(
            f"{upload.client}:{upload.num_samples}:{checksum[:16]}"
            for upload, checksum in zip(uploads, sent, strict=True)
        )
        with (
            cpu_threads(1),
            within_memory(
                "lower the method's batch sizes, or set inversion.teachers = 'in_turn', "
                "inversion.images_at_once and cross_cluster.activations = 'recomputed' (docs/performance.md)"
            ),
            ray_tasks(self.config.runtime, self.compute) as elsewhere,
        ):
            task = ServerTask(self.spec, self.config, self.compute, self.progress, self.folder, elsewhere)
            outcome = method_named(self.config.method).serve(uploads, task)
            self.refuse_changed(uploads, sent)
            quality = synthetic_quality(uploads, outcome, task)
        if quality is not None:
            self.folder.write_json("synthetic.json", asdict(quality))
        return self.take_outcome(outcome)

    def refuse_changed(self, uploads: Sequence[ClientUpload], sent: Sequence[str]) -> None:
        """Refuse the work of a method that trained what it was to read; `sent` has the uploads' checksums.

        The rows FedAvg-1 and ensemble would be scored with what it left, and kept for other methods.
        """
        changed = [
            str(upload.client)
            for upload, checksum in zip(uploads, sent, strict=True)
            if digest(upload_tensors(upload)) != checksum
        ]
        if changed:
            raise FedBiCrossError(
                f"method = {self.config.method!r} changed the upload of client(s) {', '.join(changed)}, "
                "which all methods share; let it copy what it trains (copy.deepcopy), or build its own model"
            )

    def take_outcome(self, outcome: ServerOutcome) -> ServerOutcome:
        """Take what a method has learned, and write it down."""
        self.outcome = outcome
        names = self.federation.info.class_names
        files = [self.folder.model_path(index) for index in range(len(outcome.models))]
        for file, state in zip(files, outcome.models, strict=True):
            save_model(file, self.spec, state, names)
        # Before an interruption, other clients may have made more clusters.
        for former in {*self.folder.model_path(0).parent.glob("*.safetensors")} - {*files}:
            former.unlink()
        write_findings(self.folder, sorted(outcome.assignment), outcome.findings)
        return outcome

    def method_uploads(self) -> list[ClientUpload]:
        """Return the uploads that the method works on, in the order of the clients' numbers."""
        return [self.uploads[client] for client in sorted(self.uploads)]

    def cluster_of(self, client: int) -> int:
        """Return which of the outcome's models a client is sent."""
        assert self.outcome is not None
        return self.outcome.assignment[client]

    def shipment(self, client: int) -> Shipment:
        """Return what a client is sent in round 2: the one model of its cluster, and images to rehearse."""
        assert self.outcome is not None
        shipment = Shipment(self.outcome.models[self.cluster_of(client)], self.outcome.replay)
        self.clients[client].bytes_received += shipment.num_bytes
        return shipment

    def record(self, client: int, scores: RowScores) -> None:
        """Take the scores that a client measured in round 2."""
        self.clients[client].scores = scores

    def finish(self, rounds: Mapping[str, float]) -> Path:
        """Score what only the server can, write metrics and report; return the report's path.

        Parameters
        ----------
        rounds : mapping of str to float
            Seconds of the two rounds with clients.

        Raises
        ------
        FedBiCrossError
            When no client finished round 2.
        """
        done = [record for record in self.clients.values() if record.scores]
        if not done:
            reasons = "; ".join(sorted({record.reason for record in self.clients.values()}))
            raise FedBiCrossError(f"no client finished its personal model: {reasons}")
        return self.write_results(done, rounds)

    def write_results(self, done: Sequence[ClientRecord], rounds: Mapping[str, float]) -> Path:
        """Write what `finish` says, for the clients that are done."""
        began, start = time.time(), time.perf_counter()
        uploads = [self.uploads[client] for client in sorted(self.uploads)]
        task = ServerTask(self.spec, self.config, self.compute, self.progress, self.folder)
        # None after many rounds of one of Flower's strategies; and sites keep their test images.
        if uploads and isinstance(self.federation, FederatedData):
            with cpu_threads(1), torch.inference_mode():
                server_scores(uploads, done, self.federation, task)
        seconds = {**self.folder.seconds(), **rounds}
        # What another run has asked the uploads counts here as there.
        earlier = sum(took for kind, at, took in self.folder.spans if kind == EVALUATION and at < began)
        seconds.pop(EVALUATION, None)
        seconds[EVALUATION] = time.perf_counter() - start + earlier
        seconds["total"] = time.perf_counter() - self.started
        assert self.outcome is not None
        model_bytes = payload_bytes(self.outcome.models[0])
        more = upload_bytes(uploads[0]) - model_bytes if uploads else 0
        replayed = Shipment({}, self.outcome.replay).num_bytes
        rows = rows_of(self.config.method, more, self.config.flower.rounds, replayed)
        write_metrics(self.folder, rows, done, model_bytes, len(uploads))
        records = [self.clients[client] for client in sorted(self.clients)]
        write_run(self.folder, self.config, self.federation, records, seconds, self.runner, self.extra)
        report = write_report(self.folder.path)
        self.folder.drop_stages()
        track(self.config, self.folder.path, self.progress)
        return report
