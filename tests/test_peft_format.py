"""Export to and import from PEFT, with PEFT itself as the judge."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from prompt_samples import BACKBONE, TASK, make_prompt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig

from panda_fusion import atomic_write
from panda_fusion.backbone import load_backbone
from panda_fusion.errors import OutputError, PromptFileError
from panda_fusion.head import Head
from panda_fusion.injection import Rows
from panda_fusion.peft_format import export_peft, import_peft
from panda_fusion.plugin_manager import peft_methods
from panda_fusion.prompt import BackboneInfo, Prompt, TaskInfo
from panda_fusion.prompt_file import load_prompt, save_prompt
from panda_fusion.testing.backbones import make_tiny_backbone

peft = pytest.importorskip("peft", reason="PEFT is the oracle of these tests")

MODEL_TYPES = ["bert", "roberta", "electra"]
LENGTH = 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny backbones, each made once."""
    root = tmp_path_factory.mktemp("backbones")

    def folder(model_type: str) -> Path:
        if not (root / model_type).exists():
            make_tiny_backbone(model_type, root / model_type, seed=1)
        return root / model_type

    return folder


def base_model(folder: Path, labels: int = 3) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=labels, attn_implementation="eager"
    ).eval()


def batch(width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [4, width] and lengths [4]: rows of different lengths, padded on the right with 0."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 40, (4, width), generator=generator)
    lengths = torch.tensor([width, 7, 3, 1])
    return ids, lengths


def peft_logits(model: Any) -> torch.Tensor:
    ids, lengths = batch()
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask).logits


def loaded_by_peft(folder: Path, base: Any) -> torch.Tensor:
    return peft_logits(peft.PeftModel.from_pretrained(base, folder).eval())


def saved_by_peft(base: Any, folder: Path, kind: str, **options: Any) -> torch.Tensor:
    """Save a random prompt with PEFT and return the logits that it gives."""
    configs = {
        "prefix": peft.PrefixTuningConfig,
        "prompt": peft.PromptTuningConfig,
        "p-tuning": peft.PromptEncoderConfig,
    }
    torch.manual_seed(4)
    model = peft.get_peft_model(base, configs[kind](task_type="SEQ_CLS", num_virtual_tokens=LENGTH, **options)).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "prompt_encoder" not in name:
            parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return peft_logits(model)


def our_logits(prompt: Prompt, folder: Path) -> torch.Tensor:
    backbone = load_backbone(str(folder), device=CPU, dtype=torch.float32)
    method = peft_methods().create(prompt.method)
    tensors = {name: t.unsqueeze(0) for name, t in method.from_stored(prompt.tensors, backbone.shape).items()}
    head: Head = backbone.head(len(prompt.task.labels))
    ids, lengths = batch()
    types = torch.zeros_like(ids) if "token_type_ids" in backbone.tokenizer.model_input_names else None
    with torch.inference_mode():
        pooled = backbone.forward(ids, lengths, types, method.inject(tensors, backbone.shape), Rows(1))
        return head({name: t.unsqueeze(0) for name, t in prompt.head.items()}, pooled.unsqueeze(0))[0]


def random_prompt(folder: Path, method: str) -> Prompt:
    backbone = load_backbone(str(folder), device=CPU, dtype=torch.float32)
    generator = torch.Generator().manual_seed(6)
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in peft_methods().create(method).stored_shapes(backbone.shape).items()
    }
    head = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in backbone.head(3).shapes.items()}
    return make_prompt(method, tensors=tensors, head=head, embedding=None, backbone=backbone.info)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_exported_prefix_gives_our_logits_in_peft(
    folders: Callable[[str], Path], tmp_path: Path, model_type: str
) -> None:
    folder = folders(model_type)
    prompt = random_prompt(folder, f"prefix:length={LENGTH}")
    assert export_peft(prompt, tmp_path / "out") == []
    theirs = loaded_by_peft(tmp_path / "out", base_model(folder))
    assert theirs.std() > 0.01
    plain = peft_logits(base_model(folder))
    assert (theirs - plain).abs().max() > 0.01
    torch.testing.assert_close(our_logits(prompt, folder), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p-tuning"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_round_trip_from_peft_to_peft(
    folders: Callable[[str], Path], tmp_path: Path, model_type: str, kind: str
) -> None:
    folder = folders(model_type)
    backbone = load_backbone(str(folder), device=CPU, dtype=torch.float32)
    options: dict[str, Any] = {"encoder_hidden_size": 8} if kind == "p-tuning" else {}
    if kind != "prefix" and backbone.info.embedding_size:
        options["token_dim"] = backbone.info.embedding_size
    before = saved_by_peft(base_model(folder), tmp_path / "theirs", kind, **options)
    prompt = import_peft(tmp_path / "theirs", backbone.info, TASK, backbone.head(3).shapes)
    assert prompt.method.startswith("prefix:length=5" if kind == "prefix" else "prompt:length=5")
    save_prompt(prompt, tmp_path / "p.safetensors")
    warnings = export_peft(load_prompt(tmp_path / "p.safetensors"), tmp_path / "ours")
    assert bool(warnings) == (kind != "prefix")
    assert torch.equal(loaded_by_peft(tmp_path / "ours", base_model(folder)), before)
    theirs, ours = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_prefix_trained_with_projection(folders: Callable[[str], Path], tmp_path: Path, model_type: str) -> None:
    folder = folders(model_type)
    backbone = load_backbone(str(folder), device=CPU, dtype=torch.float32)
    before = saved_by_peft(
        base_model(folder), tmp_path / "theirs", "prefix", prefix_projection=True, encoder_hidden_size=8
    )
    prompt = import_peft(tmp_path / "theirs", backbone.info, TASK, backbone.head(3).shapes)
    torch.testing.assert_close(our_logits(prompt, folder), before, atol=1e-5, rtol=0)


def test_prompt_pools_another_token_than_peft(folders: Callable[[str], Path], tmp_path: Path) -> None:
    # What the warning says: PEFT's head sees the first virtual token, ours the first token of the text.
    folder = folders("roberta")
    prompt = random_prompt(folder, f"prompt:length={LENGTH}")
    (warning,) = export_peft(prompt, tmp_path / "out")
    assert "first virtual token" in warning
    base = base_model(folder)
    theirs = loaded_by_peft(tmp_path / "out", base)
    assert (our_logits(prompt, folder) - theirs).abs().max() > 0.01
    ids, lengths = batch()
    keep = torch.arange(ids.shape[1] + LENGTH) < lengths[:, None] + LENGTH
    model = base_model(folder)
    embedded = torch.cat((prompt.tensors["embedding"].expand(4, -1, -1), model.get_input_embeddings()(ids)), dim=1)
    for name, parameter in model.named_parameters():
        if name in prompt.head:
            parameter.data.copy_(prompt.head[name])
    with torch.inference_mode():
        hidden = model.roberta(inputs_embeds=embedded, attention_mask=keep.long()).last_hidden_state
        torch.testing.assert_close(model.classifier(hidden), theirs, atol=1e-5, rtol=0)
        expected = model.classifier(hidden[:, LENGTH:])
    torch.testing.assert_close(our_logits(prompt, folder), expected, atol=1e-5, rtol=0)


def test_grouped_key_value_heads(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "llama")
    info = BackboneInfo(
        name="llama",
        architecture="llama",
        hidden=32,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        fingerprint="0",
    )
    before = saved_by_peft(base_model(tmp_path / "llama"), tmp_path / "theirs", "prefix")
    prompt = import_peft(tmp_path / "theirs", info, TASK, {"score.weight": (3, 32)})
    assert prompt.tensors["key"].shape == (3, LENGTH, 2, 16)
    export_peft(prompt, tmp_path / "ours")
    assert torch.equal(loaded_by_peft(tmp_path / "ours", base_model(tmp_path / "llama")), before)


def test_layout_by_hand(tmp_path: Path) -> None:
    prompt = make_prompt("prefix", length=3)
    export_peft(prompt, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rows = tensors["prompt_embeddings"]
    assert rows.shape == (3, 2 * 2 * 4 * 4)
    for token in range(3):
        for layer in range(2):
            for head in range(4):
                for number in range(4):
                    place = layer * 32 + head * 4 + number
                    assert rows[token, place] == prompt.tensors["key"][layer, token, head, number]
                    assert rows[token, place + 16] == prompt.tensors["value"][layer, token, head, number]
    assert torch.equal(tensors["base_model.classifier.weight"], prompt.head["classifier.weight"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["num_virtual_tokens"] == 3
    assert config["token_dim"] == 16
    assert config["base_model_name_or_path"] == "some/bert"
    assert config["modules_to_save"] == ["classifier"]


def test_peft_reads_the_configuration(tmp_path: Path) -> None:
    export_peft(make_prompt("prefix"), tmp_path / "prefix")
    export_peft(make_prompt("prompt"), tmp_path / "prompt")
    prefix = peft.PeftConfig.from_pretrained(tmp_path / "prefix")
    assert isinstance(prefix, peft.PrefixTuningConfig)
    assert (prefix.task_type, prefix.num_layers, prefix.inference_mode) == ("SEQ_CLS", 2, True)
    assert isinstance(peft.PeftConfig.from_pretrained(tmp_path / "prompt"), peft.PromptTuningConfig)


# Writing


def test_what_peft_has_no_counterpart_of(tmp_path: Path) -> None:
    choice = msgspec.structs.replace(TASK, kind="multiple-choice", labels=())
    with pytest.raises(PromptFileError, match="multiple-choice"):
        export_peft(make_prompt(task=choice), tmp_path / "out")
    with pytest.raises(PromptFileError, match=r"method 'adapter'|adapter"):
        export_peft(make_prompt("adapter", tensors={"down": torch.zeros(2, 2)}), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_interrupted_export_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_peft(make_prompt("prompt"), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    written = []

    def fail_on_the_second(source: str, target: str) -> None:
        written.append(target)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write.os, "replace", fail_on_the_second)
        with pytest.raises(OutputError, match="no space left"):
            export_peft(make_prompt("prefix"), tmp_path)
    # New tensors beside an old configuration would load as something that never was trained.
    assert sorted(os.listdir(tmp_path)) == ["adapter_model.safetensors", "notes.txt"]
    export_peft(make_prompt("prefix"), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors", "notes.txt"]


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="wants a folder"):
        export_peft(make_prompt(), tmp_path / "file")


# Reading what strangers made


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_peft(make_prompt("prefix"), tmp_path / "peft")
    return tmp_path / "peft"


def refused(folder: Path, *words: str, task: TaskInfo = TASK, info: BackboneInfo = BACKBONE) -> None:
    with pytest.raises(PromptFileError) as caught:
        import_peft(folder, info, task, {"classifier.weight": (len(task.labels) or 1, 16), "classifier.bias": (3,)})
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    for word in words:
        assert word in message


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, without: str = "", **changes: torch.Tensor) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items() if name != without}
    save_file(tensors | {name.replace("__", "."): tensor for name, tensor in changes.items()}, path)


def test_sound_import(exported: Path) -> None:
    prompt = import_peft(exported, BACKBONE, TASK, {"classifier.weight": (3, 16), "classifier.bias": (3,)})
    expected = make_prompt("prefix")
    assert prompt.method == expected.method
    assert torch.equal(prompt.tensors["key"], expected.tensors["key"])
    assert torch.equal(prompt.tensors["value"], expected.tensors["value"])
    assert torch.equal(prompt.head["classifier.bias"], expected.head["classifier.bias"])
    assert (prompt.embedding, prompt.backbone, prompt.task) == (None, BACKBONE, TASK)
    assert prompt.training["imported_from"] == "peft"
    assert prompt.training["base_model"] == "some/bert"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(exported: Path, dtype: torch.dtype) -> None:
    tensors = load_file(exported / "adapter_model.safetensors")
    save_file({name: t.to(dtype) for name, t in tensors.items()}, exported / "adapter_model.safetensors")
    prompt = import_peft(exported, BACKBONE, TASK)
    expected = make_prompt("prefix").tensors["key"].to(dtype).float()
    assert prompt.tensors["key"].dtype == torch.float32
    assert torch.equal(prompt.tensors["key"], expected)


def test_pickles_are_not_opened(exported: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (exported / "adapter_model.safetensors").unlink()
    (exported / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(exported, "pickle", "never opened", "safe_serialization=True")
    (exported / "adapter_model.bin").rename(exported / "adapter_model.safetensors")
    refused(exported, "pickle")
    assert not (tmp_path / "exploded").exists()


def test_missing_files(exported: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nosuch", "no folder")
    refused(exported / "adapter_config.json", "no folder")
    (exported / "adapter_model.safetensors").unlink()
    refused(exported, "holds no adapter_model.safetensors")
    (exported / "adapter_config.json").unlink()
    refused(exported, "holds no adapter_config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "LORA"}, ["'LORA'", "PREFIX_TUNING"]),
        ({"peft_type": "\x1b[2J"}, ["\\x1b"]),
        ({"peft_type": ["PREFIX_TUNING"]}, ["can be imported"]),
        ({"peft_type": "PROMPT_TUNING", "num_attention_heads": 4}, ["[3, 64]", "[3, 16]"]),
        ({"task_type": "TOKEN_CLS"}, ["TOKEN_CLS", "SEQ_CLS"]),
        ({"task_type": 3}, ["adapter_config.json"]),
        ({"num_layers": 12}, ["layers 12", "has 2"]),
        ({"num_layers": None}, ["adapter_config.json"]),
        ({"num_attention_heads": 2}, ["attention heads 2"]),
        ({"token_dim": 768}, ["token_dim 768"]),
        ({"num_virtual_tokens": 4}, ["[3, 64]", "[4, 64]"]),
        ({"num_virtual_tokens": -3}, ["-3 virtual tokens"]),
        ({"num_virtual_tokens": 10**9}, ["virtual tokens"]),
        ({"num_transformer_submodules": 2}, ["encoder-decoder"]),
    ],
)
def test_configurations_that_do_not_fit(exported: Path, changes: dict, words: list[str]) -> None:
    change_config(exported, **changes)
    refused(exported, *words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '"x"',
        "null",
        "{}",
        '{"peft_type": "PREFIX_TUNING"}',
        "[" * 500_000,
        "\ud800",
        " " * 2**21,
    ],
)
def test_configurations_that_are_none(exported: Path, text: str) -> None:
    (exported / "adapter_config.json").write_text(text, errors="surrogatepass")
    refused(exported, "adapter_config.json")


def test_tensors_that_do_not_fit(exported: Path) -> None:
    cases: list[tuple[dict, list[str]]] = [
        ({"without": "prompt_embeddings"}, ["lacks the tensor prompt_embeddings"]),
        ({"without": "base_model.classifier.bias"}, ["classifier.bias", "missing"]),
        ({"other": torch.zeros(2)}, ["unexpected tensor other"]),
        ({"base_model__pooler__weight": torch.zeros(2)}, ["pooler.weight", "no such parameter"]),
        ({"base_model__classifier__weight": torch.zeros(2, 16)}, ["[2, 16]", "[3, 16]"]),
        ({"prompt_embeddings": torch.zeros(3, 64, dtype=torch.float64)}, ["F64"]),
        ({"prompt_embeddings": torch.full((3, 64), float("nan"))}, ["not finite"]),
    ]
    whole = (exported / "adapter_model.safetensors").read_bytes()
    for changes, words in cases:
        (exported / "adapter_model.safetensors").write_bytes(whole)
        change_tensors(exported, **changes)
        refused(exported, *words)
    (exported / "adapter_model.safetensors").write_bytes(whole[:-1])
    refused(exported, "truncated")


def test_another_task_or_backbone(exported: Path) -> None:
    two = msgspec.structs.replace(TASK, labels=("yes", "no"))
    refused(exported, "[3, 16]", "[2, 16]", task=two)
    with pytest.raises(PromptFileError, match="3 outputs"):
        import_peft(exported, BACKBONE, two)
    refused(exported, "TOKEN_CLS", task=msgspec.structs.replace(TASK, kind="token-classification"))
    refused(exported, "layers 2", "has 6", info=msgspec.structs.replace(BACKBONE, layers=6))


def test_imports_without_peft(exported: Path) -> None:
    # PEFT is no dependency: neither direction may import it.
    import subprocess
    import sys

    program = (
        "import sys; sys.modules['peft'] = None\n"
        "from prompt_samples import BACKBONE, TASK\n"
        "from panda_fusion.peft_format import export_peft, import_peft\n"
        "export_peft(import_peft(sys.argv[1], BACKBONE, TASK), sys.argv[2])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run(
        [sys.executable, "-c", program, str(exported), str(exported.parent / "again")],
        env=environment,
        check=True,
    )
    assert (exported.parent / "again" / "adapter_model.safetensors").read_bytes() == (
        exported / "adapter_model.safetensors"
    ).read_bytes()
