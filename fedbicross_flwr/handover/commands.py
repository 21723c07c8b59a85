"""The commands of a hand-over: no federation need be running, and no network be there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import check_apart, expanded

if TYPE_CHECKING:
    from fedbicross_flwr.site.store import RowScores


def make_signing_key(
    folder: Annotated[Path, typer.Argument(help="Where signing.pem and signing.pub go.", metavar="DIR")],
) -> None:
    """Make the pair of keys that hand-overs are signed and checked with."""
    # Imported here and below, as some of it takes seconds to load and `--help` should not.
    from fedbicross_flwr.handover.signing import key_id, make_signing_key, read_public_key

    private, public = make_signing_key(expanded(folder))
    print(f"private key, which stays here: {private}")
    print(f"public key, for the sites:     {public} (key {key_id(read_public_key(public))})")


def export_cluster_model(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    key: Annotated[Path, typer.Option(help="The private key, signing.pem, to sign with.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    site: Annotated[str, typer.Option(help="The site that it is for.", metavar="NAME")] = "",
    client: Annotated[
        int | None, typer.Option(help="In a simulation: the client that it is for.", min=0)
    ] = None,
) -> None:
    """Write what a site is sent in round 2 into one signed file, to be handed over."""
    from fedbicross_flwr.handover.file import export_cluster_model
    from fedbicross_flwr.report.units import human_bytes

    if bool(site) == (client is not None):
        raise FedBiCrossError("give either --site NAME or, in a simulation, --client N")
    whom: int | str = site if client is None else client
    path = export_cluster_model(expanded(run), whom, expanded(key), expanded(out))
    print(f"{path}: {human_bytes(path.stat().st_size)}, for {site or f'client {client}'} alone")


def personalize(
    cluster_model: Annotated[
        Path, typer.Option(help="The hand-over that the centre gave the site.", metavar="FILE")
    ],
    public_key: Annotated[Path, typer.Option(help="The centre's public key, signing.pub.", metavar="FILE")],
    data: Annotated[Path, typer.Option(help="The site's .npz file or folder of images.", metavar="PATH")],
    store: Annotated[Path, typer.Option(help="The site's store.", metavar="PATH")],
    site: Annotated[
        str, typer.Option(help="The site's own name; a hand-over for another is refused.", metavar="NAME")
    ] = "",
    device: Annotated[
        str, typer.Option(help="auto, cpu, or a PyTorch device. [as the run's settings have it]")
    ] = "",
) -> None:
    """Make the site's personal model from a hand-over, without any network."""
    from fedbicross_flwr.compute import resolve_device
    from fedbicross_flwr.handover.file import read_handover
    from fedbicross_flwr.handover.offline import personalise
    from fedbicross_flwr.handover.signing import key_id, read_public_key
    from fedbicross_flwr.site.store import LOCAL, PERSONAL, SCORES

    if device:
        resolve_device(device, "--device")
    path, key, images, kept = map(expanded, (cluster_model, public_key, data, store))
    for written in (LOCAL, PERSONAL, SCORES):
        check_apart(kept / written, [path, key, images])
    handover = read_handover(path, key)
    print(f"hand-over for {handover.site}, signed with the key {key_id(read_public_key(key))}")
    if site and site != handover.site:
        raise FedBiCrossError(
            f"{path} is for {handover.site}, not for {site}; ask the coordinating centre for the site's own"
        )
    console = Console(markup=False, highlight=False)
    with Bars(console) as bars:
        made = personalise(handover, images, kept, bars, device)
    for note in made.notes:
        print(f"note: {note}")
    if made.scores.get("personal"):
        console.print(scores_table(made.scores))
    print(f"personal model: {made.model}")


def scores_table(scores: RowScores) -> Table:
    """Return the scores of a site's models on its test images, in percent."""
    from fedbicross_flwr.site.model_card import SHOWN, score_lines

    table = Table("model", "images", title="On the site's test images, in percent", box=SIMPLE_HEAD)
    for name in SHOWN.values():
        table.add_column(name, justify="right")
    for _, *cells in score_lines(scores):
        table.add_row(*cells)
    return table


class Bars:
    """Progress of a site's own work, as bars; nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:20}"), BarColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.bars.stop()

    def advance(self, stage: str, done: int, total: int, *, client: int | None = None) -> None:
        """Show how far a stage is."""
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total)
        self.bars.update(self.tasks[stage], completed=done)

    def note(self, text: str) -> None:
        """Show a fact."""
        self.bars.console.print(text)
