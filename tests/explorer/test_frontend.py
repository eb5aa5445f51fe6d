"""The explorer in a real browser: clicks change the state, and pixels show the computed values.

Needs chromium (Debian: apt install chromium), which pip cannot install; .ci/run does.
"""

import base64
import io
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright
from plotly.colors import hex_to_rgb

from corelens import Head, HeadScores, HookedMLLM, Sample, toy
from corelens.explorer import Explorer
from corelens.explorer.server import create_app
from corelens.explorer.state import ExplorerState
from corelens.explorer.view import MAX_MAPS
from corelens.viz.styles import ABLATED, ACCENT, DARK, HEAT, LIGHT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def explorer(toy_model: HookedMLLM) -> Explorer:
    scores = HeadScores(head_values(), "retrieval attention mass", ("a",))
    return Explorer(toy_model, toy.scenes(3, seed=0), scores)


def head_values() -> torch.Tensor:
    """Scores by which L2H4, L2H6, L2H10, L3H0 and L3H14 are the top five percent."""
    values = torch.zeros(1, 6, 16)
    values[0, [2, 2, 2, 3, 3], [4, 6, 10, 0, 14]] = torch.linspace(1, 0.5, 5)
    return values


@contextmanager
def served(explorer: Explorer) -> Iterator[str]:
    """Serve an explorer, and give its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(
            uvicorn.Config(create_app(explorer, "token"), log_level="error", lifespan="off", ws="none")
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/token/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Iterator[str]:
    with served(explorer) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Continuous integration runs as root, under whom Chromium has no sandbox. Only our own page is opened.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Browser, address: str) -> Page:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(60_000)
    page.context.add_cookies([{"name": "corelens-tour", "value": "seen", "url": address}])
    page.errors = []  # pyright: ignore
    page.on("pageerror", lambda error: page.errors.append(str(error)))  # pyright: ignore
    page.on("console", lambda entry: page.errors.append(entry.text) if entry.type == "error" else None)  # pyright: ignore
    page.goto(address)
    settled(page)
    return page


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    page = opened(browser, address)
    yield page
    assert not page.errors  # pyright: ignore
    page.context.close()


def settled(page: Page) -> None:
    """Wait until the page shows the view of its state."""
    page.wait_for_selector(".corelens[aria-busy=false] .answers table")


def state(page: Page) -> dict[str, Any]:
    """The state, as the address holds it."""
    return json.loads(unquote(page.evaluate("location.hash").removeprefix("#view=")))


def drawn(page: Page) -> np.ndarray:
    """The pixels of the large picture."""
    page.wait_for_function("() => document.querySelector('.panels canvas').width > 300")
    return np.asarray(Image.open(io.BytesIO(page.locator(".panels canvas").first.screenshot())).convert("RGB"), float)


def after(page: Page) -> str:
    return page.locator(".answer.after strong").inner_text()


def place(page: Page, x: float, y: float) -> dict[str, float]:
    """Place on the canvas of a pixel of the original picture, 128 x 128."""
    box = page.locator(".panels canvas").first.bounding_box()
    assert box
    return {"x": x / 128 * box["width"], "y": y / 128 * box["height"]}


def drag(page: Page, start: tuple[float, float], end: tuple[float, float], shift: bool = False) -> None:
    box = page.locator(".panels canvas").first.bounding_box()
    assert box
    if shift:
        page.keyboard.down("Shift")
    page.mouse.move(box["x"] + start[0] / 128 * box["width"], box["y"] + start[1] / 128 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] / 128 * box["width"], box["y"] + end[1] / 128 * box["height"], steps=4)
    page.mouse.up()
    if shift:
        page.keyboard.up("Shift")
    settled(page)


def test_choosing_a_head_changes_the_map(page: Page, explorer: Explorer):
    before = drawn(page)
    page.click("[data-head=L0H3]")
    settled(page)
    assert state(page)["heads"] == ["L0H3"]
    assert np.abs(drawn(page) - before).mean() > 2
    expect(page.locator(".pictures .readout")).to_contain_text("L0H3")
    page.click("[data-head=L2H4]", modifiers=["Control"])
    settled(page)
    assert state(page)["heads"] == ["L2H4", "L0H3"]
    assert page.locator(".others figure").count() == 1


def overlay(page: Page, explorer: Explorer) -> np.ndarray:
    """Change of every patch's mean colour by what is drawn over the picture, of 0 to 255, [row column]."""
    picture = explorer.samples["scene-test-0-0"].images[0]
    patches = [
        np.asarray(image.resize((8, 8), Image.Resampling.BOX), float)
        for image in (picture, Image.fromarray(drawn(page).astype(np.uint8)))
    ]
    return np.abs(patches[1] - patches[0]).mean(-1)


def test_attended_patches_are_lit_and_the_others_look_as_they_are(page: Page, explorer: Explorer):
    (attention,) = explorer.view(explorer.first())["maps"]
    cells = np.array(attention["cells"]).reshape(8, 8)
    changed = overlay(page, explorer)
    assert changed[cells == cells.max()].min() > 40
    assert changed[cells < 0.001].max() < 12


def test_a_head_that_looks_elsewhere_lights_up_on_its_own_scale_alone(page: Page, explorer: Explorer):
    positions = [token["position"] for token in explorer.prompt(explorer.first())["tokens"][:-1]]
    states = [replace(explorer.first(), metric="visual_share", token=position) for position in positions]
    shares = np.array([explorer.view(one)["map"] for one in states])
    token, layer, head = np.unravel_index(np.argmin(shares), shares.shape)
    page.click(f".tokens [data-position='{positions[token]}']")
    page.click(f"[data-head=L{layer}H{head}]")
    settled(page)
    assert shares[token, layer, head] < 0.03
    expect(page.locator(".pictures .legend")).to_contain_text("100 % of a head's attention, on one patch")
    assert overlay(page, explorer).max() < 20
    page.click("text=Own scale")
    expect(page.locator(".pictures .legend")).to_contain_text("colours of heads cannot be compared")
    assert overlay(page, explorer).max() > 40


def test_the_colours_are_those_of_the_figures(page: Page):
    page.click("text=Ablate CoRe heads")
    settled(page)
    for heads, theme in (("light", LIGHT), ("dark", DARK)):
        page.emulate_media(color_scheme=heads)
        _, _, (_, highest) = theme.layout.colorscale.sequential
        colours = page.eval_on_selector_all(
            "[data-head]", "cells => cells.map(c => getComputedStyle(c).backgroundColor)"
        )
        assert "rgb({}, {}, {})".format(*hex_to_rgb(highest)) in colours
    ring = page.evaluate("getComputedStyle(document.querySelector('.heads .core'), '::before').borderTopColor")
    assert ring == "rgb({}, {}, {})".format(*hex_to_rgb(ACCENT))
    line = page.evaluate("getComputedStyle(document.querySelector('.answer.after')).borderLeftColor")
    assert line == "rgb({}, {}, {})".format(*hex_to_rgb(ABLATED))
    ramp = page.evaluate("getComputedStyle(document.querySelector('.pictures .ramp')).backgroundImage")
    assert HEAT[-1][1].replace(",", ", ") in ramp


def test_a_head_is_found_by_its_name_and_columns_are_numbered(page: Page):
    for head, number in enumerate(page.locator(".numbers .layer").all()):
        assert number.inner_text() == str(head)
        places = [place.bounding_box() for place in (number, page.locator(f"[data-head=L0H{head}]"))]
        below, above = [place for place in places if place]
        assert abs(below["x"] + below["width"] / 2 - above["x"] - above["width"] / 2) < 1
        assert below["y"] > above["y"]
    box = page.locator(".named input")
    box.fill("l3h14, L2H4")
    box.press("Enter")
    settled(page)
    assert state(page)["heads"] == ["L3H14", "L2H4"]
    box.fill("L9H9")
    box.press("Enter")
    assert "L9H9 is no head of this model" in box.evaluate("input => input.validationMessage")
    assert state(page)["heads"] == ["L3H14", "L2H4"]


def test_values_are_shown_under_the_pointer(page: Page, explorer: Explorer):
    drawn(page)
    page.locator(".panels canvas").first.hover(position=place(page, 104, 60))
    (attention_map,) = explorer.view(explorer.first())["maps"]
    expect(page.locator(".pictures .readout")).to_contain_text("row 3, column 6 · pixels 96 to 112, 48 to 64")
    expect(page.locator(".pictures .readout")).to_contain_text(
        f"{100 * attention_map['cells'][3 * 8 + 6]:.0f} % of {attention_map['head']}'s attention"
    )
    page.hover("[data-head=L2H4]")
    value = explorer.view(explorer.first())["map"][2][4]
    expect(page.locator(".map .readout")).to_contain_text(f"L2H4 · {100 * value:.2g} % of this head's attention")
    expect(page.locator(".map .readout")).to_contain_text("CoRe head")


def test_ablating_changes_the_answer_and_undoing_gives_it_back(page: Page):
    expect(page.locator(".answer.before strong")).to_have_text("green")
    page.click("text=Ablate CoRe heads")
    settled(page)
    assert after(page) != "green"
    assert sorted(state(page)["ablated"]) == ["L2H10", "L2H4", "L2H6", "L3H0", "L3H14"]
    assert page.locator(".chip").count() == 5
    page.click("text=Mean")
    settled(page)
    assert state(page)["how"] == "mean"
    page.click("text=Undo")
    page.click("text=Undo")
    settled(page)
    assert page.locator(".answer.after").count() == 0
    page.click("text=Redo")
    settled(page)
    assert after(page) != "green"
    page.click("text=Reset")
    settled(page)
    assert state(page)["ablated"] == []


def test_a_click_ablates_when_that_is_chosen(page: Page):
    page.click("[data-value=ablate]")
    page.click("[data-head=L1H3]")
    settled(page)
    assert state(page)["ablated"] == ["L1H3"]
    page.click("[data-head=L1H3]")
    settled(page)
    assert state(page)["ablated"] == []


def test_a_region_drawn_with_shift_is_hidden(page: Page):
    drag(page, (92, 50), (124, 80), shift=True)
    (region,) = state(page)["regions"]
    assert np.allclose(region["box"], [92, 50, 124, 80], atol=1)
    assert after(page) != "green"
    page.locator(".panels canvas").first.click(position=place(page, 100, 60), modifiers=["Shift"])
    settled(page)
    assert state(page)["regions"] == []
    page.locator(".panels canvas").first.click(position=place(page, 100, 60), modifiers=["Shift"])
    settled(page)
    (region,) = state(page)["regions"]
    assert region["box"] == [96, 48, 112, 64]


def test_marked_evidence_is_what_heads_are_coloured_by(page: Page):
    page.click("text=Mark evidence")
    drag(page, (2, 2), (30, 30))
    (region,) = state(page)["evidence"]
    assert np.allclose(region["box"], [2, 2, 30, 30], atol=1)
    page.hover("[data-head=L2H4]")
    expect(page.locator(".map .readout")).not_to_contain_text("L2H4 · 9")


def test_a_question_of_ones_own_colours_the_heads_and_a_button_marks_the_evidence(page: Page):
    def colours() -> set[str]:
        return set(page.eval_on_selector_all("[data-head]", "cells => cells.map(cell => cell.style.background)"))

    page.fill("input[type=text]", "which digit is red ?")
    page.keyboard.press("Enter")
    settled(page)
    assert len(colours()) > 9
    assert "" not in colours()
    expect(page.locator(".map [role=status]")).to_contain_text("No evidence is marked")
    expect(page.locator(".map select")).to_have_value("visual_share")
    page.select_option(".map select", "ram")
    expect(page.locator(".map select")).to_have_value("visual_share")
    page.click("text=Mark the evidence")
    expect(page.locator(".pictures .readout")).to_contain_text("Drag over the part of the picture")
    drag(page, (2, 38), (30, 62))
    expect(page.locator(".map [role=status]")).not_to_contain_text("No evidence is marked")
    expect(page.locator(".map select")).to_have_value("ram")
    assert len(colours()) > 9


def test_the_wall_shows_what_every_head_looks_at(page: Page, explorer: Explorer):
    page.click("[data-value=wall]")
    settled(page)
    assert state(page)["wall"]
    assert page.locator("[data-head] canvas").count() == 96
    picture = np.asarray(explorer.samples["scene-test-0-0"].images[0].resize((8, 8), Image.Resampling.BOX), float)
    for head in ("L2H4", "L0H3"):
        url = page.locator(f"[data-head={head}] canvas").evaluate("canvas => canvas.toDataURL()")
        thumbnail = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
        changed = np.abs(np.asarray(thumbnail.resize((8, 8), Image.Resampling.BOX), float) - picture).mean(-1)
        (attention,) = explorer.view(replace(explorer.first(), heads=(Head.parse(head),)))["maps"]
        cells = np.array(attention["cells"]).reshape(8, 8)
        assert np.corrcoef(changed.flatten(), np.sqrt(cells).flatten())[0, 1] > 0.8
    page.click("[data-head=L0H3]")
    settled(page)
    assert state(page)["heads"] == ["L0H3"]
    page.click("[data-value=values]")
    settled(page)
    assert page.locator("[data-head] canvas").count() == 0


def test_a_token_of_the_answer_can_be_clicked(page: Page, explorer: Explorer, monkeypatch: pytest.MonkeyPatch):
    ids = explorer.model.processor.tokenizer.convert_tokens_to_ids(["green", "red", "blue"])
    monkeypatch.setattr("corelens.explorer.compute.greedy_answers", lambda *args, **kwargs: [ids])  # the toy says one
    explorer.prompts.prepared.clear()
    page.reload()
    settled(page)
    tokens = page.locator(".answer.before .tokens button")
    expect(tokens).to_have_text(["green", "red", "blue"])
    expect(tokens.nth(0)).to_have_attribute("aria-pressed", "true")
    before = drawn(page)
    tokens.nth(2).click()
    settled(page)
    n = explorer.prompt(explorer.first())["tokens"][-1]["position"] + 1
    assert state(page)["token"] == n + 1
    expect(tokens.nth(2)).to_have_attribute("aria-pressed", "true")
    assert page.locator(".prompt .tokens [aria-pressed=true]").count() == 0
    assert np.abs(drawn(page) - before).mean() > 0.1
    tokens.nth(0).click()
    settled(page)
    assert state(page)["token"] is None
    explorer.prompts.prepared.clear()


def test_a_token_a_metric_and_an_order_can_be_chosen(page: Page):
    page.click(".tokens >> text=colour")
    settled(page)
    assert page.locator(".tokens [aria-pressed=true]").inner_text() == "colour"
    page.select_option("select", "entropy")
    settled(page)
    page.click("text=Highest first")
    settled(page)
    first = page.locator("[role=gridcell]").first
    assert "rank 1 of 96" in (first.get_attribute("data-readout") or "")


def test_everything_can_be_done_by_keyboard(page: Page):
    page.focus("[data-head=L2H10]")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.head") == "L3H9"
    page.keyboard.press("Enter")
    settled(page)
    assert state(page)["heads"] == ["L3H9"]
    page.keyboard.press("a")
    settled(page)
    assert state(page)["ablated"] == ["L3H9"]
    assert page.evaluate("document.activeElement.dataset.head") == "L3H9"
    page.locator("text=Highest first").focus()
    page.keyboard.press("Enter")
    settled(page)
    assert page.evaluate("document.activeElement.textContent") == "Highest first"
    page.focus(".panels canvas")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".pictures .readout")).to_contain_text("row 0, column 1")
    page.keyboard.press("Shift+Enter")
    settled(page)
    assert state(page)["regions"] == [{"media": 0, "box": [16, 0, 32, 16], "seconds": None}]
    page.keyboard.press("Control+z")
    settled(page)
    assert state(page)["regions"] == []


def test_every_control_says_what_it_does(page: Page):
    page.click("text=Ablate CoRe heads")
    settled(page)
    drag(page, (92, 50), (124, 80), shift=True)
    page.click("[data-head=L0H3]", modifiers=["Control"])
    settled(page)
    controls = page.locator(".corelens :is(button, select, input:not([type=file]), summary):not([data-head])")
    assert controls.count() > 50
    assert [control.inner_text() for control in controls.all() if not control.get_attribute("title")] == []


def test_words_are_explained_where_they_stand(page: Page):
    glossary = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()
    page.keyboard.press("?")
    expect(page.locator(".help")).to_be_visible()
    expect(page.locator(".help ol li")).to_have_count(5)
    expect(page.locator(".help tbody tr")).to_have_count(7)
    for place in page.locator(".help .word").all():
        place.hover()
        expect(page.locator(".tip")).to_be_visible()
        assert re.search(rf"\*\*[^*]*{place.get_attribute('data-word')}", glossary, re.IGNORECASE)
    page.keyboard.press("Escape")
    expect(page.locator(".help")).to_be_hidden()
    page.focus(".legend [data-word='CoRe heads']")
    expect(page.locator(".tip")).to_contain_text("scored highest")
    page.fill("input[type=text]", "")
    page.keyboard.type("what ?")
    expect(page.locator(".help")).to_be_hidden()


def test_the_first_visit_is_a_tour_of_four_steps(browser: Browser, address: str):
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    for is_first in (True, False):
        page = context.new_page()
        page.goto(address)
        settled(page)
        toured = []
        while page.locator(".tour").is_visible():
            card = page.locator(".tour").bounding_box()
            assert card
            assert card["y"] + card["height"] <= 1000  # in the window, wherever the page is scrolled to
            toured.append(page.locator(".toured").get_attribute("class"))
            page.click(".tour button >> nth=0")
        assert [one.split()[0] for one in toured if one] == ["prompt", "map", "pictures", "changes"] * is_first
        assert page.locator(".toured").count() == 0
    context.close()


def test_heads_that_do_nothing_and_hidden_evidence_are_named(
    page: Page, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
):
    notes = page.locator(".map [role=status]")
    expect(notes).to_be_empty()
    drag(page, (92, 50), (127, 80), shift=True)
    expect(notes).to_contain_text("The evidence is hidden from all heads")
    expect(page.locator(".map .legend")).to_contain_text("all heads: 0")
    page.click("[data-value=before]")
    expect(notes).to_be_empty()
    monkeypatch.setattr(explorer, "core", (Head(5, 0),))  # without which the answer stays
    page.click("[data-head=L0H3]")
    expect(notes).to_contain_text("The heads with a ring do nothing for this answer")


def test_a_picture_and_a_question_of_the_user_are_shown(page: Page, tmp_path: Path):
    Image.new("RGB", (160, 96), "red").save(tmp_path / "mine.png")
    page.set_input_files("input[type=file]", tmp_path / "mine.png")
    # The file is read before the state changes.
    page.wait_for_function('() => decodeURIComponent(location.hash).includes(\'"sample":""\')')
    settled(page)
    assert state(page)["sample"] == ""
    assert len(state(page)["pictures"]) == 1
    page.fill("input[type=text]", "which digit is red ?")
    page.keyboard.press("Enter")
    settled(page)
    expect(page.locator(".tokens button").first).to_have_text("which")
    shape = drawn(page).shape
    assert abs(shape[1] / shape[0] - 160 / 96) < 0.02
    expect(page.locator(".prompt .note")).to_be_hidden()
    page.fill("input[type=text]", "what is on the sofa ?")
    page.keyboard.press("Enter")
    settled(page)
    expect(page.locator(".prompt .note")).to_contain_text("does not know all of these words")


def test_a_file_that_is_no_picture_is_an_error_and_the_view_stays(browser: Browser, address: str, tmp_path: Path):
    page = opened(browser, address)
    (tmp_path / "notes.png").write_text("no picture")
    page.set_input_files("input[type=file]", tmp_path / "notes.png")
    expect(page.locator(".error")).to_contain_text("no picture that can be read")
    page.click("text=Undo")
    settled(page)
    expect(page.locator(".answer.before strong")).to_have_text("green")
    (tmp_path / "large.png").write_bytes(b"0" * (7 << 20))
    page.set_input_files("input[type=file]", tmp_path / "large.png")
    expect(page.locator(".error")).to_contain_text("At most 6 MiB")
    (tmp_path / "other.json").write_text("[]")
    page.set_input_files("input[type=file]", tmp_path / "other.json")
    expect(page.locator(".error")).to_contain_text("other.json is no saved view")
    page.context.close()


def test_a_second_tab_has_a_state_of_its_own_and_links_restore_one(page: Page, browser: Browser, address: str):
    page.click("text=Ablate CoRe heads")
    settled(page)
    second_tab = opened(browser, address)
    assert state(second_tab)["ablated"] == []
    second_tab.click("[data-head=L0H0]")
    settled(second_tab)
    linked = opened(browser, page.url)
    assert state(linked) == state(page)
    assert after(linked) == after(page)
    page.reload()
    settled(page)
    assert len(state(page)["ablated"]) == 5
    for tab in (second_tab, linked):
        assert not tab.errors  # pyright: ignore
        tab.context.close()


def test_a_page_under_another_host_name_is_rejected(browser: Browser, address: str):
    page = browser.new_page()
    # What DNS rebinding does: another name for this machine.
    answer = page.goto(address.replace("127.0.0.1", "rebound.localhost"))
    assert answer
    assert answer.status == 400
    assert "explorer" not in page.content()
    page.context.close()


def saved(page: Page, menu_item: str) -> Path:
    page.click("summary:has-text('Save')")
    with page.expect_download() as download:
        page.click(f"text={menu_item}")
    return download.value.path()


def test_a_saved_view_restores_everything_with_its_pictures(
    page: Page, browser: Browser, address: str, explorer: Explorer, tmp_path: Path
):
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "mine.png")
    page.set_input_files("input[type=file]", tmp_path / "mine.png")
    settled(page)
    page.click("[data-head=L4H4]")
    settled(page)
    view_file = tmp_path / "view.json"
    view_file.write_bytes(saved(page, "View (JSON)").read_bytes())
    assert json.loads(view_file.read_text())["state"] == state(page)
    explorer.prompts.uploads.clear()  # as if corelens had been started anew
    second_tab = opened(browser, address)
    second_tab.set_input_files("input[type=file]", view_file)
    settled(second_tab)
    expect(second_tab.locator(".pictures .readout")).to_contain_text("L4H4")
    assert state(second_tab) == state(page)
    second_tab.context.close()


def test_figures_code_and_pages_are_saved(page: Page, browser: Browser, tmp_path: Path):
    page.click("text=Ablate CoRe heads")
    settled(page)
    figure = Image.open(saved(page, "Figure (PNG)"))
    assert figure.width == 2800
    assert len({*map(tuple, np.asarray(figure.convert("RGB").resize((100, 60))).reshape(-1, 3))}) > 50
    assert "cl.ablate(cl.HeadSet.parse(" in saved(page, "Code (Python)").read_text()
    still = tmp_path / "still.html"
    still.write_bytes(saved(page, "Page (HTML)").read_bytes())
    assert len(still.read_bytes()) < 200_000
    offline = browser.new_context(offline=True).new_page()
    offline.goto(still.as_uri())
    expect(offline.locator(".answer.after strong")).to_have_text(after(page))
    offline.hover("[data-head=L2H4]")
    expect(offline.locator(".map .readout")).to_contain_text("L2H4")
    assert not offline.locator("header .tools").is_visible()
    offline.context.close()


def test_nothing_is_wider_than_a_narrow_page_and_everything_can_be_hit(page: Page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.click("text=Ablate CoRe heads")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    sizes = page.eval_on_selector_all(
        ".corelens :is(button, select, input, summary)",
        "all => all.filter(one => one.checkVisibility())"
        ".map(one => [one.outerHTML, one.offsetWidth, one.offsetHeight])",
    )
    assert len(sizes) > 96
    assert [html for html, width, height in sizes if min(width, height) < 24] == []


def test_picture_and_answer_stay_in_view_on_a_narrow_page(page: Page):
    page.set_viewport_size({"width": 380, "height": 800})
    for place in (".heads", ".map .readout"):
        page.locator(place).scroll_into_view_if_needed()
        for kept in (".panels canvas", ".answer.before strong"):
            box = page.locator(kept).bounding_box()
            assert box
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= 800
    page.click("[data-head=L0H3]")
    settled(page)
    assert state(page)["heads"] == ["L0H3"]


def test_many_heads_scroll_and_none_vanishes_unsaid(page: Page, explorer: Explorer):
    page.click("[data-value=add]")
    shown = 1
    for head in range(16):
        page.click(f"[data-head=L5H{head}]")
        shown += shown < MAX_MAPS
        page.wait_for_function(f"() => document.querySelectorAll('.heads .shown').length === {shown}")
    expect(page.locator(".notice")).to_contain_text("At most 16 heads are shown at a time")
    settled(page)
    assert state(page)["heads"][-1] == str(explorer.first().heads[0])
    assert page.locator(".others figure").count() == MAX_MAPS - 1
    assert page.locator(".others").evaluate("others => others.scrollWidth > others.clientWidth")


def test_a_strip_has_the_attention_on_every_picture_and_chooses_the_large_one(browser: Browser, toy_model: HookedMLLM):
    scenes = list(toy.scenes(3, seed=0))
    pictures, asked = [scene.images[0] for scene in scenes], scenes[1]
    region = replace(asked.evidence[0], media=1)
    explorer = Explorer(toy_model, [Sample("several", asked.question, asked.answer, pictures, region)])
    with served(explorer) as address:
        page = opened(browser, address)
        page.fill("[aria-label='Heads to show']", "L3H14, L0H13")
        page.click("text=Go")
        page.wait_for_selector(".others figure")
        maps = explorer.view(ExplorerState.parse(state(page)))["maps"]
        masses = np.mean([np.reshape(shown["cells"], (3, -1)).sum(1) for shown in maps], 0)
        items = page.locator(".strip button")
        shares = [float(text.split()[0]) / 100 for text in page.locator(".strip .share").all_inner_texts()]
        assert shares == pytest.approx(masses, rel=0.06)
        bars = items.evaluate_all("all => all.map((one) => Number(one.style.getPropertyValue('--share')))")
        assert bars == pytest.approx(masses / masses.max(), rel=0.01)
        titles = items.evaluate_all("all => all.map((one) => one.title)")
        assert [title.endswith("; with evidence") for title in titles] == [False, True, False]
        assert titles[0].startswith("picture 0: ")
        assert "the attention of 2 heads, on average" in titles[0]
        pressed = page.locator(".strip [aria-pressed=true]")
        assert pressed.get_attribute("data-panel") == str(most_attended(explorer))
        page.fill(".strength input", "0")
        page.click("[data-panel='0']")
        for number in range(3):
            assert pressed.get_attribute("data-panel") == str(number)
            side = drawn(page).shape[1::-1]
            errors = [np.abs(drawn(page) - np.asarray(picture.resize(side), float)).mean() for picture in pictures]
            assert np.argmin(errors) == number
            page.keyboard.press("ArrowRight")
        page.click("[data-value=wall]")
        page.wait_for_selector(".heads.wall canvas")
        assert not page.errors  # pyright: ignore
        page.context.close()


def most_attended(explorer: Explorer) -> int:
    """Number of the picture that gets most attention of the head that is shown at first."""
    (first,) = explorer.view(explorer.first())["maps"]
    return int(np.reshape(first["cells"], (3, -1)).sum(1).argmax())


def test_one_picture_needs_no_strip(page: Page):
    expect(page.locator(".strip")).to_be_hidden()


def test_fingers_draw_with_a_tool_and_scroll_without(page: Page):
    canvas = page.locator(".panels canvas").first
    assert canvas.evaluate("canvas => getComputedStyle(canvas).touchAction") == "pan-y"
    page.click("[data-value='knock out']")
    assert canvas.evaluate("canvas => getComputedStyle(canvas).touchAction") == "none"
    drag(page, (92, 50), (124, 80))
    assert len(state(page)["regions"]) == 1


def test_a_link_says_how_long_it_lives_and_a_page_is_offered_when_it_has_died(
    browser: Browser, address: str, tmp_path: Path
):
    page = opened(browser, address)
    page.context.grant_permissions(["clipboard-write"])
    page.click("text=Copy link")
    expect(page.locator(".notice")).to_contain_text("until corelens ends")
    page.route("**/view", lambda route: route.abort())  # what a process that ended looks like
    page.click("[data-head=L0H3]")
    expect(page.locator(".error")).to_contain_text("it has ended")
    with page.expect_download() as download:
        page.click(".error >> text=Save page")
    assert "<!doctype html>" in download.value.path().read_text()
    page.unroute("**/view")
    page.click("[data-head=L0H4]")
    settled(page)
    expect(page.locator(".error")).to_be_hidden()
    other = page.goto(address.replace("/token/", "/token-of-another-run/"))
    assert other
    assert other.status == 403
    assert "a link ends with its run" in page.content()
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page: Page, scheme: Literal["light", "dark"]):
    """Contrast of at least 4.5 to 1 (WCAG AA), for all text that is not switched off."""
    page.emulate_media(color_scheme=scheme)
    page.click("text=Ablate CoRe heads")
    settled(page)
    page.wait_for_timeout(400)
    low = page.evaluate(CONTRAST)
    assert not low


CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (rgb) => rgb.slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let ancestor = element; ancestor; ancestor = ancestor.parentElement) {
      const colour = rgba(getComputedStyle(ancestor).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll(".corelens *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || element.disabled || !element.checkVisibility()) continue;
    const [text, background] = [luminance(rgba(getComputedStyle(element).color)), luminance(behind(element))];
    const contrast = (Math.max(text, background) + 0.05) / (Math.min(text, background) + 0.05);
    if (contrast < 4.5) low.push(`${element.className} "${element.textContent}": ${contrast}`);
  }
  return low;
}"""
