"""The explorer's page: who may talk to it, what it takes, and that it stops when nobody waits."""

import base64
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from corelens import toy
from corelens.cli import app
from corelens.explorer import Explorer, frontend
from corelens.explorer.server import page

TOKEN = "the-token"


def png(n: int = 32) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (n, n, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def explorer(toy_model: Any) -> Any:
    return Explorer(toy_model, toy.scenes(3, seed=0))


@pytest.fixture
def client(explorer: Any) -> Iterator[TestClient]:
    with TestClient(page(explorer, TOKEN), base_url=f"http://127.0.0.1:8000/{TOKEN}/") as client:
        yield client


def test_every_file_of_the_front_end_is_part_of_its_module():
    assert sorted(frontend.PARTS) == sorted({path.stem for path in frontend.FOLDER.glob("*.js")} - {"page"})


def test_the_page_and_its_modules_are_served(client: TestClient):
    kinds = {"": "text/html", "explorer.js": "javascript", "page.js": "javascript", "explorer.css": "css"}
    for name, kind in kinds.items():
        answer = client.get(name)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["cache-control"] == "no-store"
    assert "http" not in client.get("").text  # nothing is fetched from elsewhere


def test_a_view_is_that_of_the_explorer(client: TestClient, explorer: Any):
    about = client.get("about").json()
    assert about == explorer.about()
    shown = client.post("view", json={"state": about["first"]}).json()
    assert shown == {"view": explorer.look(explorer.first()), "prompt": explorer.prompt(explorer.first())}
    again = client.post("view", json={"state": about["first"], "prompt": shown["prompt"]["key"]}).json()
    assert set(again) == {"view"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "0.0.0.0", ""])
def test_a_foreign_host_is_refused(client: TestClient, host: str):
    for answer in (client.get("", headers={"host": host}), client.post("view", headers={"host": host}, json={})):
        assert answer.status_code == 400
        assert "corelens" not in answer.text


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1:8000", "http://127.0.0.1:9999", "null"])
def test_a_foreign_origin_is_refused(client: TestClient, origin: str):
    state = client.get("about").json()["first"]
    assert client.post("view", headers={"origin": origin}, json={"state": state}).status_code == 403
    own = {"origin": "http://127.0.0.1:8000"}
    assert client.post("view", headers=own, json={"state": state}).status_code == 200


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
def test_requests_that_make_no_sense_are_refused_and_said(client: TestClient, body: bytes):
    answer = client.post("view", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_requests_are_read_no_further_than_they_may_be_long(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    from corelens.explorer import server

    sent = []

    def body() -> Iterator[bytes]:
        for _ in range(20):
            sent.append(None)
            yield b" " * 2**20

    answer = client.post("view", content=body())
    assert answer.status_code == 400
    assert answer.json()["error"] == f"the request cannot be read: it has more than {server.MOST_BODY >> 20} MiB."


def test_a_picture_is_uploaded_once_and_asked_about(client: TestClient):
    state = {"sample": "", "pictures": ["k"], "question": "what is red ?", "metric": "visual_share", "heads": ["L2H4"]}
    upload = {"k": {"name": "mine.png", "data": base64.b64encode(png()).decode()}}
    shown = client.post("view", json={"state": state, "uploads": upload}).json()
    (panel,) = shown["prompt"]["panels"]
    assert (panel["width"], panel["height"]) == (32, 32)
    again = client.post("view", json={"state": state}).json()
    assert again == shown
    bad = {"x": {"name": "mine.png", "data": base64.b64encode(b"no picture").decode()}}
    answer = client.post("view", json={"state": state | {"pictures": ["x"]}, "uploads": bad})
    assert answer.status_code == 400
    assert "no picture that can be read" in answer.json()["error"]


@pytest.fixture
def slow(explorer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server in which one state takes as long as its browser waits, and what happened there."""
    seen = {"running": 0, "together": 0, "stopped": threading.Event(), "began": threading.Event()}
    look = explorer.look

    def looking(state: Any, cancelled: Any) -> Any:
        seen["running"] += 1
        seen["together"] = max(seen["together"], seen["running"])
        seen["began"].set()
        try:
            while state.metric == "effect":
                time.sleep(0.01)
                look(explorer.first(), cancelled)
                explorer.prompts.prepared.clear()
            return look(state, cancelled)
        finally:
            seen["running"] -= 1
            if state.metric == "effect":
                seen["stopped"].set()

    monkeypatch.setattr(explorer, "look", looking)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(page(explorer, TOKEN), log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        seen["port"] = listening.getsockname()[1]
        try:
            yield seen
        finally:
            server.should_exit = True
            thread.join()


def test_a_request_whose_browser_has_gone_ends_and_others_wait_for_it(slow: Any, explorer: Any):
    first = explorer.first().json()

    def ask(state: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", slow["port"], timeout=60)
        connection.request("POST", f"/{TOKEN}/view", json.dumps({"state": state}))
        return connection

    endless = ask(first | {"metric": "effect"})
    assert slow["began"].wait(60)
    waiting = ask(first)
    time.sleep(0.3)
    assert not slow["stopped"].is_set()
    endless.close()
    assert slow["stopped"].wait(60)
    answer = waiting.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["view"]["before"]["text"] == "green"
    assert slow["together"] == 1
    waiting.close()


def test_the_server_listens_on_this_machine_alone_and_tells_its_address(explorer: Any, monkeypatch: pytest.MonkeyPatch):
    from corelens.explorer import server

    told, listened = [], []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: listened.extend(s.getsockname() for s in sockets))
    server.serve(explorer, 0, told.append)
    server.serve(explorer, 0, told.append)
    assert [host for host, _ in listened] == ["127.0.0.1", "127.0.0.1"]
    tokens = [address.split("/")[3] for address in told]
    assert len({*tokens}) == 2
    assert min(map(len, tokens)) >= 22
    assert told[0].startswith(f"http://127.0.0.1:{listened[0][1]}/")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        server.serve(explorer, taken.getsockname()[1], told.append)


# --- the command ---


def explored(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """What the command would serve."""
    served = []
    monkeypatch.setattr(page, "serve", lambda explorer, port, ready: served.append(explorer))
    monkeypatch.setattr(import_module("corelens.cli.explore"), "N_SCANNED", 4)
    result = CliRunner().invoke(app, ["explore", *arguments])
    assert result.exit_code == 0, result.output
    return served[0]


def test_the_command_shows_the_shipped_model_and_its_code_runs(monkeypatch: pytest.MonkeyPatch):
    explorer = explored(monkeypatch)
    assert len(explorer.samples) == 12
    assert len(explorer.core) == 5
    view = explorer.look(explorer.first())
    made: dict[str, Any] = {}
    exec(compile(view["code"], "view.py", "exec"), made)
    assert np.allclose(np.array(view["map"], float), made["values"], rtol=2e-3, atol=1e-5)
    assert made["scores"].top().heads == explorer.core


def test_the_command_asks_about_a_picture_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    (tmp_path / "a.png").write_bytes(png(64))
    explorer = explored(monkeypatch, "--image", str(tmp_path / "a.png"), "--question", "what is red ?")
    view = explorer.look(explorer.first())
    made: dict[str, Any] = {}
    exec(compile(view["code"], "view.py", "exec"), made)
    assert np.allclose(np.array(view["map"], float), made["values"], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "a.png"], "the picture needs a question"),
        (["--image", "missing.png", "--question", "why ?"], "there is no picture file 'missing.png'"),
        (["--model", "./missing"], "there is no model folder './missing'"),
        (["--scores", "missing.safetensors"], "missing.safetensors"),
        (["--port", "99999"], "65535"),
    ],
)
def test_mistakes_are_said_without_a_traceback(monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str):
    monkeypatch.setattr(import_module("corelens.cli.explore"), "N_SCANNED", 2)
    result = CliRunner().invoke(app, ["explore", *arguments])
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_what_a_model_itself_cannot_do_is_said(client: TestClient, explorer: Any, monkeypatch: pytest.MonkeyPatch):
    def look(state: Any, cancelled: Any) -> Any:
        raise RuntimeError("out of memory")

    first = explorer.first().json()
    monkeypatch.setattr(explorer, "look", look)
    answer = client.post("view", json={"state": first})
    assert (answer.status_code, answer.json()) == (400, {"error": "out of memory"})
