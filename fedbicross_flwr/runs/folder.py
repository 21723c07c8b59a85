"""The folder of a run: what is kept while it lasts, so that it can go on, and what it leaves behind.

Everything is written whole or not at all. A folder belongs to one configuration and one data set; it is
never used for another.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbicross_flwr.artifacts import read_tensors, read_whole, save_model, write_tensors
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.files import expanded, is_temporary, remove_leftovers, write_bytes
from fedbicross_flwr.methods import ClientUpload, StageResult
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.runs.code_version import made_by, shared_folder
from fedbicross_flwr.settings import Scalar, read_toml, toml_literal

IDENTITY = "identity.json"
RUN = "run.json"
CONFIG = "config.toml"
FAILED = "failed.json"
"""Says why a run of a comparison failed; gone when it begins again."""

STAGES = "stages"
LOCK = "lock"


@dataclass
class RunFolder:
    """A run's folder, opened for one configuration.

    Parameters
    ----------
    path : Path
        ``runs/<id>``.
    spans : list of (kind, start, seconds)
        When each finished stage ran, by the clock on the wall, also before an interruption or in another run.
    inputs : str
        Identifies the uploads that stages work on: a client may come back after an interruption, and
        stages that were finished without it are of no use then.
    cache : Path, optional
        A folder that several runs share: stages that say what shaped them are kept there.
    maker : str, optional
        What computes (`made_by`); uploads and stages that another kept here are of no use then. None for a
        reader, and in a deployment, whose uploads stand whatever made them.
    data : str
        The data set's fingerprint; empty for a reader, and in a deployment.
    """

    path: Path
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    inputs: str = ""
    cache: Path | None = None
    maker: str | None = None
    data: str = ""

    @classmethod
    def open(cls, path: Path, config: RunConfig, data_fingerprint: str) -> RunFolder:
        """Make the folder, or go on with the one of an interrupted run, without what it left of files.

        Raises
        ------
        FedBiCrossError
            When the folder cannot be written, belongs to another configuration or data set, or holds
            something else; nothing in it is touched then.
        """
        check_folder(path, config, data_fingerprint)
        remove_leftovers(path)
        cache = shared_folder(config)
        if cache:
            make_writable(cache, "choose another folder with cache")
        maker = None if config.is_deployment else made_by(config, Compute.of(config.runtime))
        data = "" if config.is_deployment else data_fingerprint
        folder = cls(path, cache=cache, maker=maker, data=data)
        folder.write_json(IDENTITY, identity_of(config, data_fingerprint))
        (path / FAILED).unlink(missing_ok=True)
        if config.is_deployment or not folder.finished:
            # What a finished simulation was made with stays written, and windows of a deployment may change.
            write_bytes(path / CONFIG, to_toml(config).encode())
        return folder

    @property
    def finished(self) -> bool:
        """Return whether the run was done to its end, which is its report."""
        try:
            done = json.loads((self.path / RUN).read_text(encoding="utf-8"))["finished"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return bool(done) and (self.path / "report.html").exists()

    def write_json(self, name: str, content: Any) -> None:
        """Write a file of JSON."""
        write_bytes(self.path / name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def upload_path(self, client: int) -> Path:
        """Return where a client's upload is kept."""
        return self.path / "uploads" / f"client-{client:02d}.safetensors"

    def model_path(self, cluster: int) -> Path:
        """Return where a model that the method learned is kept."""
        return self.path / "models" / f"cluster-{cluster}.safetensors"

    def subspace_path(self, client: int) -> Path:
        """Return where the subspace is kept that a client uploaded for PACFL."""
        return self.path / "uploads" / f"subspace-{client:02d}.safetensors"

    def site(self, client: int) -> Path:
        """Return the directory that stands for a simulated client's own."""
        return self.path / "sites" / f"client-{client:02d}"

    def save_upload(
        self, upload: ClientUpload, spec: ModelSpec, class_names: tuple[str, ...], facts: Mapping[str, float]
    ) -> None:
        """Keep an upload, with what else the client said of its training."""
        said = {
            "num_samples": str(upload.num_samples),
            "said": json.dumps(dict(facts)),
            "made_by": self.maker or "",
        }
        if upload.subspace is not None:
            write_tensors(self.subspace_path(upload.client), {"subspace": upload.subspace})
        save_model(self.upload_path(upload.client), spec, upload.state, class_names, **said)

    def load_upload(self, client: int) -> tuple[ClientUpload, dict[str, float]] | None:
        """Return a kept upload; one that is damaged, or that other code made, can be had again: None.

        Raises
        ------
        MachineError
            When the system does not let it be read: what is kept there is not to be lost for that.
        """
        try:
            state, facts = read_tensors(self.upload_path(client))
            if self.maker is not None and facts.get("made_by") != self.maker:
                return None
            num_samples, said = int(facts["num_samples"]), json.loads(facts["said"])
            subspace = None
            if self.subspace_path(client).exists():
                subspace = read_tensors(self.subspace_path(client))[0]["subspace"]
        except MachineError:
            raise
        except (FedBiCrossError, KeyError, ValueError):
            return None
        return ClientUpload(client, num_samples, state, subspace), said

    def run(
        self, name: str, kind: str, compute: Callable[[], StageResult], shaped_by: str = ""
    ) -> StageResult:
        """Return a stage's result, from the folder if it was finished before (see `methods.Stages`).

        Raises
        ------
        MachineError
            When the system does not let it be read.
        """
        path = self.path / STAGES / f"{name}.safetensors"
        inputs = self.inputs if self.maker is None else f"{self.maker}|{self.inputs}"
        if self.cache and shaped_by:
            path, inputs = self.cache / STAGES / f"{shaped_by}.safetensors", shaped_by
        tensors, facts = read_whole(path) or ({}, {})
        if facts.get("inputs") == inputs:
            result = StageResult(tensors, json.loads(facts["facts"]))
            span = float(facts["started"]), float(facts["seconds"])
        else:
            started, start = time.time(), time.perf_counter()
            result = compute()
            span = started, time.perf_counter() - start
            said = {"facts": json.dumps(result.facts), "inputs": inputs}
            times = {"started": repr(span[0]), "seconds": repr(span[1])}
            write_tensors(path, result.tensors, {**said, **times})
        self.spans.append((kind, *span))
        return result

    def seconds(self) -> dict[str, float]:
        """Return the time of each kind of stage; what ran side by side counts once."""
        totals: dict[str, float] = {}
        ends: dict[str, float] = {}
        for kind, start, seconds in sorted(self.spans, key=lambda span: span[1]):
            counted = max(start + seconds - max(start, ends.get(kind, start)), 0.0)
            ends[kind] = max(start + seconds, ends.get(kind, start))
            totals[kind] = totals.get(kind, 0.0) + counted
        return totals

    def drop_stages(self) -> None:
        """Remove what was kept only to go on after an interruption."""
        shutil.rmtree(self.path / STAGES, ignore_errors=True)


def drop_shared_stages(config: RunConfig) -> None:
    """Remove the stages that runs have shared, under any code; the clients' own models stay."""
    if config.cache:
        for stages in expanded(Path(config.cache)).glob(f"*/{STAGES}"):
            shutil.rmtree(stages, ignore_errors=True)


def read_config(folder: Path) -> RunConfig:
    """Return the configuration that a run's folder keeps.

    Raises
    ------
    FedBiCrossError
        When there is none, or it is none of this version's.
    """
    flat = read_toml(file := folder / CONFIG)
    try:
        return RunConfig.from_flat(flat)
    except FedBiCrossError as error:
        raise FedBiCrossError(
            f"{file}: {error}; the file is damaged or was written by another version"
        ) from error


def identity_of(config: RunConfig, data_fingerprint: str) -> dict[str, Any]:
    """Return what a folder is known by: the settings that shape the result, and the data."""
    settings = {key: json_value(value) for key, value in config.shaping().items()}
    return {"fingerprint": config.fingerprint(), "data": data_fingerprint, "settings": settings}


def check_folder(path: Path, config: RunConfig, data_fingerprint: str) -> None:
    """Hold a folder against the run that is to use it; no file is written.

    Raises
    ------
    FedBiCrossError
        See `RunFolder.open`.
    """
    make_writable(path)
    if (path / IDENTITY).exists():
        compare_identity(path, identity_of(config, data_fingerprint))
    elif foreign := strange_files(path):
        raise FedBiCrossError(f"{path} holds {foreign[0]} but no run; choose an empty folder for --out")


def strange_files(path: Path) -> list[str]:
    """Return what a folder holds that is no run's; one with a run in it holds nothing strange.

    A run that is killed at its first file leaves that one under its temporary name.
    """
    if (path / IDENTITY).exists():
        return []
    names = (entry.name for entry in path.iterdir())
    return sorted(name for name in names if name != LOCK and not is_temporary(name))


def check_no_run(path: Path) -> None:
    """Refuse a run's folder, or that of its record, for what is to hold the folders of runs.

    Raises
    ------
    FedBiCrossError
        When it is one.
    """
    if any((path / name).exists() for name in (IDENTITY, RUN)):
        raise FedBiCrossError(f"{path} is a run's folder; a comparison needs one of its own: name another")


def make_writable(path: Path, remedy: str = "choose another folder with --out") -> None:
    """Make a folder and try whether files can be written there; else say so, with what to do."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise FedBiCrossError(f"cannot write to {path}: {error.strerror}; {remedy}") from error


def compare_identity(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder of another run, naming what differs."""
    try:
        former = json.loads((path / IDENTITY).read_text(encoding="utf-8"))
        # A setting that the run's software did not have yet is at its default in a run of today's.
        defaults = {key: json_value(value) for key, value in RunConfig().flat().items()}
        settings = {**defaults, **former["settings"]}
        same_data = former["data"] == identity["data"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FedBiCrossError(f"{path / IDENTITY} is damaged; choose another folder with --out") from error
    for key, value in identity["settings"].items():
        if settings[key] != value:
            raise FedBiCrossError(
                f"{path} belongs to a run with {key} = {settings[key]!r}, this one has {value!r}; "
                "choose another folder with --out"
            )
    if not same_data:
        raise FedBiCrossError(f"{path} belongs to a run on other images; choose another folder with --out")


def json_value(value: Scalar) -> Scalar:
    """Return a setting as JSON has it: infinity, as in ``partition.alpha``, is no JSON number."""
    return "inf" if value == float("inf") else value


def to_toml(config: RunConfig) -> str:
    """Return a configuration as TOML."""
    return flat_to_toml(config.flat())


def flat_to_toml(flat: Mapping[str, Scalar]) -> str:
    """Return flat settings as TOML, one table a section."""
    tables: dict[str, list[str]] = {}
    for key, value in flat.items():
        section, _, name = key.rpartition(".")
        tables.setdefault(section, []).append(f"{name} = {toml_literal(value)}")
    blocks = ["\n".join(tables.pop(""))]
    blocks += [f"[{section}]\n" + "\n".join(lines) for section, lines in tables.items()]
    return "\n\n".join(blocks) + "\n"


def free_run_id(parent: Path) -> str:
    """Return a name for a new run folder under `parent`: date and time, and a number if that is taken."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = [stamp, *(f"{stamp}-{number}" for number in range(2, 100))]
    return next(name for name in candidates if not os.path.lexists(parent / name))
