"""Model files: what is written is what is read, damage is seen, and a file is all that a user needs."""

from __future__ import annotations

import copy
import json
import math
import resource
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_runs import flip_byte, read_json, reference, tiny
from torch import Tensor, nn

from fedbicross_flwr.artifacts import digest, load_model, read_tensors, save_model, write_tensors
from fedbicross_flwr.data.partition import Partition
from fedbicross_flwr.data.source import normalise
from fedbicross_flwr.errors import FedBiCrossError, MachineError
from fedbicross_flwr.evaluation import score
from fedbicross_flwr.federated_data import open_data
from fedbicross_flwr.labelled_images import predict_logits
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.models import ModelSpec, build_model, state_of

SPEC = ModelSpec("resnet18", 3, 1, 2, "small")
NAMES = ("a", "b", "ü")
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def saved(folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_model(path, SPEC, state_of(build_model(SPEC, 1)), NAMES, key="k")
    return path


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("abc.é", min_size=1, max_size=6),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=4,
    )
)
def test_tensors_survive(
    tmp_path_factory: pytest.TempPathFactory, described: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("tensors") / "deep" / "file.safetensors"
    tensors = {name: torch.ones(shape).to(dtype) for name, (dtype, shape) in described.items()}
    write_tensors(path, tensors, {"said": "ja: ü"})
    found, facts = read_tensors(path)
    assert facts == {"said": "ja: ü"}
    assert found.keys() == tensors.keys()
    assert all(found[name].dtype == tensors[name].dtype for name in tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [entry.name for entry in path.parent.iterdir()] == ["file.safetensors"]


def test_a_file_that_cannot_be_written_wholly_is_not_there_and_the_former_one_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"x": torch.ones(2)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(MachineError, match=r"^cannot write .*safetensors: .*File too large.*; check"):
            write_tensors(path, {"x": torch.ones(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(read_tensors(path)[0]["x"], torch.ones(2))
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_digest_sees_names_shapes_types_and_values_but_no_order() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"c": torch.zeros(4), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 1.0001])},
        {"a": torch.zeros(4)},
    ]
    assert digest(dict(reversed(base.items()))) == digest(base)
    assert len({digest(tensors) for tensors in [base, *others]}) == 6


@pytest.mark.parametrize("position", [-1, 3000, 40])
def test_a_flipped_byte_is_seen(tmp_path: Path, position: int) -> None:
    path = saved(tmp_path)
    flip_byte(path, position)
    with pytest.raises(FedBiCrossError, match=r"model\.safetensors"):
        load_model(path)


def test_what_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "notes.safetensors"
    text.write_text("no tensors in here")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.ones(1)}, foreign)
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"x": torch.ones(1)})
    unfit = tmp_path / "unfit.safetensors"
    save_model(unfit, ModelSpec("resnet18", 4, 1, 2, "small"), state_of(build_model(SPEC, 1)), NAMES)
    unknown = tmp_path / "unknown.safetensors"
    save_model(unknown, ModelSpec("resnet19", 3, 1, 2, "small"), state_of(build_model(SPEC, 1)), NAMES)
    for path in (text, foreign, other, unfit, unknown, tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(FedBiCrossError) as caught:
            load_model(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": "[a"}, "Expecting value"),
        ({"class_names": "[" * 10**5}, "recursion"),
        ({"class_names": '{"a": 1, "b": 2, "c": 3}'}, "class_names is not a list of 3 names"),
        ({"class_names": '["a", "b"]'}, "class_names is not a list of 3 names"),
        ({"class_names": '["a", 2, "c"]'}, "class_names has 2, which is no name"),
        ({"class_names": '["a", " ", "c"]'}, "class_names has ' ', which is no name"),
        ({"class_names": '["a", "\\ud800", "c"]'}, r"class_names has '\ud800', which is no name"),
        ({"class_names": '["a", "b", "a"]'}, "class_names has 'a' twice"),
        ({"spec": "[]"}, "must be a mapping"),
        ({"spec": json.dumps(asdict(SPEC) | {"stem": "big"})}, "'big'"),
        ({"spec": json.dumps(asdict(SPEC) | {"width": 10**30})}, "failed to unpack"),
        ({"spec": json.dumps(asdict(SPEC) | {"width": 64})}, "(2, 1, 3, 3) instead of (64, 1, 3, 3)"),
    ],
)
def test_facts_of_a_model_that_mean_nothing_are_one_line(
    tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    path = saved(tmp_path)
    state, facts = read_tensors(path)
    write_tensors(path, state, facts | changes)
    with pytest.raises(FedBiCrossError) as caught:
        load_model(path, "cpu")
    said = str(caught.value)
    assert said.startswith(str(path)) and words in said and "\n" not in said and len(said) < 500


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.half(), "fc.weight has type torch.float16"),
        (lambda weights: weights * math.nan, "fc.weight holds values that are not finite"),
        (lambda weights: weights / 0, "fc.weight holds values that are not finite"),
    ],
)
def test_weights_that_are_none_are_one_line(
    tmp_path: Path, spoil: Callable[[Tensor], Tensor], words: str
) -> None:
    path = saved(tmp_path)
    state, facts = read_tensors(path)
    write_tensors(path, state | {"fc.weight": spoil(state["fc.weight"])}, facts)
    with pytest.raises(FedBiCrossError, match=words):
        load_model(path, "cpu")


@pytest.mark.parametrize(("scale", "temperature"), [(3e38, "1"), (1.0, "1e-60")])
def test_answers_that_are_no_numbers_are_not_given(tmp_path: Path, scale: float, temperature: str) -> None:
    path, state = tmp_path / "model.safetensors", state_of(build_model(SPEC, 1))
    state["fc.weight"][:] = scale * state["fc.weight"].sign()
    save_model(path, SPEC, state, NAMES, temperature=temperature)
    with pytest.raises(FedBiCrossError, match="answers are no numbers"):
        load_model(path, "cpu").predict(np.full((2, 28, 28), 255, np.uint8))


def test_a_model_s_file_builds_it_again(tmp_path: Path) -> None:
    model = load_model(str(saved(tmp_path)), device="cpu")
    assert (model.spec, model.class_names, model.model.training) == (SPEC, NAMES, False)
    assert digest(state_of(model.model)) == digest(state_of(build_model(SPEC, 1)))


def test_predictions_are_probabilities_of_either_shape_of_gray_images(tmp_path: Path) -> None:
    model = load_model(saved(tmp_path), device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    found = model.predict(images)
    assert found.dtype == np.float32 and found.shape == (5, 3)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(found, model.predict(images[..., None]))


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28, 3), np.uint8),
        np.zeros((2, 32, 32), np.uint8),
        np.zeros((28, 28), np.uint8),
        np.zeros((2, 28, 28), np.float32),
    ],
)
def test_other_images_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(FedBiCrossError, match=r"takes uint8 images of 28x28 pixels with 1 channel\(s\)"):
        load_model(saved(tmp_path), device="cpu").predict(images)


def told(row: str, client: int) -> dict[str, dict[str, float]]:
    """Return a client's scores in a row of the results, by protocol and metric."""
    (found,) = [one for one in read_json(reference() / "metrics.json")["rows"] if one["name"] == row]
    (scores,) = [one for one in found["clients"] if one["client"] == client]
    return {
        protocol: {metric: value for metric, value in scores[protocol].items() if value is not None}
        for protocol in ("global", "local")
    }


def scored(client: int, answer: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Any:
    """Score a model as its user would: on all test images, and on the client's own."""
    source, mine = open_data(tiny()), Partition.load(reference() / "partition.json").test[client]
    return {
        protocol: score(source.labels("test")[rows], answer(source.images("test", rows)).astype(np.float64))
        for protocol, rows in (("global", np.arange(24)), ("local", mine))
    }


def same(found: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> bool:
    """Return whether all that is told is what was found."""
    return all(
        found[protocol][metric] == pytest.approx(value, abs=1e-6)
        for protocol, values in expected.items()
        for metric, value in values.items()
    )


@pytest.mark.parametrize("client", [0, 2])
@pytest.mark.parametrize(
    ("row", "file"),
    [
        ("local-only", "sites/client-{client:02d}/local.safetensors"),
        ("FedBiCross without personal distillation", "models/cluster-{cluster}.safetensors"),
        ("FedBiCross", "sites/client-{client:02d}/personal.safetensors"),
    ],
)
def test_a_model_scores_at_the_user_s_as_it_did_in_the_run(client: int, row: str, file: str) -> None:
    folder = reference()
    clusters = read_json(folder / "clustering.json")["assignment"]
    model = load_model(folder / file.format(client=client, cluster=clusters[client]), device="cpu")
    assert model.class_names == open_data(tiny()).info.class_names
    assert same(scored(client, lambda images: model.predict(images, calibrated=False)), told(row, client))


def test_the_rows_of_all_uploads_are_their_average_and_the_mean_of_their_logits() -> None:
    uploads = [load_model(path, device="cpu") for path in sorted((reference() / "uploads").glob("client-*"))]
    counts = [float(len(rows)) for rows in Partition.load(reference() / "partition.json").train]
    average = copy.deepcopy(uploads[0].model)
    average.load_state_dict(average_states([one.model.state_dict() for one in uploads], counts))

    def logits(model: nn.Module, images: NDArray[np.uint8]) -> Tensor:
        return predict_logits(model.eval(), normalise(images), uploads[0].compute)

    def of_average(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return logits(average, images).softmax(1).numpy()

    def of_ensemble(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return torch.stack([logits(one.model, images) for one in uploads]).mean(0).softmax(1).numpy()

    assert same(scored(1, of_average), told("FedAvg-1", 1))
    assert same(scored(1, of_ensemble), told("ensemble of all uploads", 1))


def test_the_scores_kept_at_the_site_are_those_of_the_results() -> None:
    folder = reference()
    kept = read_json(folder / "sites" / "client-01" / "scores.json")["scores"]["personal"]["global"]
    row = next(row for row in read_json(folder / "metrics.json")["rows"] if row["name"] == "FedBiCross")
    told = next(entry for entry in row["clients"] if entry["client"] == 1)["global"]
    assert json.loads(json.dumps(kept)) == told


def test_what_the_images_are_worth_is_told_of_the_images_that_are_kept() -> None:
    folder = reference()
    told = read_json(folder / "synthetic.json")
    tensors, _ = read_tensors(folder / "synthetic.safetensors")
    labels = [tensor for name, tensor in tensors.items() if name.startswith("labels.")]
    assert told["images"] == sum(len(part) for part in labels) > 0
    uploads = [load_model(path, device="cpu") for path in sorted(folder.glob("uploads/client-*.safetensors"))]
    taken = 0
    for k, part in enumerate(labels):
        images = tensors[f"images.{k}"]
        answers = [predict_logits(one.model, images, one.compute).softmax(1) for one in uploads]
        taken += int((torch.stack(answers).mean(0).argmax(1) == part).sum())
    assert told["agreement"] == pytest.approx(taken / told["images"])
