"""Which node is which site's, as the coordinating centre registered their keys.

Flower lets a node in by its key and knows it by a number; the name of a site is the node's own claim. The
file that ``deploy/register-site`` keeps says whose each number is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from fedbicross_flwr.config_deployment import DeploymentConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded


@dataclass
class SiteRegistry:
    """The registry of a deployment; without a file everybody is who they say they are.

    Parameters
    ----------
    path : Path or None
        JSON: ``{"<node>": {"site": name, ...}}``. A site may have several nodes, as when its key was renewed.
    names : dict of int to str
        Node -> site, as the file was last read.
    """

    path: Path | None
    names: dict[int, str] = field(default_factory=dict)

    @classmethod
    def open(cls, config: DeploymentConfig) -> SiteRegistry:
        """Read the configured registry.

        Raises
        ------
        FedBiCrossError
            See `read`.
        """
        registry = cls(expanded(Path(config.registry)).absolute() if config.registry else None)
        registry.read()
        return registry

    def read(self) -> None:
        """Read the file anew, as sites are registered while a run lasts.

        Raises
        ------
        FedBiCrossError
            When it is missing or damaged; what was read before stands.
        """
        if self.path is None:
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.names = {int(node): name_in(entry) for node, entry in content.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise FedBiCrossError(
                f"deployment.registry: {self.path} cannot be read ({said}); name the file that register-site "
                "keeps, CENTRE/sites.json"
            ) from error

    def site_of(self, node: int) -> str:
        """Return whose a node is; nothing where there is no registry.

        Raises
        ------
        FedBiCrossError
            When it is nobody's.
        """
        if self.path is None:
            return ""
        if node not in self.names:
            raise FedBiCrossError(
                f"SuperNode {node} is not in the coordinating centre's registry of sites; have its key "
                "registered there with register-site"
            )
        return self.names[node]

    def check(self, node: int, claimed: str) -> None:
        """Hold the name that a node claims against whose it is.

        Raises
        ------
        FedBiCrossError
            When it is another site's, or nobody's.
        """
        check_claim(self.site_of(node), claimed)


def check_claim(registered: str, claimed: str) -> None:
    """Hold a claimed name against the registered one; nothing is registered where there is no registry.

    Raises
    ------
    FedBiCrossError
        When they differ.
    """
    if registered and registered != claimed:
        raise FedBiCrossError(
            f"this SuperNode is registered as {registered!r}, but its site-name is {claimed!r}; start it "
            "with the name that its key was registered for"
        )


def name_in(entry: dict[str, object]) -> str:
    """Return the name in one entry of the file."""
    name = entry["site"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"site = {name!r} is no name")
    return name
