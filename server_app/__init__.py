"""Flower's ServerApp: a thin adapter around `fedbicross_flwr.server`."""
