"""The run configuration on its way through Flower: nothing is lost or bent."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import get_fused_config_from_dir

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.launch.app_folder import find_app, run_config_toml
from fedbicross_flwr.runs.folder import to_toml
from fedbicross_flwr.settings import read_toml


def through_flower(config: RunConfig) -> dict[str, Any]:
    """What an app finds in its context: the launcher's TOML over the app's own defaults."""
    overrides = tomllib.loads(run_config_toml(config.flat()))
    return dict(get_fused_config_from_dir(find_app(), overrides))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"clustering.clusters": "auto", "partition.alpha": math.inf},
        {"clustering.clusters": 1, "partition.alpha": 1e-3},
        {"data.path": "/a b/ü'\"\\.npz", "data.download": False, "inversion.tv_weight": 0.0},
    ],
)
def test_flower_hands_over_what_was_configured(changes: dict[str, Any]) -> None:
    config = RunConfig.from_flat(changes)
    carried = through_flower(config)
    assert RunConfig.from_flat(carried) == config
    assert carried.keys() == config.flat().keys()


def test_the_app_s_defaults_are_the_configuration_s() -> None:
    assert RunConfig.from_flat(get_fused_config_from_dir(find_app(), {})) == RunConfig()


@pytest.mark.parametrize("changes", [{}, {"clustering.clusters": "auto", "partition.alpha": math.inf}])
def test_the_configuration_in_a_run_s_folder_gives_the_run_again(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = RunConfig.from_flat({"data.path": "/a 'b'/\"ü\\", **changes})
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert RunConfig.from_flat(read_toml(tmp_path / "config.toml")) == config
