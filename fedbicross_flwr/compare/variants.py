"""What a comparison can hold: each method with the settings that make it that method, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedbicross_flwr.config_readers import CENTRAL as CENTRAL
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.flower_names import FLOWER_NAMES, strategy_of
from fedbicross_flwr.method_names import ONE_SHOT
from fedbicross_flwr.settings import Scalar

GROUPS = ("one-shot", "ablation", "clustering", "reference", "cluster-count", "flower")
ASKED_FOR = {"cluster-count", "flower"}
"""Groups that ``all`` leaves out: they are for a question of their own."""
AUTOMATIC = "fedbicross-auto"


@dataclass(frozen=True)
class Variant:
    """One line of a comparison.

    Parameters
    ----------
    name : str
        As ``--methods`` takes it; also the name of its folder.
    title : str
        As printed.
    group : {"one-shot", "ablation", "clustering", "reference", "cluster-count", "flower"}
        Which table it belongs to.
    overrides : mapping of str to bool, int, float or str
        The settings that it differs in from all others, by flat key.
    note : str
        One sentence.
    """

    name: str
    title: str
    group: str
    overrides: Mapping[str, Scalar]
    note: str

    @property
    def differs_in_stage_3_alone(self) -> bool:
        """Whether the server's part, and so what is synthesised and shipped, is another variant's."""
        settings = self.overrides.keys() - {"method"}
        return bool(settings) and all(key.startswith("personal.") for key in settings)


def _of_fedbicross(suffix: str, title: str, group: str, key: str, value: Scalar, note: str) -> Variant:
    overrides = {"method": FEDBICROSS, key: value}
    return Variant(f"fedbicross-{suffix}", f"FedBiCross, {title}", group, overrides, note)


def _by(way: str, note: str) -> Variant:
    return _of_fedbicross(way, f"clusters by {way}", "clustering", "clustering.by", way, note)


def _weights(way: str, title: str, note: str) -> Variant:
    return _of_fedbicross(way, title, "ablation", "cross_cluster.weights", way, note)


_ALL = (
    *(Variant(one.name, one.title, "one-shot", {"method": one.name}, one.note) for one in ONE_SHOT),
    _weights("intra", "intra-cluster weights", "Each cluster learns from its own images alone."),
    _weights("uniform", "uniform weights", "Each cluster learns from all clusters' images alike."),
    _weights("similarity", "similarity weights", "Weights by the similarity of the clusters' centroids."),
    _of_fedbicross(
        "no-clustering",
        "no clustering",
        "ablation",
        "clustering.clusters",
        1,
        "All clients are one cluster; then personal distillation.",
    ),
    _of_fedbicross(
        "balanced",
        "balanced personal models",
        "ablation",
        "personal.logit_adjustment",
        1.0,
        "Logit adjustment in stage 3: a personal model need not learn how frequent its client's classes are.",
    ),
    _by("outputs", "K-means on the models' predictions on probes, as in the paper."),
    _by("parameters", "K-means on the models' weights."),
    _by("hierarchical", "Agglomerative clustering of the models' weights."),
    _by("pacfl", "Principal angles between subspaces of the clients' images, which clients send as well."),
    Variant(
        CENTRAL,
        "central model on pooled data",
        "reference",
        {"method": CENTRAL},
        "One model trained on the images of all clients together: what federated learning goes without.",
    ),
    _of_fedbicross(
        AUTOMATIC.removeprefix("fedbicross-"),
        "automatic K (best silhouette)",
        "cluster-count",
        "clustering.clusters",
        "auto",
        "With the number of clusters whose silhouette is the best, which needs no test image.",
    ),
    *(
        _of_fedbicross(
            f"K{k}", f"K = {k}", "cluster-count", "clustering.clusters", k, f"With {k} cluster(s)."
        )
        for k in range(1, 9)
    ),
    *(
        Variant(
            name,
            f"{strategy_of(name)} (many rounds)",
            "flower",
            {"method": name},
            f"Flower's own {strategy_of(name)} strategy over many rounds.",
        )
        for name in FLOWER_NAMES
    ),
)

VARIANTS: Mapping[str, Variant] = {variant.name: variant for variant in _ALL}
"""All variants by name, in the order of the tables."""


def variants_named(text: str) -> list[Variant]:
    """Return variants by their names, in the order of the tables.

    Parameters
    ----------
    text : str
        Names with commas between them; ``all`` stands for every variant but Flower's own strategies and
        the study of K.

    Raises
    ------
    FedBiCrossError
        For a name that is unknown (the near ones are named), or when there is none.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    chosen: set[str] = set()
    for word in words:
        if word == "all":
            chosen |= {variant.name for variant in _ALL if variant.group not in ASKED_FOR}
        elif word in VARIANTS:
            chosen.add(word)
        else:
            raise FedBiCrossError(
                f"--methods {word!r} is unknown{near_names(word, ['all', *VARIANTS])}; "
                f"there are all, {', '.join(VARIANTS)}"
            )
    if not chosen:
        raise FedBiCrossError(f"--methods {text!r} names no method; there are all, {', '.join(VARIANTS)}")
    return [variant for variant in _ALL if variant.name in chosen]
