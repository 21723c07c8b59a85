"""Flower's own strategies over many rounds: what they are given, what comes of it, what one shot shares."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower_strategies
from hypothesis import given
from hypothesis import strategies as st
from local_grid import Change, LocalGrid, arrays_of, error_reply, run_app
from small_runs import read_json, run_tiny, tiny, without_report

from fedbicross_flwr.artifacts import digest, read_tensors
from fedbicross_flwr.compare import variants
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.flower_names import FLOWER_NAMES, NOTES
from fedbicross_flwr.in_process import run_in_process
from fedbicross_flwr.labelled_images import LabelledImages
from fedbicross_flwr.methods import method_named
from fedbicross_flwr.methods.fedavg import average_states
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, load_state, state_of
from fedbicross_flwr.progress import Silent
from fedbicross_flwr.report import load_run, results_table
from fedbicross_flwr.rounds import epochs_of, initial_state, train_round, training_loss
from fedbicross_flwr.rows import rows_of
from fedbicross_flwr.seeds import torch_generator
from fedbicross_flwr.sgd import Recipe, batches, fit
from fedbicross_flwr.training import ClientTask
from server_app.baselines import FLOWER_STRATEGIES

BESIDE = ("FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "QFedAvg")
"""Strategies that BatchNorm statistics do not pass through."""


@cache
def room() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedbicross-tests-")


def small(strategy: str, **settings: Any) -> RunConfig:
    """Two rounds of an epoch each; the clients' own models are shared between the runs of this file."""
    standard = {
        "method": f"flower:{strategy}",
        "flower__rounds": 2,
        "client__checkpoint": "last",
        "cache": f"{room().name}/cache",
    }
    return tiny(**(standard | settings))


def run(config: RunConfig, folder: Path, change: Change | None = None) -> LocalGrid:
    config = dataclasses.replace(config, out=str(folder))
    grid = LocalGrid(config, config.partition.clients, change)
    with without_report():
        run_app(config, grid)
    return grid


@cache
def finished(strategy: str) -> tuple[Path, LocalGrid]:
    """One run of each strategy; tests only read it."""
    folder = Path(room().name) / strategy
    return folder, run(small(strategy), folder)


def sent_back(grid: LocalGrid, number: int) -> dict[int, StateDict]:
    """Each client's whole model as it arrived in a round."""
    messages = zip(grid.rounds[number - 1], grid.replies[number - 1], strict=True)
    return {
        grid.nodes[message.metadata.dst_node_id]: dict(arrays_of(reply)["arrays"].to_torch_state_dict())
        for message, reply in messages
    }


def sent_down(grid: LocalGrid, number: int) -> StateDict:
    """The model that clients received in a round, which is the same for all."""
    states = [arrays_of(message)["arrays"].to_torch_state_dict() for message in grid.rounds[number - 1]]
    assert len({digest(state) for state in states}) == 1
    return dict(states[0])


def model_of(folder: Path) -> StateDict:
    return read_tensors(folder / "models" / "cluster-0.safetensors")[0]


def mean_of(uploads: dict[int, StateDict], samples: float = 32.0) -> StateDict:
    return average_states([uploads[client] for client in sorted(uploads)], [samples] * len(uploads))


def steps_of(state: StateDict) -> int:
    """How many batches the model was trained on."""
    (steps,) = {int(tensor) for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    return steps


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def test_the_names_are_the_same_everywhere() -> None:
    assert tuple(FLOWER_STRATEGIES) == tuple(NOTES)
    assert all(variants.VARIANTS[name].overrides == {"method": name} for name in FLOWER_NAMES)


@pytest.mark.parametrize("strategy", FLOWER_STRATEGIES)
def test_every_strategy_leaves_an_ordinary_run_folder(strategy: str) -> None:
    folder = finished(strategy)[0]
    record = load_run(folder)
    assert record.results is not None
    title = f"{strategy}, 2 rounds"
    rows = ["local-only", "local-only, same budget", title, f"{title}, fine-tuned"]
    assert [row.name for row in results_table(record).rows] == rows
    for row in record.results.rows:
        assert all(sorted(row.scores[protocol]) == [0, 1, 2] for protocol in ("global", "local"))
    assert all(client.ok for client in record.clients)
    said = read_json(folder / "run.json")["flower"]
    assert (said["strategy"], said["rounds"], said["epochs"]) == (strategy, 2, [1, 1])
    assert len(said["seconds"]) == 2 and min(said["seconds"]) > 0
    assert len(said["accuracy"]) == 3
    last = record.results.rows[2].scores["global"][0].accuracy
    assert said["accuracy"][-1] == pytest.approx(last, abs=1e-6)


@pytest.mark.parametrize("strategy", FLOWER_STRATEGIES)
def test_all_that_travels_is_counted(strategy: str) -> None:
    folder, grid = finished(strategy)
    kinds = [{message.metadata.message_type for message in messages} for messages in grid.rounds]
    assert kinds == [{"train.local"}, {"train.local"}, {"train.personalise"}]
    up: dict[int, int] = dict.fromkeys(range(3), 0)
    down = dict(up)
    for messages, replies in zip(grid.rounds, grid.replies, strict=True):
        for message, reply in zip(messages, replies, strict=True):
            client = grid.nodes[message.metadata.dst_node_id]
            down[client] += sum(array.numpy().nbytes for array in arrays_of(message)["arrays"].values())
            for record in arrays_of(reply).values():
                up[client] += sum(array.numpy().nbytes for array in record.values())
    for entry in read_json(folder / "run.json")["clients"]:
        assert entry["bytes_sent"] == up[entry["client"]] > 0
        assert entry["bytes_received"] == down[entry["client"]] > 0
    for row in read_json(folder / "metrics.json")["rows"][2:]:
        assert (row["bytes_up"], row["bytes_down"]) == (up[0], down[0])


@pytest.mark.parametrize("strategy", FLOWER_STRATEGIES)
def test_types_counters_and_variances_survive(strategy: str) -> None:
    folder, grid = finished(strategy)
    start = sent_down(grid, 1)
    final = model_of(folder)
    assert digest(final) == digest(sent_down(grid, 3))
    assert list(final) and final.keys() == start.keys()
    for state in (sent_down(grid, 2), final):
        for name, tensor in state.items():
            assert tensor.dtype == start[name].dtype and tensor.shape == start[name].shape
            assert torch.isfinite(tensor).all()
            assert not name.endswith("running_var") or (tensor >= 0).all()
    # 32 images less 3 for validation, in batches of 16: two steps an epoch.
    assert [steps_of(state) for state in (start, sent_down(grid, 2), final)] == [0, 2, 4]


@pytest.mark.parametrize("strategy", BESIDE)
def test_statistics_are_averaged_beside_strategies_that_take_steps(strategy: str) -> None:
    folder, grid = finished(strategy)
    final, mean = model_of(folder), mean_of(sent_back(grid, 2))
    assert all(torch.equal(final[name], mean[name]) for name in final if is_statistic(name))
    weights = [name for name in final if name.endswith("weight")]
    assert max(float((final[name] - mean[name]).abs().max()) for name in weights) > 1e-6


def test_the_other_strategies_are_given_the_statistics_too() -> None:
    assert set(BESIDE) == {name for name, entry in FLOWER_STRATEGIES.items() if not entry.statistics}
    folder, grid = finished("FedMedian")
    uploads = list(sent_back(grid, 2).values())
    final = model_of(folder)
    for name in final:
        if final[name].dtype == torch.float32:
            middle = torch.stack([state[name] for state in uploads]).median(0).values
            assert torch.equal(final[name], middle)


def test_clients_tell_their_loss_only_to_the_strategy_that_reads_it() -> None:
    for strategy, wanted in (("FedAvg", {"num-examples"}), ("QFedAvg", {"num-examples", "train_loss"})):
        for number in (0, 1):
            for reply in finished(strategy)[1].replies[number]:
                assert set(reply.content) == {"arrays", "metrics", "client"}
                assert set(cast(MetricRecord, reply.content["metrics"])) == wanted


def test_krum_ships_one_client_s_model_as_it_is() -> None:
    folder, grid = finished("Krum")
    final = model_of(folder)
    assert digest(final) in {digest(state) for state in sent_back(grid, 2).values()}


def test_fedavg_is_the_mean_of_what_the_clients_sent() -> None:
    folder, grid = finished("FedAvg")
    for number, result in ((1, sent_down(grid, 2)), (2, model_of(folder))):
        expected = mean_of(sent_back(grid, number))
        assert all(torch.allclose(result[name], expected[name], atol=1e-6) for name in expected)


def test_clients_train_as_long_as_for_one_shot() -> None:
    grid = finished("FedAvg")[1]
    own = [read_tensors(path)[0] for path in Path(room().name).glob("cache/*/*/local.safetensors")]
    assert len(own) >= 3
    rounds = sent_back(grid, 2).values()
    assert {steps_of(state) for state in own} == {steps_of(state) for state in rounds} == {4}


def test_one_round_of_fedavg_is_fedavg_1(tmp_path: Path) -> None:
    settings = {"client__checkpoint": "best", "client__augment": True, "cache": ""}
    grid = run(small("FedAvg", flower__rounds=1, **settings), tmp_path / "rounds")
    one_shot = run_tiny(tmp_path / "one-shot", tiny(method="fedavg", **settings))
    for client, state in sent_back(grid, 1).items():
        upload = read_tensors(one_shot / "uploads" / f"client-{client:02d}.safetensors")[0]
        assert digest(state) == digest(upload)
    rounds, shot = model_of(tmp_path / "rounds"), model_of(one_shot)
    assert rounds.keys() == shot.keys()
    assert all(torch.allclose(rounds[name], shot[name], rtol=0, atol=1e-6) for name in shot)
    local = [row["clients"] for row in read_json(one_shot / "metrics.json")["rows"][:2]]
    assert [row["clients"] for row in read_json(tmp_path / "rounds" / "metrics.json")["rows"][:2]] == local


def test_fedprox_without_its_term_is_fedavg(tmp_path: Path) -> None:
    grid = run(small("FedProx", flower__proximal_mu=0.0), tmp_path / "run")
    assert digest(model_of(tmp_path / "run")) == digest(model_of(finished("FedAvg")[0]))
    config = cast(dict[str, Any], grid.rounds[0][0].content["config"])
    assert config["proximal-mu"] == 0.0
    assert digest(model_of(finished("FedProx")[0])) != digest(model_of(finished("FedAvg")[0]))


def a_client(**settings: Any) -> tuple[LabelledImages, ClientTask, StateDict]:
    """A client with random images, and a model for it to receive."""
    config = tiny(client__batch_size=8, client__validation_fraction=0.0, **settings)
    spec = ModelSpec.of(config, 3, 3)
    generator = torch.Generator().manual_seed(1)
    data = LabelledImages(torch.rand(20, 3, 28, 28, generator=generator), torch.arange(20) % 3)
    task = ClientTask(0, spec, config, Compute(torch.device("cpu")), Silent())
    return data, task, initial_state(spec, config)


def test_the_loss_that_is_told_is_the_received_model_s_cross_entropy_on_training_images_alone() -> None:
    spec = ModelSpec("resnet18", 3, 1, 2, "small")
    config = tiny(client__validation_fraction=0.25)
    task = ClientTask(0, spec, config, Compute.of(config.runtime), Silent())
    generator = torch.Generator().manual_seed(5)
    data = LabelledImages(torch.randn((12, 1, 28, 28), generator=generator), torch.arange(12) % 3)
    state = state_of(build_model(spec, 7))
    with torch.no_grad():
        scores = load_state(spec, state).eval()(data.images[3:])
    expected = -scores.softmax(1)[range(9), data.labels[3:]].log().mean()
    assert training_loss(data, state, task) == pytest.approx(float(expected), rel=1e-4)


def test_the_proximal_term_pulls_with_mu_times_the_distance() -> None:
    plain = {"client__momentum": 0.0, "client__weight_decay": 0.0, "client__schedule": "constant"}
    data, task, start = a_client(flower__rounds=2, **plain)
    mu, rate = 4.0, task.config.client.lr
    model = load_state(task.spec, start).train()
    order = torch_generator(task.config.seed, "training", 0)
    for rows in batches(len(data), 8, order):
        loss = F.cross_entropy(model(data.images[rows]), data.labels[rows])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
                weight.sub_(rate * (gradient + mu * (weight - start[name])))
    expected = state_of(model)
    found = train_round(data, start, task, 1, mu).state
    free = train_round(data, start, task, 1).state
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert any(not torch.allclose(found[name], free[name], atol=1e-4) for name, _ in model.named_parameters())


def test_a_larger_mu_keeps_the_model_nearer() -> None:
    data, task, start = a_client(flower__rounds=1)
    distances = []
    for mu in (0.0, 1.0, 10.0):
        state = train_round(data, start, task, 1, mu).state
        trained = [name for name in start if start[name].dtype == torch.float32 and not is_statistic(name)]
        distances.append(sum(float((state[name] - start[name]).square().sum()) for name in trained))
    assert distances[0] > distances[1] > distances[2] > 0


def test_the_learning_rate_falls_over_all_rounds() -> None:
    data, task, start = a_client(flower__rounds=2, client__schedule="cosine")
    found = train_round(data, start, task, 2).state
    model = load_state(task.spec, start)
    recipe = dataclasses.replace(
        Recipe.of(task.config.client), epochs=1, lr=task.config.client.lr * 0.5, schedule="constant"
    )
    order = torch_generator(task.config.seed, "training", 0, 2)
    fit(
        model,
        data.images,
        lambda logits, rows: F.cross_entropy(logits, data.labels[rows]),
        recipe,
        order,
        task.compute,
    )
    expected = state_of(model)
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


READS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "FedProx": ({"flower__proximal_mu": 0.3}, {"proximal_mu": 0.3}),
    "FedAvgM": (
        {"flower__server_lr": 0.7, "flower__server_momentum": 0.4},
        {"server_learning_rate": 0.7, "server_momentum": 0.4},
    ),
    "FedAdam": (
        {"flower__adam_lr": 0.3, "flower__beta_1": 0.8, "flower__beta_2": 0.95, "flower__tau": 0.01},
        {"eta": 0.3, "beta_1": 0.8, "beta_2": 0.95, "tau": 0.01},
    ),
    "FedAdagrad": ({"flower__adagrad_lr": 0.4, "flower__tau": 0.02}, {"eta": 0.4, "tau": 0.02}),
    "FedYogi": (
        {"flower__yogi_lr": 0.5, "flower__beta_1": 0.7, "flower__beta_2": 0.9, "flower__tau": 0.03},
        {"eta": 0.5, "beta_1": 0.7, "beta_2": 0.9, "tau": 0.03},
    ),
    "FedTrimmedAvg": ({"flower__trim": 0.4}, {"beta": 0.4}),
    "Krum": ({"flower__malicious": 1}, {"num_malicious_nodes": 1}),
    "QFedAvg": ({"flower__q": 0.6, "client__lr": 0.03}, {"q": 0.6, "client_learning_rate": 0.03}),
}
"""Strategy -> settings, and what Flower's own object has of them."""


@pytest.mark.parametrize("strategy", FLOWER_STRATEGIES)
def test_settings_reach_flower_s_own_strategy(strategy: str) -> None:
    settings, expected = READS.get(strategy, ({}, {}))
    built = FLOWER_STRATEGIES[strategy].build(small(strategy, **settings))
    assert isinstance(built, getattr(flower_strategies, strategy))
    assert {name: getattr(built, name) for name in expected} == expected


@given(st.integers(1, 12), st.integers(0, 50))
def test_rounds_share_the_epochs_out(rounds: int, more: int) -> None:
    epochs = rounds + more
    parts = [epochs_of(epochs, rounds, number) for number in range(1, rounds + 1)]
    assert [epoch for part in parts for epoch in part] == list(range(epochs))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def fail_in(number: int, client: int, reason: str) -> Change:
    """One client's ClientApp raises in one round; its reply says so and not who it is."""

    def change(round_: int, one: int, reply: Message) -> Message:
        if (round_, one) != (number, client):
            return reply
        return Message(error_reply(reply, reason).error, reply_to=reply)

    return change


def spoil(round_: int, client: int, reply: Message) -> Message:
    """Client 2 sends a model that is not finite in round 2."""
    if (round_, client) == (2, 2):
        cast(ArrayRecord, reply.content["arrays"])["fc.bias"] = Array(np.full(8, np.nan, np.float32))
    return reply


@pytest.mark.parametrize(
    ("change", "client", "reason", "asked"),
    [
        (fail_in(1, 1, "disk on fire"), 1, "disk on fire", [3, 2, 2]),
        (spoil, 2, "fc.bias holds values that are not finite", [3, 3, 2]),
    ],
    ids=["fails", "not-finite"],
)
def test_the_run_goes_on_without_a_client_that_fails(
    tmp_path: Path, change: Change, client: int, reason: str, asked: list[int]
) -> None:
    grid = run(small("FedAvg"), tmp_path / "run", change)
    assert [len(messages) for messages in grid.rounds] == asked
    entries = read_json(tmp_path / "run" / "run.json")["clients"]
    assert [one["status"] for one in entries] == ["failed" if one == client else "ok" for one in range(3)]
    assert reason in entries[client]["reason"]
    rest = {one: state for one, state in sent_back(grid, 2).items() if one != client}
    final, expected = model_of(tmp_path / "run"), mean_of(rest)
    assert all(torch.allclose(final[name], expected[name], atol=1e-6) for name in expected)
    rows = read_json(tmp_path / "run" / "metrics.json")["rows"]
    assert all([one["client"] for one in row["clients"]] == sorted(rest) for row in rows)


def test_a_strategy_whose_step_leaves_the_numbers_is_told(tmp_path: Path) -> None:
    # Neither momentum nor tau damps the step, which is a hundred times the rate.
    damping = {"flower__beta_1": 0.0, "flower__beta_2": 0.9999, "flower__tau": 1e-9}
    config = small("FedYogi", flower__yogi_lr=1e38, **damping)
    with pytest.raises(FedBiCrossError, match=r"flower:FedYogi went astray in round 1: .*not finite"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_unknown_strategies_are_told_with_the_near_ones() -> None:
    said = r"'flower:FedAvgg' is not a method \(did you mean flower:FedAvg"
    for ask in (method_named, rows_of):
        with pytest.raises(FedBiCrossError, match=said):
            ask("flower:FedAvgg")


def test_what_cannot_run_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(FedBiCrossError, match=r"client.epochs = 2 is less than flower.rounds = 3"):
        run(small("FedAvg", flower__rounds=3), tmp_path / "a")
    with pytest.raises(FedBiCrossError, match=r"'flower:Krum' runs under Flower only"):
        run_in_process(small("Krum"), tmp_path / "b")
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()
