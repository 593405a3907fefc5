"""The web application: one page, its files, and a socket for each person."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from diamond_gym.errors import InvalidInputError
from diamond_gym.play.web.access import Access
from diamond_gym.play.web.outbox import PATIENCE_SECONDS, Close
from diamond_gym.play.web.room import FULL, Person, Room

_PAGE = Path(__file__).parent / "page"
_REFUSED = 4003
MAX_MESSAGES_PER_SECOND = 500
"""Most messages of a page: ten fingers and a picture per refresh of the screen make fewer."""
_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
"""Headers: the page loads nothing from other sites, cannot be embedded, and sends no referrer."""


def make_app(room: Room, access: Access) -> ASGIApp:
    """Make the application.

    Args:
        room: The room that people join.
        access: Who may join it.
    """

    async def page(request: Request) -> Response:
        refusal = access.refuses(request.headers.get("host"), request.query_params.get("token"))
        if refusal is None:
            return FileResponse(_PAGE / "index.html")
        return HTMLResponse(_asks_for_token(refusal, access), status_code=403)

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        headers, token = websocket.headers, websocket.query_params.get("token")
        refusal = access.refuses_socket(headers.get("host"), token, headers.get("origin"))
        if refusal is not None:
            await websocket.close(_REFUSED, _brief(refusal))
        else:
            await _serve(websocket, room)

    routes = [
        Route("/", page),
        WebSocketRoute("/socket", socket),
        Mount("/page", StaticFiles(directory=_PAGE)),
    ]
    return _with_headers(Starlette(routes=routes))


async def _serve(websocket: WebSocket, room: Room) -> None:
    """Serve a person until they leave."""
    try:
        person = room.join()
    except InvalidInputError as error:
        await websocket.close(FULL, _brief(str(error)))
        return
    tasks = [
        asyncio.create_task(_receive(websocket, room, person)),
        asyncio.create_task(_send(websocket, person)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        room.leave(person)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(websocket: WebSocket, room: Room, person: Person) -> None:
    """Pass on what a page sends; a page that sends too much is read more slowly."""
    loop = asyncio.get_running_loop()
    second, count = loop.time(), 0
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        room.receive(person, message.get("text"))
        count += 1
        if loop.time() - second >= 1:
            second, count = loop.time(), 0
        elif count >= MAX_MESSAGES_PER_SECOND:
            await asyncio.sleep(second + 1 - loop.time())


async def _send(websocket: WebSocket, person: Person) -> None:
    """Send messages until the page is closed or gone."""
    is_open = True
    while is_open:
        try:
            messages = await person.outbox.take()
            async with asyncio.timeout(PATIENCE_SECONDS):
                is_open = await _send_all(websocket, messages)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):  # Starlette's error for a closed socket
            is_open = False


async def _send_all(websocket: WebSocket, messages: list[str | bytes | Close]) -> bool:
    """Send messages; return whether the socket is still open."""
    for message in messages:
        if isinstance(message, Close):
            await websocket.close(message.code, message.reason)
            return False
        if isinstance(message, str):
            await websocket.send_text(message)
        else:
            await websocket.send_bytes(message)
    return True


def _with_headers(app: ASGIApp) -> ASGIApp:
    async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await app(scope, receive, send_more)

    return with_headers


def _asks_for_token(refusal: str, access: Access) -> str:
    """Return the HTML of a refused request, with a form for the token if one is needed."""
    return (
        (_PAGE / "refused.html")
        .read_text()
        .replace("REFUSAL", _escaped(f"{refusal[0].upper()}{refusal[1:]}."))
        .replace("HIDDEN", "" if access.token else "hidden")
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _brief(reason: str) -> str:
    """Shorten a reason to what fits into a closing frame."""
    return reason.encode()[:120].decode(errors="ignore")
