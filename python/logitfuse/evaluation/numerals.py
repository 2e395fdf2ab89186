"""Numbers in text: found, read exactly, and spelled in one way."""

# ruff: noqa: SIM905

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

#: Digits of the longest number that is read, and of the longest that is spelled.
LONGEST = 1000

#: Not the end of a word, of a number or of what follows a decimal point: in "CO2" and "1.2.3" no
#: number begins at the 2.
_FREE = r"(?<![^\W\d_])(?<!\d)(?<!\d\.)"
#: "5-3" is no minus three, but " -3", "-$3" and "(-3)" are.
_SIGN = r"(?:(?<![\w.)\]}])[-−–+])?"
_DIGITS = rf"(?:{_FREE}(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
_POWER = r"\^\{?(?P<power>[-−+]?\d+)\}?"
_OF_TEN = r"\s*[x×*·]\s*10\^\{?(?P<of_ten>[-−+]?\d+)\}?"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?P<inner>[$€£][-−]?)?(?P<digits>{_DIGITS})"
    rf"(?:[eE](?P<exponent>[-−+]?\d+)(?!\w)|{_OF_TEN}|{_POWER})?"
)
_SLASH = re.compile(r"\s*/\s*")
_VULGAR = dict(
    zip(
        "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
        "1/4 1/2 3/4 1/7 1/9 1/10 1/3 2/3 1/5 2/5 3/5 4/5 1/6 5/6 1/8 3/8 5/8 7/8".split(),
        strict=True,
    )
)
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
#: LaTeX's spellings, and spaces that only group digits.
_REWRITTEN = (
    (re.compile(r"([-−+]?)\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}"), r" \1\2/\3 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<=\d)(?:\\[,;:! ]|[\u00a0\u2009\u202f])(?=\d{3})"), ""),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\(?=[$%])"), ""),
)


def numbers(text: str) -> list[Fraction]:
    """The numbers in a text, in its order.

    Signs, thousands separators (``1,000``), decimals, scientific notation (``1e-3``,
    ``2 × 10^5``), powers (``10^6``), fractions (``3/4``, ``1 1/2``, ``½``, ``\\frac{3}{4}``);
    currency and percent signs are ignored.  A number of more than `LONGEST` digits is passed over.
    """
    text = _plain(text)
    out: list[Fraction] = []
    whole_end = -1  # of a number that may be the whole part of a fraction
    for chain in _chains(text):
        values = [_value(found) for found in chain]
        signed = chain[0]["sign"] or chain[0]["inner"]
        if len(values) == 2 and values[0] is not None and values[1]:
            value = values[0] / values[1]
            gap = text[whole_end : chain[0].start()] if whole_end >= 0 else ""
            if gap and not gap.strip(" ") and not signed and value < 1:
                whole = out.pop()
                value = whole - value if whole < 0 else whole + value
            out.append(value)
        else:  # one number; or a date, a path, a division by nothing
            out.extend(value for value in values if value is not None)
        integral = len(values) == 1 and values[0] is not None and values[0].denominator == 1
        whole_end = chain[0].end() if integral else -1
    return out


def spelled(number: Fraction) -> str | None:
    """Decimal digits without exponent if they end, else ``p/q``; None if it is too long.

    ``3/4`` and ``0.750`` are "0.75", ``2/6`` is "1/3".
    """
    p, q = number.numerator, number.denominator
    twos = (q & -q).bit_length() - 1
    rest, fives = q >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if max(p.bit_length(), q.bit_length()) > 4 * LONGEST or places > LONGEST:
        return None
    if rest != 1:
        text = f"{p}/{q}"
    elif places == 0:
        text = str(p)
    else:
        digits = str(abs(p) * 10**places // q).rjust(places + 1, "0")
        text = f"{'-' if p < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return text if len(text) <= LONGEST else None


def _plain(text: str) -> str:
    text = re.sub(f"[{''.join(_VULGAR)}]", lambda found: f" {_VULGAR[found[0]]}", text)
    text = re.sub(r"(?<=\d)⁻?[⁰¹²³⁴-⁹]+", lambda found: f"^{found[0].translate(_RAISED)}", text)
    for pattern, replacement in _REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def _chains(text: str) -> Iterator[list[re.Match[str]]]:
    """The numbers, those together that slashes join."""
    chain: list[re.Match[str]] = []
    for found in _NUMBER.finditer(text):
        if chain and not _SLASH.fullmatch(text, chain[-1].end(), found.start()):
            yield chain
            chain = []
        chain.append(found)
    if chain:
        yield chain


def _value(found: re.Match[str]) -> Fraction | None:
    digits = found["digits"].replace(",", "")
    raised = found["exponent"] or found["of_ten"] or found["power"] or "0"
    if len(digits) > LONGEST or len(raised) > 5:
        return None
    exponent = int(raised.replace("−", "-"))
    value = Fraction(digits)
    if found["power"] is None:
        scale = Fraction(10) ** exponent if abs(exponent) <= LONGEST else None
    elif len(digits) * abs(exponent) > LONGEST or (not value and exponent < 0):
        scale = None
    else:
        value, scale = value**exponent, Fraction(1)
    if scale is None:
        return None
    negative = found["sign"] in ("-", "−", "–") or (found["inner"] or "").endswith(("-", "−"))
    return (-value if negative else value) * scale
