"""The records of a comparison's runs: small enough to publish, and its tables can be made of them again.

Models, images and the partition stay where they are, and so do all paths of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from fedbicross_flwr.compare.collect import Run, collect
from fedbicross_flwr.compare.work_log import LOG, work_events
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.progress import Event
from fedbicross_flwr.runs.folder import flat_to_toml
from fedbicross_flwr.settings import read_toml
from fedbicross_flwr.site.path_free import path_free

AS_THEY_ARE: Final = ("metrics.json", "clustering.json", "synthetic.json")
PATHS: Final = ("out", "cache", "data.root")
"""Settings that say where things are on this machine, and nothing of the result."""


def export_records(out: Path, to: Path) -> tuple[list[Path], list[str]]:
    """Write the records of all finished runs of a comparison to another folder, in the same order of folders.

    `fedbicross table`, and those figures that show no images, read it as they read the comparison.

    Parameters
    ----------
    out : Path
        The comparison.
    to : Path
        Records that are there of the same runs are replaced; others stay.

    Returns
    -------
    tuple of (list of Path, list of str)
        The folders that were written, and a line for each run that gave no result.

    Raises
    ------
    FedBiCrossError
        When there is no such comparison, none of its runs is finished, or `to` lies in it.
    """
    if to.resolve().is_relative_to(out.resolve()):
        raise FedBiCrossError(f"{to} lies in the comparison {out} itself; name a folder outside of it")
    comparison = collect(out)
    written = []
    for cell in comparison.cells:
        for run, _ in cell.records():
            folder = to / run.folder.relative_to(comparison.out)
            for name, content in record_files(run).items():
                write_bytes(folder / name, content)
            written.append(folder)
    if not written:
        raise FedBiCrossError(
            f"{out} has no finished run; `fedbicross compare` with the same --out finishes them"
        )
    return written, list(comparison.problems)


def record_files(run: Run) -> dict[str, bytes]:
    """Return what is kept of a run, by the names of the files."""
    files = {name: run.folder / name for name in AS_THEY_ARE}
    kept = {name: file.read_bytes() for name, file in files.items() if file.exists()}
    said = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    kept["run.json"] = (json.dumps(path_free_record(said), indent=1) + "\n").encode()
    kept["config.toml"] = path_free_config(run.folder / "config.toml").encode()
    if (run.folder / LOG).is_file():
        events = ends_of_work(work_events(run.folder))
        kept[LOG] = "".join(json.dumps(asdict(event)) + "\n" for event in events).encode()
    return kept


def path_free_record(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``run.json`` without a path: own data go by the name of their file or folder."""
    dataset = {**said["dataset"], "source": last_name(said["dataset"]["source"])}
    clients = [{**client, "reason": path_free(client["reason"], {})} for client in said["clients"]]
    return {**said, "dataset": dataset, "clients": clients}


def path_free_config(file: Path) -> str:
    """Return ``config.toml`` without a path."""
    flat = {**read_toml(file), **dict.fromkeys(PATHS, "")}
    return flat_to_toml({**flat, "data.path": last_name(str(flat.get("data.path", "")))})


def last_name(text: str) -> str:
    """Return the name of the file or folder that a text is the path of; another text as it is."""
    return Path(text).name if Path(text).is_absolute() else text


def ends_of_work(events: Iterable[Event]) -> Iterator[Event]:
    """Yield the first event and the last, and between them those that say that a client's work is done."""
    last: Event | None = None
    for number, event in enumerate(events):
        if number == 0 or (event.client is not None and event.done == event.total):
            yield event
            last = None
        else:
            last = event
    if last is not None:
        yield last
