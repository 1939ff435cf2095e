"""How a Ray cluster is cut into workers. tests/ray has what is made in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaedeploy.errors import InputError
from vaedeploy.pipeline.cache.cluster import Node
from vaedeploy.pipeline.cache.ray_job import _Job, _options, cut
from vaedeploy.system.machine import usable_cores


def machines(*sizes: tuple[int, int]) -> list[Node]:
    """Machines with (cores, GPUs)."""
    return [Node(f"10.0.0.{number}", *size) for number, size in enumerate(sizes, 1)]


@pytest.mark.parametrize(
    ("sizes", "workers", "threads", "wanted"),
    [
        ([(2, 0)], None, None, (2, 1)),  # one worker of this machine, as without Ray
        ([(2, 0)], 1, None, (2, 1)),
        ([(2, 0)], 2, None, (1, 2)),  # all cores, of which Ray's core needs none
        ([(64, 0)] * 10, None, None, (4, 160)),
        ([(64, 0)] * 10, 10, None, (64, 10)),
        ([(64, 0)] * 10, 15, None, (32, 15)),
        ([(64, 0), (2, 0)], None, None, (4, 16)),
        ([(0, 0), (8, 0)], 2, None, (4, 2)),  # a head with nothing to give
        ([(16, 0)], None, 5, (5, 3)),
        ([(16, 0)], 2, 5, (5, 2)),
        ([(16, 4)], None, None, (4, 4)),  # a GPU each
        ([(96, 8), (96, 8), (64, 0)], None, None, (4, 16)),
        ([(6, 4)], None, None, (1, 4)),
        ([(2, 4)], None, None, (1, 2)),  # fewer cores than GPUs
        ([(96, 8)], 2, None, (48, 2)),
    ],
)
def test_cores_and_workers(sizes, workers, threads, wanted):
    gpu = any(gpus for _, gpus in sizes)
    assert cut(machines(*sizes), workers, threads, gpu) == wanted


@pytest.mark.parametrize(
    ("sizes", "workers", "threads", "reason"),
    [
        ([(2, 0), (1, 0)], 4, None, "has room for 3 workers of 1 core, and 4 are wanted. It has 10.0.0.1 with 2 cores"),
        ([(4, 0)], None, 8, "has room for 0 workers of 8 cores, and 1 are wanted"),
        ([(16, 2)], 3, None, "has room for 2 workers of 1 core and a GPU, and 3 are wanted"),
        ([(0, 0)], None, None, "has room for 0 workers of 1 core, and 1 are wanted"),
    ],
)
def test_no_room(sizes, workers, threads, reason):
    with pytest.raises(InputError, match=f"the Ray cluster {reason}"):
        cut(machines(*sizes), workers, threads, any(gpus for _, gpus in sizes))


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (10_000, usable_cores())])
def test_threads_are_the_cores_of_a_worker_that_there_are(cores, threads):
    """And the workers of a machine share what memory it may take."""
    job = _Job("0", Path("tiny"), {"max_memory": 9_000_000, "identity": "a"}, Path("out"), (0, 0), None, cores, False)
    options = _options(job, machines((3 * cores, 0)))
    assert options == {"threads": threads, "max_memory": 3_000_000, "identity": "a"}
