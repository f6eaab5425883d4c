"""Sensitive content: personal data, secrets, abuse; and any text made fit to be shown."""

from __future__ import annotations

from itertools import chain
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from training.data.pipeline.abuse import abusive_words, is_abusive
from training.data.pipeline.findings import redact
from training.data.pipeline.personal import personal_data
from training.data.pipeline.secrets import secrets


class SensitiveFilter(BaseFilter):
    """Drops documents with any personal data or secret, and abusive ones."""

    name = "sensitive"

    def __init__(self, *, abuse_words: int, abuse_share: float, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.abuse_words, self.abuse_share = abuse_words, abuse_share

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document may be learnt; the reason is the kind of what was found first."""
        for finding in chain(secrets(doc.text), personal_data(doc.text)):
            doc.metadata["found_at"] = finding.start
            return False, finding.kind
        if is_abusive(doc.text, least_words=self.abuse_words, least_share=self.abuse_share):
            doc.metadata["found_at"] = next(abusive_words(doc.text)).start
            return False, "abuse"
        return True


def fit_to_show(text: str) -> str:
    """A text without its personal data, secrets and insults, for reports."""
    return redact(text, chain(personal_data(text), secrets(text), abusive_words(text)))
