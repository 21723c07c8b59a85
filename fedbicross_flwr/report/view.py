"""What the report page says, as plain data: the headline, the clients, the timings, the facts.

Nothing here knows of HTML; `fedbicross_flwr.report.template` lays it out.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from fedbicross_flwr.config import asks_for_subspaces
from fedbicross_flwr.config_readers import FEDBICROSS
from fedbicross_flwr.flower_names import is_flower
from fedbicross_flwr.report.record import Client, ResultRow, RunRecord, Score
from fedbicross_flwr.report.table import CEILING, METRICS, ResultsTable, TableRow
from fedbicross_flwr.report.units import (
    ABSENT,
    count,
    duration,
    human_bytes,
    listing,
    percent,
    points,
    points_between,
)
from fedbicross_flwr.rows import ROWS

REFERENCES = ("local-only", "local-only, same budget", "FedAvg-1")
ACCURACY = METRICS[0]
SHORT_TITLES = {"global": "On the whole test set", "local": "On test images like the client’s own"}
COMPARED = {
    "outputs": "The server shows the same artificial images to all models and compares their answers.",
    "classifier_bias": "The server compares the biases of the models’ last layers.",
    "classifier_norms": "The server compares the row norms of the models’ last layers.",
    "parameters": "The server compares all weights of the models.",
    "hierarchical": "The server compares all weights of the models.",
    "pacfl": "The server compares singular vectors that each client computes from its images and sends.",
}

PARTS = ("clustering", "synthetic", "inversion", "weights")
"""Parts of a page that only some methods have something for."""


@dataclass(frozen=True)
class Bar:
    """One line of a headline card: a row's mean accuracy, and how far the page's subject is from it."""

    name: str
    value: str
    width: float
    difference: str
    ours: bool


@dataclass(frozen=True)
class Headline:
    """The main numbers under one protocol."""

    title: str
    sentence: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class ClientLine:
    """One client; `scores` holds local-only's and the subject's accuracy and their difference."""

    client: int
    cluster: int | None
    images: str
    validation: str
    scores: tuple[tuple[str, str, str], ...]
    sent: str
    received: str
    ok: bool
    reason: str


@dataclass(frozen=True)
class Timing:
    """One stage's time, and its share of the whole in percent."""

    stage: str
    time: str
    share: float


def method_of(run: RunRecord) -> str:
    """Return the name of the run's method."""
    return str(run.config.get("method", FEDBICROSS))


def shown_parts(run: RunRecord, drawn: Container[str]) -> dict[str, bool]:
    """Return which of `PARTS` the page has: what is drawn, and with FedBiCross what is missing as well."""
    return {part: part in drawn or method_of(run) == FEDBICROSS for part in PARTS}


def subject(rows: Sequence[ResultRow | TableRow]) -> str | None:
    """Return the row that a page is about, what its method ends with; None when there is none.

    It is the last of those that not every run has. A ceiling is no method.
    """
    common = {row.name for row in ROWS.values()}
    own = [row.name for row in rows if row.kind != CEILING and row.name not in common]
    return own[-1] if own else None


def exchange(run: RunRecord) -> str:
    """Return in a sentence what a client sends and receives."""
    rows = run.results.rows if run.results else ()
    if rows and all(row.kind == CEILING for row in rows):
        return rows[-1].note
    if is_flower(method_of(run)):
        rounds = run.config.get("flower.rounds")
        return (
            f"In each of {rounds} rounds it receives the common model, trains it on its own images, and "
            "sends it back; no image leaves it."
        )
    sentence = "It trains a model on its own images, sends that model once, and receives one model back"
    if method_of(run) == FEDBICROSS and run.config.get("personal.replay"):
        sentence += ", and synthetic images to rehearse"
    if asks_for_subspaces(method_of(run), run.config.get("clustering.by")):
        return f"{sentence}. With its model it sends singular vectors of its images; no image leaves it."
    return f"{sentence}; no image leaves it."


def headlines(table: ResultsTable) -> tuple[Headline, ...]:
    """Return the main numbers per protocol; none when the run's method is not among the rows."""
    rows, name = {row.name: row for row in table.rows}, subject(table.rows)
    if name is None:
        return ()
    found = (_headline(rows, name, protocol) for protocol in table.protocols)
    return tuple(headline for headline in found if headline)


def _headline(rows: dict[str, TableRow], subject: str, protocol: str) -> Headline | None:
    def mean(name: str) -> float | None:
        return rows[name].values[protocol, ACCURACY.key].mean if name in rows else None

    ours = mean(subject)
    if ours is None:
        return None
    bars = [Bar(subject, percent(ours), 100 * ours, "", True)]
    phrases = []
    for name in REFERENCES:
        other = mean(name)
        if other is not None:
            bars.append(Bar(name, percent(other), 100 * other, points(ours, other), False))
            phrases.append(f"{_compared(points_between(ours, other))} {name} ({percent(other)} %)")
    sentence = f"{subject} reaches a mean accuracy of {percent(ours)} %"
    sentence += f": {listing(phrases)}." if phrases else "."
    return Headline(SHORT_TITLES[protocol], sentence, tuple(bars))


def _compared(difference: float) -> str:
    """Return a difference in percentage points in words that take no side."""
    if difference == 0:
        return "level with"
    size = abs(difference)
    noun = "point" if size == 1 else "points"
    return f"{size:.1f} {noun} {'above' if difference > 0 else 'below'}"


def client_lines(run: RunRecord) -> tuple[ClientLine, ...]:
    """Return one line a client, failed ones included."""
    return tuple(_client_line(run, client) for client in sorted(run.clients, key=lambda c: c.client))


def _client_line(run: RunRecord, client: Client) -> ClientLine:
    scores = []
    name = subject(run.results.rows) if run.results else None
    for protocol in run.results.protocols if run.results else ():
        own = _score(run, REFERENCES[0], protocol, client.client)
        ours = _score(run, name, protocol, client.client) if name else None
        difference = points(ours.accuracy, own.accuracy) if own and ours else ABSENT
        scores.append(
            (percent(own.accuracy if own else None), percent(ours.accuracy if ours else None), difference)
        )
    return ClientLine(
        client=client.client,
        cluster=run.clustering.cluster_of(client.client) if run.clustering else None,
        images=ABSENT if client.num_samples is None else f"{client.num_samples:,}",
        validation=percent(client.local_validation_accuracy),
        scores=tuple(scores),
        sent=human_bytes(client.bytes_sent),
        received=human_bytes(client.bytes_received),
        ok=client.ok,
        reason=client.reason,
    )


def _score(run: RunRecord, name: str, protocol: str, client: int) -> Score | None:
    row = run.results.row(name) if run.results else None
    return row.scores[protocol].get(client) if row else None


def timings(run: RunRecord) -> tuple[Timing, ...]:
    """Return the stages in their order, without the total; shares are of the stages' sum."""
    stages = {stage: seconds for stage, seconds in run.seconds.items() if stage != "total"}
    whole = sum(stages.values()) or 1.0
    return tuple(Timing(stage, duration(seconds), 100 * seconds / whole) for stage, seconds in stages.items())


def facts(run: RunRecord) -> tuple[tuple[str, str], ...]:
    """Return the run at a glance: label and value."""
    clients = str(len(run.clients))
    if run.failed:
        clients += f" ({len(run.failed)} failed)"
    found = [("Data set", run.dataset.name), ("Clients N", clients)]
    # A deployment's clients hold what they hold: nothing was dealt, so there is no alpha to state.
    if "partition.alpha" in run.config and any(client.class_counts for client in run.clients):
        found.append(("Dirichlet α", f"{run.config['partition.alpha']}"))
    if run.clustering:
        found.append(("Clusters K", str(run.clustering.clusters)))
    found.append(("Seed", str(run.seed)))
    if "total" in run.seconds:
        # Of an interrupted run, or of one that found stages of another, the last call alone is told.
        total = run.seconds["total"]
        whole = not run.resumed and total + 1.0 >= sum(run.seconds.values()) - total
        found.append(("Total time" if whole else "Time of the last call", duration(total)))
    return tuple(found)


def warnings(run: RunRecord) -> tuple[str, ...]:
    """Return what a reader must know before trusting a number."""
    found = []
    if not run.finished:
        found.append("This run has not finished; what is shown here is what it has written so far.")
    for client in run.failed:
        title = client.title[0].upper() + client.title[1:]
        found.append(f"{title} failed: {client.reason or 'no reason was recorded'}.")
    if run.failed:
        number = count(len(run.clients) - len(run.failed), "client")
        found.append(f"The run went on with {number}; the numbers below are theirs.")
    for client in run.clients:
        if client.flags:
            found.append(f"The upload of {client.title} is unlike the others: {'; '.join(client.flags)}.")
    return tuple(found)


def traffic(run: RunRecord) -> str:
    """Return in a sentence what crossed the network in all."""
    sent = human_bytes(sum(client.bytes_sent for client in run.clients))
    received = human_bytes(sum(client.bytes_received for client in run.clients))
    return f"In all, the clients sent {sent} and received {received}."


def synthetic_text(run: RunRecord) -> str:
    """Return in a sentence what the synthetic images are worth; empty when nobody judged them."""
    if run.quality is None:
        return ""
    found = run.quality
    classes = count(len(run.dataset.class_names), "class", "classes")
    aimed = (
        f"; {percent(found.agreement)} % are recognised as what they were made for"
        if found.agreement is not None
        else ""
    )
    return (
        f"All hospitals’ models together recognise {found.classes} of {classes} in "
        f"{count(found.images, 'image')}{aimed}. What was learned from an image answers it as they do in "
        f"{percent(found.learned)} % of cases."
    )


def clustering_text(run: RunRecord) -> str:
    """Return what the clustering figure shows; empty when the run has no clustering."""
    if run.clustering is None:
        return ""
    compared = COMPARED.get(str(run.config.get("clustering.by", "outputs")), "")
    text = (
        f"{compared} Blue: two hospitals’ models are alike; orange: they differ. "
        f"A frame is a cluster; the server formed {count(run.clustering.clusters, 'cluster')}."
    )
    if run.clustering.silhouette is not None:
        text += (
            f" Silhouette {run.clustering.silhouette:.2f}: 1 means clusters far apart, 0 that they overlap, "
            "below 0 that clients lie nearer to another cluster."
        )
    return text.strip()
