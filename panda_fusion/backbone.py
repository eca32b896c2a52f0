"""The frozen backbone: loading, fingerprint, and the forward pass that prompts enter."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from panda_fusion.compiled import CompiledLayers
    from panda_fusion.head import Head
    from panda_fusion.injection import Injection, Rows

from panda_fusion.errors import BackboneError
from panda_fusion.layout import KNOWN, Layout
from panda_fusion.layout import layout as layout_of
from panda_fusion.model_name import TINY, check_model_name
from panda_fusion.prompt import BackboneInfo

T5_ENCODERS = ("t5", "mt5", "umt5")
"""Encoder-decoders of which the encoder is used alone."""


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a backbone that PEFT methods need.

    Attributes:
        layers: transformer layers (ALBERT: how often one is run).
        hidden: hidden size.
        heads: attention heads.
        kv_heads: key/value heads.
        head_dim: size of one head.
        positions: longest text plus virtual tokens that the position table takes; None: no table.
        initializer_range: standard deviation that the backbone initialises its own weights with.
        layer_modules: names of the layer modules in order, for transforms of their outputs; where layers share a
            module (ALBERT) its name comes once for each of them.
        embedding_size: width of the input embeddings where it is not the hidden size (ELECTRA, ALBERT, OPT 350m).
        parameters: name and shape of every parameter of the base model; None where the model is not at hand (a prompt
            file that is checked alone).
        layout: where sublayers and neurons are; None for an architecture that `panda_fusion.layout` does not know.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int | None
    initializer_range: float
    layer_modules: tuple[str, ...] = ()
    embedding_size: int | None = None
    layout: Layout | None = None
    parameters: Mapping[str, tuple[int, ...]] | None = field(default=None, hash=False)

    @property
    def input_width(self) -> int:
        """Width of the input embeddings."""
        return self.hidden if self.embedding_size is None else self.embedding_size


class Backbone:
    """A frozen language model and its tokenizer. Make one with `load_backbone`.

    Attributes:
        name: as the user gave it.
        tokenizer: transformers tokenizer.
        shape: sizes.
        info: what a prompt file says of the backbone.
        device: where it runs.
        dtype: dtype of the frozen weights and hidden states.
        pooling: which vector represents a text: the first token, the last, or the mean of all.
        gradient_checkpointing: whether the backward pass computes the layers again instead of keeping what is
            inside of them. Values and gradients stay the same.
        compiled: the layers' compiled code (`panda_fusion.compiled.compile_layers` sets it); None: none.
        compile_seconds: wall-clock seconds that compiling took.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        tokenizer: Any,
        device: torch.device,
        dtype: torch.dtype,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = dtype
        import torch

        from panda_fusion.mask_pool import with_pooled_dropout
        from panda_fusion.packed_linear import pack_linear_layers

        config: Any = model.config
        self._config = config
        self.shape = _shape(model)
        self.info = BackboneInfo(
            # Prompt files go to other people; the folders of this machine are not their business.
            name=Path(name).resolve().name if Path(name).is_dir() else name,
            architecture=config.model_type,
            hidden=self.shape.hidden,
            layers=self.shape.layers,
            heads=self.shape.heads,
            kv_heads=self.shape.kv_heads,
            head_dim=self.shape.head_dim,
            embedding_size=self.shape.embedding_size,
            fingerprint=fingerprint(model),
        )
        self.pooling = _pooling(self._config)
        self.gradient_checkpointing = gradient_checkpointing
        self.compiled: CompiledLayers | None = None
        self.compile_seconds = 0.0
        self._model = _cast(model, dtype).to(device).requires_grad_(False).eval()
        if device.type == "cpu":
            with_pooled_dropout(self._model)
            if dtype == torch.bfloat16:
                pack_linear_layers(self._model.get_submodule(layer) for layer in self.shape.layer_modules)
        self._checkpointing: list[Any] = [one for one in model.modules() if hasattr(one, "gradient_checkpointing")]
        self._position_base = _position_base(model)
        self._embed: Any = self._model.get_input_embeddings()  # type: ignore[operator]
        self._mask_form = _mask_form(self._config)
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._heads: dict[tuple[str, int], Head] = {}

    def head(self, outputs: int, kind: str = "classification") -> Head:
        """The head of a task kind with this many outputs (`Task.outputs`).

        Raises:
            BackboneError: transformers has no head for this kind on this architecture.
        """
        from panda_fusion.head import Head, head_kind

        key = (head_kind(kind), outputs)
        if key not in self._heads:
            self._heads[key] = Head(self._config, self._model, outputs, self.device, kind)
        return self._heads[key]

    def embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[..., input width] in the backbone's dtype: the embeddings of token ids [...], as the first layer gets them
        before positions are added."""
        return self._embed(input_ids.to(self.device))

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding table: token ids are below this."""
        return int(self._embed.num_embeddings)

    def parameters(self) -> Iterator[torch.Tensor]:
        """The base model's own parameters, on the device."""
        return self._model.parameters()

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the base model's parameters, float32 on the CPU, by name."""
        return {name: parameter.detach().cpu().float().clone() for name, parameter in self._model.named_parameters()}

    def check_length(self, virtual_tokens: int, max_length: int) -> None:
        """Raise BackboneError if text and virtual tokens together do not fit into the position table."""
        table = self.shape.positions
        if table is not None and virtual_tokens + max_length > table:
            raise BackboneError(
                f"{virtual_tokens} virtual tokens and texts of up to {max_length} tokens need "
                f"{virtual_tokens + max_length} positions, but backbone {self.name!r} has {table}; lower the "
                "prompt length or --max-length."
            )

    def forward(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        token_types: torch.Tensor | None,
        injection: Injection | None,
        rows: Rows,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Run the frozen model over a batch.

        Args:
            input_ids: [N, T] token ids, padded on the right.
            lengths: [N] real tokens per row.
            token_types: [N, T] segment ids, or None.
            injection: what the PEFT method adds; None: the plain model.
            rows: which prompt of the pack each row uses.
            dropout: probability for the backbone's own dropout layers; 0: none (evaluation mode).

        Returns:
            [N, hidden] in the backbone's dtype: each text's pooled vector. Virtual tokens never are part.
        """
        if not self._reads_one_token(injection):
            hidden = self.hidden_states(input_ids, lengths, token_types, injection, rows, dropout)
            return self._pool(hidden, lengths)
        from panda_fusion.last_layer import one_token

        front = 0 if injection is None else injection.embedding_length
        with one_token(self._model, self.shape.layer_modules[-1], front):
            return self._run(input_ids, lengths, token_types, injection, rows, dropout)[:, 0]

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        token_types: torch.Tensor | None,
        injection: Injection | None,
        rows: Rows,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Like `forward`, but [N, T, hidden]: the last layer's states of the text's tokens, padding included."""
        front = 0 if injection is None else injection.embedding_length
        return self._run(input_ids, lengths, token_types, injection, rows, dropout)[:, front:]

    def _reads_one_token(self, injection: Injection | None) -> bool:
        """Whether the last layer can be spared for all tokens but the pooled one. Transforms see whole sequences."""
        from panda_fusion.last_layer import can_read_one_token

        plain = injection is None or not injection.outputs
        known = can_read_one_token(self.info.architecture)
        return self.pooling == "first" and plain and known and not self.gradient_checkpointing

    def _run(
        self,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        token_types: torch.Tensor | None,
        injection: Injection | None,
        rows: Rows,
        dropout: float,
    ) -> torch.Tensor:
        """[N, P + T, hidden]: the last layer's states, those of an input prompt in front."""
        import torch

        from panda_fusion.injected import injected

        training = injection is not None and torch.is_grad_enabled()
        if training and self._checkpoints():
            raise BackboneError(
                f"transformers' own gradient checkpointing is switched on in backbone {self.name!r}, which would lose "
                "the prompt when layers are computed again; switch it off and use Backbone.gradient_checkpointing."
            )
        count, width = input_ids.shape
        front = 0 if injection is None else injection.embedding_length
        # Without special tokens a text can be empty; it is read as one token of padding.
        keep = torch.arange(width, device=self.device) < lengths.clamp(min=1)[:, None]
        arguments: dict[str, Any] = {}
        if injection is not None and injection.embedding is not None:
            virtual = rows.spread(injection.embedding, count).to(self.dtype)
            arguments["inputs_embeds"] = torch.cat((virtual, self._embed(input_ids)), dim=1)
            keep = torch.nn.functional.pad(keep, (front, 0), value=True)
            if token_types is not None:
                token_types = torch.nn.functional.pad(token_types, (front, 0))
        else:
            arguments["input_ids"] = input_ids
        # Decoders have no segments, whatever their tokenizer says (GPT-2 would add embeddings of words).
        if token_types is not None and "token_type_ids" in self._takes and self.pooling != "last":
            arguments["token_type_ids"] = token_types
        if "position_ids" in self._takes:
            offset = self._position_base + (0 if injection is None else injection.prefix_length)
            positions = torch.arange(offset, offset + front + width, device=self.device)
            arguments["position_ids"] = positions.expand(count, -1)
        arguments["attention_mask"] = self._mask(keep)
        layers = self.shape.layer_modules if training and self.gradient_checkpointing else ()
        with ExitStack() as stack:
            stack.enter_context(injected(self._model, injection, rows, count, self.dtype, dropout, layers))
            if self.compiled is not None and self.compiled.fit(injection, dropout, bool(layers), count, front + width):
                stack.enter_context(self.compiled.in_use())
            hidden: torch.Tensor = self._model(**arguments).last_hidden_state
        return hidden

    def _checkpoints(self) -> bool:
        return any(module.gradient_checkpointing for module in self._checkpointing)

    def _mask(self, keep: torch.Tensor) -> torch.Tensor:
        """The attention mask in the form that the model takes, from [N, T] booleans (True: a token)."""
        import torch

        if self._mask_form == "boolean":
            return keep
        if self._mask_form == "integer":
            return keep.long()
        bias = torch.zeros(keep.shape, dtype=self.dtype, device=self.device)
        return bias.masked_fill_(~keep, torch.finfo(self.dtype).min)[:, None, None]

    def _pool(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        import torch

        if self.pooling == "first":
            return hidden[:, 0]
        lengths = lengths.clamp(min=1)
        rows = torch.arange(hidden.shape[0], device=self.device)
        if self.pooling == "last":
            return hidden[rows, lengths - 1]
        keep = torch.arange(hidden.shape[1], device=self.device) < lengths[:, None]
        total = (hidden.float() * keep[..., None]).sum(1)
        return (total / lengths[:, None]).to(hidden.dtype)


def load_backbone(
    name: str, *, device: torch.device, dtype: torch.dtype, gradient_checkpointing: bool = False
) -> Backbone:
    """Load a frozen backbone.

    Args:
        name: `tiny` (ships inside the package), a transformers folder, or a name on the Hub.
        device: where it runs.
        dtype: dtype of the frozen weights.
        gradient_checkpointing: compute layers again in the backward pass to save memory.

    Raises:
        BackboneError: there is no such model, prompts cannot enter its architecture, or its files are broken.
    """
    check_model_name(name)
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTextEncoding, AutoTokenizer
    from transformers.utils import logging

    from panda_fusion import attention

    path: str = str(Path(__file__).parent / "tiny" / "model") if name == TINY else name
    with _quiet(logging):
        try:
            config = AutoConfig.from_pretrained(path)
        except Exception as error:  # whatever the libraries raise on files that are none, or broken
            raise BackboneError(
                f"Model {name!r} cannot be loaded: it is neither 'tiny', nor a folder with a config.json, nor a "
                f"name that the Hub answers for ({_first_line(error)})."
            ) from error
        _check_architecture(name, config)
        config.use_cache = False  # of a decoder's keys and values, which only generation needs
        is_t5 = config.model_type in T5_ENCODERS
        auto = AutoModelForTextEncoding if is_t5 else AutoModelForSequenceClassification
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            with torch.random.fork_rng(devices=[]):
                # Weights that a checkpoint lacks (a pooler, say) are drawn; the same ones every time, so in float32.
                torch.manual_seed(0)
                model, loading = auto.from_pretrained(
                    path,
                    config=config,
                    attn_implementation=attention.NAME,
                    dtype=torch.float32 if _pooling(config) == "first" else dtype,
                    output_loading_info=True,
                )
        except Exception as error:
            raise BackboneError(
                f"Model {name!r} ({config.model_type}) cannot be used as a backbone: {_first_line(error)}."
            ) from error
    prefix = model.base_model_prefix
    base = model if is_t5 else getattr(model, prefix)
    if getattr(base, "_is_stateful", False):
        raise BackboneError(
            f"Model {name!r} ({config.model_type}) has layers with a recurrent state, which prompts cannot enter; "
            f"{_ADVICE}."
        )
    if config.model_type == "deberta-v2":
        from panda_fusion import deberta_attention

        deberta_attention.install(base)
    elif not is_t5 and not getattr(base, "_supports_attention_backend", False):
        raise BackboneError(
            f"Model {name!r} ({config.model_type}) does not run its attention through transformers' attention "
            f"interface, which prompts enter by; {_ADVICE}."
        )
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise BackboneError(f"Model {name!r} has no tokenizer beside its weights; copy its tokenizer files there.")
    # transformers draws what a checkpoint lacks; fine for heads and poolers, not for the backbone itself.
    within = "" if is_t5 else f"{prefix}."
    missing = sorted(key for key in loading["missing_keys"] if key.startswith(within) and ".pooler." not in key)
    if missing:
        raise BackboneError(
            f"Model {name!r} lacks {len(missing)} of its weights, such as {missing[0]}; its weights belong to another "
            "architecture or are incomplete, so download it again."
        )
    return Backbone(name, base, tokenizer, device, dtype, gradient_checkpointing)


_ADVICE = (
    "use BERT, RoBERTa, ELECTRA, ALBERT, DistilBERT, ModernBERT, DeBERTa-v2, GPT-2, OPT, Llama, Qwen or T5 "
    "(docs/support.md)"
)


def _check_architecture(name: str, config: Any) -> None:
    """Raise BackboneError for what a config alone tells to be no backbone."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as WITH_HEAD,
    )

    if getattr(config, "is_encoder_decoder", False) and config.model_type not in T5_ENCODERS:
        raise BackboneError(
            f"Model {name!r} ({config.model_type}) is an encoder-decoder, of which only T5's encoder can be used; "
            f"{_ADVICE}."
        )
    sizes = ("hidden_size", "num_attention_heads", "num_hidden_layers")
    if config.model_type not in WITH_HEAD or not all(hasattr(config, size) for size in sizes):
        raise BackboneError(
            f"Model {name!r} ({config.model_type}) is no attention model of text for which transformers has a "
            f"classification head; {_ADVICE}."
        )


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the parameters. Buffers keep their type: rotary frequencies in bfloat16 would misplace distant tokens."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def fingerprint(model: nn.Module) -> str:
    """A digest that tells one set of weights from another, in time that hardly grows with the model.

    From every tensor: its name, shape and up to 1024 evenly spaced values, rounded to bfloat16 so that a
    bfloat16 copy of a checkpoint has the checkpoint's fingerprint. Poolers are left out, since checkpoints
    may lack them. It detects mistakes; it is no defence against somebody who builds a collision.

    Returns:
        64 hexadecimal digits.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("pooler.") or not tensor.is_floating_point():
            continue
        flat = tensor.detach().reshape(-1)
        count = min(flat.numel(), 1024)
        picks = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        values = flat[picks].to(torch.bfloat16).view(torch.int16).cpu().numpy()
        digest.update(f"{name}:{tuple(tensor.shape)};".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _shape(model: nn.Module) -> BackboneShape:
    config: Any = model.config
    hidden = int(config.hidden_size)
    heads = int(config.num_attention_heads)
    layout = layout_of(model) if config.model_type in KNOWN else None
    layers = int(config.num_hidden_layers) if layout is None else len(layout.layers)
    width = int(model.get_input_embeddings().embedding_dim)  # type: ignore[operator]
    return BackboneShape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
        positions=_positions(model),
        initializer_range=float(getattr(config, "initializer_range", 0.02)),
        layer_modules=_layer_modules(model, layers) if layout is None else layout.layers,
        embedding_size=None if width == hidden else width,
        layout=layout,
        parameters={name: tuple(parameter.shape) for name, parameter in model.named_parameters()},
    )


def _positions(model: nn.Module) -> int | None:
    """Positions that the model has for text and virtual tokens; None where only distances count (T5, DeBERTa)."""
    config: Any = model.config
    if config.model_type in T5_ENCODERS or getattr(config, "position_biased_input", True) is False:
        return None
    table = getattr(config, "max_position_embeddings", None)
    return None if table is None else int(table) - _position_base(model)


def _layer_modules(model: nn.Module, layers: int) -> tuple[str, ...]:
    """Names of the children of the first module list as long as the model has layers (unknown architectures)."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers:
            return tuple(f"{name}.{index}" for index in range(layers))
    return ()


def _position_base(model: nn.Module) -> int:
    """Position of the first token: RoBERTa and its kin count from behind the padding index."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else int(padding) + 1
    return 0


def _pooling(config: Any) -> Literal["first", "last", "mean"]:
    """The pooled position of the architecture's own classification head; T5's encoder has none and takes the mean."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    if config.model_type in T5_ENCODERS or getattr(config, "classifier_pooling", None) == "mean":
        return "mean"
    is_decoder = config.model_type in CAUSAL and config.model_type not in MASKED
    return "last" if is_decoder else "first"


def _mask_form(config: Any) -> Literal["boolean", "integer", "bias"]:
    """What the model makes its masks from.

    Models that build masks themselves, causal ones or one per kind of layer, need to know which tokens are real;
    DeBERTa multiplies with that. All others take a ready bias.
    """
    if config.model_type == "deberta-v2":
        return "integer"
    kinds = set(getattr(config, "layer_types", None) or ())
    local = bool(kinds - {"full_attention"}) or getattr(config, "local_attention", None) is not None
    return "boolean" if local or _pooling(config) == "last" else "bias"


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silence loading reports: a missing head is what we want, and progress bars are the CLI's."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    """The first line of a library's message, without a final stop."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".")
