"""``fedbicross predict``, ``card``, ``export-onnx`` and ``site check``, for an engineer at a site."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.files import check_apart, expanded, shown, write_bytes
from fedbicross_flwr.settings import read_toml

if TYPE_CHECKING:
    from fedbicross_flwr.site.check import SiteReport

site = typer.Typer(help="What an engineer at a site looks at before taking part.", no_args_is_help=True)

Model = Annotated[
    Path,
    typer.Option(help="A model's file, or a site's folder with personal.safetensors.", metavar="PATH"),
]


def predict(
    model: Model,
    images: Annotated[
        Path,
        typer.Option(
            help="A folder of images, or an .npz file with an array images or test_images.", metavar="PATH"
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="CSV file. [standard output]", metavar="FILE", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, or a PyTorch device such as cuda:0.")] = "auto",
) -> None:
    """Let a model answer images: the class and the probability of every class, as CSV."""
    # Imported here, as PyTorch takes seconds to load and `--help` should not.
    from fedbicross_flwr.compute import resolve_device
    from fedbicross_flwr.site.prediction import files_read, passed_over, predictions

    resolve_device(device, "--device")
    if out is not None:
        check_apart(expanded(out), files_read(model, images))
    deliver(predictions(model, images, device), out)
    if line := passed_over(images):
        print(f"note: {line}", file=sys.stderr)


def card(
    model: Model,
    out: Annotated[
        Path | None, typer.Option(help="Markdown file. [standard output]", metavar="FILE", show_default=False)
    ] = None,
) -> None:
    """Write a model card for a site's personal model, as Markdown."""
    from fedbicross_flwr.site.model_card import files_read, model_card

    if out is not None:
        check_apart(expanded(out), files_read(model))
    deliver(model_card(model).encode("utf-8", "backslashreplace"), out)


def export_onnx(
    model: Model,
    out: Annotated[Path, typer.Option(help="The ONNX file to write.", metavar="FILE")],
) -> None:
    """Write a model as ONNX: uint8 images in, calibrated probabilities out."""
    from fedbicross_flwr.report.units import human_bytes
    from fedbicross_flwr.site.onnx_export import export_onnx

    made = export_onnx(model, expanded(out))
    print(
        f"{made.path}: {human_bytes(made.path.stat().st_size)}; its probabilities are those of the model "
        f"within {made.difference:.1g} on {made.images} images"
    )


@site.callback()
def at_site() -> None:
    """Look at a site's own data; nothing is sent."""


@site.command()
def check(
    path: Annotated[Path, typer.Argument(help="The site's .npz file or folder of images.")],
    classes: Annotated[
        str,
        typer.Option(
            help="The federation's classes: a file with one a line, or names with commas between them."
        ),
    ] = "",
    config: Annotated[
        Path | None, typer.Option(help="The federation's configuration (TOML).", metavar="FILE")
    ] = None,
) -> None:
    """Tell what is found at a site, what is wrong with it, and what would leave; nothing is sent.

    The exit status is 0 if the data can be used as it is, and 2 if not, with a line for each problem.
    """
    from fedbicross_flwr.site.check import check_site, read_classes

    settings = RunConfig.from_flat(read_toml(config) if config else {})
    report = check_site(path, settings, read_classes(classes) if classes else None)
    # Class and file names may hold what rich would take for markup.
    show(report, Console(markup=False, highlight=False))
    for problem in report.found.problems:
        # Not through rich, which would wrap the line.
        print(f"error: {shown(problem)}", file=sys.stderr)
    if not report.usable:
        raise typer.Exit(2)
    print("This data can be used.")


def deliver(content: bytes, out: Path | None) -> None:
    """Write to a file, whole or not at all, or to standard output."""
    if out is None:
        typer.echo(content, nl=False)
    else:
        write_bytes(expanded(out), content)


def show(report: SiteReport, console: Console) -> None:
    """Print what was found and what would leave."""
    from fedbicross_flwr.site.check import STAYS

    found = report.found
    if report.classes:
        console.print(counts_table(report))
        sizes = ", ".join(f"{number:,} of {size}" for size, number in found.sizes.most_common())
        console.print(f"Images that can be read: {sizes or 'none'}; channels: {found.channels or 'unknown'}")
    if report.leaving:
        table = Table("when", "what", "how much", title="What would leave the site", box=SIMPLE_HEAD)
        for one in report.leaving:
            table.add_row(one.when, one.what, one.amount)
        console.print(table)
    console.print("What never leaves:")
    for line in STAYS:
        console.print(f"  - {line}")
    for note in found.notes:
        console.print(f"note: {shown(note)}", soft_wrap=True)


def counts_table(report: SiteReport) -> Table:
    """Return the usable images of each class and split."""
    images = report.found.images
    table = Table("class", title="Images that can be used", box=SIMPLE_HEAD, show_footer=True)
    table.columns[0].footer = "all"
    for split in images:
        table.add_column(split, justify="right", footer=f"{images[split].total():,}")
    strangers = sorted({name for split in images.values() for name in split} - set(report.classes))
    for name in (*report.classes, *strangers):
        table.add_row(shown(name), *(f"{images[split][name]:,}" for split in images))
    return table
