"""What an answer says: tables of spellings, and laws."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from logitfuse.errors import ConfigError
from logitfuse.evaluation.answers import KINDS, AnswerKind, canonical, infer_kind, matches
from logitfuse.evaluation.numerals import LONGEST, numbers, spelled

MOODS = ("positive", "negative", "neutral", "very positive", "not relevant", "relevant")

NUMBERS = [
    ("42", "42"),
    ("The answer is 42.", "42"),
    ("3.", "3"),
    ("I have 3 apples and 4 pears, so 7.", "7"),
    ("The answer is 7 because 3 + 5 is 8", "7"),
    ("The answer is 3 + 4 = 7", "7"),
    ("The answer is x = 7", "7"),
    ("Answer: 12%", "12"),
    ("**Answer:** 12", "12"),
    ("The final answer is:\n\n**15**\n\nI checked it 3 times.", "15"),
    ("So 5.\n#### 18\n", "18"),
    ("#### $1,234.50", "1234.5"),
    (r"Thus \boxed{42} follows from 41.", "42"),
    (r"\boxed{\frac{3}{4}}", "0.75"),
    (r"\boxed{-\frac{3}{4}}", "-0.75"),
    (r"1\frac{1}{2}", "1.5"),
    (r"The answer is \(1{,}000\).", "1000"),
    (r"\boxed{\$5}", "5"),
    ("1,000.50", "1000.5"),
    ("1,000,000", "1000000"),
    ("1\u202f000\u202f000", "1000000"),
    ("1, 2, 3", "3"),
    ("1,2,3", "3"),
    ("In 2020, 5 people came", "5"),
    ("−5", "-5"),
    ("-5", "-5"),
    ("(-5)", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("It is -.5", "-0.5"),
    (".50", "0.5"),
    ("the answer is...5", "5"),
    ("10-3", "3"),
    ("pages 10–12", "12"),
    ("+5", "5"),
    ("3/4", "0.75"),
    ("1/3", "1/3"),
    ("2/6", "1/3"),
    ("-1/3", "-1/3"),
    ("6/3", "2"),
    ("1 1/2 cups", "1.5"),
    ("2½", "2.5"),
    ("-1 1/2", "-1.5"),
    ("5/0", "0"),
    ("3/4/2020", "2020"),
    ("1e3", "1000"),
    ("1.5E-3", "0.0015"),
    ("2 × 10^5", "200000"),
    (r"2 \times 10^{-3}", "0.002"),
    ("10⁶", "1000000"),
    ("2^10", "1024"),
    ("007", "7"),
    ("-0", "0"),
    ("0.30000000000000004", "0.30000000000000004"),
    ("0.10", "0.1"),
    ("5km", "5"),
    ("7pm", "7"),
    ("٤٢", "42"),
    ("42", "42"),
    ("1.2.3", "1.2"),
    ("water is H2O", None),
    ("seven", None),
    ("", None),
    ("None", None),
    ("The answer is unclear.", None),
    ("The answer is unclear. 5", "5"),
    ("The answer is 4.\nQuestion: and? The answer is 6.", "6"),
    ("The answer is not 4 but five; take 5", "5"),
    ("9" * LONGEST, "9" * LONGEST),
    ("9" * (LONGEST + 1), None),
    ("1e999999999", None),
    ("9^99999", None),
]

LETTERS = [
    ("B", "B"),
    ("b", "B"),
    ("(b)", "B"),
    ("**B**", "B"),
    ("B.", "B"),
    ("B) Paris", "B"),
    ("B. Paris", "B"),
    ("(B) Paris", "B"),
    ("The answer is B.", "B"),
    ("The answer is (B) because (A) is wrong.", "B"),
    ("The answer is **C**", "C"),
    ("The correct answer is: D", "D"),
    ("Answer: b)", "B"),
    ("answer is b", "B"),
    ("The answer is option C.", "C"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{(C)}}", "C"),
    (r"$\boxed{D}$.", "D"),
    ("(A) is wrong. (B) is right.", "B"),
    ("I think option C fits best", "C"),
    ("Let me think.\nC\nThat is it.", "C"),
    ("A", "A"),
    ("I", "I"),
    ("The answer is A because it fits", "A"),
    ("The answer is A", "A"),
    ("Answer: A. Paris", "A"),
    ("The answer is a dog", None),
    ("The answer is A dog", None),
    ("A dog is what I see", None),
    ("I see a dog", None),
    ("Answer: I think B, no idea", None),
    ("The answer is A or B", None),
    ("The answer is A/B", None),
    ("The answer is C++", None),
    ("The answer is X-ray", None),
    ("The answer is Paris", None),
    ("The answer is not B.", None),
    ("A. is wrong\nB. is right\nSo we take (B).", "B"),
    ("A. Paris\nB. London", None),
    ("", None),
    ("42", None),
    ("Answer: the answer is C", "C"),
    ("The answer is\n\nB", "B"),
]

LABELS = [
    ("positive", "positive"),
    ("Positive.", "positive"),
    ("Label: NEGATIVE", "negative"),
    ("very  positive", "very positive"),
    ("This is very positive", "very positive"),
    ("I would say it is not positive but negative", "negative"),
    ("The answer is neutral, since positive and negative balance", "neutral"),
    ("Positive: there is nothing negative in it", "positive"),
    ("There is something negative, but on the whole: positive", "positive"),
    ("positively", None),
    ("not relevant", "not relevant"),
    ("It is not relevant.", "not relevant"),
    ("relevant", "relevant"),
    (r"\boxed{\text{neutral}}", "neutral"),
    ("neither", None),
    ("", None),
]

BOOLS = [
    ("yes", "true"),
    ("No.", "false"),
    ("TRUE", "true"),
    ("False", "false"),
    ("**Yes**, because no dogs bark", "true"),
    ("No, that is not true.", "false"),
    ("The answer is yes.", "true"),
    ("The answer is: No", "false"),
    ("Dogs bark. Therefore, no.", "false"),
    ("There is no evidence", None),
    ("I cannot say yes or no.", None),
    ("That is not true.", None),
    (r"\boxed{\text{Yes}}", "true"),
    ("nothing", None),
    ("yesterday", None),
    ("No-one", None),
    ("", None),
]

JSONS = [
    ('{"b": 1, "a": [1.0, "x"]}', '{"a":[1,"x"],"b":1}'),
    ('Here it is:\n```json\n{"a": 1e2}\n```\nDone {"b": 2}.', '{"a":100}'),
    ("```\n[1, 2]\n```", "[1,2]"),
    ('The result is {"a": null} and {"b": 1}', '{"a":null}'),
    ("[0.10, -0, 1E+1]", "[0.1,0,10]"),
    ("5.0", "5"),
    ('"x"', '"x"'),
    ("true", "true"),
    ('{"é": "ü"}', '{"\\u00e9":"\\u00fc"}'),
    ('{"a": "1"}', '{"a":"1"}'),
    ("{'a': 1}", None),
    ('{"a": NaN}', None),
    ("[1e99999]", None),
    ('{"a": 1', None),
    ("{oops} [1]", "[1]"),
    ("no JSON", None),
    ("", None),
    ("[" * 100_000, None),
]

TEXTS = [
    ("Paris", "paris"),
    ("The answer is Paris.", "paris"),
    ("the  Eiffel   Tower!", "eiffel tower"),
    ("An apple", "apple"),
    ("Mother-in-law", "mother in law"),
    ("U.S.", "us"),
    ("Don't", "dont"),
    ("3.5", "3.5"),
    ("C++", "c++"),
    ("STRAẞE", "strasse"),
    ("ﬁne", "fine"),
    ("10:30", "10:30"),
    (r"\boxed{\text{New York}}", "new york"),
    ("Answer: x\nAnswer: y", "y"),
    ("the", None),
    ("?!", None),
    ("", None),
    ("None", "none"),
]

CASES = [
    (kind, text, key)
    for kind, cases in (
        ("number", NUMBERS),
        ("choice", LETTERS),
        ("label", LABELS),
        ("bool", BOOLS),
        ("json", JSONS),
        ("text", TEXTS),
    )
    for text, key in cases
]


@pytest.mark.parametrize(("kind", "text", "key"), CASES, ids=lambda value: repr(value)[:40])
def test_table(kind: AnswerKind, text: str, key: str | None) -> None:
    labels = MOODS if kind == "label" else ()
    assert canonical(text, kind, labels) == key
    if key is not None:
        assert canonical(key, kind, labels) == key


def test_letters_allowed() -> None:
    assert canonical("The answer is E.", "choice", "ABCD") is None
    assert canonical("The answer is d.", "choice", "ABCD") == "D"


def test_labels_are_needed() -> None:
    assert canonical("positive", "label") is None
    assert canonical("positive", "label", [" "]) is None


PIECES = st.sampled_from(
    [
        *(
            "The answer is",
            "answer:",
            "####",
            "\\boxed{",
            "}",
            "\n",
            " ",
            ".",
            ",",
            "-",
            "−",
            "/",
            "$",
        ),
        *("%", "(", ")", "A", "a", "B", "I", "or", "not", "yes", "No", "true", "positive", "very"),
        *(
            "1",
            "23",
            "000",
            "e",
            "^",
            "×",
            "10",
            "½",
            "²",
            "=",
            "the",
            "{",
            "[",
            "]",
            '"',
            ":",
            "```",
        ),
        *("ß", "ǰ", "İ", "ﬁ", "\u0345", "ΐ", "\x00", "\\text{", "\\frac{"),
    ]
)
TEXT = st.text() | st.lists(PIECES, max_size=12).map("".join) | st.lists(PIECES).map(" ".join)


@given(TEXT, st.sampled_from(KINDS), st.sampled_from([(), MOODS, ("a", "B", "the answer is")]))
@example("answer! is is foo", "text", ())
@example("the answer is", "label", ("a", "the answer is a"))
def test_idempotent(text: str, kind: AnswerKind, labels: tuple[str, ...]) -> None:
    """A key is its own key, and no text is too strange."""
    key = canonical(text, kind, labels)
    if key is not None:
        assert key
        assert key != "None"
        assert canonical(key, kind, labels) == key


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.data())
def test_every_label_is_read(labels: list[str], data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(labels))
    key = canonical(label, "label", labels)
    assert key is None or canonical(key, "label", labels) == key
    if label.strip() and label.isascii() and label.isprintable():
        assert key == " ".join(label.lower().split())


WHOLE = st.integers(-(10**30), 10**30)
EXACT = st.decimals(-(10**12), 10**12, places=6, allow_nan=False)


@given(WHOLE, st.sampled_from(["{}", "{:,}", "$ {}", "{}.", "{}.0", "{:+}", "{}e0", "{} %"]))
def test_styles_of_whole_numbers(number: int, style: str) -> None:
    for sentence in (
        "{}",
        "The answer is {}",
        "7 and 8.\n#### {}",
        "so we get {}",
        "\\boxed{{{}}}",
    ):
        text = sentence.format(style.format(number))
        assert canonical(text, "number") == str(number), text


@given(EXACT)
def test_styles_of_decimals(number: Decimal) -> None:
    key = canonical(f"{number:f}", "number")
    assert key is not None
    assert Decimal(key) == number
    assert {canonical(f"{number:{style}}", "number") for style in (",f", "e", ".9f", "+f")} == {key}
    assert canonical(f"{number:f}".replace("-", "−"), "number") == key


@given(st.fractions(), st.integers(1, 50))
def test_fractions(number: Fraction, factor: int) -> None:
    p, q = number.numerator, number.denominator
    key = canonical(f"{p}/{q}", "number")
    assert key is not None
    assert Fraction(key) == number
    assert canonical(f"The answer is {p * factor} / {q * factor}.", "number") == key
    assert canonical(f"{'-' if p < 0 else ''}\\frac{{{abs(p)}}}{{{q}}}", "number") == key


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_have_no_noise(number: float) -> None:
    key = canonical(repr(number), "number")
    assert key is not None
    assert "e" not in key
    assert Fraction(key) == Fraction(repr(number))


def test_too_long_to_spell() -> None:
    assert spelled(Fraction(1, 2 ** (LONGEST + 1))) is None
    assert spelled(Fraction(10) ** (LONGEST + 1)) is None
    assert spelled(Fraction(1, 3 ** (3 * LONGEST))) is None
    assert numbers(f"1e-{LONGEST} 2e-{LONGEST + 1}") == [Fraction(1, 10**LONGEST)]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | WHOLE
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def exactly(text: str) -> object:
    """JSON without rounding."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal)


@given(VALUES)
def test_json_in_all_layouts(value: object) -> None:
    key = canonical(json.dumps(value), "json")
    assert key is not None
    assert exactly(key) == exactly(json.dumps(value))
    layouts = [
        json.dumps(value, indent=2, ensure_ascii=False),
        f"Sure!\n```json\n{json.dumps(value, sort_keys=True)}\n```",
    ]
    if isinstance(value, dict | list):
        layouts.append(f"It is {json.dumps(value)}.")
    for text in layouts:
        if "```" not in json.dumps(value):
            assert canonical(text, "json") == key


def test_one_is_one() -> None:
    assert canonical('{"a": 1}', "json") == canonical('{"a": 1.0}', "json")
    assert canonical('{"a": 1}', "json") != canonical('{"a": true}', "json")
    assert canonical('{"a": 1}', "json") != canonical('{"a": "1"}', "json")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (5, "number"),
        (0.5, "number"),
        (True, "bool"),
        ([1], "json"),
        ({"a": 1}, "json"),
        ("5", "number"),
        ("-1,000.5", "number"),
        ("3/4", "number"),
        ("$5", "number"),
        ("12 %", "number"),
        ("1e-3", "number"),
        ("Yes", "bool"),
        ("false", "bool"),
        ("B", "choice"),
        ("(C)", "choice"),
        ("b", "text"),
        ('{"a": 1}', "json"),
        ("[1, 2]", "json"),
        ("[x", "text"),
        ("Paris", "text"),
        ("Apollo 11", "text"),
        ("3 apples", "text"),
        ("10-12", "text"),
    ],
)
def test_infer_kind(answer: object, kind: AnswerKind) -> None:
    assert infer_kind(answer) == kind


def test_matches() -> None:
    assert matches("It is 0.50", "1/2", "number") is True
    assert matches("It is 5", "1/2", "number") is False
    assert matches("I do not know", "1/2", "number") is None
    assert matches("None", "none", "text") is True
    with pytest.raises(ConfigError, match="'half' is no number"):
        matches("5", "half", "number")


@pytest.mark.parametrize(
    "piece",
    ["1,", "9", "[", '{"a":', "answer is ", "(A", "\\boxed{", "\\frac{1", "-", "yes or ", "/1"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_repeats_itself(piece: str, kind: AnswerKind) -> None:
    """Long texts neither exhaust the stack nor, or this would not end, take cubic time."""
    key = canonical(piece * 10_000, kind, MOODS)
    assert key is None or canonical(key, kind, MOODS) == key
