"""Bodies as strangers make them: each gets a 4xx with a sentence, or a 200 where it happens to be right.

``VAEDEPLOY_FUZZ_CASES`` says how many there are, and ``VAEDEPLOY_FUZZ_SEED`` which: make fuzz.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
from copy import deepcopy

import numpy as np
from serving import body_of, until

from vaedeploy.images.latents import LatentFile, latent_bytes

CASES = int(os.environ.get("VAEDEPLOY_FUZZ_CASES", "300"))
SEED = int(os.environ.get("VAEDEPLOY_FUZZ_SEED", "0"))

PATHS = ["/v2/models/tiny-decode/infer", "/v2/models/tiny-encode/infer", "/v1/decode", "/v1/encode?pad=1"]
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    2**31,
    2**63,
    2**64,
    10**40,
    0.5,
    1e308,
    "",
    "FP32",
    "\0",
    [],
    {},
    [[]],
    [[1], [2]],
]


def case(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A path, a body and headers."""
    path = rng.choice(PATHS)
    if path.startswith("/v1"):
        good = latent_bytes(LatentFile(np.zeros((1, 2, 2, 2), np.float32)))
        return path, mutated(rng, good), {}
    decodes = "decode" in path
    array = np.zeros((1, 2, 4, 4), np.float32) if decodes else np.zeros((1, 8, 8, 3), np.uint8)
    body, length = body_of(array, "latent" if decodes else "image")
    kind = rng.randrange(4)
    if kind == 0:  # JSON of the right kind, with other values in it
        told = json.loads(body[:length])
        for _ in range(rng.randrange(1, 4)):
            change(rng, told)
        text = json.dumps(told).encode()
        body, length = text + body[length:], len(text)
    elif kind == 1:
        body = mutated(rng, body)
    elif kind == 2:
        length = rng.choice([0, 1, length - 1, length + 1, len(body), len(body) + 1, 2**63, -1])
    else:
        body = rng.randbytes(rng.randrange(2000))
    return path, body, {"Inference-Header-Content-Length": str(length)} if rng.random() < 0.9 else {}


def change(rng: random.Random, told: object) -> None:
    """Put another value somewhere into ``told``."""
    while isinstance(told, dict | list) and told:
        key = rng.choice(list(told) if isinstance(told, dict) else range(len(told)))
        if rng.random() < 0.4 or not isinstance(told[key], dict | list):
            if rng.random() < 0.2:
                del told[key]
            else:
                told[key] = deepcopy(rng.choice(VALUES))  # which another change may change
            return
        told = told[key]


def mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                del changed[at : at + rng.randrange(1, 40)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 40))
            case 3:
                changed[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1]))
        if not changed:
            return b""
    return bytes(changed)


def test_every_body_gets_an_answer(server, caplog):
    seen: dict[int, int] = {}
    before = 0
    for number in range(CASES):
        path, body, headers = case(random.Random(f"{SEED} {number}"))
        answer = server.request("POST", path, body, headers)
        seen[answer.status] = seen.get(answer.status, 0) + 1
        if answer.status != 200:
            assert 400 <= answer.status < 500, (number, answer)
            assert answer.error, number
            assert "Traceback" not in answer.error
        if number == 200:  # what is allocated once has been allocated
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert seen[200]
    assert seen[400] > CASES / 2
    assert caplog.messages == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB
    until(lambda: server.server.served.held.bytes == 0)
