"""Do thresholds keep what `calibrate_threshold` promises?

On 10,000 simulated calibration sets of each kind, whose rates of false alarms follow
from the distribution they are drawn from; and on real photos in the layout of MVTec AD
where a folder is given, with random halves of the good photos of each category::

    python benchmarks/promises.py
    python benchmarks/promises.py --data "$CLIPAD_SHARED_DATA"
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import betainc
from sklearn.pipeline import make_pipeline

from clipad_sklearn import (
    CLIPImageEncoder,
    PromptDetector,
    RandomWordDetector,
    calibrate_threshold,
    list_images,
)
from clipad_sklearn._promises import threshold_rank
from clipad_sklearn.metrics import p_values, shift_test

# How to draw scores, and the probability of a score below a threshold.
Draw = Callable[[np.random.Generator, Any], np.ndarray]
KINDS: dict[str, tuple[Draw, Callable[[np.ndarray], np.ndarray]]] = {
    "normal": (lambda rng, size: rng.standard_normal(size), stats.norm.cdf),
    "log-normal": (
        lambda rng, size: -rng.lognormal(0, 1.5, size),
        lambda t: stats.lognorm.sf(-t, 1.5),
    ),
    "Student t, 2": (lambda rng, size: rng.standard_t(2, size), stats.t(2).cdf),
    "with ties": (
        lambda rng, size: np.round(3 * rng.standard_normal(size)),
        lambda t: stats.norm.cdf((t - 0.5) / 3),
    ),
}
PROMISES = [
    (20, 0.05, None),
    (40, 0.05, None),
    (40, 0.1, None),
    (150, 0.02, None),
    (29, 0.1, 0.95),
    (59, 0.05, 0.95),
    (149, 0.02, 0.95),
    (299, 0.01, 0.95),
    (150, 0.05, 0.95),
]


def simulate(n_sets: int, seed: int) -> None:
    """Print rates and broken promises beside their closed forms."""
    rng = np.random.default_rng(seed)
    print(f"{n_sets} calibration sets. se: standard errors from the closed form.")
    print(
        f"{'scores':14}{'n':>4}{'rate':>6}{'conf.':>7}{'k':>3}  "
        f"{'mean rate':>9}{'closed':>9}{'se':>6}  "
        f"{'broken':>8}{'closed':>9}{'se':>6}  {'0.1.0: mean':>11}{'broken':>8}"
    )
    for n, rate, confidence in PROMISES:
        rank = threshold_rank(n, rate, confidence)
        for name, (draw, below) in KINDS.items():
            scores = np.sort(draw(rng, (n_sets, n)), axis=1)
            rates = below(scores[:, rank - 1])
            mean = rank / (n + 1)
            broken = 1 - betainc(rank, n + 1 - rank, rate)
            share = np.mean(rates > rate)
            errors = (
                (rates.mean() - mean) / (rates.std() / np.sqrt(n_sets)),
                (share - broken) / np.sqrt(broken * (1 - broken) / n_sets),
            )
            old = below(threshold_of_0_1_0(scores, rate))
            print(
                f"{name:14}{n:4}{rate:6}{confidence or '-':>7}{rank:3}  "
                f"{rates.mean():9.4%}{mean:9.4%}{errors[0]:6.1f}  "
                f"{share:8.2%}{broken:9.2%}{errors[1]:6.1f}  "
                f"{old.mean():11.2%}{np.mean(old > rate):8.1%}"
            )


def threshold_of_0_1_0(scores: np.ndarray, rate: float) -> np.ndarray:
    """Return the thresholds that flag at most this share of each row itself."""
    n = scores.shape[1]
    flagged = int(rate * n + 1e-9)
    if flagged == 0:
        return scores[:, 0]
    return (scores[:, flagged - 1] + scores[:, flagged]) / 2


def simulate_days(n_days: int, seed: int) -> None:
    """Print how often good days are rejected, and days whose scores have moved."""
    rng = np.random.default_rng(seed)
    print(
        f"\n{n_days} good days, each with a calibration of its own: share rejected by"
    )
    print(
        f"{'scores':14}{'n':>4}{'day':>6}  {'shift_test at 1 %':>17}{'5 %':>8}"
        f"{'10 %':>8}  {'uniform p-values at 5 %':>24}  {'moved by 0.5, at 1 %':>21}"
    )
    for name in ("normal", "with ties"):
        draw = KINDS[name][0]
        for n in (40, 150):
            for day in (40, 200, 1000):
                found, uniform, moved = [], [], []
                for _ in range(n_days):
                    calibration, scores = draw(rng, n), draw(rng, day)
                    found.append(shift_test(scores, calibration))
                    values = p_values(scores, calibration)
                    uniform.append(stats.kstest(values, "uniform").pvalue)
                    step = 0.5 if name == "normal" else 1.5
                    moved.append(shift_test(scores - step, calibration))
                shares = [np.mean(np.array(found) <= a) for a in (0.01, 0.05, 0.1)]
                print(
                    f"{name:14}{n:4}{day:6}  {shares[0]:17.2%}{shares[1]:8.2%}"
                    f"{shares[2]:8.2%}  {np.mean(np.array(uniform) <= 0.05):24.1%}"
                    f"  {np.mean(np.array(moved) <= 0.01):21.1%}"
                )


def measure(root: Path, clip: str, n_draws: int, seed: int) -> None:
    """Print promised and measured rates of each category below a folder."""
    detectors = {
        "prompt": PromptDetector(clip),
        "random-word": RandomWordDetector(clip, random_state=0),
    }
    print(f"\n{n_draws} halves of the good photos of each category, {clip}")
    print(
        f"{'category':14}{'method':13}{'n':>4}{'bad':>5}{'rate':>6}{'conf.':>7}"
        f"{'closed':>8}{'false alarms':>14}{'broken':>8}{'escapes':>9}"
    )
    folders = sorted(path.parents[1] for path in root.rglob("train/good"))
    for folder in folders:
        images = [*list_images(folder / "train"), *list_images(folder / "test")]
        is_good = np.array([Path(image).parent.name == "good" for image in images])
        for method, detector in detectors.items():
            pipeline = make_pipeline(CLIPImageEncoder(clip), detector).fit(None)
            scores = pipeline.score_samples(images)
            good, bad = scores[is_good], scores[~is_good]
            for rate, confidence in ((0.05, None), (0.1, None), (0.2, 0.9)):
                rng = np.random.default_rng(seed)
                results = [
                    one_half(rng, good, bad, rate, confidence) for _ in range(n_draws)
                ]
                false_alarms, escapes = np.array(results).T
                n = len(good) // 2
                rank = max(threshold_rank(n, rate, confidence), 1)
                print(
                    f"{folder.name:14}{method:13}{n:4}{len(bad):5}{rate:6}"
                    f"{confidence or '-':>7}{rank / (n + 1):8.2%}"
                    f"{false_alarms.mean():14.2%}{np.mean(false_alarms > rate):8.1%}"
                    f"{escapes.mean():9.1%}"
                )


class Scores(PromptDetector):
    """The samples are their scores, which were computed once."""

    def fit(self, X: Any = None, y: Any = None, class_name: Any = None) -> Any:
        self.classes_, self.offset_ = np.array([-1, 1]), 0.0
        return self

    def _margins(self, X: Any, class_name: Any = None) -> np.ndarray:
        return np.asarray(X)


def one_half(
    rng: np.random.Generator,
    good: np.ndarray,
    bad: np.ndarray,
    rate: float,
    confidence: float | None,
) -> tuple[float, float]:
    """Calibrate with one half of the good scores and measure with the other."""
    order = rng.permutation(len(good))
    half = len(good) // 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "max_false_alarm=")  # too few: as promised
        detector = calibrate_threshold(
            Scores().fit(),
            good[order[:half]],
            max_false_alarm=rate,
            confidence=confidence,
        )
    false_alarms = np.mean(detector.predict(good[order[half:]]) == -1)
    return float(false_alarms), float(np.mean(detector.predict(bad) == 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of categories")
    parser.add_argument("--clip", default="tiny")
    parser.add_argument("--sets", type=int, default=10_000)
    parser.add_argument("--days", type=int, default=1_000)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data is None:
        simulate(arguments.sets, arguments.seed)
        simulate_days(arguments.days, arguments.seed)
    else:
        measure(arguments.data, arguments.clip, arguments.draws, arguments.seed)


if __name__ == "__main__":
    main()
