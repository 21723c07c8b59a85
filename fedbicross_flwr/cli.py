"""The ``fedbicross`` command.

A mistake of the user ends in one line behind ``error:`` and exit status 2; a run that fails, in status 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.settings import Scalar, parse_override, read_toml

app = typer.Typer(
    help="One-shot personalised federated learning for medical images, on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def simulate(
    config: Annotated[Path | None, typer.Option(help="Run configuration (TOML).", metavar="FILE")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="One setting, such as partition.alpha=0.1; may be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="phantom, a MedMNIST name, an .npz file, or a folder of images.")
    ] = "",
    data_root: Annotated[str, typer.Option(help="Where MedMNIST files are looked for and kept.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; one that was interrupted goes on. [runs/<time>]")
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Without Flower and Ray, client after client.")
    ] = False,
) -> None:
    """Run FedBiCross end to end in a simulated federation, and write its report."""
    # Imported here, as PyTorch takes seconds to load and `--help` should not.
    from fedbicross_flwr.simulate import simulate_run

    flat: dict[str, Scalar] = read_toml(config) if config else {}
    flat.update(parse_override(text) for text in settings or [])
    flat.update(data_settings(data, data_root))
    simulate_run(RunConfig.from_flat(flat), out, in_process, Console())


@app.command()
def summary(
    runs: Annotated[list[Path], typer.Argument(help="Finished run folders that differ in their seed alone.")],
) -> None:
    """Print mean and standard deviation over seeds, as a Markdown table."""
    from fedbicross_flwr.report import load_run, seeds_table

    print(seeds_table([load_run(run) for run in runs]).markdown())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A finished run folder.")]) -> None:
    """Write figures and report.html of a run anew, and print its table."""
    from fedbicross_flwr.report import load_run, render_terminal, results_table, write_report

    page = write_report(run)
    render_terminal(results_table(load_run(run)), Console())
    print(f"\nreport: {page}")


def data_settings(data: str, root: str) -> dict[str, Scalar]:
    """Return the settings that ``--data`` and ``--data-root`` stand for."""
    chosen: dict[str, Scalar] = {"data.root": str(Path(root).expanduser().resolve())} if root else {}
    if not data:
        return chosen
    path = Path(data).expanduser()
    if data != "phantom" and (path.exists() or path.suffix or len(path.parts) > 1):
        return {**chosen, "data.name": "site", "data.path": str(path.resolve())}
    return {**chosen, "data.name": data, "data.path": ""}


def main() -> None:
    """Run the command; a user's mistake is one line."""
    try:
        app()
    except FedBiCrossError as error:
        # Not through rich, which would wrap the line.
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns an interruption inside a command into a silent exit with status 130.
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("interrupted; the same command with the same --out goes on", file=sys.stderr)
        sys.exit(130)
