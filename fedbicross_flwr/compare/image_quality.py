"""What the synthetic images of every method of a cell are worth: why a student failed, or did not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from fedbicross_flwr.compare.collect import CellRuns
from fedbicross_flwr.report.record import SyntheticQuality
from fedbicross_flwr.report.render import markdown_table
from fedbicross_flwr.report.seeds_table import Spread
from fedbicross_flwr.report.units import ABSENT, count

MEASURES: Final[dict[str, Callable[[SyntheticQuality], float | None]]] = {
    "Taken for their label": lambda found: found.agreement,
    "Learned by the model": lambda found: found.learned,
    "Most frequent answer": lambda found: found.most_frequent,
}
LEGEND = (
    "The last synthetic images of each method, judged by all uploads together (the mean of their "
    "probabilities). Classes: those of which at least one image is taken for its label. In percent, mean ± "
    "sample standard deviation over seeds: images taken for their label (DAFL's labels are the answers "
    "themselves); images to which the shipped model answers as the uploads do; each shipped model's most "
    "frequent answer to its own, near 100 if it says one class to everything."
)


@dataclass(frozen=True)
class ImageQuality:
    """One method: how many seeds, mean numbers of images and classes, the spread of each of `MEASURES`."""

    title: str
    seeds: int
    images: float
    classes: float
    measures: tuple[Spread | None, ...]


def image_quality(cell: CellRuns) -> tuple[ImageQuality, ...]:
    """Return one entry for each variant that makes images of its own, in the order of the table."""
    found = []
    for variant in cell.variants:
        if variant.differs_in_stage_3_alone:
            continue
        runs = [run.quality for _, run in cell.records(variant.name) if run.quality is not None]
        if not runs:
            continue
        images, classes = fmean(run.images for run in runs), fmean(run.classes for run in runs)
        spreads = tuple(_spread([read(run) for run in runs]) for read in MEASURES.values())
        found.append(ImageQuality(variant.title, len(runs), images, classes, spreads))
    return tuple(found)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread.of(known)


def image_quality_markdown(found: Sequence[ImageQuality], seeds: int) -> str:
    """Return the table with its legend; `seeds` are those of the whole cell."""
    header = ("Synthetic images of", "Images", "Classes", *MEASURES)
    body = []
    for one in found:
        title = one.title if one.seeds == seeds else f"{one.title} ({one.seeds} of {count(seeds, 'seed')})"
        values = [ABSENT if value is None else str(value) for value in one.measures]
        body.append([title, f"{one.images:.0f}", f"{one.classes:.1f}", *values])
    return f"{markdown_table(header, body)}\n\n{LEGEND}"
