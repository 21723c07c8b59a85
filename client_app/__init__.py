"""Flower's ClientApp: a thin adapter around `fedbicross_flwr.client`."""
