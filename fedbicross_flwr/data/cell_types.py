"""The eight blood cell types of the phantom, as numbers: sizes, lobes, granules and colours.

The names and their order are BloodMNIST's. Lengths are in pixels of the 28x28 image (about .5 um each),
fractions are of the cell's radius, colours are RGB in [0, 1] as seen under a May-Gruenwald-Giemsa stain.
Neighbouring ranges overlap on purpose: the confusable pairs of the real slides stay confusable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class CellType:
    """How one cell type is drawn.

    ``lobes`` holds the weights of 1, 2, 3, 4 and 5 nuclear lobes. Lobes sit on an arc of radius ``arc`` and
    opening ``span`` (radians), are ``lobe`` thick and joined by strands of thickness ``strand``; ``shift``
    moves the nucleus off the centre. ``granules`` is the mean number of granules of radius
    ``granule_radius`` and opacity ``granule_ink``, multiplied by ``granule_over`` where they lie over the
    nucleus. ``clumping`` is the contrast of the chromatin, ``outline`` the irregularity of the cell's edge.
    """

    name: str
    train_count: int  # BloodMNIST's published training counts set the class proportions
    radius: tuple[float, float]  # mean, standard deviation
    lobes: tuple[float, float, float, float, float]
    arc: float
    span: float
    lobe: float
    strand: float
    shift: float
    granules: float
    granule_radius: float
    granule_ink: float
    granule_over: float
    clumping: float
    outline: float
    cytoplasm: Colour
    nucleus: Colour
    granule: Colour


# fmt: off
CELL_TYPES: Final[tuple[CellType, ...]] = (
    CellType("basophil", 852, (8.8, 0.8), (0.10, 0.50, 0.35, 0.05, 0.0), 0.34, 2.4, 0.40, 0.24, 0.08,
             22.0, 0.95, 0.70, 0.85, 0.16, 0.05, (0.78, 0.66, 0.82), (0.46, 0.28, 0.60), (0.30, 0.16, 0.46)),
    CellType("eosinophil", 2181, (9.4, 0.8), (0.06, 0.70, 0.22, 0.02, 0.0), 0.42, 2.5, 0.36, 0.13, 0.10,
             36.0, 0.90, 0.52, 0.10, 0.15, 0.04, (0.89, 0.75, 0.71), (0.44, 0.24, 0.56), (0.85, 0.54, 0.48)),
    CellType("erythroblast", 1085, (7.2, 0.9), (0.94, 0.06, 0.0, 0.0, 0.0), 0.10, 1.5, 0.52, 0.44, 0.12,
             0.0, 0.60, 0.20, 0.00, 0.34, 0.04, (0.70, 0.67, 0.80), (0.32, 0.16, 0.44), (0.50, 0.36, 0.62)),
    CellType("immature granulocyte", 2026, (10.0, 1.1), (0.45, 0.35, 0.20, 0.0, 0.0), 0.30, 1.5, 0.47, 0.42,
             0.22, 20.0, 0.65, 0.46, 0.50, 0.18, 0.05,
             (0.77, 0.69, 0.83), (0.53, 0.33, 0.65), (0.52, 0.28, 0.60)),
    CellType("lymphocyte", 849, (7.8, 1.1), (0.82, 0.18, 0.0, 0.0, 0.0), 0.12, 1.4, 0.63, 0.54, 0.10,
             1.5, 0.60, 0.35, 0.20, 0.22, 0.04, (0.67, 0.73, 0.90), (0.41, 0.23, 0.55), (0.58, 0.36, 0.64)),
    CellType("monocyte", 993, (10.4, 1.0), (0.12, 0.38, 0.42, 0.08, 0.0), 0.40, 2.0, 0.45, 0.38, 0.12,
             6.0, 0.55, 0.26, 0.30, 0.26, 0.09, (0.71, 0.71, 0.82), (0.49, 0.33, 0.64), (0.60, 0.46, 0.70)),
    CellType("neutrophil", 2330, (9.3, 0.8), (0.02, 0.20, 0.38, 0.30, 0.10), 0.50, 3.7, 0.29, 0.11, 0.08,
             32.0, 0.70, 0.36, 0.10, 0.16, 0.04, (0.89, 0.78, 0.79), (0.42, 0.23, 0.56), (0.81, 0.58, 0.60)),
    CellType("platelet", 1643, (3.5, 0.8), (1.0, 0.0, 0.0, 0.0, 0.0), 0.0, 1.0, 0.0, 0.0, 0.0,
             9.0, 0.70, 0.60, 1.00, 0.10, 0.14, (0.77, 0.66, 0.81), (0.60, 0.42, 0.68), (0.48, 0.28, 0.60)),
)
# fmt: on

CLASS_NAMES: Final = tuple(cell.name for cell in CELL_TYPES)
