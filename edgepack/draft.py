"""Draft of a manifest: what a model and its data say, and every other setting with its default."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from edgepack import data, files, source
from edgepack.data.layouts.picture_set import SUFFIXES
from edgepack.data.raw.files import list_files
from edgepack.data.raw.recordings import SUFFIXES as RECORDING_SUFFIXES
from edgepack.errors import SpecError
from edgepack.passes import parse_chain
from edgepack.passes.catalogue import Option, describe_pass
from edgepack.runtime.plain import read_plain
from edgepack.runtime.preprocess.audio import decode
from edgepack.runtime.tensor import Dim, Tensor
from edgepack.spec import toml_reader
from edgepack.spec.target import Target

WIDTH = 100
# Names under which a folder of data holds the samples of each role.
ROLES = ("calibration", "evaluation")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class Model:
    """Facts about a model's file.

    Attributes:
        path: the file or folder.
        kind: its format, as `source.recognise` names it.
        inputs: its inputs; empty if neither the file nor the data defines them.
        origin: the file that the inputs are from.
        outputs: names of its outputs; empty if the file does not define them.
        complete: False if the file holds weights without their network.
    """

    path: Path
    kind: str
    inputs: tuple[Tensor, ...]
    origin: str
    outputs: tuple[str, ...]
    complete: bool


@dataclass(frozen=True)
class Samples:
    """Samples of both roles, as paths.

    Attributes:
        calibration: file or folder; None without data.
        evaluation: file or folder; None if there is none of its own.
    """

    calibration: Path | None = None
    evaluation: Path | None = None


def draft_manifest(model: Path, folder: Path | None, target: Target, output: Path) -> str:
    """Return the text of a manifest for a model; it is valid.

    Args:
        model: the file or folder of the model.
        folder: samples, as a file or a folder; None for none.
        target: the profile whose defaults are shown.
        output: the file to be written; paths in the manifest are relative to its folder.

    Raises:
        SourceError: the model cannot be read.
        DataError: the samples do not exist or cannot be read.
    """
    samples = find_samples(folder)
    facts = inspect_model(model, samples)
    sections = [
        _draft_head(facts, target, output),
        _draft_model(facts),
        _draft_inputs(facts),
        _draft_outputs(facts),
        _draft_samples(samples, output.parent),
        _draft_pictures(facts, samples),
        _draft_audio(samples),
        _draft_passes(target),
        _draft_gates(target),
    ]
    # Sections are lists of lines; an empty line separates them.
    return "\n".join(_join_lines(section) for section in sections if section)


def _join_lines(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def refuse_existing(path: Path) -> None:
    """Raise SpecError `manifest-exists` if there is a file already."""
    if path.exists() or path.is_symlink():
        raise SpecError(
            "manifest-exists",
            f"{path} exists already",
            why="a manifest is never overwritten",
            hint="--output FILE writes another one",
        )


def write_manifest(text: str, path: Path) -> None:
    """Write a manifest, unless the file exists. Raises SpecError, HostError."""
    refuse_existing(path)
    toml_reader.check(toml_reader.parse(text, path), "manifest", str(path))
    files.write(path, text.encode())


def find_samples(folder: Path | None) -> Samples:
    """Find the samples of each role: `calibration` and `evaluation` in the folder, or all of it."""
    if folder is None:
        return Samples()
    data.check_there(str(folder))
    # For data/ with calibration.npz and evaluation.npz, or with train.csv and val.csv: one path
    # each. For pictures and recordings: the folder itself, whether it has such parts or not.
    if not folder.is_dir() or _is_one_source(folder):
        return Samples(folder)
    paths = {role: data.find_role(folder, role) for role in ROLES}
    for role in ROLES:
        for name in (role, f"{role}.npz", f"{role}.npy"):
            if paths[role] is None and (folder / name).exists():
                paths[role] = folder / name
    return Samples(paths["calibration"] or folder, paths["evaluation"])


def inspect_model(path: Path, samples: Samples) -> Model:
    """Read the inputs and outputs of a model, without running code from its file."""
    kind = source.recognise(path)
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    # A state dict has weights without inputs; an ONNX or exported file has both.
    complete = not source.find_format(kind).takes_network
    if complete:
        loaded = source.load(path)
        inputs = loaded.inputs or ()
        outputs = loaded.output_names or ()
    origin = path.name
    if not inputs and samples.calibration:
        inputs = data.infer_inputs(str(samples.calibration)) or ()
        origin = samples.calibration.name
    return Model(path, kind, inputs, origin, outputs, complete)


def _draft_head(model: Model, target: Target, output: Path) -> list[str]:
    path = os.path.relpath(model.path, output.parent)
    return [
        f"# Manifest of {model.path.name} ({model.kind}), drafted by `edgepack init`. Values that",
        "# are set come from the model or the data; the others are commented out at their default.",
        "# `edgepack manifest schema` describes every key. Build with",
        f"#   edgepack build {path} --target {target.name} --manifest {output.name}",
        "schema = 1",
        "",
        "# Name in file names and reports, from the model's file.",
        f"name = {_quote(name_model(model.path))}",
        "",
        f"# Passes to run; this is the chain of {target.name}. `edgepack passes` lists them.",
        f"# chain = {_quote(target.chain)}",
        "# Verify on the target's CPUs by emulation.",
        "# emulate = true",
    ]


def name_model(path: Path) -> str:
    """Return the name of a model that its file suggests: "my model.onnx" is "my-model"."""
    # One "-" for each character: "Grüße 2.onnx" is "Gr--e-2".
    name = _NOT_IN_NAMES.sub("-", path.resolve().stem)
    return name.strip("-._") or "model"


def _draft_model(model: Model) -> list[str]:
    if model.complete:
        return []
    return [
        f"# {model.path.name} holds weights alone: name the function that returns the network.",
        "[model]",
        '# arch = "net.py:FACTORY"',
        "# args = { width = 32 }",
        '# weights = "ema"',
        '# strip_prefix = "module."',
    ]


def _draft_inputs(model: Model) -> list[str]:
    if not model.inputs:
        return [
            "# The inputs could not be read from the model or the data.",
            "# [[inputs]]",
            '# name = "image"',
            '# dtype = "float32"',
            '# shape = ["batch", 3, 224, 224]',
        ]
    lines = [f"# Inputs, from {model.origin}; a named axis is dynamic."]
    axes: list[str] = []
    for tensor in model.inputs:
        # ("batch", 3, 224, 224) is ["batch", 3, 224, 224] in JSON, and in TOML.
        shape = json.dumps(tensor.shape, ensure_ascii=False)
        lines += ["[[inputs]]", f"name = {_quote(tensor.name)}", f"dtype = {_quote(tensor.dtype)}"]
        lines += [f"shape = {shape}", ""]
        for dim in tensor.shape:
            if isinstance(dim, str) and dim not in axes:
                axes.append(dim)
    if axes:
        lines.append("# Sizes of dynamic axes that a TensorRT engine is built for.")
        lines.append("# [axes]")
        lines += [f"# {axis} = {{ min = 1, opt = 1, max = 8 }}" for axis in axes]
    return lines


def _draft_outputs(model: Model) -> list[str]:
    names, origin = model.outputs, "from the model"
    if not names:
        names, origin = ("output",), "in the order of the model's"
    lines = [f"# Outputs, {origin}. The kind is inferred by default; it is one of scores, logit,"]
    lines.append("# probability, classes and values.")
    for name in names:
        lines += ["# [[outputs]]", f"# name = {_quote(name)}", '# kind = "scores"']
    return lines


def _draft_samples(samples: Samples, folder: Path) -> list[str]:
    lines: list[str] = []
    if _is_one_source(samples.calibration):
        lines += _draft_source(samples.calibration, folder)
    else:
        lines += _draft_roles(samples, folder)
    lines += ["# Samples that distill trains on.", "# [training]", '# samples = "training.npz"', ""]
    lines += [
        "# Number of samples in the bundle; by default as many as fit in 4 MiB, from 4 to 64."
    ]
    return [*lines, "# [reference]", "# samples = 64"]


def _draft_roles(samples: Samples, folder: Path) -> list[str]:
    lines: list[str] = []
    # A role without samples is commented out, with an example of a path.
    comments = {
        "calibration": "Samples that activation ranges are measured on.",
        "evaluation": "Samples that quality is judged on; the calibration samples by default.",
    }
    for role, comment in comments.items():
        path: Path | None = getattr(samples, role)
        mark, relative = "# ", f"{role}.npz"
        if path is not None:
            mark, relative = "", os.path.relpath(path, folder)
        lines += [f"# {comment}", f"{mark}[{role}]", f"{mark}samples = {_quote(relative)}"]
        if role == "evaluation":
            lines += ['# metric = "top1"', "# allow_chance = false"]
        lines.append("")
    source = samples.calibration.name if samples.calibration else "photos"
    lines += ["# One source for both, instead of [calibration] and [evaluation], in a table"]
    return [*lines, f"# [samples] with source = {_quote(source)} and split = 0.2.", ""]


def _draft_source(path: Path, folder: Path) -> list[str]:
    """Draft one source of raw samples for both roles, and its division."""
    lines = [
        "# Samples that activation ranges are measured on, and that quality is judged on.",
        "[samples]",
        f"source = {_quote(os.path.relpath(path, folder))}",
    ]
    if not data.has_parts(str(path)):
        lines += [
            "# Share that quality is judged on, of every class; another seed chooses other ones.",
            "split = 0.2",
            "# seed = 0",
        ]
    return [*lines, "", "# [evaluation]", '# metric = "top1"', "# allow_chance = false", ""]


def _draft_pictures(model: Model, samples: Samples) -> list[str]:
    """Draft the conversion of pictures, for data that has any and a model with one image input."""
    if not _are_pictures(samples.calibration):
        return []
    # Without an image input, the size is an example.
    mark, size = "# ", "224"
    layout, channels, sides = _read_image(model)
    if len(sides) == 2:
        mark, size = "", f"[{sides[0]}, {sides[1]}]"
    colour, normalize, mean, std = (
        "rgb",
        "imagenet",
        "[0.485, 0.456, 0.406]",
        "[0.229, 0.224, 0.225]",
    )
    if channels == 1:
        colour, normalize, mean, std = "grey", "0.5", "0.5", "0.5"
    return [
        f"# Conversion of pictures, with the size, layout and channels of {model.origin}.",
        "# Size, mean and std must be those of the training, which the model does not say: remove",
        '# the "#" of one line of each kind. A build refuses a table without them.',
        "[pictures]",
        f"{mark}size = {size}",
        "# resize = 256",
        f"# crop = {size}",
        f"# letterbox = {size}",
        "# Mean and std of the pixels after the scale; by name imagenet, 0.5 or none (0 and 1).",
        f"# normalize = {_quote(normalize)}",
        f"# mean = {mean}",
        f"# std = {std}",
        f"# scale = {1 / 255}",
        '# interpolation = "bilinear"',
        f"colour = {_quote(colour)}",
        f"layout = {_quote(layout)}",
        "",
        "# Names of the classes in the model's order; by default those of class folders, sorted.",
        "# [classes]",
        '# file = "classes.txt"',
        "# folders = false",
    ]


def _draft_audio(samples: Samples) -> list[str]:
    """Draft the conversion of recordings, for data that has any."""
    if not _are_recordings(samples.calibration):
        return []
    first = list_files(samples.calibration, RECORDING_SUFFIXES)[0]
    _, rate = decode(read_plain(first), first.name)
    return [
        "# Conversion of recordings. The rate must be that of the training, which the model does",
        f"# not say; {first.name} has {rate} samples per second.",
        '# Remove the "#" if that is right, else change it. A build refuses a table without it.',
        "[audio]",
        f"# rate = {rate}",
        "# Number of samples; by default the model's own, or the entire recording.",
        f"# length = {rate}",
        "# channels = 1",
        "# scale = 1.0",
        '# normalize = "none"',
    ]


def _read_image(model: Model) -> tuple[str, Dim, tuple[int, ...]]:
    """Return the layout, the channels and the sides of the image input; no sides if dynamic."""
    image = next((tensor for tensor in model.inputs if len(tensor.shape) == 4), None)
    if image is None:
        return "nchw", 3, ()
    # (batch, 3, 224, 224) has its channels first, (batch, 224, 224, 3) last.
    layout = "nchw"
    _, channels, *dims = image.shape
    if image.shape[-1] in (1, 3):
        layout = "nhwc"
        _, *dims, channels = image.shape
    sides = tuple(dim for dim in dims if isinstance(dim, int))
    if len(sides) < 2:
        # Pictures are resized to a height and a width; one without the other says too little.
        sides = ()
    return layout, channels, sides


def _are_pictures(path: Path | None) -> TypeGuard[Path]:
    """Return True for a folder of pictures, or annotations of some."""
    if path is None or data.find_kind(str(path)) != "picture":
        return False
    if path.is_file():
        return True
    return any(entry.suffix.lower() in SUFFIXES for entry in path.rglob("*"))


def _are_recordings(path: Path | None) -> TypeGuard[Path]:
    """Return True for a folder of recordings."""
    return path is not None and path.is_dir() and data.find_kind(str(path)) == "audio"


def _is_one_source(path: Path | None) -> TypeGuard[Path]:
    """Return True for raw samples that serve both roles: pictures, recordings, a file of texts."""
    if path is not None and path.is_file() and data.find_kind(str(path)) == "text":
        return True
    return _are_pictures(path) or _are_recordings(path)


def _draft_passes(target: Target) -> list[str]:
    """Draft a table for each pass of the target's chain: every option, as the target sets it."""
    lines: list[str] = []
    steps: dict[str, Mapping[str, object]] = {}
    for step in parse_chain(target.chain):
        # A chain may name a pass twice; the table shows the options of the first.
        steps.setdefault(step.name, step.options)
    for name, step_options in steps.items():
        entry = describe_pass(name)
        # The chain's options override the profile's table, as in a build.
        options = {**target.read_table(name), **step_options}
        # The header is active, so that an option that loses its "#" belongs to this table.
        lines += [f"# Options of {name}, as {target.name} sets them.", f"[{name}]"]
        for option in entry.options:
            default = options.get(option.name, option.default)
            # A number, a flag or a choice without a default has no neutral value to show.
            typed = option.type not in ("text", "table") and not option.type.startswith("list")
            if default == "" and (typed or option.values):
                lines += _wrap(f"{_describe_option(option)} Not set by default.")
                continue
            lines += _wrap(_describe_option(option))
            lines.append(f"# {option.name} = {_format_value(default, option.type)}")
        lines.append("")
    return lines[:-1]


def _describe_option(option: Option) -> str:
    """Return an option's summary and its values."""
    # "mode: values that become integers. One of static, dynamic, weights."
    text = f"{option.name}: {option.summary}"
    if option.choices and option.type != "true or false":
        text += f" One of {option.values}."
    return text


def _draft_gates(target: Target) -> list[str]:
    lines = [f"# Bounds of quality, as {target.name} sets them.", "[gates.quality]"]
    for gate, bound in target.quality.items():
        lines.append(f"# {gate} = {bound:g}")
    return lines


def _format_value(value: object, kind: str) -> str:
    """Format a default as TOML; an option whose default the pass chooses gets an empty value."""
    if isinstance(value, str) and value and kind in ("number", "whole number", "true or false"):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return json.dumps(list(value))
    if value == "" and kind.startswith("list"):
        return "[]"
    if value == "" and kind == "table":
        return "{}"
    return json.dumps(value, ensure_ascii=False)


def _wrap(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _quote(text: str) -> str:
    # A basic string of TOML has the escapes of JSON.
    return json.dumps(text, ensure_ascii=False)
