"""What stands behind ``stop-run``: ``flwr stop``, with one line on mistakes."""

from __future__ import annotations

from flower_cli import Arguments, as_command, flwr


def main() -> int:
    """Stop a run.

    Raises
    ------
    FedBiCrossError
        When the SuperLink does not answer, or has no such run to stop.
    """
    parser = Arguments("stop-run")
    parser.add_argument("run")
    chosen = parser.parse_args()
    flwr("stop", chosen.run, chosen.connection)
    print(f"run {chosen.run} is stopped; start-run goes on with it")
    return 0


if __name__ == "__main__":
    as_command(main)
