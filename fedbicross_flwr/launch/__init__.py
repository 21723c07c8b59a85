"""One simulated run under Flower in an environment of its own, which leaves nothing behind."""

from fedbicross_flwr.launch.launcher import Resources, RunStatus, RunValue, find_app, fit_resources, simulate

__all__ = ["Resources", "RunStatus", "RunValue", "find_app", "fit_resources", "simulate"]
