"""`edgepack.build`: the build of a bundle from Python, with values in place of files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from edgepack import files, request
from edgepack.api.bundle import Bundle, RejectedError, UnverifiedWarning
from edgepack.api.progress import choose_progress, warn_caller
from edgepack.data import PythonSamples
from edgepack.errors import HostError, SourceError
from edgepack.forecast import forecast
from edgepack.ledger import Progress
from edgepack.metrics.protocol import MetricSource
from edgepack.passes.training import processes
from edgepack.pipeline import build as run
from edgepack.pipeline import list_stages, refuse_exit
from edgepack.proof import RejectedBundleError
from edgepack.request import Flags, Samples
from edgepack.runtime.parity.verdict import UNVERIFIED
from edgepack.runtime.tensor import Tensor
from edgepack.source.huggingface import silence
from edgepack.source.live import LiveModel
from edgepack.spec import manifest as manifests
from edgepack.spec import target as targets
from edgepack.spec.suggestions import nearest
from edgepack.spec.tensors import Span, parse_axis, parse_inputs

if TYPE_CHECKING:
    from typing_extensions import Unpack

FilePath = str | Path


class BuildOptions(TypedDict, total=False):
    """Further options of `build`, named as those of the command line."""

    arch: str
    arch_args: Mapping[str, object]
    classes: FilePath
    force: bool
    gates: Sequence[str]
    pictures: str
    postprocess: str
    samples: str
    split: float
    split_seed: int
    weights: str
    strip_prefix: str
    axes: Mapping[str, object]
    random_calibration: bool
    allow_chance: bool
    max_drop: float
    optimize: str
    strict: bool
    trust_pickle: bool
    latency: str
    wheels: bool
    no_emulate: bool
    refresh: bool
    sign: FilePath


def build(
    model: object,
    target: FilePath = "cpu-fbgemm",
    *,
    calibration: object = None,
    evaluation: object = None,
    training: object = None,
    metric: MetricSource | Sequence[MetricSource] = (),
    chain: str | None = None,
    inputs: str | Tensor | Sequence[str | Tensor] = (),
    output: FilePath | None = None,
    name: str = "",
    manifest: FilePath | None = None,
    progress: bool | None = None,
    **options: Unpack[BuildOptions],
) -> Bundle:
    """Build a bundle from a trained model and verify it.

    Args:
        model: a torch module, an `onnx.ModelProto`, or the path of a model. A module is copied; its
            weights, its mode and its device stay as they are.
        target: name or file of a target profile.
        calibration: samples to measure activation ranges on: a DataLoader, a Dataset, arrays, a
            list, a function that yields samples, a path, or "file.py:function".
        evaluation: samples to judge quality on, in the same forms; labels are optional.
        training: samples to train `distill` on.
        metric: name of a task metric, "file.py:function" or a function; several in a list.
        chain: the passes to run instead of the target's; "none" for no pass.
        inputs: declared inputs, such as "image:float32:batch,3,224,224".
        output: path of the bundle; None for NAME-TARGET.edgepack in the current folder.
        name: of the model; "" for the manifest's, else that of its file or class.
        manifest: file with settings of the model.
        progress: True to show stages as they run, False for silence; None shows them in a notebook
            and on a terminal.
        options: see `BuildOptions`.

    Warns with UnverifiedWarning if the verdict is UNVERIFIED; any other warning of the build is a
    UserWarning. Raises RejectedError, a GateError, if a gate was missed, with the rejected bundle;
    another EdgepackError if the bundle could not be built.
    """
    _refuse_processes()
    settings = manifests.Manifest()
    if manifest is not None:
        settings = manifests.load(Path(manifest))
    if name:
        settings = replace(settings, name=name)
    with _open_model(model, name or settings.name) as (source, trusted):
        flags = _make_flags(options, {
            "calibration": _read_samples(calibration, "calibration"),
            "evaluation": _read_samples(evaluation, "evaluation"),
            "training": _read_samples(training, "training"),
            "metrics": _read_metrics(metric),
            "chain": chain,
            "inputs": _read_inputs(inputs),
            "output": None if output is None else Path(output),
            # The verdict is the caller's to read; it decides no exit code.
            "allow_unverified": True,
        })  # fmt: skip
        if trusted:
            flags = replace(flags, trust_pickle=True)
        resolved = request.resolve(source, targets.load(str(target)), settings, flags)
        stages = list_stages(resolved)
        display = choose_progress(progress, stages, forecast(resolved, stages))
        return _run(resolved, display)


def _run(resolved: request.Request, display: Progress) -> Bundle:
    try:
        with refuse_exit():
            outcome = run(resolved, display)
    except RejectedBundleError as error:
        rejected = Bundle(error.outcome.path, error.outcome.report)
        # The cause is the same error without the bundle: it would only be printed twice.
        raise RejectedError(error, rejected) from None
    except OSError as error:
        raise files.convert_os_error(error) from error
    if outcome is None:
        raise _make_process_error()
    result = Bundle(outcome.path, outcome.report)
    if result.verdict == UNVERIFIED:
        reasons = "; ".join(reason["text"] for reason in outcome.report["reasons"])
        warn_caller(f"{outcome.path} is UNVERIFIED: {reasons}", UnverifiedWarning)
    return result


def _make_flags(options: BuildOptions, values: Mapping[str, object]) -> Flags:
    """Return the flags of a build; an option that is left out has the command line's default."""
    names = [field.name for field in fields(Flags)]
    for option in options:
        if option not in names or option in values:
            near = nearest(option, [*names, *signature(build).parameters])
            suggestion = f"; did you mean {near}?" if near else ""
            raise TypeError(f"build() has no option {option!r}{suggestion}")
    keywords = {**values, **options}
    if "axes" in keywords:
        axes = cast("Mapping[str, object]", keywords["axes"])
        keywords["axes"] = dict(_read_axis(axis, sizes) for axis, sizes in axes.items())
    for option in ("sign", "classes"):
        if isinstance(keywords.get(option), str):
            keywords[option] = Path(str(keywords[option]))
    if "gates" in keywords:
        keywords["gates"] = tuple(cast("Sequence[str]", keywords["gates"]))
    return Flags(**cast("dict[str, Any]", keywords))


def _read_axis(name: str, sizes: object) -> tuple[str, Span]:
    # axes={"batch": (1, 8, 32)} is --axis batch=1:8:32, and {"sequence": 128} --axis sequence=128.
    if isinstance(sizes, Span):
        return name, sizes
    if isinstance(sizes, (tuple, list)):
        return parse_axis(f"{name}={':'.join(map(str, sizes))}")
    return parse_axis(f"{name}={sizes}")


def _read_inputs(inputs: str | Tensor | Sequence[str | Tensor]) -> tuple[Tensor, ...]:
    if isinstance(inputs, (str, Tensor)):
        inputs = (inputs,)
    return parse_inputs(tuple(map(str, inputs)))


def _read_metrics(metric: MetricSource | Sequence[MetricSource]) -> tuple[MetricSource, ...]:
    if isinstance(metric, (list, tuple)):
        return tuple(metric)
    return (cast("MetricSource", metric),) if metric else ()


def _read_samples(value: object, role: str) -> Samples:
    if value is None:
        return ""
    if isinstance(value, (str, Path)):
        return str(value)
    return PythonSamples.of(value, role)


@contextmanager
def _open_model(model: object, name: str) -> Iterator[tuple[Path | LiveModel, bool]]:
    """Provide a model as the build takes it; values that have a format of a file are saved.

    Yields the path or the module, and True for code in memory, which the caller runs anyway.
    """
    kind = type(model)
    if isinstance(model, (str, Path)):
        yield Path(model), False
        return
    name = name or kind.__name__
    with files.temporary_folder() as folder:
        # Formats are told apart by the names of classes, so that none of the packages is imported.
        if kind.__module__.startswith("onnx") and kind.__name__ == "ModelProto":
            yield _save_onnx(model, folder / f"{name}.onnx"), False
        elif _is_a(model, "transformers", "PreTrainedModel"):
            yield _save_pretrained(model, folder / name), False
        elif _is_a(model, "torch", "ScriptModule"):
            _call(model, "save", str(folder / f"{name}.pt"))
            yield folder / f"{name}.pt", True
        elif _is_a(model, "torch", "Module"):
            yield LiveModel(cast("Any", model), name), False
        else:
            raise SourceError(
                "source-live",
                "the model is neither a module nor a path",
                why=f"it is a {kind.__module__}.{kind.__qualname__}",
                hint="pass a torch.nn.Module, an onnx.ModelProto, or the path of a model",
            )


def _is_a(value: object, package: str, name: str) -> bool:
    """Return True for an instance of a class of a package, without importing it."""
    # BertModel is a PreTrainedModel of transformers, and a Module of torch: bases count as well.
    for base in type(value).__mro__:
        if base.__name__ == name and base.__module__.partition(".")[0] == package:
            return True
    return False


def _call(value: object, method: str, *arguments: object, **keywords: object) -> object:
    return getattr(value, method)(*arguments, **keywords)


def _save_onnx(model: object, path: Path) -> Path:
    import onnx

    onnx.save_model(cast("Any", model), str(path))
    return path


def _save_pretrained(model: Any, folder: Path) -> Path:
    """Save a network of transformers as a folder, and leave its configuration as it was."""
    # save_pretrained writes the type of the weights and the name of the class into it.
    original = model.config
    model.config = copy.deepcopy(original)
    try:
        with silence():
            model.save_pretrained(folder)
    finally:
        model.config = original
    return folder


def _refuse_processes() -> None:
    if not processes.is_main():
        raise _make_process_error()


def _make_process_error() -> HostError:
    return HostError(
        "build-processes",
        "a build from Python trains in one process",
        why="this is one of several processes of a training",
        hint="accelerate launch -m edgepack build MODEL ... trains on several",
    )
