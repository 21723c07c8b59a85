"""What the server refuses of an upload, with which reason; and that the run goes on with the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import read_json, tiny, without_report

from fedbicross_flwr import in_process
from fedbicross_flwr.client import ClientImages, first_round
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, state_of
from fedbicross_flwr.shipment import Replay, Shipment
from fedbicross_flwr.site.store import SiteStore
from fedbicross_flwr.training import ClientTask, LocalModel
from fedbicross_flwr.uploads import check_shipment, check_subspace, check_upload

SPEC = ModelSpec("resnet18", 8, 3, 2, "small")


def state() -> StateDict:
    return state_of(build_model(SPEC, seed=1))


def change(**tensors: Any) -> Callable[[StateDict], StateDict]:
    """Replace tensors, by name with ``__`` for a dot; None leaves one out."""

    def changed(state: StateDict) -> StateDict:
        full = state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        return {name: tensor for name, tensor in full.items() if tensor is not None}

    return changed


BAD = {
    "nan": (change(fc__bias=torch.full((8,), torch.nan)), "fc.bias holds values that are not finite"),
    "inf": (change(fc__bias=torch.full((8,), torch.inf)), "fc.bias holds values that are not finite"),
    "shape": (change(fc__bias=torch.zeros(7)), r"fc.bias has shape \(7,\) instead of \(8,\)"),
    "dtype": (
        change(fc__bias=torch.zeros(8, dtype=torch.float64)),
        "fc.bias has type torch.float64 instead of torch.float32",
    ),
    "integers": (
        change(stem__1__num_batches_tracked=torch.tensor(1.0)),
        "stem.1.num_batches_tracked has type torch.float32 instead of torch.int64",
    ),
    "missing": (change(fc__bias=None, fc__weight=None), r"2 tensor\(s\) are missing, such as fc.bias"),
    "extra": (change(extra=torch.zeros(1)), r"1 tensor\(s\) are unknown, such as extra"),
    "variance": (
        change(stem__1__running_var=torch.tensor([1.0, -0.1])),
        "stem.1.running_var holds negative variances",
    ),
    "empty": (lambda state: {}, r"tensor\(s\) are missing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_upload_is_refused_with_its_reason(kind: str) -> None:
    spoil, reason = BAD[kind]
    with pytest.raises(FedBiCrossError, match=f"upload of client 4 is refused: .*{reason}") as caught:
        check_upload(4, spoil(state()), 10, SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_of_images_must_be_positive(count: int) -> None:
    with pytest.raises(FedBiCrossError, match=f"it says it was trained on {count} images"):
        check_upload(0, state(), count, SPEC)


def test_a_good_upload_passes_whatever_the_order_of_its_tensors() -> None:
    check_upload(0, dict(reversed(state().items())), 1, SPEC)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_shipment_is_refused_as_an_upload_is(kind: str) -> None:
    spoil, reason = BAD[kind]
    with pytest.raises(FedBiCrossError, match=f"what the server sent is refused: .*{reason}"):
        check_shipment(Shipment(spoil(state())), SPEC)


IMAGES, SCORES = torch.zeros(4, 3, 28, 28).half(), torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("images", "scores", "reason"),
    [
        (IMAGES[:, :1], SCORES, r"images of shape \(4, 1, 28, 28\)"),
        (IMAGES, SCORES[:, :7], r"answers of shape \(4, 7\)"),
        (IMAGES / 0.0, SCORES, "not finite"),
        (IMAGES, SCORES / 0.0, "not finite"),
    ],
)
def test_images_to_rehearse_that_do_not_fit_are_refused(
    images: torch.Tensor, scores: torch.Tensor, reason: str
) -> None:
    check_shipment(Shipment(state(), Replay(IMAGES, SCORES)), SPEC)
    with pytest.raises(FedBiCrossError, match=f"what the server sent is refused: .*{reason}"):
        check_shipment(Shipment(state(), Replay(images, scores)), SPEC)


def spoil_uploads(patch: pytest.MonkeyPatch, spoiled: dict[int, Callable[[StateDict], StateDict]]) -> None:
    """Let some clients of a run in process send other tensors than they trained."""

    def spoilt(images: ClientImages, task: ClientTask, store: SiteStore) -> LocalModel:
        model = first_round(images, task, store)
        changed = spoiled[task.client](model.state) if task.client in spoiled else model.state
        return LocalModel(changed, model.chosen_epoch, model.validation_accuracy)

    patch.setattr(in_process, "first_round", spoilt)


def basis(*shape: int, value: float = 0.5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


@pytest.mark.parametrize(
    ("subspace", "told"),
    [
        (None, "it lacks the subspace"),
        (basis(8, 2352, 2), r"instead of float32 \(8, 2352, 3\)"),
        (basis(7, 2352, 3), r"instead of float32 \(8, 2352, 3\)"),
        (basis(8, 2352, 3, dtype=torch.float64), "is torch.float64 .* instead of float32"),
        (basis(8, 2352, 3, value=0.0), "is empty or holds values that are not finite"),
        (basis(8, 2352, 3, value=torch.inf), "is empty or holds values that are not finite"),
    ],
)
def test_a_subspace_that_cannot_be_is_refused(subspace: torch.Tensor | None, told: str) -> None:
    with pytest.raises(FedBiCrossError, match=rf"^upload of client 4 is refused: .*{told}"):
        check_subspace(4, subspace, SPEC, 3)


def test_a_subspace_of_the_right_shape_passes() -> None:
    check_subspace(4, basis(8, 2352, 3), SPEC, 3)


def test_the_run_goes_on_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_uploads(monkeypatch, {1: BAD["variance"][0]})
    with without_report():
        in_process.run_in_process(tiny(), tmp_path / "run")
    entries = read_json(tmp_path / "run" / "run.json")["clients"]
    assert [entry["status"] for entry in entries] == ["ok", "failed", "ok"]
    assert entries[1]["reason"].endswith("stem.1.running_var holds negative variances")
    assert read_json(tmp_path / "run" / "clustering.json")["clients"] == [0, 2]
    assert not (tmp_path / "run" / "uploads" / "client-01.safetensors").exists()
    assert not (tmp_path / "run" / "sites" / "client-01" / "personal.safetensors").exists()


def test_no_usable_upload_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_uploads(monkeypatch, dict.fromkeys(range(3), BAD["nan"][0]))
    with pytest.raises(FedBiCrossError, match=r"no client sent a usable model: .*not finite") as caught:
        in_process.run_in_process(tiny(), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_fewer_uploads_than_clusters_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_uploads(monkeypatch, {1: BAD["nan"][0], 2: BAD["nan"][0]})
    with pytest.raises(FedBiCrossError, match=r"clustering.clusters = 2, but only 1 client\(s\)"):
        in_process.run_in_process(tiny(), tmp_path / "run")


def test_a_round_2_that_fails_everywhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second_round(*arguments: Any) -> None:
        raise FedBiCrossError("the site's store was moved")

    monkeypatch.setattr(in_process, "second_round", second_round)
    with pytest.raises(FedBiCrossError, match=r"no client finished its personal model: .*store was moved"):
        in_process.run_in_process(tiny(), tmp_path / "run")


def test_only_fedbicross_asks_for_the_subspaces_of_its_clustering(tmp_path: Path) -> None:
    with without_report():
        in_process.run_in_process(tiny(method="fedavg", clustering__by="pacfl"), tmp_path / "run")
    clients = read_json(tmp_path / "run" / "run.json")["clients"]
    assert [client["status"] for client in clients] == ["ok"] * len(clients)
    assert not list((tmp_path / "run" / "uploads").glob("subspace-*"))
