"""The tokenizer: a byte-level BPE of 32,000 tokens over English and Chinese.

Byte level means that any text has tokens and comes back unchanged; nothing is normalised, so a character offset
in the tokenizer's output is an offset in the text it was given. Pieces never cross the border between letters,
digits, punctuation and space, so an answer's border is (nearly always) a token's border.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY_SIZE = 32_000
SPECIAL_TOKENS: tuple[str, ...] = (
    "<pad>",
    "<s>",
    "</s>",
    "<mask>",
    "<sep>",
    "<generation>",
    "<qa>",
    "<summary>",
    *(f"<reserved_{index}>" for index in range(8, 16)),
)
"""In the order of their ids, 0 to 15."""
PAD, BOS, EOS, MASK, SEP, GENERATION, QA, SUMMARY = range(8)

PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,4}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pattern, with numbers in groups of four digits at most (a year stays whole)."""

MAX_SOURCE_TOKENS = 2_048


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE, *, show_progress: bool = False
) -> Tokenizer:
    """Learn the merges from `texts`.

    The result has exactly `vocabulary_size` tokens: where the texts are too small for that many merges, unused
    `<unused_N>` tokens fill the rest, so that a toy tokenizer fits the same network.

    Raises ValueError where the vocabulary cannot hold the special tokens and the 256 bytes.
    """
    smallest = len(SPECIAL_TOKENS) + 256
    if vocabulary_size < smallest:
        raise ValueError(f"vocabulary_size is {vocabulary_size}; special tokens and bytes alone take {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocabulary_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused_{index}>" for index in range(missing)])
    return tokenizer


TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What `save_tokenizer` writes."""


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_SOURCE_TOKENS,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
        "sep_token": "<sep>",
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "truncation_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a folder written by `save_tokenizer`; special tokens in a text are read as plain text.

    Raises ValueError where the folder has no tokenizer, a damaged one, or its special tokens have other ids.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no tokenizer.json; make one with: trident data tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer: {error}") from error
    for index, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != index:
            raise ValueError(f"{path}: {token} has the id {tokenizer.token_to_id(token)}, expected {index}")
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of plain text.

    Raises ValueError for a lone surrogate, which no encoding of Unicode can represent.
    """
    return tokenizer.encode(check_text(text), add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of token ids, special tokens left out."""
    return tokenizer.decode([index for index in ids if index >= len(SPECIAL_TOKENS)], skip_special_tokens=False)


def check_text(text: str) -> str:
    """`text` itself; ValueError where it holds a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}: "
            "it is not valid Unicode"
        ) from error
    return text


def batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Group texts so that a batch holds about `characters` characters: encoders like even work."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
