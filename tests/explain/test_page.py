"""The page of explanations: what it holds, and what it does in a browser without a network."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import pixels, start_chromium

from dualcaps import DataError, ImageSplit, Network, create_model, predict
from dualcaps.explain.maps import MAPS
from dualcaps.explain.page import Subject, decoder_layers, explanation_page
from dualcaps.explain.sweep import seen_ranges


def network(name: str = "da-capsnet", **options: Any) -> Network:
    torch.manual_seed(0)
    model = create_model(name, (1, 28, 28), 3, **options).eval()
    if model.decoder is not None:  # larger weights, so that the pose matters
        model.decoder.layers[0].weight.data *= 20
        model.decoder.layers[2].weight.data *= 3
    model.classes = ("one", "</script><b>two", "three & more")
    return model


def images(count: int = 2) -> torch.Tensor:
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def content(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def array(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_the_page_holds_the_networks_results_and_nothing_from_elsewhere():
    model, shown = network(), images()
    page = explanation_page([Subject("a run", "about it", model, shown)], ["first.png", "<second>.png"])
    assert len(page) < 6e6
    assert not re.search(r"https?://|src=|@import|url\(", page)
    (run,) = content(page)["runs"]
    assert run["classes"] == list(model.classes)
    assert run["kinds"] == [kind for kind in MAPS if kind != "random"]
    parts = model(shown, intermediates=True)
    for number, entry in enumerate(run["entries"]):
        assert entry["name"] == ("first.png", "<second>.png")[number]
        assert (array(entry["pixels"], "u1") == shown[number].numpy().ravel()).all()
        np.testing.assert_allclose(entry["lengths"], predict(model, shown)[number], atol=1e-4)
        np.testing.assert_allclose(array(entry["poses"], "<f4"), parts.poses[number].detach().ravel(), atol=1e-5)
        routing = entry["routing"]
        couplings = array(routing["couplings"], "<f4").reshape(3, 3, -1)
        for iteration, step in enumerate(parts.iterations):
            np.testing.assert_allclose(couplings[iteration], step.couplings[number].detach(), atol=1e-5)
            lengths = step.parents[number].norm(dim=-1).detach()
            np.testing.assert_allclose(routing["lengths"][iteration], lengths, atol=1e-4)
        for found in entry["maps"].values():
            assert np.abs(array(found["maps"], "i1").astype(int)).max() == 127
            assert len(array(found["maps"], "i1")) == 3 * found["rows"] * found["columns"]


def test_parts_that_a_network_lacks_are_left_out():
    (run,) = content(explanation_page([Subject("cnn", "", network("cnn"), images(1))], ["x"]))["runs"]
    assert run["decoder"] is None
    assert "routing" not in run["entries"][0]
    assert run["kinds"] == ["gradient", "smoothgrad", "grad-cam"]
    with pytest.raises(DataError, match="1 images for 2 names"):
        explanation_page([Subject("cnn", "", network("cnn"), images(1))], ["x", "y"])


def test_decoders_are_left_to_the_window_around_the_page():
    subjects = [Subject(name, "", network(name), images(1)) for name in ("da-capsnet", "cnn")]
    page = explanation_page(subjects, ["x"], with_decoders=False)
    assert len(page) < 100_000
    assert [run["decoder"] for run in content(page)["runs"]] == [True, None]
    layers = decoder_layers(subjects[0].model)
    assert layers is not None
    assert [layer["activation"] for layer in layers] == ["relu", "tanh", "sigmoid"]
    assert decoder_layers(subjects[1].model) is None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_chromium() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens HTML from a file, without a network; the test fails if the page says anything or asks for anything."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)

    def open_page(html: str, width: int = 1280) -> Any:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    context.close()
    assert [text for text in said if not text.startswith("data:")] == []


def test_a_slider_changes_the_reconstruction_as_pytorch_does(open_page: Callable[..., Any]):
    model, shown = network(), images()
    ranges = seen_ranges(model, ImageSplit(images(20), torch.arange(20) % 3))
    page = open_page(explanation_page([Subject("a run", "", model, shown, ranges)], ["first", "second"]))
    page.locator("#image").select_option("1")
    page.locator(".bars button").nth(2).click()
    poses = model(shown[1:]).poses.detach()
    for dim, share in ((None, 0), (0, 0.0), (15, 1.0)):
        if dim is not None:
            slider = page.locator(f"#run0-dim{dim}")
            low, high = (float(slider.get_attribute(side)) for side in ("min", "max"))
            slider.evaluate(
                "(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", low + share * (high - low)
            )
            poses[0, 2, dim] = float(slider.input_value())
        expected = 255 * model.reconstruct(poses, torch.tensor([2]))[0, 0].detach().numpy()
        assert np.abs(pixels(page, "#run0-drawn")[..., 0] - expected).max() <= 1.0
    milliseconds = page.evaluate(
        "() => { const start = performance.now(); for (let i = 0; i < 20; i++) runs[0].drawPose();"
        " return (performance.now() - start) / 20; }"
    )
    assert milliseconds < 30
    page.get_by_role("button", name="Reset the pose").click()
    expected = 255 * model.reconstruct(model(shown[1:]).poses, torch.tensor([2]))[0, 0].detach().numpy()
    assert np.abs(pixels(page, "#run0-drawn")[..., 0] - expected).max() <= 1.0


@pytest.mark.parametrize("width", [400, 1280])
def test_maps_are_chosen_and_nothing_is_wider_than_the_window(open_page: Callable[..., Any], width: int):
    model, other = network(), network("capsnet", iterations=1)
    subjects = [Subject("one run", "", model, images()), Subject("another run", "", other, images())]
    page = open_page(explanation_page(subjects, ["first", "second"]), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("article").count() == 2
    assert page.get_by_text("</script><b>two").count() == 2  # the name, literally
    before = pixels(page, "#run0-map")
    page.locator("#run0-kind").select_option("gradient")
    assert (pixels(page, "#run0-map") != before).any()
    page.locator("#run0-opacity").fill("0")
    plain = pixels(page, "#run0-map")
    assert (plain[..., 0] == images()[0, 0].numpy()).all()
    assert (plain[..., 0] == plain[..., 2]).all()
    page.locator("#run0-opacity").focus()
    page.keyboard.press("End")
    assert (pixels(page, "#run0-map")[..., 0] != plain[..., 0]).any()
    unlabelled = "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    assert page.evaluate(unlabelled) == 0
