"""CTranslate2: the same BART, converted to 8-bit weights as its documentation says, greedy."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from deploy.benchmark.peers.bart import make_bart
from deploy.benchmark.peers.decoding import measure
from deploy.benchmark.peers.options import DecodingOptions


def convert(options: DecodingOptions, folder: Path) -> Path:
    """The converted model's folder, in `folder`."""
    made, converted = folder / "bart", folder / "converted"
    make_bart(options.seed).save_pretrained(made)
    tokenizer = Tokenizer.from_file(str(options.bundle / "tokenizer.json"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<mask>"
    ).save_pretrained(made)
    TransformersConverter(str(made)).convert(str(converted), quantization="int8")
    return converted


def main() -> None:
    """Measure and print."""
    options = DecodingOptions()
    with tempfile.TemporaryDirectory() as name:
        folder = convert(options, Path(name))
        translator = ctranslate2.Translator(str(folder), device="cpu", compute_type="int8")
        words = json.loads(next(folder.glob("*vocabulary.json")).read_text(encoding="utf-8"))

        def generate(sources_BS: np.ndarray, tokens: int) -> int:
            results = translator.translate_batch(
                [[words[index] for index in source] for source in sources_BS.tolist()],
                beam_size=1,
                min_decoding_length=tokens,
                max_decoding_length=tokens,
                max_input_length=0,
            )
            return sum(len(result.hypotheses[0]) for result in results)

        measure(generate, options)


if __name__ == "__main__":
    main()
