"""Dynamic batching: images of requests that arrive at about the same time are classified together."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class QueueFullError(Exception):
    """More items are waiting than the queue holds."""


class Batcher(Generic[_Item, _Answer]):
    """Collects items of several callers and answers them by one call.

    What came while a batch was answered is the next one; it is closed when it is full, or when its first item has
    waited for `wait` seconds and nothing else is there. The calls are made one after the other, in a thread of
    their own.

    Args:
        answer: answers a batch, in its order; called in another thread.
        most: items in a batch.
        wait: seconds that the first item of a batch waits for others.
        queue: items that may be waiting or in work.
        on_batch: called after each batch with its size and duration in seconds.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[_Item]], Sequence[_Answer]],
        *,
        most: int,
        wait: float,
        queue: int,
        on_batch: Callable[[int, float], None] = lambda *_: None,
    ) -> None:
        self._answer, self._most, self._wait, self._limit, self._on_batch = answer, most, wait, queue, on_batch
        self._waiting: asyncio.Queue[tuple[_Item, asyncio.Future[_Answer]] | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)
        self._count = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that are waiting or in work."""
        return self._count

    def start(self) -> None:
        """Start answering, in the running event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Answer everything that was submitted, then stop."""
        await self._waiting.put(None)
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def submit(self, items: Sequence[_Item]) -> list[_Answer]:
        """The answers to some items.

        Raises:
            QueueFullError: there is no room for them in the queue; none of them is answered.
            Exception: what `answer` raised for their batch.
        """
        if self._count + len(items) > self._limit:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[_Answer]] = [loop.create_future() for _ in items]
        self._count += len(items)
        for pair in zip(items, futures, strict=True):
            self._waiting.put_nowait(pair)
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        going_on = True
        while going_on:
            first = await self._waiting.get()
            if first is None:
                return
            batch, until = [first], loop.time() + self._wait
            while len(batch) < self._most and going_on:
                try:
                    following = self._waiting.get_nowait()
                except asyncio.QueueEmpty:
                    if (left := until - loop.time()) <= 0:
                        break
                    try:
                        following = await asyncio.wait_for(self._waiting.get(), left)
                    except TimeoutError:
                        break
                if following is None:
                    going_on = False
                else:
                    batch.append(following)
            # Nobody waits any more for an answer whose request was cancelled.
            wanted = [(item, future) for item, future in batch if not future.cancelled()]
            if wanted:
                await self._answer_batch(wanted)
            self._count -= len(batch)

    async def _answer_batch(self, batch: "list[tuple[_Item, asyncio.Future[_Answer]]]") -> None:
        started = time.perf_counter()
        items = [item for item, _ in batch]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, items)
        except Exception as error:  # each of the batch's requests fails, the service goes on
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), found in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(found)
        self._on_batch(len(batch), time.perf_counter() - started)
