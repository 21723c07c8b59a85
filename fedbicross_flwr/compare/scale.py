"""The runs of a comparison that were made at one scale; of the others a table says that they are not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from fedbicross_flwr.compare.checks import reads, shaping_keys
from fedbicross_flwr.compare.collect import CellRuns, Comparison, Run
from fedbicross_flwr.compare.plan import scale_file
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.settings import Scalar, read_toml

OTHER_SCALE = "of another scale"

OF_A_CELL: Final = frozenset({"data", "partition", "clustering.clusters"})
"""Sections and settings that tables name beside every figure: they are no part of a scale."""


def at_scale(comparison: Comparison, scale: str) -> Comparison:
    """Return a comparison in which finished runs of another scale have no results.

    Parameters
    ----------
    comparison : Comparison
        As it was collected.
    scale : str
        ``quick`` or ``paper``: a run is of that scale if all settings that its method reads are those of the
        file of that name, but for data set, partition and K.

    Raises
    ------
    FedBiCrossError
        When there is no such scale.
    """
    flat = RunConfig.from_flat(read_toml(scale_file(scale))).flat()
    wanted = {
        key: flat[key] for key in sorted(shaping_keys()) if not {key, key.partition(".")[0]} & OF_A_CELL
    }
    cells = tuple(
        CellRuns(cell.cell, tuple(_held_against(run, wanted) for run in cell.runs))
        for cell in comparison.cells
    )
    return Comparison(comparison.out, cells)


def _held_against(run: Run, wanted: Mapping[str, Scalar]) -> Run:
    """Return a run, without its results if it was made with other settings."""
    other = "" if run.record is None else difference(run, wanted)
    return dataclasses.replace(run, state=OTHER_SCALE, record=None, problem=other) if other else run


def difference(run: Run, wanted: Mapping[str, Scalar]) -> str:
    """Return the first setting in which a finished run differs from a scale, or nothing."""
    assert run.record is not None
    for key, value in wanted.items():
        if key in run.variant.overrides or not reads(run.variant, key):
            continue
        found = run.record.config.get(key, value)
        if found != value:
            return f"{key} is {found} and not {value}"
    return ""
