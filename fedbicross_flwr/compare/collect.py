"""Reads a folder of comparison runs, ``<out>/<cell>/<variant>/seed-<s>/``, whatever state it is in.

A run that failed, is not finished or cannot be read stands beside the others with its reason in one line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.compare.variants import GROUPS, VARIANTS, Variant
from fedbicross_flwr.compare.work_log import WorkLog, read_work_log
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.report.record import RunRecord
from fedbicross_flwr.report.rounds import load_rounds
from fedbicross_flwr.report.run_folder import failure_of, load_run
from fedbicross_flwr.settings import Scalar

DONE, FAILED, UNFINISHED, UNREADABLE = "done", "failed", "not finished", "unreadable"

CELL_NAME = re.compile(r"(?P<data>.+)-N(?P<clients>\d+)-alpha(?P<alpha>\d+(?:\.\d+)?(?:e[+-]?\d+)?|inf)")
SEED_NAME = re.compile(r"seed-(\d+)")
CLUSTER_COUNT = "cluster-count"
CLUSTER_STUDY = re.compile(r"fedbicross-K(\d+)")
"""Variants of the cluster-count study, a group of their own: FedBiCross with another K."""


@dataclass(frozen=True)
class CellName:
    """One federation setting: a data set dealt to so many clients with that Dirichlet concentration."""

    name: str
    data: str
    clients: int
    alpha: float

    @classmethod
    def named(cls, name: str) -> CellName | None:
        """Return the cell of a folder's name, such as ``phantom-N5-alpha0.3``; None for any other name."""
        match = CELL_NAME.fullmatch(name)
        return match and cls(name, match["data"], int(match["clients"]), float(match["alpha"]))

    @property
    def caption(self) -> str:
        """Return the setting as figures name it."""
        return f"{self.data}, N = {self.clients}, α = {self.alpha:g}"


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder: `record` when its `state` is ``"done"``, and `problem`, one line, otherwise.

    The record's images and curves are left out; they are many, and `load_run` reads them again. `rounds` is
    how many one of Flower's strategies took, `log` what the clients did here.
    """

    variant: Variant
    seed: int
    folder: Path
    state: str
    record: RunRecord | None = None
    problem: str = ""
    rounds: int | None = None
    log: WorkLog | None = None

    @property
    def complaint(self) -> str:
        """Why the run gave no result, in one line which names its folder."""
        return f"{self.folder}: {self.state}" + (f": {self.problem}" if self.problem else "")


@dataclass(frozen=True, eq=False)
class CellRuns:
    """All runs of one cell, in the order of the tables and then of the seeds."""

    cell: CellName
    runs: tuple[Run, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that have a folder, in the order of the tables."""
        return tuple({run.variant.name: run.variant for run in self.runs}.values())

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all finished runs, sorted."""
        return tuple(sorted({run.seed for run in self.runs if run.state == DONE}))

    def of(self, variant: str) -> tuple[Run, ...]:
        """Return the runs of a variant, by its name."""
        return tuple(run for run in self.runs if run.variant.name == variant)

    def records(self, variant: str = "") -> Iterator[tuple[Run, RunRecord]]:
        """Yield the finished runs, of one variant or of all, with their records."""
        for run in self.runs:
            if run.record is not None and variant in ("", run.variant.name):
                yield run, run.record


@dataclass(frozen=True, eq=False)
class Comparison:
    """A folder of comparison runs; cells are in the order of data set, clients and alpha."""

    out: Path
    cells: tuple[CellRuns, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """One line a run that gave no result."""
        return tuple(run.complaint for cell in self.cells for run in cell.runs if run.state != DONE)


def collect(out: Path) -> Comparison:
    """Read all runs of a comparison.

    Folders that are not named as a cell, a variant's seed or the like are passed over.

    Raises
    ------
    FedBiCrossError
        When there is no such folder, or no run of a comparison in it.
    """
    out = Path(out)
    if not out.is_dir():
        raise FedBiCrossError(
            f"{out} is not a folder; name with --out the folder that `fedbicross compare` wrote"
        )
    cells = [(cell, path) for path in _folders(out) if (cell := CellName.named(path.name)) is not None]
    cells.sort(key=lambda found: (found[0].data, found[0].clients, found[0].alpha))
    found = tuple(CellRuns(cell, tuple(_runs(cell, path))) for cell, path in cells)
    if not any(cell.runs for cell in found):
        raise FedBiCrossError(
            f"{out} holds no comparison: there is no folder such as phantom-N5-alpha0.3/fedbicross/seed-0 in "
            "it; name with --out the folder that `fedbicross compare` wrote"
        )
    return Comparison(out, found)


def variant_of(name: str) -> Variant:
    """Return the variant of a folder's name; one that is not listed is taken under its own name."""
    if name in VARIANTS:
        return VARIANTS[name]
    if match := CLUSTER_STUDY.fullmatch(name):
        clusters = int(match[1])
        settings: dict[str, Scalar] = {"method": FEDBICROSS, "clustering.clusters": clusters}
        return Variant(name, f"FedBiCross, K = {clusters}", CLUSTER_COUNT, settings, f"{clusters} clusters.")
    return Variant(name, name, "other", {}, "A variant that this version does not know.")


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir())


def _place(variant: Variant) -> tuple[int, int, int, str]:
    """Return where a variant stands in the tables; the cluster-count study goes by K."""
    group = GROUPS.index(variant.group) if variant.group in GROUPS else len(GROUPS)
    known = list(VARIANTS)
    index = known.index(variant.name) if variant.name in known else len(known)
    clusters = variant.overrides.get("clustering.clusters")
    return group, index, clusters if isinstance(clusters, int) else 0, variant.name


def _runs(cell: CellName, folder: Path) -> Iterator[Run]:
    found = [(variant_of(path.name), path) for path in _folders(folder)]
    for variant, path in sorted(found, key=lambda pair: _place(pair[0])):
        seeds = [(int(m[1]), child) for child in _folders(path) if (m := SEED_NAME.fullmatch(child.name))]
        for seed, child in sorted(seeds):
            yield _read(cell, variant, seed, child)


def _read(cell: CellName, variant: Variant, seed: int, folder: Path) -> Run:
    try:
        if (folder / "run.json").is_file():
            record = load_run(folder)
            _check(record, cell, variant, seed)
            light = dataclasses.replace(record, synthetic=(), inversion=None, weights=None)
            said = load_rounds(folder)
            rounds = said.rounds if said else None
            return Run(variant, seed, folder, DONE, light, rounds=rounds, log=read_work_log(folder))
        if (reason := failure_of(folder)) is not None:
            return Run(variant, seed, folder, FAILED, problem=_line(reason))
    except FedBiCrossError as error:
        return Run(variant, seed, folder, UNREADABLE, problem=_line(str(error)))
    return Run(variant, seed, folder, UNFINISHED)


def _check(record: RunRecord, cell: CellName, variant: Variant, seed: int) -> None:
    """Refuse a run that is not what its folder's name says: it would be counted in the wrong place."""
    if record.results is None:
        raise FedBiCrossError("there is no metrics.json in it; run it again")
    for key, found, wanted in _places(record.config, cell, variant, seed):
        if _as_named(found) != _as_named(wanted):
            raise FedBiCrossError(
                f"its config.toml has {key} = {found}, its folder's name says {wanted}; "
                "move it where it belongs or remove it"
            )


def _places(
    config: Mapping[str, Scalar], cell: CellName, variant: Variant, seed: int
) -> Iterator[tuple[str, Scalar, Scalar]]:
    """Yield ``(key, found, wanted)``: what a run's settings and its folder's name say of its place."""
    wanted = {"seed": seed, "partition.clients": cell.clients, "partition.alpha": cell.alpha}
    for key, value in {**wanted, **variant.overrides}.items():
        yield key, config.get(key, value), value
    data = "data.path" if config.get("data.path") else "data.name"
    path = Path(str(config.get(data, cell.data)))
    # A cell is called after the name of a folder, or of a file without its ending; which it was, only its
    # machine knows.
    yield data, path.name if cell.data == path.name else path.stem, cell.data
    # The method's settings are in its ablations too: which of them it was says the place where it was made.
    made = Path(str(config.get("out", ""))).parts[-3:]
    if len(made) == 3 and CellName.named(made[0]) and {made[1], variant.name} <= VARIANTS.keys():
        yield "out", "/".join(made[1:]), f"{variant.name}/seed-{seed}"


def _as_named(value: object) -> object:
    """Return a setting as a cell's name has it: alpha to 15 digits."""
    return f"{value:.15g}" if isinstance(value, float) else value


def _line(text: str) -> str:
    return " ".join(text.split())
