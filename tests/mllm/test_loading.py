from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from saga_ray.config import MLLMConfig
from saga_ray.mllm.loading import choose_dtype, load_mllm


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "mllm"))


def refusal(path: Path | str, **fields: str) -> str:
    with pytest.raises(ValueError) as error:
        load_mllm(MLLMConfig(path=str(path), **fields))
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.startswith("mllm.")
    assert "--set mllm.path=DIR" in sentence
    return sentence


def test_a_folder_loads_frozen_in_evaluation_mode(folder: Path) -> None:
    mllm = load_mllm(MLLMConfig(path=str(folder)))
    assert not mllm.model.training
    assert not any(p.requires_grad for p in mllm.model.parameters())
    assert (mllm.num_levels, mllm.width, mllm.num_layers) == (4, 64, 4)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(folder: Path, tmp_path: Path, missing: str) -> None:
    path = copied(folder, tmp_path)
    (path / missing).unlink()
    assert str(path) in refusal(path)


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")
    assert "safetensors" in refusal(path)


@pytest.mark.parametrize("content", ["[]", "{", "\x00"])
def test_a_config_that_is_not_json_is_refused(folder: Path, tmp_path: Path, content: str) -> None:
    path = copied(folder, tmp_path)
    (path / "config.json").write_text(content)
    assert "config.json" in refusal(path)


def rewritten(folder: Path, tmp_path: Path, **values: object) -> Path:
    """A copy whose config.json has other values; None takes a key away."""
    path = copied(folder, tmp_path)
    config = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mllama", "cross-attention"),
        ("qwen3_5", "wrong gradients without an error"),
        ("qwen3_5_moe", "wrong gradients without an error"),
        ("internvl_chat", "never run"),
        ("paligemma", "both directions"),
        ("someones_own", "qwen3_vl, qwen3_vl_moe"),
    ],
)
def test_other_families_are_refused_by_name_with_the_reason(
    folder: Path, tmp_path: Path, family: str, reason: str
) -> None:
    sentence = refusal(rewritten(folder, tmp_path, model_type=family))
    assert f"'{family}'" in sentence
    assert reason in sentence


@pytest.mark.parametrize(
    ("family", "text", "reason"),
    [
        ("internvl", {"model_type": "gpt_oss"}, "'gpt_oss', tested are qwen2, qwen3"),
        ("qwen3_vl", {"layer_types": ["linear_attention"]}, "linear_attention"),
        ("gemma3", {"model_type": "gemma3_text", "use_bidirectional_attention": True}, "no answer can be sampled"),
        ("gemma3", {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "soft-capped"),
        ("qwen2_5_vl", {"rope_scaling": {"type": "longrope"}}, "'longrope'"),
        ("qwen2_5_vl", {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, "'longrope'"),
    ],
)
def test_variants_of_a_family_that_are_not_exact_are_refused(
    folder: Path, tmp_path: Path, family: str, text: dict, reason: str
) -> None:
    assert reason in refusal(rewritten(folder, tmp_path, model_type=family, text_config=text))


def test_damaged_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    path = copied(folder, tmp_path)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
    assert "cannot be loaded" in refusal(path)


def test_weights_that_do_not_fill_the_model_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copied(folder, tmp_path)
    weights = load_file(path / "model.safetensors")
    weights.pop("model.language_model.layers.0.mlp.up_proj.weight")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert "up_proj" in refusal(path)


def test_a_folder_that_wants_its_own_code_run_is_refused_and_the_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    auto_map = {"AutoModelForImageTextToText": "evil.Model", "AutoConfig": "evil.Model"}
    path = rewritten(folder, tmp_path, auto_map=auto_map)
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    assert "auto_map" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_a_path_that_does_not_exist_is_refused() -> None:
    assert "does not exist" in refusal("./nowhere")
    assert "does not exist" in refusal("/no/such/folder")


def test_a_hub_id_needs_a_pinned_revision() -> None:
    assert "mllm.revision" in refusal("Qwen/Qwen3-VL-8B-Instruct")


def test_a_hub_that_cannot_be_reached_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    sentence = refusal("someone/some-model", revision="0" * 40)
    assert "cannot be reached" in sentence
    assert "mllm.path=DIR" in sentence


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16


def test_a_model_over_several_gpus_needs_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saga_ray.mllm.loading.find_spec", lambda name: None)
    assert "pip install accelerate" in refusal(folder, device_map="auto")


@pytest.mark.parametrize("offload", [False, True])
def test_layers_behind_accelerates_hooks_give_the_same_gradient(folder: Path, offload: bool) -> None:
    """Hooks as on a model that is spread over devices, all of them this CPU; offloaded layers hold no weights in between."""
    hooks = pytest.importorskip("accelerate.hooks")
    from tests.mllm.test_families import naive_of, shared_of

    plain, hooked = (load_mllm(MLLMConfig(path=str(folder), dtype="float32")) for _ in range(2))
    for layer in [hooked.decoder.embed_tokens, *hooked.decoder.layers, hooked.decoder.norm, hooked.model.lm_head]:
        here = offload and layer in list(hooked.decoder.layers)
        weights = {name: value.clone() for name, value in layer.state_dict().items()} if here else None
        hook = hooks.AlignDevicesHook(
            "cpu", offload=here, weights_map=weights, place_submodules=True, io_same_device=True
        )
        hooks.add_hook_to_module(layer, hook, append=True)
    texts = ("<|im_start|>user\nbill<|vision_start|>", "<|vision_end|>and<|vision_start|>", "<|vision_end|>json")
    tokens = torch.randn(2, 2, 4, 4, 64, generator=torch.Generator().manual_seed(0))
    layout = plain.layout(texts, (2, 2))
    want = shared_of(plain, layout, tokens)
    for got in (shared_of(hooked, hooked.layout(texts, (2, 2)), tokens), naive_of(hooked, layout, tokens)):
        error = (got.token_grads_P2LTD - want.token_grads_P2LTD).norm() / want.token_grads_P2LTD.norm()
        assert error < 1e-5
