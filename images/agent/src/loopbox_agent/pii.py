"""pii: owns what personal data looks like: forms with a check digit or a numbering plan behind them. Pure.

Names and addresses are not here: they need a language model of their own, and guess (docs/decisions/0014).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import phonenumbers
from stdnum import iban, luhn
from stdnum.br import cpf
from stdnum.ch import ssn as ch_ssn
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.us import ssn as us_ssn

from loopbox_agent.mask_span import Span

_EMAIL = re.compile(r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,8}([A-Za-z]{2,24}))(?![\w@-])")
# Ends of file names that also look like a domain: icon@2x.png.
_FILE_ENDS = frozenset(
    {
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "ico",
        "css",
        "js",
        "mjs",
        "ts",
        "json",
        "html",
        "md",
        "txt",
        "py",
        "whl",
    }
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
#: Who issues what: the leading digits and the lengths of each brand.
_ISSUERS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|3(?:0[0-5]|[68]\d)\d{11}"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
_SHORTEST_IBAN = 15
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+|00)[1-9]\d{0,2}[ .()/-]{0,2}\d(?:[ .()/-]{0,2}\d){5,13}(?![\w-]|\.\d)"
    r"|(?<![\w.-])\(?[2-9]\d\d\)?[ .-]\d{3}[.-]\d{4}(?![\w-]|\.\d)"
)
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])")

_FOUR_DIGITS = re.compile(r"(?:\d\D*){4}")


def find_pii(text: str, *, addresses: bool = False) -> Iterator[Span]:
    """Yield the personal data in one segment of text. addresses: IPv4 addresses too."""
    if "@" in text:
        for found in _EMAIL.finditer(text):
            # What follows user@host: is a path on it: git@host:owner/name.
            if found[2].lower() not in _FILE_ENDS and text[found.end() : found.end() + 1] != ":":
                yield Span(found.start(), found.end(), "pii:email")
    if _FOUR_DIGITS.search(text):
        yield from _numbers(text)
    if addresses:
        yield from (Span(found.start(), found.end(), "pii:ip_address") for found in _IPV4.finditer(text))


def _numbers(text: str) -> Iterator[Span]:
    for found in _IBAN.finditer(text):
        yield from _iban(found)
    for kind, pattern, is_valid in _CHECKED:
        for found in pattern.finditer(text):
            if is_valid(found[0]):
                yield Span(found.start(), found.end(), f"pii:{kind}")


def _is_card(text: str) -> bool:
    digits = re.sub(r"[ -]", "", text)
    return bool(_ISSUERS.fullmatch(digits)) and bool(luhn.is_valid(digits))


def _iban(found: re.Match[str]) -> Iterator[Span]:
    """Yield the account number, which may be followed by a word in capitals."""
    whole = found[0]
    while len(whole) >= _SHORTEST_IBAN:
        if iban.is_valid(whole):
            yield Span(found.start(), found.start() + len(whole), "pii:iban")
            return
        whole = whole.rpartition(" ")[0]


def _is_phone(text: str) -> bool:
    international = text.replace("00", "+", 1) if text.startswith("00") else text
    try:
        number = phonenumbers.parse(international, None if international.startswith("+") else "US")
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_valid_number(number)


# Kind, form, and what tells a real one by its check digit or numbering plan.
_CHECKED: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("credit_card", _CARD, _is_card),
    ("phone", _PHONE, _is_phone),
    ("us_ssn", re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), us_ssn.is_valid),
    ("es_id", re.compile(r"(?<![\w-])\d{8}-?[A-HJ-NP-TV-Z](?![\w-])"), dni.is_valid),
    ("es_id", re.compile(r"(?<![\w-])[XYZ]-?\d{7}-?[A-Z](?![\w-])"), nie.is_valid),
    ("it_tax_id", re.compile(r"(?<!\w)[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z](?!\w)"), codicefiscale.is_valid),
    (
        "fr_id",
        re.compile(r"(?<![\w-])[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d(?![\w-])"),
        nir.is_valid,
    ),
    ("br_tax_id", re.compile(r"(?<![\w-])\d{3}\.\d{3}\.\d{3}-\d\d(?![\w-])"), cpf.is_valid),
    ("ch_ahv", re.compile(r"(?<![\w-])756\.\d{4}\.\d{4}\.\d\d(?![\w-])"), ch_ssn.is_valid),
    # Eleven bare digits are too common to be a tax number without its usual spacing.
    ("de_tax_id", re.compile(r"(?<![\w-])\d\d \d{3} \d{3} \d{3}(?! ?\d|[\w-])"), idnr.is_valid),
)
