"""Which runs make up a comparison: every variant on every federation setting (a cell), with every seed.

All runs of one cell and one seed differ in their variant's own settings alone, so that their clients
upload the same models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedbicross_flwr.compare.variants import CENTRAL, Variant
from fedbicross_flwr.config import RunConfig, with_absolute_paths
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import expanded
from fedbicross_flwr.launch import find_app
from fedbicross_flwr.settings import Scalar, parse_override, read_toml

SCALES = ("quick", "paper")
MOST_RUNS: Final = 10_000
"""All are planned and checked before the first one starts, and that many take weeks."""

OWN_KEYS = {"method": "--methods", "seed": "--seeds", "out": "--out", "cache": "--out"}
"""Settings that a comparison gives to its runs itself, and the option that says how."""


@dataclass(frozen=True)
class Cell:
    """One federation setting.

    Parameters
    ----------
    name : str
        Also the name of its folder, such as ``phantom-N5-alpha0.3``.
    settings : mapping of str to bool, int, float or str
        What makes it this cell, by flat key.
    """

    name: str
    settings: Mapping[str, Scalar]


@dataclass(frozen=True)
class PlannedRun:
    """One variant in one cell with one seed; `config` says everything, its own folder included."""

    cell: str
    variant: Variant
    config: RunConfig

    @property
    def folder(self) -> Path:
        """Return the run's folder, which is absolute."""
        return Path(self.config.out)

    @property
    def title(self) -> str:
        """Return what the run is called on the terminal."""
        return f"{self.cell} {self.variant.name} seed {self.config.seed}"

    @property
    def central(self) -> bool:
        """Return whether this is the model trained on pooled data, which is no federation."""
        return self.variant.name == CENTRAL


def base_settings(scale: str, config: Path | None, overrides: Sequence[str]) -> dict[str, Scalar]:
    """Return the settings that all runs share: a file's, and ``key=value`` texts on top of it.

    Parameters
    ----------
    scale : str
        ``quick`` or ``paper``, the files of these names in the checkout's ``configs``; empty stands for
        ``quick`` where no file is named.
    config : Path, optional
        Another file, instead of a scale.
    overrides : sequence of str
        ``--set`` texts.

    Raises
    ------
    FedBiCrossError
        When both a scale and a file are named, either is unknown or unreadable, or a text sets what the
        comparison sets itself.
    """
    if scale and config:
        raise FedBiCrossError(f"--scale {scale} and --config {config} exclude each other; leave one out")
    settings = read_toml(config or scale_file(scale or SCALES[0]))
    for text in overrides:
        key, value = parse_override(text)
        if key in OWN_KEYS:
            raise FedBiCrossError(
                f"--set {key} has no effect on a comparison, which sets it for each run; "
                f"use {OWN_KEYS[key]} instead"
            )
        settings[key] = value
    return settings


def scale_file(scale: str) -> Path:
    """Return the configuration file of a scale.

    Raises
    ------
    FedBiCrossError
        When there is no such scale, or the package was installed without its checkout.
    """
    if scale not in SCALES:
        raise FedBiCrossError(
            f"--scale {scale!r} is not one of {', '.join(SCALES)}{near_names(scale, SCALES)}"
        )
    file = find_app() / "configs" / f"{scale}.toml"
    if not file.is_file():
        raise FedBiCrossError(
            f"--scale {scale} needs {file}, which is not there; name a configuration with --config"
        )
    return file


def numbers(option: str, text: str, kind: type[int] | type[float]) -> list[int | float]:
    """Read a list of numbers with commas between them, each once; an empty text names none.

    Raises
    ------
    FedBiCrossError
        When something in it is no such number, or there are commas alone.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    wanted = f"{'whole numbers' if kind is int else 'numbers'} with commas between them are needed"
    if text and not words:
        raise FedBiCrossError(f"{option} {text!r} names nothing: {wanted}")
    for word in words:
        # Python would take 1_0 for ten, and the digits of other scripts.
        if "_" in word or not word.isascii():
            raise FedBiCrossError(f"{option} {text!r}: {wanted}, not {word!r}")
    try:
        return list(dict.fromkeys(map(kind, words)))
    except ValueError as error:
        raise FedBiCrossError(f"{option} {text!r}: {wanted} ({error})") from error


def cells_of(
    base: Mapping[str, Scalar], data: Sequence[Mapping[str, Scalar]], clients: str, alphas: str
) -> list[Cell]:
    """Return every combination of data set, number of clients and alpha.

    Parameters
    ----------
    base : mapping
        Gives what is not named.
    data : sequence of mapping
        Settings of the section ``data``, one mapping a data set; none takes the base's.
    clients, alphas : str
        Numbers with commas between them; empty takes the base's.

    Raises
    ------
    FedBiCrossError
        When a number cannot be read, a setting is wrong, or two data sets have the same name.
    """
    counts = [{"partition.clients": value} for value in numbers("--clients", clients, int)]
    skews = [{"partition.alpha": value} for value in numbers("--alphas", alphas, float)]
    found: dict[str, Cell] = {}
    for images in data or [{}]:
        for count in counts or [{}]:
            for skew in skews or [{}]:
                settings: dict[str, Scalar] = {**images, **count, **skew}
                # FedAvg-1 asks nothing of it; `plan_runs` holds each method against the number of clients.
                config = RunConfig.from_flat({**base, **settings, "method": "fedavg"})
                cell = Cell(cell_name(config), settings)
                former = found.get(cell.name, cell)
                if former != cell and skew and {**former.settings, **skew} == cell.settings:
                    raise FedBiCrossError(
                        f"--alphas {alphas!r}: two of them are equal to 15 digits, which name their folder; "
                        "leave one out"
                    )
                if former != cell:
                    raise FedBiCrossError(
                        f"two data sets of this comparison are called {cell.name.rpartition('-N')[0]}; "
                        "rename one of the files"
                    )
                found[cell.name] = cell
    return list(found.values())


def cell_name(config: RunConfig) -> str:
    """Return the name of a federation setting: data set, clients, alpha."""
    # As the run's own settings will have it: without links, and "." has no name.
    path = expanded(Path(config.data.path)).resolve()
    own = path.name if path.is_dir() else path.stem
    data = own if config.data.path else config.data.name
    return f"{data}-N{config.partition.clients}-alpha{config.partition.alpha:.15g}"


def plan_runs(
    base: Mapping[str, Scalar],
    cells: Iterable[Cell],
    variants: Sequence[Variant],
    seeds: int,
    out: Path,
) -> list[PlannedRun]:
    """Return all runs in the order in which they are made: seed by seed, cell by cell.

    The first variant of a cell and seed trains the clients' models, and all others use them again.

    Parameters
    ----------
    base : mapping
        Settings that all runs share.
    cells, variants
        What is compared where.
    seeds : int
        Seeds 0, 1, ... below it.
    out : Path
        Absolute; the comparison's folder, with the runs' shared cache in it.

    Raises
    ------
    FedBiCrossError
        When there is to be no seed, there are to be more than `MOST_RUNS` runs, or a setting is wrong.
    """
    if seeds < 1:
        raise FedBiCrossError(f"--seeds {seeds} is too small: it must be at least 1")
    cells = list(cells)
    if (count := seeds * len(cells) * len(variants)) > MOST_RUNS:
        raise FedBiCrossError(
            f"--seeds {seeds} for {len(cells)} cell(s) and {len(variants)} method(s) are {count} runs, and a "
            f"comparison has at most {MOST_RUNS}; name fewer, or split it over several calls"
        )
    runs = []
    for seed in range(seeds):
        for cell in cells:
            for variant in variants:
                own: dict[str, Scalar] = {
                    "seed": seed,
                    "out": str(run_folder(out, cell.name, variant, seed)),
                    "cache": str(out / "cache"),
                }
                flat = {**base, **cell.settings, **variant.overrides, **own}
                runs.append(PlannedRun(cell.name, variant, checked(flat, cell.name, variant)))
    return runs


def checked(flat: Mapping[str, Scalar], cell: str, variant: Variant) -> RunConfig:
    """Return a run's configuration; a mistake in it is told with the run's name."""
    try:
        config = RunConfig.from_flat(flat)
    except FedBiCrossError as error:
        raise FedBiCrossError(f"{cell} {variant.name}: {error}") from error
    return with_absolute_paths(config)


def run_folder(out: Path, cell: str, variant: Variant, seed: int) -> Path:
    """Return the folder of one run."""
    return out / cell / variant.name / f"seed-{seed}"
