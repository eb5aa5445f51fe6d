"""The explorer as a page in this machine's browser: the widget's front end, over HTTP.

The page can do what its user can do, which is to run the model. So it is closed to everybody else: it listens on
127.0.0.1 alone, its address holds a random token, and requests under another host name (DNS rebinding) or from another
site are rejected.
"""

import asyncio
import base64
import secrets
import socket
from collections.abc import Callable, Mapping
from threading import Event
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from corelens.explorer import frontend
from corelens.explorer.compute import Cancelled
from corelens.explorer.state import ExplorerState
from corelens.explorer.uploads import MAX_BYTES
from corelens.explorer.view import VIEW_ERRORS, Explorer
from corelens.files import parse_json

FILES = {
    "": ((frontend.FOLDER / "page.html").read_text(encoding="utf-8"), "text/html"),
    "page.js": ((frontend.FOLDER / "page.js").read_text(encoding="utf-8"), "text/javascript"),
    "explorer.js": (frontend.MODULE, "text/javascript"),
    "explorer.css": (frontend.STYLE, "text/css"),
}
"""Content and media type of each file, by name."""

HOSTS = ["127.0.0.1", "localhost"]
MAX_BODY_BYTES = 2 * MAX_BYTES
"""Most bytes of a request: pictures in base64, and a state."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
OTHER_RUN = (
    "This address is not of the corelens that runs now: a link ends with its run. Open the address that "
    "`corelens explore` printed last; to share a view, save it as a page."
)
"""Response to an address without the token."""

CLIENT_GONE = Response(status_code=499)
"""Response to a browser that has closed the connection."""


def create_app(explorer: Explorer, token: str) -> Starlette:
    """Build the application that serves one explorer at `/TOKEN/`.

    Its model runs for one request at a time. A request whose browser has gone, since its user chose something else,
    ends before the model's next layer.
    """
    about = explorer.about()
    model_lock = asyncio.Lock()

    async def serve_file(request: Request) -> Response:
        content, media_type = FILES[request.url.path.rpartition("/")[2]]
        return Response(content, media_type=media_type)

    async def serve_about(request: Request) -> Response:
        return JSONResponse(about)

    async def serve_view(request: Request) -> Response:
        try:
            body = parse_json(await _body(request))
            state, uploads, prompt_key = ExplorerState.parse(body["state"]), _uploads(body), str(body.get("prompt"))
        except ClientDisconnect:
            return CLIENT_GONE
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as cause:
            return _refusal(f"the request cannot be read: {cause}")
        disconnected = Event()
        watcher = asyncio.create_task(_watch_connection(request, disconnected))
        try:
            async with model_lock:
                content = await asyncio.to_thread(
                    _view_content, explorer, state, uploads, prompt_key, disconnected.is_set
                )
                return JSONResponse(content)
        except Cancelled:
            return CLIENT_GONE
        except VIEW_ERRORS as cause:
            return _refusal(str(cause))
        finally:
            watcher.cancel()

    return Starlette(
        routes=[
            *(Route(f"/{token}/{name}", serve_file) for name in FILES),
            Route(f"/{token}/about", serve_about),
            Route(f"/{token}/view", serve_view, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(Guard, token=token),
        ],
    )


def serve(explorer: Explorer, port: int, ready: Callable[[str], object]) -> None:
    """Serve an explorer on this machine until it is interrupted.

    Args:
        explorer: The explorer.
        port: Port to listen on; 0 for any that is free.
        ready: Called with the page's address once it can be opened.

    Raises:
        OSError: If the port is taken.
    """
    token = secrets.token_urlsafe(16)
    with socket.create_server(("127.0.0.1", port)) as listening:
        config = uvicorn.Config(create_app(explorer, token), log_level="warning", lifespan="off", ws="none")
        ready(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/")
        uvicorn.Server(config).run(sockets=[listening])


class Guard:
    """Middleware that lets only requests through that know the token and come from the page itself."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers.get('host')}":
            return await PlainTextResponse("requests from other sites are rejected", 403)(scope, receive, send)
        if not secrets.compare_digest(scope["path"].lstrip("/").partition("/")[0].encode(), self.token.encode()):
            return await PlainTextResponse(OTHER_RUN, 403)(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_guarded)


def _refusal(reason: str) -> Response:
    # A state may hold halves of characters, which no answer can.
    return JSONResponse({"error": reason.encode(errors="replace").decode()}, 400)


async def _body(request: Request) -> bytes:
    """Body of a request, read only up to the limit."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"it has more than {MAX_BODY_BYTES >> 20} MiB.")
    return bytes(body)


def _uploads(body: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Uploaded pictures by key: file name and content."""
    return {
        str(key): (str(file["name"]), base64.b64decode(file["data"], validate=True))
        for key, file in body.get("uploads", {}).items()
    }


async def _watch_connection(request: Request, disconnected: Event) -> None:
    """Set an event when the browser closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    disconnected.set()


def _view_content(
    explorer: Explorer,
    state: ExplorerState,
    uploads: Mapping[str, tuple[str, bytes]],
    prompt_key: str,
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """View of a state, and its prompt unless the browser has it already."""
    for key, (name, data) in uploads.items():
        explorer.prompts.add_picture(key, name, data)
    view = explorer.view(state, cancelled)
    return {"view": view} if view["prompt"] == prompt_key else {"view": view, "prompt": explorer.prompt(state)}
