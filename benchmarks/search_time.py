"""A grid search over the augmentation, against its most expensive single fit.

Twelve numbers of pairs, the largest first: its fit encodes every prompt that the
others need, because the prompts of fewer pairs are the first of those of more. The
network is a small one, as a search wants it. Then the same search in a new process,
which finds all embeddings in the cache on disk, and once more with the network that
RandomWordDetector has by default, of which twelve must be trained. Each scores 40
images.
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
from clipad_sklearn import (
    CLIPImageEncoder,
    FeedForwardClassifier,
    RandomWordDetector,
)
from clipad_sklearn._clip.settings import check_clip
from clipad_sklearn.datasets import make_defect_images
from clipad_sklearn.model_selection import ZeroShotSplit

data = make_defect_images(40, size=128, random_state=0)
clip = check_clip(sys.argv[1]).set_params(embedding_cache=sys.argv[2])
network = FeedForwardClassifier((64,)) if sys.argv[4] == "small" else None
words = RandomWordDetector(clip, classifier=network, random_state=0)
pipeline = make_pipeline(CLIPImageEncoder(clip), words)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", default="ViT-B-16-plus-240/random")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()

    def search(network: str) -> tuple[float, float]:
        """Return the seconds of the search and of its most expensive setting."""
        given = [arguments.clip, folder, str(arguments.jobs), network]
        command = [sys.executable, "-c", _SEARCH, *given]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        elapsed, largest = map(float, result.stdout.split())
        return elapsed, largest

    with tempfile.TemporaryDirectory() as folder:
        first, largest = search("small")
        print(f"{arguments.clip}, n_jobs={arguments.jobs}: most expensive setting")
        print(
            f"  {largest:.1f} s; search {first:.1f} s: {first / largest:.2f} times it"
        )
        second, _ = search("small")
        print(f"  again, in a new process: {second:.1f} s, {second / first:.3f} of it")
        third, _ = search("default")
        print(f"  again, with the default network: {third:.1f} s")


if __name__ == "__main__":
    main()
