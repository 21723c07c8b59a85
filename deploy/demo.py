"""`make deploy-demo`: a centre and three sites on loopback, with TLS and node authentication, start to end.

Each has a folder of its own, as it would have a machine, and everything is done with the scripts that real
machines use; the demo shows each command. The images are the embedded phantom, or a file that is named.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from federation import SCRIPTS, Federation, Machine, federation
from flower_cli import as_command
from rich.console import Console
from split_data import deal_unequally, write_sites

from fedbicross_flwr.data.registry import open_source
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import expanded
from fedbicross_flwr.launch.app_folder import run_config_toml
from fedbicross_flwr.report import load_run, render_terminal, results_table
from fedbicross_flwr.runs.folder import free_run_id
from fedbicross_flwr.settings import read_toml

SITES = ("north", "east", "south")
PHANTOM_TRAIN, PHANTOM_TEST = 1500, 450


def main() -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(prog="demo.py", description=__doc__)
    parser.add_argument("--data", type=Path, help="an .npz file or a folder of images to deal to the sites")
    parser.add_argument("--out", type=Path, help="a new folder for everything [runs/deploy-<time>]")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    out = chosen.out or Path("runs") / f"deploy-{free_run_id(Path('runs'))}"
    try:
        with federation(new_folder(out), say=lambda command: print(f"$ {command}", flush=True)) as made:
            return show(made, chosen.data)
    except KeyboardInterrupt:
        print("interrupted; all processes are ended", file=sys.stderr)
        return 130


def new_folder(out: Path) -> Path:
    """Return the whole path of an absent or empty folder.

    Raises
    ------
    FedBiCrossError
        When something is there.
    """
    folder = expanded(out).resolve()
    if folder.exists() and not folder.is_dir():
        raise FedBiCrossError(f"{folder} is no folder; choose a new folder with --out")
    if folder.exists() and any(folder.iterdir()):
        raise FedBiCrossError(f"{folder} is not empty; choose a new folder with --out")
    return folder


def show(made: Federation, data: Path | None) -> int:
    """Set everything up, run, and print what came of it."""
    begin = time.monotonic()
    print(f"everything is in {made.folder}, a folder for the centre and one for each site\n")
    made.make_centre()
    sites = [made.make_site(name) for name in SITES]
    config = deal(made, sites, data)
    made.start_superlink()
    for site in sites:
        made.register(site)
    for site in sites:
        made.start_site(site, site.folder / "data.npz")
    command = [SCRIPTS / "start-run", made.centre.folder, config, "--wait"]
    print(f"$ {made.shown(list(map(str, command)))}", flush=True)
    with subprocess.Popen(list(map(str, command)), env=made.environment(), start_new_session=True) as run:
        made.keeper.watch(run)
        status = run.wait()
    if status:
        print(f"logs: {made.folder}/*/process.log", file=sys.stderr)
        return status
    return conclude(made, sites, time.monotonic() - begin)


def deal(made: Federation, sites: list[Machine], data: Path | None) -> Path:
    """Give each site its images; write the run's configuration and return its path."""
    if data:
        source = open_source("site", path=expanded(data).resolve())
    else:
        source = open_source("phantom", phantom_train=PHANTOM_TRAIN, phantom_test=PHANTOM_TEST)
    partition = deal_unequally(source, len(sites))
    write_sites(source, partition, [site.folder / "data.npz" for site in sites])
    for site, train, test in zip(sites, partition.train, partition.test, strict=True):
        print(f"  {site.name} has {len(train)} training and {len(test)} test images of its own")
    settings = {**read_toml(SCRIPTS.parent / "configs" / "site.toml"), **read_toml(SCRIPTS / "demo.toml")}
    settings.pop("out", None)
    settings["deployment.sites"] = ",".join(site.name for site in sites)
    settings["deployment.class_names"] = ",".join(source.info.class_names)
    settings["deployment.channels"] = source.info.channels
    config = made.centre.folder / "demo.toml"
    config.write_text(run_config_toml(settings), encoding="utf-8")
    return config


def conclude(made: Federation, sites: list[Machine], seconds: float) -> int:
    """Print the table, and what each machine is left with."""
    run = made.centre.folder / "runs" / "demo"
    print()
    render_terminal(results_table(load_run(run)), Console())
    print(f"\nat the centre:  {run / 'report.html'}")
    for site in sites:
        model = site.folder / "store" / "personal.safetensors"
        print(f"at {site.name + ':':12} {model} ({model.stat().st_size / 1e6:.1f} MB), its own model")
    print(f"{seconds:.0f} s in all; all processes are ended now")
    return 0


if __name__ == "__main__":
    as_command(main)
