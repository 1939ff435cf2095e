"""A bundle inside a service of one's own: it is opened once, warmed up before it is ready, and used by all threads.

    python examples/service.py mse840k --port 8000
    curl http://127.0.0.1:8000/ready
    curl --data-binary @photo.safetensors http://127.0.0.1:8000/decode -o photo.png

For a server that joins requests, bounds its queue and speaks the Open Inference Protocol, take vaedeploy's own.
"""

from __future__ import annotations

import argparse
import io
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load

import vaedeploy as vd

LARGEST = 1 << 24
"""Bytes that a request may have."""


def handler(vae: vd.VAE) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A load balancer sends requests once this says 200: both halves are loaded, and each size has run.
            ready = self.path == "/ready" and vae.ready
            self.answer(200 if ready else 503, "text/plain", b"ready\n" if ready else b"not ready\n")

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            if size > LARGEST:
                self.answer(413, "text/plain", b"too large\n")
                return
            try:
                image = vae.decode(load(self.rfile.read(size))["latent"])[0]
            except (vd.LatentError, vd.SizeError, vd.MemoryLimitError, SafetensorError, KeyError) as error:
                # The client's fault; everything else is ours.
                self.answer(400, "text/plain", f"{error}\n".encode())
                return
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            self.answer(200, "image/png", png.getvalue())

        def answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a folder, or hf://owner/name@revision")
    parser.add_argument("--identity", help="that of the VAE, as vaedeploy inspect shows it")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    with vd.VAE(options.bundle, identity=options.identity) as vae:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), handler(vae))
        server.daemon_threads = False  # what is in flight is answered before the program ends
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        warming = threading.Thread(target=vae.warm_up, args=(options.size or [(512, 512)],))
        warming.start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        with server:
            server.serve_forever(0.1)
        warming.join()


if __name__ == "__main__":
    main()
