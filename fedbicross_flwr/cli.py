"""The ``fedbicross`` command.

A mistake of the user ends in one line behind ``error:`` and exit status 2; a run that fails, in status 1.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NoReturn

import click
import typer
from rich.console import Console

from fedbicross_flwr.compare.commands import export_records, figure, table
from fedbicross_flwr.compare.plan import OWN_KEYS, base_settings, cells_of, plan_runs
from fedbicross_flwr.compare.variants import variants_named
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError, harmless, memory_is_full
from fedbicross_flwr.files import concerns_files, expanded, shown, unusable
from fedbicross_flwr.handover.commands import (
    export_cluster_model,
    make_signing_key,
    personalize,
)
from fedbicross_flwr.settings import Scalar, parse_override, read_toml
from fedbicross_flwr.site.commands import card, export_onnx, predict, site
from fedbicross_flwr.status.commands import status

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
        Path | None,
        typer.Option(help="Folder of the run, else runs/<time>; one that was interrupted goes on."),
    ] = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Without Flower; clients side by side on a CPU's cores.")
    ] = False,
) -> None:
    """Run FedBiCross end to end in a simulated federation, and write its report."""
    flat: dict[str, Scalar] = read_toml(config) if config else {}
    flat.update(parse_override(text) for text in settings or [])
    flat.update(data_settings(data, data_root))
    checked = RunConfig.from_flat(flat)
    # Imported here, as PyTorch takes seconds to load, and neither `--help` nor a wrong setting should.
    from fedbicross_flwr.simulate import simulate_run

    simulate_run(checked, out, in_process, Console())


@app.command()
def compare(
    methods: Annotated[
        str,
        typer.Option(
            help="Names with commas between them, such as dense,fedbicross; all leaves out Flower's own."
        ),
    ] = "all",
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 3,
    scale: Annotated[
        str, typer.Option(help="The settings of configs/: quick, if none is named, or paper.", metavar="NAME")
    ] = "",
    config: Annotated[
        Path | None, typer.Option(help="Another configuration (TOML) instead.", metavar="FILE")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="One setting for all runs; may be repeated.", metavar="KEY=VALUE"),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="As for simulate; may be repeated for several data sets.")
    ] = None,
    data_root: Annotated[str, typer.Option(help="Where MedMNIST files are looked for and kept.")] = "",
    alphas: Annotated[
        str, typer.Option(help="Values of partition.alpha with commas between them: 0.1,0.3.")
    ] = "",
    clients: Annotated[
        str, typer.Option(help="Values of partition.clients with commas between them: 5,10.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder of the comparison; one that was begun goes on.")] = Path(
        "comparisons"
    ),
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of Flower's own strategies: flower.rounds.", min=1)
    ] = None,
    flower: Annotated[
        bool, typer.Option("--flower", help="Each run under Flower and Ray; the numbers are the same.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs at once, by Ray; each with its share of the cores or a GPU. [2 on a CPU, else 1]",
            min=1,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run all methods on the same uploads, and write one table."""
    base = base_settings(scale, config, settings or [])
    for key in sorted(OWN_KEYS.keys() & base.keys()):
        print(f"note: {key} of {config} has no effect; use {OWN_KEYS[key]} instead", file=sys.stderr)
    if rounds is not None:
        base["flower.rounds"] = rounds
    images = [data_settings(one, data_root) for one in data or [""]]
    folder = expanded(out).resolve()
    cells = cells_of(base, images, clients, alphas)
    runs = plan_runs(base, cells, variants_named(methods), seeds, folder)
    # See `simulate`.
    from fedbicross_flwr.compare.engine import compare_all

    sys.exit(compare_all(runs, flower, folder, jobs))


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


app.command()(table)
app.command()(figure)
app.command()(export_records)
app.command()(predict)
app.command()(card)
app.command()(status)
app.command()(make_signing_key)
app.command()(export_cluster_model)
app.command()(personalize)
app.command()(export_onnx)
app.add_typer(site, name="site")


def data_settings(data: str, root: str) -> dict[str, Scalar]:
    """Return the settings that ``--data`` and ``--data-root`` stand for."""
    chosen: dict[str, Scalar] = {"data.root": str(expanded(Path(root)).resolve())} if root else {}
    if not data:
        return chosen
    path = expanded(Path(data))
    if data != "phantom" and (path.exists() or path.suffix or len(path.parts) > 1):
        return {**chosen, "data.name": "site", "data.path": str(path.resolve())}
    return {**chosen, "data.name": data, "data.path": ""}


def main() -> None:
    """Run the command; a user's mistake is one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names need not be UTF-8, nor need a terminal know all letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if sys.stdout is None:  # as Python has it where a shell's >&- closed it
            raise FedBiCrossError("standard output is closed; let it go somewhere, such as to /dev/null")
        try:
            check_words(sys.argv)
            status = app(standalone_mode=False, prog_name="fedbicross")
        finally:
            flush_output()
        sys.exit(status)
    except FedBiCrossError as error:
        refuse(str(error))
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):  # of a command without its words
            error.show()
            sys.exit(error.exit_code)
        context = getattr(error, "ctx", None)
        told = f"; see {context.command_path} --help" if context else ""
        refuse(error.format_message().rstrip(".") + told)
    except OSError as error:
        if not concerns_files(error):
            raise
        refuse(unusable(error))
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        refuse(f"memory is too small for what was asked; lower what was raised last ({harmless(str(error))})")
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer turns an interruption inside a command into a silent exit with status 130.
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("interrupted; the same command with the same --out goes on", file=sys.stderr)
        sys.exit(130)


def check_words(words: Sequence[str]) -> None:
    """Refuse an empty word: most are a shell's variable that nobody set, and none means what is left out.

    Raises
    ------
    FedBiCrossError
        With the word before it.
    """
    for before, word in pairwise(words):
        if not word.strip() or re.fullmatch(r"--[\w-]+=\s*", word):
            place = word.partition("=")[0].strip() or Path(before).name
            raise FedBiCrossError(
                f"the word behind {place} is empty; give a name or a path there, or leave the option out "
                "(is a variable of the shell not set?)"
            )


def refuse(reason: str) -> NoReturn:
    """Say what is wrong, and leave."""
    # Not through rich, which would wrap the line.
    print(f"error: {shown(reason)}", file=sys.stderr)
    sys.exit(2)


def flush_output() -> None:
    """Write what is left to say, while it can still be said that it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read has enough
            sys.exit(1)
        raise FedBiCrossError(unusable(error, Path("standard output"))) from error
