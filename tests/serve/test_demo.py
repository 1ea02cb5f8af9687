"""The demo in a browser, as people use it; no request leaves the machine."""

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import pixels, start_chromium
from PIL import Image

from dualcaps import ConfigError, DataError, ImageDataset, TrainConfig, create_model, fit, predict
from dualcaps.data.images import read_images
from dualcaps.explain.page import Subject
from dualcaps.explain.sweep import seen_ranges
from dualcaps.serve.demo import Style, build_demo, image_of_strokes, launch, require_gradio, style_of

KINDS = ("across", "down", "cross")


def bars(kind: int, random: np.random.Generator) -> np.ndarray:
    """A white bar across, down or both, on black."""
    image = np.zeros((28, 28), np.uint8)
    middle, half = random.integers(12, 17, 2), random.integers(1, 3)
    if kind != 1:
        image[middle[0] - half : middle[0] + half, 4:24] = 255
    if kind != 0:
        image[4:24, middle[1] - half : middle[1] + half] = 255
    return image


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """Two networks that tell bars apart."""
    random = np.random.default_rng(0)
    images = np.stack([bars(number % 3, random) for number in range(240)])
    data = ImageDataset.from_arrays(images, np.arange(240) % 3, KINDS)
    found = []
    for name in ("da-capsnet", "capsnet"):
        torch.manual_seed(0)
        model = create_model(name, data.image_shape, 3, width=16)
        how = TrainConfig(epochs=6, device="cpu", precision="float32")
        fit(model, data, how, out=tmp_path_factory.mktemp("runs") / name, quiet=True)
        assert (predict(model, data.test.images).argmax(dim=1) == data.test.labels).float().mean() > 0.9
        shown = [int((data.test.labels == label).nonzero()[0]) for label in range(3)]
        images = data.test.images[shown]
        found.append(Subject(f"run {name}", "bars", model, images, seen_ranges(model, data.test)))
    return found


@pytest.fixture(scope="module")
def address(subjects: list[Subject]) -> Iterator[str]:
    """A demo of the two networks, served."""
    pytest.importorskip("gradio")
    demo = build_demo(subjects, [f"test image: {name}" for name in KINDS])
    yield launch(demo, "127.0.0.1", None)
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_chromium() as chromium:
        yield chromium


@pytest.fixture
def open_demo(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the demo for one more person; the test fails if a page asks another machine for anything, or an error."""
    contexts, said = [], []

    def note(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:", "about:")):
            said.append(request.url)

    def open_demo(width: int = 1280) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.on("request", note)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.goto(address)
        explained(page, "test image: across")
        return page

    yield open_demo
    for context in contexts:
        context.close()
    assert said == []


def explained(page: Any, name: str) -> Any:
    """The frame with the explanation, once it is of the image of this name."""
    frame = page.frame_locator("#explanation iframe")
    frame.locator("#choice").get_by_text(name, exact=True).wait_for(timeout=60_000)
    return frame


def answered(page: Any, name: str, *expected: str) -> Any:
    """The frame as above, once the longest capsule of each run is of the class expected."""
    frame = explained(page, name)
    chosen = frame.locator(".bars button[aria-pressed=true] > span:first-child")
    pytest.importorskip("playwright.sync_api").expect(chosen).to_have_text(expected, timeout=60_000)
    return frame


def draw(page: Any, *strokes: tuple[float, float, float, float], steps: int = 3) -> None:
    """Draw lines with the mouse, each moved in steps; coordinates from 0 to 1."""
    page.get_by_role("tab", name="Draw").click()
    canvas = page.locator("#draw canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for left, top, right, bottom in strokes:
        page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=steps)
        page.mouse.up()


DOWN, ACROSS = (0.5, 0.1, 0.5, 0.9), (0.1, 0.5, 0.9, 0.5)


def test_a_drawing_is_explained_by_both_runs_and_follows_the_sliders(open_demo: Callable, subjects: list[Subject]):
    page = open_demo()
    frame = answered(page, "test image: across", "across", "across")
    for number, subject in enumerate(subjects):
        drawn = subject.model.reconstruct(subject.model(subject.images[:1]).poses)[0, 0].detach().numpy()
        assert np.abs(pixels(frame, f"#run{number}-drawn")[..., 0] - 255 * drawn).max() <= 1.0
    draw(page, DOWN)
    frame = answered(page, "drawing", "down", "down")
    assert frame.locator("h2").all_inner_texts() == ["run da-capsnet", "run capsnet"]
    seconds = frame.locator("#run0-drawn").evaluate(
        """canvas => {
            const before = canvas.toDataURL(), seconds = [];
            for (const slider of document.querySelectorAll('[id^=run0-dim]')) {
                const start = performance.now();
                slider.value = slider.max;
                slider.dispatchEvent(new Event('input'));
                seconds.push((performance.now() - start) / 1000);
            }
            return before === canvas.toDataURL() ? null : seconds;
        }"""
    )
    assert len(seconds) == 16
    assert sorted(seconds)[8] < 0.1
    draw(page, ACROSS)
    page.frame_locator("#explanation iframe").locator(".bars button[aria-pressed=true]").first.get_by_text(
        "cross", exact=True
    ).wait_for(timeout=60_000)
    page.get_by_role("button", name="Clear").click()
    page.locator("#explanation iframe").wait_for(state="detached", timeout=60_000)


def test_uploads_have_an_answer_or_a_message_and_the_page_lives_on(open_demo: Callable, tmp_path: Path):
    random = np.random.default_rng(0)
    large = np.kron(bars(1, random), np.ones((143, 190), np.uint8))  # 21 megapixels
    Image.fromarray(large).save(tmp_path / "large.jpg")
    assert large.size > 20e6
    (tmp_path / "text.txt").write_text("not an image")
    whole = io.BytesIO()
    Image.fromarray(large[::50, ::50]).save(whole, "PNG")
    (tmp_path / "broken.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    Image.fromarray(np.full((1, 10_000), 255, np.uint8)).save(tmp_path / "line.png")
    page = open_demo()
    page.get_by_role("tab", name="Upload").click()
    chosen = page.locator("#upload input[type=file]")

    def upload(name: str) -> None:
        if page.locator("#upload").get_by_label("Clear").count():
            page.locator("#upload").get_by_label("Clear").click()
            page.locator("#explanation iframe, #explanation [role=alert]").wait_for(state="detached", timeout=60_000)
        chosen.set_input_files(tmp_path / name)

    upload("large.jpg")
    answered(page, "large.jpg", "down", "down")
    for name in ("text.txt", "broken.png"):
        upload(name)
        page.get_by_role("alert").get_by_text(re.compile(f"^{name}: ")).wait_for(timeout=60_000)
    upload("line.png")
    explained(page, "line.png")
    draw(page, DOWN)
    answered(page, "drawing", "down", "down")


def test_fifty_quick_requests_end_with_the_last_one(open_demo: Callable):
    page = open_demo()
    draw(page, *[(0.5, 0.1 + step / 70, 0.5, 0.12 + step / 70) for step in range(50)], steps=1)
    answered(page, "drawing", "down", "down")


def test_two_people_see_their_own_images(open_demo: Callable):
    first, second = open_demo(), open_demo()
    draw(first, DOWN)
    draw(second, ACROSS)
    answered(second, "drawing", "across", "across")
    answered(first, "drawing", "down", "down")


def test_a_narrow_window_and_the_keyboard_are_enough(open_demo: Callable):
    page = open_demo(width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    frame = explained(page, "test image: across")
    assert frame.locator("html").evaluate("page => page.scrollWidth <= page.clientWidth")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, canvas, iframe')]
            .filter(node => node.offsetParent && !(node.getAttribute('aria-label') || node.title || node.labels?.length
                || node.innerText?.trim()))
            .map(node => node.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []
    page.get_by_label("A test image").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    frame = page.frame_locator("#explanation iframe")
    frame.locator("#choice").get_by_text(re.compile("test image: (down|cross)")).wait_for(timeout=60_000)
    frame.locator("#run1-drawn").wait_for()
    height = frame.locator("body").evaluate("body => body.scrollHeight")
    page.wait_for_function("height => document.querySelector('#explanation iframe').clientHeight >= height", arg=height)


def test_a_drawing_is_made_like_the_data(subjects: list[Subject]):
    strokes = np.zeros((280, 280), np.uint8)
    strokes[10:210, 20:40] = 255  # a bar in a corner
    model, style = subjects[0].model, style_of(subjects[0].images)
    assert style.dark
    assert style.fill == pytest.approx(20 / 28, abs=0.01)
    drawn = read_images([image_of_strokes(strokes, style)], (1, 28, 28))[0, 0]
    rows, columns = np.flatnonzero(drawn.max(axis=1) > 127), np.flatnonzero(drawn.max(axis=0) > 127)
    assert 18 <= len(rows) <= 22
    assert abs(rows.mean() - 13.5) <= 1
    assert abs(columns.mean() - 13.5) <= 1
    assert predict(model, torch.from_numpy(drawn)[None, None]).argmax() == 1
    thick = read_images([image_of_strokes(strokes, style._replace(ink=0.3))], (1, 28, 28))
    assert thick.mean() > 1.3 * drawn.mean()
    black_on_white = read_images([image_of_strokes(strokes, style._replace(dark=False))], (1, 28, 28))[0, 0]
    np.testing.assert_allclose(black_on_white.astype(int), 255 - drawn.astype(int), atol=1)
    assert not style_of(255 - subjects[0].images).dark
    assert style_of(subjects[0].images[:0]) == Style()
    with pytest.raises(DataError, match="nothing is drawn"):
        image_of_strokes(np.zeros((280, 280), np.uint8), style)


def test_without_gradio_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install 'dualcaps\[demo\]'"):
        require_gradio()
