"""Task embeddings of prompts that are there already: for files that lack one, and on samples of another task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from panda_fusion.encoded_task import SAMPLE_SEED
from panda_fusion.encoding import encode_split, samples_of
from panda_fusion.inference import pooled_vectors
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt_packs import prompt_packs
from panda_fusion.subsets import balanced_sample
from panda_fusion.task_embedding import SAMPLES, task_embeddings
from panda_fusion.tensor_cache import EMBEDDINGS, cache_key, digest_prompt, digest_samples

if TYPE_CHECKING:
    from panda_fusion.backbone import Backbone
    from panda_fusion.dataset import EncodedSet
    from panda_fusion.prompt import Prompt
    from panda_fusion.rows import Split
    from panda_fusion.tensor_cache import TensorCache


def with_task_embedding(
    prompt: Prompt, backbone: Backbone, development: Split, max_length: int, count: int = SAMPLES
) -> Prompt:
    """The same prompt with its task embedding (PanDa III-C1), from the samples that training would take.

    Args:
        prompt: a prompt of `backbone`.
        backbone: the frozen backbone.
        development: the development set of the task that the prompt was trained on.
        max_length: tokens kept of an example.
        count: class-balanced samples to draw (the paper's Table VIII varies it).

    Raises:
        BackboneError: virtual tokens and texts do not fit into the position table.
        PromptFileError: the prompt does not fit the backbone.
    """
    backbone.check_length(peft_methods().create(prompt.method).virtual_tokens(), max_length)
    rows = development.select(balanced_sample(development, count, SAMPLE_SEED))
    samples = samples_of(encode_split(backbone, prompt.task, rows, max_length), list(range(len(rows))))
    return replace(prompt, embedding=embeddings_on([prompt], backbone, samples)[0])


def embeddings_on(
    prompts: Sequence[Prompt], backbone: Backbone, samples: EncodedSet, cache: TensorCache | None = None
) -> torch.Tensor:
    """What each prompt's task embedding would be on given samples (PanDa III-C1).

    Runs one pass over the samples per prompt that is not in the cache, prompts of one method and shape packed, and
    one without a prompt; none where the cache has all.

    Args:
        prompts: N prompts of `backbone`, of any PEFT methods.
        backbone: the frozen backbone.
        samples: examples of any task, tokenised.
        cache: where to look for embeddings and keep new ones; None: nowhere.

    Returns:
        [N, hidden] float32 on the CPU.

    Raises:
        BackboneError: a prompt's virtual tokens and the texts do not fit into the position table.
        PromptFileError: a prompt does not fit the backbone.
    """
    keys: list[str] = []
    found: dict[int, torch.Tensor] = {}
    if cache is not None:
        digest = digest_samples(samples)
        keys = [cache_key(EMBEDDINGS, backbone, digest_prompt(prompt), digest) for prompt in prompts]
        entries = {place: cache.get(key) for place, key in enumerate(keys)}
        found = {
            place: entry
            for place, entry in entries.items()
            if entry is not None and len(entry) == backbone.info.output_width
        }
    missing = [place for place in range(len(prompts)) if place not in found]
    plain = None
    for pack in prompt_packs([prompts[place] for place in missing], backbone):
        backbone.check_length(pack.method.virtual_tokens(), samples.input_ids.shape[1])
        plain = pooled_vectors(backbone, samples) if plain is None else plain
        made = task_embeddings(backbone, pack.method, pack.tensors, samples, plain)
        found |= {missing[place]: row for place, row in zip(pack.places, made, strict=True)}
    if cache is not None and missing:
        cache.put({keys[place]: found[place] for place in missing})
    return torch.stack([found[place] for place in range(len(prompts))])
