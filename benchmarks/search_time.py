"""A grid search over the augmentation, against its most expensive single fit.

Twelve numbers of pairs, the largest first: its fit encodes every prompt that the
others need, because the prompts of fewer pairs are the first of those of more. Then the
same search in a new process, which finds all embeddings in the cache on disk. Both
encode 40 images. Times are those of GridSearchCV itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

_SEARCH = """
import sys, time
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from clipad_sklearn import CLIPImageEncoder, OpenCLIP, RandomWordDetector
from clipad_sklearn._clip import check_clip
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit

data = make_defect_images(40, size=128, random_state=0)
clip = check_clip(sys.argv[1]).set_params(embedding_cache=sys.argv[2])
pipeline = make_pipeline(CLIPImageEncoder(clip), RandomWordDetector(clip))
pipeline.set_params(randomworddetector__random_state=0)
sizes = [10_000, 7_000, 5_000, 3_000, 2_000, 1_500, 1_000, 700, 500, 300, 200, 100]
grid = {"randomworddetector__n_pairs": sizes}
search = GridSearchCV(
    pipeline, grid, cv=ZeroShotSplit(), refit=False, n_jobs=int(sys.argv[3])
)
clip.encode_text(["the weights are loaded"])
start = time.perf_counter()
search.fit(data.images, data.target)
elapsed = time.perf_counter() - start
result = search.cv_results_
print(elapsed, result["mean_fit_time"][0] + result["mean_score_time"][0])
"""


def search(clip: str, folder: str, n_jobs: int) -> tuple[float, float]:
    """Return the seconds of the search and of its most expensive setting."""
    command = [sys.executable, "-c", _SEARCH, clip, folder, str(n_jobs)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    elapsed, largest = map(float, result.stdout.split())
    return elapsed, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", default="ViT-B-16-plus-240/random")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, largest = search(arguments.clip, folder, arguments.jobs)
        print(f"{arguments.clip}, n_jobs={arguments.jobs}: most expensive setting")
        print(
            f"  {largest:.1f} s; search {first:.1f} s: {first / largest:.2f} times it"
        )
        second, _ = search(arguments.clip, folder, arguments.jobs)
        print(f"  again, in a new process: {second:.1f} s, {second / first:.3f} of it")


if __name__ == "__main__":
    main()
