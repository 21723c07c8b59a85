"""``python -m fedbicross_flwr``: the command ``fedbicross`` where it is not installed, as in a container."""

from fedbicross_flwr.cli import main

main()
