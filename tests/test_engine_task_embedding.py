"""Task embeddings (PanDa eq. 2) and the similarities that compare prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_samples import CLASSES, largest, method, pack, texts, tokenised
from scipy.spatial.distance import cosine
from scipy.stats import spearmanr
from transformers import AutoModel

from panda_fusion.backbone import Backbone
from panda_fusion.dataset import encode
from panda_fusion.errors import PromptFileError
from panda_fusion.plugin_manager import similarities
from panda_fusion.prompt import BackboneInfo, Prompt
from panda_fusion.run import task_info
from panda_fusion.similarity import SimilarityContext
from panda_fusion.task_embedding import task_embeddings

Folder = Callable[[str], Path]
Tiny = Callable[[str], Backbone]
LENGTH = 5


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra"])
def test_embedding_is_the_mean_shift_of_the_first_hidden_state(
    model_type: str, tiny: Tiny, tiny_folder: Folder
) -> None:
    """h_cls with the prompt (by PEFT, text by text) minus h_cls without it (by transformers), averaged."""
    from peft import PrefixTuningConfig, get_peft_model

    backbone, peft = tiny(model_type), method(f"prefix:length={LENGTH}")
    tensors = pack(peft, backbone, 3)
    rows = texts(11, 4)
    samples = encode(backbone, [rows], None, "classification", 40)
    found = task_embeddings(backbone, peft, tensors, samples)
    assert (found.shape, found.dtype, found.requires_grad) == ((3, 32), torch.float32, False)

    folder = tiny_folder(model_type)
    plain = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH)
    base = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    prompted = get_peft_model(base, config).eval()
    for place in range(3):
        both = torch.stack((tensors["key"][place], tensors["value"][place]), dim=1)
        with torch.no_grad():
            prompted.prompt_encoder["default"].embedding.weight.copy_(both.permute(2, 0, 1, 3, 4).flatten(1))
            shifts = []
            for row in rows:
                inputs = tokenised(backbone, [[row]])
                with_prompt = prompted(**inputs).last_hidden_state[0, 0]
                shifts.append(with_prompt - plain(**inputs).last_hidden_state[0, 0])
        assert largest(found[place], torch.stack(shifts).mean(0)) <= 1e-5
    assert largest(found[0], found[1]) > 1e-2


def prompt(backbone: Backbone, seed: int, spec: str = f"prefix:length={LENGTH}") -> Prompt:
    peft = method(spec)
    generator = torch.Generator().manual_seed(seed)
    return Prompt(
        method=peft.spec,
        tensors={name: tensor[0] for name, tensor in pack(peft, backbone, 1, seed).items()},
        head=backbone.head(3).create(generator),
        embedding=torch.randn(backbone.shape.hidden, generator=generator),
        backbone=backbone.info,
        task=task_info(CLASSES),
        path=f"prompt-{seed}.safetensors",
    )


def similarity(name: str, backbone: Backbone, source: Prompt, target: Prompt | None) -> float:
    samples = encode(backbone, [texts(3, 0)], None, "classification", 40)
    return similarities().create(name).score(source, target, SimilarityContext(backbone, samples))


@pytest.mark.parametrize("seed", range(5))
def test_panda_is_the_cosine_of_the_embeddings(seed: int, tiny: Tiny) -> None:
    backbone = tiny("bert")
    source, target = prompt(backbone, seed), prompt(backbone, 50 + seed)
    assert source.embedding is not None
    assert target.embedding is not None
    expected = 1 - cosine(source.embedding.double().numpy(), target.embedding.double().numpy())
    assert similarity("panda", backbone, source, target) == pytest.approx(expected, abs=1e-12)
    assert similarity("panda", backbone, source, source) == pytest.approx(1.0)
    opposite = replace(source, embedding=-3 * source.embedding)
    assert similarity("panda", backbone, source, opposite) == pytest.approx(-1.0)


def test_panda_needs_embeddings(tiny: Tiny) -> None:
    backbone = tiny("bert")
    bare = replace(prompt(backbone, 1), embedding=None)
    for source, target in ((bare, prompt(backbone, 2)), (prompt(backbone, 2), bare)):
        with pytest.raises(PromptFileError, match=r"^Prompt 'prompt-1\.safetensors' carries no task embedding.*\.$"):
            similarity("panda", backbone, source, target)


@pytest.mark.parametrize("spec", ["adapter", "full"])
def test_eavg_of_methods_without_tokens_takes_all_numbers(spec: str, tiny: Tiny) -> None:
    """They have nothing to average over: the cosine of everything they trained."""
    backbone = tiny("bert")
    pair = [prompt(backbone, seed, spec) for seed in (1, 2)]
    flat = [
        np.concatenate([one.tensors[name].double().numpy().ravel() for name in sorted(one.tensors)]) for one in pair
    ]
    assert similarity("eavg", backbone, *pair) == pytest.approx(1 - cosine(*flat), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_eavg_is_the_cosine_of_token_means(kind: str, seed: int, tiny: Tiny) -> None:
    """By numpy, from the layout of the prompt file; prompts of different length can be compared."""
    backbone = tiny("bert")
    pair = [prompt(backbone, seed, f"{kind}:length=5"), prompt(backbone, 30 + seed, f"{kind}:length=8")]
    means = []
    for one in pair:
        arrays = {name: tensor.double().numpy() for name, tensor in one.tensors.items()}
        if kind == "prompt":
            means.append(arrays["embedding"].mean(axis=0))
        else:
            # [layers, P, kv_heads, head_dim]: a token's features are its keys and values in every layer.
            means.append(np.concatenate([arrays[name].mean(axis=1).ravel() for name in ("key", "value")]))
    expected = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    assert similarity("eavg", backbone, *pair) == pytest.approx(expected, abs=1e-9)
    assert similarity("eavg", backbone, pair[0], pair[0]) == pytest.approx(1.0)


def test_eavg_compares_prompts_of_one_method_only(tiny: Tiny) -> None:
    backbone = tiny("bert")
    with pytest.raises(PromptFileError, match=r"^Prompt 'prompt-1\.safetensors' .* --similarity panda\.$"):
        similarity("eavg", backbone, prompt(backbone, 1), prompt(backbone, 2, "prompt:length=5"))


def test_eavg_on_prompts_that_others_trained() -> None:
    """14 RoBERTa prompts of thunlp's Prompt-Transferability with measured zero-shot transfer (MIT licence).

    The mean over targets of Spearman(cosine of token means, accuracy) without row 0 of each prompt, which their code
    never reads, is .366 in a computation that was made before this project.
    """
    shared = os.environ.get("PANDA_FUSION_SHARED")
    if not shared:
        pytest.skip("PANDA_FUSION_SHARED is not set: no folder with real prompts")
    folder = Path(shared) / "prompts" / "thunlp-roberta-base"
    accuracy = json.loads((folder / "transfer.json").read_text())["accuracy"]
    names = sorted(accuracy)
    assert len(names) == 14
    roberta = BackboneInfo(
        name="roberta-base",
        architecture="roberta",
        hidden=768,
        layers=12,
        heads=12,
        kv_heads=12,
        head_dim=64,
        fingerprint="0" * 64,
    )
    prompts = {}
    for name in names:
        rows = torch.load(folder / name / "task_prompt", weights_only=True).detach()
        assert rows.shape == (100, 768)
        tensors = {"embedding": rows[1:]}
        prompts[name] = Prompt("prompt:length=99", tensors, {}, None, roberta, task_info(CLASSES), path=name)
    eavg = similarities().create("eavg")
    correlations = []
    for target in names:
        sources = [name for name in names if name != target]
        scores = [eavg.score(prompts[source], prompts[target], None) for source in sources]  # type: ignore[arg-type]
        correlations.append(spearmanr(scores, [accuracy[target][source]["acc"] for source in sources]).statistic)
    assert np.mean(correlations) == pytest.approx(0.366, abs=5e-4)


def test_constant_is_one_and_needs_no_target(tiny: Tiny) -> None:
    backbone = tiny("bert")
    assert similarity("constant", backbone, prompt(backbone, 1), None) == 1.0
    assert {name: similarities().create(name).needs_target for name in ("panda", "eavg", "on", "constant")} == {
        "panda": True,
        "eavg": True,
        "on": True,
        "constant": False,
    }
