"""``fedbicross status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedbicross_flwr.files import expanded


def status(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again until the end.")] = False,
) -> None:
    """Tell which sites have sent their model, which stage runs, and what is left."""
    # Imported here, as some of it takes seconds to load and `--help` should not.
    from fedbicross_flwr.status.display import show_status, watch_status
    from fedbicross_flwr.status.run_status import read_status

    console, folder = Console(markup=False, highlight=False), expanded(run)
    if watch:
        watch_status(folder, console)
    else:
        console.print(show_status(read_status(folder)))
