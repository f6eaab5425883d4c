"""Tiny Marian models that translate to and from a language of one word a word, trained in seconds.

The way back knows synonyms, so a text comes back changed, as from real models.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

_ENGLISH = """
    river bridge winter market signal copper engine garden harbour letter mountain village teacher island
    painter glass window forest stone silver summer traffic mirror basket candle
"""
ENGLISH = _ENGLISH.split()
SYNONYMS = {
    "river": "stream",
    "winter": "cold",
    "garden": "yard",
    "teacher": "tutor",
    "forest": "wood",
    "letter": "note",
}
PIVOT = [word[::-1] for word in ENGLISH]
SPECIAL = ["<pad>", "</s>", "<unk>"]
LONGEST = 6
GOOD_LOSS = 0.03
"""Nats a token: two words in a hundred are wrong at most."""


def train_translator(folder: Path, words: dict[str, str], steps: int = 600, seed: int = 0) -> float:
    """Train a model that replaces every word, save it for `AutoModelForSeq2SeqLM`; returns the last loss."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words, *words.values(), "."])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(seed)
    config = MarianConfig(
        vocab_size=len(vocabulary),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=32,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        dropout=0.0,
        scale_embedding=True,
    )
    model = MarianMTModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    chance, known = random.Random(seed), list(words)
    loss = torch.zeros(())
    for _ in range(steps):
        sources = [[chance.choice(known) for _ in range(chance.randint(2, LONGEST))] for _ in range(32)]
        source = torch.tensor([_padded([vocabulary[w] for w in s] + [vocabulary["."]], 0) for s in sources])
        target = torch.tensor(
            [_padded([vocabulary[words[w]] for w in s] + [vocabulary["."], 1], -100) for s in sources]
        )
        loss = model(input_ids=source, attention_mask=(source != 0).long(), labels=target).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss < GOOD_LOSS:
            break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(loss.detach())


def _padded(ids: list[int], filler: int) -> list[int]:
    return ids + [filler] * (LONGEST + 2 - len(ids))


def text(chance: random.Random, sentences: int) -> str:
    """Sentences of known words."""
    made = (" ".join(chance.choices(ENGLISH, k=chance.randint(3, LONGEST))) + " ." for _ in range(sentences))
    return "\n".join(made)
