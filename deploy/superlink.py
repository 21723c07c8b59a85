"""Start Flower's SuperLink as a deployment needs it; arguments are those of ``flower-superlink``.

Three things are added to what Flower 1.41 does, by its own hooks where it has them:

- other machines reach the API of SuperNodes and nothing else (`fleet_only`);
- a request waits for the database. By itself it gives up after 5 seconds, which a busy disk takes, and the
  run fails with "database is locked";
- SuperExec, which starts the run's processes, is started again when it ends. Without it, runs stay pending
  for ever.
"""

from __future__ import annotations

import logging
import sys
import threading
import time

from fleet_only import FleetOnly
from flwr.supercore import constant, sql_mixin
from flwr.superlink import extensions
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, flower_superlink
from starlette.middleware import Middleware

#: Milliseconds that a request waits for its turn at the database; callers themselves wait 30 seconds.
DATABASE_PATIENCE = 25_000
#: Seconds before SuperExec is started again.
PAUSE = 2.0
logger = logging.getLogger("uvicorn.error")


class GuardedLifespan(SuperLinkLifespan):
    """Starts SuperExec, and starts it again."""

    def _start_superexec_if_needed(self) -> None:
        super()._start_superexec_if_needed()
        if self.superexec_process is not None:
            threading.Thread(target=self._keep_superexec, daemon=True).start()

    def _keep_superexec(self) -> None:
        while (process := self.superexec_process) is not None:
            process.wait()
            time.sleep(PAUSE)
            if self._started and self.superexec_process is process:
                logger.warning("SuperExec ended with status %s and is started again", process.returncode)
                super()._start_superexec_if_needed()


def main() -> None:
    """Start the SuperLink."""
    extensions.get_middleware = lambda: (Middleware(FleetOnly),)
    pragmas = dict(constant.SQLITE_PRAGMAS) | {"busy_timeout": str(DATABASE_PATIENCE)}
    setattr(sql_mixin, "SQLITE_PRAGMAS", tuple(pragmas.items()))  # noqa: B010  # a name that it only imports
    # The package has a function of the module's name, which hides the module.
    sys.modules[SuperLinkLifespan.__module__].SuperLinkLifespan = GuardedLifespan  # type: ignore[attr-defined]  # of a module
    flower_superlink()


if __name__ == "__main__":
    main()
