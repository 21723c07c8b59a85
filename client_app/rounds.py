"""The ClientApp's part of Flower's own strategies: train the received model, answer with its arrays.

What leaves a client each round: all arrays of its model, how many images it has, and, if the server asks
(``train-loss`` in the message's configuration), the received model's loss on its training images.
"""

from __future__ import annotations

from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedbicross_flwr.client import ClientImages
from fedbicross_flwr.compute import cpu_threads
from fedbicross_flwr.rounds import train_round, training_loss
from fedbicross_flwr.training import ClientTask


def local_round(message: Message, images: ClientImages, task: ClientTask) -> RecordDict:
    """Do one round.

    Parameters
    ----------
    message : Message
        ``arrays``, the whole global model; ``config`` with Flower's ``server-round``, ``proximal-mu`` if
        the strategy is FedProx, and ``train-loss`` if the strategy reads the clients' losses.
    """
    config = cast(ConfigRecord, message.content["config"])
    received = dict(cast(ArrayRecord, message.content["arrays"]).to_torch_state_dict())
    metrics: dict[str, int | float | list[int] | list[float]] = {"num-examples": len(images.train)}
    number, mu = int(cast(int, config["server-round"])), float(cast(float, config.get("proximal-mu", 0.0)))
    with cpu_threads(task.config.runtime.client_threads):
        if config.get("train-loss", False):
            metrics["train_loss"] = training_loss(images.train, received, task)
        model = train_round(images.train, received, task, number, mu)
    return RecordDict({"arrays": ArrayRecord(cast(Any, model.state)), "metrics": MetricRecord(metrics)})
