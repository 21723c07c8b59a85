"""What the synthetic images of every method of a cell are worth: why a student failed, or did not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, stdev

from fedbicross_flwr.compare.collect import CellRuns
from fedbicross_flwr.report.record import SyntheticQuality
from fedbicross_flwr.report.render import markdown_table
from fedbicross_flwr.report.seeds_table import Spread

MEASURES: dict[str, Callable[[SyntheticQuality], float]] = {
    "Taken for their label": lambda found: found.agreement,
    "Learned": lambda found: found.learned,
    "Most frequent answer": lambda found: found.most_frequent,
}
LEGEND = (
    "Of the last synthetic images, in percent, mean ± sample standard deviation over seeds. Taken for their "
    "label: by all uploads together (the mean of their probabilities). Classes: of how many at least one "
    "image is. Learned: the shipped model answers as the uploads do. Most frequent answer: of the shipped "
    "model; near 100, it says one class to everything."
)


@dataclass(frozen=True)
class ImageQuality:
    """One method: the spread of each of `MEASURES` over seeds, and the mean numbers of images and classes."""

    title: str
    images: float
    classes: float
    measures: tuple[Spread, ...]


def image_quality(cell: CellRuns) -> tuple[ImageQuality, ...]:
    """Return one entry for each variant that makes images, in the order of the table."""
    found = []
    for variant in cell.variants:
        runs = [run.quality for _, run in cell.records(variant.name) if run.quality is not None]
        if not runs:
            continue
        spreads = []
        for read in MEASURES.values():
            values = [read(run) for run in runs]
            spreads.append(Spread(fmean(values), stdev(values) if len(values) > 1 else None))
        images, classes = fmean(run.images for run in runs), fmean(run.classes for run in runs)
        found.append(ImageQuality(variant.title, images, classes, tuple(spreads)))
    return tuple(found)


def image_quality_markdown(found: tuple[ImageQuality, ...]) -> str:
    """Return the table with its legend."""
    header = ("Synthetic images of", "Images", "Classes", *MEASURES)
    body = [
        [one.title, f"{one.images:.0f}", f"{one.classes:.1f}", *(str(value) for value in one.measures)]
        for one in found
    ]
    return f"{markdown_table(header, body)}\n\n{LEGEND}"
