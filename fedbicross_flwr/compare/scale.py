"""The scale of a comparison's runs: those of one alone, and in which settings runs differ from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final

from fedbicross_flwr.compare.checks import reads, shaping_keys
from fedbicross_flwr.compare.collect import CellRuns, Comparison, Run
from fedbicross_flwr.compare.plan import scale_file
from fedbicross_flwr.compare.variants import VARIANTS
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.report.record import DEFAULTS
from fedbicross_flwr.report.units import listing
from fedbicross_flwr.settings import Scalar, read_toml

OTHER_SCALE = "of another scale"

OF_A_CELL: Final = frozenset({"data", "partition", "clustering.clusters", "flower.rounds"})
"""Sections and settings that tables name beside every figure: they are no part of a scale."""


def at_scale(comparison: Comparison, scale: str) -> Comparison:
    """Return a comparison in which finished runs of another scale have no results.

    Parameters
    ----------
    comparison : Comparison
        As it was collected.
    scale : str
        ``quick`` or ``paper``: a run is of that scale if all settings that its method reads are those of the
        file of that name, but for data set, partition, K and the rounds of a strategy.

    Raises
    ------
    FedBiCrossError
        When there is no such scale.
    """
    wanted = settings_of(scale)
    cells = tuple(
        CellRuns(cell.cell, tuple(_held_against(run, wanted) for run in cell.runs))
        for cell in comparison.cells
    )
    return Comparison(comparison.out, cells)


def settings_of(scale: str) -> dict[str, Scalar]:
    """Return all settings that make a scale, by flat key, sorted.

    Raises
    ------
    FedBiCrossError
        When there is no such scale, or the package was installed without its checkout.
    """
    flat = RunConfig.from_flat(read_toml(scale_file(scale))).flat()
    return {key: flat[key] for key in sorted(shaping_keys()) if not {key, key.partition(".")[0]} & OF_A_CELL}


def _held_against(run: Run, wanted: Mapping[str, Scalar]) -> Run:
    """Return a run, without its results if it was made with other settings."""
    other = "" if run.record is None else difference(run, wanted)
    return dataclasses.replace(run, state=OTHER_SCALE, record=None, problem=other) if other else run


def difference(run: Run, wanted: Mapping[str, Scalar]) -> str:
    """Return the first setting in which a finished run differs from a scale, or nothing."""
    return next(
        (
            f"{key} is {found} and not {wanted[key]}"
            for key, found in settings_read(run, wanted)
            if found != wanted[key]
        ),
        "",
    )


def settings_read(run: Run, wanted: Mapping[str, Scalar]) -> Iterator[tuple[str, Scalar]]:
    """Yield those of a scale's settings that a finished run reads, as it had them.

    What its variant sets itself is no part of a scale either.
    """
    assert run.record is not None
    for key in wanted:
        if key not in run.variant.overrides and reads(run.variant, key):
            yield key, run.record.config.get(key, DEFAULTS[key])


def scale_differences(scale: str, runs: Sequence[Run]) -> list[str]:
    """Return in which settings finished runs differ from a scale: a phrase for methods that do so alike.

    Such as ``DAFL: dafl.epochs 16 (2000), steps 20 (120); model.width 16 (64)``, the scale's value in
    brackets. Methods that differ in a setting in the same way share its place; most methods come first.

    Raises
    ------
    FedBiCrossError
        When there is no such scale, or the package was installed without its checkout.
    """
    wanted = settings_of(scale)
    found = _by_method(runs, wanted)
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for key, value in wanted.items():
        alike: dict[frozenset[Scalar], list[str]] = {}
        for method, settings in found.items():
            if (values := frozenset(settings.get(key, ()))) - {value}:
                alike.setdefault(values, []).append(method)
        for values, methods in alike.items():
            told = f"{listing(sorted(str(one) for one in values))} ({value})"
            groups.setdefault(tuple(methods), {})[key] = told
    first = sorted(groups, key=lambda methods: (-len(methods), list(found).index(methods[0])))
    return [f"{_named(methods, len(found))}: {_by_section(groups[methods])}" for methods in first]


def _by_method(runs: Sequence[Run], wanted: Mapping[str, Scalar]) -> dict[str, dict[str, set[Scalar]]]:
    """Return which values the runs of each method have of a scale's settings; methods as in the tables."""
    found: dict[str, dict[str, set[Scalar]]] = {}
    for run in runs:
        values = found.setdefault(str(run.variant.overrides["method"]), {})
        for key, value in settings_read(run, wanted):
            values.setdefault(key, set()).add(value)
    return {method: found[method] for method in VARIANTS if method in found}


def _named(methods: Sequence[str], ran: int) -> str:
    """Return the titles of methods; all of several that ran are all."""
    return "All methods" if 1 < len(methods) == ran else listing([VARIANTS[name].title for name in methods])


def _by_section(told: Mapping[str, str]) -> str:
    """Return what is told of sorted flat keys, with each section named once."""
    sections = groupby(told, key=lambda key: key.partition(".")[0])
    return "; ".join(
        f"{section}." + ", ".join(f"{key.partition('.')[2]} {told[key]}" for key in keys)
        for section, keys in sections
    )
