"""Who may talk to a session: the browser that came in with its key, and nobody else.

A cookie carries the key after the first request, so that it leaves the address bar. Requests of other pages
(another Origin) and under other host names (DNS rebinding) are refused, WebSockets included.
"""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
#: Nothing from elsewhere may be loaded, and nobody may frame the page.
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
                               "connect-src 'self' ws: wss: data: blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
}


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


def elsewhere(address: str) -> web.Response:
    """Send the browser to another address."""
    return web.Response(status=302, headers={"Location": address, **HEADERS})


def protect(app: Any, key: str, host: str) -> None:
    """Put the guard in front of every route of an aiohttp application."""
    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        if not (allowed_host(request, host) and same_origin(request)):
            return web.Response(status=403, text="This address is not served here.")
        if knows(request.query.get("key"), key):
            answer: web.StreamResponse = elsewhere("/index.html")
            answer.set_cookie(cookie_name(request), key, httponly=True, samesite="Strict", path="/")
            return answer
        if not knows(request.cookies.get(cookie_name(request)), key):
            return web.Response(status=403, text="This page belongs to another browser; open HiEndSeg again by the "
                                                 "address that it printed.")
        answer = await handler(request)
        if not answer.prepared:
            answer.headers.update(HEADERS)
        return answer

    async def where(request: web.Request) -> web.StreamResponse:
        """The page's script asks a launcher first, and reports an error where there is none."""
        return web.json_response({"sessionURL": f"ws://{request.host}/ws"})

    app.middlewares.append(guard)
    app.router.add_post("/paraview/", where)
