"""The HTTP service as a client sees it."""

import gc
import io
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dualcaps import ConfigError, create_model, predict
from dualcaps.explain.rejection import set_thresholds, signals
from dualcaps.serve.http import Limits, build_service

testclient = pytest.importorskip("fastapi.testclient")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = create_model("capsnet", (1, 12, 12), 3, width=8).eval()
    network.classes = ("cat", "dog", "ünicorn")
    return network


def png(seed: int, side: int = 12) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def lengths_of(model: Any, content: bytes) -> list[float]:
    image = np.asarray(Image.open(io.BytesIO(content)))
    return predict(model, torch.tensor(image)[None, None])[0].tolist()


@pytest.fixture
def client(model) -> Iterator[Any]:
    with testclient.TestClient(build_service(model, limits=Limits(bytes=40_000, images=3, queue=8))) as client:
        yield client


def test_a_service_that_has_ended_leaves_no_network_in_memory():
    network = create_model("capsnet", (1, 12, 12), 3, width=8).eval()
    kept = weakref.ref(network)
    with testclient.TestClient(build_service(network)) as client:
        assert client.post("/predict", content=png(0)).status_code == 200
    del network, client
    gc.collect()
    assert kept() is None


def test_one_image_or_many_are_answered(client, model):
    (answer,) = client.post("/predict", content=png(0)).json()
    assert "probability" not in answer
    wanted = lengths_of(model, png(0))
    assert list(answer["lengths"]) == ["cat", "dog", "ünicorn"]
    np.testing.assert_allclose(list(answer["lengths"].values()), wanted, atol=1e-4)
    assert answer["class"] == model.classes[int(np.argmax(wanted))]
    files = [("images", (f"{seed}.png", png(seed))) for seed in range(2)] + [("images", ("notes.txt", b"text"))]
    said = client.post("/predict", files=files)
    assert said.status_code == 200
    first, second, text = said.json()
    assert [part["name"] for part in (first, second, text)] == ["0.png", "1.png", "notes.txt"]
    np.testing.assert_allclose(list(second["lengths"].values()), lengths_of(model, png(1)), atol=1e-4)
    assert text["error"].startswith("notes.txt: ")
    assert "class" not in text


def test_probabilities_are_those_of_the_temperature(model):
    with testclient.TestClient(build_service(model, temperature=0.2)) as client:
        (answer,) = client.post("/predict", content=png(0)).json()
    chances = np.exp(np.divide(lengths_of(model, png(0)), 0.2))
    assert answer["probability"] == pytest.approx(max(chances / chances.sum()), abs=1e-4)


def test_what_cannot_be_answered_has_its_status_code(client):
    assert client.post("/predict").status_code == 400
    assert client.post("/predict", content=b"not an image").status_code == 422
    assert client.post("/predict", content=b"\0" * 40_001).status_code == 413
    assert client.post("/predict", content=iter([b"\0" * 30_000] * 2)).status_code == 413
    too_many = [("images", (f"{seed}.png", png(seed))) for seed in range(4)]
    said = client.post("/predict", files=too_many)
    assert (said.status_code, said.json()["error"]) == (413, "more than 3 images")
    damaged = client.post("/predict", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data"})
    assert damaged.status_code == 400
    damaged = client.post(
        "/predict", content=b"--x\r\nnonsense", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert damaged.status_code == 400
    assert client.get("/predict").status_code == 405
    assert client.get("/nothing").status_code == 404
    assert client.post("/predict", content=png(0), headers={"content-length": "nonsense"}).status_code in (200, 400)
    assert client.post("/predict", content=png(0)).status_code == 200


def test_a_token_is_asked_for(model):
    with testclient.TestClient(build_service(model, token="secret")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            said = client.post("/predict", content=png(0), headers=headers)
            assert (said.status_code, said.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/predict", content=png(0), headers={"Authorization": "Bearer secret"}).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_the_service_can_be_watched(client, model):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    client.post("/predict", content=png(0))
    client.post("/predict", content=b"text")
    said = client.get("/metrics").text
    assert 'dualcaps_requests_total{code="200"} 1.0' in said
    assert 'dualcaps_requests_total{code="422"} 1.0' in said
    assert "dualcaps_waiting_images 0.0" in said
    assert "/predict" in client.get("/openapi.json").json()["paths"]
    unstarted = testclient.TestClient(build_service(model))
    assert unstarted.get("/readyz").status_code == 503


def test_many_clients_at_once_get_their_own_answers(client, model):
    contents = [png(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda content: client.post("/predict", content=content).json()[0], contents))
    for content, answer in zip(contents, found, strict=True):
        np.testing.assert_allclose(list(answer["lengths"].values()), lengths_of(model, content), atol=1e-4)


def test_unusual_images_are_said_to_be(model):
    random = torch.rand(100, 1, 12, 12)
    rejection = set_thresholds(signals(model, random), "noise")
    with testclient.TestClient(build_service(model, rejection=rejection)) as client:
        noise = [client.post("/predict", content=png(seed)).json()[0]["rejected"] for seed in range(20)]
        black = io.BytesIO()
        Image.new("L", (12, 12)).save(black, "PNG")
        (answer,) = client.post("/predict", content=black.getvalue()).json()
    assert sum(noise) < 6
    assert answer["rejected"] is True


def test_without_its_libraries_the_message_says_what_to_install(model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'dualcaps\[serve\]'"):
        build_service(model)


def test_a_large_photograph_is_answered(client, tmp_path: Path):
    assert client.post("/predict", content=png(0, side=190)).status_code == 200
