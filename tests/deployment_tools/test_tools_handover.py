"""A hand-over gives the site the personal model of the run, and nobody anything else."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from locked_files import locked
from small_runs import Answer, checksums
from small_runs import tiny as small
from tool_runs import Fedbicross, finished, save_share

from fedbicross_flwr import client as client_module
from fedbicross_flwr.artifacts import digest, read_tensors, write_tensors
from fedbicross_flwr.centre.kept_outcome import save_outcome
from fedbicross_flwr.centre.roster import Roster, SiteEntry
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.handover.file import (
    FORMAT,
    Handover,
    export_cluster_model,
    read_handover,
    signed_content,
)
from fedbicross_flwr.handover.notes import read_handovers
from fedbicross_flwr.handover.offline import personalise
from fedbicross_flwr.handover.signing import key_id, make_signing_key, read_private_key, read_public_key, sign
from fedbicross_flwr.handover.simulated_outcome import simulated_outcome
from fedbicross_flwr.methods import ServerTask
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.runs.folder import RunFolder

Change = Callable[[dict[str, Any], dict[str, str]], None]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedbicross:
    return Fedbicross(monkeypatch, capsys)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_signing_key(folder)
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """A folder as a site has it: ``handover`` for client 1, and ``own.npz``; tests only read it."""
    folder = tmp_path_factory.mktemp("site")
    run = copy_of(finished(), tmp_path_factory.mktemp("centre") / "run")
    export_cluster_model(run, 1, keys / "signing.pem", folder / "handover")
    save_share(finished(), 1, folder / "own.npz")
    return folder


def personal(run: Path, client: int) -> tuple[str, dict[str, str]]:
    """Digest and facts of the personal model that the run made."""
    state, facts = read_tensors(run / "sites" / f"client-{client:02d}" / "personal.safetensors")
    return digest(state), facts


def off_the_network(patch: pytest.MonkeyPatch) -> None:
    """Let every use of the network fail."""

    def refuse(*words: object, **named: object) -> NoReturn:
        raise AssertionError("the network was used")

    for name in ("socket", "create_connection", "getaddrinfo"):
        patch.setattr(socket, name, refuse)


def copy_of(run: Path, path: Path) -> Path:
    return Path(shutil.copytree(run, path))


def as_deployment(run: Path, **changes: dict[str, Any]) -> Path:
    """Let a run's folder be that of north, south and east; one without a cluster was not seen."""
    folder, assignment = RunFolder(run), {}
    roster = Roster(run / "roster.json", [], stage="shipping")
    clusters = json.loads((run / "clustering.json").read_text())["assignment"]
    for client, name in enumerate(("north", "south", "east")):
        entry = SiteEntry(name, client, "shipped", cluster=clusters[client])
        for key, value in changes.get(name, {}).items():
            setattr(entry, key, value)
        roster.sites.append(entry)
        if entry.cluster is not None and not entry.late:
            assignment[client] = clusters[client]
    roster.write()
    spec = ModelSpec("resnet18", 8, 3, 2, "small")
    task = ServerTask(spec, small(), Compute(torch.device("cpu")), Silent())
    save_outcome(folder, replace(simulated_outcome(folder, small(), task), assignment=assignment))
    return run


# --- the model


@pytest.mark.parametrize("client", [0, 1])
def test_the_personal_model_is_the_run_s_bit_for_bit(
    client: int, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(finished(), tmp_path / "run")
    out = export_cluster_model(run, client, keys / "signing.pem", tmp_path / "handover")
    data = save_share(run, client, tmp_path / "own.npz")
    with monkeypatch.context() as patch:
        off_the_network(patch)
        handover = read_handover(out, keys / "signing.pub")
        made = personalise(handover, data, tmp_path / "store", Silent())
    expected, facts = personal(run, client)
    state, found = read_tensors(tmp_path / "store" / "personal.safetensors")
    assert digest(state) == expected
    assert found["temperature"] == facts["temperature"]
    assert handover.shipment.replay is not None
    # The key that the run's own model was kept under ends with the digest of all that was shipped.
    assert facts["key"].endswith(f"/{client}/{handover.shipment.digest()}")
    assert digest(read_tensors(tmp_path / "store" / "local.safetensors")[0]) == handover.upload
    assert made.notes == ()
    scores = json.loads((run / "sites" / f"client-{client:02d}" / "scores.json").read_text())["scores"]
    assert made.scores == {row: {"local": both["local"]} for row, both in scores.items()}


@pytest.mark.parametrize(
    "changes", [{"personal__replay": 0.0}, {"method": "fedavg"}, {"teacher__scope": "cluster"}]
)
def test_it_is_so_for_other_methods_and_what_they_ship(
    changes: dict[str, Any], keys: Path, tmp_path: Path
) -> None:
    run = copy_of(finished(**changes), tmp_path / "run")
    out = export_cluster_model(run, 2, keys / "signing.pem", tmp_path / "handover")
    handover = read_handover(out, keys / "signing.pub")
    made = personalise(handover, save_share(run, 2, tmp_path / "own.npz"), tmp_path / "store", Silent())
    expected, facts = personal(run, 2)
    assert facts["key"].endswith(handover.shipment.digest())
    assert (handover.shipment.replay is None) == ("teacher__scope" not in changes)
    assert digest(read_tensors(made.model)[0]) == expected


def test_what_is_in_the_store_is_used_again(
    given: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handover = read_handover(given / "handover", keys / "signing.pub")
    personalise(handover, given / "own.npz", tmp_path, Silent())
    (tmp_path / "personal.safetensors").unlink()

    def train(*words: object) -> NoReturn:
        raise AssertionError("f_i was trained again")

    monkeypatch.setattr(client_module, "train_client", train)
    made = personalise(handover, given / "own.npz", tmp_path, Silent())
    assert digest(read_tensors(made.model)[0]) == personal(finished(), 1)[0]


def test_a_damaged_own_model_is_trained_again(given: Path, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "local.safetensors").write_text("half a fi")
    handover = read_handover(given / "handover", keys / "signing.pub")
    made = personalise(handover, given / "own.npz", tmp_path, Silent())
    assert digest(read_tensors(made.model)[0]) == personal(finished(), 1)[0]


# --- the commands


def test_the_commands_from_the_key_to_the_scores(command: Fedbicross, tmp_path: Path) -> None:
    assert command("make-signing-key", tmp_path / "keys").status == 0
    out = tmp_path / "handed" / "over.safetensors"
    run = copy_of(finished(), tmp_path / "run")
    words = ("export-cluster-model", run, "--client", 0, "--key", tmp_path / "keys" / "signing.pem")
    answer = command(*words, "--out", out)
    assert (answer.status, answer.error) == (0, "") and "client 0" in answer.output
    data = save_share(finished(), 0, tmp_path / "own.npz", names=False)
    answer = personalize(command, out, tmp_path / "keys" / "signing.pub", data, tmp_path / "store")
    assert (answer.status, answer.error) == (0, "")
    scores = json.loads((tmp_path / "store" / "scores.json").read_text())["scores"]["personal"]["local"]
    line = next(line for line in answer.output.splitlines() if "this model" in line)
    assert f" {100 * scores['accuracy']:.1f} " in line and f" {scores['samples']:.0f} " in line
    assert "personal.safetensors" in answer.output and "note:" not in answer.output
    key = key_id(read_public_key(tmp_path / "keys" / "signing.pub"))
    assert f"hand-over for client-00, signed with the key {key}" in answer.output
    assert command("card", "--model", tmp_path / "store").status == 0
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700  # what others may not read


def personalize(command: Fedbicross, file: Path, key: Path, data: Path, store: Path, *more: str) -> Answer:
    return command(
        "personalize", "--cluster-model", file, "--public-key", key, "--data", data, "--store", store, *more
    )


def test_without_test_images_there_is_a_model_and_no_table(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    data = save_share(finished(), 1, tmp_path / "own.npz", test=False)
    answer = personalize(command, given / "handover", keys / "signing.pub", data, tmp_path / "store")
    assert (answer.status, answer.error) == (0, "")
    assert "note: there are no test images" in answer.output and "this model" not in answer.output
    assert digest(read_tensors(tmp_path / "store" / "personal.safetensors")[0]) == personal(finished(), 1)[0]


# --- the file


def test_the_file_holds_none_of_the_centre_s_paths(keys: Path, tmp_path: Path, given: Path) -> None:
    run = copy_of(finished(), tmp_path / "run")
    text = (run / "config.toml").read_text()
    for key, value in (("out", "/secret/out"), ("cache", "/secret/cache"), ("root", "/secret/root")):
        assert f'\n{key} = ""' in f"\n{text}"
        text = f"\n{text}".replace(f'\n{key} = ""', f'\n{key} = "{value}"').strip()
    (run / "config.toml").write_text(text)
    out = export_cluster_model(run, 1, keys / "signing.pem", tmp_path / "handover")
    content = out.read_bytes()
    assert b"secret" not in content and str(tmp_path).encode() not in content
    config = read_handover(out, keys / "signing.pub").config
    assert config == small() and config.fingerprint() == small().fingerprint()


def test_a_damaged_file_is_one_line(command: Fedbicross, given: Path, keys: Path, tmp_path: Path) -> None:
    content = (given / "handover").read_bytes()
    file, store = tmp_path / "handover", tmp_path / "store"
    damaged = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    for spoilt in (damaged, content[:-100], content[:50], b""):
        file.write_bytes(spoilt)
        answer = personalize(command, file, keys / "signing.pub", given / "own.npz", store)
        answer.is_refusal("handover", "copy the hand-over anew")
    file.unlink()
    personalize(command, file, keys / "signing.pub", given / "own.npz", store).is_refusal("handover")
    assert not store.exists()


def change_model(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    tensors["model.fc.bias"] += 1e-3


def change_replay(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    tensors["replay.images"] *= 0.5


def drop_replay(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    del tensors["replay.images"], tensors["replay.scores"]


def change_site(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    facts["site"] = "client-02"


def change_settings(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    facts["config"] = facts["config"].replace("gamma = 1.0", "gamma = 0.6")
    facts["fingerprint"] = small(personal__gamma=0.6).fingerprint()


def add_fact(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    facts["more"] = "than there was"


def break_signature(tensors: dict[str, Any], facts: dict[str, str]) -> None:
    facts["signature"] = facts["signature"][::-1]


@pytest.mark.parametrize(
    "change",
    [change_model, change_replay, drop_replay, change_site, change_settings, add_fact, break_signature],
)
def test_what_was_changed_after_signing_is_refused_though_its_checksum_is_right(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path, change: Change
) -> None:
    tensors, facts = read_tensors(given / "handover")
    before = digest(tensors), dict(facts)
    change(tensors, facts)
    assert (digest(tensors), facts) != before
    write_tensors(tmp_path / "handover", tensors, facts)
    answer = personalize(
        command, tmp_path / "handover", keys / "signing.pub", given / "own.npz", tmp_path / "store"
    )
    answer.is_refusal("handover was changed after it was signed")
    assert not (tmp_path / "store").exists()


def test_another_key_is_named(command: Fedbicross, given: Path, keys: Path, tmp_path: Path) -> None:
    make_signing_key(tmp_path / "other")
    signer = read_tensors(given / "handover")[1]["signer"]
    other = tmp_path / "other" / "signing.pub"
    answer = personalize(command, given / "handover", other, given / "own.npz", tmp_path / "store")
    answer.is_refusal("handover was signed with the key", signer, str(other))
    # Signed anew by a stranger who claims to be the centre.
    tensors, facts = read_tensors(given / "handover")
    del facts["signature"]
    stranger = read_private_key(tmp_path / "other" / "signing.pem")
    facts["signature"] = sign(stranger, signed_content(facts, tensors))
    write_tensors(tmp_path / "forged", tensors, facts)
    answer = personalize(
        command, tmp_path / "forged", keys / "signing.pub", given / "own.npz", tmp_path / "store"
    )
    answer.is_refusal("forged was changed after it was signed")


def test_a_file_that_is_no_hand_over_is_one_line(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    model = finished() / "models" / "cluster-0.safetensors"
    answer = personalize(command, model, keys / "signing.pub", given / "own.npz", tmp_path)
    answer.is_refusal("cluster-0.safetensors is no hand-over", "export-cluster-model")
    answer = personalize(command, given / "handover", given / "handover", given / "own.npz", tmp_path)
    answer.is_refusal("no public Ed25519 key")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda facts: facts.update(config=facts["config"].replace("gamma", "gama")), "personal.gama"),
        (
            lambda facts: facts.update(config=facts["config"].replace("gamma = 1.0", "gamma = 0.7")),
            "settings",
        ),
        (lambda facts: facts.pop("spec"), "spec"),
        (lambda facts: facts.update(spec=facts["spec"].replace("2", "4", 1)), "shape"),
    ],
)
def test_a_signed_file_of_another_version_is_one_line(
    given: Path, keys: Path, tmp_path: Path, command: Fedbicross, change: Any, said: str
) -> None:
    tensors, facts = read_tensors(given / "handover")
    del facts["signature"]
    change(facts)
    facts["version"] = "9.9"
    facts["signature"] = sign(read_private_key(keys / "signing.pem"), signed_content(facts, tensors))
    assert facts["format"] == FORMAT
    write_tensors(tmp_path / "handover", tensors, facts)
    answer = personalize(
        command, tmp_path / "handover", keys / "signing.pub", given / "own.npz", tmp_path / "store"
    )
    answer.is_refusal("FedBiCross 9.9", said, "install the centre's version")


# --- whom it is for


def test_a_hand_over_for_another_site_is_refused(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    key, own = keys / "signing.pub", given / "own.npz"
    answer = personalize(command, given / "handover", key, own, tmp_path / "store", "--site", "client-02")
    answer.is_refusal("handover is for client-01, not for client-02")
    with np.load(own) as arrays:
        fewer = {name: array[:-1] if "train" in name else array for name, array in arrays.items()}
    np.savez(tmp_path / "fewer.npz", **fewer)
    answer = personalize(command, given / "handover", key, tmp_path / "fewer.npz", tmp_path / "store")
    answer.is_refusal("fewer.npz has 31 training images", "client-01", "trained on 32")
    assert not (tmp_path / "store").exists()


def test_another_site_s_store_is_left_as_it_is(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    key, own, other = keys / "signing.pub", given / "own.npz", finished() / "sites" / "client-02"
    store = copy_of(other, tmp_path / "store")
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    answer = personalize(command, given / "handover", key, own, store)
    answer.is_refusal(
        "local.safetensors is not the model that client-01 sent",
        "Give that site's store or, if its model is no longer there, an empty folder to train it again",
    )
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before
    # The right store, but images that its model was not trained on.
    store = copy_of(finished() / "sites" / "client-01", tmp_path / "own-store")
    answer = personalize(command, given / "handover", key, own, store)
    answer.is_refusal("is the model that client-01 sent", "own.npz as it is now")


def test_other_images_of_the_same_number_are_noted(given: Path, keys: Path, tmp_path: Path) -> None:
    other = save_share(finished(), 2, tmp_path / "other.npz")
    handover = read_handover(given / "handover", keys / "signing.pub")
    made = personalise(handover, other, tmp_path / "store", Silent())
    assert len(made.notes) == 1 and "client-01 sent" in made.notes[0]


def test_the_model_that_was_sent_serves_in_another_arithmetic(
    given: Path, keys: Path, tmp_path: Path
) -> None:
    """As with ``--device cpu`` at a site whose f_i a GPU has trained."""

    def asked(precision: str, upload: str) -> Handover:
        read = read_handover(given / "handover", keys / "signing.pub")
        runtime = replace(read.config.runtime, precision=precision)
        return replace(read, upload=upload, config=replace(read.config, runtime=runtime))

    own, store = given / "own.npz", tmp_path / "store"
    personalise(asked("float32", ""), own, store, Silent())
    local, first = (store / "local.safetensors").read_bytes(), (store / "personal.safetensors").read_bytes()
    upload = digest(read_tensors(store / "local.safetensors")[0])
    made = personalise(asked("bfloat16", upload), own, store, Silent())
    assert made.notes == () and made.scores
    assert (store / "local.safetensors").read_bytes() == local
    assert (store / "personal.safetensors").read_bytes() != first
    other = save_share(finished(), 2, tmp_path / "other.npz")
    with pytest.raises(FedBiCrossError, match=r"it was not trained on .*other\.npz as it is now"):
        personalise(asked("bfloat16", upload), other, store, Silent())
    with pytest.raises(FedBiCrossError, match="is not the model that client-01 sent"):
        personalise(asked("bfloat16", "0" * 64), own, store, Silent())


def test_the_model_that_was_sent_serves_though_another_run_took_its_place(
    given: Path, keys: Path, tmp_path: Path
) -> None:
    own, store = given / "own.npz", tmp_path / "store"
    handover = read_handover(given / "handover", keys / "signing.pub")
    personalise(replace(handover, upload=""), own, store, Silent())
    upload = digest(read_tensors(store / "local.safetensors")[0])
    (store / "former" / "0123").mkdir(parents=True)
    (store / "local.safetensors").rename(store / "former" / "0123" / "local.safetensors")
    runtime = replace(handover.config.runtime, precision="bfloat16")
    asked = replace(handover, upload=upload, config=replace(handover.config, runtime=runtime))
    assert personalise(asked, own, store, Silent()).notes == ()
    assert not (store / "local.safetensors").exists(), "it was not trained again"


def test_images_that_do_not_fit_the_federation_are_one_line(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    with np.load(given / "own.npz") as arrays:
        content = dict(arrays.items())
    names = content["class_names"].copy()
    names[:2] = names[1::-1]
    np.savez(tmp_path / "named.npz", **content | {"class_names": names})
    gray = {name: array[..., 0] for name, array in content.items() if name.endswith("images")}
    np.savez(tmp_path / "gray.npz", **content | gray)
    key, store = keys / "signing.pub", tmp_path / "store"
    for name, words in (
        ("named.npz", ("class_names",)),
        ("gray.npz", ("1 channel",)),
        ("absent.npz", ("no such file", "--data")),
    ):
        answer = personalize(command, given / "handover", key, tmp_path / name, store)
        answer.is_refusal(name, *words)


def test_a_store_that_cannot_be_made_or_written_is_one_line(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    key, own = keys / "signing.pub", given / "own.npz"
    (tmp_path / "file").write_text("kept")
    (tmp_path / "sealed").mkdir()
    for store in (tmp_path / "file", tmp_path / "file" / "store"):
        personalize(command, given / "handover", key, own, store).is_refusal(str(store), "give --store")
    with locked(tmp_path / "sealed", 0o500):
        for store in (tmp_path / "sealed", tmp_path / "sealed" / "store"):
            answer = personalize(command, given / "handover", key, own, store)
            answer.is_refusal(str(store), "Permission denied")
    assert (tmp_path / "file").read_text() == "kept" and not list((tmp_path / "sealed").iterdir())


def test_no_hand_over_is_written_over_the_key_or_the_run(
    command: Fedbicross, keys: Path, tmp_path: Path
) -> None:
    key = Path(shutil.copytree(keys, tmp_path / "keys")) / "signing.pem"
    run = copy_of(finished(), tmp_path / "run")
    before = checksums(tmp_path)
    for out in (key, run / "config.toml", run / "models" / ".." / "models" / "cluster-0.safetensors"):
        answer = command("export-cluster-model", run, "--client", 0, "--key", key, "--out", out)
        answer.is_refusal(str(out), "would be overwritten")
    assert checksums(tmp_path) == before


def test_no_personal_model_is_written_over_the_hand_over(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    handover = Path(shutil.copy(given / "handover", tmp_path / "personal.safetensors"))
    before = checksums(tmp_path)
    answer = personalize(command, handover, keys / "signing.pub", given / "own.npz", tmp_path)
    answer.is_refusal("personal.safetensors", "would be overwritten")
    assert checksums(tmp_path) == before


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (
            "synthetic",
            lambda found: found.pop("labels.1"),
            "synthetic.safetensors has no images of cluster 1",
        ),
        (
            "synthetic",
            lambda found: found.update({"images.0": found["images.0"][:-1]}),
            "synthetic.safetensors has no images of cluster 0",
        ),
        ("synthetic", lambda found: found["images.0"].mul_(torch.nan), "values that are not finite"),
        ("models/cluster-0", lambda found: found.pop("fc.weight"), "is damaged, no site could use it"),
        ("models/cluster-1", lambda found: found.pop("fc.weight"), "is damaged, no site could use it"),
        ("uploads/client-00", lambda found: found.pop("fc.weight"), "client-00.safetensors is damaged: 1"),
    ],
)
def test_a_run_of_which_a_part_is_damaged_has_no_hand_over(
    file: str, change: Any, words: str, command: Fedbicross, keys: Path, tmp_path: Path
) -> None:
    run, out = copy_of(finished(), tmp_path / "run"), tmp_path / "handover"
    tensors, facts = read_tensors(run / f"{file}.safetensors")
    change(tensors)
    write_tensors(run / f"{file}.safetensors", tensors, facts)
    number = json.loads((run / "clustering.json").read_text())["assignment"].index(int(file[-1] == "1"))
    more = ("--client", number, "--key", keys / "signing.pem", "--out", out)
    command("export-cluster-model", run, *more).is_refusal(words)
    assert not out.exists()


def test_a_cluster_that_has_no_model_is_named(command: Fedbicross, keys: Path, tmp_path: Path) -> None:
    run = copy_of(finished(), tmp_path / "run")
    content = json.loads((run / "clustering.json").read_text())
    (run / "clustering.json").write_text(json.dumps(content | {"assignment": [0, 7, 1]}))
    words = ("--client", 0, "--key", keys / "signing.pem", "--out", tmp_path / "handover")
    command("export-cluster-model", run, *words).is_refusal(
        "cluster-2.safetensors is missing", "it names cluster 7"
    )


def test_of_a_run_that_cannot_be_written_there_is_no_hand_over(
    command: Fedbicross, keys: Path, tmp_path: Path
) -> None:
    run, out = copy_of(finished(), tmp_path / "run"), tmp_path / "handover"
    with locked(run, 0o500):
        words = ("--client", 0, "--key", keys / "signing.pem", "--out", out)
        command("export-cluster-model", run, *words).is_refusal("cannot write", "handovers")
    assert not out.exists()


def test_an_empty_name_does_not_pass_for_any_site(
    command: Fedbicross, given: Path, keys: Path, tmp_path: Path
) -> None:
    key, store = keys / "signing.pub", tmp_path / "store"
    answer = personalize(command, given / "handover", key, given / "own.npz", store, "--site", "")
    answer.is_refusal("the word behind --site is empty")
    assert not store.exists()


# --- which run, which client


def test_a_site_of_a_deployment_is_known_by_its_name(keys: Path, tmp_path: Path) -> None:
    late = {"late": True, "cluster": 0, "state": "missing"}
    run = as_deployment(copy_of(finished(), tmp_path / "run"), east=late)
    models = [digest(read_tensors(run / "models" / f"cluster-{k}.safetensors")[0]) for k in (0, 1)]
    for site, client, cluster in (("south", 1, 1), ("east", 2, 0)):
        out = export_cluster_model(run, site, keys / "signing.pem", tmp_path / site)
        handover = read_handover(out, keys / "signing.pub")
        assert (handover.site, handover.client) == (site, client)
        assert digest(handover.shipment.model) == models[cluster]
        assert read_tensors(out)[1]["cluster"] == str(cluster)
    # What the server keeps to ship is handed over; nothing is computed again.
    shutil.rmtree(run / "uploads")
    out = export_cluster_model(run, "south", keys / "signing.pem", tmp_path / "again")
    handover = read_handover(out, keys / "signing.pub")
    assert personal(finished(), 1)[1]["key"].endswith(handover.shipment.digest())
    assert (handover.upload, handover.samples) == ("", None)


def test_a_hand_over_is_noted_in_the_run_s_folder(command: Fedbicross, keys: Path, tmp_path: Path) -> None:
    run = as_deployment(copy_of(finished(), tmp_path / "run"), south={"state": "missing"})
    roster = (run / "roster.json").read_bytes()
    assert read_handovers(run) == {}
    out = export_cluster_model(run, "south", keys / "signing.pem", tmp_path / "south")
    (note,) = read_handovers(run).values()
    assert (note.client, note.site) == (1, "south")
    assert note.signer == key_id(read_public_key(keys / "signing.pub"))
    assert note.model == digest(read_handover(out, keys / "signing.pub").shipment.model)
    told = command("status", run).output
    line = next(line for line in told.splitlines() if line.strip().startswith("south"))
    assert "model handed over" in line and told.count("handed over") == 1
    assert (run / "roster.json").read_bytes() == roster, "the roster is the server's"
    (run / "handovers" / "client-01.json").write_text("{}")
    answer = command("status", run)
    assert (
        answer.status == 2 and "client-01.json cannot be read" in answer.error and "remove it" in answer.error
    )


def test_a_site_that_the_method_did_not_see_joins_the_nearest_cluster(keys: Path, tmp_path: Path) -> None:
    held = {"held": True, "cluster": None, "state": "held back"}
    run = copy_of(finished(), tmp_path / "run")
    clusters = json.loads((run / "clustering.json").read_text())["assignment"]
    assert clusters == [0, 1, 1]
    for twin in (0, 1):
        state, facts = read_tensors(run / "uploads" / f"client-{twin:02d}.safetensors")
        write_tensors(run / "uploads" / "client-02.safetensors", state, facts)
        shutil.copytree(run, tmp_path / f"run-{twin}")
        as_deployment(tmp_path / f"run-{twin}", east=held)
        out = export_cluster_model(tmp_path / f"run-{twin}", "east", keys / "signing.pem", tmp_path / "out")
        assert read_tensors(out)[1]["cluster"] == str(clusters[twin])
        assert (
            json.loads((tmp_path / f"run-{twin}" / "roster.json").read_text())["sites"][2]["cluster"] is None
        )


def test_a_deployment_s_outcome_that_is_not_whole_is_not_handed_over(
    command: Fedbicross, keys: Path, tmp_path: Path
) -> None:
    run = as_deployment(copy_of(finished(), tmp_path / "run"))
    (run / "replay.safetensors").write_bytes(b"half of it")
    words = ("export-cluster-model", run, "--key", keys / "signing.pem", "--out", tmp_path / "out")
    command(*words, "--site", "south").is_refusal(
        "not all there", "replay.safetensors", "start the run again"
    )
    assert not (tmp_path / "out").exists()


def test_an_export_that_cannot_be_is_one_line(command: Fedbicross, keys: Path, tmp_path: Path) -> None:
    run, key, out = copy_of(finished(), tmp_path / "run"), keys / "signing.pem", tmp_path / "out"

    def export(*words: str | Path | int) -> Answer:
        return command("export-cluster-model", *words, "--out", out)

    export(run, "--key", key).is_refusal("--site NAME", "--client N")
    export(run, "--key", key, "--client", 1, "--site", "a").is_refusal("either --site NAME")
    export(run, "--key", key, "--site", "north").is_refusal("is a simulation", "--client")
    export(run, "--key", key, "--client", 3).is_refusal("no client 3", "0 to 2")
    export(run, "--key", keys / "signing.pub", "--client", 1).is_refusal("signing.pub is no private")
    export(tmp_path, "--key", key, "--client", 1).is_refusal("is not a run folder", "identity.json")
    export(tmp_path / "no", "--key", key, "--client", 1).is_refusal("no is not a run folder", "no such")
    as_deployment(run, north={"cluster": None, "state": "missing"})
    (run / "uploads" / "client-00.safetensors").unlink()
    export(run, "--key", key, "--site", "nort").is_refusal("no site 'nort'", "did you mean north")
    export(run, "--key", key, "--site", "north").is_refusal("no cluster for north", "south, east")
    shutil.rmtree(run / "models")
    export(run, "--key", key, "--site", "south").is_refusal("no cluster models yet", "fedbicross status")
    assert not out.exists()


def test_a_damaged_upload_is_named_when_it_is_needed(command: Fedbicross, keys: Path, tmp_path: Path) -> None:
    run = copy_of(finished(), tmp_path / "run")
    upload = run / "uploads" / "client-02.safetensors"
    upload.write_bytes(upload.read_bytes()[:-1])
    words = ("export-cluster-model", run, "--client", 0, "--key", keys / "signing.pem")
    command(*words, "--out", tmp_path / "out").is_refusal("client-02.safetensors", "damaged")
