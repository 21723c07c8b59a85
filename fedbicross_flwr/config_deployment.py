"""Settings of a deployment: which sites there are, what their data mean, and how long the server waits.

Part of `fedbicross_flwr.config`. Flower carries scalars only, so lists are texts with commas.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import composed
from fedbicross_flwr.settings import setting

# A site's name is the name of a folder in its store and of its key's files, and stands in logs and tables.
# The scripts in deploy/ hold names to the same.
SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
UPLOAD_SETTINGS: Final = ("deployment.class_names", "deployment.channels")
"""What of this section shapes a site's upload."""


@dataclass(frozen=True)
class DeploymentConfig:
    """Sites with data of their own, each beside its own SuperNode; without sites, a run is a simulation."""

    sites: str = setting(
        "", "names of the sites, with commas between them; client i is the i-th. Empty: a simulation"
    )
    class_names: str = setting(
        "",
        "names of the federation's classes, with commas between them and none inside, in the order of the "
        "labels 0, 1, ...",
    )
    channels: int = setting(3, "channels of the sites' images: 3 (RGB) or 1 (grayscale)", low=1, high=3)
    min_sites: int = setting(
        2,
        "uploads with which the server goes on when the window closes; FedBiCross needs one for each cluster",
        low=1,
        shapes_result=False,
    )
    upload_window: float = setting(
        86400.0,
        "seconds from the start in which uploads are taken; the server goes on at once when all are there",
        above=0.0,
        shapes_result=False,
    )
    personal_window: float = setting(
        86400.0,
        "seconds from the end of the server's stages in which sites fetch their models, and late sites may "
        "come; the run ends at once when all have theirs",
        above=0.0,
        shapes_result=False,
    )
    hold_back: bool = setting(
        False, "leave outlying uploads out of the method; their sites get a model as a late site does"
    )
    registry: str = setting(
        "",
        "the centre's file that says which node is which site's, as `deploy/register-site` keeps it: a node "
        "that is not in it, or gives another site's name, is refused. Empty: names are believed",
        shapes_result=False,
    )

    @property
    def site_names(self) -> tuple[str, ...]:
        """Return the names of the sites; client i is the i-th."""
        return names_in(self.sites)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes in the order of the labels."""
        return names_in(self.class_names)


def names_in(text: str) -> tuple[str, ...]:
    """Return the names in a text with commas between them, each as `composed` has it."""
    return tuple(composed(name.strip()) for name in text.split(",") if name.strip())


def check_deployment(config: DeploymentConfig) -> None:
    """Hold the settings of a deployment against each other; a simulation passes.

    Raises
    ------
    FedBiCrossError
        When names are missing, stand twice or cannot be used, or more uploads are needed than there are
        sites.
    """
    sites, classes = config.site_names, config.classes
    if not sites:
        return
    for key, names in (("deployment.sites", sites), ("deployment.class_names", classes)):
        if twice := [name for name in names if names.count(name) > 1]:
            raise FedBiCrossError(f"{key} names {twice[0]!r} twice; give every name once")
    if wrong := [name for name in sites if not SITE_NAME.fullmatch(name)]:
        raise FedBiCrossError(
            f"deployment.sites names {wrong[0]!r}; a name starts with a letter or digit and has ASCII "
            "letters, digits, '.', '_' and '-' only, at most 63"
        )
    if len(classes) < 2:
        raise FedBiCrossError(
            f"deployment.class_names = {config.class_names!r} names {len(classes)} class(es); name all "
            "classes of the federation, with commas between them, in the order of their labels"
        )
    if config.channels == 2:
        raise FedBiCrossError("deployment.channels = 2: images have 3 channels (RGB) or 1 (grayscale)")
    if config.min_sites > len(sites):
        raise FedBiCrossError(
            f"deployment.min_sites = {config.min_sites} is more than the {len(sites)} site(s) of "
            "deployment.sites; lower the one or name more sites"
        )
