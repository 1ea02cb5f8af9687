"""Batches are made of what arrives together; every caller gets its own answers."""

import asyncio
import threading
import time
from typing import Any

import pytest

from dualcaps.serve.batching import Batcher, QueueFullError


def serve(work: Any, answer: Any, **options: Any) -> Any:
    """Run `work(batcher)` with a batcher, and stop it."""

    async def run() -> Any:
        batcher: Batcher[int, int] = Batcher(answer, **{"most": 4, "wait": 0.02, "queue": 100, **options})
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(run())


def test_callers_share_batches_and_get_their_own_answers():
    batches: list[list[int]] = []

    def square(items: list[int]) -> list[int]:
        batches.append(list(items))
        return [item * item for item in items]

    async def work(batcher: Batcher[int, int]) -> Any:
        return await asyncio.gather(*(batcher.submit([number, number + 100]) for number in range(9)))

    sizes: list[int] = []
    found = serve(work, square, on_batch=lambda size, seconds: sizes.append(size))
    assert found == [[number**2, (number + 100) ** 2] for number in range(9)]
    assert max(map(len, batches)) == 4
    assert len(batches) == 5
    assert sizes == [len(batch) for batch in batches]


def test_a_batch_waits_no_longer_than_told():
    async def work(batcher: Batcher[int, int]) -> float:
        started = time.perf_counter()
        await batcher.submit([1])
        return time.perf_counter() - started

    assert serve(work, lambda items: items, wait=0.05) < 1
    assert serve(work, lambda items: items, wait=0.0) < 1


def test_without_waiting_what_came_meanwhile_is_the_next_batch():
    batches: list[int] = []

    def slow(items: list[int]) -> list[int]:
        batches.append(len(items))
        time.sleep(0.1)
        return list(items)

    async def work(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher.submit([0]))
        await asyncio.sleep(0.05)
        await asyncio.gather(first, *(batcher.submit([number]) for number in range(3)))

    serve(work, slow, wait=0.0)
    assert batches == [1, 3]


def test_a_full_queue_refuses_and_recovers():
    release = threading.Event()

    def slow(items: list[int]) -> list[int]:
        release.wait(10)
        return list(items)

    async def work(batcher: Batcher[int, int]) -> Any:
        first = asyncio.create_task(batcher.submit([1, 2, 3]))
        await asyncio.sleep(0.1)
        assert batcher.waiting == 3
        with pytest.raises(QueueFullError):
            await batcher.submit([4, 5])
        second = asyncio.create_task(batcher.submit([4]))
        release.set()
        assert await first == [1, 2, 3]
        assert await second == [4]
        assert batcher.waiting == 0
        return await batcher.submit([5, 6])

    assert serve(work, slow, queue=4) == [5, 6]


def test_a_failing_batch_fails_its_callers_only():
    def answer(items: list[int]) -> list[int]:
        if 13 in items:
            raise ValueError("thirteen")
        return list(items)

    async def work(batcher: Batcher[int, int]) -> Any:
        with pytest.raises(ValueError, match="thirteen"):
            await batcher.submit([13])
        return await batcher.submit([14])

    assert serve(work, answer) == [14]


def test_stopping_answers_what_was_taken_and_cancelled_callers_cost_nothing():
    seen: list[int] = []

    def answer(items: list[int]) -> list[int]:
        time.sleep(0.05)
        seen.extend(items)
        return list(items)

    async def run() -> Any:
        batcher: Batcher[int, int] = Batcher(answer, most=1, wait=0, queue=100)
        batcher.start()
        tasks = [asyncio.create_task(batcher.submit([number])) for number in range(4)]
        await asyncio.sleep(0.01)
        tasks[2].cancel()
        await batcher.stop()
        assert batcher.waiting == 0
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(run())
    assert found[:2] == [[0], [1]]
    assert isinstance(found[2], asyncio.CancelledError)
    assert found[3] == [3]
    assert seen == [0, 1, 3]
