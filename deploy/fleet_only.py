"""What other machines reach of a SuperLink: the API of SuperNodes, and nothing else.

Flower 1.41 serves three APIs on one port. Node authentication guards the one that SuperNodes use, below
``/v1/fleet/``. The Control API, which registers nodes and starts runs (that is, has code of the caller's
choice executed at every site), and the Runtime API, which hands out the run's work, take every caller in
the open-source edition. Here both are for the SuperLink's own user on its own machine. Nor does Flower bound
what it reads of a request before it knows who sent it; other machines are bounded here.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from pathlib import Path

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOR_ALL = ("/v1/fleet/", "/health")
LARGEST_REQUEST = 32 * 2**20
"""Bytes of a request from elsewhere: Flower cuts arrays into chunks of 5 MB."""
CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
Endpoint = tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]

logger = logging.getLogger("uvicorn.error")


class TooLargeError(Exception):
    """Ends a request that is larger than any that a SuperNode sends."""


class FleetOnly:
    """Answers 403 to whoever is not the SuperLink's own user here and wants more than a SuperNode needs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan" or is_own(scope):
            await self.app(scope, receive, send)
        elif scope["path"].startswith(FOR_ALL):
            await self.bounded(scope, receive, send)
        else:
            reason = "This API answers the SuperLink's own user on its own machine only.\n"
            await refuse(scope, receive, send, 403, reason)

    async def bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as long as it is not too large."""
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST_REQUEST:
                raise TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except TooLargeError:
            if not begun:
                await refuse(scope, receive, send, 413, "The request is larger than any of a SuperNode's.\n")


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    """Answer a request with a reason, and log who asked for what."""
    caller = (scope.get("client") or ("unknown",))[0]
    logger.warning("refused %s %s: %s", caller, scope["path"], reason.strip())
    await PlainTextResponse(reason, status_code=status)(scope, receive, send)


def is_own(scope: Scope) -> bool:
    """Return whether a connection comes from a process of this very user on this machine.

    The addresses alone would also be equal behind a forwarder that hides where a connection comes from.
    """
    client, server = scope.get("client"), scope.get("server")
    if not client or not server or client[0] != server[0]:
        return False
    if not any(table.exists() for table in CONNECTIONS):  # no Linux
        return True
    return owner_of(endpoint(*client), endpoint(*server)) == os.getuid()


def owner_of(near: Endpoint, far: Endpoint) -> int | None:
    """Return the user whose process holds the end `near` of a connection to `far`, if that is here."""
    for table in CONNECTIONS:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if written_endpoint(fields[1]) == near and written_endpoint(fields[2]) == far:
                return int(fields[7])
    return None


def endpoint(address: str, port: int) -> Endpoint:
    """Return an address and a port; an IPv4 address that is written as an IPv6 one is the IPv4 one."""
    read = ipaddress.ip_address(address)
    return getattr(read, "ipv4_mapped", None) or read, port


def written_endpoint(text: str) -> Endpoint:
    """Return what the kernel writes as ``0100007F:24E3``: words of four bytes in the machine's order."""
    address, _, port = text.partition(":")
    packed = b"".join(
        int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)
    )
    return endpoint(str(ipaddress.ip_address(packed)), int(port, 16))
