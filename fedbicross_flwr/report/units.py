"""How the report writes numbers: percentages, bytes, durations, and the name of a client."""

from __future__ import annotations

ABSENT = "–"
"""Stands where there is no number (an AUC of a client with one class)."""

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with one decimal and no sign: ``0.5761 -> "57.6"``."""
    return ABSENT if fraction is None else f"{100 * fraction:.1f}"


def points_between(one: float, other: float) -> float:
    """Return `one - other` in percentage points, of the figures as shown, so that a reader's sum agrees."""
    return round(float(percent(one)) - float(percent(other)), 1)


def points(one: float, other: float) -> str:
    """Return a difference in percentage points, always signed: ``(0.49, 0.5) -> "−1.0"``."""
    difference = points_between(one, other)
    if difference == 0:
        return "±0.0"
    return f"{'+' if difference > 0 else '−'}{abs(difference):.1f}"


def human_bytes(count: int) -> str:
    """Return a byte count in decimal units: ``44_800_000 -> "44.8 MB"``."""
    size = float(count)
    for unit in BYTE_UNITS:
        # 999.95 would round to "1000.0 kB", so the step to the next unit is taken a little early.
        if size < 999.95 or unit == BYTE_UNITS[-1]:
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a duration as a person would say it: ``0.4 s``, ``41 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun in the right form: ``1 client``, ``5 clients``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listing(words: list[str]) -> str:
    """Join words as in a sentence: ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
