"""Tiny random backbones: real transformers folders, made offline, for tests and conformance checks."""

from __future__ import annotations

import string
from collections.abc import Mapping
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
        single: the template of one text.
        left: whether the tokenizer pads on the left, as those of many decoders do.
    """

    tokenizer: str
    specials: dict[str, str]
    segments: bool
    pair: str
    config: dict[str, Any]
    single: str = "[CLS]:0 $A:0 [SEP]:0"
    left: bool = False


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
_SENTENCEPIECE_SPECIALS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
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
        single="<s>:0 $A:0 </s>:0",
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
    # One module runs as every layer.
    "albert": _Family("wordpiece", _BERT_SPECIALS, True, _BERT_PAIR, {**_ENCODER, "embedding_size": 16}),
    # As DeBERTa-v3: no absolute positions, shared projections, and v2's convolution besides.
    "deberta-v2": _Family(
        "wordpiece",
        _BERT_SPECIALS,
        True,
        _BERT_PAIR,
        {
            **_ENCODER,
            "type_vocab_size": 0,
            "relative_attention": True,
            "max_relative_positions": -1,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
    ),
    # Neither special tokens around a text nor a padding token.
    "gpt2": _Family(
        "bytes",
        {"eos_token": "<|endoftext|>"},
        False,
        "$A:0 $B:0",
        {
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_inner": FEED_FORWARD,
            "n_positions": POSITIONS,
            "pad_token_id": None,
        },
        single="$A:0",
    ),
    "opt": _Family(
        "bytes",
        {"pad_token": "<pad>", "eos_token": "</s>"},
        False,
        "</s>:0 $A:0 </s>:0 $B:0",
        {
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "ffn_dim": FEED_FORWARD,
            "max_position_embeddings": POSITIONS,
        },
        single="</s>:0 $A:0",
    ),
    "llama": _Family(
        "bytes",
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
        False,
        "<s>:0 $A:0 <s>:0 $B:0",
        {**_ENCODER, "num_key_value_heads": 2, "pad_token_id": None},
        single="<s>:0 $A:0",
        left=True,
    ),
    "qwen2": _Family(
        "bytes",
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        False,
        "$A:0 $B:0",
        {**_ENCODER, "num_key_value_heads": 2},
        single="$A:0",
    ),
    # Heads wider than the hidden size divided by their number.
    "qwen3": _Family(
        "bytes",
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        False,
        "$A:0 $B:0",
        {**_ENCODER, "num_key_value_heads": 2, "head_dim": 16},
        single="$A:0",
        left=True,
    ),
    "t5": _Family(
        "bytes",
        _SENTENCEPIECE_SPECIALS,
        False,
        "$A:0 </s>:0 $B:0 </s>:0",
        {
            "d_model": HIDDEN,
            "d_kv": HIDDEN // HEADS,
            "d_ff": FEED_FORWARD,
            "num_layers": LAYERS,
            "num_decoder_layers": 1,
            "num_heads": HEADS,
            "feed_forward_proj": "gated-gelu",
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 16,
        },
        single="$A:0 </s>:0",
    ),
}

MODEL_TYPES = tuple(_FAMILIES)
"""The model types that `make_tiny_backbone` knows."""


def make_tiny_backbone(
    model_type: str, folder: Path | str, seed: int = 0, config: Mapping[str, Any] | None = None
) -> Path:
    """Write a tiny random backbone with its tokenizer, as `AutoModel` and `AutoTokenizer` load it.

    The weights are drawn with a standard deviation of 0.2, so that outputs differ clearly between inputs;
    every text tokenises. Nothing is downloaded, and the global random state is left as it was.

    Args:
        model_type: one of `MODEL_TYPES`.
        folder: where to write; made if it does not exist.
        seed: the same seed gives the same weights.
        config: configuration values in place of the usual ones.

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
    ids.pop("mask_token_id", None)
    ids.pop("unk_token_id", None)
    if "cls_token_id" in ids:
        ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    ids.setdefault("bos_token_id", ids["eos_token_id"])
    values = {"vocab_size": len(tokenizer), "initializer_range": INITIALIZER_RANGE, **ids, **family.config}
    own = AutoConfig.for_model(model_type, **(values | dict(config or {})))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(own, dtype=torch.float32)
        for parameter in model.parameters():
            # Initialisers leave biases at 0 and norms at 1; a mistake there would go unseen.
            if parameter.dim() == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    # What save_pretrained writes, without its progress bar.
    own.architectures = [type(model).__name__]
    own.save_pretrained(folder)
    shared: dict[int, str] = {}  # T5's stacks share one embedding
    state = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if shared.setdefault(tensor.data_ptr(), name) == name
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(family: _Family) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = list(dict.fromkeys(family.specials.values()))
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single=family.single,
        pair=family.pair,
        special_tokens=[(token, numbers[token]) for token in dict.fromkeys(specials)],
    )
    names = ["input_ids", *(["token_type_ids"] if family.segments else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=names,
        model_max_length=POSITIONS,
        padding_side="left" if family.left else "right",
        **family.specials,
    )
