"""Bundles to the hub and back, by huggingface_hub's real client and a local server."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundle_folders import contents, edit, names
from engine_files import ENCODER, claim_engine
from hub_client import HubClient
from hub_server import COMMIT, HubServer
from PIL import Image
from tiny_bundle import FAILED, tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.bundle.address import Address, parse_address
from vaedeploy.bundle.stored import LARGEST
from vaedeploy.errors import BundleError, DownloadError, InputError, OutputError
from vaedeploy.pipeline.pull import pull_bundle
from vaedeploy.pipeline.push import push_bundle
from vaedeploy.runtime import VAE
from vaedeploy.runtime.unverified import unverified_text
from vaedeploy.system.installs import upgrade_command

REPOSITORY = "someone/tiny"
CACHE = Path("vaedeploy", "bundles", *REPOSITORY.split("/"))


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer({}) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubClient]:
    with HubClient(tmp_path_factory.mktemp("home"), server.url, HF_TOKEN=server.writer) as client:
        yield client


@pytest.fixture
def hub(server: HubServer, client: HubClient) -> HubServer:
    """The server with an empty repository, and nothing in the client's caches."""
    for folder in client.home.iterdir():
        shutil.rmtree(folder)
    for kept in (server.repositories, server.commits, server.heads, server.requests, server.stored):
        kept.clear()
    server.down, server.before_commit = False, None
    server.repositories[REPOSITORY] = {".gitattributes": b""}
    return server


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "tiny", report=b'{"passed": true}')


def put(hub: HubServer, bundle: Bundle) -> str:
    """Make a commit of a bundle without a client. Returns its hash."""
    return hub.add_commit(REPOSITORY, contents(bundle.path))


# ------------------------------------------------------------------------------------------------- there and back


def test_there_and_back(hub: HubServer, client: HubClient, bundle: Bundle, tmp_path: Path) -> None:
    pushed = client.run("push", bundle.path, REPOSITORY)
    commit = hub.heads[REPOSITORY]
    assert (pushed.code, pushed.out) == (0, f"hf://{REPOSITORY}@{commit}\n"), pushed.err
    assert pushed.err.startswith(f"Pushing to {REPOSITORY} ...\nPushing to {REPOSITORY}: done in ")
    files = hub.repositories[REPOSITORY]
    assert {name: files[name] for name in names(bundle.path)} == contents(bundle.path)
    assert files.keys() - set(names(bundle.path)) == {".gitattributes", "README.md"}
    assert len(hub.commits) == 2  # the empty one, and this

    pulled = client.run("pull", REPOSITORY)
    place = client.home / CACHE / commit / "tiny"
    assert (pulled.code, pulled.out) == (0, f"{place}\n"), pulled.err
    assert pulled.err.endswith(f"It is hf://{REPOSITORY}@{commit}\n")
    assert contents(place) == contents(bundle.path)
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]

    told = json.loads(client.run("pull", f"{REPOSITORY}@main", "-o", tmp_path / "own", "--json").out)
    assert (told["address"], told["path"]) == (f"hf://{REPOSITORY}@{commit}", str(tmp_path / "own"))
    assert contents(tmp_path / "own") == contents(bundle.path)
    told = json.loads(client.run("push", tmp_path / "own", REPOSITORY, "--json").out)
    assert (told["address"], told["error"]) == (f"hf://{REPOSITORY}@{commit}", None)  # nothing changed: no new commit
    assert len(hub.commits) == 2


def test_the_card_and_the_engines(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    with_engine = claim_engine(bundle)
    edit(bundle, lambda told: told.update(files=with_engine["files"], engines=with_engine["engines"]))
    pushed = client.run("push", bundle.path, REPOSITORY)
    assert pushed.code == 0
    stale = f"{ENCODER} is pushed and cannot be used: it was built from another graph than the encoder that is in the"
    assert f"{stale} bundle. Build it again: vaedeploy build" in pushed.err.replace("\n", " ")
    card = hub.repositories[REPOSITORY]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: vaedeploy\ntags:\n- vae\n- onnx\nlicense: apache-2.0\n---\n")
    assert f"| identity | `{bundle.manifest.vae.identity}` |" in card
    assert "| latent | 2 channels at 1/4 of the size of RGB images" in card
    assert f'vd.VAE("hf://{REPOSITORY}", identity="{bundle.manifest.vae.identity}")' in card
    assert "| verified | yes: 1 case on none against made by hand; " in card
    assert f"| engine | {ENCODER} |" in card
    assert hub.repositories[REPOSITORY][ENCODER] == (bundle.path / ENCODER).read_bytes()


def test_a_bundle_on_the_hub_stands_where_a_folder_does(
    hub: HubServer, client: HubClient, bundle: Bundle, tmp_path: Path
) -> None:
    address = f"hf://{REPOSITORY}@{put(hub, bundle)}"
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(picture)
    for source, name in ((address, "a"), (bundle.path, "b")):
        assert client.run("encode", source, picture, "-o", tmp_path / f"{name}.safetensors").code == 0
        ended = client.run("decode", source, tmp_path / f"{name}.safetensors", "-o", tmp_path / f"{name}.out.png")
        assert ended.code == 0
    for name in ("safetensors", "out.png"):
        assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"b.{name}").read_bytes()
    assert client.run("inspect", address, "--check").code == 0
    program = f"""
import pickle, vaedeploy as vd
with vd.VAE({address!r}) as vae:
    print(vae.path, pickle.loads(pickle.dumps(vae)).path == vae.path)
"""
    place = client.home / CACHE / address.partition("@")[2] / "tiny"
    assert client.python(program).out == f"{place} True\n"


def test_a_commit_that_was_pulled_needs_no_hub(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    first = put(hub, bundle)
    assert client.run("pull", REPOSITORY).code == 0
    second = put(hub, tiny_bundle(bundle.path, seed=1, force=True))
    hub.down = True
    hub.requests.clear()
    ended = client.run("inspect", f"hf://{REPOSITORY}@{first}")
    assert (ended.code, ended.err, hub.requests) == (0, "", [])
    ended = client.run("inspect", f"hf://{REPOSITORY}@{second}")
    assert (ended.code, ended.out) == (1, "")
    assert f"Error: cannot download {REPOSITORY}/bundle.json: {hub.url} does not answer as a hub" in ended.err
    assert ended.err.endswith("or pull it on another machine and copy the folder here\n")


# ----------------------------------------------------------------------------------------------------------- push


def test_files_of_the_bundle_before_are_removed_and_others_stay(
    hub: HubServer, client: HubClient, bundle: Bundle
) -> None:
    hub.repositories[REPOSITORY] = {"LICENSE": b"mine"}
    assert client.run("push", bundle.path, REPOSITORY).code == 0
    assert "report/onnxruntime-cuda.json" in hub.repositories[REPOSITORY]
    other = tiny_bundle(bundle.path, seed=1, force=True)
    assert client.run("push", other.path, REPOSITORY).code == 0
    files = hub.repositories[REPOSITORY]
    assert files.keys() == {"LICENSE", "README.md", *names(other.path)}
    assert files["decoder.onnx.data"] == (other.path / "decoder.onnx.data").read_bytes()


def test_a_card_that_somebody_wrote_stays(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    hub.repositories[REPOSITORY] = {"README.md": b"# Mine\n"}
    ended = client.run("push", bundle.path, REPOSITORY)
    assert ended.code == 0
    assert f"Warning: {REPOSITORY} has a README.md that somebody wrote; it stays as it is\n" in ended.err
    assert hub.repositories[REPOSITORY]["README.md"] == b"# Mine\n"


@pytest.mark.parametrize(("verification", "state"), [(None, "was never verified"), (FAILED, "failed its verification")])
def test_an_unverified_bundle_is_pushed_on_request_only(
    hub: HubServer, client: HubClient, tmp_path: Path, verification: object, state: str
) -> None:
    made = tiny_bundle(tmp_path / "tiny", verification=verification).path
    ended = client.run("push", made, REPOSITORY)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"Error: bundle {made} {state}, so it is not pushed. Run: vaedeploy verify {made}; or push it anyway "
        "with --allow-unverified (allow_unverified=True in Python)\n"
    )
    assert not hub.requests
    assert client.run("push", made, REPOSITORY, "--allow-unverified").code == 0


def test_a_damaged_bundle_is_not_pushed(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    (bundle.path / "report" / "onnxruntime-cuda.json").write_bytes(b"{}")
    ended = client.run("push", bundle.path, REPOSITORY)
    assert (ended.code, hub.requests) == (2, [])
    assert ended.err.startswith(f"Error: bundle {bundle.path} is damaged: report/onnxruntime-cuda.json has 2 bytes")


def test_where_the_weights_were_is_told(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    edit(bundle, lambda told: told["vae"]["origin"].update(kind="file", location="/home/me/a.safetensors"))
    ended = client.run("push", bundle.path, REPOSITORY)
    assert ended.code == 0
    assert "bundle.json says where the weights were on this disk: /home/me/a.safetensors" in ended.err


def test_who_may_not_write(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    client.python("import os; os.environ['HF_TOKEN'] = 'hf_reader'")
    try:
        ended = client.run("push", bundle.path, REPOSITORY)
    finally:
        client.python(f"import os; os.environ['HF_TOKEN'] = {hub.writer!r}")
    assert (ended.code, len(hub.commits)) == (1, 0)
    assert f"Error: the hub does not let you write to {REPOSITORY}: " in ended.err
    assert ended.err.endswith("or take a token with the right to write: HF_TOKEN\n")


def test_push_without_a_token(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    client.python("import os; del os.environ['HF_TOKEN']")
    try:
        ended = client.run("push", bundle.path, REPOSITORY)
    finally:
        client.python(f"import os; os.environ['HF_TOKEN'] = {hub.writer!r}")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.endswith(
        f"Error: the hub wants a token for {REPOSITORY}, and there is none. Run `hf auth login`, or set HF_TOKEN, or "
        "copy the bundle's folder in another way\n"
    )


def test_push_to_a_repository_that_is_not_there(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    ended = client.run("push", bundle.path, "someone/else")
    assert ended.code == 1
    assert "Error: the hub has no repository someone/else, or it is private." in ended.err
    assert ended.err.endswith("To make it: hf repos create someone/else\n")
    ended = client.run("push", bundle.path, f"{REPOSITORY}@no-branch")
    assert f"Error: the hub repository {REPOSITORY} has no revision no-branch." in ended.err


def test_push_while_the_hub_is_out_of_order(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    hub.down = True
    ended = client.run("push", bundle.path, REPOSITORY)
    assert ended.code == 1
    assert f"Error: the push to {REPOSITORY} failed: " in ended.err
    assert ended.err.endswith("Run the command again, or copy the bundle's folder in another way\n")


def test_somebody_elses_commit_in_between(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    """Files that have not changed are not sent, so the two commits would be mixed."""
    put(hub, bundle)
    other = contents(tiny_bundle(bundle.path.parent / "other", seed=1).path)
    hub.before_commit = lambda: hub.add_commit(REPOSITORY, other)
    ended = client.run("push", bundle.path, REPOSITORY)
    assert ended.code == 1
    assert f"Error: the push to {REPOSITORY} failed: " in ended.err
    assert hub.repositories[REPOSITORY] == other


# ----------------------------------------------------------------------------------------------------------- pull


def no_trace(client: HubClient) -> bool:
    return not [path for path in (client.home / CACHE).rglob("*") if not path.is_dir()]


@pytest.mark.parametrize(
    ("repository", "told"),
    [
        ("someone/else", "the hub has no repository someone/else, or it is private."),
        (f"{REPOSITORY}@v9", f"the hub repository {REPOSITORY} has no revision v9."),
    ],
)
def test_what_is_not_there(hub: HubServer, client: HubClient, bundle: Bundle, repository: str, told: str) -> None:
    put(hub, bundle)
    for command in (("pull", repository), ("inspect", f"hf://{repository}")):
        ended = client.run(*command)
        assert (ended.code, ended.out) == (1, "")
        assert f"Error: {told}" in ended.err


def test_a_repository_that_is_no_bundle(hub: HubServer, client: HubClient) -> None:
    ended = client.run("pull", REPOSITORY)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(
        f"Error: the hub repository {REPOSITORY} has no bundle.json, so it holds no bundle. See what it has at "
        f"{hub.url}/{REPOSITORY}; weights become a bundle with: vaedeploy export {REPOSITORY}\n"
    )


def _newer(told: dict[str, object]) -> None:
    told["format"] = 2


def _elsewhere(told: dict[str, object]) -> None:
    told["files"]["../up"] = {"sha256": "0" * 64, "bytes": 0}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_newer, f"has format 2; this vaedeploy knows format 1 only. Upgrade: {upgrade_command()}\n"),
        (_elsewhere, ": bundle.json names the path '../up', which leaves the bundle; it is refused\n"),
        (
            lambda told: told.pop("latent"),
            ": bundle.json cannot be used: Object missing required field `latent`. Tell the repository's owner, or "
            "take another revision\n",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used(
    hub: HubServer, client: HubClient, bundle: Bundle, change: object, why: str
) -> None:
    edit(bundle, change)
    commit = put(hub, bundle)
    ended = client.run("pull", REPOSITORY)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(why)
    assert f"Error: bundle hf://{REPOSITORY}@{commit}" in ended.err
    assert no_trace(client)


def test_a_manifest_that_is_none(hub: HubServer, client: HubClient) -> None:
    commit = hub.add_commit(REPOSITORY, {"bundle.json": b" " * (LARGEST + 1)})
    ended = client.run("pull", REPOSITORY)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(
        f"Error: bundle hf://{REPOSITORY}@{commit}: bundle.json cannot be read: it has more than 16,777,216 bytes. "
        "Tell the repository's owner, or take another revision\n"
    )


def test_files_that_are_not_those_of_the_manifest(
    hub: HubServer, client: HubClient, bundle: Bundle, tmp_path: Path
) -> None:
    files = contents(bundle.path)
    del files["encoder.onnx.data"]
    commit = hub.add_commit(REPOSITORY, files | {"decoder.onnx.data": b"other"})
    for command in (("pull", REPOSITORY), ("pull", REPOSITORY, "-o", tmp_path / "out")):
        ended = client.run(*command)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.endswith(
            f"Error: bundle hf://{REPOSITORY}@{commit} is damaged: decoder.onnx.data is not as bundle.json says; "
            "encoder.onnx.data is missing. Tell the repository's owner, or take another revision\n"
        )
    assert no_trace(client)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_another_vae_is_refused_before_it_is_downloaded(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    commit = put(hub, bundle)
    ended = client.run("pull", REPOSITORY, "--identity", "2" * 64)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(
        f"Error: bundle hf://{REPOSITORY}@{commit} holds a VAE other than the one that is wanted: its identity is "
        f"{'1' * 64}, and not {'2' * 64}. Take the bundle of that VAE, or the identity of this one\n"
    )
    assert not hub.transfers()
    assert client.run("pull", REPOSITORY, "--identity", "1" * 64).code == 0
    assert client.run("pull", f"{REPOSITORY}@{commit}", "--identity", "2" * 64).code == 2  # in the cache by now


def test_an_identity_pins_a_folder_too(bundle: Bundle) -> None:
    VAE(bundle.path, identity="1" * 64).close()
    with pytest.raises(BundleError, match=f"its identity is {'1' * 64}, and not {'2' * 64}"):
        VAE(bundle.path, identity="2" * 64)
    told = rf"^identity is '1111'; give a whole one, of 64 hexadecimal digits\. That of bundle .* is {'1' * 64}$"
    with pytest.raises(InputError, match=told):
        VAE(bundle.path, identity="1111")


def test_a_folder_that_is_there_is_replaced_on_request_only(
    hub: HubServer, client: HubClient, bundle: Bundle, tmp_path: Path
) -> None:
    put(hub, bundle)
    own = tiny_bundle(tmp_path / "own", seed=1)
    ended = client.run("pull", REPOSITORY, "-o", own.path)
    assert ended.code == 2
    assert f"Error: {own.path} exists already. Replace it with --force" in ended.err
    assert client.run("pull", REPOSITORY, "-o", own.path, "--force").code == 0
    assert contents(own.path) == contents(bundle.path)


@pytest.mark.parametrize("point", ["file_info", "replace_directory"])
def test_a_pull_that_is_killed_leaves_nothing_that_opens(
    hub: HubServer, client: HubClient, bundle: Bundle, point: str
) -> None:
    commit = put(hub, bundle)
    program = f"""
import os
import vaedeploy.bundle.pull
if os.fork() == 0:
    vaedeploy.bundle.pull.{point} = lambda *args, **more: os._exit(9)
    vaedeploy.bundle.pull.bundle_folder("hf://{REPOSITORY}")
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert client.python(program).out == "9\n"
    left = [path.name for path in (client.home / CACHE / commit).iterdir()]
    assert "tiny" not in left
    assert any(name.endswith(".tmp") for name in left)
    assert client.run("pull", REPOSITORY).code == 0
    assert [path.name for path in (client.home / CACHE / commit).iterdir()] == ["tiny"]
    assert contents(client.home / CACHE / commit / "tiny") == contents(bundle.path)


def test_several_pull_at_once(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    put(hub, bundle)
    program = f"""
from concurrent.futures import ThreadPoolExecutor
from vaedeploy.bundle import Bundle
with ThreadPoolExecutor(6) as pool:
    paths = set(pool.map(lambda n: Bundle.open("hf://{REPOSITORY}").path.name, range(6)))
print(paths)
"""
    ended = client.python(program)
    assert ended.out == "{'tiny'}\n", ended.err


def test_the_copy_in_the_cache_is_not_changed(hub: HubServer, client: HubClient, bundle: Bundle) -> None:
    address = f"hf://{REPOSITORY}@{put(hub, bundle)}"
    program = f"from vaedeploy.bundle import Bundle; Bundle.open({address!r}).update(files={{'a': b'a'}})"
    place = client.home / CACHE / address.partition("@")[2] / "tiny"
    assert client.python(program).err.endswith(
        f"OutputError: cannot write bundle {place}: it is the cache's copy of a bundle on the hub. Pull it into a "
        "folder of your own: vaedeploy pull OWNER/NAME -o FOLDER\n"
    )
    for name in ("encoder.onnx", "bundle.json"):
        (place / name).write_bytes(b"x")
        ended = client.run("inspect", address, "--check")
        assert ended.err.endswith(
            "It is the cache's copy of a bundle on the hub: remove the folder, and it is pulled again\n"
        )


# ------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a/b", Address("a/b")),
        ("hf://a/b", Address("a/b")),
        ("hf://a/b.c@v1.0", Address("a/b.c", "v1.0")),
        (f"a/b@{COMMIT}", Address("a/b", COMMIT)),
        ("a/b@refs/pr/1", Address("a/b", "refs/pr/1")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "a", "a/b/c", "hf://", "hf://a", "a/b@", "/a/b", "../b", "a/..", "a b/c", "a/b\n"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="names no hub repository; write owner/name or owner/name@revision"):
        parse_address(text)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """As in a container whose user is a number: there is no cache, and bundles elsewhere are written to as ever."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    bundle.update(files={"a": b"a"})
    with pytest.raises(OutputError, match="there is no home for the cache; set XDG_CACHE_HOME to a folder"):
        VAE(f"hf://a/b@{COMMIT}")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DownloadError, match=r'is not installed. Run: .*install .*\[hub\]"'):
        VAE("hf://a/b")
    with pytest.raises(DownloadError, match=r'is not installed. Run: .*install .*\[hub\]"'):
        push_bundle(bundle, "a/b")
    # What is in the cache needs no client.
    place = tmp_path / "cache" / "vaedeploy" / "bundles" / "a" / "b" / COMMIT / "b"
    shutil.copytree(bundle.path, place)
    assert pull_bundle(f"a/b@{COMMIT}").path == place
    # No verdict can be noted there.
    (place.parents[2] / "c" / COMMIT).mkdir(parents=True)
    unverified = tiny_bundle(place.parents[2] / "c" / COMMIT / "c", verification=None)
    assert str(unverified_text(unverified)).endswith("(vaedeploy pull OWNER/NAME -o FOLDER) and verify it there")
