"""What a client works with: its images, its task and its own folder. Here a site opens its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Message

from fedbicross_flwr.client import ClientImages
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.progress import EventLog
from fedbicross_flwr.site.data import site_images
from fedbicross_flwr.site.identity import Site, places_of
from fedbicross_flwr.site.store import SiteStore
from fedbicross_flwr.training import ClientTask


@dataclass(frozen=True)
class Opened:
    """A client that is ready to work; `images` reads them when they are needed."""

    images: Callable[[], ClientImages]
    task: ClientTask
    store: SiteStore


def open_site(site: Site, config: RunConfig) -> Opened:
    """Open a site's own images and its own store.

    The images must fit classes and channels of the federation. The setting `cache` is a path of the
    centre's, so it is not read here.
    """
    deployment = config.deployment
    store = site.open_store()
    images = site_images(site.data, deployment.classes, deployment.channels, config.seed, site.client)
    spec = ModelSpec.of(config, len(deployment.classes), deployment.channels)
    task = ClientTask(
        site.client, spec, config, Compute.of(config.runtime), EventLog(store / "progress.jsonl")
    )
    return Opened(lambda: images, task, SiteStore(store, deployment.classes, keeps_former=True))


def places_of_client(message: Message, context: Context) -> dict[str, Path]:
    """Return the paths that a client's refusals must not name to others."""
    places = places_of(context.node_config)
    run = context.run_config
    if path := str(run.get("data.path", "")):
        places.setdefault("the site's data", Path(path))
    if message.has_content() and "folder" in message.content.get("config", {}):
        places.setdefault("the site's store", Path(str(config_of(message)["folder"])) / "sites")
    return places


def config_of(message: Message) -> Mapping[str, Any]:
    """Return the message's configuration."""
    return cast(ConfigRecord, message.content["config"])
