"""Who may talk to a session: the browser that came in with its key, and nobody else.

The key opens the session once; after that a cookie does, which holds another secret. Requests of other pages (another
Origin) and under other host names (DNS rebinding) are refused, WebSockets included.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]+")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
#: Nothing from elsewhere may be loaded, and nobody may frame the page.
_HEADERS = {
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}
#: Vue makes its templates into code, hence 'unsafe-eval'; its styles are inline.
_POLICY = ("default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; connect-src 'self' ws://{host} data: blob:; "
           "base-uri 'self'; form-action 'none'; object-src 'none'; frame-ancestors 'none'")


def headers_for(request: web.Request) -> dict[str, str]:
    """What every answer carries. The address is the one that was checked, so it can be put into the policy."""
    host = request.host if _HOST.fullmatch(request.host) else "127.0.0.1"
    return {**_HEADERS, "Content-Security-Policy": _POLICY.format(host=host)}


def cookie_name(request: web.Request) -> str:
    """Cookies are shared by all ports of a host, so the port is part of the name."""
    return f"hiendseg-{urlsplit(f'//{request.host}').port or 80}"


def allowed_host(request: web.Request, host: str) -> bool:
    """Whether the request was meant for this server under a name that it listens on."""
    name = urlsplit(f"//{request.host}").hostname or ""
    if host in LOOPBACK:
        return name in LOOPBACK
    return True                                     # on another address any of the computer's names may be used


def same_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host


def knows(given: str | None, key: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), key.encode())


def elsewhere(request: web.Request, address: str) -> web.Response:
    """Send the browser to another address."""
    return web.Response(status=302, headers={"Location": address, **headers_for(request)})


def refuse(request: web.Request, sentence: str, status: int = 403) -> web.Response:
    return web.Response(status=status, text=sentence, headers=headers_for(request))


def protect(app: Any, key: str, host: str, sockets: Callable[[int], None] = lambda change: None) -> None:
    """Put the guard in front of every route of an aiohttp application.

    sockets: called with 1 whenever a page connects, and with -1 when it is gone.
    """
    entered = secrets.token_urlsafe(24)             # what the cookie of the browser that came in holds
    left = [key]                                    # the key, until it was used

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if not (allowed_host(request, host) and same_origin(request)):
            return refuse(request, "This address is not served here.")
        if left and knows(request.query.get("key"), left[0]):
            left.clear()
            answer: web.StreamResponse = elsewhere(request, "/index.html")
            answer.set_cookie(cookie_name(request), entered, httponly=True, samesite="Strict", path="/")
            return answer
        if not knows(request.cookies.get(cookie_name(request)), entered):
            return refuse(request, "This page belongs to another browser; open HiEndSeg again by the address that it "
                                   "printed.")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            sockets(1)
            try:
                return await handler(request)               # until the page is gone
            finally:
                sockets(-1)
        answer = await handler(request)
        if not answer.prepared:
            answer.headers.update(headers_for(request))
        return answer

    async def where(request: web.Request) -> web.StreamResponse:
        """The page's script asks a launcher first, and reports an error where there is none."""
        return web.json_response({"sessionURL": f"ws://{request.host}/ws"})

    app.middlewares.append(guard)
    app.router.add_post("/paraview/", where)
