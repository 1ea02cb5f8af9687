"""Chromium for tests of pages."""

import base64
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def start_chromium() -> Iterator[Any]:
    """A headless browser that asks for nothing by itself; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(quiet))
        yield chromium
        chromium.close()


def pixels(page: Any, canvas: str) -> np.ndarray:
    """What a canvas shows: [height, width, 3], 0 to 255."""
    picture = page.locator(canvas).evaluate("c => c.toDataURL('image/png')").partition(",")[2]
    return np.array(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")).astype(int)
