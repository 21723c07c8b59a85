"""How a setting is declared, checked, and read from TOML files and the command line.

The settings themselves are in `fedbicross_flwr.config`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Final

from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.files import is_text, shown, unusable

Scalar = bool | int | float | str

LARGEST: Final = 2**63 - 1
"""What a whole number may be, as Flower carries it."""

LARGEST_COUNT: Final = 2**31 - 1
"""What a whole number may be where no other bound is declared: more of anything, C's int does not count."""

LARGEST_FLOAT: Final = 1e38
"""What any other number may be where no other bound is declared: float32, in which networks compute, holds
about three times that."""


def setting(
    default: Scalar,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    words: tuple[str, ...] = (),
    infinite: bool = False,
    source: str = "",
    shapes_result: bool = True,
) -> Any:
    """Declare one setting; the metadata drives the checks and the generated reference.

    Parameters
    ----------
    default : bool, int, float or str
        Its type is the setting's type.
    low, high : float, optional
        Inclusive bounds of a number; `above` is an exclusive lower bound. Without `high` a whole number is at
        most `LARGEST_COUNT`, any other `LARGEST_FLOAT`.
    choices : tuple of str
        The words a string setting may take.
    words : tuple of str
        Words that a number may take instead (``clusters = "auto"``).
    infinite : bool, default False
        Whether a number may be infinite.
    source : str
        Where the setting comes from: a section or equation of the paper, or a reference.
    shapes_result : bool, default True
        False for settings that change where or how a run is computed, never what it computes.
    """
    return field(
        default=default,
        metadata={
            "doc": doc,
            "low": low,
            "high": high,
            "above": above,
            "choices": choices,
            "words": words,
            "infinite": infinite,
            "source": source,
            "shapes_result": shapes_result,
        },
    )


def walk(config: Any) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yield ``(flat key, declaration, value)`` of every setting."""
    for outer in dataclasses.fields(config):
        value = getattr(config, outer.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                yield f"{outer.name}.{inner.name}", inner, getattr(value, inner.name)
        else:
            yield outer.name, outer, value


def convert(key: str, value: Any, declared: dataclasses.Field[Any]) -> Any:
    """Return `value` in the declared type; integers are taken for floats, nothing else is bent."""
    kind = type(declared.default)
    if isinstance(value, int) and abs(value) > LARGEST:
        # Python would refuse to write out the longest.
        raise FedBiCrossError(f"{key} is far too large or small: a number of {value.bit_length()} bits found")
    if isinstance(value, str) and value in declared.metadata["words"]:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise FedBiCrossError(
            f"{key} = {value!r} has type {type(value).__name__}, but {kind.__name__} is needed: "
            f"{declared.metadata['doc']}"
        )
    return value


def check_value(key: str, value: Any, declared: dataclasses.Field[Any]) -> None:
    """Hold one value against its declared type, bounds and choices."""
    value = convert(key, value, declared)
    rules = declared.metadata
    if isinstance(value, str):
        if not is_text(value):
            raise FedBiCrossError(f"{key} = '{shown(value)}' is no text in UTF-8; choose a name that is")
        if rules["choices"] and value not in rules["choices"]:
            known = rules["choices"]
            raise FedBiCrossError(
                f"{key} = {value!r} is not one of {', '.join(known)}{near_names(value, known)}"
            )
        return
    if math.isnan(value) or (math.isinf(value) and not rules["infinite"]):
        raise FedBiCrossError(f"{key} = {value} is not a finite number")
    low, above, high = rules["low"], rules["above"], largest(declared)
    # To 15 digits, which is in full: with fewer, 2147483647 would be told as another number.
    if low is not None and value < low:
        raise FedBiCrossError(f"{key} = {value} is too small: it must be at least {low:.15g}")
    if above is not None and value <= above:
        raise FedBiCrossError(f"{key} = {value} is too small: it must be above {above:.15g}")
    if value > high and not math.isinf(value):
        other = ", or inf" if rules["infinite"] else ""
        raise FedBiCrossError(f"{key} = {value} is too large: it must be at most {high:.15g}{other}")


def largest(declared: dataclasses.Field[Any]) -> float:
    """Return what a setting's number may be at most, infinity aside."""
    high: float | None = declared.metadata["high"]
    if high is not None:
        return high
    return LARGEST_FLOAT if isinstance(declared.default, float) else LARGEST_COUNT


def read_toml(path: Path) -> dict[str, Scalar]:
    """Read a run-config file and flatten its tables.

    Raises
    ------
    FedBiCrossError
        When the file is absent, is not TOML, holds a list or another value that Flower cannot carry, gives a
        setting twice, or has a table that is no section.
    """
    try:
        # With the mark that Windows may begin a text with, or without.
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FedBiCrossError(f"cannot read configuration {unusable(error, path)}") from error
    except (ValueError, RecursionError) as error:
        raise FedBiCrossError(f"configuration {path} is not valid TOML: {error}") from error
    flat: dict[str, Scalar] = {}
    for key, value in flatten(tables):
        if not isinstance(value, bool | int | float | str):
            raise FedBiCrossError(
                f"configuration {path}: {key} is a {type(value).__name__}; "
                "a setting is a bool, int, float or str"
            )
        if key in flat:
            raise FedBiCrossError(f"configuration {path} gives {key} twice; leave one out")
        flat[key] = value
    check_tables(path, tables)
    return flat


def check_tables(path: Path, tables: Mapping[str, Any]) -> None:
    """Refuse an empty table that is no section: it holds no setting which would be told as unknown.

    Raises
    ------
    FedBiCrossError
        When there is one.
    """
    empty = [name for name, table in tables.items() if table == {}]
    if not empty:
        return
    # The configuration is made of what is declared here.
    from fedbicross_flwr.config import RunConfig

    sections = {key.partition(".")[0] for key, _, _ in walk(RunConfig()) if "." in key}
    for name in empty:
        if name not in sections:
            raise FedBiCrossError(f"configuration {path}: unknown table [{name}]{near_names(name, sections)}")


def toml_literal(value: Scalar) -> str:
    """Return a setting as TOML has it."""
    if isinstance(value, str):
        # A JSON string is a TOML string, save that TOML wants DEL escaped too.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value).lower()


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested tables as ``("outer.inner", value)``; an empty table in another is one."""
    for key, value in table.items():
        if isinstance(value, Mapping) and (value or not prefix):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_override(text: str) -> tuple[str, Scalar]:
    """Parse ``key=value`` of the command line; a value that is not TOML is taken as a word.

    Raises
    ------
    FedBiCrossError
        When there is no ``=`` or no key, or more than one line.
    """
    if "\n" in text.strip():
        # Else what stands in the other lines, which may be settings of their own, would go unheard.
        raise FedBiCrossError(f"--set {text!r} has more than one line; give each setting a --set of its own")
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise FedBiCrossError(
            f"--set {text!r} is not of the form key=value, such as --set partition.alpha=0.1"
        )
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except (ValueError, RecursionError):
        return key, value.strip()
    return key, parsed
