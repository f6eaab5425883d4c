"""Personal data, secrets and abuse: every format is found, look-alikes are not, and nothing is shown."""

from __future__ import annotations

import random

import pytest
from datatrove.data import Document

from training.data.measure import identifiers
from training.data.pipeline.abuse import is_abusive
from training.data.pipeline.findings import Finding, redact
from training.data.pipeline.personal import personal_data
from training.data.pipeline.secrets import secrets
from training.data.pipeline.sensitive import SensitiveFilter, fit_to_show

LOOK_ALIKES = [
    "He reigned from 1871-1914 and again in 1920-1930.",
    "ISBN 978-3-16-148410-0, ISSN 2049-3630.",
    "Between 1990 1991 1992 1993 the price rose from 12,500,000 to 13,000,000.",
    "Version 2.0.0.1 runs on 192.168.0.1 and 127.0.0.1; section 3.1.3.2 explains it.",
    "Write to user@example.com or admin@host.test.",
    "Pi is 3.14159265358979323846 and the score was 21-19, 18-21.",
    "The C++ names std::vector::iterator and a::b::c are no addresses; it was 10:20:30.",
    "Tel Aviv has 405360 inhabitants, the phone was invented in 1876.",
    "The secret: nobody knew the password. His token was a ring.",
    "password = your_password_here, api_key = xxxxxxxx, token: $TOKEN",
    "2019年12月31日，人口為1234567人，郵編100000。",
]


@pytest.mark.parametrize("name", identifiers.PERSONAL)
def test_personal_data_is_found_in_every_format(name: str) -> None:
    chance = random.Random(f"tests {name}")
    for _ in range(60):
        datum = identifiers.PERSONAL[name](chance)
        for text in (f"Write to {datum}, please.", f"資料為{datum}。", f"{datum}\nis on file."):
            assert list(personal_data(text)), text
            assert datum not in fit_to_show(text)


@pytest.mark.parametrize("name", identifiers.SECRETS)
def test_secrets_are_found_in_every_format(name: str) -> None:
    chance = random.Random(f"tests {name}")
    for _ in range(60):
        text = f"The file says {identifiers.SECRETS[name](chance)}\nand nothing else."
        assert list(secrets(text)), text


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_look_alikes_are_left_alone(text: str) -> None:
    assert [text[f.start : f.end] for f in (*personal_data(text), *secrets(text))] == []


@pytest.mark.parametrize("number", ["4111 1111 1111 1112", "110101199003070000", "DE89370400440532013001"])
def test_wrong_check_digits_do_not_count(number: str) -> None:
    assert not list(personal_data(f"number {number} ends"))


def test_a_quotation_does_not_make_a_text_abusive() -> None:
    words = (
        "He said that the bastard had told him to fuck off, and the book was banned for it. " + "So it went on. " * 60
    )
    assert not is_abusive(words, least_words=2, least_share=0.005)
    rant = "You fucking asshole, shut up, you piece of shit. 你這個王八蛋。"
    assert is_abusive(rant, least_words=2, least_share=0.005)


def test_words_that_hold_a_listed_word_are_innocent() -> None:
    assert not is_abusive("The Scunthorpe spice shop sold retardants in Shitterton " * 3, least_words=1, least_share=0)


def test_the_filter_names_what_it_found() -> None:
    rule = SensitiveFilter(abuse_words=2, abuse_share=0.005, exclusion_writer=None)
    texts = {"email": "mail anna@gmail.com now", "secret": "key AKIAABCDEFGHIJKLMNOP", "abuse": "fuck you, asshole"}
    for reason, text in texts.items():
        assert rule.filter(Document(text=text, id="0")) == (False, reason)
    assert rule.filter(Document(text="An innocent text.", id="0")) is True


def test_overlapping_findings_are_masked_once() -> None:
    findings = [
        Finding(start=4, end=9, kind="email"),
        Finding(start=2, end=6, kind="phone"),
        Finding(start=6, end=8, kind="x"),
    ]
    assert redact("0123456789", findings) == "01[PHONE][EMAIL]9"
