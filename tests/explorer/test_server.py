"""The explorer's server: access, requests, cancellation, and the command that starts it."""

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient
from typer.testing import CliRunner

from corelens import HookedMLLM, toy
from corelens.cli import app
from corelens.explorer import Explorer, frontend, server
from corelens.explorer.server import create_app
from corelens.explorer.state import ExplorerState
from tests.helpers.explorer import png

TOKEN = "the-token"


@pytest.fixture(scope="module")
def explorer(toy_model: HookedMLLM) -> Explorer:
    return Explorer(toy_model, toy.scenes(3, seed=0))


@pytest.fixture
def client(explorer: Explorer) -> Iterator[TestClient]:
    with TestClient(create_app(explorer, TOKEN), base_url=f"http://127.0.0.1:8000/{TOKEN}/") as client:
        yield client


def test_every_file_of_the_front_end_is_part_of_its_module():
    assert sorted(frontend.PARTS) == sorted({path.stem for path in frontend.FOLDER.glob("*.js")} - {"page"})


def test_the_page_and_its_modules_are_served(client: TestClient):
    media_types = {"": "text/html", "explorer.js": "javascript", "page.js": "javascript", "explorer.css": "css"}
    for name, media_type in media_types.items():
        answer = client.get(name)
        assert answer.status_code == 200
        assert media_type in answer.headers["content-type"]
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
    assert "http" not in client.get("").text  # nothing is fetched from elsewhere


def test_a_view_is_that_of_the_explorer(client: TestClient, explorer: Explorer):
    about = client.get("about").json()
    assert about == explorer.about()
    content = client.post("view", json={"state": about["first"]}).json()
    assert content == {"view": explorer.view(explorer.first()), "prompt": explorer.prompt(explorer.first())}
    again = client.post("view", json={"state": about["first"], "prompt": content["prompt"]["key"]}).json()
    assert set(again) == {"view"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_a_foreign_host_is_rejected(client: TestClient, host: str):
    for answer in (client.get("", headers={"host": host}), client.post("view", headers={"host": host}, json={})):
        assert answer.status_code == 400
        assert "corelens" not in answer.text


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1:8000", "http://127.0.0.1:9999", "null"])
def test_a_foreign_origin_is_rejected(client: TestClient, origin: str):
    state = client.get("about").json()["first"]
    assert client.post("view", headers={"origin": origin}, json={"state": state}).status_code == 403
    page_origin = {"origin": "http://127.0.0.1:8000"}
    assert client.post("view", headers=page_origin, json={"state": state}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/about", "/other-token/", "/other/view", "/the-token-/about", "/the-toke"])
def test_nothing_is_served_without_the_token(client: TestClient, path: str):
    assert client.get(f"http://127.0.0.1:8000{path}").status_code == 403


@pytest.mark.parametrize("path", ["../page.py", "%2e%2e/page.py", "page.py", "explorer.py", "..%2f..%2fmodel.py"])
def test_no_other_file_is_served(client: TestClient, path: str):
    assert client.get(path).status_code in (403, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"{}", b"null", b'{"state": 3}', b'{"state": {}, "uploads": 3}', b"[" * 100_000,
        b'{"state": {}, "uploads": {"k": {"name": "a", "data": "no base64!"}}}',
        b'{"state": {"heads": ["L9H9"], "sample": "scene-test-0-0"}}', b'{"state": {"sample": "../../etc/passwd"}}',
        b"\xff\xfe", b"\x80\x04\x95",
    ],
)  # fmt: skip
def test_invalid_requests_are_answered_with_an_error(client: TestClient, body: bytes):
    answer = client.post("view", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_requests_are_read_only_up_to_the_limit(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    chunks = []

    def body() -> Iterator[bytes]:
        for _ in range(20):
            chunks.append(None)
            yield b" " * 2**20

    answer = client.post("view", content=body())
    assert answer.status_code == 400
    assert answer.json()["error"] == f"the request cannot be read: it has more than {server.MAX_BODY_BYTES >> 20} MiB."


def test_a_picture_is_uploaded_once(client: TestClient):
    state = {"sample": "", "pictures": ["k"], "question": "what is red ?", "metric": "visual_share", "heads": ["L2H4"]}
    upload = {"k": {"name": "mine.png", "data": base64.b64encode(png(32, 32)).decode()}}
    content = client.post("view", json={"state": state, "uploads": upload}).json()
    (panel,) = content["prompt"]["panels"]
    assert (panel["width"], panel["height"]) == (32, 32)
    again = client.post("view", json={"state": state}).json()
    assert again == content
    bad = {"x": {"name": "mine.png", "data": base64.b64encode(b"no picture").decode()}}
    answer = client.post("view", json={"state": state | {"pictures": ["x"]}, "uploads": bad})
    assert answer.status_code == 400
    assert "no picture that can be read" in answer.json()["error"]


@pytest.fixture
def slow(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Events of a server in which the metric `effect` takes as long as its browser waits."""
    events = {"running": 0, "together": 0, "stopped": threading.Event(), "began": threading.Event()}
    view = explorer.view

    def slow_view(state: ExplorerState, cancelled: Callable[[], bool]) -> dict[str, Any]:
        events["running"] += 1
        events["together"] = max(events["together"], events["running"])
        events["began"].set()
        try:
            while state.metric == "effect":
                time.sleep(0.01)
                view(explorer.first(), cancelled)
                explorer.prompts.prepared.clear()
            return view(state, cancelled)
        finally:
            events["running"] -= 1
            if state.metric == "effect":
                events["stopped"].set()

    monkeypatch.setattr(explorer, "view", slow_view)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        uvicorn_server = uvicorn.Server(
            uvicorn.Config(create_app(explorer, TOKEN), log_level="error", lifespan="off", ws="none")
        )
        thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listening]})
        thread.start()
        events["port"] = listening.getsockname()[1]
        try:
            yield events
        finally:
            uvicorn_server.should_exit = True
            thread.join()


def test_a_request_ends_with_its_connection_and_others_wait_for_it(slow: dict[str, Any], explorer: Explorer):
    first = explorer.first().json()

    def post(state: dict[str, Any]) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", slow["port"], timeout=60)
        connection.request("POST", f"/{TOKEN}/view", json.dumps({"state": state}))
        return connection

    endless = post(first | {"metric": "effect"})
    assert slow["began"].wait(60)
    waiting = post(first)
    time.sleep(0.3)
    assert not slow["stopped"].is_set()
    endless.close()
    assert slow["stopped"].wait(60)
    answer = waiting.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["view"]["before"]["text"] == "green"
    assert slow["together"] == 1
    waiting.close()


def test_the_server_listens_on_this_machine_alone_and_reports_its_address(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
):
    addresses, sockets_used = [], []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: sockets_used.extend(s.getsockname() for s in sockets)
    )
    server.serve(explorer, 0, addresses.append)
    server.serve(explorer, 0, addresses.append)
    assert [host for host, _ in sockets_used] == ["127.0.0.1", "127.0.0.1"]
    tokens = [address.split("/")[3] for address in addresses]
    assert len({*tokens}) == 2
    assert min(map(len, tokens)) >= 22
    assert addresses[0].startswith(f"http://127.0.0.1:{sockets_used[0][1]}/")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        server.serve(explorer, taken.getsockname()[1], addresses.append)


def served_explorer(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Explorer:
    """The explorer that the command would serve."""
    served = []
    monkeypatch.setattr(server, "serve", lambda explorer, port, ready: served.append(explorer))
    monkeypatch.setattr(import_module("corelens.cli.explore"), "N_SCANNED", 4)
    result = CliRunner().invoke(app, ["explore", *arguments])
    assert result.exit_code == 0, result.output
    return served[0]


def test_the_command_shows_the_shipped_model_and_its_code_runs(monkeypatch: pytest.MonkeyPatch):
    explorer = served_explorer(monkeypatch)
    assert len(explorer.samples) == 12
    assert len(explorer.core) == 5
    view = explorer.view(explorer.first())
    namespace: dict[str, Any] = {}
    exec(compile(view["code"], "view.py", "exec"), namespace)
    assert np.allclose(np.array(view["map"], float), namespace["values"], rtol=2e-3, atol=1e-5)
    assert namespace["scores"].top().heads == explorer.core


def test_the_command_shows_a_picture_and_a_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(png(64, 64))
    explorer = served_explorer(monkeypatch, "--image", str(tmp_path / "a.png"), "--question", "what is red ?")
    view = explorer.view(explorer.first())
    namespace: dict[str, Any] = {}
    exec(compile(view["code"], "view.py", "exec"), namespace)
    assert np.allclose(np.array(view["map"], float), namespace["values"], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "a.png"], "the picture needs a question"),
        (["--image", "missing.png", "--question", "why ?"], "there is no picture file 'missing.png'"),
        (["--model", "./missing"], "there is no model folder './missing'"),
        (["--scores", "missing.safetensors"], "missing.safetensors"),
        (["--port", "99999"], "65535"),
    ],
)
def test_mistakes_are_reported_without_a_traceback(monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str):
    monkeypatch.setattr(import_module("corelens.cli.explore"), "N_SCANNED", 2)
    result = CliRunner().invoke(app, ["explore", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_errors_of_a_model_are_reported(client: TestClient, explorer: Explorer, monkeypatch: pytest.MonkeyPatch):
    def failing_view(state: ExplorerState, cancelled: Callable[[], bool]) -> dict[str, Any]:
        raise RuntimeError("out of memory")

    first = explorer.first().json()
    monkeypatch.setattr(explorer, "view", failing_view)
    answer = client.post("view", json={"state": first})
    assert (answer.status_code, answer.json()) == (400, {"error": "out of memory"})


HUGE = 10**400
STATES: dict[str, str] = {
    "a box": json.dumps({"regions": [{"box": [HUGE, 0, 1, 1]}]}),
    "evidence": json.dumps({"evidence": [{"box": [0, 0, HUGE, 1]}]}),
    "seconds": json.dumps({"regions": [{"seconds": [0, HUGE]}]}),
    "a picture's number": json.dumps({"regions": [{"media": HUGE}]}),
    "a token": json.dumps({"token": HUGE}),
    "a large token": json.dumps({"token": 2**63}),
    "a head": json.dumps({"heads": [f"L{HUGE}H0"]}),
    "heads of a wrong type": json.dumps({"heads": {"L0H0": 1}}),
    "half of a character as a key": r'{"\ud800": 1}',
    "half of a character in the question": r'{"question": "\ud800"}',
    "deep nesting": '{"heads": ' + "[" * 100_000,
    "20,000 words": json.dumps({"question": "which " * 20_000}),
    "a list": "[]",
}
"""States that no page would send."""


@pytest.mark.parametrize("what", STATES)
def test_absurd_states_are_a_mistake_of_who_sends_them(client: TestClient, explorer: Explorer, what: str):
    first = json.dumps(explorer.first().json())
    text = STATES[what]
    state = f"{first[:-1]}, {text[1:]}" if text.startswith("{") else text
    answer = client.post("view", content=f'{{"state": {state}}}')
    assert answer.status_code == 400
    assert len(answer.json()["error"]) < 1000
