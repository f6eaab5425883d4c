"""Made personal data and secrets in their true formats, with right check digits. None belongs to anybody knowingly."""

from __future__ import annotations

import base64
import ipaddress
import json
import random
import string
from collections.abc import Callable
from importlib.resources import files

Maker = Callable[[random.Random], str]
NAMES = ("anna", "li.wei", "j_smith", "maria-lopez", "tom99", "k.tanaka", "sarah.o", "zhangsan", "peter.mueller")
DOMAINS = (
    "gmail.com",
    "yahoo.co.uk",
    "mail.ru",
    "qq.com",
    "163.com",
    "cs.stateuni.edu",
    "firma-nord.de",
    "enron-sales.com",
)
REGIONS = ("US", "GB", "CN", "FR", "DE", "TW")
"""Countries whose national way of writing numbers is made."""
ALPHANUMERIC, HEX = string.ascii_letters + string.digits, "0123456789abcdef"


def _listed_insults() -> list[str]:
    lines = (files("training.data.pipeline") / "abuse_words.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


INSULTS = [word for word in _listed_insults() if word.isascii()]
INSULTS_ZH = [word for word in _listed_insults() if not word.isascii()]


def _some(chance: random.Random, alphabet: str, length: int) -> str:
    return "".join(chance.choices(alphabet, k=length))


def email(chance: random.Random) -> str:
    """An address, sometimes hidden from robots."""
    address = f"{chance.choice(NAMES)}{chance.choice(('', '', '7', '1984'))}@{chance.choice(DOMAINS)}"
    return address.replace("@", " [at] ") if chance.random() < 0.1 else address


def _phone(chance: random.Random, form: int) -> str:
    import phonenumbers

    while True:
        region = chance.choice(REGIONS if form != phonenumbers.PhoneNumberFormat.E164 else (*REGIONS, "IN", "BR", "ES"))
        kind = chance.choice((phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE))
        example = phonenumbers.example_number_for_type(region, kind)
        if example is None:
            continue
        digits = str(example.national_number)
        made = phonenumbers.PhoneNumber(
            country_code=example.country_code, national_number=int(digits[:-4] + _some(chance, string.digits, 4))
        )
        if phonenumbers.is_valid_number(made):
            return phonenumbers.format_number(made, form)


def phone_international(chance: random.Random) -> str:
    """+49 …, with or without spaces."""
    import phonenumbers

    forms = phonenumbers.PhoneNumberFormat
    return _phone(chance, chance.choice((forms.INTERNATIONAL, forms.E164)))


def phone_national(chance: random.Random) -> str:
    """As it is written in its country, some with a word before it."""
    import phonenumbers

    word = chance.choice(("", "", "tel. ", "phone: ", "電話：", "mobile "))
    return word + _phone(chance, phonenumbers.PhoneNumberFormat.NATIONAL)


def card(chance: random.Random) -> str:
    """A Visa, Mastercard or American Express number."""
    from stdnum import luhn

    prefix, length = chance.choice((("4", 16), ("52", 16), ("37", 15)))
    digits = prefix + _some(chance, string.digits, length - len(prefix) - 1)
    digits += luhn.calc_check_digit(digits)
    groups = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    separator = chance.choice(("", " ", "-"))
    parts, place = [], 0
    for group in groups:
        parts.append(digits[place : place + group])
        place += group
    return separator.join(parts)


def iban(chance: random.Random) -> str:
    """A German, British, Dutch or French account's."""
    from stdnum import iban as checks

    forms = {"DE": "9" * 18, "GB": "AAAA" + "9" * 14, "NL": "AAAA" + "9" * 10}
    while True:
        country = chance.choice(list(forms))
        account = "".join(chance.choice(string.digits if c == "9" else string.ascii_uppercase) for c in forms[country])
        number = country + checks.calc_check_digits(f"{country}00{account}") + account
        if checks.is_valid(number):
            return checks.format(number) if chance.random() < 0.6 else number


def us_ssn(chance: random.Random) -> str:
    """A United States social security number."""
    from stdnum.us import ssn

    while True:
        number = f"{chance.randint(1, 899):03d}-{chance.randint(1, 99):02d}-{chance.randint(1, 9999):04d}"
        if ssn.is_valid(number):
            return number


def cn_identity(chance: random.Random) -> str:
    """A Chinese resident's number."""
    from stdnum.cn import ric

    place = chance.choice(("110101", "310104", "440305", "510104"))
    born = f"{chance.randint(1950, 2005)}{chance.randint(1, 12):02d}{chance.randint(1, 28):02d}"
    number = f"{place}{born}{_some(chance, string.digits, 3)}"
    return number + ric.calc_check_digit(number + "0")


def fr_identity(chance: random.Random) -> str:
    """A French social security number."""
    from stdnum.fr import nir

    number = f"{chance.randint(1, 2)}{chance.randint(40, 99)}{chance.randint(1, 12):02d}{chance.randint(10, 89)}"
    number += _some(chance, string.digits, 6)
    number += nir.calc_check_digits(number)
    return nir.format(number, " ") if chance.random() < 0.5 else number


def es_identity(chance: random.Random) -> str:
    """A Spanish identity card's number."""
    from stdnum.es import dni

    number = _some(chance, string.digits, 8)
    return number + dni.calc_check_digit(number)


def gb_identity(chance: random.Random) -> str:
    """A British National Insurance number."""
    digits = [_some(chance, string.digits, 2) for _ in range(3)]
    separator = chance.choice(("", " "))
    return separator.join([chance.choice(("AB", "JK", "PM", "SR")), *digits, chance.choice("ABCD")])


def ipv4(chance: random.Random) -> str:
    """A public address."""
    while True:
        address = ipaddress.IPv4Address(chance.getrandbits(32))
        if address.is_global and not address.is_multicast:
            return str(address)


def ipv6(chance: random.Random) -> str:
    """A public address, with or without zeros left out."""
    address = ipaddress.IPv6Address((0x2A01 << 112) | chance.getrandbits(chance.choice((40, 100))))
    return str(address)


def aws(chance: random.Random) -> str:
    """Amazon's key id."""
    return "AKIA" + _some(chance, string.ascii_uppercase + string.digits, 16)


def github(chance: random.Random) -> str:
    """GitHub's token."""
    return chance.choice(("ghp_", "gho_", "ghs_")) + _some(chance, ALPHANUMERIC, 36)


def slack(chance: random.Random) -> str:
    """Slack's token."""
    return (
        f"xoxb-{_some(chance, string.digits, 12)}-{_some(chance, string.digits, 12)}-{_some(chance, ALPHANUMERIC, 24)}"
    )


def stripe(chance: random.Random) -> str:
    """Stripe's key."""
    return "sk_live_" + _some(chance, ALPHANUMERIC, 24)


def google(chance: random.Random) -> str:
    """Google's key."""
    return "AIza" + _some(chance, ALPHANUMERIC + "_-", 35)


def language_model(chance: random.Random) -> str:
    """A language model provider's key."""
    return chance.choice(("sk-", "sk-proj-")) + _some(chance, ALPHANUMERIC, 48)


def json_web_token(chance: random.Random) -> str:
    """Three parts in base 64."""
    parts = [{"alg": "HS256", "typ": "JWT"}, {"sub": _some(chance, string.digits, 10), "name": chance.choice(NAMES)}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, _some(chance, ALPHANUMERIC + "_-", 43)])


def private_key(chance: random.Random) -> str:
    """A PEM block."""
    kind = chance.choice(("RSA ", "EC ", "OPENSSH ", ""))
    lines = [_some(chance, ALPHANUMERIC + "+/", 64) for _ in range(6)]
    return "\n".join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----"])


def password(chance: random.Random) -> str:
    """`password = …` in one of the ways of writing it."""
    value = _some(chance, ALPHANUMERIC + "!@#$%^*_", chance.randint(10, 16)) + "a7!"
    form = chance.choice(('password = "{}"', "PASSWORD={}", "password: {}", '"db_password": "{}"', "密码：{}"))
    return form.format(value)


def database_address(chance: random.Random) -> str:
    """A URL with name and password."""
    kind = chance.choice(("postgres", "mysql", "mongodb", "redis"))
    return f"{kind}://admin:{_some(chance, ALPHANUMERIC, 14)}@db{chance.randint(1, 9)}.internal:5432/shop"


def header(chance: random.Random) -> str:
    """An HTTP header."""
    return f"Authorization: Bearer {_some(chance, ALPHANUMERIC, 40)}"


def assigned_key(chance: random.Random) -> str:
    """A setting that ends in KEY or SECRET."""
    name = chance.choice(("API_KEY", "client_secret", "SECRET_KEY", "access_token", "auth-token"))
    return f"{name}{chance.choice(('=', ': ', ' = '))}{_some(chance, chance.choice((HEX, ALPHANUMERIC)), 40)}"


PERSONAL: dict[str, Maker] = {
    make.__name__: make
    for make in (
        email,
        phone_international,
        phone_national,
        card,
        iban,
        us_ssn,
        cn_identity,
        fr_identity,
        es_identity,
        gb_identity,
        ipv4,
        ipv6,
    )
}
SECRETS: dict[str, Maker] = {
    make.__name__: make
    for make in (
        aws,
        github,
        slack,
        stripe,
        google,
        language_model,
        json_web_token,
        private_key,
        password,
        database_address,
        header,
        assigned_key,
    )
}
