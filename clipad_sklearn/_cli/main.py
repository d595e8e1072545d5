"""The command ``clipad``: its arguments, and what becomes of errors.

Nothing heavy is imported before the arguments are known to be right.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .._version import __version__
from .output import UsageError, as_usage_error, printable

# Methods that give anomaly maps.
_MAP_METHODS = ("winclip", "sdp", "sdp+")

# Of `clipad benchmark`; here, so that wrong arguments show before torch is imported.
_METHODS = (
    "clip-ac",
    "prompt",
    "random-word",
    "fusion",
    "winclip",
    "winclip-random-word",
    "sdp",
    "sdp-plus",
)

_EPILOG = """\
exit status:
  0    everything was done; with `score`, all images were scored
  1    some images could not be read; the others were scored and written
  2    wrong usage, no image found, or the weights are not there
  3    an error of the program itself
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Parameters
    ----------
    argv : sequence of str or None, default=None
        The arguments. None: those of the process.

    Returns
    -------
    int
        0, 1, 2, 3 or 130; ``clipad --help`` says which is which.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = _parse(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = arguments.run(arguments)
            sys.stdout.flush()
            return status
        except UsageError as error:
            lines = (printable(line) for line in str(error).split("\n"))
            print("clipad: error:", "\n".join(lines), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("clipad: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The reader of the output, such as `head`, has seen enough. What is
            # still to be flushed goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception:
            traceback.print_exc()
            print("clipad: this is an error of clipad itself", file=sys.stderr)
            return 3


def _show_warning(
    message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> None:
    text = " ".join(str(message).split())
    print(f"clipad: warning: {printable(text)}", file=sys.stderr)


# -- arguments -----------------------------------------------------------------


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clipad",
        description="Find defects on photos with CLIP, without any training image.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipad {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_score(commands)
    _add_demo(commands)
    _add_benchmark(commands)
    _add_models(commands)
    _add_cache(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.check(arguments)
    except UsageError as error:
        arguments.parser.error(str(error))
    return arguments


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], **texts: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        description=texts.pop("description", texts["help"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **texts,
    )
    parser.set_defaults(run=run, check=lambda arguments: None, parser=parser)
    return parser


def _add_score(commands: Any) -> None:
    parser = _add_command(
        commands,
        "score",
        _run_score,
        help="score photos and rank them, the most suspicious first",
        epilog="""\
columns of the output:
  path       as given; in CSV a path that begins with = + - @ ' tab or a line
             break gets one apostrophe in front, so that no spreadsheet runs it
  rank       1 is the most suspicious
  p_anomaly  probability of an anomaly; does not move with the threshold
  margin     log p(normal) - log p(anomaly), higher is more normal
  threshold  images with a margin below it are called anomalous
  verdict    normal or anomalous
  error      why the image could not be read; the numbers are empty then
""",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, folder (searched whole) or glob",
    )
    parser.add_argument(
        "--method",
        choices=("random-word", "prompt", "fusion", *_MAP_METHODS),
        help="classifier trained on random words (default), comparison with prompts, "
        "or both; winclip, sdp and sdp+ also say where (--maps)",
    )
    parser.add_argument(
        "--maps",
        metavar="FOLDER",
        help="with winclip, sdp or sdp+: write an anomaly map and an overlay of each "
        "photo, at its size, to FOLDER",
    )
    parser.add_argument(
        "--map-format",
        choices=("png", "npy"),
        help="of --maps: 16-bit PNG of 65535 times the score (default), or npy",
    )
    parser.add_argument(
        "--scorer",
        choices=("random-word", "prompt", "fusion"),
        help="what scores the windows of winclip (default: prompt)",
    )
    parser.add_argument(
        "--layers",
        metavar="FILE",
        help="trained layers of sdp+ (SDPPlusDetector.save_layers)",
    )
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        help="model/tag (see `clipad models`), hf-hub:organisation/name, a folder, "
        "model/checkpoint-file, or tiny (default: ViT-B-16-plus-240/laion400m_e32)",
    )
    parser.add_argument("--class-name", metavar="NAME", help="what the photos show")
    parser.add_argument(
        "--random-state",
        type=_number(int, 0, 2**32 - 1),
        metavar="SEED",
        help="seed of the random words and the classifier (default: 0)",
    )
    _add_threshold(parser)
    _add_outputs(parser)
    _add_clip_settings(parser)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the model (default: auto; `clipad models --time` measures)",
    )
    parser.add_argument(
        "--embedding-cache",
        metavar="FOLDER",
        help="keep embeddings in FOLDER, so that no photo is encoded twice",
    )
    parser.set_defaults(check=_check_score)


def _add_threshold(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "threshold", "Without one of these, scores rank, but verdicts are uncalibrated."
    )
    threshold = group.add_mutually_exclusive_group()
    threshold.add_argument(
        "--threshold",
        type=_number(float),
        metavar="T",
        help="photos with a margin below T are anomalous; a T such as -1e-3 needs the "
        "form --threshold=-1e-3",
    )
    threshold.add_argument(
        "--contamination",
        type=_number(float, 0, 0.5, above=True),
        metavar="C",
        help="this share of the photos, in (0, 0.5], is anomalous",
    )
    threshold.add_argument(
        "--calibrate",
        nargs="+",
        metavar=("GOOD", "BAD"),
        help="set the threshold from a folder of good photos, or from that and folders "
        "of bad ones (best F1)",
    )
    group.add_argument(
        "--max-false-alarm",
        type=_number(float, 0, 1, below=True),
        metavar="R",
        help="with --calibrate: at most this share of its good photos may be called "
        "anomalous (default without bad photos: 0.05)",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write all rows to FILE.csv, or with settings and versions to FILE.json; "
        "with --dask: the folder for the rows",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="score on the Dask cluster whose scheduler is there, or with `local` on "
        "all cores of this machine; writes the rows, without ranks, as Parquet files "
        "to the folder --out, and goes on there when run again",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write a page to look at, with thumbnails, to FILE.html",
    )
    parser.add_argument(
        "--heat-maps",
        action="store_true",
        help="with --report: show where the anomalies are; takes about a dozen times "
        "as long",
    )
    parser.add_argument(
        "--save", metavar="FILE", help="save the fitted detector (joblib)"
    )
    parser.add_argument(
        "--load",
        metavar="FILE",
        help="use a saved detector; loading runs code, so trust the file",
    )


def _add_demo(commands: Any) -> None:
    parser = _add_command(
        commands,
        "demo",
        _run_demo,
        help="generate photos with and without defects, and score them",
    )
    parser.add_argument(
        "--out",
        default="clipad-demo",
        metavar="FOLDER",
        help="where to put photos and scores (default: clipad-demo)",
    )
    parser.add_argument(
        "--n",
        type=_number(int, 2, 999),
        default=60,
        metavar="N",
        help="number of photos, every second with a defect (default: 60)",
    )


def _add_benchmark(commands: Any) -> None:
    parser = _add_command(
        commands,
        "benchmark",
        _run_benchmark,
        help="measure methods on a labelled data set, or compare two such runs",
        description="Measure methods on a labelled data set. Run again with the same\n"
        "options, an interrupted benchmark goes on where it was.\n\n"
        "  clipad benchmark --data mvtec --root mvtec_ad --out results\n"
        "  clipad benchmark compare first/results.json second/results.json",
        epilog="""\
layouts of --root:
  mvtec      CATEGORY/test/good, CATEGORY/test/DEFECT,
             CATEGORY/ground_truth/DEFECT
  visa       as downloaded, with split_csv/1cls.csv, or the one-class layout
  sewer-ml   SewerML_Val.csv, and the images in any folders
  folder     good, and one folder for each defect; masks in ground_truth, if
             any. With --categories, each of these is such a folder

methods:
  clip-ac              one normal and one anomalous prompt
  prompt               the prompts of WinCLIP
  random-word          a classifier trained on random words (seeded)
  fusion               random-word and prompt together (seeded)
  winclip              windows of patches, scored with prompts; has maps
  winclip-random-word  the same, scored with random words (seeded); has maps
  sdp                  CLIP-AD's staged dual path; has maps
  sdp-plus             with layers trained on 600 generated images; has maps

files in --out: results.json, results.csv, results.md, and times.csv. Metrics of
pixels are taken at the size of the model's input. Exit status 1: a category
failed.
""",
    )
    parser.add_argument(
        "compare",
        nargs="*",
        metavar="compare A.json B.json",
        help="show how B differs from A, instead",
    )
    parser.add_argument("--data", choices=("mvtec", "visa", "sewer-ml", "folder"))
    parser.add_argument("--root", metavar="FOLDER", help="where the data set is")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="some of them (default: all)"
    )
    parser.add_argument(
        "--methods",
        type=lambda text: text.split(","),
        default=["random-word", "prompt", "fusion"],
        metavar="A,B,...",
        help="see below (default: random-word,prompt,fusion)",
    )
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        help="as of `clipad score` (default: ViT-B-16-plus-240/laion400m_e32)",
    )
    parser.add_argument(
        "--known-object",
        action="store_true",
        help="tell methods the name of the category (default: the object is unknown)",
    )
    parser.add_argument(
        "--seeds",
        type=_number(int, 1, 100),
        default=3,
        metavar="N",
        help="number of seeds of seeded methods (default: 3)",
    )
    parser.add_argument(
        "--n-pairs",
        type=_number(int, 1),
        default=10_000,
        metavar="N",
        help="pairs of random-word prompts (default: 10000)",
    )
    parser.add_argument(
        "--draws",
        type=_number(int, 100),
        default=1000,
        metavar="N",
        help="number of resamples for intervals (default: 1000)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the results go")
    _add_clip_settings(parser)
    parser.set_defaults(check=_check_benchmark)


def _add_models(commands: Any) -> None:
    parser = _add_command(
        commands,
        "models",
        _run_models,
        help="list the CLIPs, download one, or measure its speed",
    )
    parser.add_argument(
        "filter",
        nargs="?",
        default="",
        metavar="TEXT",
        help="list names with TEXT only",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--download", metavar="CLIP", help="fetch the weights")
    action.add_argument(
        "--time", metavar="CLIP", help="measure its precisions and recommend one"
    )
    _add_clip_settings(parser)


def _add_cache(commands: Any) -> None:
    parser = _add_command(
        commands,
        "cache",
        _run_cache,
        help="look after a folder of embeddings (score --embedding-cache)",
    )
    parser.add_argument(
        "action",
        choices=("info", "clear", "verify"),
        help="tell its size, empty it, or check every entry and drop damaged ones",
    )
    parser.add_argument("folder", metavar="FOLDER")


def _add_clip_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda if there)"
    )
    parser.add_argument(
        "--batch-size",
        type=_number(int, 1),
        metavar="N",
        help="photos that go through the model at once (default: 32)",
    )


def _number(
    kind: type[int] | type[float],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> Callable[[str], float]:
    """Return an argparse type: a finite number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        inside = (value > low if above else value >= low) and (
            value < high if below else value <= high
        )
        if not inside or not math.isfinite(value):
            left, right = "(" if above else "[", ")" if below else "]"
            raise argparse.ArgumentTypeError(
                f"{text} is not in {left}{low:g}, {high:g}{right}"
            )
        return value

    return parse


def _check_score(arguments: argparse.Namespace) -> None:
    if arguments.load is not None:
        for name in ("clip", "method", "class_name", "random_state"):
            if getattr(arguments, name) is not None:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} has no effect beside --load: it is saved")
    _check_maps(arguments)
    if arguments.calibrate is None and arguments.max_false_alarm is not None:
        raise UsageError("--max-false-alarm needs --calibrate")
    is_file = arguments.out is not None and arguments.out.endswith((".csv", ".json"))
    if arguments.dask is not None:
        if arguments.out is None or is_file:
            raise UsageError("--dask needs --out FOLDER, for Parquet files")
        for name in ("contamination", "report", "maps"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--dask cannot be combined with --{name}")
    elif arguments.out is not None and not is_file:
        raise UsageError(f"--out {arguments.out}: the name must end in .csv or .json")
    if arguments.report is not None and not arguments.report.endswith(".html"):
        raise UsageError(f"--report {arguments.report}: the name must end in .html")
    if arguments.heat_maps and arguments.report is None:
        raise UsageError("--heat-maps needs --report")


def _check_maps(arguments: argparse.Namespace) -> None:
    method = arguments.method
    if arguments.maps is not None and method not in _MAP_METHODS:
        raise UsageError("--maps needs --method winclip, sdp or sdp+")
    if arguments.map_format is not None and arguments.maps is None:
        raise UsageError("--map-format needs --maps")
    if arguments.scorer is not None and method != "winclip":
        raise UsageError("--scorer needs --method winclip")
    if (arguments.layers is not None) != (method == "sdp+"):
        raise UsageError("--method sdp+ and --layers need each other")
    if arguments.save is not None and method in _MAP_METHODS:
        raise UsageError(f"--save cannot keep --method {method}; leave it out")


def _check_benchmark(arguments: argparse.Namespace) -> None:
    if arguments.compare:
        if arguments.compare[0] != "compare" or len(arguments.compare) != 3:
            raise UsageError(
                "expected `clipad benchmark compare A.json B.json`, or options only; "
                "--categories takes all names that follow it"
            )
        return
    for name in ("data", "root", "out"):
        if getattr(arguments, name) is None:
            raise UsageError(f"--{name} is required")
    unknown = [name for name in arguments.methods if name not in _METHODS]
    if unknown:
        raise UsageError(
            f"--methods: {', '.join(map(repr, unknown))} is not known; use some of "
            + ", ".join(_METHODS)
        )
    for name in ("methods", "categories"):
        values = getattr(arguments, name) or []
        if len(set(values)) < len(values):
            raise UsageError(f"--{name}: one is named twice")


# -- commands ------------------------------------------------------------------


def _run_score(arguments: argparse.Namespace) -> int:
    from .score import run

    return run(arguments)


def _run_benchmark(arguments: argparse.Namespace) -> int:
    from .benchmark import run

    return run(arguments)


def _run_demo(arguments: argparse.Namespace) -> int:
    from .demo import run

    return run(arguments)


def _run_models(arguments: argparse.Namespace) -> int:
    from .models import run

    return run(arguments)


def _run_cache(arguments: argparse.Namespace) -> int:
    from .._clip.embedding_cache import FolderCache

    if not os.path.isdir(arguments.folder):
        raise UsageError(f"{arguments.folder}: no such folder")
    with as_usage_error():
        cache = FolderCache(arguments.folder)
        if arguments.action == "clear":
            cache.clear()
        report = cache.verify() if arguments.action == "verify" else cache.info()
    for name, value in report.items():
        print(f"{name}: {printable(str(value))}")
    return 0
