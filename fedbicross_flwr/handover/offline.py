"""Round 2 at a site that is off the network: from a hand-over and the site's own images, nothing is sent.

It is the client's own `second_round`, with the same settings, seeds and files, so the personal model is the
one that the run would have made.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.client import ClientImages, first_round, second_round, upload_key
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.data.site import absent_line
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.handover.file import Handover
from fedbicross_flwr.progress import Progress
from fedbicross_flwr.site.data import site_images
from fedbicross_flwr.site.identity import make_store
from fedbicross_flwr.site.store import LOCAL, RowScores, SiteStore
from fedbicross_flwr.training import ClientTask


@dataclass(frozen=True)
class Personalised:
    """What came of a hand-over: the model's file, the scores, and what the engineer should know."""

    model: Path
    scores: RowScores
    notes: tuple[str, ...] = ()


def personalise(
    handover: Handover, data: Path, folder: Path, progress: Progress, device: str = ""
) -> Personalised:
    """Make the personal model of a hand-over and keep it in the site's store.

    Parameters
    ----------
    handover : Handover
        Read and verified.
    data : Path
        The site's own images: an .npz file or a folder.
    folder : Path
        The site's store. f_i is trained again if it is not there.
    progress : Progress
        Is told how far the trainings are.
    device : str, default ""
        Where to compute; empty: where the run's settings say.

    Raises
    ------
    FedBiCrossError
        When the data cannot be used or is not that of the site that the hand-over is for, the store holds
        the model of another site, or it cannot be written.
    """
    images = own_images(data, handover)
    config = handover.config
    runtime = dataclasses.replace(config.runtime, device=device or config.runtime.device)
    task = ClientTask(handover.client, handover.spec, config, Compute.of(runtime), progress)
    make_store(folder, "give --store")
    store = SiteStore(folder, handover.class_names, keeps_former=True)
    fits = store.local(upload_key(images, task)) is not None
    sent = None if fits else store.sent(handover.upload, images.fingerprint)
    check_own(handover, data, folder, fits or sent is not None)
    own = sent or first_round(images, task, store)
    notes = [] if images.tests else ["there are no test images, so nothing is scored"]
    if handover.upload and digest(own.state) != handover.upload:
        notes.append(
            f"the site's own model is not, number for number, the one that {handover.site} sent: it was "
            "trained on another kind of machine, or on other images"
        )
    scores = second_round(images, handover.shipment, task, store, sent)
    return Personalised(folder / "personal.safetensors", scores, tuple(notes))


def own_images(path: Path, handover: Handover) -> ClientImages:
    """Return the site's own images, as its first round read them.

    Raises
    ------
    FedBiCrossError
        When they cannot be used, or are not those of the site that the hand-over is for.
    """
    if not path.exists():
        raise FedBiCrossError(absent_line(path, "give the site's .npz file or folder with --data"))
    images = site_images(
        path, handover.class_names, handover.spec.channels, handover.config.seed, handover.client
    )
    if handover.samples is not None and len(images.train) != handover.samples:
        raise FedBiCrossError(
            f"{path} has {len(images.train)} training images, but {handover.site}, which the hand-over is "
            f"for, trained on {handover.samples}; is it for this site, and the data the same?"
        )
    return images


def check_own(handover: Handover, data: Path, folder: Path, fits: bool) -> None:
    """Refuse a store whose f_i is another's: store, images or hand-over are most likely another site's.

    Parameters
    ----------
    fits : bool
        Whether the store has f_i for these settings and images, or the one that was sent.

    Raises
    ------
    FedBiCrossError
        When it has not, but has another model.
    """
    path = folder / LOCAL
    if fits or not path.exists():
        return
    try:
        state, _ = read_tensors(path)
    except FedBiCrossError:
        return  # of no use to anyone; it is trained again
    if digest(state) == handover.upload:
        raise FedBiCrossError(
            f"{path} is the model that {handover.site} sent, but it was not trained on {data} as it is now; "
            "give the images that it was trained on"
        )
    raise FedBiCrossError(
        f"{path} is not the model that {handover.site} sent in this run; is the hand-over for this site? "
        "Give that site's store or, if its model is no longer there, an empty folder to train it again"
    )
