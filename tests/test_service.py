"""The service of the examples: verdicts on uploaded photos, and what is no photo."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    PromptDetector,
    WeightsNotFound,
)
from clipad_sklearn.datasets import make_defect_images

EXAMPLE = Path(__file__).parents[1] / "examples" / "in_a_service.py"


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("in_a_service", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def uploads():
    contents = []
    for pixels in make_defect_images(8, size=96, random_state=0).images:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    return contents


@pytest.fixture(scope="module")
def detector(uploads):
    pipeline = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")).fit(None)
    pipeline[-1].offset_ = sorted(pipeline.score_samples(uploads))[4]
    return pipeline


@pytest.fixture(scope="module")
def address(service, detector):
    server = service.make_server(detector, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def post(address, content):
    request = urllib.request.Request(address, data=content)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_verdicts_are_those_of_the_detector(address, detector, uploads):
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda content: post(address, content), uploads))
    expected = detector.decision_function(uploads)
    assert {status for status, _ in answers} == {200}
    assert [said["above_threshold"] for _, said in answers] == pytest.approx(expected)
    verdicts = [said["verdict"] for _, said in answers]
    assert verdicts == ["anomalous" if d < 0 else "normal" for d in expected]
    assert verdicts.count("normal") == 4


def test_what_is_no_photo_is_the_fault_of_the_sender(address, uploads):
    assert post(address, b"no photo") == (
        422,
        {"error": "not an image, or of an unknown format"},
    )
    assert post(address, uploads[0][:200])[0] == 422
    assert post(address, b"")[0] == 413
    assert post(address, uploads[0])[0] == 200


def test_without_weights_the_service_does_not_start(service, tmp_path):
    (tmp_path / "empty").mkdir()
    pipeline = make_pipeline(CLIPImageEncoder("tiny"), PromptDetector("tiny")).fit(None)
    pipeline[0].clip = str(tmp_path / "empty")
    with pytest.raises(WeightsNotFound):
        service.make_server(pipeline, 0)
