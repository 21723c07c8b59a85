"""Which method reads which setting: a run outlives a change of those that it does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedbicross_flwr.flower_names import strategy_of

FEDBICROSS: Final = "fedbicross"
CENTRAL: Final = "central"
"""The model that a comparison trains on pooled images: no method, but its runs are known by settings too."""

FLOWER: Final = "flower"
"""Stands for all of Flower's strategies, whose methods are called ``flower:FedAvg`` and the like."""

READER: Final[Mapping[str, str]] = {
    **{name: name for name in ("dafl", "dense", "fedisca", "coboosting", FLOWER)},
    **dict.fromkeys(("clustering", "inversion", "teacher", "cross_cluster"), FEDBICROSS),
    "personal.gamma": FEDBICROSS,
    "personal.delta": FEDBICROSS,
    "personal.temperature": FEDBICROSS,
    "personal.logit_adjustment": FEDBICROSS,
    "personal.replay": FEDBICROSS,
    "personal.replay_batch": FEDBICROSS,
    "personal.replay_temperature": FEDBICROSS,
}
"""Sections and settings that one method alone reads. `fedavg` is none of them: every run has that row."""

READ_BESIDES: Final = frozenset({("fedisca", "inversion.teachers"), ("fedisca", "inversion.images_at_once")})
"""Methods with a section, or one setting, of another's that they read."""

KNOWN: Final = frozenset({*READER.values(), "fedavg", CENTRAL})

UPLOAD_SECTIONS: Final = frozenset({"data", "partition", "model", "client", "runtime"})
"""Sections that make a client's model f_i, and all that make the central one: nothing is done on it."""

STRATEGIES_THAT_READ: Final[Mapping[str, frozenset[str]]] = {
    "flower.proximal_mu": frozenset({"FedProx"}),
    "flower.server_lr": frozenset({"FedAvgM"}),
    "flower.server_momentum": frozenset({"FedAvgM"}),
    "flower.adam_lr": frozenset({"FedAdam"}),
    "flower.adagrad_lr": frozenset({"FedAdagrad"}),
    "flower.yogi_lr": frozenset({"FedYogi"}),
    "flower.beta_1": frozenset({"FedAdam", "FedYogi"}),
    "flower.beta_2": frozenset({"FedAdam", "FedYogi"}),
    "flower.tau": frozenset({"FedAdam", "FedAdagrad", "FedYogi"}),
    "flower.trim": frozenset({"FedTrimmedAvg"}),
    "flower.malicious": frozenset({"Krum"}),
    "flower.q": frozenset({"QFedAvg"}),
}
"""Settings of section ``flower`` that some strategies read alone; all read the others."""


def reads(method: str, key: str) -> bool:
    """Return whether a run of a method reads a setting, given as ``section.name``.

    Of a method that is registered elsewhere it is not known what it reads: all.
    """
    own = FLOWER if method.startswith(f"{FLOWER}:") else method
    section, _, name = key.partition(".")
    if own == CENTRAL and name:
        return section in UPLOAD_SECTIONS
    if own == FLOWER and key in STRATEGIES_THAT_READ:
        return strategy_of(method) in STRATEGIES_THAT_READ[key]
    reader = READER.get(key) or READER.get(section) or own
    return reader == own or own not in KNOWN or not READ_BESIDES.isdisjoint({(own, key), (own, section)})
