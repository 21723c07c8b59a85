"""One look for all figures: a light theme for disk and print, a dark one for screens that ask for it.

The hues are Okabe and Ito's, which stay apart for colour-blind readers; lines also differ in their
dashes, so that a grey print can be read. Nothing here touches pyplot or changes settings for good.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.textpath import TextPath

WIDTH = 9.2
"""Width of every figure in inches: the report's column at 100 CSS pixels an inch."""
DPI = 180

OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "IPAexGothic",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Noto Sans Thai",
    "Leelawadee UI",
    "Thonburi",
    "Noto Sans Devanagari",
    "Nirmala UI",
    "Kohinoor Devanagari",
    "Arial Unicode MS",
)
"""Fonts of Linux, Windows and macOS for class names in scripts that Matplotlib's own font does not have."""

DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))


@dataclass(frozen=True)
class Theme:
    """The colours of one theme; `clusters` is the categorical palette, `diverging` runs -1, 0, 1."""

    name: str
    surface: str
    ink: str
    muted: str
    grid: str
    accent: str
    neutral: str
    on_accent: str
    clusters: tuple[str, ...]
    diverging: tuple[str, str, str]

    def cluster(self, number: int) -> str:
        """Return the colour of a cluster, the same in every figure."""
        return self.clusters[number % len(self.clusters)]

    def colormap(self) -> LinearSegmentedColormap:
        """Return the diverging colour map for similarities."""
        return LinearSegmentedColormap.from_list(f"fedbicross-{self.name}", self.diverging)


LIGHT = Theme(
    name="light",
    surface="#ffffff",
    ink="#1b2530",
    muted="#5a6673",
    grid="#e4e8ec",
    accent="#0067a5",
    neutral="#8a95a1",
    on_accent="#ffffff",
    clusters=("#0072b2", "#d55e00", "#009e73", "#b8588f", "#c98a00", "#3a9bd9", "#5b5b5b", "#8c6d31"),
    diverging=("#c8611a", "#f7f7f5", "#0067a5"),
)
DARK = Theme(
    name="dark",
    surface="#171d24",
    ink="#e6eaee",
    muted="#9aa6b2",
    grid="#2c343d",
    accent="#5cb3e8",
    neutral="#7d8894",
    on_accent="#0b1117",
    clusters=("#5cb3e8", "#f0905a", "#41c39c", "#e29ac4", "#efbe55", "#a9d6f5", "#b9b9b9", "#cdb27a"),
    diverging=("#e08a4c", "#222a33", "#4aa3dc"),
)


def dashes(number: int) -> Any:
    """Return the line style of a cluster, so that lines differ in print as well."""
    return DASHES[number % len(DASHES)]


@cache
def fonts() -> list[str]:
    """Return the fonts to draw with; a letter is taken from the first one that has it.

    DejaVu Sans ships with Matplotlib, so that a figure in Latin, Greek, Cyrillic or Arabic letters is the
    same on every machine. The others are those of `OTHER_SCRIPTS` that this machine has.
    """
    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in installed)]


def context(theme: Theme) -> AbstractContextManager[None]:
    """Return a context in which Matplotlib draws in this theme; it ends without a trace."""
    settings: dict[str, Any] = {
        "font.family": fonts(),
        "font.size": 9.5,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.labelsize": 9.5,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.surface,
        "axes.linewidth": 1.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "ytick.minor.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "figure.facecolor": theme.surface,
        "savefig.facecolor": theme.surface,
    }
    return mpl.rc_context(settings)  # type: ignore[arg-type]  # keys are declared one by one


def figure(height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of that height in inches, laid out so that nothing overlaps."""
    made = Figure(figsize=(width, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]  # set by the layout above
    return made


def label(text: str, width: int = 24) -> str:
    """Return a text of the user's as a label: at most two lines of about `width` characters.

    A dollar sign is a dollar sign here, not the start of a formula.
    """
    lines = textwrap.wrap(text, width, max_lines=2, placeholder=" …") or [""]
    return "\n".join(lines).replace("$", r"\$")


def text_inches(labels: Iterable[str], size: float = 9.0) -> float:
    """Return the width of the widest line among `labels`, in inches; call it within `context`."""
    lines = (line for text in labels for line in text.replace(r"\$", "$").splitlines() if line.strip())
    paths = (TextPath((0, 0), line.replace("$", "S"), size=size) for line in lines)
    return max((path.get_extents().x1 / 72 for path in paths), default=0.0)


def bare(axes: Axes) -> None:
    """Take frame and grid off: for pictures and matrices."""
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def png(made: Figure, theme: Theme) -> bytes:
    """Return a figure as PNG, without the time of day in it: equal runs give equal files."""
    stream = io.BytesIO()
    with context(theme):
        made.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
