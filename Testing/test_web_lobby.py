"""Who gets in: tokens, cookies, sessions of their own; with a small stand-in for the session's process."""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the page's packages are not installed")

import psutil                                                                           # noqa: E402
from aiohttp import web                                                                 # noqa: E402

from HiEndSegWeb import guard                                                           # noqa: E402
from HiEndSegWeb.lobby import Lobby                                                     # noqa: E402

#: A session's process without views: listens behind the real guard, and says its own number.
SESSION = textwrap.dedent("""
    import argparse, asyncio, json, os, sys
    from aiohttp import web
    from HiEndSegWeb.guard import protect
    parser = argparse.ArgumentParser()
    for name in ("--host", "--folder", "--home", "--file"):
        parser.add_argument(name, default="none")
    options = parser.parse_args()
    if options.file == "broken":
        sys.exit("this session has no views")
    open(os.path.join(options.folder, "upload"), "w").close()
    async def serve():
        app = web.Application()
        protect(app, os.environ["HIENDSEG_SESSION_KEY"], options.host)
        async def page(request):
            return web.Response(text=f"{os.getpid()} {options.file}")
        async def end(request):
            os._exit(3)
        app.router.add_get("/index.html", page)
        app.router.add_get("/end", end)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, options.host, 0).start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        await asyncio.Event().wait()
    asyncio.run(serve())
""")


def lobby(tmp_path, **more):
    return Lobby(**{"command": (sys.executable, "-c", SESSION), "temporary": tmp_path, **more})


def in_lobby(tmp_path, play, **more):
    async def run():
        here = lobby(tmp_path, **more)
        await here.start()
        try:
            await play(here)
        finally:
            await here.close()

    asyncio.run(run())


def browser():
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def enter(person, address):
    """(status, text, url) of the page that a browser ends at, going where the waiting page sends it."""
    for _ in range(200):
        async with person.get(address) as answer:
            text = await answer.text()
            if "is starting" not in text:
                return answer.status, text, answer.url
        address = answer.url.join(aiohttp.client.URL(re.search(r';url=([^"]+)"', text).group(1)))
        await asyncio.sleep(0.02)
    raise AssertionError("no page came")


def test_a_browser_is_told_that_its_page_is_being_made(tmp_path):
    async def play(here):
        async with browser() as person, person.get(here.address) as answer:
            text = await answer.text()
            assert answer.status == 200 and "is starting" in text and 'http-equiv="refresh"' in text
            assert here.tabs == []

    in_lobby(tmp_path, play, command=(sys.executable, "-c", "import time; time.sleep(30)"))


def test_the_token_works_once_and_every_page_is_a_session_of_its_own(tmp_path):
    async def play(here):
        address = here.address
        async with browser() as first, browser() as second:
            status, one, url = await enter(first, address)
            assert status == 200 and "key=" not in str(url)
            async with second.get(address) as answer:
                assert answer.status == 403 and "one browser" in await answer.text() and not second.cookie_jar
            _, two, _ = await enter(first, address.split("?")[0])
            assert one.split()[1] == "ct.nii" and two.split()[1] == "none"      # the file belongs to the first page
            assert one.split()[0] != two.split()[0] and len(here.tabs) == 2

    in_lobby(tmp_path, play, opened=("--file", "ct.nii"))
    assert list(tmp_path.iterdir()) == []                                       # uploads go with their sessions


def test_nobody_gets_in_without_a_token(tmp_path):
    async def play(here):
        async with browser() as stranger:
            for address in (here.address.split("?")[0], here.address[:-1] + ("y" if here.address.endswith("x") else "x")):
                async with stranger.get(address) as answer:
                    assert answer.status == 403
            assert here.tabs == []

    in_lobby(tmp_path, play)


def test_a_session_answers_only_the_browser_with_its_key_from_its_own_page(tmp_path):
    async def play(here):
        async with browser() as owner, browser() as other:
            _, _, url = await enter(owner, here.address)
            async with other.get(url) as answer:
                assert answer.status == 403
            async with owner.get(url, headers={"Origin": "http://evil.example"}) as answer:
                assert answer.status == 403
            async with owner.get(url, headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
            async with owner.get(url) as answer:
                assert answer.status == 200 and answer.headers["X-Content-Type-Options"] == "nosniff"
                policy = answer.headers["Content-Security-Policy"]
                assert "frame-ancestors 'none'" in policy and f"connect-src 'self' ws://127.0.0.1:{url.port} " in policy

    in_lobby(tmp_path, play)


def test_a_session_s_key_works_once_and_is_on_no_command_line(tmp_path):
    async def play(here):
        async with browser() as owner, browser() as other:
            _, _, url = await enter(owner, here.address)
            tab = here.tabs[0]
            assert len(tab.key) > 20
            assert not any(tab.key in part for part in psutil.Process(tab.process.pid).cmdline())
            async with other.get(url.with_path("/").with_query(key=tab.key)) as answer:
                assert answer.status == 403 and not other.cookie_jar
            async with owner.get(url) as answer:
                assert answer.status == 200

    in_lobby(tmp_path, play)


def test_the_way_in_is_no_redirect(tmp_path):
    """A browser that comes from a link elsewhere would send no strict cookie to where it is redirected."""
    async def play(here):
        async with browser() as person, person.get(here.address, allow_redirects=False) as answer:
            assert answer.status == 200 and ";url=/" in await answer.text()
            [cookie] = answer.cookies.values()
            assert cookie["httponly"] and cookie["samesite"] == "Strict" and cookie["path"] == "/"
            assert answer.headers["Referrer-Policy"] == "no-referrer"

    in_lobby(tmp_path, play, command=(sys.executable, "-c", "import time; time.sleep(30)"))


@pytest.mark.parametrize("host, shown", [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")])
def test_the_printed_address(host, shown):
    assert Lobby(host=host, port=8080).address.startswith(f"http://{shown}:8080/?token=")


def test_a_dead_session_takes_nobody_along_and_its_folder_goes(tmp_path):
    async def play(here):
        async with browser() as person:
            _, _, url = await enter(person, here.address)
            folder = here.tabs[0].folder.path
            assert folder.is_dir()
            with pytest.raises(aiohttp.ClientError):
                await person.get(url.with_path("/end"))
            await asyncio.wait_for(here._tabs[0].process.wait(), 5)
            while folder.exists():
                await asyncio.sleep(0.01)
            assert here.tabs == []
            status, _, _ = await enter(person, f"http://127.0.0.1:{here.port}/")
            assert status == 200

    in_lobby(tmp_path, play)


def test_what_was_to_be_opened_is_not_lost_with_a_session_that_dies_early(tmp_path):
    async def play(here):
        while not here._ready.done():
            await asyncio.sleep(0.01)
        here._ready.result().process.kill()
        await here._ready.result().process.wait()
        async with browser() as person:
            _, text, _ = await enter(person, here.address)
            assert text.split()[1] == "ct.nii"

    in_lobby(tmp_path, play, opened=("--file", "ct.nii"))


def test_what_a_killed_server_left_is_swept(tmp_path):
    left = tmp_path / "hiendseg-left"
    left.mkdir()
    (left / "lock").touch()
    (left / "upload").write_bytes(b"voxels")
    in_lobby(tmp_path, lambda here: asyncio.sleep(0))
    assert list(tmp_path.iterdir()) == []


def test_only_so_many_sessions_at_a_time(tmp_path):
    async def play(here):
        async with browser() as person:
            assert (await enter(person, here.address))[0] == 200
            async with person.get(f"http://127.0.0.1:{here.port}/") as answer:
                assert answer.status == 503 and "close one" in await answer.text()

    in_lobby(tmp_path, play, most=1)


def test_a_session_that_cannot_start_is_said_with_its_last_words(tmp_path):
    async def play(here):
        async with browser() as person:
            status, text, _ = await enter(person, here.address)
            assert status == 500 and "could not be started" in text and "this session has no views" in text

    in_lobby(tmp_path, play, opened=("--file", "broken"))


@pytest.mark.parametrize("host, asked, allowed", [
    ("127.0.0.1", "127.0.0.1:80", True), ("127.0.0.1", "localhost:80", True), ("127.0.0.1", "[::1]:80", True),
    ("127.0.0.1", "evil.example:80", False), ("127.0.0.1", "127.0.0.1.evil.example", False),
    ("0.0.0.0", "lab-pc:80", True)])
def test_names_of_this_computer(host, asked, allowed):
    request = type("Request", (), {"host": asked})
    assert guard.allowed_host(request, host) is allowed


def test_an_address_that_is_none_gets_into_no_policy():
    request = type("Request", (), {"host": "127.0.0.1; script-src *"})
    assert "script-src" not in guard.headers_for(request)["Content-Security-Policy"]


def test_the_guard_stands_before_websockets_too():
    async def run():
        app = web.Application()
        guard.protect(app, "secret", "127.0.0.1")

        async def socket(request):
            answer = web.WebSocketResponse()
            await answer.prepare(request)
            await answer.send_str("in")
            return answer

        app.router.add_get("/ws", socket)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with browser() as person:
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await person.ws_connect(f"http://127.0.0.1:{port}/ws")
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await person.ws_connect(f"http://127.0.0.1:{port}/ws", headers={"Cookie": f"hiendseg-{port}=secret"})
            async with person.get(f"http://127.0.0.1:{port}/?key=secret") as answer:
                assert answer.status == 404                 # let in; there is no page here
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await person.ws_connect(f"http://127.0.0.1:{port}/ws", headers={"Origin": "http://127.0.0.1:1"})
            async with person.ws_connect(f"http://127.0.0.1:{port}/ws") as ws:
                assert (await ws.receive()).data == "in"
        await runner.cleanup()

    asyncio.run(run())
