"""Which cluster a site joins that the method did not see."""

from __future__ import annotations

import pytest
import torch

from fedbicross_flwr.centre.late_site import nearest_cluster
from fedbicross_flwr.compute import Compute
from fedbicross_flwr.config import RunConfig
from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.methods import ClientUpload, ServerTask
from fedbicross_flwr.models import ModelSpec, StateDict, build_model, state_of
from fedbicross_flwr.progress import Silent

SPEC = ModelSpec("resnet18", 3, 1, 2, "small")


def model(seen: int, said: int) -> StateDict:
    """A model whose classifier has its longest row at class `seen`, and that always answers `said`."""
    network = build_model(SPEC, 0)
    with torch.no_grad():
        network.get_parameter("fc.weight").fill_(0.01)[seen] = 0.1
        network.get_parameter("fc.bias").zero_()[said] = 50.0
    return state_of(network)


@pytest.mark.parametrize(
    ("by", "joined"),
    [("classifier_norms", 0), ("outputs", 1), ("classifier_bias", 1), ("parameters", 1), ("hierarchical", 1)],
)
def test_a_late_site_joins_by_what_made_the_clusters(by: str, joined: int) -> None:
    config = RunConfig.from_flat({"clustering.by": by, "clustering.num_probes": 4})
    task = ServerTask(SPEC, config, Compute.of(config.runtime), Silent())
    states = {1: model(seen=0, said=0), 2: model(seen=1, said=1), 4: model(seen=0, said=0)}
    uploads = {client: ClientUpload(client, 20, state) for client, state in states.items()}
    assert nearest_cluster(model(seen=0, said=1), {1: 0, 2: 1, 4: 0}, uploads, task) == joined
    del uploads[1]
    with pytest.raises(FedBiCrossError, match="while the upload of client 1 is lost"):
        nearest_cluster(model(seen=0, said=1), {1: 0, 2: 1, 4: 0}, uploads, task)
