"""The HTTP service: images in, classes out as JSON."""

import asyncio
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dualcaps.calibration import probabilities
from dualcaps.config import Precision, TestTimeAugmentation
from dualcaps.data.images import read_image
from dualcaps.errors import ConfigError, DataError
from dualcaps.explain.rejection import Rejection, signals
from dualcaps.inference import predict
from dualcaps.models import Network
from dualcaps.serve.batching import Batcher, QueueFullError

if TYPE_CHECKING:
    import fastapi

_READERS = 4  # threads that decode images


@dataclass(frozen=True)
class Limits:
    """What one request and the whole service may take.

    Attributes:
        bytes: of the body of a request.
        images: of a request.
        queue: images that may wait; further requests are answered by 503.
        seconds: until a request must have been sent, and until it must be answered.
        batch: images that are classified together.
        wait: seconds that an image waits for others to be classified with; what came while a batch was classified is
            the next batch in any case.
    """

    bytes: int = 32 * 2**20
    images: int = 64
    queue: int = 512
    seconds: float = 30.0
    batch: int = 64
    wait: float = 0.0


def build_service(
    model: Network,
    *,
    precision: Precision = "float32",
    tta: TestTimeAugmentation = "none",
    temperature: float | None = None,
    rejection: Rejection | None = None,
    token: str | None = None,
    limits: Limits | None = None,
    about: str = "",
) -> "fastapi.FastAPI":
    """The service of a network, as a FastAPI application.

    `POST /predict` takes one image as the body, or several as a multipart form, and answers with a list: class, length,
    the lengths of all classes, with `temperature` the class's probability and with `rejection` whether the image is
    rejected; or the reason why an image cannot be read. `GET /healthz`, `/readyz` and `/metrics` (Prometheus) are for
    whatever watches the service.

    Status codes: 200 an answer for each image; 400 no image or a damaged form; 401 a wrong token; 408 a body that
    is not sent in time; 413 too many bytes or images; 422 none of the images can be read; 503 the queue is full; 504 no
    answer in time.

    Args:
        model: the network.
        precision, tta: as for `predict`.
        temperature: of a run's calibration, for probabilities.
        rejection: a run's thresholds, to reject images of none of the classes.
        token: a bearer token that requests to predict need.
        limits: by default `Limits()`.
        about: describes the service on the OpenAPI page.

    Raises:
        ConfigError: FastAPI or another part is not installed.
    """
    try:
        import fastapi
        from starlette.responses import JSONResponse, Response

        service = _Service(model, precision, tta, temperature, rejection, token, limits or Limits())
    except ImportError as error:
        raise ConfigError(f"dualcaps serve needs {error.name}: pip install 'dualcaps[serve]'") from error

    app = fastapi.FastAPI(
        title="dualcaps", description=about, lifespan=lambda _: service.running(), docs_url=None, redoc_url=None
    )
    app.state.service = service

    # FastAPI's caches keep these functions for the life of the process, so they must not refer to the network.
    @app.post("/predict")
    async def predict_images(request: fastapi.Request) -> Response:
        """Classify one image, sent as the body, or several, sent as the files of a multipart form."""
        code, content = await request.app.state.service.answer(request)
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(code)
        return JSONResponse(content, code, headers=headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(request: fastapi.Request) -> Response:
        """Whether requests are taken."""
        ready = request.app.state.service.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics(request: fastapi.Request) -> Response:
        """Counters for Prometheus."""
        return Response(request.app.state.service.metrics(), media_type="text/plain; version=0.0.4")

    return app


class _Service:
    """A network with its queue, its counters and its limits."""

    def __init__(
        self,
        model: Network,
        precision: Precision,
        tta: TestTimeAugmentation,
        temperature: float | None,
        rejection: Rejection | None,
        token: str | None,
        limits: Limits,
    ) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._model, self._token, self._limits = model, token, limits
        self._registry = CollectorRegistry()
        self._requests = Counter("dualcaps_requests", "Requests by status code", ["code"], registry=self._registry)
        sizes = Histogram(
            "dualcaps_batch_images",
            "Images classified together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self._registry,
        )
        durations = Histogram("dualcaps_batch_seconds", "Seconds to classify a batch", registry=self._registry)

        def observe(size: int, seconds: float) -> None:
            sizes.observe(size)
            durations.observe(seconds)

        self._batcher: Batcher[np.ndarray, dict[str, Any]] = Batcher(
            _answerer(model, precision, tta, temperature, rejection),
            most=limits.batch,
            wait=limits.wait,
            queue=limits.queue,
            on_batch=observe,
        )
        waiting = Gauge("dualcaps_waiting_images", "Images waiting or in work", registry=self._registry)
        waiting.set_function(lambda: self._batcher.waiting)
        self._readers = ThreadPoolExecutor(_READERS)
        self.ready = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Requests are taken within."""
        self._batcher.start()
        shape = self._model.config.image_shape
        await self._batcher.submit([np.zeros(shape, np.uint8)])  # so that the first request does not wait for it
        self.ready = True
        yield
        self.ready = False
        await self._batcher.stop()
        self._readers.shutdown()

    def metrics(self) -> bytes:
        """The counters as Prometheus reads them."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    async def answer(self, request: "fastapi.Request") -> tuple[int, Any]:
        """The status code and the content for a request with images."""
        code, content = await self._answer(request)
        self._requests.labels(code).inc()
        return code, content if isinstance(content, list) else {"error": content}

    async def _answer(self, request: "fastapi.Request") -> tuple[int, list[dict[str, Any]] | str]:
        """The status code with an answer for each image, or with the reason why the request is refused."""
        from starlette.formparsers import MultiPartException
        from starlette.requests import ClientDisconnect

        limits = self._limits
        given = request.headers.get("authorization", "")
        if self._token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return 401, "send the token as the header Authorization: Bearer TOKEN"
        try:
            images = await asyncio.wait_for(_images_of(request, limits), limits.seconds)
        except ClientDisconnect:
            return 499, "the client closed the connection"  # nobody reads this, but it is counted
        except TimeoutError:
            return 408, f"the images were not sent within {limits.seconds:g} seconds"
        except _TooLargeError as error:
            return 413, str(error)
        except (MultiPartException, ValueError) as error:
            return 400, f"not a form with images: {error}"
        if not images:
            return 400, "no image: send one as the body, or several as the files of a multipart form"
        try:
            answers = await asyncio.wait_for(self._classify(images), limits.seconds)
        except TimeoutError:
            return 504, f"no answer within {limits.seconds:g} seconds"
        except QueueFullError:
            return 503, f"{self._batcher.waiting} images are waiting already: try again later"
        return 422 if all("error" in answer for answer in answers) else 200, answers

    async def _classify(self, images: Sequence[tuple[str, bytes]]) -> list[dict[str, Any]]:
        pixels = await asyncio.gather(*(self._read(content, name) for name, content in images))
        found = iter(await self._batcher.submit([image for image in pixels if not isinstance(image, str)]))
        return [
            {"name": name, **({"error": image} if isinstance(image, str) else next(found))}
            for (name, _), image in zip(images, pixels, strict=True)
        ]

    async def _read(self, content: bytes, name: str) -> np.ndarray | str:
        """The image, or why it cannot be read."""
        shape, value_range = self._model.config.image_shape, self._model.value_range
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._readers, read_image, content, shape, name, value_range)
        except DataError as error:
            return str(error)


class _TooLargeError(Exception):
    """A request above the limits; the message says by what."""


async def _images_of(request: "fastapi.Request", limits: Limits) -> list[tuple[str, bytes]]:
    """The images of a request, by name."""
    too_large = f"more than {limits.bytes / 2**20:g} MB"
    if int(request.headers.get("content-length", 0)) > limits.bytes:
        raise _TooLargeError(too_large)

    async def body() -> AsyncGenerator[bytes, None]:
        received = 0
        async for piece in request.stream():
            received += len(piece)
            if received > limits.bytes:
                raise _TooLargeError(too_large)
            yield piece

    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await _files_of_form(request, body(), limits)
    content = b"".join([piece async for piece in body()])
    return [("image", content)] if content else []


async def _files_of_form(
    request: "fastapi.Request", body: AsyncGenerator[bytes, None], limits: Limits
) -> list[tuple[str, bytes]]:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartParser

    # One file more than allowed is read, so that the message can say what is wrong.
    parser = MultiPartParser(request.headers, body, max_files=limits.images + 1, max_fields=10)
    async with _closing(await parser.parse()) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) > limits.images:
            raise _TooLargeError(f"more than {limits.images} images")
        return [(file.filename or "image", await file.read()) for file in files]


@asynccontextmanager
async def _closing(form: Any) -> AsyncIterator[Any]:
    try:
        yield form
    finally:
        await form.close()


def _answerer(
    model: Network,
    precision: Precision,
    tta: TestTimeAugmentation,
    temperature: float | None,
    rejection: Rejection | None,
) -> Callable[[Sequence[np.ndarray]], list[dict[str, Any]]]:
    """A function that answers a batch of images."""

    def answer(images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        pixels = torch.from_numpy(np.stack(images))
        lengths = predict(model, pixels, precision=precision, tta=tta)
        chosen = lengths.argmax(dim=1).tolist()
        answers: list[dict[str, Any]] = [
            {
                "class": model.classes[label],
                "length": round(row[label], 5),
                "lengths": {name: round(length, 5) for name, length in zip(model.classes, row, strict=True)},
            }
            for label, row in zip(chosen, lengths.tolist(), strict=True)
        ]
        if temperature is not None:
            for place, row in enumerate(probabilities(lengths.numpy(), temperature)):
                answers[place]["probability"] = round(float(row.max()), 5)
        if rejection is not None:
            found = signals(model, pixels)
            for place, rejected in enumerate(rejection.rejects(found).tolist()):
                answers[place]["rejected"] = rejected
        return answers

    return answer
