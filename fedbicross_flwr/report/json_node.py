"""Typed reading of JSON: every complaint names the file, the place in it, and what was found."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import is_text, unusable
from fedbicross_flwr.report.record import Floats
from fedbicross_flwr.settings import LARGEST


class Node:
    """One value of a JSON file, which knows where it stands: ``rows[2].clients[0].global``."""

    def __init__(self, value: Any, file: Path, where: str = "") -> None:
        self.value = value
        self.file = file
        self.where = where

    @classmethod
    def read(cls, file: Path) -> Node:
        """Parse a file; raise `FedBiCrossError` when it cannot be read or is not JSON."""
        try:
            return cls(json.loads(file.read_text(encoding="utf-8")), file)
        except OSError as error:
            raise FedBiCrossError(f"cannot read {unusable(error, file)}") from error
        except UnicodeDecodeError as error:
            raise FedBiCrossError(f"{file} is not UTF-8 text; the file is damaged") from error
        except json.JSONDecodeError as error:
            raise FedBiCrossError(
                f"{file} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
                "the file is damaged or was cut off: run again or restore it"
            ) from error
        except (ValueError, RecursionError) as error:
            # Of a number with too many digits, or of lists in lists in lists.
            raise FedBiCrossError(
                f"{file} is no JSON that can be read ({error}); the file is damaged: run again or restore it"
            ) from error

    def fail(self, wanted: str) -> NoReturn:
        """Raise the error that this value is not what is needed."""
        try:
            found = json.dumps(self.value)
        except RecursionError:
            found = "nested too deeply"
        found = found if len(found) <= 40 else f"{found[:37]}..."
        raise FedBiCrossError(
            f"{self.file}: {self.where or 'the file'} is {found}, but {wanted} is needed; "
            "the file is damaged or was written by another version"
        )

    def __getitem__(self, key: str) -> Node:
        found = self.get(key)
        if found is None and key not in self.mapping():
            raise FedBiCrossError(
                f"{self.file}: {self._below(key)} is missing; "
                "the file is damaged or was written by another version"
            )
        return found or Node(None, self.file, self._below(key))

    def get(self, key: str) -> Node | None:
        """Return the value under `key`, or None when it is absent or null."""
        value = self.mapping().get(key)
        return None if value is None else Node(value, self.file, self._below(key))

    def _below(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def mapping(self) -> dict[str, Any]:
        """Return the value as an object."""
        if not isinstance(self.value, dict):
            self.fail("an object")
        return self.value

    def members(self) -> Iterator[tuple[str, Node]]:
        """Yield the members of an object."""
        for key, value in self.mapping().items():
            if not is_text(key):
                self.fail("an object whose names are text in UTF-8")
            yield key, Node(value, self.file, self._below(key))

    def list(self, length: int | None = None) -> list[Node]:
        """Return the items of a list, of the given length when one is given."""
        if not isinstance(self.value, list):
            self.fail("a list" if length is None else f"a list of {length}")
        if length is not None and len(self.value) != length:
            self.fail(f"a list of {length} (it has {len(self.value)})")
        return [Node(value, self.file, f"{self.where}[{index}]") for index, value in enumerate(self.value)]

    def text(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str) or not is_text(self.value):
            self.fail("a text")
        return self.value

    def flag(self) -> bool:
        """Return a bool."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def integer(self, low: int = 0) -> int:
        """Return an integer of at least `low`, and no more than fits 64 bits."""
        value = self.value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= LARGEST:
            self.fail(f"a whole number from {low} to {LARGEST}")
        return value

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a number within the inclusive bounds, and within what a sum of a few holds."""
        value = self.value
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
            self.fail(f"a number, and none beyond {LARGEST:.2g},")
        if not low <= value <= high:
            self.fail(f"a number from {low:g} to {high:g}")
        return float(value)

    def array(self, *shape: int | None) -> Floats:
        """Return nested lists as a float64 array; None in `shape` takes any length. NaN is let through."""
        try:
            array = np.asarray(self.value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            array = np.empty(())
        wanted = " x ".join("n" if length is None else str(length) for length in shape)
        fits = array.ndim == len(shape) and all(
            length is None or length == found for length, found in zip(shape, array.shape, strict=True)
        )
        if not fits:
            self.fail(f"an array of numbers of shape {wanted}")
        return array
