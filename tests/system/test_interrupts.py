"""Signals that ask a command to stop: in a child process, and none is lost."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")

LOST = """
    import os, signal, sys
    from vaedeploy.system.interrupts import SIGNALS, Stopped, remembering

    class Signalling:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with remembering():
        Signalling()  # Python prints that it ignores the exception, since a destructor runs
        print("it was lost", flush=True)
        try:
            {step}
        except Stopped as stopped:
            assert stopped.number == signal.SIGTERM
            print("stopped")
"""

STEPS = {
    "telling how far it is": """
            from vaedeploy.cli.progress import progress_display
            with progress_display() as progress:
                progress("Working", 0, 2)
    """,
    "running a graph": """
            from vaedeploy.system.processes import native_call
            with native_call():
                pass
    """,
    "rewriting a graph": """
            from pathlib import Path
            from vaedeploy.graph.graph import load_graph
            from vaedeploy.rewrite import rewrite_graph
            rewrite_graph(load_graph(Path(sys.argv[1]), "decoder"))
    """,
}


def child(script: str, *arguments: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("step", STEPS)
def test_a_signal_whose_exception_is_lost_stops_the_next_step(step: str, tmp_path: Path) -> None:
    save(multiplications(1, 2), tmp_path / "graph.onnx")
    script = textwrap.dedent(LOST).format(step=textwrap.indent(textwrap.dedent(STEPS[step]), " " * 8).strip())
    with child(script, tmp_path / "graph.onnx") as process:
        output, errors = process.communicate()
    assert output == "it was lost\nstopped\n", errors
    assert "Exception ignored in" in errors


def multiplications(count: int, side: int) -> object:
    """A graph of so many products of matrices of ``side``, one after another."""
    names = ["image", *(f"product_{index}" for index in range(count - 1)), "result"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)],
        "multiplications",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [side, side])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [side, side])],
        [numpy_helper.from_array(np.eye(side, dtype=np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


RUN = """
    import sys, threading
    from pathlib import Path
    import numpy as np
    from vaedeploy.runtime.onnxruntime_cpu import Session
    from vaedeploy.system.interrupts import Stopped, remembering

    session = Session(Path(sys.argv[1]))
    image = np.ones((1000, 1000), np.float32)
    with remembering():
        try:
            threading.Timer(0.1, print, ["it runs"], {"flush": True}).start()
            session.run(["result"], {"image": image})
        except Stopped as stopped:
            print(stopped.number, stopped.__context__)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_of_a_graph_before_its_end(number: signal.Signals, tmp_path: Path) -> None:
    """Which would take minutes: ONNX Runtime itself says that it was ended."""
    save(multiplications(5000, 1000), tmp_path / "graph.onnx")
    with child(textwrap.dedent(RUN), tmp_path / "graph.onnx") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "it runs\n"
        process.send_signal(number)
        output, errors = process.communicate()
    assert output.startswith(f"{number.value} "), errors
    assert "terminate flag" in output


HANDLED = """
    import os, signal
    from vaedeploy.system.interrupts import ending_early, remembering

    with ending_early(lambda: print("ended")), remembering():
        signal.signal(signal.SIGTERM, lambda *_: print("handled"))
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_that_is_handled_otherwise_ends_no_call() -> None:
    """A server answers what is in flight: it has a handler of its own."""
    with child(textwrap.dedent(HANDLED)) as process:
        output, errors = process.communicate()
    assert (output, errors) == ("handled\n", "")


FAILED = """
    import threading
    from contextlib import suppress
    from vaedeploy.system.interrupts import remembering

    for _ in range(100):
        with suppress(ValueError), remembering():
            raise ValueError
        print(*(thread.name for thread in threading.enumerate()))
"""


def test_an_error_leaves_no_thread_that_waits_for_signals() -> None:
    """Its socket is closed, or is somebody else's by then."""
    with child(textwrap.dedent(FAILED)) as process:
        output, errors = process.communicate()
    assert (output, errors) == ("MainThread\n" * 100, "")
