"""What other machines reach of a SuperLink: the API of SuperNodes, and nothing else.

Flower 1.41 serves three APIs on one port. Node authentication guards the one that SuperNodes use, below
``/v1/fleet/``. The Control API, which registers nodes and starts runs (that is, has code of the caller's
choice executed at every site), and the Runtime API, which hands out the run's work, take every caller in
the open-source edition. Here both are for callers on the SuperLink's own machine, which are those that
come from the very address they connect to.
"""

from __future__ import annotations

import logging

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOR_ALL = ("/v1/fleet/", "/health")
logger = logging.getLogger("uvicorn.error")


class FleetOnly:
    """Answers 403 to whoever calls from another machine and wants more than a SuperNode needs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or scope["path"].startswith(FOR_ALL) or is_local(scope):
            await self.app(scope, receive, send)
            return
        caller = (scope.get("client") or ("unknown",))[0]
        logger.warning("refused %s %s: it is for the SuperLink's own machine only", caller, scope["path"])
        reason = "This API answers callers on the SuperLink's own machine only.\n"
        await PlainTextResponse(reason, status_code=403)(scope, receive, send)


def is_local(scope: Scope) -> bool:
    """Return whether a connection comes from the machine that it goes to."""
    client, server = scope.get("client"), scope.get("server")
    return bool(client and server and client[0] == server[0])
