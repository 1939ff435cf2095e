"""Measure ``vaedeploy serve`` on this machine: what the protocol costs, and what many clients get.

    python benchmarks/serve.py throughput build/demo                  # against direct calls, in turns
    .triton/bin/python benchmarks/serve.py throughput build/demo --triton   # and a Triton server (make triton-env)
    python benchmarks/serve.py overhead build/demo                    # one client, 512x512
    python benchmarks/serve.py many build/demo --requests 1000        # 64 clients, mixed sizes: lost, wrong, memory

The server is a process of its own; its clients, and the direct calls, are threads of this one. All share the machine's
cores, so what the clients do is part of the server's figures. Triton's server runs the Python backend that ``vaedeploy
triton`` writes, and is asked as ``vaedeploy serve`` is. ``--json FILE`` puts the figures of a part into a file.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vaedeploy.pipeline.triton import write_triton
from vaedeploy.runtime import VAE
from vaedeploy.system.machine import usable_cores

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import triton_server
from served import served
from serving import body_of


class Server:
    """``vaedeploy serve`` with the bundle as ``it``."""

    def __init__(self, port: int, process: subprocess.Popen[Any]) -> None:
        self.port, self._process = port, process

    def memory(self) -> float:
        """Resident, in MB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def peak(self) -> float:
        """The most that was resident so far, in MB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    def cpu(self) -> float:
        """Seconds of the processors' time that it and its processes have taken."""
        stats: dict[int, list[str]] = {}
        for place in Path("/proc").iterdir():
            with suppress(OSError):  # it is gone by now
                if place.name.isdecimal():
                    stats[int(place.name)] = (place / "stat").read_text().rpartition(")")[2].split()
        own, ticks = [self._process.pid], 0
        for number in own:  # which grows
            ticks += int(stats[number][11]) + int(stats[number][12])
            own += [child for child, fields in stats.items() if int(fields[1]) == number]
        return ticks / os.sysconf("SC_CLK_TCK")

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)


@contextmanager
def started(bundle: Path, *options: str, side: int = 64) -> Iterator[Server]:
    """side: of the image that it is warmed up at. ONNX Runtime plans the memory of square images for the first size."""
    arguments = (f"it={bundle}", "--allow-unverified", *options)
    with served(*arguments, warm_up=f"{side}x{side}", stdout=subprocess.DEVNULL) as (process, port):
        yield Server(port, process)


@contextmanager
def triton_started(bundle: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        write_triton(bundle, repository, name="it", allow_unverified=True)
        triton_server.prepare(repository)
        with triton_server.serving([repository], Path(folder, "log")) as server:
            yield Server(server.http, server.process)


def latent_of(vae: VAE, height: int, width: int, seed: int = 0) -> np.ndarray:
    factor = vae.latent.factor
    shape = (1, vae.latent.channels, height // factor, width // factor)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def message(latent: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """The body and the headers that ask for the image as bytes."""
    body, length = body_of(latent)
    # Triton overlooks "binary_data_output" where outputs are named.
    output = {"name": "image_u8", "parameters": {"binary_data": True}}
    text = json.dumps(json.loads(body[:length]) | {"outputs": [output]}).encode()
    return text + latent.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


def ask(connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]) -> bytes:
    """The image of an answer, as bytes."""
    connection.request("POST", "/v2/models/it-decode/infer", body, headers)
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(data[:200].decode())
    return data[int(answer.headers["Inference-Header-Content-Length"]) :]


def together(clients: int, work: Callable[[int], None]) -> float:
    """Seconds that ``clients`` threads take, each of which does ``work`` with its number. Raises what one raises."""
    with ThreadPoolExecutor(clients) as threads:
        began = time.perf_counter()
        done = [threads.submit(work, number) for number in range(clients)]
        for one in done:
            one.result()
        return time.perf_counter() - began


def throughput(
    bundle: Path,
    rounds: int,
    side: int,
    requests: int,
    threads: int | None,
    clients_of: Sequence[int],
    triton: bool,
    keep_memory: bool,
    server_threads: int | None,
) -> dict[str, Any]:
    """Items per second of direct calls by one thread and by as many as there are clients, and of the servers; how long
    their clients wait for an answer, and the servers' memory.
    """
    found: dict[str, Any] = {"side": side, "threads": threads, "requests of a turn": requests, "rounds": rounds}
    served_with = threads if server_threads is None else server_threads
    found["the server's threads"] = served_with
    asked = () if served_with is None else ("--threads", str(served_with))
    asked += ("--keep-memory",) if keep_memory else ()
    with ExitStack() as stack:
        vae = stack.enter_context(VAE(bundle, threads=threads, keep_memory=keep_memory))
        servers = {"served": stack.enter_context(started(bundle, *asked, side=side))}
        if triton:
            servers["Triton"] = stack.enter_context(triton_started(bundle))
        latent = latent_of(vae, side, side)
        wanted = vae.decode(latent).tobytes()
        body, headers = message(latent)
        for clients in clients_of:
            each = max(1, requests // clients)
            waits: dict[str, list[float]] = {name: [] for name in servers}

            def served(name: str, each: int = each, waits: dict[str, list[float]] = waits) -> Callable[[int], None]:
                def work(_: int) -> None:
                    connection = servers[name].connection()  # one for a turn: servers end those that are idle
                    for _ in range(each):
                        began = time.perf_counter()
                        if ask(connection, body, headers) != wanted:
                            raise RuntimeError("an answer differs from the runtime's")
                        waits[name].append(time.perf_counter() - began)

                return work

            def called(number: int, each: int = each) -> None:
                for _ in range(each):
                    vae.decode(latent)

            def alone(_: int, count: int = each * clients) -> None:
                for _ in range(count):
                    vae.decode(latent)

            works = {"one caller": (1, alone), "as many callers": (clients, called)}
            works |= {name: (clients, served(name)) for name in servers}
            times: dict[str, list[float]] = {name: [] for name in works}
            cpu: dict[str, list[float]] = {name: [] for name in works}
            own_cpu: dict[str, list[float]] = {name: [] for name in servers}
            for name in servers:
                together(*works[name])
            for turn in range(rounds):
                for name in list(works)[:: -1 if turn % 2 else 1]:
                    before, own_before = processors(servers), time.process_time()
                    times[name].append(together(*works[name]))
                    cpu[name].append(processors(servers) - before)
                    if name in servers:
                        own_cpu[name].append(time.process_time() - own_before)
            count = each * clients
            told = {f"items/s, {name}": [count / value for value in values] for name, values in times.items()}
            for name in servers:
                for other in list(works)[: list(works).index(name)]:
                    pairs = zip(times[other], times[name], strict=True)
                    told[f"{name} over {other}"] = [theirs / own for theirs, own in pairs]
            for name, values in cpu.items():
                told[f"processors' ms for an item, {name}"] = [1000 * used / count for used in values]
            for name, values in own_cpu.items():
                told[f"processors' ms for an item, {name}, the clients' share"] = [1000 * own / count for own in values]
            told |= {f"s for an answer, {name}": values for name, values in waits.items()}
            told |= {f"peak MB so far, {name}": [server.peak()] for name, server in servers.items()}
            found[f"{clients} clients"] = {name: spread(values) for name, values in told.items()}
            print(f"{clients} clients:", json.dumps(found[f"{clients} clients"]), flush=True)
    return found


def processors(servers: Mapping[str, Server]) -> float:
    """Seconds of the processors' time that this process and the servers have taken."""
    return time.process_time() + sum(server.cpu() for server in servers.values())


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def overhead(bundle: Path, rounds: int, side: int, repeats: int) -> dict[str, Any]:
    """What a call takes longer through the server than directly, one client, pair by pair."""
    with VAE(bundle) as vae, started(bundle, side=side) as server:
        latent = latent_of(vae, side, side)
        wanted, connection = vae.decode(latent).tobytes(), server.connection()
        body, headers = message(latent)
        ask(connection, body, headers)
        pairs, cpu = [], []
        for turn in range(rounds):
            works: list[Callable[[], Any]] = [lambda: vae.decode(latent), lambda: ask(connection, body, headers)]
            times, used = [], []
            for work in works[::-1] if turn % 2 else works:
                before, began = time.process_time() + server.cpu(), time.perf_counter()
                for _ in range(repeats):
                    result = work()
                times.append((time.perf_counter() - began) / repeats)
                used.append((time.process_time() + server.cpu() - before) / repeats)
                if isinstance(result, bytes) and result != wanted:
                    raise RuntimeError("an answer differs from the runtime's")
            pairs.append(tuple(times[::-1] if turn % 2 else times))
            cpu.append(tuple(used[::-1] if turn % 2 else used))
    found = {
        "side": side,
        "rounds": rounds,
        "direct ms": spread([1000 * direct for direct, _ in pairs]),
        "added ms": spread([1000 * (served - direct) for direct, served in pairs]),
        "added, processors' ms": spread([1000 * (served - direct) for direct, served in cpu]),
        "served over direct, in time": spread([served / direct for direct, served in pairs]),
    }
    print(json.dumps(found))
    return found


SIZES = ((16, 16), (16, 24), (32, 16), (24, 24))


def many(bundle: Path, clients: int, requests: int) -> dict[str, Any]:
    """Each client asks for images of sizes that change from request to request."""
    lost, wrong, done = [0], [0], [0]
    memory: list[float] = []
    with VAE(bundle) as vae, started(bundle) as server:
        sizes = [(max(h, vae.latent.factor), max(w, vae.latent.factor)) for h, w in SIZES]
        given = [latent_of(vae, *size, seed=seed) for seed in range(4) for size in sizes]
        cases = [(*message(latent), vae.decode(latent).tobytes()) for latent in given]

        def work(number: int) -> None:
            connection = server.connection()
            for turn in range(requests):
                body, headers, wanted = cases[(7 * number + turn) % len(cases)]
                try:
                    wrong[0] += ask(connection, body, headers) != wanted
                except (OSError, RuntimeError, http.client.HTTPException) as error:
                    print(error)
                    lost[0] += 1
                    connection = server.connection()
                done[0] += 1
                if done[0] % (clients * requests // 10) == 0:
                    memory.append(server.memory())

        seconds = together(clients, work)
    found = {
        "clients": clients,
        "requests of each": requests,
        "lost": lost[0],
        "wrong": wrong[0],
        "requests/s": clients * requests / seconds,
        "server's memory in MB, after each tenth": [round(value, 1) for value in memory],
    }
    print(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["throughput", "overhead", "many"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", type=int, default=0, help="of images in pixels; 0 for 64, and 512 for overhead")
    parser.add_argument("--clients", type=int, nargs="+", help="how many; 1, 8 and 32 unless given, and 64 for many")
    parser.add_argument("--keep-memory", action="store_true", help="in the part throughput: of server and direct calls")
    parser.add_argument("--triton", action="store_true", help="in the part throughput: a Triton server too")
    parser.add_argument(
        "--requests", type=int, default=0, help="of a turn, or of each client; 0 for 64, and 1000 for many"
    )
    parser.add_argument("--threads", type=int, help="of a call, in the part throughput; all cores unless given")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--server-threads", type=int, help="of the server's calls, if not the same as --threads")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    if options.part == "throughput":
        sizes = options.side or 64, options.requests or 64
        found = throughput(
            options.bundle,
            options.rounds,
            *sizes,
            options.threads,
            options.clients or (1, 8, 32),
            options.triton,
            options.keep_memory,
            options.server_threads,
        )
    elif options.part == "overhead":
        found = overhead(options.bundle, options.rounds, options.side or 512, options.requests or 1)
    else:
        (clients,) = options.clients or (64,)
        found = many(options.bundle, clients, options.requests or 1000)
    if options.json:
        told = json.loads(options.json.read_text()) if options.json.exists() else {}
        told |= {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__, "cores": usable_cores()}
        with VAE(options.bundle) as vae:
            name = vae.manifest.vae.name
        key = f"{name}, {found['side']}x{found['side']}" if options.side else name
        key += ", memory kept" if options.keep_memory else ""
        key += f", the server with {options.server_threads} threads" if options.server_threads else ""
        told.setdefault(options.part, {})[key] = found | {"load of the machine before": round(before, 2)}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
