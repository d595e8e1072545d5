"""Without weights to fetch, nothing opens a connection."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import clipad_sklearn
from clipad_sklearn.datasets import make_defect_images

_SCRIPT = """
import socket, sys

used = []

class NoSocket(socket.socket):
    def connect(self, address):
        used.append(address)
        raise OSError(f"no network in this test, but {address} was called")
    connect_ex = bind = sendto = connect

def no_name(*names, **more):
    used.append(names)
    raise OSError(f"no network in this test, but {names} was looked up")

socket.socket = NoSocket
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = no_name

from clipad_sklearn._cli.main import main

tiny = ["--clip", "tiny"]
prompt = [*tiny, "--method", "prompt"]
files = ["--out", "a.csv", "--report", "a.html", "--heat-maps", "--save", "a.joblib"]
assert main(["score", "photos", *prompt, *files]) == 0
assert main(["score", "photos", "--load", "a.joblib", "--out", "b.json"]) == 0
assert main(["score", "photos", *tiny, "--method", "sdp", "--maps", "maps"]) == 0
options = ["--methods", "prompt", "--seeds", "1"]
place = ["--data", "folder", "--root", "photos", "--out", "results"]
assert main(["benchmark", *place, *options, *tiny]) == 0

from sklearn.pipeline import make_pipeline
from clipad_sklearn import CLIPImageEncoder, FeedForwardClassifier
from clipad_sklearn import RandomWordDetector, list_images

photos = list_images("photos")
detector = make_pipeline(
    CLIPImageEncoder("my clip"),
    RandomWordDetector(
        "my clip",
        n_pairs=50,
        classifier=FeedForwardClassifier(n_epochs=1, min_steps=5),
        contamination=0.3,
    ),
)
assert set(detector.fit(photos).predict(photos)) == {-1, 1}
assert main(["models"]) == 0
assert not used, used

# The guard holds: what has to be fetched is looked for.
assert main(["score", "photos", "--clip", "ViT-B-32/laion2b_s34b_b79k"]) == 2
assert used
"""


def test_no_connection_is_opened(tmp_path: Path) -> None:
    data = make_defect_images(6, size=48, random_state=0)
    for i, (pixels, target) in enumerate(zip(data.images, data.target, strict=True)):
        folder = tmp_path / "photos" / ("good" if target == 1 else "bad")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(folder / f"{i}.png")
    package = Path(clipad_sklearn.__file__).parent
    shutil.copytree(package / "tiny", tmp_path / "my clip")
    env = {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hub"),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(package.parent),
    }
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
