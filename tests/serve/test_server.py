"""``vaedeploy serve`` as a process: what it says, what it refuses to start with, and what it does without room."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest
from served import served
from serving import read_answer
from tiny_bundle import FAILED, tiny_bundle

from vaedeploy.bundle import Bundle


def test_what_it_says(bundle):
    with served(f"small={bundle}", "--identity", Bundle.open(bundle).manifest.vae.identity) as (process, port):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).status == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert err == "Stopped by SIGINT; every request was answered\n"
    (line,) = out.splitlines()
    assert json.loads(line)["path"] == "/v2/health/ready"


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="it needs IPv6")  # noqa: PTH110
def test_addresses_of_ipv6_are_told_as_urls_have_them(bundle):
    with served(bundle, "--host", "::1") as (process, port):
        with socket.create_connection(("::1", port)) as connection:
            connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(connection).status == 200
            client = connection.getsockname()[1]
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert json.loads(out)["client"] == f"[::1]:{client}"


def test_it_needs_neither_pytorch_nor_onnx():
    script = "import sys, vaedeploy.serve.server; print({'torch', 'onnx', 'onnx_ir', 'diffusers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def refused(vaedeploy, *arguments: object) -> str:
    ended = vaedeploy("serve", *arguments)
    assert (ended.code, ended.out) == (2, "")
    return ended.err


def test_what_it_refuses_to_start_with(vaedeploy, bundle, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(vaedeploy, bundle, "--port", port)
        assert told == (
            f"Error: cannot listen on port {port} of 127.0.0.1: another program does. Choose another port with --port, "
            "or 0 for any that is free\n"
        )
    told = refused(vaedeploy, bundle, "--host", "no.such.host.invalid")
    assert told.startswith("Error: cannot listen on 'no.such.host.invalid': ")
    assert "Errno" not in told
    assert refused(vaedeploy, bundle, "--host", "a..b") == (
        "Error: cannot listen on 'a..b': no host has such a name. Give an address of this machine with --host\n"
    )
    assert refused(vaedeploy, bundle, "--host", "192.0.2.1").startswith(
        "Error: cannot listen on port 8000 of 192.0.2.1: Cannot assign requested address. Give an address of this"
    )
    free = ("--port", "0")
    assert refused(vaedeploy, bundle, bundle, *free) == (
        f"Error: bundles {bundle} and {bundle} are both called tiny; give one another name: NAME={bundle}\n"
    )
    assert refused(vaedeploy, f"a b={bundle}", *free) == (
        f"Error: 'a b' cannot be part of a path; give a name of letters, digits, '.', '_' and '-': NAME={bundle}\n"
    )
    assert "there is no bundle" in refused(vaedeploy, tmp_path / "none", *free)
    unverified = tiny_bundle(tmp_path / "unverified", verification=FAILED).path
    assert refused(vaedeploy, unverified, *free) == (
        f"Error: bundle {unverified} failed its verification; its images may be wrong. Run: vaedeploy verify "
        f"{unverified}. To serve it anyway, give --allow-unverified\n"
    )
    damaged = tiny_bundle(tmp_path / "damaged").path
    (damaged / "decoder.onnx").write_bytes(b"x" * (damaged / "decoder.onnx").stat().st_size)
    assert "decoder.onnx" in refused(vaedeploy, bundle, f"other={damaged}", *free)
    assert "'64' is not a size; give height x width" in refused(vaedeploy, bundle, "--warm-up", "64", *free)
    assert refused(vaedeploy, bundle, f"b={bundle}", "--warm-up", "64x64", "--warm-up", "30x64", *free) == (
        "Error: tiny cannot be warmed up at 30x64 (height x width): both must be multiples of 4, and at least that. "
        "Give another --warm-up\n"
    )
    assert refused(vaedeploy, f"={bundle}", *free).startswith(
        "Error: '' cannot be part of a path; give a name of letters"
    )
    assert f"bundle {bundle} holds a VAE other than the one that is wanted" in refused(
        vaedeploy, bundle, "--identity", "0" * 64, *free
    )
    assert "Error: --identity is that of one VAE, and 2 bundles are given. Give one bundle." in refused(
        vaedeploy, bundle, f"b={bundle}", "--identity", "0" * 64, *free
    )
    assert "Missing argument '[NAME=]BUNDLE...'" in refused(vaedeploy)


def test_an_unverified_bundle_is_served_with_a_warning(tmp_path):
    unverified = tiny_bundle(tmp_path / "unverified", verification=None).path
    with served(unverified, "--allow-unverified") as (process, _):
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_more_connections_than_files_that_may_be_open(bundle):
    """asyncio would log a traceback for each connection that waits, over and over."""
    with served(bundle, files=150) as (process, port), ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(300)]
        assert {read_answer(connection).status for connection in opened[-100:]} == {503}
        opened[0].sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(opened[0]).status == 200
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert err == "Stopped by SIGTERM; every request was answered\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it needs a full disk")  # noqa: PTH110
def test_a_full_disk_ends_the_log_and_not_the_server(bundle):
    with open("/dev/full", "w") as full, served(bundle, stdout=full) as (process, port):  # noqa: PTH123
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert read_answer(connection).status == 200
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.splitlines()) == (
        0,
        [
            "Warning: cannot write the result to stdout: No space left on device; requests are no longer logged",
            "Stopped by SIGTERM; every request was answered",
        ],
    )
