"""Downloads by the real huggingface_hub client from a local server. Each client is a process of its own, since
HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are read when huggingface_hub is imported."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hub_server import COMMIT, Drop, HubServer
from places import ROOT
from safetensors.torch import save, save_file

from vaedeploy.source import get_preset, load_reference
from vaedeploy.source.network import random_tensors
from vaedeploy.system.hub import reporting_bar

MEGABYTE = 1_000_000
REPOSITORY = "someone/a-vae"
WEIGHTS = "diffusion_pytorch_model.safetensors"

FETCH = """
from vaedeploy.source.hub import fetch
got = fetch(*arguments, progress=report)
result = {"file": got.file, "revision": got.revision, "path": str(got.path)}
"""

LOAD = """
from vaedeploy.source import load_reference
got = load_reference(*arguments, progress=report)
result = {
    "identity": got.identity, "sha256": got.origin.sha256, "kind": got.origin.kind, "location": got.origin.location,
    "preset": got.origin.preset, "revision": got.origin.revision, "scale": got.latent.scale, "licence": got.licence,
}
"""

RELOAD = """
from vaedeploy.source import load_reference, reload_reference
from vaedeploy.values.origin import Origin
vae, weights, *known = arguments
got = load_reference(vae, weights) if not known else reload_reference(
    Origin("hub", weights, known[1], vae, known[0]), load_reference(vae, "random:0").latent
)
result = {"identity": got.identity, "sha256": got.origin.sha256}
"""

DOWNLOAD = """
from vaedeploy.source.locate import find_source
from vaedeploy.source.repository import download
vae, weights, options = arguments
got = download(find_source(vae, weights, **options), report)
origin = got.origin
result = {
    "where": got.where, "name": got.name, "config": str(got.config), "location": origin.location,
    "revision": origin.revision, "subfolder": origin.subfolder, "preset": origin.preset, "own": got.own,
    "files": list(map(str, got.files)),
}
"""

CLIENT = """
import json, sys, time
time.sleep = lambda seconds: None  # or the hub's client waits between its own attempts, 15 s in all
from vaedeploy.errors import VaedeployError
arguments = json.loads(sys.argv[1])
steps = []
def report(what, done, total):
    if what.startswith("Downloading"):
        steps.append([what, done, total])
try:
{body}
except VaedeployError as error:
    result = {{"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}}
print(json.dumps(result | {{"steps": steps}}))
"""


class Client:
    """Runs downloads in a process with a cache of its own. ``stderr``: what the last one wrote there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.stderr = ""

    def run(self, endpoint: str, body: str, *arguments: Any, **variables: str) -> dict[str, Any]:
        indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
        kept = {k: v for k, v in os.environ.items() if not k.upper().startswith("HF_") and "PROXY" not in k.upper()}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CLIENT.format(body=indented), json.dumps(arguments)],
            env={**kept, "HF_HOME": str(self.home), "HF_ENDPOINT": endpoint, **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        self.stderr = done.stderr
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "hf")


@pytest.fixture(scope="module")
def noise() -> bytes:
    """25 MB: the client writes 10 MB at a time, so a transfer that ends in between can be resumed."""
    return random.Random(0).randbytes(25 * MEGABYTE)


@pytest.fixture(scope="module")
def demo_file() -> bytes:
    return save(random_tensors(get_preset("demo").config, seed=1))


def demo_config(**changes: Any) -> bytes:
    fields = msgspec.structs.asdict(get_preset("demo").config)
    return msgspec.json.encode({"_class_name": "AutoencoderKL", **fields, **changes})


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_download_reports_progress_and_draws_nothing(client: Client, noise: bytes) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: noise}}) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
    assert sha256(Path(got["path"]).read_bytes()) == sha256(noise)
    assert (got["file"], got["revision"]) == (WEIGHTS, COMMIT)
    what, total = f"Downloading {REPOSITORY}/{WEIGHTS}", 25.0 * MEGABYTE
    assert {(step[0], step[2]) for step in got["steps"]} == {(what, total)}
    done = [step[1] for step in got["steps"]]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0.0, total)
    assert len(done) > 2
    assert client.stderr == ""


def test_second_download_comes_from_the_cache_without_the_hub(client: Client, noise: bytes) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: noise}}) as hub:
        first = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
        client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
        assert len(hub.transfers()) == 1
    for variables in ({"HF_HUB_OFFLINE": "1"}, {}):
        again = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS], **variables)
        assert again == first | {"steps": []}


@pytest.mark.parametrize("name", ["snapshots", "snapshots/x"])
def test_cache_in_a_folder_of_the_name_that_it_uses_itself(tmp_path: Path, name: str) -> None:
    with HubServer({REPOSITORY: {"snapshots/b/" + WEIGHTS: b"weights"}}) as hub:
        got = Client(tmp_path / name).run(hub.url, FETCH, REPOSITORY, ["snapshots/b/" + WEIGHTS])
    assert (got["file"], got["revision"]) == ("snapshots/b/" + WEIGHTS, COMMIT)


@pytest.mark.slow
def test_weights_are_found_again_at_their_commit_when_the_branch_has_moved(client: Client, demo_file: bytes) -> None:
    moved = save(random_tensors(get_preset("demo").config, seed=2))
    with HubServer({REPOSITORY: {WEIGHTS: demo_file}}) as hub:
        first = client.run(hub.url, RELOAD, "demo", REPOSITORY)
    with HubServer({REPOSITORY: {WEIGHTS: moved}}, commit="f" * 40) as hub:
        again = client.run(hub.url, RELOAD, "demo", REPOSITORY, COMMIT, sha256(demo_file))
        assert client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])["revision"] == "f" * 40
    assert again == first


def test_password_in_the_hubs_address_is_not_shown(client: Client) -> None:
    """As company mirrors have it: https://NAME:PASSWORD@HOST."""
    with HubServer({REPOSITORY: {"README.md": b"#"}}) as hub:
        address = hub.url.replace("://", "://anna:p@ss@")
        told = [client.run(address, FETCH, name, [WEIGHTS])["message"] for name in (REPOSITORY, "someone/else")]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://anna:p%40ss@127.0.0.1:{closed.getsockname()[1]}"
        told.append(client.run(endpoint, FETCH, REPOSITORY, [WEIGHTS])["message"])
    for message in told:
        assert "anna" not in message
        assert "ss@" not in message
        assert "http://127.0.0.1:" in message


def test_first_file_that_the_repository_has_is_taken(client: Client) -> None:
    with HubServer({REPOSITORY: {"vae/b.bin": b"weights"}}) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, ["a.bin", "vae/b.bin"])
    assert got["file"] == "vae/b.bin"
    assert Path(got["path"]).read_bytes() == b"weights"


def test_interrupted_download_is_resumed(client: Client, noise: bytes) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: noise}}, drops=[Drop(13 * MEGABYTE)]) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
    assert sha256(Path(got["path"]).read_bytes()) == sha256(noise)
    # 10 MiB were written when the connection ended.
    assert hub.transfers() == [f"GET /storage/{sha256(noise)}", f"GET /storage/{sha256(noise)} bytes={10 << 20}-"]


def test_reset_connection_is_tried_again(client: Client, noise: bytes) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: noise}}, drops=[Drop(13 * MEGABYTE, "reset")]) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
    assert sha256(Path(got["path"]).read_bytes()) == sha256(noise)
    assert len(hub.transfers()) == 2


def test_download_that_keeps_breaking_off_is_an_error_and_leaves_nothing(client: Client, noise: bytes) -> None:
    dropped = HubServer({REPOSITORY: {WEIGHTS: noise}}, drop_all=Drop(13 * MEGABYTE, "reset"))
    with dropped as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
    assert (got["error"], got["exit_code"]) == ("DownloadError", 1)
    assert got["message"].startswith(f"the download of {REPOSITORY}/{WEIGHTS} failed: ")
    assert got["message"].endswith(
        ". Run the command again, or download it elsewhere and give the file: --weights PATH"
    )
    assert [path for path in client.home.rglob("*") if path.is_file() and path.stat().st_size > MEGABYTE] == []


def test_download_whose_end_never_comes_is_an_error(client: Client) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: b"x" * 100}}, drop_all=Drop(50)) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS])
    assert got["error"] == "DownloadError"
    assert got["message"].startswith(f"the download of {REPOSITORY}/{WEIGHTS} failed: ")


def test_repository_without_weights(client: Client) -> None:
    with HubServer({REPOSITORY: {"README.md": b"#"}}) as hub:
        got = client.run(hub.url, LOAD, "demo", REPOSITORY)
    assert got["error"] == "DownloadError"
    assert got["message"] == (
        f"the hub repository {REPOSITORY} has no file diffusion_pytorch_model.safetensors (nor .bin, nor a list of "
        "parts, nor a variant fp16 or bf16 of these) at its top or in vae/ or in movq/ or in vqgan/. "
        f"See what it has at {hub.url}/{REPOSITORY}/tree/main, download the weights and give the file: --weights PATH"
    )


@pytest.mark.parametrize("variables", [{}, {"HF_TOKEN": "hf_right"}], ids=["401", "404"])
def test_repository_that_is_not_there(client: Client, variables: dict[str, str]) -> None:
    with HubServer({}) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS], **variables)
    assert got["error"] == "DownloadError"
    assert got["message"] == (
        f"the hub has no repository {REPOSITORY}, or it is private. Check the name at {hub.url}/{REPOSITORY}; "
        "where it is private, run `hf auth login` or set HF_TOKEN"
    )


def test_revision_that_is_not_there(client: Client) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: b"weights"}}) as hub:
        got = client.run(hub.url, FETCH.replace("*arguments", "*arguments, revision='v2'"), REPOSITORY, [WEIGHTS])
    assert got["error"] == "DownloadError"
    assert got["message"] == (
        f"the hub repository {REPOSITORY} has no revision v2. See those it has: {hub.url}/{REPOSITORY}/commits"
    )


def test_gated_repository_says_how_to_get_in_and_opens_to_the_token(client: Client) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: b"weights"}}, tokens={REPOSITORY: "hf_right"}) as hub:
        for variables in ({}, {"HF_TOKEN": "hf_wrong"}):
            got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS], **variables)
            assert got["error"] == "DownloadError"
            assert got["message"] == (
                f"the hub repository {REPOSITORY} is gated. Accept its licence at {hub.url}/{REPOSITORY}, then run "
                "`hf auth login` or set HF_TOKEN, and run the command again, or download it elsewhere and give the "
                "file: --weights PATH"
            )
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS], HF_TOKEN="hf_right")
    assert Path(got["path"]).read_bytes() == b"weights"


def test_offline(client: Client) -> None:
    with HubServer({REPOSITORY: {WEIGHTS: b"weights"}}) as hub:
        got = client.run(hub.url, FETCH, REPOSITORY, [WEIGHTS], HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert got["error"] == "DownloadError"
    assert got["message"] == (
        f"{REPOSITORY}/{WEIGHTS} is not in the cache ({client.home / 'hub'}) and HF_HUB_OFFLINE is set. Unset it, "
        "or download it elsewhere and give the file: --weights PATH"
    )


def test_hub_that_cannot_be_reached(client: Client) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused, and nobody else gets the port
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        got = client.run(endpoint, FETCH, REPOSITORY, [WEIGHTS])
    assert got["error"] == "DownloadError"
    assert got["message"].startswith(f"cannot download {REPOSITORY}/{WEIGHTS}: {endpoint} does not answer as a hub (")
    assert got["message"].endswith(
        "). Check the network and HF_ENDPOINT, or download it elsewhere and give the file: --weights PATH"
    )


def test_file_of_a_presets_own_repository_must_have_its_hash(client: Client) -> None:
    preset = get_preset("mse840k")
    with HubServer({str(preset.repository): {preset.file: b"something else"}}) as hub:
        for arguments in (("mse840k",), ("mse840k", preset.repository)):
            got = client.run(hub.url, LOAD, *arguments)
            assert (got["error"], got["exit_code"]) == ("WeightsError", 2)
            assert got["message"].startswith(
                f"{preset.repository}/{preset.file} has sha256 {sha256(b'something else')}, but preset mse840k is "
                f"known by {preset.sha256}: the file was changed or damaged. Delete "
            )
            # The very file, not the cache's link to it: the next run would only link to it again.
            file = Path(re.search(r"Delete (\S+) and run", got["message"])[1])  # type: ignore[index]
            assert not file.is_symlink()
            file.unlink()
        assert len(hub.transfers()) == 2


@pytest.mark.slow
def test_weights_from_a_users_repository(client: Client, demo_file: bytes, tmp_path: Path) -> None:
    files = {"vae/config.json": demo_config(), f"vae/{WEIGHTS}": demo_file}
    with HubServer({REPOSITORY: files}) as hub:
        got = client.run(hub.url, LOAD, "demo", REPOSITORY)
    (tmp_path / "same.safetensors").write_bytes(demo_file)
    assert got["identity"] == load_reference("demo", tmp_path / "same.safetensors").identity
    assert {k: got[k] for k in ("sha256", "kind", "location", "preset", "revision", "licence")} == {
        "sha256": sha256(demo_file),
        "kind": "hub",
        "location": REPOSITORY,
        "preset": "demo",
        "revision": COMMIT,
        "licence": None,
    }


@pytest.mark.slow
def test_repository_whose_config_states_another_scale(client: Client, demo_file: bytes) -> None:
    with HubServer({REPOSITORY: {"config.json": demo_config(scaling_factor=0.7), WEIGHTS: demo_file}}) as hub:
        got = client.run(hub.url, LOAD, "demo", REPOSITORY)
    assert got["error"] == "ContractError"
    assert got["message"].startswith("the latent scale is stated in two ways: preset demo says ")
    assert got["message"].endswith("config.json says 0.7. Say which holds: --scale NUMBER (scale= in Python)")


TRANSFORMER = {"config.json": b'{"_class_name": "WanModel"}', WEIGHTS: b"a transformer"}
TINY = {"_class_name": "AutoencoderTiny", "latent_channels": 4}


@pytest.mark.parametrize(
    ("vae", "options", "found"),
    [
        (REPOSITORY, {}, "vae"),
        (f"{REPOSITORY}@{COMMIT}", {}, "vae"),
        (REPOSITORY, {"revision": COMMIT}, "vae"),
        (REPOSITORY, {"subfolder": "preview"}, "preview"),
    ],
)
def test_repository_whose_config_says_what_it_is(client: Client, vae: str, options: dict[str, str], found: str) -> None:
    """A transformer's weights at its top are not downloaded."""
    files: dict[str, bytes | Path] = dict(TRANSFORMER)
    for folder in ("vae", "preview"):
        files |= {f"{folder}/config.json": msgspec.json.encode(TINY), f"{folder}/{WEIGHTS}": folder.encode()}
    with HubServer({REPOSITORY: files}) as hub:
        got = client.run(hub.url, DOWNLOAD, vae, None, options)
        assert hub.transfers() == [f"GET /storage/{sha256(found.encode())}"]
    assert got["where"] == f"{REPOSITORY}/{found}/{WEIGHTS}"
    assert Path(got["config"]).parts[-2:] == (found, "config.json")
    assert {key: got[key] for key in ("name", "location", "revision", "subfolder", "preset")} == {
        "name": "a-vae",
        "location": REPOSITORY,
        "revision": COMMIT,
        "subfolder": options.get("subfolder"),
        "preset": None,
    }


FP16 = "diffusion_pytorch_model.fp16.safetensors"


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ([FP16], FP16),
        (
            ["diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.fp16.bin"],
            "diffusion_pytorch_model.fp16.bin",
        ),
        ([FP16, "diffusion_pytorch_model.bin"], "diffusion_pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_of_several_variants_the_most_precise_is_downloaded(
    client: Client, names: list[str], taken: str, described: bool
) -> None:
    config = {"vae/config.json": msgspec.json.encode(TINY)}
    files: dict[str, bytes | Path] = {**config, **{f"vae/{name}": name.encode() for name in names}}
    with HubServer({REPOSITORY: files}) as hub:
        got = client.run(hub.url, DOWNLOAD, *((REPOSITORY, None) if described else ("taesd", REPOSITORY)), {})
        assert hub.transfers() == [f"GET /storage/{sha256(taken.encode())}"]
    assert got["where"] == f"{REPOSITORY}/vae/{taken}"
    assert got["config"].endswith("vae/config.json")


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_weights_in_parts(client: Client, tmp_path: Path, variant: str) -> None:
    """They are read, and hashed, as those of a folder are."""
    parts = {f"diffusion_pytorch_model{variant}-0000{n}-of-00002.safetensors": b"part %d" % n for n in (1, 2)}
    index = f"vae/diffusion_pytorch_model.safetensors.index{variant}.json"
    files: dict[str, bytes | Path] = {
        "vae/config.json": msgspec.json.encode(TINY),
        index: msgspec.json.encode({"metadata": {}, "weight_map": dict(zip("abcd", [*parts, *parts], strict=True))}),
        **{f"vae/{name}": content for name, content in parts.items()},
    }
    with HubServer({REPOSITORY: files}) as hub:
        got = client.run(hub.url, DOWNLOAD, REPOSITORY, None, {})
        assert hub.transfers() == [f"GET /storage/{sha256(content)}" for content in parts.values()]
        assert {step[0] for step in got["steps"]} >= {f"Downloading {REPOSITORY}/vae/{name}" for name in parts}
    assert [Path(file).read_bytes() for file in got["files"]] == list(parts.values())
    assert (got["where"], got["revision"]) == (f"{REPOSITORY}/{index}", COMMIT)
    assert client.run(hub.url, DOWNLOAD, REPOSITORY, None, {}, HF_HUB_OFFLINE="1") == got | {"steps": []}
    missing = f"vae/{list(parts)[1]}"
    with HubServer({REPOSITORY: {name: content for name, content in files.items() if name != missing}}) as hub:
        got = Client(tmp_path / "other").run(hub.url, DOWNLOAD, REPOSITORY, None, {})
    assert got["message"].startswith(f"the hub repository {REPOSITORY} has no file {missing} at revision {COMMIT}. See")


def test_list_of_parts_that_names_files_elsewhere(client: Client) -> None:
    index = "diffusion_pytorch_model.safetensors.index.json"
    files: dict[str, bytes | Path] = {
        "config.json": msgspec.json.encode(TINY),
        index: msgspec.json.encode({"weight_map": {"a": "../../secret.safetensors"}}),
    }
    with HubServer({REPOSITORY: files}) as hub:
        got = client.run(hub.url, DOWNLOAD, REPOSITORY, None, {})
        assert hub.transfers() == []
    assert got["error"] == "WeightsError"
    assert got["message"].endswith(
        f"{index} names '../../secret.safetensors' as a part of the weights, which is not a file beside it; it is "
        "refused"
    )


def test_hub_that_cannot_be_reached_is_asked_once(client: Client) -> None:
    """The other files that are tried may be in the cache."""
    names = [WEIGHTS, "diffusion_pytorch_model.bin", FP16]
    with HubServer({REPOSITORY: {FP16: b"weights"}}) as hub:
        first = client.run(hub.url, FETCH, REPOSITORY, names)
    with HubServer({}, down=True) as hub:
        assert client.run(hub.url, FETCH, REPOSITORY, names) == first | {"steps": []}
        asked = {request.split()[1] for request in hub.requests if "/resolve/" in request}
    assert asked == {f"/{REPOSITORY}/resolve/main/{WEIGHTS}"}


def test_repository_without_a_vae_that_can_be_loaded(client: Client) -> None:
    with HubServer({REPOSITORY: dict(TRANSFORMER), "someone/empty": {"README.md": b"#"}}) as hub:
        got = client.run(hub.url, LOAD, REPOSITORY)
        none = client.run(hub.url, LOAD, "someone/empty")
        assert hub.transfers() == []
    assert got["error"] == "WeightsError"
    assert "config.json is the config of WanModel; the classes that can be loaded are AutoencoderKL, " in got["message"]
    assert none["message"].startswith(
        "the hub repository someone/empty has no file config.json or vae/config.json or movq/config.json or "
        "vqgan/config.json. "
    )


def test_revision_of_a_presets_own_repository(client: Client) -> None:
    """Another one than the preset's may have other weights: they need not have its hash, and have their own name."""
    preset = get_preset("mse840k")
    with HubServer({str(preset.repository): {preset.file: b"weights"}}) as hub:
        newest = client.run(hub.url, DOWNLOAD, "mse840k", None, {})
        got = client.run(hub.url, DOWNLOAD, "mse840k", None, {"revision": COMMIT})
        wrong = client.run(hub.url, DOWNLOAD, "mse840k", None, {"revision": "v2"})
    assert (newest["revision"], newest["own"]) == (COMMIT, True)
    assert (got["revision"], got["own"], got["preset"], got["name"]) == (COMMIT, False, "mse840k", "sd-vae-ft-mse")
    assert wrong["message"].startswith(f"the hub repository {preset.repository} has no revision v2. ")


@pytest.mark.slow
def test_preset_whose_repository_has_another_class(client: Client) -> None:
    preset = get_preset("sd15")
    with HubServer({str(preset.repository): {"vae/config.json": msgspec.json.encode(TINY), preset.file: b"w"}}) as hub:
        got = client.run(hub.url, LOAD, "sd15")
    assert got["message"].startswith(
        f"{preset.repository}/{preset.file} is of another architecture than preset sd15 (architecture sd): its "
        "config.json has class_name AutoencoderTiny, not AutoencoderKL. "
    )


@pytest.mark.slow
def test_full_architecture_from_the_hub(client: Client, tmp_path: Path) -> None:
    """A repository with seeded weights of the real architecture: what a preset without a known hash loads."""
    preset = get_preset("sd15")
    weights = random_tensors(preset.config, seed=2)
    file = tmp_path / "weights.safetensors"
    save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    fields = {"_class_name": "AutoencoderKL", "scaling_factor": 0.18215, **msgspec.structs.asdict(preset.config)}
    served: dict[str, bytes | Path] = {"vae/config.json": msgspec.json.encode(fields), preset.file: file}
    plain: dict[str, bytes | Path] = {
        "config.json": msgspec.json.encode(fields | {"scaling_factor": None}),
        WEIGHTS: file,
    }
    with HubServer({str(preset.repository): served, REPOSITORY: plain}, drops=[Drop(60 * MEGABYTE)]) as hub:
        own = client.run(hub.url, LOAD, "sd15")
        other = client.run(hub.url, LOAD, "mse840k", REPOSITORY)
    expected = load_reference("mse840k", file)
    assert own["identity"] == other["identity"] == expected.identity
    assert own["sha256"] == other["sha256"] == expected.origin.sha256
    assert (own["location"], own["licence"]) == (preset.repository, "OpenRAIL-M")
    assert (other["location"], other["preset"], other["licence"]) == (REPOSITORY, "mse840k", None)
    assert own["scale"] == other["scale"] == 0.18215
    kernel = expected.decoder.get_parameter("decoder.conv_in.weight")
    torch.testing.assert_close(kernel, weights["decoder.conv_in.weight"].half().float(), rtol=0, atol=0)


def test_a_bar_is_full_once_the_file_is_there() -> None:
    """The client does not report what it takes from a cache of its own."""
    steps = []
    bar = reporting_bar("what", lambda *step: steps.append(step))
    bar(total=10).update(2)
    bar.finish()
    bar.finish()
    assert steps[-1] == ("what", 10.0, 10.0)
