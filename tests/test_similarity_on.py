"""ON, the overlap of activated neurons: against hooks on the plain transformers model, prompt inserted by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import CLASSES, method
from scipy.spatial.distance import cosine
from transformers import AutoModel

from panda_fusion.backbone import Backbone, load_backbone
from panda_fusion.errors import BackboneError, OptionError, PromptFileError
from panda_fusion.layer_choice import chosen_layers
from panda_fusion.neuron_activations import activated_neurons
from panda_fusion.plugin_manager import similarities
from panda_fusion.prompt import Prompt
from panda_fusion.prompt_packs import prompt_packs
from panda_fusion.run import task_info
from panda_fusion.similarity import SimilarityContext
from panda_fusion.testing.samples import encoded_texts, perturbed

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]
PLACES = {
    "bert": "encoder.layer.{}.intermediate.dense",
    "roberta": "encoder.layer.{}.intermediate.dense",
    "electra": "encoder.layer.{}.intermediate.dense",
    "distilbert": "transformer.layer.{}.ffn.lin1",
}
"""What goes into the activation function, which keeps the sign: another place than the one that we read."""
LAYERS = 2


def prompt(backbone: Backbone, seed: int, spec: str) -> Prompt:
    peft = method(spec)
    tensors = {name: tensor[0] for name, tensor in perturbed(peft, backbone, 1, seed).items()}
    return Prompt(
        method=peft.stored().spec,
        tensors=peft.to_stored(tensors, backbone.shape),
        head={},
        embedding=None,
        backbone=backbone.info,
        task=task_info(CLASSES),
        path=f"prompt-{seed}.safetensors",
    )


def overlap(backbone: Backbone, sources: list[Prompt], target: Prompt, spec: str = "on") -> list[float]:
    context = SimilarityContext(backbone, encoded_texts(backbone))
    return similarities().create(spec).scores(sources, target, context)


def hooked(model: Any, names: list[str], run: Callable[[], object]) -> list[np.ndarray]:
    """Outputs [T, neurons] of modules, one per call and in the order of the calls."""
    found: list[np.ndarray] = []
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda _m, _i, output: found.append(output[0].numpy().copy()))
        for name in names
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("model_type", sorted(PLACES))
def test_input_prompts_against_hooks_on_the_plain_model(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    backbone = tiny(model_type)
    prompts = [prompt(backbone, seed, f"prompt:length={length}") for seed, length in ((1, 5), (2, 5), (3, 8))]
    model = AutoModel.from_pretrained(tiny_folder(model_type), attn_implementation="eager", dtype=torch.float32).eval()
    names = [PLACES[model_type].format(layer) for layer in range(LAYERS)]
    first = model.get_input_embeddings()(torch.tensor([backbone.tokenizer.cls_token_id])).detach()
    vectors = []
    for one in prompts:
        inputs = torch.cat((one.tensors["embedding"], first))[None]
        outputs = hooked(model, names, lambda inputs=inputs: model(inputs_embeds=inputs))
        assert [layer.shape for layer in outputs] == [(inputs.shape[1], outputs[0].shape[1])] * LAYERS
        vectors.append([(layer[-1] > 0).astype(float) for layer in outputs])
    found = activated_neurons(backbone, prompts, range(LAYERS)).numpy()
    assert np.array_equal(found, np.array([np.concatenate(layers) for layers in vectors]).astype(bool))
    assert 0.05 < found.mean() < 0.95  # neither all nor none, or the test would see nothing
    for spec, layers in (("on", (0, 1)), ("on:layers=0", (0,)), ("on:layers=last1", (1,)), ("on:layers=0-1", (0, 1))):
        flat = [np.concatenate([own[layer] for layer in layers]) for own in vectors]
        expected = [1 - cosine(one, flat[2]) for one in flat]
        assert overlap(backbone, prompts, prompts[2], spec) == pytest.approx(expected, abs=1e-12)
        assert expected[0] != pytest.approx(expected[1], abs=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_prefixes_against_hooks_on_peft(model_type: str, tiny: Tiny, tiny_folder: Folder) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    backbone = tiny(model_type)
    prompts = [prompt(backbone, seed, "prefix:length=4") for seed in (1, 2)]
    base = AutoModel.from_pretrained(tiny_folder(model_type), attn_implementation="eager", dtype=torch.float32).eval()
    config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4)
    model = get_peft_model(base, config).eval()
    names = [PLACES[model_type].format(layer) for layer in range(LAYERS)]
    token = torch.tensor([[backbone.tokenizer.cls_token_id]])
    vectors = []
    for one in prompts:
        both = torch.stack((one.tensors["key"], one.tensors["value"]), dim=1)
        with torch.no_grad():
            model.prompt_encoder["default"].embedding.weight.copy_(both.permute(2, 0, 1, 3, 4).flatten(1))
        outputs = hooked(base, names, lambda: model(input_ids=token, attention_mask=torch.ones_like(token)))
        vectors.append(np.concatenate([layer[-1] > 0 for layer in outputs]))
    assert np.array_equal(activated_neurons(backbone, prompts, range(LAYERS)).numpy(), np.array(vectors))
    expected = 1 - cosine(vectors[0].astype(float), vectors[1].astype(float))
    assert overlap(backbone, prompts[:1], prompts[1]) == pytest.approx([expected], abs=1e-12)


def test_layers_that_share_their_modules(tiny: Tiny, tiny_folder: Folder) -> None:
    """ALBERT runs one module for every layer: the calls are told apart."""
    backbone = tiny("albert")
    one = prompt(backbone, 1, "prompt:length=3")
    model = AutoModel.from_pretrained(tiny_folder("albert"), attn_implementation="eager", dtype=torch.float32).eval()
    first = model.get_input_embeddings()(torch.tensor([backbone.tokenizer.cls_token_id])).detach()
    inputs = torch.cat((one.tensors["embedding"], first))[None]
    (name,) = {name for name, _ in model.named_modules() if name.endswith(".ffn")}
    calls = hooked(model, [name], lambda: model(inputs_embeds=inputs))
    layers = backbone.shape.layers
    assert len(calls) == layers > 1
    found = activated_neurons(backbone, [one], range(layers))[0].view(layers, -1).numpy()
    assert np.array_equal(found, np.array([call[-1] > 0 for call in calls]))
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("model_type", ["modernbert", "gpt2", "llama", "t5"])
def test_other_architectures(model_type: str, tiny: Tiny) -> None:
    """Decoders and T5 begin no text with a token of their own in every case; the neurons are read all the same."""
    backbone = tiny(model_type)
    prompts = [prompt(backbone, seed, "prefix:length=3") for seed in (1, 2)]
    assert backbone.shape.layout is not None
    layers = range(len(backbone.shape.layout.neurons))
    found = activated_neurons(backbone, prompts, layers)
    assert found.shape[0] == 2
    assert found.shape[1] % len(layers) == 0
    assert 0.05 < found.float().mean() < 0.95
    same, other = overlap(backbone, prompts[::-1], prompts[1])
    assert same == 1.0
    assert other < 1.0


@pytest.mark.parametrize("other", ["prompt:length=2", "adapter", "full"])
def test_prompts_of_different_methods_and_lengths(other: str, tiny: Tiny) -> None:
    """Each is what it is alone, whatever lies beside it, and takes no more passes than there are shapes."""
    backbone = tiny("bert")
    specs = ["prefix:length=3", other, "prefix:length=5", "prefix:length=3", other, "prefix:length=3"]
    prompts = [prompt(backbone, seed, spec) for seed, spec in enumerate(specs)]
    target = prompt(backbone, 50, "prefix:length=3")
    passes: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        forward = backbone.forward
        patch.setattr(backbone, "forward", lambda ids, *rest: (passes.append(ids.shape[0]), forward(ids, *rest))[1])
        found = overlap(backbone, prompts, target)
    assert sorted(passes) == sorted([4, 1] + ([2] if method(other).packable else [1, 1]))
    assert found == pytest.approx([overlap(backbone, [one], target)[0] for one in prompts], abs=1e-12)
    assert len(set(found)) == len(found)


def test_large_packs_are_cut(tiny: Tiny) -> None:
    backbone = tiny("bert")
    prompts = [prompt(backbone, seed, "prompt:length=2") for seed in range(5)]
    packs = list(prompt_packs(prompts, backbone, largest=2))
    assert [made.places for made in packs] == [(0, 1), (2, 3), (4,)]
    assert torch.equal(packs[2].tensors["embedding"][0], prompts[4].tensors["embedding"])


@pytest.mark.parametrize(
    ("text", "layers", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("last3", 12, (9, 10, 11)),
        ("last1", 1, (0,)),
        ("0-2", 12, (0, 1, 2)),
        ("11+0-2+2", 12, (0, 1, 2, 11)),
        ("5", 6, (5,)),
    ],
)
def test_layers_by_name(text: str, layers: int, expected: tuple[int, ...]) -> None:
    assert chosen_layers(text, layers) == expected


@pytest.mark.parametrize("text", ["2", "last3", "0-2", "1-0", "0+5-4"])
def test_layers_that_are_not_there(text: str, tiny: Tiny) -> None:
    backbone = tiny("bert")
    source = prompt(backbone, 1, "prefix:length=3")
    context = SimilarityContext(backbone, encoded_texts(backbone))
    words = rf"^Option 'layers' .* which has 2 \(0 to 1\), found '{re.escape(text)}'; .*\.$"
    with pytest.raises(OptionError, match=words):
        similarities().create(f"on:layers={text}").check_sources([source], context)


@pytest.mark.parametrize("text", ["some", "last0", "-1", "0-", "1;2", ""])
def test_layers_that_cannot_be_read(text: str) -> None:
    with pytest.raises(OptionError, match=r"^Option 'layers' of similarity 'on' must be text"):
        similarities().create(f"on:layers={text}")


def test_backbones_and_prompts_that_cannot_be_compared(tiny: Tiny, tiny_folder: Folder) -> None:
    own = load_backbone(str(tiny_folder("bert")), device=torch.device("cpu"), dtype=torch.float32)
    source = prompt(own, 1, "prefix:length=3")
    longer = replace(source, tensors={name: tensor[:, :2] for name, tensor in source.tensors.items()})
    with pytest.raises(PromptFileError, match=r"^prompt-1\.safetensors: tensor peft\.key has shape"):
        overlap(own, [longer], source)
    with pytest.raises(PromptFileError, match="architecture"):
        overlap(tiny("roberta"), [source], source)
    own.shape = replace(own.shape, layout=None)
    with pytest.raises(BackboneError, match=r"feed-forward neurons are not known.*--similarity panda or eavg\.$"):
        overlap(own, [source], source)
