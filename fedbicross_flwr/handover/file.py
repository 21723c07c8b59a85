"""The hand-over: what a site would be sent in round 2, in one signed file that travels by hand.

The file is safetensors: the cluster model, the synthetic images with the teacher's answers if there are any,
and the facts that stage 3 needs. An Ed25519 signature covers all facts and, by their checksum, all tensors.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from torch import Tensor

import fedbicross_flwr
from fedbicross_flwr.artifacts import digest, network_of, read_tensors, under, write_tensors
from fedbicross_flwr.centre.roster import now
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import check_apart
from fedbicross_flwr.handover.kept_shipment import KeptRun
from fedbicross_flwr.handover.notes import HANDOVERS, HandoverNote, note_handover
from fedbicross_flwr.handover.signing import is_signed, key_id, read_private_key, read_public_key, sign
from fedbicross_flwr.models import ModelSpec
from fedbicross_flwr.runs.folder import make_writable, to_toml
from fedbicross_flwr.settings import flatten
from fedbicross_flwr.shipment import Replay, Shipment
from fedbicross_flwr.uploads import check_shipment

FORMAT: Final = "fedbicross hand-over 1"


@dataclass(frozen=True)
class Handover:
    """A hand-over whose signature and checksums were right.

    Parameters
    ----------
    shipment : Shipment
        The cluster model and, if there are any, the synthetic images.
    config : RunConfig
        The run's settings; those that only concern the centre's machine are left at their defaults.
    spec : ModelSpec
        The network.
    class_names : tuple of str
        Its outputs, in their order.
    site, client : str, int
        Whom the file is for.
    samples : int or None
        Training images that the site said it has; None where the run keeps no upload of it.
    upload : str
        Digest of f_i as the site sent it; empty where the run keeps none.
    """

    shipment: Shipment
    config: RunConfig
    spec: ModelSpec
    class_names: tuple[str, ...]
    site: str
    client: int
    samples: int | None
    upload: str


def export_cluster_model(run: Path, client: int | str, key: Path, out: Path) -> Path:
    """Write a client's hand-over from a run whose method is done.

    Parameters
    ----------
    run : Path
        The run's folder, where the hand-over is noted (`fedbicross_flwr.handover.notes`).
    client : int or str
        A client's number, or a site's name.
    key : Path
        The private key to sign with.
    out : Path
        The file to write.

    Raises
    ------
    FedBiCrossError
        When the run has no cluster for the client (yet), a file of it is damaged, the key is none, `out` is
        the key or a file of the run, or a file cannot be written.
    """
    kept = KeptRun.open(run)
    check_apart(out, [key, *kept.path.rglob("*")])
    private = read_private_key(key)
    number = kept.client_of(client) if isinstance(client, str) else client
    shipment, (spec, names) = kept.shipment(number), kept.network
    try:
        check_shipment(shipment, spec)
    except FedBiCrossError as error:
        raise FedBiCrossError(
            f"{kept.path} is damaged, no site could use it ({error}); restore it"
        ) from error
    tensors = tensors_of(shipment)
    facts = {
        "format": FORMAT,
        "site": kept.name_of(number),
        "client": str(number),
        "cluster": str(kept.cluster_of(number)),
        "run": kept.path.resolve().name,
        "fingerprint": kept.config.fingerprint(),
        "method": kept.config.method,
        "config": to_toml(portable(kept.config)),
        "class_names": json.dumps(list(names)),
        "spec": json.dumps(asdict(spec)),
        "version": fedbicross_flwr.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "signer": key_id(private.public_key()),
        **kept.upload_facts(number),
    }
    facts["signature"] = sign(private, signed_content(facts, tensors))
    # No hand-over is written of which no note could be.
    make_writable(kept.path / HANDOVERS, "check the folder's permissions and free space")
    write_tensors(out, tensors, facts)
    note_handover(
        kept.path, HandoverNote(number, facts["site"], now(), facts["signer"], digest(shipment.model))
    )
    return out


def read_handover(path: Path, public_key: Path) -> Handover:
    """Read a hand-over, after its checksum and its signature were found right.

    Raises
    ------
    FedBiCrossError
        When the file is absent, damaged or no hand-over, was signed with another key or changed after it
        was signed, or comes from a version whose settings this one does not have.
    """
    key = read_public_key(public_key)
    try:
        tensors, facts = read_tensors(path)
    except FedBiCrossError as error:
        raise FedBiCrossError(f"{error}; copy the hand-over anew from the coordinating centre") from error
    signature = facts.pop("signature", "")
    if facts.get("format") != FORMAT or not signature:
        raise FedBiCrossError(
            f"{path} is no hand-over; give the file that fedbicross export-cluster-model wrote"
        )
    if not is_signed(key, signature, signed_content(facts, tensors)):
        raise wrong_signature(path, public_key, facts.get("signer", "unknown"), key_id(key))
    try:
        return handover_of(tensors, facts)
    except (FedBiCrossError, KeyError, TypeError, ValueError) as error:
        said = facts.get("version", "unknown")
        raise FedBiCrossError(
            f"{path} was written by FedBiCross {said} and cannot be used by this one, "
            f"{fedbicross_flwr.__version__} ({error}); install the centre's version"
        ) from error


def handover_of(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> Handover:
    """Return what tensors and facts say; any of their parts may be missing or wrong."""
    config = RunConfig.from_flat(dict(flatten(tomllib.loads(facts["config"]))))
    if config.fingerprint() != facts["fingerprint"]:
        raise FedBiCrossError("its settings mean something else here")
    replayed = under("replay.", tensors)
    shipment = Shipment(under("model.", tensors), Replay.of(replayed) if replayed else None)
    (spec, names), client = network_of(facts), int(facts["client"])
    check_shipment(shipment, spec)
    return Handover(
        shipment,
        config,
        spec,
        names,
        facts["site"],
        client,
        int(facts["samples"]) if "samples" in facts else None,
        facts.get("upload", ""),
    )


def wrong_signature(path: Path, public_key: Path, signer: str, own: str) -> FedBiCrossError:
    """Return what is wrong with a signature: the key is another, or the content is."""
    if signer != own:
        return FedBiCrossError(
            f"{path} was signed with the key {signer}, but {public_key} is the key {own}; ask the "
            "coordinating centre which of the two is right"
        )
    return FedBiCrossError(
        f"{path} was changed after it was signed; do not use it, and ask the coordinating centre for another"
    )


def tensors_of(shipment: Shipment) -> dict[str, Tensor]:
    """Return all tensors of a shipment by the names that they have in the file."""
    replay = shipment.replay.tensors() if shipment.replay else {}
    return {
        **{f"model.{name}": tensor for name, tensor in shipment.model.items()},
        **{f"replay.{name}": tensor for name, tensor in replay.items()},
    }


def signed_content(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes that are signed: the facts, ordered by name, and the digest of all tensors."""
    said = {name: facts[name] for name in sorted(facts)}
    return json.dumps([FORMAT, said, digest(tensors)]).encode()


def portable(config: RunConfig) -> RunConfig:
    """Return the settings without the centre's own paths, which mean nothing elsewhere."""
    data = dataclasses.replace(config.data, path="", root="")
    deployment = dataclasses.replace(config.deployment, registry="")
    return dataclasses.replace(config, out="", cache="", data=data, deployment=deployment)
