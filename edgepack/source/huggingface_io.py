"""Infer a Hugging Face network's inputs and outputs from its class and configuration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import SourceError
from edgepack.runtime.plain import read_plain
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.source.eager import name_outputs
from edgepack.source.huggingface_bounds import MAX_CONFIG, check_shape
from edgepack.spec.tensors import names_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Networks whose first output holds one score per class along its last axis.
_CLASSIFIERS = (
    "ForSequenceClassification",
    "ForImageClassification",
    "ForAudioClassification",
    "ForTokenClassification",
    "ForMaskedLM",
    "ForCausalLM",
    "LMHeadModel",
)


def infer_inputs(
    path: Path, model: PreTrainedModel, config: Mapping[str, object]
) -> tuple[Tensor, ...]:
    """Return the inputs that the name of the network's main input implies.

    Text is int64 (batch, sequence); pictures are float32 (batch, channels, height, width); sound
    is float32 (batch, samples), or a spectrogram if the configuration gives its size.

    Args:
        path: the folder; its preprocessor may give the size of pictures.
        model: the network.
        config: `config.json`.

    Raises:
        SourceError: source-hf-unsupported for an encoder and a decoder that generate a sequence,
            and for other inputs.
    """
    main = model.main_input_name
    # The configurations of DETR, and of a classifier with Whisper's encoder, have a decoder too;
    # only a class that generates calls its decoder once per token.
    if getattr(model.config, "is_encoder_decoder", False) and model.can_generate():
        raise _unsupported(
            path,
            f"{type(model).__name__} generates: its decoder runs in a loop, once for every token",
        )
    if main == "input_ids":
        return _text(model, config)
    if main == "pixel_values":
        channels = int(getattr(model.config, "num_channels", 3))
        return (Tensor(main, "float32", ("batch", channels, *_image_size(path, model.config))),)
    if main in ("input_values", "input_features"):
        return (Tensor(main, "float32", ("batch", *_sound(main, model.config))),)
    raise _unsupported(path, f"its main input is {main!r}, of unknown shape")


def _text(model: PreTrainedModel, config: Mapping[str, object]) -> tuple[Tensor, ...]:
    """Return the tokens, and the mask and the segments if the network takes them."""
    accepted = inspect.signature(model.forward).parameters
    shape: tuple[Dim, ...] = ("batch", "sequence")
    inputs = [Tensor("input_ids", "int64", shape)]
    if "attention_mask" in accepted:
        inputs.append(Tensor("attention_mask", "int64", shape))
    # RoBERTa takes segments too, but has one kind only: its tokenizer returns none.
    kinds = config.get("type_vocab_size")
    if "token_type_ids" in accepted and isinstance(kinds, int) and kinds > 1:
        inputs.append(Tensor("token_type_ids", "int64", shape))
    return tuple(inputs)


def _sound(main: str, config: PretrainedConfig) -> tuple[Dim, ...]:
    """Return the axes of a waveform or a spectrogram, without the batch."""
    if config.model_type == "audio-spectrogram-transformer":
        return int(config.max_length), int(config.num_mel_bins)
    if main == "input_values":
        return ("samples",)
    if config.model_type == "whisper":
        return int(config.num_mel_bins), 2 * int(config.max_source_positions)  # a stride of 2
    for name in ("feature_projection_input_dim", "input_feat_per_channel", "num_mel_bins"):
        size = getattr(config, name, None)
        if isinstance(size, int):
            return "frames", size
    return "frames", "features"


def _image_size(path: Path, config: PretrainedConfig) -> tuple[Dim, Dim]:
    """Return height and width: the configuration's, else the preprocessor's, else free axes."""
    sizes = [getattr(config, "image_size", None)]
    preprocessor = path / "preprocessor_config.json"
    if preprocessor.is_file():
        try:
            content = json.loads(read_plain(preprocessor, MAX_CONFIG))
            sizes += [content.get("crop_size"), content.get("size")]
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise SourceError(
                "source-corrupt", f"{preprocessor} cannot be read", why=str(error),
                hint="save it again with save_pretrained",
            ) from error  # fmt: skip
    # 224, [224, 224], {"height": 224, "width": 224} and {"shortest_edge": 224} are all in use.
    for size in sizes:
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return int(size[0]), int(size[1])
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return "height", "width"


def optional_inputs(model: PreTrainedModel, inputs: tuple[Tensor, ...]) -> tuple[str, ...]:
    """Return the names of the inputs that have a default, without the main input."""
    accepted = inspect.signature(model.forward).parameters
    names = []
    for name in names_of(inputs):
        parameter = accepted[name]
        if name != model.main_input_name and parameter.default is not parameter.empty:
            names.append(name)
    return tuple(names)


def infer_outputs(
    path: Path, model: PreTrainedModel, inputs: tuple[Tensor, ...]
) -> tuple[str, ...]:
    """Return the names of the outputs of one small call, without those that are None.

    Raises:
        SourceError: source-hf-inputs if the network does not take the inferred inputs,
            source-output-unsupported if an output holds anything but tensors.
    """
    import torch

    free = {"batch": 1, "sequence": 8, "height": 64, "width": 64, "samples": 16000,
            "frames": 100, "features": 80}  # fmt: skip
    feeds = {}
    for tensor in inputs:
        shape = []
        for dim in tensor.shape:
            shape.append(free[dim] if isinstance(dim, str) else dim)
        check_shape(path, tensor.name, shape)
        # Zeros are valid tokens, segments and pixels; a mask of zeros would hide every token.
        value = int(tensor.name == "attention_mask")
        feeds[tensor.name] = torch.full(shape, value, dtype=getattr(torch, tensor.dtype))
    end = getattr(model.config, "eos_token_id", None)
    vocabulary = getattr(model.config, "vocab_size", 0) or 0
    if "input_ids" in feeds and isinstance(end, int) and 0 <= end < vocabulary:
        feeds["input_ids"][:, -1] = end  # where Bart's classifier reads its answer
    try:
        with torch.inference_mode():
            answer = model(**feeds, return_dict=True)
    except Exception as error:
        shown = ", ".join(map(str, inputs))
        raise SourceError(
            "source-hf-inputs",
            f"{path.name} does not take the inputs that its configuration implies",
            why=f"{type(error).__name__}: {error}\ninferred: {shown}",
            hint="export it with torch.export on your own inputs, and use the .pt2 file",
        ) from error
    names = name_outputs(answer)
    if names is None:
        raise SourceError(
            "source-output-unsupported",
            f"{path.name} returns tensors without distinct names",
            why=f"it returned a {type(answer).__name__}",
            hint="export the part that you need with torch.export, and use the .pt2 file",
        )
    return names


def output_kind(class_name: str, config: PretrainedConfig) -> str | None:
    """Return "scores" for a network that classifies, None if it is unknown."""
    if getattr(config, "problem_type", None) == "regression":
        return None
    if getattr(config, "num_labels", 2) == 1 and "LM" not in class_name:
        return None
    if class_name.endswith(_CLASSIFIERS):
        return "scores"
    return None


def read_class_names(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of the classes in `id2label`, by their index; empty if there are none.

    transformers writes LABEL_0, LABEL_1, ... for classes without names.
    """
    # {"0": "unfavourable", "1": "favourable"} gives ("unfavourable", "favourable").
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return ()
    names = []
    for index in range(len(labels)):
        name = labels.get(str(index))
        if not isinstance(name, str) or name == f"LABEL_{index}":
            return ()
        names.append(name)
    return tuple(names)


def _unsupported(path: Path, why: str) -> SourceError:
    return SourceError(
        "source-hf-unsupported",
        f"{path.name} is a kind of network that edgepack cannot load from a folder",
        why=why,
        hint="export the part that you need with torch.export, and use the .pt2 file",
    )
