"""Measure ``vaedeploy serve`` on this machine: what the protocol costs, and what many clients get.

    python benchmarks/serve.py throughput build/demo                  # against direct calls, in turns
    python benchmarks/serve.py overhead build/demo                    # one client, 512x512
    python benchmarks/serve.py many build/demo --requests 1000        # 64 clients, mixed sizes: lost, wrong, memory

The server is a process of its own; its clients, and the direct calls, are threads of this one. All share the machine's
cores, so what the clients do is part of the server's figures. ``--json FILE`` puts the figures of a part into a file.
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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vaedeploy.runtime import VAE
from vaedeploy.system.machine import usable_cores

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from served import served
from serving import body_of


class Server:
    """``vaedeploy serve`` with the bundle as ``it``."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port, self._process = port, process

    def memory(self) -> float:
        """Resident, in MB."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 1e6

    def cpu(self) -> float:
        """Seconds of the processors' time that it has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)


@contextmanager
def started(bundle: Path, *options: str) -> Iterator[Server]:
    arguments = (f"it={bundle}", *options)
    with served(*arguments, warm_up="64x64", stdout=subprocess.DEVNULL) as (process, port):
        yield Server(port, process)


def latent_of(vae: VAE, height: int, width: int, seed: int = 0) -> np.ndarray:
    factor = vae.latent.factor
    shape = (1, vae.latent.channels, height // factor, width // factor)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def message(latent: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """The body and the headers that ask for the image as bytes."""
    body, length = body_of(latent)
    text = json.dumps(json.loads(body[:length]) | {"outputs": [{"name": "image_u8"}]}).encode()
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
    """Seconds that ``clients`` threads take, each of which does ``work`` with its number."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def throughput(bundle: Path, rounds: int, side: int, requests: int, threads: int | None) -> dict[str, Any]:
    """Items per second of direct calls by one thread and by as many as there are clients, and of the server."""
    found: dict[str, Any] = {"side": side, "threads": threads, "requests of a turn": requests, "rounds": rounds}
    asked = () if threads is None else ("--threads", str(threads))
    with VAE(bundle, threads=threads) as vae, started(bundle, *asked) as server:
        latent = latent_of(vae, side, side)
        wanted = vae.decode(latent).tobytes()
        body, headers = message(latent)
        for clients in (1, 8, 32):
            connections = [server.connection() for _ in range(clients)]
            each = max(1, requests // clients)

            def served(number: int, each: int = each, connections: list[Any] = connections) -> None:
                for _ in range(each):
                    if ask(connections[number], body, headers) != wanted:
                        raise RuntimeError("an answer differs from the runtime's")

            def called(number: int, each: int = each) -> None:
                for _ in range(each):
                    vae.decode(latent)

            def alone(_: int, count: int = each * clients) -> None:
                for _ in range(count):
                    vae.decode(latent)

            works = [(1, alone), (clients, called), (clients, served)]
            turns: list[list[float]] = []
            cpu: list[list[float]] = []
            together(clients, served)
            for turn in range(rounds):
                times, used = [], []
                for work in works[::-1] if turn % 2 else works:
                    before = time.process_time() + server.cpu()
                    times.append(together(*work))
                    used.append(time.process_time() + server.cpu() - before)
                turns.append(times[::-1] if turn % 2 else times)
                cpu.append(used[::-1] if turn % 2 else used)
            count = each * clients
            ratios = {
                "items/s, one caller": [count / one for one, _, _ in turns],
                "items/s, as many callers": [count / several for _, several, _ in turns],
                "items/s, served": [count / through for _, _, through in turns],
                "served over one caller": [one / through for one, _, through in turns],
                "served over as many callers": [several / through for _, several, through in turns],
            }
            for name, column in zip(("one caller", "as many callers", "served"), zip(*cpu, strict=True), strict=True):
                ratios[f"processors' ms for an item, {name}"] = [1000 * used / count for used in column]
            found[f"{clients} clients"] = {name: spread(values) for name, values in ratios.items()}
            print(f"{clients} clients:", json.dumps(found[f"{clients} clients"]), flush=True)
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def overhead(bundle: Path, rounds: int, side: int, repeats: int) -> dict[str, Any]:
    """What a call takes longer through the server than directly, one client, pair by pair."""
    with VAE(bundle) as vae, started(bundle) as server:
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
    parser.add_argument("--clients", type=int, default=64, help="of the part many")
    parser.add_argument(
        "--requests", type=int, default=0, help="of a turn, or of each client; 0 for 64, and 1000 for many"
    )
    parser.add_argument("--threads", type=int, help="of a call, in the part throughput; all cores unless given")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    before = os.getloadavg()[0]
    if options.part == "throughput":
        found = throughput(options.bundle, options.rounds, options.side or 64, options.requests or 64, options.threads)
    elif options.part == "overhead":
        found = overhead(options.bundle, options.rounds, options.side or 512, options.requests or 1)
    else:
        found = many(options.bundle, options.clients, options.requests or 1000)
    if options.json:
        told = json.loads(options.json.read_text()) if options.json.exists() else {}
        told |= {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__, "cores": usable_cores()}
        with VAE(options.bundle) as vae:
            name = vae.manifest.vae.name
        told.setdefault(options.part, {})[name] = found | {"load of the machine before": round(before, 2)}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
