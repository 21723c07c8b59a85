"""docs/deployment.md is followed word for word in fresh folders, with the names of this machine in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from deployed import SETTINGS, images, until
from federation import SCRIPTS, Federation, federation, free_port
from split_data import write_sites

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.launch.app_folder import run_config_toml
from fedbicross_flwr.settings import read_toml

pytestmark = pytest.mark.deploy
ROOT = SCRIPTS.parent
BLOCK = re.compile(r"<!-- (centre|site)(?:, stays in the foreground)? -->\n```bash\n(.*?)```", re.S)
INSTALLED = ("git clone", "make setup", "source .venv")
NAMES = ("north", "south", "west")
"""The sites of configs/site.toml."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Nothing but a keeper: the page is followed without the helpers that the other tests use."""
    with federation(tmp_path_factory.mktemp("page") / "unused") as one:
        yield one


@dataclass
class Reader:
    """Somebody who types what the page says, on a machine of their own.

    `names` are the page's examples and what stands here for them; `first` is the block that sets variables.
    """

    made: Federation
    home: Path
    names: dict[str, str]
    first: str

    def command(self, block: str) -> list[str]:
        text = f"{self.first}\n{block}"
        for old, new in self.names.items():
            text = text.replace(old, new)
        lines = [line for line in text.splitlines() if not line.startswith(INSTALLED)]
        return ["bash", "-e", "-c", "\n".join(lines)]

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return self.made.environment() | {"PATH": path, "HOME": str(self.home)}

    def follow(self, block: str) -> str:
        done = subprocess.run(
            self.command(block),
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr)
        return done.stdout

    def start(self, block: str) -> None:
        with (self.home / "log").open("w") as log:
            process = subprocess.Popen(
                self.command(block),
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
            )
        self.made.keeper.watch(process)


def reader(made: Federation, home: Path, names: dict[str, str], first: str) -> Reader:
    """Return a reader at a new machine, on which the repository was cloned."""
    home.mkdir()
    for part in ROOT.iterdir():
        if part.name not in (".git", "runs"):
            (home / part.name).symlink_to(part)
    return Reader(made, home, names, first)


def test_the_page_leads_to_personal_models(made: Federation, tmp_path: Path) -> None:
    page: dict[str, list[str]] = {"centre": [], "site": []}
    for who, text in BLOCK.findall((ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")):
        page[who].append(text)
    (first, certificates, superlink, register, run, handover) = page["centre"]
    (site_first, check, keys, supernode, personalize) = page["site"]
    common = {"9443": str(free_port()), "federation.example.org": "127.0.0.1"}
    centre = reader(made, tmp_path / "centre", common, first)
    folder = centre.home / "federation"
    source, partition = images()
    data = {name: tmp_path / f"{name}.npz" for name in NAMES}
    write_sites(source, partition, list(data.values()))
    edited = run_config_toml({**read_toml(ROOT / "configs" / "site.toml"), **SETTINGS})
    # The page says to edit the copy: here it is made as small as the tests' runs are.
    centre.names["      # edit it"] = f"\ncat > $CENTRE/first.toml << 'END'\n{edited}END\n#"
    sites = {}
    for name in NAMES:
        own = {"/srv/images/blood.npz": str(data[name]), "north": name}
        sites[name] = reader(made, tmp_path / name, common | own, site_first)

    centre.follow(certificates)
    centre.start(superlink)
    until(lambda: "Uvicorn running" in (centre.home / "log").read_text(), "the SuperLink runs")
    for name, site in sites.items():
        shutil.copy2(folder / "ca.crt", site.home / "ca.crt")
        (site.home / "first.toml").write_text(edited)
        site.follow(check)
        assert "Fingerprint" in site.follow(keys)
        shutil.copy2(site.home / "federation-site" / "node.key.pub", centre.home / f"{name}.pub")
        assert name in centre.follow(register.replace("north", name))
        # One machine has one port 9094, and here are three sites.
        site.start(f"{supernode.strip()} --port {free_port()}")
    assert "started" in centre.follow(run)
    until(lambda: (folder / "runs" / "federation" / "report.html").exists(), "the run is done", 500.0)
    stores = {name: site.home / "federation-site" / "store" for name, site in sites.items()}
    made_online = {name: digest(read_tensors(stores[name] / "personal.safetensors")[0]) for name in NAMES}

    centre.follow(handover)
    shutil.copy2(centre.home / "north.safetensors", sites["north"].home)
    shutil.copy2(folder / "signing" / "signing.pub", sites["north"].home)
    (stores["north"] / "personal.safetensors").unlink()
    sites["north"].follow(personalize)
    assert digest(read_tensors(stores["north"] / "personal.safetensors")[0]) == made_online["north"]
