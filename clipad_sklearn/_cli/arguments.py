"""The arguments of ``clipad``: which there are, their defaults, and what fits together.

Each command has one frozen class of settings. Its defaults are the command's; argparse
only says what was given.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, ClassVar, NoReturn

from .._errors import shown
from .._files import read_text
from .._prompts import PRESETS
from .._version import __version__
from .cache import cache_folder
from .methods import LEARNS_FROM_PHOTOS, METHODS, method_name
from .output import UsageError, given_settings, printable

_EPILOG = """\
exit status:
  0    everything was done; with `score`, all photos were scored
  1    some photos could not be read; the others were scored and written
  2    wrong usage, no photo found, or the weights are not there
  3    an error of the program itself
  130  interrupted
  143  terminated (129 if the terminal is gone)
"""
# What a file of words is called; words themselves hardly end so.
_WORD_FILES = (".txt", ".csv", ".tsv", ".lst", ".list", ".md", ".json")
_MOST = 10_000  # tiles of a photo, or words of a prompt
_SHOTS = (1, 4, 16)
_SCORERS = ("random-word", "prompt", "fusion")


# -- settings ------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreSettings:
    """What ``clipad score`` is asked to do."""

    paths: tuple[str, ...]
    # The detector
    method: str = "random-word"
    good: tuple[str, ...] = ()
    load: str | None = None
    clip: str | None = None
    class_name: str | None = None
    normal: tuple[str, ...] = ()
    anomalous: tuple[str, ...] = ()
    random_state: int = 0
    scorer: str = "prompt"
    layers: str | None = None
    tiles: tuple[int, int] | None = None
    ignore: str | None = None
    # The threshold
    threshold: float | None = None
    contamination: float | None = None
    calibrate: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    max_false_alarm: float | None = None
    confidence: float | None = None
    shift_test: bool = False
    # Results
    out: str | None = None
    dask: str | None = None
    partition_size: int | None = None
    maps: str | None = None
    map_format: str = "png"
    report: str | None = None
    title: str | None = None
    heat_maps: bool = False
    save: str | None = None
    quiet: bool = False
    # The CLIP
    device: str | None = None
    batch_size: int | None = None
    precision: str | None = None
    image_size: int | tuple[int, int] | None = None
    embedding_cache: str | None = None
    no_cache: bool = False

    of_outputs: ClassVar = (
        "out", "dask", "partition_size", "maps", "map_format", "report", "title",
        "heat_maps", "save", "quiet",
    )  # fmt: skip
    of_clip: ClassVar = (
        "clip", "device", "batch_size", "precision", "image_size", "embedding_cache",
        "no_cache",
    )  # fmt: skip

    @property
    def learns_from_photos(self) -> bool:
        """Whether photos, and not only words, decide what is normal."""
        return bool(self.good) or self.method in LEARNS_FROM_PHOTOS

    @property
    def promises(self) -> bool:
        """Whether a rate of false alarms is asked for."""
        return self.max_false_alarm is not None or self.confidence is not None

    @property
    def files(self) -> list[str]:
        """What is written, as single files."""
        out = None if self.dask is not None else self.out
        return [path for path in (out, self.report, self.save) if path is not None]

    @property
    def written(self) -> list[str]:
        """What is written."""
        paths = (self.out, self.report, self.save, self.maps)
        return [path for path in paths if path is not None]

    @property
    def clip_settings(self) -> dict[str, Any]:
        """The parameters of `OpenCLIP` that this run sets."""
        cache = self.embedding_cache
        if cache is None:
            cache = "memory" if self.no_cache else cache_folder()
        return given_settings(self) | {"embedding_cache": cache}

    @property
    def saved_clip_settings(self) -> dict[str, Any]:
        """Those that a saved detector has instead: no folder that nobody named."""
        return {"embedding_cache": self.embedding_cache or "memory"}


@dataclass(frozen=True)
class DemoSettings:
    """What ``clipad demo`` is asked to do."""

    out: str = "clipad-demo"
    n: int = 60
    quiet: bool = False


@dataclass(frozen=True)
class BenchmarkSettings:
    """What ``clipad benchmark`` is asked to do."""

    data: str
    root: str
    out: str
    categories: tuple[str, ...] | None = None
    methods: tuple[str, ...] = ("random-word", "prompt", "fusion")
    clip: str | None = None
    known_object: bool = False
    n_seeds: int = 3
    n_draws: int = 1000
    max_false_alarm: float | None = None
    # The protocol; None and empty: what each method has
    prompts: str | None = None
    templates: tuple[str, ...] = ()
    normal: tuple[str, ...] = ()
    anomalous: tuple[str, ...] = ()
    n_pairs: int = 10_000
    n_words: tuple[int, int] | None = None
    word_source: str | tuple[str, ...] | None = None
    word_length: tuple[int, int] | None = None
    center: str | None = None
    fusion: str | None = None
    fusion_weights: tuple[float, float] | None = None
    # The CLIP
    device: str | None = None
    batch_size: int | None = None

    @property
    def words(self) -> dict[str, Any]:
        """The parameters of `RandomWordDetector` that were given."""
        return _given(self, n_words="n_words", word_source="word_source",
                      word_length="word_length", center="center")  # fmt: skip

    @property
    def of_fusion(self) -> dict[str, Any]:
        """The parameters of `FusionDetector` that were given."""
        return _given(self, method="fusion", weights="fusion_weights")


def _given(settings: Any, **names: str) -> dict[str, Any]:
    values = {name: getattr(settings, setting) for name, setting in names.items()}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class CompareSettings:
    """What ``clipad benchmark compare`` is asked to do."""

    first: str
    second: str


@dataclass(frozen=True)
class ModelsSettings:
    """What ``clipad models`` is asked to do."""

    filter: str = ""
    download: str | None = None
    time: str | None = None
    device: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class CacheSettings:
    """What ``clipad cache`` is asked to do."""

    action: str
    folder: str | None = None


# -- parsing -------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Keeps the one line that matters from drowning in usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # What is given without another type; such as a shell variable that is not set.
        self.register("type", None, _not_empty)

    def error(self, message: str) -> NoReturn:
        if message.endswith("required: PATH"):
            message += (
                " (--calibrate takes all folders that follow it: put PATH before it, "
                "or -- between)"
            )
        message = printable(message)
        self.exit(2, f"{self.prog}: error: {message}\nSee `{self.prog} --help`.\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        # That of argparse hides that a disk is full.
        file = file or sys.stderr
        if file is not None:
            print(message, end="", file=file, flush=True)


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def parse(argv: Sequence[str] | None) -> tuple[str, Any]:
    """Return the module that runs the command, and the command's settings."""
    parser = _Parser(
        prog="clipad",
        description="Find defects in photos with CLIP, without any training image.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipad {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.type = str  # it is given the arguments of the command too
    for add in (_add_score, _add_demo, _add_benchmark, _add_models, _add_cache):
        add(commands)
    parsed, unknown = parser.parse_known_args(argv)
    given = vars(parsed)
    command, settings_class, check, subparser = given.pop("command")
    if unknown:  # said by the subparser, whose --help shows what there is
        subparser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        check(given)
    except UsageError as error:
        subparser.error(str(error))
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return command, settings_class(**values)


def _add_command(
    commands: Any,
    name: str,
    settings_class: type,
    check: Callable[[dict[str, Any]], None],
    *,
    module: str | None = None,
    **texts: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        description=texts.pop("description", texts["help"]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # So that only what was given is there.
        argument_default=argparse.SUPPRESS,
        **texts,
    )
    parser.set_defaults(command=(module or name, settings_class, check, parser))
    return parser


def _no_check(given: dict[str, Any]) -> None:
    pass


def _default(settings_class: type, name: str) -> Any:
    return next(f.default for f in fields(settings_class) if f.name == name)


# -- score ---------------------------------------------------------------------


def _add_score(commands: Any) -> None:
    parser = _add_command(
        commands,
        "score",
        ScoreSettings,
        _check_score,
        help="score photos and rank them, the most suspicious first",
        epilog="""\
columns of the output:
  path       as given; in CSV a path that begins with = + - @ ' tab or a line
             break gets one apostrophe in front, so that no spreadsheet runs it,
             and other control characters are escaped
  rank       1 is the most suspicious
  verdict    normal, anomalous or unreadable
  to_threshold  on the screen: the margin less the threshold
  margin     higher is more normal: log p(normal) - log p(anomalous) by words; by
             photos 3 less the spreads by which it lies beyond their median
  threshold  photos with a margin below it are called anomalous
  p_value    with --calibrate: the share of its good photos, this one counted,
             that look at least as odd
  p_anomaly  the margin on a scale from 0 (normal) to 1; by words it is the
             method's probability of an anomaly, and close to 1 for most photos;
             it does not move with the threshold
  error      why the photo could not be read; the numbers are empty then
""",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="photo, folder (searched whole) or glob",
    )
    _add_method(parser)
    _add_threshold(parser)
    _add_outputs(parser)
    _add_clip_settings(parser)
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        help="of the model (default: auto; `clipad models --time` measures)",
    )
    parser.add_argument(
        "--image-size",
        type=_image_size,
        metavar="N",
        help="pixels of the model's input, N or HEIGHTxWIDTH (default: its own)",
    )
    parser.add_argument(
        "--embedding-cache",
        metavar="FOLDER",
        help="keep embeddings, learned words and references in FOLDER, so that nothing "
        "is done twice (default: a folder of the user, see `clipad cache info`)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="keep nothing, and use nothing kept"
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        type=method_name,
        choices=tuple(METHODS),
        metavar="METHOD",
        help="random-word: classifier trained on random words (default); prompt, "
        "clip-ac: comparison with prompts; fusion: random-word and prompt; winclip, "
        "winclip-random-word, winclip-fusion, sdp and sdp-plus: also say where; "
        "reference: comparison with --good, says where (default with --good); mutual: "
        "the photos are compared with each other, most of them being good, says where",
    )
    parser.add_argument(
        "--good",
        action="append",
        metavar="FOLDER",
        help="good photos to compare with; may be repeated. With another --method both "
        "are combined",
    )
    parser.add_argument(
        "--load",
        metavar="FILE",
        help="use a detector of --save; loading runs code, so trust the file",
    )
    parser.add_argument(
        "--scorer",
        choices=_SCORERS,
        help="what scores the windows of winclip (default: prompt); winclip with "
        "random-word is winclip-random-word",
    )
    parser.add_argument(
        "--layers",
        metavar="FILE",
        help="trained layers of sdp-plus (SDPPlusDetector.save_layers)",
    )
    parser.add_argument(
        "--tiles",
        type=_grid,
        metavar="RxC",
        help="look at photos in RxC tiles, such as 3x4, and as a whole, for defects "
        "that are small in large photos",
    )
    parser.add_argument(
        "--ignore",
        metavar="MASK",
        help="image of the photos' size, white where nothing counts, such as a serial "
        "number, and black elsewhere (methods reference and mutual)",
    )
    _add_clip(parser)
    parser.add_argument("--class-name", metavar="NAME", help="what the photos show")
    _add_own_words(parser)
    parser.add_argument(
        "--random-state",
        type=_number(int, 0, 2**32 - 1),
        metavar="SEED",
        help="seed of the random words and the classifier (default: 0)",
    )


def _add_own_words(parser: Any) -> None:
    for name, example in (("normal", "clean {}"), ("anomalous", "stained {}")):
        parser.add_argument(
            f"--{name}",
            action="append",
            metavar="WORDS",
            help=f'your own words for {name}, such as "{example}"; may be repeated, or '
            "name a text file with one on each line",
        )


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
        help="set the threshold from a folder of good photos, other ones than --good; "
        "folders that follow it are of bad ones, as with --bad",
    )
    group.add_argument(
        "--bad",
        action="append",
        metavar="FOLDER",
        help="with --calibrate: bad photos, may be repeated. The threshold is then the "
        "best F1 score, unless a rate or a confidence is asked for",
    )
    group.add_argument(
        "--max-false-alarm",
        type=_number(float, 0, 1, below=True),
        metavar="R",
        help="with --calibrate: promise that at most this share of new good photos is "
        "called anomalous (default without bad photos: 0.05)",
    )
    group.add_argument(
        "--confidence",
        type=_number(float, 0, 1, above=True, below=True),
        metavar="C",
        help="with --calibrate: of that promise, such as 0.95, which needs about three "
        "times as many good photos (default: on average)",
    )
    group.add_argument(
        "--shift-test",
        action="store_true",
        help="say whether the photos still look like the good ones of --calibrate, "
        "with a false alarm on at most 1 good day in 100",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="write all rows to FILE.csv or FILE.xlsx (which needs openpyxl), or with "
        "settings and versions and all digits to FILE.json; "
        "with --dask: the folder for the rows",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="score on the Dask cluster whose scheduler is there, or with `local` on "
        "all cores of this machine; writes the rows, without ranks, as Parquet files "
        "to the folder --out, and resumes there when run again",
    )
    parser.add_argument(
        "--partition-size",
        type=_number(int, 1),
        metavar="N",
        help="with --dask: photos that a worker scores and writes at a time; lower "
        "keeps more workers busy (default: 1000; with `local`, fewer if that leaves a "
        "core idle)",
    )
    parser.add_argument(
        "--maps",
        metavar="FOLDER",
        help="write an anomaly map and an overlay of each photo, at its size, to "
        "FOLDER; takes about a dozen times as long with a method that does not say "
        "where itself",
    )
    parser.add_argument(
        "--map-format",
        choices=("png", "npy"),
        help="of --maps: 16-bit PNG of 65535 times the score (default), or npy",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write a page to look at, with thumbnails, to FILE.html",
    )
    parser.add_argument("--title", metavar="TEXT", help="of the page of --report")
    parser.add_argument(
        "--heat-maps",
        action="store_true",
        help="with --report: show where the anomalies are, also with a method that "
        "does not say where itself; takes about a dozen times as long",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        help="save the fitted detector with its threshold (joblib)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing of what is being done"
    )


def _check_score(given: dict[str, Any]) -> None:
    if "load" in given:
        for name in (
            "clip", "method", "good", "class_name", "normal", "anomalous",
            "random_state", "scorer", "layers", "tiles", "ignore", "image_size",
        ):  # fmt: skip
            if name in given:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} has no effect beside --load: it is saved")
    _check_outputs_are_not_read(given)
    _check_method(given)
    for name in ("bad", "max_false_alarm", "confidence"):
        if name in given and "calibrate" not in given:
            raise UsageError(f"--{name.replace('_', '-')} needs --calibrate")
    if "no_cache" in given and "embedding_cache" in given:
        raise UsageError("--no-cache and --embedding-cache exclude each other")
    out = given.get("out")
    is_file = out is not None and out.endswith((".csv", ".json", ".xlsx"))
    if "dask" in given:
        if out is None or is_file:
            raise UsageError("--dask needs --out FOLDER, for Parquet files")
        for name in ("contamination", "report", "maps"):
            if name in given:
                raise UsageError(f"--dask cannot be combined with --{name}")
    elif out is not None and not is_file:
        raise UsageError(f"--out {out}: the name must end in .csv, .xlsx or .json")
    if "partition_size" in given and "dask" not in given:
        raise UsageError("--partition-size needs --dask")
    if "report" in given and not given["report"].endswith(".html"):
        raise UsageError(f"--report {given['report']}: the name must end in .html")
    for name in ("heat_maps", "title"):
        if name in given and "report" not in given:
            raise UsageError(f"--{name.replace('_', '-')} needs --report")
    if out is not None and out.endswith(".xlsx") and find_spec("openpyxl") is None:
        raise UsageError(f"--out {out}: needs openpyxl: python -m pip install openpyxl")


def _check_outputs_are_not_read(given: dict[str, Any]) -> None:
    """Check that no result would take the place of words, layers or weights."""
    named = [*given.get("normal", ()), *given.get("anomalous", ())]
    named.append(given.get("layers"))
    clip = given.get("clip") or ""
    if "/" in clip or os.sep in clip:  # no name of a model, whatever lies here
        named += [clip, clip.partition("/")[2]]
    named = [os.path.expanduser(path) for path in named if path]
    read = {os.path.realpath(path) for path in named if os.path.exists(path)}
    for name in ("out", "report", "save"):
        path = os.path.realpath(given.get(name) or "")
        if name in given and read & {path, os.path.dirname(path)}:
            raise UsageError(
                f"--{name} {given[name]}: this run reads that file, or has its model "
                "in that folder; name another file"
            )


def _check_method(given: dict[str, Any]) -> None:
    """Check the options of methods, and put method and scorer together."""
    if "good" in given:
        given.setdefault("method", "reference")
    method = given.get("method")
    if method == "reference" and "good" not in given:
        raise UsageError(
            "--method reference needs --good FOLDER, photos to compare with"
        )
    if method == "mutual" and "good" in given:
        raise UsageError(
            "--method mutual compares the photos with each other; leave out --good, or "
            "--method"
        )
    if "map_format" in given and "maps" not in given:
        raise UsageError("--map-format needs --maps")
    if "scorer" in given:
        if method != "winclip":
            raise UsageError("--scorer needs --method winclip")
        if given["scorer"] != "prompt":
            given["method"] = f"winclip-{given['scorer']}"
    if ("layers" in given) != (method == "sdp-plus"):
        raise UsageError(
            "--method sdp-plus requires --layers, and --layers is for sdp-plus only"
        )
    if "layers" in given and not os.path.isfile(given["layers"]):
        raise UsageError(f"--layers {given['layers']}: is not a file")
    if "tiles" in given and method == "sdp-plus":
        raise UsageError("--tiles cannot be combined with --method sdp-plus")
    if "ignore" in given:
        if method not in ("reference", "mutual"):
            raise UsageError("--ignore is for the methods reference and mutual only")
        if "tiles" in given:
            raise UsageError("--ignore cannot be combined with --tiles")
        if not os.path.isfile(given["ignore"]):
            raise UsageError(f"--ignore {given['ignore']}: is not a file")
    if "normal" in given and method in LEARNS_FROM_PHOTOS:
        raise UsageError(f"--normal: --method {method} uses no words")
    _check_own_words(given)


def _check_own_words(given: dict[str, Any]) -> None:
    if ("normal" in given) != ("anomalous" in given):
        raise UsageError(
            "--normal requires --anomalous, and --anomalous requires --normal"
        )
    for name in ("normal", "anomalous"):
        if name in given:
            given[name] = _words(name, given[name])


def _words(name: str, values: Sequence[str]) -> list[str]:
    """Return words as given, or the lines of the files that are named."""
    words: list[str] = []
    for value in values:
        path = os.path.expanduser(value)
        if not os.path.isfile(path):
            if os.path.exists(path) and not os.path.isdir(path):
                raise UsageError(f"--{name} {value}: is a pipe or device, not a file")
            if path.startswith(("./", "../", "/", "~")) or path.lower().endswith(
                _WORD_FILES
            ):
                raise UsageError(f"--{name} {value}: there is no such file")
            words.append(value)
            continue
        try:
            lines = read_text(path).split("\n")
            words += [" ".join(line.split()) for line in lines]
        except (OSError, ValueError) as error:
            raise UsageError(f"--{name} {value}: cannot be read ({error})") from error
    words = [word for word in words if word]
    for word in words:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in word):
            raise UsageError(
                f"--{name}: expected text, found {shown(word)}, which has characters "
                "that cannot be shown"
            )
    if not words:
        raise UsageError(f"--{name}: found no words")
    return words


# -- demo, models, cache -------------------------------------------------------


def _add_demo(commands: Any) -> None:
    parser = _add_command(
        commands,
        "demo",
        DemoSettings,
        _no_check,
        help="generate photos with and without defects, and score them",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to put photos and scores (default: clipad-demo)",
    )
    parser.add_argument(
        "--n",
        type=_number(int, 2, 999),
        metavar="N",
        help="number of photos, every second with a defect (default: 60)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing of what is being done"
    )


def _add_models(commands: Any) -> None:
    parser = _add_command(
        commands,
        "models",
        ModelsSettings,
        _no_check,
        help="list the CLIPs, download one, or measure its speed",
    )
    parser.add_argument(
        "filter",
        nargs="?",
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
        CacheSettings,
        _no_check,
        help="look after what is kept: embeddings, learned words and references",
    )
    parser.add_argument(
        "action",
        choices=("info", "clear", "verify"),
        help="show its size, empty it, or check every entry and drop damaged ones",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="of score --embedding-cache (default: the folder of the user)",
    )


# -- benchmark -----------------------------------------------------------------


_ABOUT_BENCHMARK = """\
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
  winclip-fusion       the same, scored with both (seeded); has maps
  sdp                  CLIP-AD's staged dual path; has maps
  sdp-plus             with layers trained on 600 generated images; has maps
  reference            compared with photos of the training split, --shots of
                       them, as many draws as --seeds (mvtec, visa); has maps
  mutual               the photos compared with each other; has maps

files in --out: results.json, results.csv, results.md, and times.csv; rows of
means come last, with the category "mean". Metrics of pixels are taken at the
size of the model's input. Exit status 1: a category failed.

ablations: vary an option of the protocol, each time with another --out, and
compare. For curves over the number of pairs, the words, the templates and the
members of fusion see examples/plot_benchmark_and_ablation.py.
"""


def _add_benchmark(commands: Any) -> None:
    parser = _add_command(
        commands,
        "benchmark",
        BenchmarkSettings,
        _check_benchmark,
        help="measure methods on a labelled data set, or compare two such runs",
        description="Measure methods on a labelled data set. Run again, it computes\n"
        "only what the folder --out lacks: an interrupted benchmark resumes where it\n"
        "stopped, and other --methods and --categories are added to those there.\n\n"
        "  clipad benchmark --data mvtec --root mvtec_ad --out results\n"
        "  clipad benchmark compare first/results.json second/results.json",
        epilog=_ABOUT_BENCHMARK,
    )
    # `compare` is not asked for by options of its parent, so nothing is inherited.
    compare = _add_command(
        parser.add_subparsers(metavar="[compare A.json B.json]"),
        "compare",
        CompareSettings,
        _check_compare,
        module="benchmark",
        help="show how B differs from A, instead",
    )
    compare.add_argument("first", metavar="A.json")
    compare.add_argument("second", metavar="B.json")
    parser.add_argument("--data", choices=("mvtec", "visa", "sewer-ml", "folder"))
    parser.add_argument("--root", metavar="FOLDER", help="where the data set is")
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="some of them (default: all)"
    )
    parser.add_argument(
        "--methods",
        type=lambda text: [method_name(name) for name in text.split(",")],
        metavar="A,B,...",
        help="see below (default: random-word,prompt,fusion)",
    )
    _add_clip(parser)
    parser.add_argument(
        "--known-object",
        action="store_true",
        help="give methods the name of the category (default: the object is unknown)",
    )
    parser.add_argument(
        "--shots",
        type=_shots,
        metavar="N,N,...",
        help="numbers of good photos that reference is given (default: 1,4,16)",
    )
    for name, least, text in (
        ("n_seeds", 1, "number of seeds, or of draws of good photos"),
        ("n_draws", 100, "number of resamples for intervals"),
    ):
        parser.add_argument(
            "--" + name.removeprefix("n_"),
            dest=name,
            type=_number(int, least, 100 if name == "n_seeds" else math.inf),
            metavar="N",
            help=f"{text} (default: {_default(BenchmarkSettings, name)})",
        )
    parser.add_argument(
        "--max-false-alarm",
        type=_number(float, 0, 1, above=True, below=True),
        metavar="R",
        help="set thresholds so that at most this share of new good photos is called "
        "anomalous, from the good photos of the training split (mvtec, visa; default: "
        "the threshold that each method has, which words have not calibrated)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the results go")
    _add_protocol(parser)
    _add_clip_settings(parser)


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "protocol", "What prompts and random words say, and how fusion joins them."
    )
    group.add_argument(
        "--prompts",
        metavar="PRESET",
        help=f"{', '.join(PRESETS)}: for every method that has prompts (default: those "
        "of the method)",
    )
    group.add_argument(
        "--template",
        action="append",
        dest="templates",
        metavar="TEXT",
        help='of prompts and random words, such as "a photo of a {}."; may be '
        "repeated, or name a text file with one on each line",
    )
    _add_own_words(group)
    group.add_argument(
        "--n-pairs",
        type=_number(int, 1),
        metavar="N",
        help="pairs of random-word prompts (default: "
        f"{_default(BenchmarkSettings, 'n_pairs')})",
    )
    group.add_argument(
        "--n-words",
        type=_range,
        metavar="N-N",
        help="random words in a pair (default: 1-5)",
    )
    group.add_argument(
        "--word-source",
        metavar="SOURCE",
        help="letters (default), vocabulary, or a text file with one word on each line",
    )
    group.add_argument(
        "--word-length",
        type=_range,
        metavar="N-N",
        help="letters of a random word (default: 3-10)",
    )
    group.add_argument(
        "--center",
        choices=("text",),
        help="subtract the mean of the prompts from embeddings (default: do not)",
    )
    group.add_argument(
        "--fusion",
        choices=("mean", "max", "harmonic", "logit_mean"),
        help="how fusion joins random words and prompts (default: mean)",
    )
    group.add_argument(
        "--fusion-weights",
        nargs=2,
        type=_number(float, 0),
        metavar=("WORDS", "PROMPTS"),
        help="of the two in fusion (default: equal)",
    )


def _check_compare(given: dict[str, Any]) -> None:
    others = given.keys() - {"first", "second"}
    if others:
        option = "--" + min(others).replace("_", "-")
        raise UsageError(f"compare takes two files and no {option}")


def _check_benchmark(given: dict[str, Any]) -> None:
    for name in ("data", "root", "out"):
        if name not in given:
            raise UsageError(f"--{name} is required")
    unknown = [name for name in given.get("methods", ()) if name not in METHODS]
    if unknown:
        raise UsageError(
            f"--methods: unknown {', '.join(map(repr, unknown))}; expected some of "
            + ", ".join(METHODS)
        )
    given["methods"] = list(given.get("methods", BenchmarkSettings.methods))
    shots = given.pop("shots", _SHOTS)
    if "reference" in given["methods"]:
        if given["data"] not in ("mvtec", "visa"):
            raise UsageError(
                "--methods reference needs a training split: --data mvtec or visa"
            )
        place = given["methods"].index("reference")
        given["methods"][place : place + 1] = [f"reference-{n}" for n in shots]
    if "max_false_alarm" in given and given["data"] not in ("mvtec", "visa"):
        raise UsageError(
            "--max-false-alarm needs a training split: --data mvtec or visa"
        )
    _check_own_words(given)
    if "templates" in given:
        given["templates"] = _words("template", given["templates"])
    if given.get("word_source", "letters") not in ("letters", "vocabulary"):
        if not os.path.isfile(os.path.expanduser(given["word_source"])):
            raise UsageError(
                f"--word-source {given['word_source']}: expected letters, vocabulary "
                "or a text file"
            )
        given["word_source"] = _words("word-source", [given["word_source"]])
    for option in ("methods", "categories"):
        values = given.get(option, [])
        twice = [name for i, name in enumerate(values) if name in values[:i]]
        if twice:
            raise UsageError(f"--{option}: {twice[0]!r} is listed twice")


def _shots(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers from 1 on, such as 1,4,16"
        )
    return list(dict.fromkeys(numbers))


def _grid(text: str) -> tuple[int, int]:
    """Parse two whole numbers with an x between them."""
    try:
        first, second = (int(part) for part in text.lower().split("x"))
    except ValueError:
        first = second = 0
    if min(first, second) < 1 or first * second > _MOST:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a form such as 3x4, at most {_MOST:,} tiles"
        )
    return first, second


def _range(text: str) -> tuple[int, int]:
    """Parse a whole number, or two with a dash between them."""
    first, dash, second = text.partition("-")
    try:
        low, high = int(first), int(second if dash else first)
    except ValueError:
        low, high = 1, 0
    if not 0 <= low <= high <= _MOST:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a form such as 1-5, at most {_MOST:,}"
        )
    return low, high


def _image_size(text: str) -> int | tuple[int, int]:
    if "x" in text.lower():
        return _grid(text)
    return int(_number(int, 1)(text))


# -- shared --------------------------------------------------------------------


def _add_clip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        help="model/tag (see `clipad models`), hf-hub:organisation/name, a folder, "
        "model/checkpoint-file, or tiny (default: ViT-B-16-plus-240/laion400m_e32)",
    )


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
    high: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
) -> Callable[[str], float]:
    """Return an argparse type: a finite number from `low` to `high`."""
    if high is None:
        high = math.inf if kind is float else 2**31 - 1

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        inside = (value > low if above else value >= low) and (
            value < high if below else value <= high
        )
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if not inside:
            left, right = "(" if above else "[", ")" if below else "]"
            raise argparse.ArgumentTypeError(
                f"{text} is not in {left}{low:.10g}, {high:.10g}{right}"
            )
        return value

    return parse
