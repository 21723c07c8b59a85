"""The tools on a real deployment's folder and a site's own store: what is handed over is what is shipped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from small_runs import tiny as small
from tool_runs import finished, save_share

from client_app.opened import Opened, open_site
from fedbicross_flwr import client as client_module
from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.centre.server import SiteServer
from fedbicross_flwr.client import first_round, second_round
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.data.cell_types import CLASS_NAMES
from fedbicross_flwr.handover.file import export_cluster_model, read_handover
from fedbicross_flwr.handover.offline import personalise
from fedbicross_flwr.handover.signing import make_signing_key
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.site.identity import Site
from fedbicross_flwr.status.run_status import read_status

NAMES = ("north", "south", "east")


def upload(server: SiteServer, name: str, opened: Opened) -> None:
    images = opened.images()
    model = first_round(images, opened.task, opened.store)
    said = {"validation_accuracy": model.best_validation_accuracy}
    server.accept(NAMES.index(name), len(images.train), model.state, said)


def test_a_site_that_went_dark_gets_by_hand_what_it_would_have_been_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.from_flat(
        small().flat()
        | {"deployment.sites": ",".join(NAMES), "deployment.class_names": ",".join(CLASS_NAMES)}
    )
    opened = {}
    for client, name in enumerate(NAMES):
        data = save_share(finished(), client, tmp_path / f"{name}.npz")
        opened[name] = open_site(Site(name, client, data, tmp_path / "stores" / name), config)
    run = tmp_path / "run"
    server = SiteServer.open_sites(config, run)
    server.open_uploads()
    for name in ("north", "south"):
        upload(server, name, opened[name])
    assert [party.state for party in read_status(run).parties] == ["uploaded", "uploaded", "expected"]
    assert read_status(run).left()[0] == "1 model from east"
    server.close_uploads()
    assert read_status(run).stage == "method"
    server.learn()
    server.open_shipping()
    # East comes when the method is done, and is not seen again; nor is south.
    upload(server, "east", opened["east"])
    assert read_status(run).left()[0] == "3 personal models at north, south, east"

    make_signing_key(tmp_path / "keys")
    made = {}
    with monkeypatch.context() as patch:

        def train(*words: object) -> NoReturn:
            raise AssertionError("f_i was trained again")

        patch.setattr(client_module, "train_client", train)
        for name in ("south", "east"):
            shutil.copytree(tmp_path / "stores" / name, tmp_path / "offline" / name)
            out = export_cluster_model(run, name, tmp_path / "keys" / "signing.pem", tmp_path / f"{name}.out")
            handover = read_handover(out, tmp_path / "keys" / "signing.pub")
            made[name] = personalise(
                handover, tmp_path / f"{name}.npz", tmp_path / "offline" / name, Silent()
            )
            assert made[name].notes == ()
    for name, offline in made.items():
        one = opened[name]
        scores = second_round(one.images(), server.shipment(NAMES.index(name)), one.task, one.store)
        expected, facts = read_tensors(tmp_path / "stores" / name / "personal.safetensors")
        state, found = read_tensors(offline.model)
        # The key tells settings, data, client, and all that was shipped.
        assert (digest(state), found) == (digest(expected), facts)
        assert offline.scores == scores and set(scores["personal"]) == {"local"}
