"""VAEs that are opened, and used, while another process replaces the bundle without pause."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from bundle_folders import script
from tiny_bundle import tiny_bundle
from tiny_inputs import CHANNELS, noise, photo

from vaedeploy.runtime import VAE
from vaedeploy.system.files import HOLDS

WRITER = """
import itertools
print("writing", flush=True)
for seed in itertools.cycle([5, 0]):
    tiny_bundle(out, seed=seed, force=True)
    sys.stdout.write("replaced\\n")
"""


def results(vae: VAE) -> tuple[bytes, bytes]:
    return vae.decode(noise(1, CHANNELS, 2, 2)).tobytes(), vae.encode(photo(8, 8)).tobytes()


@pytest.mark.skipif(not HOLDS, reason="files cannot be held open here")
def test_readers_under_a_writer(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Each VAE gives one bundle's picture and latent, to the bit. ``make test-faults`` opens a hundred."""
    opens = 100 if pytestconfig.getoption("--full") else 20
    bundle = tiny_bundle(tmp_path / "tiny")
    with VAE(bundle.path) as one, VAE(tiny_bundle(tmp_path / "other", seed=5).path) as other:
        right = {results(one): "first", results(other): "second"}
    assert len(right) == 2
    seen: list[str] = []

    def read(seed: int) -> None:
        pause = random.Random(seed)
        for _ in range(opens // 2):
            try:
                with VAE(bundle.path) as vae:
                    time.sleep(pause.uniform(0, 0.02))  # some replacements happen before the graphs are loaded
                    picture = vae.decode(noise(1, CHANNELS, 2, 2)).tobytes()
                    time.sleep(pause.uniform(0, 0.02))
                    seen.append(right.get((picture, vae.encode(photo(8, 8)).tobytes()), "WRONG"))
            except Exception as error:
                seen.append(repr(error))

    with script(WRITER, bundle.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        process.kill()
        replaced = process.stdout.read().count("replaced")
    assert replaced > 1
    assert sorted(set(seen)) == ["first", "second"]
    assert len(seen) == opens
