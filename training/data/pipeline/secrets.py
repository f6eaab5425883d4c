"""Secrets: keys, tokens and passwords that a model would learn to recite.

Formats come from detect-secrets' plugins, those it lacks stand here; `name = value` pairs count where the name says
that a secret follows and the value looks like one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from training.data.pipeline.findings import Finding

HINT = re.compile(
    r"AKIA|ASIA|A3T|ABIA|ACCA|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|hooks\.slack|[sr]k_live|SG\.|AIza|sk-|hf_|npm_|eyJ|pypi-"
    r"|PRIVATE KEY|PuTTY|://[^/\s:@]+:[^/\s:@]+@|AccountKey|SK[0-9a-f]{32}|\d:AA|(?i:secret|passw|pwd|token|api.?key|auth|bearer|密码|密碼)"
)
"""Texts without any of these hold no secret in a known format, and are not searched further."""

MORE_FORMATS: tuple[re.Pattern[str], ...] = (
    re.compile(r"(?<!\w)AIza[0-9A-Za-z_-]{35}(?!\w)"),
    re.compile(r"(?<!\w)sk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]{32,}"),
    re.compile(r"(?<!\w)hf_[A-Za-z0-9]{30,}(?!\w)"),
    re.compile(r"(?<!\w)github_pat_\w{50,}"),
    re.compile(r"(?<!\w)eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    re.compile(r"https://hooks\.slack\.com/services/[A-Z0-9]+/[A-Z0-9]+/\w{20,}"),
    re.compile(r"(?i)authorization: *(?:bearer|basic|token) +[\w.~+/=-]{16,}"),
)
ASSIGNED = re.compile(
    r"(?:(?:api|access|auth|private|client|secret|encryption|signing|account)[_\- ]?(?:key|token|secret|id)|secret"
    r"|token|passw(?:or)?d|passphrase|pwd|密码|密碼)[\w-]{0,12}[\"']?\s{0,2}(?:=>|:=|[:=：])\s{0,2}[\"'`]?([^\s\"'`,;，。<>]{6,120})",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"^(?:x+|\*+|\.+|<.*|\$\{?[A-Z_]+\}?|your.*|example.*|changeme|password|secret|none|null|true|false)$", re.I
)
LEAST_BITS = 2.6
"""Shannon entropy a character of an assigned value: words and dates lie below, keys and passwords above."""


def secrets(text: str) -> Iterator[Finding]:
    """Every secret in a text."""
    if not HINT.search(text):
        return
    for pattern in (*_library_formats(), *MORE_FORMATS):
        for match in pattern.finditer(text):
            yield Finding(start=match.start(), end=match.end(), kind="secret")
    for match in ASSIGNED.finditer(text):
        if _looks_secret(match[1]):
            yield Finding(start=match.start(1), end=match.end(1), kind="secret")


@lru_cache(maxsize=1)
def _library_formats() -> tuple[re.Pattern[str], ...]:
    """detect-secrets' formats, but for those that `ASSIGNED` and the personal data cover."""
    from detect_secrets.plugins import (
        artifactory,
        aws,
        azure_storage_key,
        basic_auth,
        discord,
        github_token,
        gitlab_token,
        mailchimp,
        npm,
        private_key,
        pypi_token,
        sendgrid,
        slack,
        square_oauth,
        stripe,
        telegram_token,
        twilio,
    )

    detectors = (
        artifactory.ArtifactoryDetector,
        aws.AWSKeyDetector,
        azure_storage_key.AzureStorageKeyDetector,
        basic_auth.BasicAuthDetector,
        discord.DiscordBotTokenDetector,
        github_token.GitHubTokenDetector,
        gitlab_token.GitLabTokenDetector,
        mailchimp.MailchimpDetector,
        npm.NpmDetector,
        private_key.PrivateKeyDetector,
        pypi_token.PypiTokenDetector,
        sendgrid.SendGridDetector,
        slack.SlackDetector,
        square_oauth.SquareOAuthDetector,
        stripe.StripeDetector,
        telegram_token.TelegramBotTokenDetector,
        twilio.TwilioKeyDetector,
    )
    return tuple(pattern for detector in detectors for pattern in detector.denylist)


def _looks_secret(value: str) -> bool:
    """Whether an assigned value has kinds and variety of characters that words have not."""
    if PLACEHOLDER.match(value):
        return False
    kinds = sum(any(test(c) for c in value) for test in (str.islower, str.isupper, str.isdigit, _is_symbol))
    counts = Counter(value).values()
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts)
    return bits >= LEAST_BITS and (kinds >= 3 or (kinds >= 2 and any(map(str.isdigit, value))))


def _is_symbol(character: str) -> bool:
    return character in "!@#$%^&*_+-=/?~|"
