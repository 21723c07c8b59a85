"""Judges a site's own images before anything is sent: what is wrong, and what would leave the site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.site import absent_line
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.evaluation import METRICS
from fedbicross_flwr.files import composed, expanded, reading
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.models import ModelSpec, build_model
from fedbicross_flwr.report.units import count, human_bytes
from fedbicross_flwr.site.data import check_channels, open_site_source, training_order
from fedbicross_flwr.site.findings import Findings, look_at_folder, look_at_packed, named
from fedbicross_flwr.training import check_trainable

FEW: Final = 10
"""Training images below which a class is pointed out."""

SCORED_MODELS: Final = 4
"""Models whose scores a site sends: its own, its own trained on, the received one and the personal one."""

STAYS: Final = (
    "images, labels, and how many images of each class there are; a trained model, and scores on few test "
    "images, tell something of these numbers",
    "the personal model, its temperature, its scores of single images and its predictions",
    "this report",
)


@dataclass(frozen=True)
class Leaving:
    """One thing that would leave the site: when, what, and how much."""

    when: str
    what: str
    amount: str


@dataclass(frozen=True)
class SiteReport:
    """The findings, the classes in their order, and what would leave; nothing where that is not known."""

    found: Findings
    classes: tuple[str, ...]
    leaving: tuple[Leaving, ...]

    @property
    def usable(self) -> bool:
        """Return whether the site can take part as it is."""
        return not self.found.problems


def check_site(path: Path, config: RunConfig, classes: Sequence[str] | None = None) -> SiteReport:
    """Look at a site's folder or .npz file; every image is read, nothing is written or sent.

    Parameters
    ----------
    path : Path
        As `fedbicross_flwr.data.site.open_site` takes it.
    config : RunConfig
        The federation's settings: the network, and how many images are kept for validation.
    classes : sequence of str, optional
        The federation's classes in their order, if they are known; by default those of `config`.

    Raises
    ------
    FedBiCrossError
        When the configured network is unknown, or `path` may not be looked at. What is wrong with the data is
        in the report.
    """
    path, found = expanded(path), Findings()
    classes = classes or config.deployment.classes or None
    with reading(path):
        present, look = path.exists(), look_at_folder if path.is_dir() else look_at_packed
    if not present:
        found.problems.append(absent_line(path))
        return SiteReport(found, (), ())
    own = found.attempt(lambda: look(path, found, classes)) or ()
    if own:
        check_counts(path, own, config, found)
        check_names(own, classes, found, by_name=path.is_dir())
        check_duplicates(found)
    if own and config.is_deployment:
        found.attempt(lambda: check_channels(path, found.channels, config.deployment.channels))
    if own and not found.problems:
        # What a run would refuse must not be passed here, so its own reader and rules have the last word.
        source = found.attempt(lambda: open_site_source(path, classes or own))
        if source is not None:
            found.attempt(lambda: check_training(path, source.labels("train"), config))
    number = len(classes or own)
    known = number > 1 and found.channels > 0
    return SiteReport(found, own, what_leaves(found, config, number) if known else ())


def read_classes(given: str) -> tuple[str, ...]:
    """Return class names from a file, one a line, or from text with commas between them.

    Raises
    ------
    FedBiCrossError
        When it is neither, or names fewer than two classes or one twice.
    """
    try:
        if "," in given:
            lines = given.split(",")
        else:
            lines = expanded(Path(given)).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedBiCrossError(
            f"--classes {given!r} is no file of text that can be read ({error}); give a file with one class "
            "a line, or names with commas between them"
        ) from None
    names = tuple(composed(line.strip()) for line in lines if line.strip())
    twice = [name for name in names if names.count(name) > 1]
    if twice or len(names) < 2:
        found = f"{twice[0]!r} twice" if twice else count(len(names), "class", "classes")
        raise FedBiCrossError(f"--classes {given!r} names {found}; give every class of the federation once")
    return names


def check_counts(path: Path, own: Sequence[str], config: RunConfig, found: Findings) -> None:
    """Hold the numbers of images against what training needs."""
    numbers = {name: training_images(found, name) for name in own}
    kept = validation_images(found, config)
    for name, number in numbers.items():
        if not number:
            found.notes.append(f"class '{name}' has no training image: the site would take part without it")
        elif number < FEW:
            lost = "; all of them may be kept for validation, so that none is trained on"
            found.notes.append(
                f"class '{name}' has {count(number, 'training image')}, fewer than {FEW}"
                f"{lost if number <= kept else ''}"
            )
    present = sum(number > 0 for number in numbers.values())
    if present < config.client.min_classes:
        found.problems.append(
            f"{path}: training images of {count(present, 'class', 'classes')}, but client.min_classes = "
            f"{config.client.min_classes}; add images of other classes"
        )
    if not found.images.get("test"):
        found.notes.append("no test images: nothing would be scored at this site")


def check_training(path: Path, labels: NDArray[np.int64], config: RunConfig) -> None:
    """Hold the labels of the training images against what a run trains on, once validation has its share.

    Which images serve as validation depends on the run's seed and on which of its sites this is, so data pass
    if they do as any of them.

    Raises
    ------
    FedBiCrossError
        When training would be refused.
    """
    fraction = config.client.validation_fraction
    for client in range(max(len(config.deployment.site_names), 1)):
        order = training_order(labels, config.seed, client)
        ordered = LabelledImages(torch.empty(len(labels)), torch.from_numpy(labels[order]))
        training, validation = ordered.split(fraction)
        try:
            check_trainable(training, config.client)
        except FedBiCrossError as error:
            raise FedBiCrossError(
                f"{path}: {count(len(validation), 'image')} of {len(labels):,} would be kept for validation "
                f"(client.validation_fraction = {fraction:g}); of the rest, {error}"
            ) from error


def training_images(found: Findings, name: str | None = None) -> int:
    """Return the number of images that can be trained on, validation included; of one class or of all."""
    splits = [found.images[split] for split in ("train", "val") if split in found.images]
    return sum(images[name] if name is not None else images.total() for images in splits)


def validation_images(found: Findings, config: RunConfig) -> int:
    """Return how many of the training images a run keeps for validation."""
    empty = torch.empty(training_images(found))
    _, validation = LabelledImages(empty, empty).split(config.client.validation_fraction)
    return len(validation)


def check_names(own: Sequence[str], classes: Sequence[str] | None, found: Findings, *, by_name: bool) -> None:
    """Hold the class names against the federation's.

    A folder's classes are known by their names (`by_name`), so some may be missing and their order is free;
    an .npz file has numbers, which mean something only if all names are there in their order.
    """
    if classes is None:
        found.notes.append("the federation's classes were not given (--classes), so names are not compared")
        return
    strangers = [name for name in own if name not in classes]
    absent = [name for name in classes if name not in own]
    for name in strangers:
        near = near_names(name, absent) or near_names(name, classes)
        found.problems.append(f"class '{name}' is none of the federation's{near}")
    # A name that was only misspelt is told once.
    missing = [name for name in absent if not any(near_names(stranger, [name]) for stranger in strangers)]
    for name in missing:
        if by_name:
            found.notes.append(f"class '{name}' of the federation is not here: the site would do without it")
        else:
            found.problems.append(
                f"class '{name}' of the federation is not in class_names; name it in its place, though there "
                "be no image of it"
            )
    if strangers or tuple(own) == tuple(name for name in classes if name in own):
        return
    orders = f"the classes are in the order {', '.join(own)}, but in the federation {', '.join(classes)}"
    if by_name:
        found.notes.append(f"{orders}; that does not matter, as a folder's are known by their names")
    elif not absent:
        found.problems.append(f"{orders}: label 0 would mean two things")


def check_duplicates(found: Findings) -> None:
    """Find test images that are also trained on, by the digest of their pixels."""
    trained = {digest: where for split in ("train", "val") for where, digest in found.prints.get(split, [])}
    same = [
        f"{where} = {trained[digest]}" for where, digest in found.prints.get("test", []) if digest in trained
    ]
    if same:
        found.problems.append(
            f"{count(len(same), 'test image')} also among the training images, which makes the scores too "
            f"good; remove them from one of the two: {named(same)}"
        )


def what_leaves(found: Findings, config: RunConfig, num_classes: int) -> tuple[Leaving, ...]:
    """Return everything that the site would send, with its size.

    Parameters
    ----------
    found : Findings
        With the channels known.
    config : RunConfig
        The federation's settings.
    num_classes : int
        The federation's classes C.
    """
    spec = ModelSpec.of(config, num_classes, found.channels)
    with torch.device("meta"):
        state = build_model(spec, seed=0).state_dict()
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    model = f"the {len(state)} arrays of the trained {spec.name} of width {spec.width}"
    images, kept = training_images(found), validation_images(found, config)
    tests = found.images["test"].total() if "test" in found.images else 0
    rounds = f"each of {config.flower.rounds} rounds" if is_flower(config.method) else "round 1"
    leaving = [
        Leaving(rounds, model, f"{human_bytes(total)} ({total:,} bytes)"),
        Leaving(rounds, "the number of training images", f"{images:,}"),
    ]
    if is_flower(config.method):
        leaving.append(Leaving(rounds, "the mean loss on the training images, if asked for", "1 number"))
    else:
        leaving.append(Leaving(rounds, f"the accuracy on {kept:,} validation images", "1 number"))
    if config.needs_subspaces:
        rank, pixels = config.clustering.pacfl_rank, spec.channels * 28 * 28
        size = human_bytes(4 * num_classes * pixels * rank)
        leaving.append(Leaving(rounds, f"{rank} directions of the images of each class (PACFL)", size))
    scores = f"{len(METRICS) * SCORED_MODELS} numbers" if tests else "nothing: there are no test images"
    what = f"{SCORED_MODELS} models' scores on {tests:,} test images: {', '.join(METRICS)}"
    return (
        *leaving,
        Leaving("last round", what.replace("_", " "), scores),
        Leaving("any round", "the site's name and its number in the federation", "with each message"),
        Leaving("any round", "why the site cannot take part, if it cannot; its paths left out", "one line"),
    )
