"""Load a Hugging Face folder: offline, from safetensors, with no code but transformers' own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.errors import HostError, SourceError, missing_package
from edgepack.runtime.plain import read_plain
from edgepack.source.digest import Digest
from edgepack.source.eager import count_parameters, torch_run
from edgepack.source.huggingface_bounds import MAX_CONFIG, bounded, check_counts, check_files
from edgepack.source.huggingface_io import (
    infer_inputs,
    infer_outputs,
    optional_inputs,
    output_kind,
    read_class_names,
)
from edgepack.source.model import Source
from edgepack.source.recognise import recognise
from edgepack.source.shards import by_name, list_shards, total_bytes
from edgepack.source.torch_host import import_torch
from edgepack.source.weights import check_finite, named_tensors
from edgepack.spec.tensors import names_of

if TYPE_CHECKING:
    from types import ModuleType

    from transformers import PreTrainedModel

MIN_TRANSFORMERS = (5, 3)
"""The first transformers in which no configuration turns remote code on (CVE-2026-4372, -5241)."""

# Keys by which a configuration brings code, or fetches something from elsewhere.
_FORBIDDEN = ("auto_map", "custom_pipelines", "trust_remote_code", "use_kernels", "kernel_config")
_ATTENTION = frozenset({"eager", "sdpa", "flash_attention_2", "flex_attention"})


def load_huggingface(path: Path) -> Source:
    """Load a folder that `save_pretrained` wrote.

    The network runs with eager attention, in float32, without a cache of keys and values.

    Raises:
        SourceError: source-not-plain, source-hf-oversized, source-corrupt, source-hf-code,
            source-hf-pickle, source-hf-missing-weights,
            source-hf-quantized, source-hf-adapter, source-hf-architecture, source-hf-unsupported,
            source-hf-inputs, source-weights-mismatch, source-weights-nonfinite.
        HostError: package-missing, transformers-too-old.
    """
    config, shards = check_folder(path)
    torch = import_torch("A Hugging Face folder")
    transformers = _import_transformers()
    model_class = _model_class(path, config, transformers)
    size = total_bytes(shards)
    with bounded(path, size):
        model, notes = _load(path, model_class, torch)
    inputs = infer_inputs(path, model, config)
    names = infer_outputs(path, model, inputs)

    from edgepack.source.positional import NamedModule

    module = NamedModule(model, names_of(inputs), names).eval()
    digest = Digest("hugging-face")
    digest.json("config", config)
    digest.json("versions", {"torch": torch.__version__, "transformers": transformers.__version__})
    digest.text("class", model_class.__name__)
    digest.files("weights", by_name(shards))
    return Source(
        path=path,
        kind="hugging-face",
        digest=digest.hexdigest(),
        module=module,
        program=None,
        onnx=None,
        inputs=inputs,
        optional_inputs=optional_inputs(model, inputs),
        output_names=names,
        output_kind=output_kind(model_class.__name__, model.config),
        class_names=read_class_names(config),
        run=torch_run(module, inputs),
        parameters=count_parameters(model),
        bytes=size,
        notes=(f"Loaded {model_class.__name__} from a Hugging Face folder.", *notes),
    )


def check_folder(path: Path) -> tuple[dict[str, object], list[Path]]:
    """Check a folder without loading it; return its configuration and its weights files.

    Raises SourceError as `load_huggingface` does before it needs torch.
    """
    check_files(path)
    config = _read_json(path / "config.json")
    _check_config(path, config)
    check_counts(path, config)
    return config, _weights(path)


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(read_plain(path, MAX_CONFIG))
        if not isinstance(content, dict):
            raise TypeError(f"it is a {type(content).__name__}, not an object")
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise SourceError(
            "source-corrupt",
            f"{path} cannot be read",
            why=str(error),
            hint="save the folder again with save_pretrained",
        ) from error
    return content


def _items(value: object) -> Iterator[tuple[str, object]]:
    """Yield every key of nested objects with its value; backbones nest a whole configuration."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)


def _check_config(path: Path, config: Mapping[str, object]) -> None:
    """Refuse keys that run code from the folder, download something, or load other weights."""
    # {"auto_map": {"AutoModel": "modeling.MyModel"}} imports modeling.py from the folder, and
    # {"attn_implementation": "someone/kernels"} downloads a kernel.
    for key, value in _items(config):
        attention = "attn_implementation" in key and value is not None
        if (key in _FORBIDDEN and value) or (attention and value not in _ATTENTION):
            raise SourceError(
                "source-hf-code",
                f"the configuration of {path.name} requires code from elsewhere",
                why=f"config.json has {key} = {str(value)[:80]!r}",
                hint="build the network with your own factory: use the file with its weights, and "
                "--arch package.module:factory",
            )
        if key in ("use_pretrained_backbone", "use_timm_backbone") and value:
            raise SourceError(
                "source-hf-unsupported",
                f"{path.name} loads a part of its network from elsewhere",
                why=f"config.json has {key} = {value!r}",
                hint="export the whole network with torch.export and use the .pt2 file",
            )
    if config.get("quantization_config"):
        raise SourceError(
            "source-hf-quantized",
            f"{path.name} is already quantized",
            why=f"quantization_config: {str(config['quantization_config'])[:120]}",
            hint="use the original weights; edgepack quantizes for the target",
        )
    if (path / "adapter_config.json").exists():
        raise SourceError(
            "source-hf-adapter",
            f"{path.name} is an adapter (PEFT), not a whole network",
            why="its adapter_config.json names a base model elsewhere",
            hint="merge it: model.merge_and_unload().save_pretrained(PATH)",
        )


def _weights(path: Path) -> list[Path]:
    """Return the safetensors files of the folder."""
    # As transformers does: one file is preferred to shards, if a folder has both.
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        shards = [path / "model.safetensors"]
    elif index.is_file():
        shards = list(list_shards(index))
    else:
        shards = []
    if not shards:
        raise _no_weights(path)
    # A pickle with the suffix .safetensors must not reach a loader that would run it.
    for shard in shards:
        if recognise(shard) != "safetensors":
            raise SourceError(
                "source-hf-pickle",
                f"{shard.name} is not a safetensors file, despite its name",
                why=f"its contents are those of a {recognise(shard)}",
                hint="save the folder again with save_pretrained",
            )
    return shards


def _no_weights(path: Path) -> SourceError:
    """Return the error for a folder without safetensors files, with or without pickled weights."""
    pickles = []
    for entry in sorted(path.iterdir()):
        if entry.suffix in (".bin", ".pt", ".pth", ".ckpt"):
            pickles.append(entry.name)
    if any(name.startswith("pytorch_model") for name in pickles):
        return SourceError(
            "source-hf-pickle",
            f"{path.name} has only pickled weights",
            why=f"it holds {', '.join(pickles[:4])}; a pickle can run any code",
            hint="if you trust it, convert it once:\n"
            f'    model = AutoModelFor....from_pretrained("{path.name}")\n'
            '    model.save_pretrained("converted")',
        )
    return SourceError(
        "source-hf-missing-weights",
        f"{path.name} has no weights",
        why="neither model.safetensors nor model.safetensors.index.json exists",
        hint="save the folder again with save_pretrained",
    )


def _import_transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise missing_package("transformers", "transformers", "A Hugging Face folder") from error
    # "5.3.0.dev0" gives (5, 3): only the first two parts are numbers in every release.
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    if version < MIN_TRANSFORMERS:
        raise HostError(
            "transformers-too-old",
            f"transformers {transformers.__version__} lets a configuration run remote code",
            why="CVE-2026-4372 and CVE-2026-5241 are fixed in 5.3",
            hint="pip install 'transformers>=5.3'",
        )
    package: ModuleType = transformers
    return package


def _model_class(
    path: Path, config: Mapping[str, object], transformers: ModuleType
) -> type[PreTrainedModel]:
    """Return the class of transformers that the configuration names as its only architecture."""
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not str(names[0]).isidentifier():
        raise SourceError(
            "source-hf-architecture",
            f"the configuration of {path.name} does not name one network",
            why=f"architectures: {names!r}",
            hint='add it to config.json: "architectures": ["DistilBertForSequenceClassification"]',
        )
    candidate = getattr(transformers, names[0], None)
    if not isinstance(candidate, type) or not issubclass(candidate, transformers.PreTrainedModel):
        raise SourceError(
            "source-hf-architecture",
            f"transformers {transformers.__version__} does not have the network of {path.name}",
            why=f"architectures: {names[0]}",
            hint="install a newer transformers, or use its weights file with --arch",
        )
    model_class: type[PreTrainedModel] = candidate
    if config.get("model_type") != model_class.config_class.model_type:
        raise SourceError(
            "source-hf-architecture",
            f"the configuration of {path.name} contradicts itself",
            why=f"model_type is {config.get('model_type')!r}, but {names[0]} is of type "
            f"{model_class.config_class.model_type!r}",
            hint="save the folder again with save_pretrained",
        )
    return model_class


def _load(
    path: Path, model_class: type[PreTrainedModel], torch: ModuleType
) -> tuple[PreTrainedModel, list[str]]:
    """Build the network with all its weights from the folder; return it with notes."""
    with _quiet(path):
        config = model_class.config_class.from_pretrained(path, local_files_only=True)
        # A cache of keys and values, and the states of every layer, would become outputs.
        for name in ("use_cache", "output_attentions", "output_hidden_states"):
            if getattr(config, name, None):
                setattr(config, name, False)
        model, info = model_class.from_pretrained(
            path,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    missing = sorted(map(str, info["missing_keys"]))
    mismatched = sorted(map(str, info["mismatched_keys"]))
    if missing or mismatched:
        # transformers would only warn, and initialize them at random.
        raise SourceError(
            "source-weights-mismatch",
            f"the weights of {path.name} do not fill {model_class.__name__}",
            why=f"{len(missing)} missing: {', '.join(missing[:4]) or '-'}; "
            f"{len(mismatched)} of another shape: {', '.join(mismatched[:4]) or '-'}",
            hint="is it the base network without its head? name the class that was trained in "
            "config.json's architectures",
        )
    check_finite(path, named_tensors(model))
    unused = sorted(map(str, info["unexpected_keys"]))
    notes = []
    if unused:
        notes.append(f"{len(unused)} tensors of the folder are not used: {', '.join(unused[:4])}.")
    return model.eval(), notes


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Silence transformers, and turn its exceptions into one error."""
    try:
        with silence():
            yield
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            "source-hf-unsupported",
            f"transformers cannot load {path.name}",
            why=f"{type(error).__name__}: {_first_lines(str(error))}",
            hint="check the folder with from_pretrained, or use its weights file with --arch",
        ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Silence transformers' progress bars and reports."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _first_lines(text: str, lines: int = 3) -> str:
    return "\n".join(text.strip().splitlines()[:lines])
