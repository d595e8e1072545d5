from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, clone

from clipad_sklearn._prompts import (
    DEFAULT_ANOMALOUS_STATES,
    DEFAULT_NORMAL_STATES,
    DEFAULT_TEMPLATES,
    PRESETS,
    PromptSet,
    _vocabulary,
    check_prompts,
    fill,
    random_word_prompts,
)

# fill -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("flawless {}", "nut", "flawless nut"),
        ("{} with flaw", "nut", "nut with flaw"),
        ("flawless", "nut", "flawless nut"),
        ("a {}.", "{}", "a {}."),
        ("a {}.", "{0} {name} %s", "a {0} {name} %s."),
        ("a {x} {}.", "nut", "a {x} nut."),
    ],
)
def test_fill(pattern, text, expected):
    assert fill(pattern, text) == expected


# PromptSet ------------------------------------------------------------------


def test_format_goes_state_by_state():
    prompts = PromptSet(["{}", "good"], ["{} with {rust"], ["a {}.", "the {}!"])
    normal, anomalous = prompts.format("metal_nut")
    assert normal == [
        "a metal_nut.",
        "the metal_nut!",
        "a good metal_nut.",
        "the good metal_nut!",
    ]
    assert anomalous == ["a metal_nut with {rust.", "the metal_nut with {rust!"]


@pytest.mark.parametrize("class_name", ["{}", "{0}", "a {b} c", "%s", "}{", "{}{}"])
def test_braces_in_class_names_are_ordinary_text(class_name):
    for preset in PRESETS.values():
        for prompts in preset.format(class_name):
            for prompt in prompts:
                assert prompt.count(class_name) == 1


def test_prompt_set_is_a_value():
    prompts = PromptSet(["{}"], ["bad {}"], ["a {}."])
    same = PromptSet(("{}",), ("bad {}",), np.array(["a {}."]))
    assert prompts == same
    assert hash(prompts) == hash(same)
    assert repr(prompts) == (
        "PromptSet(normal_states=('{}',), anomalous_states=('bad {}',), "
        "templates=('a {}.',))"
    )
    assert eval(repr(same)) == prompts
    assert pickle.loads(pickle.dumps(prompts)) == prompts
    assert copy.deepcopy(prompts) == prompts
    with pytest.raises(AttributeError):
        prompts.templates = ("{}",)


def test_prompt_set_survives_clone():
    class Holder(BaseEstimator):
        def __init__(self, prompts=None):
            self.prompts = prompts

    holder = Holder(PRESETS["winclip"])
    assert clone(holder).prompts == PRESETS["winclip"]


GOOD = {
    "normal_states": ["good {}"],
    "anomalous_states": ["bad {}"],
    "templates": ["a {}."],
}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("normal_states", [], ValueError, "normal_states is empty"),
        ("anomalous_states", (), ValueError, "anomalous_states is empty"),
        ("templates", [], ValueError, "templates is empty"),
        ("normal_states", "good {}", TypeError, ": expected a list of strings"),
        ("templates", None, TypeError, "templates=None: expected a list of strings"),
        ("templates", {"a {}."}, TypeError, ": expected a list of strings"),
        ("templates", ["a {}.", 3], TypeError, "expected strings, found 3 of type int"),
        ("anomalous_states", ["  "], ValueError, "blank string: '  '"),
        ("anomalous_states", ["{} {}"], ValueError, "more than one '{}'"),
        ("templates", ["a photo"], ValueError, "'a photo' has 0 '{}'"),
        ("templates", ["{} {}"], ValueError, "'{} {}' has 2 '{}'"),
    ],
)
@pytest.mark.parametrize("function", [PromptSet, random_word_prompts])
def test_bad_states_and_templates(function, name, value, error, message):
    with pytest.raises(error, match=re.escape(message)):
        function(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("class_name", "error", "message"),
    [
        ("", ValueError, "class_name is blank"),
        (" ", ValueError, "class_name is blank"),
        (None, TypeError, "class_name=None: expected a string, not a NoneType"),
        (["nut"], TypeError, "class_name=['nut']: expected a string, not a list"),
    ],
)
def test_bad_class_names(class_name, error, message):
    with pytest.raises(error, match=re.escape(message)):
        PromptSet(**GOOD).format(class_name)


# Presets --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n_templates", "n_normal", "n_anomalous"),
    [("clip-ac", 1, 1, 1), ("winclip", 22, 7, 4), ("clip-ad", 22, 9, 10)],
)
def test_presets_have_the_published_sizes(name, n_templates, n_normal, n_anomalous):
    prompts = PRESETS[name]
    assert len(set(prompts.templates)) == n_templates
    assert len(set(prompts.normal_states)) == n_normal
    assert len(set(prompts.anomalous_states)) == n_anomalous
    normal, anomalous = prompts.format("nut")
    assert len(set(normal)) == n_templates * n_normal
    assert len(set(anomalous)) == n_templates * n_anomalous
    assert not set(normal) & set(anomalous)


def test_presets_have_the_published_texts():
    assert PRESETS["clip-ac"].format("nut") == (["normal nut"], ["anomalous nut"])
    kinds = [
        "a cropped photo of {} X.",
        "a close-up photo of {} X.",
        "a bright photo of {} X.",
        "a dark photo of {} X.",
        "a jpeg corrupted photo of {} X.",
        "a blurry photo of {} X.",
        "a photo of {} X.",
        "a photo of {} large X.",
        "a photo of {} small X.",
        "a photo of {} X for visual inspection.",
        "a photo of {} X for anomaly detection.",
    ]
    expected = {kind.format(article) for kind in kinds for article in ("a", "the")}
    for name in ("winclip", "clip-ad"):
        found = {template.format("X") for template in PRESETS[name].templates}
        assert found == expected
    flaws = ["flaw", "defect", "damage", "scratch", "crack", "contamination"]
    assert PRESETS["winclip"].normal_states == (
        "{}",
        "flawless {}",
        "perfect {}",
        "unblemished {}",
        *(f"{{}} without {flaw}" for flaw in flaws[:3]),
    )
    assert PRESETS["winclip"].anomalous_states == (
        "damaged {}",
        *(f"{{}} with {flaw}" for flaw in flaws[:3]),
    )
    assert PRESETS["clip-ad"].normal_states == (
        "flawless {}",
        "perfect {}",
        "unblemished {}",
        *(f"{{}} without {flaw}" for flaw in flaws),
    )
    assert PRESETS["clip-ad"].anomalous_states == (
        "damaged {}",
        "imperfect {}",
        "blemished {}",
        "broken {}",
        *(f"{{}} with {flaw}" for flaw in flaws),
    )


def test_check_prompts():
    prompts = PromptSet(**GOOD)
    assert check_prompts(prompts) is prompts
    assert check_prompts("winclip") is PRESETS["winclip"]
    with pytest.raises(ValueError, match=r"='WinCLIP': expected one of .*'clip-ac'"):
        check_prompts("WinCLIP")
    with pytest.raises(TypeError, match=r"expected a PromptSet or one of .*'clip-ac'"):
        check_prompts(["good", "bad"])


# Random words ---------------------------------------------------------------

patterns = st.sampled_from(["{}", "x {}", "{} y", "z"])
ranges = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(
    lambda pair: (min(pair), max(pair))
)
options = st.fixed_dictionaries(
    {
        "n_words": ranges | st.integers(1, 4),
        "word_length": ranges.map(lambda pair: (pair[0] + 1, pair[1] + 4)),
        "word_source": st.sampled_from(["letters", "vocabulary"])
        | st.lists(st.text("abc{} ", min_size=1).filter(str.strip), min_size=1),
        "templates": st.lists(
            st.sampled_from(["a {}.", "{}", "see {} {here}"]), min_size=1
        ),
        "normal_states": st.lists(patterns.map("good ".__add__), min_size=1),
        "anomalous_states": st.lists(patterns.map("bad ".__add__), min_size=1),
        "class_name": st.sampled_from([None, "nut", "{}"]),
        "random_state": st.integers(0, 2**32 - 1),
    }
)


@settings(max_examples=60, deadline=None)
@given(options=options, sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_the_first_pairs_are_the_same_for_any_number_of_pairs(options, sizes):
    few, many = sorted(sizes)
    normal, anomalous = random_word_prompts(many, **options)
    assert len(normal) == len(anomalous) == many
    assert random_word_prompts(few, **options) == (normal[:few], anomalous[:few])


def test_the_first_pairs_are_the_same_across_chunks():
    normal, anomalous = random_word_prompts(20_011, random_state=3)
    for few in (1, 9_999, 10_000, 10_001, 20_000):
        expected = (normal[:few], anomalous[:few])
        assert random_word_prompts(few, random_state=3) == expected


MARKED = {
    "templates": ["1<{}>", "2<{}>"],
    "normal_states": ["a[{}]", "b[{}]"],
    "anomalous_states": ["c[{}]", "d[{}]"],
}


def parse(normal, anomalous):
    """Take apart prompts made with MARKED."""
    pairs = []
    for good, bad in zip(normal, anomalous, strict=True):
        good_match = re.fullmatch(r"([12])<([ab])\[(.*)\]>", good)
        bad_match = re.fullmatch(r"([12])<([cd])\[(.*)\]>", bad)
        # Same template, same words; only the state differs.
        assert good_match.group(1, 3) == bad_match.group(1, 3)
        pairs.append((*good_match.group(1, 2), bad_match[2], good_match[3]))
    return pairs


@settings(max_examples=60, deadline=None)
@given(
    n_words=ranges,
    word_length=ranges.map(lambda pair: (pair[0] + 1, pair[1] + 3)),
    word_source=st.sampled_from(["letters", "vocabulary", ["Ä", "zz", "7"]]),
    class_name=st.sampled_from([None, "metal_nut"]),
    random_state=st.integers(0, 2**32 - 1),
)
def test_both_prompts_of_a_pair_differ_only_in_the_state(
    n_words, word_length, word_source, class_name, random_state
):
    prompts = random_word_prompts(
        20,
        n_words=n_words,
        word_length=word_length,
        word_source=word_source,
        class_name=class_name,
        random_state=random_state,
        **MARKED,
    )
    for *_, phrase in parse(*prompts):
        words = phrase.split(" ")
        if class_name is not None:
            assert words.pop() == class_name
        assert n_words[0] <= len(words) <= n_words[1]
        for word in words:
            if isinstance(word_source, list):
                assert word in word_source
            else:
                assert re.fullmatch("[a-z]+", word)
                assert word_length[0] <= len(word) <= word_length[1]
            if word_source == "vocabulary":
                assert word in _vocabulary()


def test_everything_is_drawn_uniformly_and_independently():
    prompts = random_word_prompts(20_000, random_state=0, **MARKED)
    pairs = parse(*prompts)
    kinds, counts = np.unique(
        [template + good + bad for template, good, bad, _ in pairs], return_counts=True
    )
    assert len(kinds) == 8
    np.testing.assert_allclose(counts, 20_000 / 8, rtol=0.1)
    phrases = [phrase.split() for *_, phrase in pairs]
    n_words = np.bincount([len(words) for words in phrases])
    np.testing.assert_allclose(n_words[1:], 20_000 / 5, rtol=0.1)
    lengths = np.bincount([len(word) for words in phrases for word in words])
    assert lengths[:3].sum() == 0
    np.testing.assert_allclose(lengths[3:], lengths.sum() / 8, rtol=0.1)
    letters = "".join("".join(words) for words in phrases)
    _, counts = np.unique(list(letters), return_counts=True)
    assert len(counts) == 26
    np.testing.assert_allclose(counts, len(letters) / 26, rtol=0.1)
    assert len({tuple(words) for words in phrases}) > 19_900


def test_defaults():
    normal, anomalous = random_word_prompts(random_state=0)
    assert len(normal) == len(anomalous) == 10_000
    words = "[a-z]{3,10}( [a-z]{3,10}){0,4}"
    for prompts, states in (
        (normal, DEFAULT_NORMAL_STATES),
        (anomalous, DEFAULT_ANOMALOUS_STATES),
    ):
        sentences = {
            re.escape(fill(template, fill(state, "W"))).replace("W", words)
            for template in DEFAULT_TEMPLATES
            for state in states
        }
        pattern = re.compile("|".join(sentences))
        assert all(pattern.fullmatch(prompt) for prompt in prompts)


def test_random_state():
    first = random_word_prompts(50, random_state=7)
    assert random_word_prompts(50, random_state=7) == first
    assert random_word_prompts(50, random_state=8) != first
    # One seed per call, whatever the number of pairs.
    state = np.random.RandomState(7)
    assert random_word_prompts(50, random_state=state) == first
    second = random_word_prompts(5, random_state=state)
    state = np.random.RandomState(7)
    random_word_prompts(3, random_state=state)
    assert random_word_prompts(5, random_state=state) == second
    assert random_word_prompts(50) != random_word_prompts(50)


def test_the_global_random_state_is_only_used_without_a_seed():
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    random_word_prompts(50, random_state=1)
    assert np.random.random() == expected  # noqa: NPY002


def test_a_class_name_alone():
    normal, anomalous = random_word_prompts(
        4, n_words=0, class_name="nut", random_state=0, **GOOD
    )
    assert normal == ["a good nut."] * 4
    assert anomalous == ["a bad nut."] * 4
    some = random_word_prompts(
        200, n_words=(0, 1), class_name="nut", random_state=0, **GOOD
    )[0]
    assert 50 < some.count("a good nut.") < 150


def test_words_may_be_phrases_with_braces():
    normal, _ = random_word_prompts(
        1, n_words=2, word_source=("metal {}",), random_state=0, **GOOD
    )
    assert normal == ["a good metal {} metal {}."]


def test_parameters_of_a_search_may_be_lists_and_numpy_values():
    expected = random_word_prompts(5, n_words=(1, 2), word_length=4, random_state=0)
    assert expected == random_word_prompts(
        np.int64(5),
        n_words=[1, 2],
        word_length=np.array([4, 4]),
        random_state=np.int64(0),
    )
    words = np.array(["ab", "cd"])
    normal, _ = random_word_prompts(5, word_source=words, random_state=0)
    assert all(type(prompt) is str for prompt in normal)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"n_pairs": 0}, ValueError, "n_pairs=0: expected an integer >= 1"),
        ({"n_pairs": 2.0}, TypeError, "n_pairs=2.0: expected an integer >= 1"),
        ({"n_pairs": True}, TypeError, "n_pairs=True: expected an integer >= 1"),
        ({"n_words": 0}, ValueError, "n_words=0 allows prompts without any word"),
        ({"n_words": (0, 3)}, ValueError, "n_words=(0, 3) allows prompts without any"),
        (
            {"n_words": (3, 2)},
            ValueError,
            "n_words=(3, 2): expected 0 <= smallest <= largest",
        ),
        ({"n_words": -1}, ValueError, "n_words=-1: expected 0 <= smallest <= largest"),
        ({"n_words": 1.5}, TypeError, ": expected an integer, or a pair"),
        ({"n_words": (1, 2, 3)}, TypeError, ": expected an integer, or a pair"),
        ({"n_words": (1, 2.5)}, TypeError, ": expected an integer, or a pair"),
        ({"n_words": None}, TypeError, ": expected an integer, or a pair"),
        ({"n_words": 10**12}, ValueError, "n_words=1000000000000 with word_length="),
        (
            {"n_words": 10**12, "word_source": ["a"]},
            ValueError,
            "n_words=1000000000000: expected at most 200,000 letters, or words of a",
        ),
        ({"word_length": 10**6}, ValueError, "with word_length=1000000: expected at"),
        ({"random_state": True}, ValueError, "random_state=True: expected an int"),
        ({"class_name": "\udce4"}, ValueError, "class_name: '\\udce4' is not valid"),
        (
            {"word_source": ["a", "b\udce4"]},
            ValueError,
            "word_source: 'b\\udce4' is not valid Unicode: it has a lone surrogate at",
        ),
        ({"word_length": 0}, ValueError, "word_length=0: expected 1 <= smallest"),
        (
            {"word_length": (9, 3)},
            ValueError,
            "word_length=(9, 3): expected 1 <= smallest",
        ),
        (
            {"word_source": "vocabulary", "word_length": 99},
            ValueError,
            "the vocabulary has no word of such a length",
        ),
        (
            {"word_source": "chars"},
            ValueError,
            "word_source='chars': expected 'letters', 'v",
        ),
        ({"word_source": []}, ValueError, "word_source is empty"),
        (
            {"word_source": None},
            TypeError,
            "word_source=None: expected a list of strings",
        ),
        ({"word_source": {"a", "b"}}, TypeError, "'}: expected a list of strings"),
        (
            {"word_source": ["a", 1]},
            TypeError,
            "word_source: expected strings, found 1",
        ),
        ({"word_source": ["a", ""]}, ValueError, "word_source holds a blank string"),
        ({"class_name": ""}, ValueError, "class_name is blank"),
        ({"class_name": 3}, TypeError, "class_name=3: expected a string"),
        ({"random_state": "seed"}, ValueError, "'seed' cannot be used to seed"),
    ],
)
def test_bad_parameters(params, error, message):
    with pytest.raises(error, match=re.escape(message)):
        random_word_prompts(**params)


def test_the_vocabulary_is_that_of_the_tokenizer():
    from open_clip.tokenizer import SimpleTokenizer

    tokens = SimpleTokenizer().encoder
    words = _vocabulary()
    assert len(set(words)) == len(words)
    assert set(words) == {
        token.removesuffix("</w>")
        for token in tokens
        # A lone letter is in the alphabet, not a word that was learnt.
        if re.fullmatch("[a-z]{2,}</w>", token)
    }


def test_no_deep_learning_library_is_imported():
    code = (
        "import sys\n"
        "from clipad_sklearn import PromptSet, random_word_prompts\n"
        "random_word_prompts(3, word_source='vocabulary')\n"
        "import clipad_sklearn.metrics, clipad_sklearn.model_selection\n"
        "from clipad_sklearn import calibrate_threshold\n"
        "from clipad_sklearn._detectors.aggregation import aggregate\n"
        "assert not {'torch', 'open_clip', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("normal", "anomalous"),
    [
        (["clean {}"], ["clean {}"]),
        (["Clean {}"], ["stained {}", "clean  {}"]),
        (["clean"], ["clean {}"]),
    ],
)
def test_a_state_is_normal_or_anomalous(
    normal: list[str], anomalous: list[str]
) -> None:
    message = f"anomalous_states: {anomalous[-1]!r} is one of normal_states too"
    with pytest.raises(ValueError, match=re.escape(message)):
        PromptSet(normal, anomalous, ["a photo of a {}."])
    with pytest.raises(ValueError, match=re.escape(message)):
        random_word_prompts(2, normal_states=normal, anomalous_states=anomalous)


def test_long_words_in_prompts_of_a_fixed_seed_do_not_depend_on_chunks():
    options = {"n_words": (1, 30), "word_length": (1, 500), "random_state": 0}
    normal, _ = random_word_prompts(700, **options)
    assert random_word_prompts(3, **options)[0] == normal[:3]
    assert random_word_prompts(699, **options)[0] == normal[:699]


def test_a_vocabulary_of_words_of_any_length():
    options = {"word_source": "vocabulary", "random_state": 0}
    any_length = random_word_prompts(5, word_length=(1, 10**6), **options)
    assert any_length == random_word_prompts(5, word_length=(1, 77), **options)


def test_messages_show_both_ends_of_long_prompts():
    long = "first " + 5000 * "word " + "last"
    for values, name in (([long + " {} {}"], "normal_states"), (long, "templates")):
        sides = {"normal_states": ["a"], "anomalous_states": ["b"], "templates": ["{}"]}
        with pytest.raises((TypeError, ValueError), match=name) as raised:
            PromptSet(**(sides | {name: values}))
        message = str(raised.value)
        assert len(message) < 300
        assert "first word" in message
        assert "last" in message
    with pytest.raises(ValueError, match="one of normal_states too") as raised:
        PromptSet([long], [long], ["{}"])
    assert len(str(raised.value)) < 300
