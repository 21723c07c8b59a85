"""What a site's reply says, read with the care that foreign input needs.

Flower's node authentication says that a node may take part, and nothing of what it sends. Whatever is wrong
with a reply becomes one line, and the run goes on with the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.evaluation import METRICS, MOST_IMAGES, score_problem
from fedbicross_flwr.models import StateDict
from fedbicross_flwr.rows import rows_of
from fedbicross_flwr.site.store import RowScores

Result = TypeVar("Result")
OVERSIZE = 1.25
"""An upload's bytes over those of the model that was agreed on; the arrays' headers are the excess."""
LONGEST_REASON = 500
PROTOCOL = "local"
"""The one that a site can score: on its own test images."""


@dataclass(frozen=True)
class SiteUpload:
    """What a site sent in round 1."""

    num_samples: int
    state: StateDict
    said: dict[str, float]


def careful(what: str, read: Callable[[], Result]) -> Result:
    """Return what `read` reads out of a reply.

    Raises
    ------
    FedBiCrossError
        When it cannot, for whatever reason: the content is the sender's.
    """
    try:
        return read()
    except FedBiCrossError:
        raise
    except Exception as error:
        said = str(error).splitlines()
        raise FedBiCrossError(
            f"{what} cannot be read ({type(error).__name__}: {said[0][:200] if said else 'no reason'}); is "
            "the site's software that of the federation?"
        ) from error


def site_in(message: Message, names: tuple[str, ...]) -> int | None:
    """Return the number of the site that a reply says it is from; None if it says it of none of them.

    Raises
    ------
    FedBiCrossError
        When name and number contradict each other.
    """

    def read() -> int | None:
        if "client" not in message.content:
            return None
        client = cast(MetricRecord, message.content["client"])["client"]
        name = cast(ConfigRecord, message.content["site"])["name"]
        if not isinstance(client, int) or not 0 <= client < len(names) or names[client] != name:
            raise FedBiCrossError(
                f"a node says that it is site {name!r} with the number {client}, which deployment.sites does "
                "not have; is its software that of the federation?"
            )
        return client

    return careful("who a reply is from", read)


def refusal_in(message: Message) -> str:
    """Return why a site refuses to take part, as one line; nothing if it does not."""
    if "refusal" not in message.content:
        return ""
    reason = careful("a refusal", lambda: cast(ConfigRecord, message.content["refusal"])["reason"])
    line = " ".join(str(reason).split())
    return line[:LONGEST_REASON] or "no reason given"


def upload_in(message: Message, model_bytes: int) -> SiteUpload | None:
    """Return what a site uploaded; None when it sent nothing, as the server has its upload.

    Parameters
    ----------
    model_bytes : int
        Of the model that was agreed on, with all that travels with it: more is refused before it is unpacked.

    Raises
    ------
    FedBiCrossError
        When it is too large, or a part of it is missing or cannot be read.
    """
    if "arrays" not in message.content:
        return None
    return careful("the upload", lambda: read_upload(message, model_bytes))


def read_upload(message: Message, model_bytes: int) -> SiteUpload:
    """Read an upload; anything may go wrong."""
    arrays = cast(ArrayRecord, message.content["arrays"])
    metrics = cast(MetricRecord, message.content["metrics"])
    if "subspace" in message.content:  # PACFL's, which a deployment refuses
        raise FedBiCrossError("the upload holds a subspace of the site's images, which was not asked for")
    size = sum(len(array.data) for array in arrays.values())
    limit = OVERSIZE * model_bytes + 1000 * len(arrays)
    if size > limit or len(arrays) > 100_000:
        raise FedBiCrossError(
            f"the upload has {len(arrays)} arrays of {size:,} bytes, but the model that was agreed on has "
            f"{model_bytes:,}; is the site's software that of the federation?"
        )
    count, accuracy = metrics["num-examples"], float(cast(float, metrics["validation-accuracy"]))
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= MOST_IMAGES:
        raise FedBiCrossError(f"the upload says that it was trained on {count!r} images")
    if not (math.isnan(accuracy) or 0.0 <= accuracy <= 1.0):
        raise FedBiCrossError(f"the upload says that its validation accuracy is {accuracy}")
    state = dict(arrays.to_torch_state_dict())
    return SiteUpload(count, state, {"validation_accuracy": accuracy})


def scores_in(message: Message, method: str) -> RowScores:
    """Return the scores that a site sent, by row and protocol; a site without test images has rows alone.

    Raises
    ------
    FedBiCrossError
        When a row, protocol or metric is unknown or missing, or a value is none of that metric's.
    """
    return careful("the scores", lambda: read_scores(message, method))


def read_scores(message: Message, method: str) -> RowScores:
    """Read scores; anything may go wrong."""
    rows = rows_of(method)
    scores: RowScores = {}
    for key, value in cast(MetricRecord, message.content["scores"]).items():
        row, protocol, metric = key.split("/")
        if row not in rows or protocol != PROTOCOL or metric not in METRICS:
            raise FedBiCrossError(f"the scores name {key[:80]!r}, which no site can score")
        scores.setdefault(row, {}).setdefault(protocol, {})[metric] = float(cast(Any, value))
    for row, protocols in scores.items():
        if problem := score_problem(protocols[PROTOCOL]):
            raise FedBiCrossError(f"of the scores of {row}, {problem}")
    return scores
