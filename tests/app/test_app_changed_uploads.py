"""A method that trains the uploads themselves is refused before others could get what it left of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from small_runs import run_tiny, tiny
from torch import nn

from fedbicross_flwr.distillation import fine_tuned
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods import METHODS, ClientUpload, Method, ServerOutcome, ServerTask
from fedbicross_flwr.methods.fedavg import fedavg


def renew_statistics(model: nn.Module) -> None:
    model.train()(torch.ones(4, 3, 28, 28))


def train_the_classifier(model: nn.Module) -> None:
    classifier = model.get_submodule("fc").requires_grad_(True)
    model(torch.ones(4, 3, 28, 28)).sum().backward()
    torch.optim.SGD(classifier.parameters(), 0.1).step()


def own_method(train: Callable[[nn.Module], None], copies: bool) -> Method:
    """FedAvg-1 after a step on the uploads of clients 0 and 2, or on copies of them."""

    def serve(uploads: Sequence[ClientUpload], task: ServerTask) -> ServerOutcome:
        for upload in (uploads[0], uploads[2]):
            model = task.load(upload.state)
            train(copy.deepcopy(model) if copies else model)
        return fedavg(uploads, task)

    return Method("Own", serve, fine_tuned, "Own, fine-tuned")


@pytest.mark.parametrize("train", [renew_statistics, train_the_classifier])
def test_a_method_that_changes_uploads_is_refused_before_anything_is_scored_or_shared(
    train: Callable[[nn.Module], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(method="own", cache=str(tmp_path / "cache"))
    monkeypatch.setitem(METHODS, "own", own_method(train, copies=False))
    told = r"^method = 'own' changed the upload of client\(s\) 0, 2, .*copy\.deepcopy.*$"
    with pytest.raises(FedBiCrossError, match=told):
        run_tiny(tmp_path / "run", config)
    assert not [*tmp_path.glob("cache/*/stages/*")]
    assert not {path.name for path in (tmp_path / "run").iterdir()} & {"metrics.json", "models"}


@pytest.mark.parametrize("train", [renew_statistics, train_the_classifier])
def test_a_method_may_train_copies(
    train: Callable[[nn.Module], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "own", own_method(train, copies=True))
    assert (run_tiny(tmp_path / "run", tiny(method="own")) / "metrics.json").exists()
