"""The line of requests for a VAE: who goes into a call together, and in which order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from vaedeploy.errors import LatentError
from vaedeploy.serve.joining import Computed, Line
from vaedeploy.serve.refusals import RequestError


class Vae:
    """Doubles arrays. Calls wait until ``go`` is set, and are written down by their items and their first number."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls: list[list[float]] = []
        self.threads: set[int] = set()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def compute(self, part: str, array: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        with self._lock:
            self.calls.append(array[:, 0].tolist())
            self.threads.add(threading.get_ident())
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        assert self.go.wait(30)
        with self._lock:
            self.at_once -= 1
        if np.isnan(array).any():
            raise LatentError("latent has NaN in it")
        return dict.fromkeys(outputs, array * 2)


def items(*numbers: float, width: int = 1) -> np.ndarray:
    return np.repeat(np.array(numbers, np.float32)[:, None], width, axis=1)


def with_line(
    work: Callable[[Line, Vae], Awaitable[None]],
    *,
    calls: int = 1,
    most: int = 8,
    delay: float = 0.0,
    longest: int = 64,
    large_calls: int = 1,
) -> None:
    """is_large: a request of a width of 3 or more."""
    vae = Vae()
    line = Line(
        vae.compute,
        calls=calls,
        most=most,
        delay=delay,
        longest=longest,
        is_large=lambda part, array: array.shape[1] >= 3,
        large_calls=large_calls,
    )

    async def run() -> None:
        try:
            await asyncio.wait_for(work(line, vae), 30)
        finally:
            vae.go.set()

    asyncio.run(run())
    line.close()


def ask(line: Line, array: np.ndarray, part: str = "decoder", outputs: Sequence[str] = ("image",)) -> asyncio.Future:
    return line.compute(part, array, outputs)


async def started(vae: Vae, calls: int = 1) -> None:
    while len(vae.calls) < calls:
        await asyncio.sleep(0.001)


def test_requests_of_one_size_are_joined_and_the_size_that_waited_longest_goes_first():
    async def work(line: Line, vae: Vae) -> None:
        first = ask(line, items(0))
        await started(vae)
        given = [items(1, width=2), items(2), items(3, width=2), items(4), items(5, width=3), items(6)]
        waiting = [ask(line, array) for array in given]
        await asyncio.sleep(0)
        assert (line.waiting, line.running) == (6, 1)
        vae.go.set()
        done: list[Computed] = await asyncio.gather(first, *waiting)
        for array, computed in zip([items(0), *given], done, strict=True):
            np.testing.assert_array_equal(computed.outputs["image"], array * 2)
        assert vae.calls == [[0], [1, 3], [2, 4], [5], [6]]
        assert [computed.joined for computed in done] == [1, 2, 2, 2, 2, 1, 1]
        assert (line.waiting, line.running) == (0, 0)

    with_line(work)


def test_calls_have_a_power_of_two_of_items():
    async def work(line: Line, vae: Vae) -> None:
        waiting = [ask(line, items(-1))]
        await started(vae)
        waiting += [ask(line, items(number)) for number in range(13)]
        waiting += [ask(line, items(13, 14, 15)), ask(line, items(16)), ask(line, items(*range(17, 22)))]
        await asyncio.sleep(0)
        vae.go.set()
        await asyncio.gather(*waiting)
        assert [len(call) for call in vae.calls] == [1, 8, 8, 1, 5]
        assert [number for call in vae.calls for number in call] == list(range(-1, 22))

    with_line(work)


def test_halves_types_and_outputs_are_not_mixed():
    async def work(line: Line, vae: Vae) -> None:
        waiting = [ask(line, items(0))]
        await started(vae)
        waiting += [
            ask(line, items(1)),
            ask(line, items(2), part="encoder"),
            ask(line, items(3).astype(np.float64)),
            ask(line, items(4), outputs=("image", "finite")),
        ]
        await asyncio.sleep(0)
        vae.go.set()
        await asyncio.gather(*waiting)
        assert vae.calls == [[0], [1], [2], [3], [4]]

    with_line(work)


def test_a_request_waits_for_others_to_join_until_it_is_full():
    async def work(line: Line, vae: Vae) -> None:
        vae.go.set()
        first = ask(line, items(1))
        await asyncio.sleep(0.05)
        assert (line.waiting, vae.calls) == (1, [])
        await asyncio.gather(first, ask(line, items(2)))
        assert vae.calls == [[1, 2]]

    with_line(work, most=2, delay=3600)


def test_a_request_goes_alone_when_it_has_waited():
    async def work(line: Line, vae: Vae) -> None:
        vae.go.set()
        done = await line.compute("decoder", items(1), ["image"])
        assert done.queued >= 0.02
        assert vae.calls == [[1]]

    with_line(work, delay=0.02)


def test_without_joining_calls_run_side_by_side():
    async def work(line: Line, vae: Vae) -> None:
        waiting = [ask(line, items(number)) for number in range(6)]
        await started(vae, 3)
        assert (line.running, line.waiting) == (3, 3)
        vae.go.set()
        await asyncio.gather(*waiting)
        assert sorted(vae.calls) == [[0], [1], [2], [3], [4], [5]]
        assert vae.most_at_once == 3

    with_line(work, calls=3, most=1, delay=3600)


@pytest.mark.parametrize(("large_calls", "at_once"), [(1, [0, 3, 4]), (2, [0, 1, 3, 4])])
def test_large_calls_take_turns_and_small_ones_pass_them(large_calls: int, at_once: list[int]):
    async def work(line: Line, vae: Vae) -> None:
        given = [items(number, width=3 + number) for number in range(3)] + [items(3), items(4)]
        waiting = [ask(line, array) for array in given]
        await started(vae, len(at_once))
        assert (line.running, line.waiting) == (len(at_once), 5 - len(at_once))
        assert sorted(number for (number,) in vae.calls) == at_once
        vae.go.set()
        await asyncio.gather(*waiting)
        large = [number for (number,) in vae.calls if number < 3]
        assert sorted(large) == [0, 1, 2]
        assert large_calls > 1 or large == [0, 1, 2]  # the one that waited longest first
        assert (line.running, line.waiting) == (0, 0)

    with_line(work, calls=8, most=1, large_calls=large_calls)


def test_a_large_call_that_fails_gives_its_turn_to_the_next():
    async def work(line: Line, vae: Vae) -> None:
        vae.go.set()
        done = await asyncio.gather(
            ask(line, items(np.nan, width=3)), ask(line, items(1, width=3)), return_exceptions=True
        )
        assert [type(result) for result in done] == [LatentError, Computed]

    with_line(work, calls=8, most=1)


def test_one_client_keeps_one_thread_busy():
    async def work(line: Line, vae: Vae) -> None:
        waiting = [ask(line, items(number)) for number in range(8)]
        await started(vae, 8)
        vae.go.set()
        await asyncio.gather(*waiting)
        assert len(vae.threads) == 8
        vae.threads.clear()
        for number in range(20):
            await line.compute("decoder", items(number), ["image"])
        assert len(vae.threads) == 1

    with_line(work, calls=8, most=1)


def test_no_request_fails_for_what_it_was_joined_with():
    async def work(line: Line, vae: Vae) -> None:
        waiting = [ask(line, items(0))]
        await started(vae)
        waiting += [ask(line, items(number)) for number in (1, np.nan, 3)] + [ask(line, items(4))]
        await asyncio.sleep(0)
        vae.go.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in done] == [Computed, Computed, LatentError, Computed, Computed]
        np.testing.assert_array_equal(done[3].outputs["image"], items(6))
        assert [len(call) for call in vae.calls] == [1, 4, 1, 1, 1, 1]

    with_line(work)


def test_a_full_line_refuses_and_a_request_that_is_given_up_leaves_it():
    async def work(line: Line, vae: Vae) -> None:
        waiting = [ask(line, items(number)) for number in range(3)]
        await started(vae)
        with pytest.raises(RequestError, match="2 requests wait already; try again later") as error:
            await line.compute("decoder", items(3), ["image"])
        assert (error.value.status, error.value.headers) == (503, {"retry-after": "1"})
        waiting[1].cancel()
        waiting[0].cancel()  # its call runs already
        await asyncio.sleep(0)
        last = ask(line, items(4))
        await asyncio.sleep(0)
        vae.go.set()
        await asyncio.gather(waiting[2], last)
        assert vae.calls == [[0], [2, 4]]

    with_line(work, longest=2)
