"""Personal data: addresses, numbers and identities of people, by format and check digits.

Formats are found by regular expressions and confirmed by libraries that know the numbering plans (phonenumbers) and
check digits (python-stdnum), so that years, prices and book numbers do not count.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from training.data.pipeline.findings import Finding


def ascii_pattern(expression: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
    """Word borders by ASCII: a number may follow a Chinese character without a space."""
    return re.compile(expression, flags | re.ASCII)


EMAIL = ascii_pattern(
    r"(?<![\w.+-])[\w.+-]{1,64}\s?(?:@|\[at\]|\(at\)|＠)\s?(?:[a-z0-9-]+(?:\.|\s?\[dot\]\s?|\s?\(dot\)\s?))+[a-z]{2,24}(?![\w-])",
    re.IGNORECASE,
)
RESERVED_DOMAIN = ascii_pattern(r"(?:example\.(?:com|net|org)|\.(?:test|invalid|localhost|example))$", re.IGNORECASE)
"""Domains that belong to nobody (RFC 2606)."""

INTERNATIONAL_PHONE = ascii_pattern(r"(?<![\w+.])(?:\+|00)[1-9][\d\s().\-/]{6,18}\d(?!\w)")
NATIONAL_PHONES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("US", ascii_pattern(r"(?<![\w.,/-])(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-]|\.\d)")),
    ("CN", ascii_pattern(r"(?<![\w.-])1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![\w-]|\.\d)")),
    ("CN", ascii_pattern(r"(?<![\w.-])(?:\(0\d{2,3}\) ?|（0\d{2,3}）|0\d{2,3}[- ])\d{3,4}[- ]?\d{4}(?![\w-]|\.\d)")),
    ("TW", ascii_pattern(r"(?<![\w.-])(?:\(0[2-8]\) ?|0[2-8][- ])\d{3,4}[- ]?\d{4}(?![\w-]|\.\d)")),
    ("TW", ascii_pattern(r"(?<![\w.-])09\d{2}[- ]?\d{3}[- ]?\d{3}(?![\w-]|\.\d)")),
    ("GB", ascii_pattern(r"(?<![\w.,-])\(?0\d{2,4}\)?[ -]\d{3,4}[ -]?\d{3,4}(?![\w-])")),
    ("FR", ascii_pattern(r"(?<![\w.,-])0[1-9](?:[ .-]\d{2}){4}(?![\w-])")),
    ("DE", ascii_pattern(r"(?<![\w.,-])0\d{2,4}[/ -]\d{5,8}(?![\w-])")),
)
NAMED_PHONE = ascii_pattern(
    r"(?:\b(?:tel|telephone|phone|mobile|cell|fax|whatsapp)\b|电话|電話|手机|手機|传真|傳真)"
    r"(?:\s?(?:number|no\.?|号码|號碼|is|at))*[\s:：.]{0,3}((?:\+|\()?\d[\d\s().\-]{5,17}\d)",
    re.IGNORECASE,
)
CARD = ascii_pattern(
    r"(?<![\w.,-])(?:\d{13,19}|\d{4}(?:[ -]\d{4}){2,3}(?:[ -]\d{1,4})?|\d{4}[ -]\d{6}[ -]\d{5})(?![\w-])"
)
CARD_ISSUER = ascii_pattern(r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|6|8|5)|6(?:011|5|2|4[4-9])")
IBAN = ascii_pattern(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?!\w)")
IPV4 = ascii_pattern(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]\d|\w)")
IPV6 = ascii_pattern(r"(?<![\w:.])[0-9a-f]{1,4}(?:::?[0-9a-f]{1,4}){2,7}(?:::)?(?![\w:])", re.IGNORECASE)
NATIONAL_IDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("us.ssn", ascii_pattern(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")),
    ("fr.nir", ascii_pattern(r"(?<![\w.-])[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\w)")),
    ("es.dni", ascii_pattern(r"(?<![\w.-])\d{8}-?[A-Z](?!\w)")),
    ("es.nie", ascii_pattern(r"(?<![\w.-])[XYZ]-?\d{7}-?[A-Z](?!\w)")),
)
CHINESE_ID = ascii_pattern(r"(?<![\w.-])[1-9]\d{16}[\dXx](?!\w)")
BRITISH_ID = ascii_pattern(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)")
"""A National Insurance number has no check digit."""


def personal_data(text: str) -> Iterator[Finding]:
    """Every piece of personal data in a text."""
    for find in (_emails, _phones, _cards, _ibans, _identities, _addresses):
        yield from find(text)


def _found(
    pattern: re.Pattern[str], text: str, kind: str, accept: Callable[[str], bool], group: int = 0
) -> Iterator[Finding]:
    for match in pattern.finditer(text):
        if accept(match[group]):
            yield Finding(start=match.start(group), end=match.end(group), kind=kind)


def _emails(text: str) -> Iterator[Finding]:
    if not any(sign in text for sign in ("@", "＠", "[at]", "(at)", "[AT]", "(AT)")):
        return
    yield from _found(EMAIL, text, "email", lambda found: not RESERVED_DOMAIN.search(found))


def _phones(text: str) -> Iterator[Finding]:
    yield from _found(INTERNATIONAL_PHONE, text, "phone", lambda found: _is_phone(re.sub(r"^00", "+", found), None))
    for region, pattern in NATIONAL_PHONES:
        yield from _found(pattern, text, "phone", lambda found, region=region: _is_phone(found, region))  # type: ignore[misc]
    yield from _found(NAMED_PHONE, text, "phone", lambda found: 7 <= sum(map(str.isdigit, found)) <= 15, group=1)


def _is_phone(found: str, region: str | None) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(found, region))
    except phonenumbers.NumberParseException:
        return False


def _cards(text: str) -> Iterator[Finding]:
    from stdnum import luhn

    def accept(found: str) -> bool:
        digits = re.sub(r"\D", "", found)
        return CARD_ISSUER.match(digits) is not None and luhn.is_valid(digits)

    yield from _found(CARD, text, "card", accept)


def _ibans(text: str) -> Iterator[Finding]:
    from stdnum import iban

    yield from _found(IBAN, text, "iban", iban.is_valid)


def _identities(text: str) -> Iterator[Finding]:
    from stdnum import get_cc_module

    for name, pattern in NATIONAL_IDS:
        module = get_cc_module(*name.split("."))
        assert module is not None
        yield from _found(pattern, text, "national_id", module.is_valid)
    yield from _found(CHINESE_ID, text, "national_id", _is_chinese_id)
    yield from _found(BRITISH_ID, text, "national_id", lambda _: True)


def _is_chinese_id(found: str) -> bool:
    """By date of birth and check digit; python-stdnum also asks for a county that existed at that time."""
    from stdnum.cn import ric
    from stdnum.exceptions import ValidationError

    try:
        ric.get_birth_date(found)
    except ValidationError:
        return False
    return bool(ric.calc_check_digit(found) == found[-1].upper())


def _addresses(text: str) -> Iterator[Finding]:
    for pattern in (IPV4, IPV6):
        yield from _found(pattern, text, "ip_address", _is_public_address)


def _is_public_address(found: str) -> bool:
    if len(found) == len("1.2.3.4"):  # the number of a section or of a version
        return False
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False
