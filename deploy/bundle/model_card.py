"""The model card of a bundle: what the model is, where it comes from, how well it does, what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bundle.contents import BundleContents

USE = """\
Text generation, extractive question answering and summarisation in English, and to a lesser degree in Chinese, for
study, for tests and as a starting point of training. Served by Trident: README, "Two commands".
"""

LIMITS = """\
- A small model trained for minutes: what it writes is often wrong, and it has learnt the biases of its sources. Do not
  let it decide anything about people, and do not show its texts as facts.
- Answers are spans of the given context, of at most {max_answer_tokens} tokens; a question without an answer there may
  still get one.
- Sources of more than {max_source_tokens} tokens are refused, and so are outputs of more than {max_target_tokens}.
- No filter for harmful text is built in.
"""


def render_card(contents: BundleContents) -> str:
    """The text of MODEL_CARD.md."""
    config = contents.config
    facts = {
        "preset": contents.preset,
        "parameters": f"{contents.parameters:,}",
        "width, heads": f"{config['d_model']}, {config['num_heads']}",
        "key and value heads of the decoders": str(config.get("num_kv_heads", config["num_heads"])),
        "encoder": f"{config['encoder_layers']} pre-norm Transformer layers, feed-forward {config['encoder_ffn']}",
        "hybrid units": f"{config['hybrid_units']} in parallel, each attention + bidirectional GRU in blocks of "
        f"{config['recurrent_block']} tokens with {config['recurrent_halo']} of warm-up",
        "generative decoder": f"{config['decoder_layers']} layers, feed-forward {config['decoder_ffn']}",
        "pointer decoder (summaries)": f"{config['pointer_layers']} layers with a copy distribution over the source",
        "extractive decoder (answers)": "bidirectional LSTM + conditional random field over B, I, O",
        "vocabulary": f"{config['vocab_size']:,} byte-level BPE tokens",
        "weights": f"{contents.precision}, ONNX opset {contents.opset}",
    }
    header = f"---\nlicense: {contents.license.lower()}\nlanguage: [en, zh]\nlibrary_name: onnx\n---\n"
    sections = [
        f"{header}\n# {contents.name}\n",
        "A hybrid Transformer-RNN language model: one encoder, three decoders and a router that chooses among them.\n",
        f"## Architecture\n\n{_table(facts)}",
        f"## Licence\n\nThe weights: **{contents.license}**, as their training data demand. The code: Apache-2.0.\n",
        _section("Sources and training", contents.provenance, "Not stated."),
        _section("Evaluation", contents.evaluation, "Not evaluated."),
        _section("Quantisation", contents.quantization, "Not compared with the trained weights."),
        f"## Intended use\n\n{USE}",
        f"## Limits\n\n{_limits(contents)}",
    ]
    return "\n".join(sections)


def _limits(contents: BundleContents) -> str:
    limits = contents.limits
    return LIMITS.format(
        max_answer_tokens=limits.max_answer_tokens,
        max_source_tokens=f"{limits.max_source_tokens:,}",
        max_target_tokens=limits.max_target_tokens,
    )


def _section(title: str, facts: Mapping[str, Any], otherwise: str) -> str:
    """A section of whatever JSON was handed over: values in a table, objects and lists of objects under headings."""
    lines = [f"## {title}\n"]
    lines += _body(facts, depth=3) if facts else [otherwise + "\n"]
    return "\n".join(lines)


def _body(facts: Mapping[str, Any], depth: int) -> list[str]:
    plain = {name: value for name, value in facts.items() if not _is_nested(value)}
    lines = [_table(plain)] if plain else []
    for name, value in facts.items():
        if not _is_nested(value):
            continue
        lines.append(f"{'#' * depth} {_words(name)}\n")
        lines += _body(value, min(depth + 1, 6)) if isinstance(value, Mapping) else [_records(value)]
    return lines


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value))


def _records(rows: Sequence[Any]) -> str:
    """A list of JSON objects as one table."""
    records = [row if isinstance(row, Mapping) else {"value": row} for row in rows]
    columns = list(dict.fromkeys(name for record in records for name in record))
    lines = [f"| {' | '.join(map(_words, columns))} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_text(record.get(name, '')) for name in columns)} |" for record in records]
    return "\n".join(lines) + "\n"


def _table(facts: Mapping[str, Any]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {_words(name)} | {_text(value)} |" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _words(name: str) -> str:
    return str(name).replace("_", " ").replace("|", "\\|")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
