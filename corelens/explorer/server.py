"""The explorer as a page in this machine's browser: the widget's own front end, over HTTP.

The page can do what its user can do, which is to run the model. So nobody else may talk to it: it listens on 127.0.0.1
alone, its address holds a random token, and requests that come under another name (DNS rebinding) or from another site
are refused.
"""

import asyncio
import base64
import json
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
from corelens.explorer.uploads import MOST_BYTES
from corelens.explorer.view import REFUSALS, Explorer

FILES = {
    "": ((frontend.FOLDER / "page.html").read_text(encoding="utf-8"), "text/html"),
    "page.js": ((frontend.FOLDER / "page.js").read_text(encoding="utf-8"), "text/javascript"),
    "explorer.js": (frontend.MODULE, "text/javascript"),
    "explorer.css": (frontend.STYLE, "text/css"),
}
"""By name, what is in a file and what it is."""

HOSTS = ["127.0.0.1", "localhost"]
MOST_BODY = 2 * MOST_BYTES
"""Of a request: pictures in base64, and a state."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
GONE = Response(status_code=499)
"""What nobody reads."""


def page(explorer: Explorer, token: str) -> Starlette:
    """The application that serves one explorer at `/TOKEN/`.

    Its model runs for one request at a time. A request whose browser has gone, since its user chose something else,
    ends before the model's next layer.
    """
    about = explorer.about()
    model = asyncio.Lock()

    async def file(request: Request) -> Response:
        content, kind = FILES[request.url.path.rpartition("/")[2]]
        return Response(content, media_type=kind)

    async def tell(request: Request) -> Response:
        return JSONResponse(about)

    async def show(request: Request) -> Response:
        try:
            asked = json.loads(await _body(request))
            state, uploads, seen = ExplorerState.parse(asked["state"]), _uploads(asked), str(asked.get("prompt"))
        except ClientDisconnect:
            return GONE
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
            return JSONResponse({"error": f"the request cannot be read: {cause}"}, 400)
        gone = Event()
        watching = asyncio.create_task(_watch(request, gone))
        try:
            async with model:
                return JSONResponse(await asyncio.to_thread(_shown, explorer, state, uploads, seen, gone.is_set))
        except Cancelled:
            return GONE
        except REFUSALS as cause:
            return JSONResponse({"error": str(cause)}, 400)
        finally:
            watching.cancel()

    return Starlette(
        routes=[
            *(Route(f"/{token}/{name}", file) for name in FILES),
            Route(f"/{token}/about", tell),
            Route(f"/{token}/view", show, methods=["POST"]),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False),
            Middleware(Guard, token=token),
        ],
    )


def serve(explorer: Explorer, port: int, ready: Callable[[str], object]) -> None:
    """Serves an explorer on this machine until it is interrupted.

    Args:
        explorer: What is shown.
        port: Where; 0 for any that is free.
        ready: Is told the page's address once it can be opened.

    Raises:
        OSError: If the port is taken.
    """
    token = secrets.token_urlsafe(16)
    with socket.create_server(("127.0.0.1", port)) as listening:
        config = uvicorn.Config(page(explorer, token), log_level="warning", lifespan="off", ws="none")
        ready(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/")
        uvicorn.Server(config).run(sockets=[listening])


class Guard:
    """Lets only those in who know the token and come from the page itself."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers.get('host')}":
            return await PlainTextResponse("requests from other sites are refused", 403)(scope, receive, send)
        if not secrets.compare_digest(scope["path"].lstrip("/").partition("/")[0].encode(), self.token.encode()):
            return await PlainTextResponse("the address needs the token that was printed", 403)(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_guarded)


async def _body(request: Request) -> bytes:
    """What was sent, read no further than it may be long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            raise ValueError(f"it has more than {MOST_BODY >> 20} MiB.")
    return bytes(body)


def _uploads(asked: Mapping[str, Any]) -> dict[str, tuple[str, bytes]]:
    """Own pictures: by key, the name of a file and what is in it."""
    return {
        str(key): (str(file["name"]), base64.b64decode(file["data"], validate=True))
        for key, file in asked.get("uploads", {}).items()
    }


async def _watch(request: Request, gone: Event) -> None:
    """Says when the browser has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _shown(
    explorer: Explorer,
    state: ExplorerState,
    uploads: Mapping[str, tuple[str, bytes]],
    seen: str,
    cancelled: Callable[[], bool],
) -> dict[str, Any]:
    """The view of a state, and what it asks if the browser has not seen that yet."""
    for key, (name, data) in uploads.items():
        explorer.prompts.add_picture(key, name, data)
    view = explorer.look(state, cancelled)
    return {"view": view} if view["prompt"] == seen else {"view": view, "prompt": explorer.prompt(state)}
