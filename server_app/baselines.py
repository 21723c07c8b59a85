"""Flower's own strategies over many rounds, beside the one-shot methods: same clients, epochs and network.

The strategies run unchanged (`Strategy.start`); `server_app.rounds_grid.RoundsGrid` stands between them and
the nodes. What they may not touch decides what they see:

- Integers never reach them. Every strategy averages whatever it is given in floating point, and QFedAvg
  fails on int64 outright; BatchNorm's ``num_batches_tracked`` takes the clients' maximum beside them.
- BatchNorm's running means and variances pass through the strategies that answer with a client's own
  value or a mean of some (FedAvg, FedProx, FedMedian, FedTrimmedAvg, Krum): a variance stays one, and Krum's
  chosen model keeps the statistics it was trained with. The others take a step of their own size (FedAvgM,
  FedAdam, FedAdagrad, FedYogi) or weigh by gradients (QFedAvg); statistics are no parameters and have no
  gradient, and such a step can make a variance negative. For those they are averaged beside, as FedAvg does.
- NumPy promotes FedAdam's and QFedAvg's results to float64; what travels is cast back to float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    QFedAvg,
    Strategy,
)

from fedbicross_flwr.compute import cpu_threads
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.flower_names import strategy_of
from fedbicross_flwr.labelled_images import accuracy
from fedbicross_flwr.methods import ServerOutcome, ServerTask
from fedbicross_flwr.models import StateDict, load_state
from fedbicross_flwr.progress import ROUNDS
from fedbicross_flwr.rounds import epochs_of, initial_state
from fedbicross_flwr.server import Server
from server_app.rounds_grid import RoundsGrid
from server_app.strategy import OneShot

ALL_CLIENTS: Mapping[str, Any] = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
"""Every client that is still in the run trains in each round; models are scored after the last one."""


@dataclass(frozen=True)
class FlowerStrategy:
    """How one of Flower's strategies is used.

    Parameters
    ----------
    build : callable
        Makes it with the settings of the run.
    statistics : bool, default False
        Whether BatchNorm statistics pass through it; else they are averaged beside it.
    reads_loss : bool, default False
        Whether clients are asked for the loss of the model that they received.
    """

    build: Callable[[RunConfig], Strategy]
    statistics: bool = False
    reads_loss: bool = False


def adaptive(config: RunConfig) -> dict[str, Any]:
    """Return what FedAdam and FedYogi share; Flower only prints the clients' learning rate."""
    flower = config.flower
    momenta = {"beta_1": flower.beta_1, "beta_2": flower.beta_2}
    return {**ALL_CLIENTS, **momenta, "tau": flower.tau, "eta_l": config.client.lr}


FLOWER_STRATEGIES: Mapping[str, FlowerStrategy] = {
    "FedAvg": FlowerStrategy(lambda config: FedAvg(**ALL_CLIENTS), statistics=True),
    "FedProx": FlowerStrategy(
        lambda config: FedProx(**ALL_CLIENTS, proximal_mu=config.flower.proximal_mu), statistics=True
    ),
    "FedAvgM": FlowerStrategy(
        lambda config: FedAvgM(
            **ALL_CLIENTS,
            server_learning_rate=config.flower.server_lr,
            server_momentum=config.flower.server_momentum,
        )
    ),
    "FedAdam": FlowerStrategy(lambda config: FedAdam(**adaptive(config), eta=config.flower.adam_lr)),
    "FedAdagrad": FlowerStrategy(
        lambda config: FedAdagrad(
            **ALL_CLIENTS, tau=config.flower.tau, eta_l=config.client.lr, eta=config.flower.adagrad_lr
        )
    ),
    "FedYogi": FlowerStrategy(lambda config: FedYogi(**adaptive(config), eta=config.flower.yogi_lr)),
    "FedMedian": FlowerStrategy(lambda config: FedMedian(**ALL_CLIENTS), statistics=True),
    "FedTrimmedAvg": FlowerStrategy(
        lambda config: FedTrimmedAvg(**ALL_CLIENTS, beta=config.flower.trim), statistics=True
    ),
    "Krum": FlowerStrategy(
        lambda config: Krum(**ALL_CLIENTS, num_malicious_nodes=config.flower.malicious), statistics=True
    ),
    "QFedAvg": FlowerStrategy(
        lambda config: QFedAvg(config.client.lr, config.flower.q, **ALL_CLIENTS), reads_loss=True
    ),
}
"""By Flower's name; the same names as `fedbicross_flwr.flower_names.NOTES`."""


def run_rounds(one_shot: OneShot, grid: Grid) -> dict[str, float]:
    """Run the configured strategy, then ship its model and have it fine-tuned and scored.

    An interrupted run begins again at its first round: a strategy keeps its state in memory alone.

    Parameters
    ----------
    one_shot : OneShot
        The run. Its second round, personalisation, is the last message here as well.
    grid : Grid
        Flower's own.

    Returns
    -------
    dict of str to float
        Seconds: of the clients in all rounds, of the strategy, of the personalisation.

    Raises
    ------
    FedBiCrossError
        When no client comes through, or the strategy's model is no longer finite.
    """
    server, config = one_shot.server, one_shot.server.config
    entry = FLOWER_STRATEGIES[strategy_of(config.method)]
    start = initial_state(server.spec, config)
    between = RoundsGrid(grid, one_shot, start, names_for(entry, server, start))
    judge = Judge(server, between)
    wishes: dict[str, Any] = {"train-loss": True} if entry.reads_loss else {}
    begin = time.perf_counter()
    result = entry.build(config).start(
        between,
        ArrayRecord({name: start[name] for name in start if name in between.names}),
        num_rounds=config.flower.rounds,
        timeout=config.runtime.reply_timeout,
        train_config=ConfigRecord({"folder": str(server.folder.path), **wishes}),
        evaluate_fn=judge,
    )
    taken = time.perf_counter() - begin
    clients = [client for client in sorted(between.nodes) if not one_shot.is_out(client)]
    server.take_outcome(ServerOutcome((between.merged(result.arrays),), dict.fromkeys(clients, 0)))
    server.extra["flower"] = record_of(config, between, judge)
    waited = sum(between.seconds)
    personalise(one_shot, grid)
    return {
        "upload round": waited,
        "strategy": max(taken - waited - judge.seconds, 0.0),
        "personalisation round": one_shot.seconds["personalisation round"],
    }


def personalise(one_shot: OneShot, grid: Grid) -> None:
    """Send each client the global model, as a one-shot run does in its second round, and take the scores."""
    messages = one_shot.configure_train(2, ArrayRecord(), ConfigRecord(), grid)
    timeout = one_shot.server.config.runtime.reply_timeout
    one_shot.aggregate_train(2, grid.send_and_receive(messages, timeout=timeout))


def names_for(entry: FlowerStrategy, server: Server, state: StateDict) -> frozenset[str]:
    """Return the arrays that a strategy is given (see the head of this file)."""
    if entry.statistics:
        return frozenset(name for name, tensor in state.items() if tensor.dtype.is_floating_point)
    return frozenset(name for name, _ in load_state(server.spec, state).named_parameters())


def record_of(config: RunConfig, between: RoundsGrid, judge: Judge) -> dict[str, Any]:
    """Return what ``run.json`` says of the rounds under the key ``flower``."""
    rounds, epochs = config.flower.rounds, config.client.epochs
    return {
        "strategy": strategy_of(config.method),
        "rounds": rounds,
        "epochs": [len(epochs_of(epochs, rounds, number)) for number in range(1, rounds + 1)],
        "seconds": between.seconds,
        "accuracy": judge.accuracies,
    }


class Judge:
    """Scores the global model on the whole test split before the first round and after each.

    For the record alone: nothing is chosen by it.
    """

    def __init__(self, server: Server, between: RoundsGrid) -> None:
        self.server = server
        self.between = between
        self.tests = server.data.test_images()
        self.accuracies: list[float] = []
        self.seconds = 0.0

    def __call__(self, number: int, arrays: ArrayRecord) -> MetricRecord:
        """Return the accuracy after a round; 0 is the initial model."""
        start, server = time.perf_counter(), self.server
        task = ServerTask(server.spec, server.config, server.compute, server.progress)
        with cpu_threads(1):
            model = task.load(self.between.merged(arrays))
            self.accuracies.append(accuracy(model, self.tests.to(task.compute), task.compute))
        if number:
            server.progress.advance(ROUNDS, number, server.config.flower.rounds)
        self.seconds += time.perf_counter() - start
        return MetricRecord({"accuracy": self.accuracies[-1]})
