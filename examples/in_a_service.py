"""
In a service
============

A detector behind HTTP, with nothing but Python's standard library: each POST holds the
bytes of one photo, and the answer says whether it is anomalous. ::

    python in_a_service.py detector.joblib 8000
    curl --data-binary @photo.jpg http://localhost:8000/

The same class fits into any web framework. :doc:`/guide/service` explains the choices.
"""

import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import joblib
import numpy as np

from clipad_sklearn import ImageReadError

LARGEST_PHOTO = 20_000_000  # bytes


class Inspector:
    """A fitted detector, ready before the first request. Threads may share it."""

    def __init__(self, detector):
        self.detector = detector
        # Loads the weights: a first request should not wait for them. Without weights
        # this raises WeightsNotFound, and the service does not start.
        self.detector.decision_function([np.full((64, 64, 3), 128, dtype=np.uint8)])

    def inspect(self, photo):
        """Return the verdict on the bytes of a photo; raise ImageReadError."""
        [above] = self.detector.decision_function([photo])
        verdict = "normal" if above >= 0 else "anomalous"
        return {"verdict": verdict, "above_threshold": float(above)}


class Handler(BaseHTTPRequestHandler):
    """One POST is one photo."""

    inspector = None

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        length = int(length) if length.isdecimal() else 0
        if not 0 < length <= LARGEST_PHOTO:
            self.close_connection = True
            return self.answer(413, {"error": f"send 1 to {LARGEST_PHOTO} bytes"})
        try:
            return self.answer(200, self.inspector.inspect(self.rfile.read(length)))
        except ImageReadError as error:  # the sender's fault, and only this photo's
            [(_, _, reason)] = error.failures
            return self.answer(422, {"error": reason})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def make_server(detector, port):
    """Return a server on this machine only; it warms up before it listens."""
    inspector = Inspector(detector)
    handler = type("PhotoHandler", (Handler,), {"inspector": inspector})
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python in_a_service.py DETECTOR.joblib PORT")
    logging.basicConfig(level=logging.INFO)
    logging.captureWarnings(True)
    detector = joblib.load(sys.argv[1])  # only files that you trust
    server = make_server(detector, int(sys.argv[2]))
    logging.info("listening on port %d of this machine", server.server_port)
    server.serve_forever()
