"""Hugging Face folders: inputs inferred, outputs named, the answers transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgepack.errors import SourceError
from edgepack.source import Source, load
from edgepack.source.positional import NamedModule

transformers = pytest.importorskip("transformers")

TINY = {"vocab_size": 50, "max_position_embeddings": 32}
BERT = {**TINY, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
        "intermediate_size": 32}  # fmt: skip
DISTIL = {**TINY, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32}
VIT = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32,
       "image_size": 16, "patch_size": 8, "num_labels": 5}  # fmt: skip
GPT = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
RESNET = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "num_labels": 5}


def saved(folder: Path, name: str, config: Any) -> tuple[Source, Any]:
    torch.manual_seed(0)
    network = getattr(transformers, name)(config).eval()
    network.save_pretrained(folder)
    return load(folder), network


@pytest.mark.parametrize(
    ("name", "config", "options", "inputs", "outputs", "kind"),
    [
        ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL,
         ["input_ids:int64:batch,sequence", "attention_mask:int64:batch,sequence"],
         ("logits",), "scores"),
        ("BertModel", "BertConfig", BERT,
         ["input_ids:int64:batch,sequence", "attention_mask:int64:batch,sequence",
          "token_type_ids:int64:batch,sequence"],
         ("last_hidden_state", "pooler_output"), None),
        ("ViTForImageClassification", "ViTConfig", VIT,
         ["pixel_values:float32:batch,3,16,16"], ("logits",), "scores"),
        ("ResNetForImageClassification", "ResNetConfig", RESNET,
         ["pixel_values:float32:batch,3,height,width"], ("logits",), "scores"),
        ("GPT2LMHeadModel", "GPT2Config", GPT,
         ["input_ids:int64:batch,sequence", "attention_mask:int64:batch,sequence"],
         ("logits",), "scores"),
    ],
)  # fmt: skip
def test_a_folder_tells_its_inputs_and_outputs(
    tmp_path: Path, name: str, config: str, options: dict[str, Any], inputs: list[str],
    outputs: tuple[str, ...], kind: str | None,
) -> None:  # fmt: skip
    source, network = saved(tmp_path, name, getattr(transformers, config)(**options))
    assert source.kind == "hugging-face"
    assert list(map(str, source.inputs or ())) == inputs
    assert source.output_names == outputs
    assert source.output_kind == kind
    sizes = {"batch": 2, "sequence": 6, "height": 32, "width": 32}
    generator = np.random.default_rng(0)
    feeds = {}
    for tensor in source.inputs or ():
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
        high = 2 if tensor.name in ("attention_mask", "token_type_ids") else 50
        whole = np.maximum(generator.integers(0, high, shape), tensor.name == "attention_mask")
        feeds[tensor.name] = (whole if tensor.dtype == "int64" else whole / 50).astype(tensor.dtype)
    with torch.inference_mode():
        reference = network(**{key: torch.from_numpy(value) for key, value in feeds.items()})
    for answer, output in zip(source.run(feeds), outputs, strict=True):
        np.testing.assert_allclose(answer, reference[output].numpy(), rtol=1e-4, atol=1e-5)


BART = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16,
           "decoder_start_token_id": 1}  # fmt: skip


def detr() -> Any:
    """A DETR whose backbone is in transformers itself."""
    backbone = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], out_features=["stage2"]
    )
    options = {name: value for name, value in BART.items() if name != "vocab_size"}
    return transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, num_queries=5, num_labels=3, **options,
    )  # fmt: skip


ENCODER_DECODERS = {
    "DetrForObjectDetection": detr,
    "WhisperForAudioClassification": lambda: transformers.WhisperConfig(**WHISPER, num_labels=4),
    "WhisperForConditionalGeneration": lambda: transformers.WhisperConfig(**WHISPER),
    "BartForSequenceClassification": lambda: transformers.BartConfig(
        **BART, max_position_embeddings=32
    ),
    "BartForConditionalGeneration": lambda: transformers.BartConfig(
        **BART, max_position_embeddings=32
    ),
}


@pytest.mark.parametrize(
    ("name", "feeds", "first"),
    [
        ("DetrForObjectDetection", {"pixel_values": (2, 3, 64, 64)}, "logits"),
        ("WhisperForAudioClassification", {"input_features": (2, 8, 40)}, "logits"),
        ("BartForSequenceClassification", {"input_ids": (2, 6), "attention_mask": (2, 6)},
         "logits"),
    ],
)  # fmt: skip
def test_a_class_that_does_not_generate_is_taken_whatever_its_configuration_states(
    tmp_path: Path, name: str, feeds: dict[str, tuple[int, ...]], first: str
) -> None:
    source, network = saved(tmp_path, name, ENCODER_DECODERS[name]())
    assert network.config.is_encoder_decoder
    generator = np.random.default_rng(0)
    arrays = {}
    for tensor in source.inputs or ():
        values = generator.normal(size=feeds[tensor.name])
        arrays[tensor.name] = values.astype(tensor.dtype)
    if "input_ids" in arrays:
        # Bart classifies at the last end-of-sequence token, which is token 2.
        arrays["input_ids"] = np.array([[5, 6, 7, 8, 9, 2], [9, 8, 7, 6, 5, 2]])
        arrays["attention_mask"] = np.ones((2, 6), np.int64)
    with torch.inference_mode():
        wanted = network(**{key: torch.from_numpy(value) for key, value in arrays.items()})
    assert (source.output_names or ())[0] == first
    np.testing.assert_allclose(source.run(arrays)[0], wanted[first].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["WhisperForConditionalGeneration", "BartForConditionalGeneration"]
)
def test_a_class_that_generates_with_a_decoder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError) as caught:
        saved(tmp_path, name, ENCODER_DECODERS[name]())
    assert caught.value.code == "source-hf-unsupported"
    assert f"{name} generates" in str(caught.value.why)


def test_a_spectrogram_has_the_size_that_the_configuration_states(tmp_path: Path) -> None:
    options = {name: value for name, value in VIT.items() if name not in ("image_size",)}
    config = transformers.ASTConfig(**options, max_length=32, num_mel_bins=16)
    source, _ = saved(tmp_path, "ASTForAudioClassification", config)
    assert list(map(str, source.inputs or ())) == ["input_values:float32:batch,32,16"]


def test_a_regression_has_no_scores(tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(**DISTIL, num_labels=1)
    source, _ = saved(tmp_path, "DistilBertForSequenceClassification", config)
    assert source.output_kind is None


def test_shards_are_read(tmp_path: Path) -> None:
    network = transformers.BertModel(transformers.BertConfig(**BERT))
    network.save_pretrained(tmp_path, max_shard_size="4KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert load(tmp_path).bytes == sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))


def test_the_digest_covers_the_configuration(tmp_path: Path) -> None:
    source, _ = saved(tmp_path, "BertModel", transformers.BertConfig(**BERT))
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"gelu"', '"relu"'))
    assert load(tmp_path).digest != source.digest


def test_the_network_is_exported_with_free_axes(tmp_path: Path) -> None:
    source, _ = saved(
        tmp_path, "DistilBertForSequenceClassification", transformers.DistilBertConfig(**DISTIL)
    )
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    ids = torch.ones(2, 6, dtype=torch.int64)
    program = torch.export.export(source.module, (ids, ids), dynamic_shapes=(free, free))
    other = torch.ones(3, 9, dtype=torch.int64)
    answer = source.run({"input_ids": other.numpy(), "attention_mask": other.numpy()})[0]
    np.testing.assert_allclose(
        program.module()(other, other)[0].detach().numpy(), answer, rtol=1e-4, atol=1e-5
    )


def test_a_fifth_input_is_refused_and_not_dropped() -> None:
    with pytest.raises(ValueError, match="5 inputs; forward takes 4"):
        NamedModule(torch.nn.Identity(), ("a", "b", "c", "d", "e"), ("y",))
