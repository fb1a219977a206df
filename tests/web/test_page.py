"""What a user does with the page, in a real browser against a real server."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pocketdx_runtime.image import decode
from pocketdx_runtime.image import resize as pillow_resize
from pocketdx_runtime.manifest import Thresholds
from pocketdx_serve.keys import KeyRing

if TYPE_CHECKING:
    from web_stage import Bundle, Screen, Served, Stage

Open = Callable[..., "Screen"]
TOLERANCE = 1e-4
"""Of probabilities, as in parity; what a photograph's own decoder may add is allowed for where there is one."""


def python_says(bundle: Bundle, path: Path) -> list[float]:
    return list(bundle.model.diagnose([path])[0].probabilities.values())


def test_a_chosen_file_is_examined_on_this_device_and_nothing_is_sent(
    screen: Open, server: Served, bundle: Bundle, pictures: dict[str, Path]
) -> None:
    page = screen(server.url)
    before = len(server.posts())
    page.add(pictures["plain.png"])
    text = page.card("plain.png")
    diagnosis = bundle.model.diagnose([pictures["plain.png"]])[0]
    assert f"{diagnosis.label} {diagnosis.probability:.1%}" in text
    assert f"{diagnosis.label} is the most probable of 2 labels." in text
    assert "Examined on this device in " in text
    assert "tiny · fp32" in text
    assert server.posts()[before:] == []
    assert page.errors == []


def test_both_places_answer_as_python_does_for_every_kind_of_file(
    screen: Open, server: Served, bundle: Bundle, pictures: dict[str, Path]
) -> None:
    page = screen(server.url)
    page.add(*pictures.values())
    here = {name: page.probabilities(name) for name in pictures}
    page.page.get_by_role("button", name="Remove all").click()
    page.choose_mode("On the server")
    page.add(*pictures.values())
    for name, path in pictures.items():
        expected = python_says(bundle, path)
        assert page.probabilities(name) == pytest.approx(expected, abs=1e-6), name
        # JPEG decoders may differ by a grey level, alpha is rounded in another way.
        inexact = name.endswith(".jpg") or name == "alpha.png"
        assert here[name] == pytest.approx(expected, abs=1e-3 if inexact else TOLERANCE), name
        assert "Examined on the server" in page.card(name)


def test_several_files_are_answered_in_their_order(screen: Open, server: Served, pictures: dict[str, Path]) -> None:
    page = screen(server.url)
    page.add(*[pictures[name] for name in ("small.png", "photo.jpg", "plain.png")])
    assert page.page.locator("#cards h3").all_inner_texts() == ["small.png", "photo.jpg", "plain.png"]
    page.page.get_by_role("button", name="Remove photo.jpg").click()
    assert page.page.locator("#cards h3").all_inner_texts() == ["small.png", "plain.png"]
    page.page.get_by_role("button", name="Remove all").click()
    page.expect(page.page.get_by_text("None yet.")).to_be_visible()


def test_a_photo_is_taken_with_the_camera(screen: Open, server: Served) -> None:
    page = screen(server.url, permissions=["camera"])
    page.page.get_by_role("button", name="Take a photo").click()
    page.page.get_by_role("button", name="Use this picture").click()
    page.expect(page.page.locator("#cards > li:not([aria-busy])")).to_have_count(1)
    assert "Examined on this device" in page.card("Photo 1")
    assert page.page.locator("#camera").is_hidden()
    assert page.page.locator("#video").evaluate("video => video.srcObject") is None  # the camera is off


def test_a_camera_that_may_not_be_used_is_explained(screen: Open, server: Served) -> None:
    page = screen(server.url)
    denied = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError'))"
    page.page.evaluate(f"() => {{ {denied}; }}")
    page.page.get_by_role("button", name="Take a photo").click()
    page.expect(page.page.locator("#camera-note")).to_contain_text("may not use the camera")
    page.page.keyboard.press("Escape")
    page.expect(page.page.locator("#camera")).to_be_hidden()


def test_after_one_visit_it_works_without_any_server(stage: Stage, bundle: Bundle, pictures: dict[str, Path]) -> None:
    browser = stage.browser()
    with stage.serving(bundle) as served:
        page = stage.screen(browser).open(served.url)
        page.works_offline()
    page.page.reload()
    page.wait_for("ready")
    page.expect(page.page.locator("#status-text")).to_contain_text("There is no connection")
    page.add(pictures["plain.png"])
    assert page.probabilities("plain.png") == pytest.approx(python_says(bundle, pictures["plain.png"]), abs=TOLERANCE)
    page.page.get_by_role("radio", name="On the server").check()
    page.wait_for("trouble")
    assert "cannot be reached" in page.page.inner_text("#status")


def test_the_model_is_downloaded_once(stage: Stage, bundle: Bundle) -> None:
    browser = stage.browser()
    with stage.serving(bundle) as served:
        stage.screen(browser).open(served.url)
        stage.screen(browser).open(served.url)
        got = [path for method, path in served.requests if method == "GET"]
    assert got.count("/v1/model/file") == 1
    assert got.count("/v1/model/golden") == 1
    assert sum(path.endswith(".wasmz") for path in got) == 1


def test_another_model_on_the_server_replaces_the_one_on_the_device(
    stage: Stage, bundle: Bundle, tmp_path: Path
) -> None:
    browser = stage.browser()
    with stage.serving(bundle) as served:
        page = stage.screen(browser).open(served.url)
        port = int(served.url.rsplit(":", 1)[1])
    other = stage.bundle(tmp_path, name="second", seed=4)
    with stage.serving(other, port=port):
        page.page.reload()
        page.wait_for("ready")
        assert "second" in page.page.inner_text("#model-line")
        kept = page.page.evaluate("async () => (await (await caches.open('pocketdx-files-1')).keys()).map(k => k.url)")
    models = [url for url in kept if url.endswith(".onnx")]
    assert [url.rsplit("/", 1)[1] for url in models] == [f"{other.model.digest}.onnx"]


def test_a_broken_file_is_refused_with_the_reason_and_the_next_one_answered(
    screen: Open, server: Served, pictures: dict[str, Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(pictures["photo.jpg"].read_bytes()[:5000])
    text = tmp_path / "letter.png"
    text.write_text("Dear doctor")
    damaged = bytearray(pictures["plain.png"].read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    flipped = tmp_path / "flipped.png"
    flipped.write_bytes(damaged)
    page = screen(server.url)
    page.add(cut, text, flipped, pictures["plain.png"])
    assert "The JPEG file is cut off or damaged" in page.card("cut.jpg")
    assert "not a picture that can be read here" in page.card("letter.png")
    assert "The PNG picture is damaged" in page.card("flipped.png")
    assert "Examined on this device" in page.card("plain.png")
    assert page.page.locator("#announcer").inner_text().startswith("plain.png: ")
    page.choose_mode("On the server")
    page.page.get_by_role("article", name="cut.jpg").get_by_role("button", name="Try again on the server").click()
    page.expect(page.page.get_by_role("article", name="cut.jpg")).to_contain_text("The image is cut off")


def test_a_server_that_goes_away_is_said_and_may_be_tried_again(
    stage: Stage, bundle: Bundle, pictures: dict[str, Path]
) -> None:
    with stage.serving(bundle) as served:
        page = stage.screen(stage.browser()).open(served.url)
        page.choose_mode("On the server")
        port = int(served.url.rsplit(":", 1)[1])
    page.add(pictures["plain.png"])
    assert "The server cannot be reached" in page.card("plain.png")
    with stage.serving(bundle, port=port):
        page.page.get_by_role("button", name="Try again on the server").click()
        page.expect(page.page.get_by_role("article", name="plain.png")).to_contain_text("Examined on the server")


def test_a_picture_added_for_this_device_is_never_sent_by_a_switch(
    screen: Open, server: Served, pictures: dict[str, Path]
) -> None:
    page = screen(server.url)
    before = len(server.posts())
    page.page.set_input_files("#files", [pictures["photo.jpg"], pictures["plain.png"]])
    page.choose_mode("On the server")
    page.expect(page.page.locator("#cards > li:not([aria-busy])")).to_have_count(2)
    assert "on this device" in page.card("plain.png")
    assert server.posts()[before:] == []


# --- When the device is not to be trusted -----------------------------------------------------------------------------


def test_a_model_that_answers_otherwise_here_is_not_used(
    stage: Stage, tmp_path: Path, pictures: dict[str, Path]
) -> None:
    made = stage.bundle(tmp_path)
    arrays = dict(np.load(made.golden))
    with stage.serving(made) as served:
        arrays["logits"] = arrays["logits"] + np.float32(0.01)
        wrong = tmp_path / "wrong.npz"
        np.savez(wrong, **arrays)
        browser = stage.browser()
        browser.route("**/v1/model/golden", lambda route: route.fulfill(body=wrong.read_bytes()))
        page = stage.screen(browser).open(served.url, "trouble")
        assert "logits off by 0.01" in page.page.inner_text("#status")
        page.add(pictures["plain.png"])
        assert "No answer. On this device the model does not answer" in page.card("plain.png")
        assert served.posts() == []  # refused, and not sent elsewhere instead
        page.page.get_by_role("button", name="Use the server instead").click()
        page.wait_for("ready")
        page.page.get_by_role("button", name="Try again on the server").click()
        page.expect(page.page.get_by_role("article")).to_contain_text("Examined on the server")


def test_without_golden_inputs_the_model_is_not_used_here(stage: Stage, tmp_path: Path) -> None:
    made = stage.bundle(tmp_path)
    made.golden.unlink()
    with stage.serving(made) as served:
        page = stage.screen(stage.browser()).open(served.url, "trouble")
        assert "no test pictures (golden.npz)" in page.page.inner_text("#status")


def test_a_model_with_another_digest_than_the_server_says_is_not_used(stage: Stage, server: Served) -> None:
    browser = stage.browser()

    def another(route: Any) -> None:
        info = route.fetch().json()
        route.fulfill(json={**info, "digest": "0" * 64})

    browser.route(re.compile(r"/v1/model$"), another)
    page = stage.screen(browser).open(server.url, "trouble")
    assert "its digest differs" in page.page.inner_text("#status")


def test_a_browser_that_changes_pixels_is_refused(stage: Stage, server: Served) -> None:
    noise = """
      const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
      OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...a) {
        const image = read.apply(this, a); image.data[4] ^= 1; return image;
      };
    """
    browser = stage.browser(service_workers="block")
    browser.route(
        re.compile(r"/assets/worker-.*\.js$"),
        lambda route: route.fulfill(
            body=noise + route.fetch().text(),
            content_type="text/javascript",
            headers={"Cross-Origin-Embedder-Policy": "require-corp"},
        ),
    )
    page = stage.screen(browser).open(server.url, "trouble")
    assert "changes the pixels" in page.page.inner_text("#status")


def test_without_the_engine_the_page_says_so_and_uses_the_server(
    stage: Stage, bundle: Bundle, tmp_path: Path, pictures: dict[str, Path]
) -> None:
    bare = tmp_path / "web"
    shutil.copytree(stage.web, bare, ignore=shutil.ignore_patterns("engine"))
    with stage.serving(bundle, web=bare) as served:
        page = stage.screen(stage.browser()).open(served.url)
        assert page.page.get_by_role("radio", name="On this device").is_disabled()
        page.expect(page.page.locator("#engine-note")).to_be_visible()
        page.add(pictures["plain.png"])
        assert "Examined on the server" in page.card("plain.png")


# --- What the server may say ------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_where_the_server_wants_one(stage: Stage, bundle: Bundle, pictures: dict[str, Path]) -> None:
    with stage.serving(bundle, keys=KeyRing(text="ward-7 open-sesame-open-sesame")) as served:
        page = stage.screen(stage.browser()).open(served.url, None)
        for key in ("a-wrong-key-of-some-length", "open-sesame-open-sesame"):
            page.page.get_by_label("API key").fill(key)
            page.page.get_by_role("button", name="Use the key").click()
        page.wait_for("ready")
        page.choose_mode("On the server")
        page.add(pictures["plain.png"])
        assert "Examined on the server" in page.card("plain.png")


def test_without_the_key_nothing_is_answered_and_it_may_be_given_later(stage: Stage, bundle: Bundle) -> None:
    with stage.serving(bundle, keys=KeyRing(text="ward-7 open-sesame-open-sesame")) as served:
        page = stage.screen(stage.browser()).open(served.url, None)
        page.page.get_by_role("button", name="Cancel").click()
        page.wait_for("trouble")
        page.expect(page.page.locator("#status")).to_contain_text("The server asks for a key")
        # By the keyboard: the dialog that a click opens may be there before the click is seen to have arrived.
        page.page.get_by_role("button", name="Try again").press("Enter")
        page.page.get_by_label("API key").fill("open-sesame-open-sesame")
        page.page.keyboard.press("Enter")
        page.wait_for("ready")


def test_one_of_several_models_is_chosen(
    stage: Stage, bundle: Bundle, tmp_path: Path, pictures: dict[str, Path]
) -> None:
    second = stage.bundle(tmp_path, name="second", seed=4)
    with stage.serving(bundle, second) as served:
        page = stage.screen(stage.browser()).open(served.url)
        page.page.get_by_label("Model", exact=True).select_option("second")
        page.expect(page.page.locator("#model-line")).to_contain_text("second")
        page.wait_for("ready")
        page.add(pictures["plain.png"])
        assert "second · fp32" in page.card("plain.png")
        expected = python_says(second, pictures["plain.png"])
        assert page.probabilities("plain.png") == pytest.approx(expected, abs=TOLERANCE)
        page.choose_mode("On the server")
        page.page.get_by_role("button", name="Remove plain.png").click()
        page.add(pictures["plain.png"])
        assert page.probabilities("plain.png") == pytest.approx(expected, abs=1e-6)


def test_the_servers_own_reason_is_shown(stage: Stage, server: Served, pictures: dict[str, Path]) -> None:
    browser = stage.browser()
    body = {
        "title": "The server is full",
        "status": 503,
        "detail": "64 images are waiting already",
        "reason": "overloaded",
    }
    browser.route(
        "**/v1/diagnose",
        lambda route: route.fulfill(
            status=503, headers={"Retry-After": "2"}, content_type="application/problem+json", body=json.dumps(body)
        ),
    )
    page = stage.screen(browser).open(server.url)
    page.choose_mode("On the server")
    page.add(pictures["plain.png"])
    assert "The server is full: 64 images are waiting already. Try again in 2 s." in page.card("plain.png")


def test_thresholds_are_marked_and_give_the_reasons(stage: Stage, tmp_path: Path, pictures: dict[str, Path]) -> None:
    made = stage.bundle(tmp_path, thresholds=Thresholds((1.0, 0.02), "youden on validation"))
    with stage.serving(made) as served:
        page = stage.screen(stage.browser()).open(served.url)
        page.add(pictures["plain.png"])
        text = page.card("plain.png")
        assert "PNEUMONIA, at " in text
        assert "reaches its threshold of 2.0% (youden on validation)." in text
        assert page.page.locator(".mark").count() == 2
        assert page.page.locator(".mark").nth(1).evaluate("mark => mark.style.left") == "2%"


def test_a_heatmap_is_laid_over_the_picture_where_the_model_has_one(
    stage: Stage, tmp_path: Path, pictures: dict[str, Path]
) -> None:
    made = stage.bundle(tmp_path, heatmap=True)
    with stage.serving(made) as served:
        page = stage.screen(stage.browser()).open(served.url)
        page.add(pictures["photo.jpg"])
        slider = page.page.get_by_role("slider")
        page.expect(slider).to_have_accessible_name(re.compile("Evidence for (NORMAL|PNEUMONIA)"))
        heat = page.page.locator("canvas.heat")
        slider.fill("80")
        assert heat.evaluate("canvas => canvas.style.opacity") == "0.8"
        boxes = page.page.locator(".stack canvas").evaluate_all(
            "all => all.map(c => c.getBoundingClientRect().toJSON())"
        )
        assert boxes[0]["width"] == pytest.approx(boxes[1]["width"], abs=1)
        assert boxes[0]["height"] == pytest.approx(boxes[1]["height"], abs=1)
        assert boxes[0]["width"] / boxes[0]["height"] == pytest.approx(4 / 3, abs=0.02)
        # The brightest place is where the model's own map has its maximum.
        label = str(slider.evaluate("s => s.labels[0].textContent")).split()[-1]
        pixels = pillow_resize(decode(pictures["photo.jpg"]), 32)[None]
        expected = made.model.run(pixels, ["heatmap"])["heatmap"][0, ["NORMAL", "PNEUMONIA"].index(label)]
        drawn = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
        alpha = heat.evaluate(drawn)[3::4]
        if expected.max() > 0:
            assert expected.ravel()[int(np.argmax(alpha))] == pytest.approx(expected.max(), rel=0.02)


def test_a_model_without_a_heatmap_shows_no_slider(screen: Open, server: Served, pictures: dict[str, Path]) -> None:
    page = screen(server.url)
    page.add(pictures["plain.png"])
    assert page.page.get_by_role("slider").count() == 0


# --- For everyone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen_and_targets_are_large_enough(
    screen: Open, server: Served, pictures: dict[str, Path], tmp_path: Path, width: int
) -> None:
    long = tmp_path / f"{'a-very-long-name' * 8}.png"
    long.write_bytes(pictures["plain.png"].read_bytes())
    page = screen(server.url, viewport={"width": width, "height": 740})
    page.add(long, pictures["photo.jpg"])
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    buttons = page.page.locator("button:visible, .modes label:visible").all()
    assert len(buttons) >= 6
    for each in buttons:
        box = each.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 24  # WCAG 2.2, 2.5.8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(
    screen: Open, server: Served, pictures: dict[str, Path], tmp_path: Path, scheme: str
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no")
    page = screen(server.url, color_scheme=scheme)
    page.add(pictures["plain.png"], broken)
    found = page.page.evaluate(CONTRAST)
    assert len(found) > 20
    poor = [each for each in found if each["ratio"] < 4.5]
    assert poor == []
    background = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    darkness = sum(int(each) for each in re.findall(r"\d+", background)[:3])
    assert (darkness < 200) == (scheme == "dark")


CONTRAST = """() => {
  const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest('.sr-only, .skip, :disabled')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    found.push({ text: e.textContent.slice(0, 30), ratio: (Math.max(a, b) + .05) / (Math.min(a, b) + .05) });
  }
  return found;
}"""


def test_the_keyboard_alone_suffices(screen: Open, server: Served, pictures: dict[str, Path]) -> None:
    page = screen(server.url)
    keyboard = page.page.keyboard
    focused = "document.activeElement.textContent.trim() || document.activeElement.value"
    order = []
    with page.page.expect_file_chooser() as chooser:
        for _ in range(4):
            keyboard.press("Tab")
            order.append(page.page.evaluate(focused))
        assert order == ["Skip to the answers", "device", "Take a photo", "Choose files"]
        keyboard.press("Enter")
    chooser.value.set_files(pictures["plain.png"])
    page.expect(page.page.get_by_role("article")).to_contain_text("Examined on this device")
    keyboard.press("Shift+Tab")
    keyboard.press("Shift+Tab")
    keyboard.press("ArrowRight")
    page.expect(page.page.get_by_role("radio", name="On the server")).to_be_checked()
    page.wait_for("ready")
    outline = page.page.locator(".modes label:has(:checked)").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"


def test_a_screen_reader_gets_names_states_and_answers(screen: Open, server: Served, pictures: dict[str, Path]) -> None:
    page = screen(server.url)
    page.add(pictures["plain.png"])
    tree = page.page.locator("body").aria_snapshot()
    for each in ('heading "PocketDx" [level=1]', 'radio "On this device" [checked]', "status:", 'article "plain.png"'):
        assert each in tree, tree
    assert 'img "The picture plain.png"' in tree
    assert re.search(r"plain\.png: \w+, \d+\.\d%\.", page.page.inner_text("#announcer"))
    nameless = page.page.evaluate(
        "[...document.querySelectorAll('button, input:not([hidden]), select')]"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).length"
    )
    assert nameless == 0


def test_the_standing_note_says_that_it_is_no_medical_device(screen: Open, server: Served) -> None:
    page = screen(server.url, viewport={"width": 360, "height": 640})
    note = page.page.locator("#notice")
    page.expect(note).to_be_in_viewport()
    assert note.inner_text() == "Not a medical device. Research use only."


def test_it_can_be_installed(screen: Open, server: Served) -> None:
    page = screen(server.url)
    page.works_offline()
    session = page.page.context.new_cdp_session(page.page)
    errors = session.send("Page.getInstallabilityErrors")["installabilityErrors"]
    assert [each["errorId"] for each in errors] in ([], ["in-incognito"])  # as test browsers are
    assert session.send("Page.getAppManifest")["errors"] == []
