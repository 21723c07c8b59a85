"""What a finished run comes to, as experiment trackers take it: settings, figures, curves, pictures.

All of it is read from the run's folder, and only what ``metrics.json``, ``run.json`` and the files of curves
and synthetic images hold. Names of sites and paths of this machine are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.inversion import DIAGNOSTICS
from fedbicross_flwr.report.figures.synthetic import contact_sheet
from fedbicross_flwr.report.record import RunRecord, SyntheticImages
from fedbicross_flwr.report.rounds import load_rounds
from fedbicross_flwr.report.table import results_table
from fedbicross_flwr.settings import Scalar

COLUMNS = 8
"""Synthetic images shown of each class."""
NAMES_SITES = "deployment.sites"
NOT_IN_A_NAME = re.compile(r"[^\w./ -]")

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True, eq=False)
class RunFacts:
    """One run as a tracker shows it.

    Parameters
    ----------
    settings : mapping of str to bool, int, float or str
        The settings that shape the result, by flat key; an infinite one is the text ``inf``.
    figures : mapping of str to float
        Scores as fractions, bytes a client, seconds; by a name with one slash, the group before it.
    curves : mapping of str to sequence of (step, value)
    pictures : mapping of str to numpy.ndarray of uint8, shape (H, W, 3)
        One contact sheet a cluster: a row is a class.
    """

    settings: Mapping[str, Scalar]
    figures: Mapping[str, float]
    curves: Mapping[str, Curve]
    pictures: Mapping[str, NDArray[np.uint8]]


def facts_of(run: RunRecord, config: RunConfig) -> RunFacts:
    """Gather a run's facts.

    Raises
    ------
    FedBiCrossError
        When the run has no results, or a file of it is damaged.
    """
    shaping = {key: value for key, value in config.shaping().items() if key != NAMES_SITES}
    classes = len(run.dataset.class_names)
    return RunFacts(
        settings={key: "inf" if value == float("inf") else value for key, value in shaping.items()},
        figures={plain(name): value for name, value in _figures(run)},
        curves={name: curve for name, curve in _curves(run) if curve},
        pictures={f"synthetic/cluster {one.cluster}": picture(one, classes) for one in run.synthetic},
    )


def plain(name: str) -> str:
    """Return a name of the characters that every tracker takes: ``DENSE, fine-tuned`` loses its comma."""
    return NOT_IN_A_NAME.sub("", name)


def picture(sheet: SyntheticImages, classes: int) -> NDArray[np.uint8]:
    """Return a cluster's contact sheet on white, uint8 (H, W, 3)."""
    canvas = contact_sheet(sheet, classes, COLUMNS)
    opaque = canvas[..., 3:]
    shown: NDArray[np.uint8] = (255 * (canvas[..., :3] * opaque + 1 - opaque)).round().astype(np.uint8)
    return shown


def _figures(run: RunRecord) -> Iterator[tuple[str, float]]:
    """Yield scores of each row under each protocol over the clients, bytes, seconds, the silhouette."""
    for row in results_table(run).rows:
        for (protocol, metric), value in row.values.items():
            if value.mean is not None and value.worst is not None:
                yield f"{protocol} {metric}/{row.name}", value.mean
                yield f"{protocol} {metric} of the worst client/{row.name}", value.worst
        yield f"bytes sent/{row.name}", row.bytes_up
        yield f"bytes received/{row.name}", row.bytes_down
    for stage, seconds in run.seconds.items():
        yield f"seconds/{stage}", seconds
    if run.clustering is not None and run.clustering.silhouette is not None:
        yield "clustering/silhouette", run.clustering.silhouette


def _curves(run: RunRecord) -> Iterator[tuple[str, Curve]]:
    """Yield the curves of inversions, cross-cluster weights and rounds, whichever the run has."""
    for name in DIAGNOSTICS:
        joined: dict[int, list[float]] = {}
        for one in sorted(run.inversion or (), key=lambda one: one.round):
            joined.setdefault(one.cluster, []).extend(getattr(one, name))
        for cluster, values in joined.items():
            yield f"inversion {name}/cluster {cluster}", _finite(enumerate(values))
    if run.weights is not None:
        steps = [int(step) for step in run.weights.steps]
        for target, source in np.ndindex(run.weights.weights.shape[1:]):
            learned = zip(steps, run.weights.weights[:, target, source], strict=True)
            yield f"weights of cluster {target}/from cluster {source}", _finite(learned)
    if (rounds := load_rounds(run.folder)) is not None:
        yield "rounds/global accuracy", _finite(enumerate(rounds.accuracy))


def _finite(points: Iterable[tuple[int, float]]) -> Curve:
    return [(step, float(value)) for step, value in points if np.isfinite(value)]
