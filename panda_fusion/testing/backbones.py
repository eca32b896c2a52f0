"""Tiny random backbones: real transformers folders, made offline, for tests and conformance checks."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYERS = 2
HIDDEN = 32
HEADS = 4
FEED_FORWARD = 64
POSITIONS = 128
INITIALIZER_RANGE = 0.2
"""Ten times BERT's own: with 0.02 a random model of this size answers every input alike."""

WORDS = tuple(
    """
    a an and are at be by can does for from good has he in is it my no not of on or she that the they this to
    was we what who with yes you
    """.split()  # noqa: SIM905
)
"""A few whole words, so that texts have both whole-word tokens and words of several pieces."""


@dataclass(frozen=True)
class _Family:
    """What differs between model types.

    Attributes:
        tokenizer: `wordpiece` (BERT's special tokens) or `bytes` (byte-level BPE).
        specials: special tokens in id order, by role.
        segments: whether the model takes token type ids.
        pair: the template of a pair of texts (A, B), each token with its segment.
        config: configuration values besides the common ones.
    """

    tokenizer: str
    specials: dict[str, str]
    segments: bool
    pair: str
    config: dict[str, Any]


_BERT_SPECIALS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_ROBERTA_SPECIALS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_BERT_PAIR = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
_ENCODER = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": POSITIONS,
}

_FAMILIES = {
    "bert": _Family("wordpiece", _BERT_SPECIALS, True, _BERT_PAIR, _ENCODER),
    "roberta": _Family(
        "bytes",
        _ROBERTA_SPECIALS,
        False,
        "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0",
        # Its positions start behind padding_idx, so the table is two rows longer for the same text.
        {**_ENCODER, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    ),
    "electra": _Family("wordpiece", _BERT_SPECIALS, True, _BERT_PAIR, {**_ENCODER, "embedding_size": 16}),
    "distilbert": _Family(
        "wordpiece",
        _BERT_SPECIALS,
        False,
        _BERT_PAIR,
        {
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": FEED_FORWARD,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "modernbert": _Family(
        "bytes",
        _BERT_SPECIALS,
        False,
        _BERT_PAIR.replace(":1", ":0"),
        # Three layers: one with global and two with local (sliding window) attention.
        {**_ENCODER, "num_hidden_layers": 3, "global_attn_every_n_layers": 3, "local_attention": 16},
    ),
}

MODEL_TYPES = tuple(_FAMILIES)
"""The model types that `make_tiny_backbone` knows."""


def make_tiny_backbone(model_type: str, folder: Path | str, seed: int = 0) -> Path:
    """Write a tiny random backbone with its tokenizer, as `AutoModel` and `AutoTokenizer` load it.

    The weights are drawn with a standard deviation of 0.2, so that outputs differ clearly between inputs;
    every text tokenises. Nothing is downloaded, and the global random state is left as it was.

    Args:
        model_type: one of `MODEL_TYPES`.
        folder: where to write; made if it does not exist.
        seed: the same seed gives the same weights.

    Returns:
        The folder.

    Raises:
        ValueError: the model type is not one of `MODEL_TYPES`.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel

    if model_type not in _FAMILIES:
        raise ValueError(f"no tiny backbone of type {model_type!r}; known: {', '.join(MODEL_TYPES)}")
    family = _FAMILIES[model_type]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(family)
    ids = {role + "_id": tokenizer.convert_tokens_to_ids(token) for role, token in family.specials.items()}
    ids.pop("mask_token_id")
    ids.pop("unk_token_id")
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=ids["cls_token_id"],
        eos_token_id=ids["sep_token_id"],
        **ids,
        **family.config,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            # Initialisers leave biases at 0 and norms at 1; a mistake there would go unseen.
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    # What save_pretrained writes, without its progress bar.
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(family: _Family) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = list(family.specials.values())
    if family.tokenizer == "wordpiece":
        characters = string.ascii_lowercase + string.digits
        pieces = [*string.punctuation, *characters, *(f"##{character}" for character in characters)]
        vocabulary = list(dict.fromkeys([*specials, *pieces, *WORDS]))
        numbers = {token: number for number, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=family.specials["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "s"), ("Ġ", "a"), ("i", "n"), ("o", "n")]
        vocabulary = [*specials, *alphabet, *(left + right for left, right in merges)]
        numbers = {token: number for number, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.BPE(numbers, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    cls, sep = family.specials["cls_token"], family.specials["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=family.pair,
        special_tokens=[(cls, numbers[cls]), (sep, numbers[sep])],
    )
    names = ["input_ids", *(["token_type_ids"] if family.segments else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=names, model_max_length=POSITIONS, **family.specials
    )
