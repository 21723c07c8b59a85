"""A model card in Markdown for a site's personal model (Mitchell et al., *Model Cards*, FAT* 2019).

It is made from the model's file and the scores beside it, and from nothing else: no image is read, and how
many images of each class the site has is in neither.
"""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from jinja2 import Environment, StrictUndefined

import fedbicross_flwr
from fedbicross_flwr.artifacts import digest, load_model, read_tensors
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.evaluation import Scores
from fedbicross_flwr.report.units import ABSENT, human_bytes, percent
from fedbicross_flwr.site.prediction import model_file
from fedbicross_flwr.site.store import PERSONAL, SCORES, RowScores, read_scores

TITLES: Final[Mapping[str, str]] = {
    "personal": "this model",
    "cluster-model": "the model as the server sent it",
    "local-only": "the site's own model, nothing shared",
    "same-budget": "the site's own model, trained on for as long",
}
"""Rows of scores.json, in the order of the card."""

SHOWN: Final[Mapping[str, str]] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "ece": "calibration error",
}

FACTS: Final = ("key", "temperature")
"""What a personal model's file says, and no other model's file says all of."""

TEMPLATE: Final = """\
# Model card: {{ name | plain }}

A classifier of images of 28×28 pixels, made by personalised one-shot federated learning (FedBiCross) for one
site, on that site's images and a model that a server had made of several sites' models.

**This is not a medical device.** It has not been assessed or approved for any clinical use. It must not be
used for diagnosis, treatment, triage or any other decision about a patient.

## The model

| | |
|---|---|
{%- for key, value in facts %}
| {{ key }} | {{ value | plain }} |
{%- endfor %}

Its classes, in the order of its outputs:
{% for class_name in class_names %}
- {{ class_name | plain }}
{%- endfor %}

## Intended use

Research on federated learning: comparing methods, and studying at the site what such a model answers. It
takes uint8 images of 28×28 pixels with {{ channels }} channel(s), prepared as the site's training images
were, and gives a probability to each of the classes above. It has no answer for anything else: an image of
another kind is given one of these classes all the same.

## Scores
{% if scores %}
Percent, on test images that no model, epoch or setting was chosen on. *Local*: the site's own test images;
*global*, in a simulation: those of all sites.

| test images | model | images | {{ columns | join(" | ") }} |
|---|---|---|{{ "---|" * (columns | length) }}
{%- for line in scores %}
| {{ line | map("plain") | join(" | ") }} |
{%- endfor %}

They are the scores of the uncalibrated model, which the results of the run are made of as well.
{%- else %}
No scores of this model are kept beside its file.
{%- endif %}
{%- if temperature == 1.0 %}
The model's temperature is 1: its probabilities are not calibrated.
{%- else %}
The probabilities that the model answers are calibrated: its logits are divided by the temperature
{{ "%.4g" | format(temperature) }}, fitted on the site's validation images. It changes the class of no answer.
{%- endif %}

## Limits

- The scores hold for images like the site's own. Another scanner, stain, population or mix of classes can
  change them a great deal, and nothing in the model notices.
- A class that the site saw little of may be answered badly, however good the mean is: balanced accuracy gives
  every class the same say.
- Calibrated on few images, probabilities are still estimates.
- It was trained on this site's images, with neither differential privacy nor any other bound on what it
  tells of them. It belongs at the site. Before it is given to anyone, ask who is responsible for the images.
- How many images of each class it learned from is not told here, since that stays at the site.

## How it was written

On {{ today }} from the model's file{{ " and scores.json" if scores }}, with {{ versions | join(", ") }}.
"""


def model_card(model: Path) -> str:
    """Return the card of a personal model.

    Parameters
    ----------
    model : Path
        A site's folder, or a model's file; ``scores.json`` beside it is used if it is of this model.

    Raises
    ------
    FedBiCrossError
        When there is no model, it is damaged, or it is no personal model.
    """
    file = model_file(model)
    classifier = load_model(file, device="cpu")
    state, facts = read_tensors(file)
    check_personal(file, facts)
    spec, written = classifier.spec, file.stat()
    described = (
        ("file", file.name),
        ("date of the file", datetime.fromtimestamp(written.st_mtime, UTC).date().isoformat()),
        ("size", human_bytes(written.st_size)),
        ("network", f"{spec.name}, width {spec.width}, {spec.stem} stem, {spec.channels} channel(s)"),
        ("parameters", f"{sum(one.numel() for one in classifier.model.parameters()):,}"),
        ("temperature", f"{classifier.temperature:.4g}"),
        ("SHA-256 of its arrays", digest(state)),
    )
    environment = Environment(autoescape=False, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["plain"] = plain
    return environment.from_string(TEMPLATE).render(
        name=f"{file.resolve().parent.name}/{file.name}",
        facts=described,
        class_names=classifier.class_names,
        channels=spec.channels,
        temperature=classifier.temperature,
        columns=list(SHOWN.values()),
        scores=score_lines(kept_scores(file, facts)),
        versions=versions(),
        today=datetime.now(UTC).date().isoformat(),
    )


def check_personal(file: Path, facts: Mapping[str, str]) -> None:
    """Refuse a model of which the card would say what is not so: a cluster's, an upload, a site's own f_i.

    Raises
    ------
    FedBiCrossError
        When its file does not say what a personal model's does.
    """
    if missing := [fact for fact in FACTS if fact not in facts]:
        raise FedBiCrossError(
            f"{file} is no personal model, as it has no {' and no '.join(missing)}, and a card tells of no "
            f"other; give a site's folder or the {PERSONAL} in it"
        )


def files_read(model: Path) -> list[Path]:
    """Return the files that `model_card` reads."""
    file = model_file(model)
    return [file, file.with_name(SCORES)]


def plain(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", " ".join(str(value).split()))


def versions() -> list[str]:
    """Return what the card is written with; the model's file does not say what it was trained with."""
    return [
        f"FedBiCross {fedbicross_flwr.__version__}",
        f"PyTorch {torch.__version__}",
        f"Python {platform.python_version()}",
    ]


def kept_scores(file: Path, facts: Mapping[str, str]) -> RowScores:
    """Return the scores beside a personal model; none if there are none, or they are another model's."""
    return read_scores(file.with_name(SCORES), facts.get("key", "")) or {}


def score_lines(scores: RowScores) -> list[list[str]]:
    """Return the lines of the card's table, protocol by protocol."""
    rows = [*(row for row in TITLES if row in scores), *(row for row in scores if row not in TITLES)]
    protocols = sorted({protocol for row in rows for protocol in scores[row]}, reverse=True)
    return [
        [
            protocol,
            TITLES.get(row, row),
            f"{scores[row][protocol]['samples']:.0f}",
            *cells(scores[row][protocol]),
        ]
        for protocol in protocols
        for row in rows
        if protocol in scores[row]
    ]


def cells(scores: Scores) -> list[str]:
    """Return the metrics in percent; one that has no value is a dash."""
    values = [scores.get(metric, math.nan) for metric in SHOWN]
    return [ABSENT if math.isnan(value) else percent(value) for value in values]
