"""Where a cluster model G_k starts, before its first step of stage 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from fedbicross_flwr.methods import student
from fedbicross_flwr.methods.protocol import ClientUpload, ServerTask
from fedbicross_flwr.models import build_model, load_state
from fedbicross_flwr.seeds import derive_seed

Start = Callable[[Sequence[ClientUpload], Sequence[ClientUpload], int, ServerTask], nn.Module]
"""``start(the cluster's uploads, all uploads, cluster, task)`` gives G_k before its first step."""


def random_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return a network with random weights (Algorithm 1)."""
    return build_model(task.spec, derive_seed(task.config.seed, "cluster-model", cluster))


def average_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return the sample-weighted average of the cluster's uploads."""
    return student.average_start(members, task)


def federation_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return the sample-weighted average of all uploads, which knows something of every class."""
    return student.average_start(uploads, task)


def member_start(
    members: Sequence[ClientUpload], uploads: Sequence[ClientUpload], cluster: int, task: ServerTask
) -> nn.Module:
    """Return the upload of the member with the most images; of equal ones the first client's."""
    return load_state(task.spec, max(members, key=lambda member: member.num_samples).state)


STARTS: Mapping[str, Start] = {
    "random": random_start,
    "average": average_start,
    "federation": federation_start,
    "member": member_start,
}
"""By the setting ``cross_cluster.student_init``."""
