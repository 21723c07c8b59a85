"""The Flower app that a simulated run hands to Flower: where it is, what it declares, and its files."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.settings import toml_literal

RunValue = bool | int | float | str


def find_app() -> Path:
    """Return the checkout this package was loaded from, which is also the Flower app.

    Raises
    ------
    FedBiCrossError
        If the package was installed without its checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if _read_pyproject(root).get("project", {}).get("name") != "fedbicross":
        raise FedBiCrossError(
            f"{root} is not a checkout of fedbicross: a simulated run needs the checkout with its "
            "pyproject.toml; clone the repository and run `make setup`"
        )
    return root


def _read_pyproject(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FedBiCrossError(f"{path} is not valid TOML: {error}") from error


def _flat_keys(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _flower_section(app: Path) -> dict[str, Any]:
    section = _read_pyproject(app).get("tool", {}).get("flwr", {}).get("app")
    if not isinstance(section, dict):
        raise FedBiCrossError(
            f"{app} holds no pyproject.toml with [tool.flwr.app]; name the folder of a Flower app"
        )
    return section


def check_app(app: Path, run_config: Mapping[str, RunValue]) -> None:
    """Find out in a moment what Flower would say after a long start.

    Raises
    ------
    FedBiCrossError
        If `app` is no folder of a Flower app, or does not declare a key of `run_config`.
    """
    known = set(_flat_keys(_flower_section(app).get("config", {})))
    for key in run_config:
        if key not in known:
            raise FedBiCrossError(
                f"run configuration key {key!r} is not in [tool.flwr.app.config] of {app / 'pyproject.toml'}"
                f"{near_names(key, known)}; correct the key"
            )


def stage_app(app: Path, target: Path) -> Path:
    """Copy to `target` what the app's bundle is made of and return the folder to hand to Flower.

    Flower looks at every file below the app's folder before it applies ``fab-include``: tens of thousands
    where an environment and old runs lie beside the code. Without ``fab-include``, or with a pattern that
    is not tied to a top-level name, `app` itself is returned.
    """
    include = _flower_section(app).get("fab-include")
    if not isinstance(include, list):
        return app
    tops = set()
    for pattern in map(str, include):
        top, _, rest = pattern.lstrip("/").partition("/")
        if any(sign in top for sign in "*?[!") or not (rest or pattern.startswith("/")):
            return app
        tops.add(top)
    target.mkdir()
    for name in tops | {"pyproject.toml", ".gitignore"}:
        source = app / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


def run_config_toml(run_config: Mapping[str, RunValue]) -> str:
    """Return the run configuration as TOML, one line a key; a key such as ``optim.lr`` stays one key."""
    return "".join(f"{toml_literal(key)} = {toml_literal(value)}\n" for key, value in run_config.items())
