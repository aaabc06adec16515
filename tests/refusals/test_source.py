"""Models that cannot be taken: each its code, and nothing in them runs.

A case is a function that writes a file or a folder and says how it is loaded. Hostile ones carry
a command that creates a marker; no case may create it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch.export.pt2_archive._package import PT2ArchiveWriter

import edgepack.source
from edgepack.errors import EdgepackError
from edgepack.runtime.tensor import Tensor
from edgepack.source import bind, load

MARKER = "marker-of-code-that-ran"

Options = dict[str, Any]
Case = Callable[[Path], "tuple[Path, Options]"]
CASES: list[tuple[str, Case]] = []


def case(code: str) -> Callable[[Case], Case]:
    """Register a bad model under the code of its error."""

    def register(function: Case) -> Case:
        CASES.append((code, function))
        return function

    return register


def marked() -> str:
    """A shell command that shows that code ran."""
    return f"touch {Path(MARKER).absolute()}"


class Hostile:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (marked(),)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in an empty folder, in which the marker must not appear."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(MARKER).exists(), "code from the file was run"


def state(path: Path, name: str = "m.pt", **changes: Any) -> Path:
    """A good state dict of a Linear(4, 3), with changes; None takes a tensor away."""
    tensors = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3), **changes}
    torch.save({k: v for k, v in tensors.items() if v is not None}, path / name)
    return path / name


LINEAR: Options = {"arch": "torch.nn:Linear", "arch_args": {"in_features": 4, "out_features": 3}}


def factory(path: Path, body: str) -> Options:
    """Options with a factory of this body."""
    (path / "arch.py").write_text(f"import torch\ndef build(**kw):\n    {body}\n")
    return {"arch": "arch.py:build"}


# What a path can be.


@case("source-missing")
def missing(path: Path) -> tuple[Path, Options]:
    state(path, "model.pt")
    return path / "modle.pt", {}


@case("source-missing")
def dangling(path: Path) -> tuple[Path, Options]:
    (path / "m.pt").symlink_to("nowhere")
    return path / "m.pt", {}


@case("source-empty")
def empty(path: Path) -> tuple[Path, Options]:
    (path / "m.pt").touch()
    return path / "m.pt", {}


@case("source-folder")
def folder_without_config(path: Path) -> tuple[Path, Options]:
    (path / "weights.bin").write_bytes(b"x")
    return path, {}


@case("source-folder")
def saved_model(path: Path) -> tuple[Path, Options]:
    (path / "saved_model.pb").write_bytes(b"x")
    return path, {}


@case("source-unknown")
def text(path: Path) -> tuple[Path, Options]:
    (path / "m.onnx").write_text("a text that ends in .onnx")
    return path / "m.onnx", {}


@case("source-unknown")
def web_page(path: Path) -> tuple[Path, Options]:
    (path / "m.pt").write_text("<!doctype html><title>404</title>")
    return path / "m.pt", {}


@case("source-unknown")
def tflite(path: Path) -> tuple[Path, Options]:
    (path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    return path / "m.tflite", {}


@case("source-unknown")
def arrays(path: Path) -> tuple[Path, Options]:
    np.savez(path / "m.npz", a=np.zeros(3))
    return path / "m.npz", {}


@case("source-unknown")
def program_of_old_torch(path: Path) -> tuple[Path, Options]:
    with zipfile.ZipFile(path / "m.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    return path / "m.pt2", {}


@case("source-unknown")
def fifo(path: Path) -> tuple[Path, Options]:
    os.mkfifo(path / "m.pt")
    return path / "m.pt", {}


# Damaged files.


def cut(file: Path, keep: float = 0.6) -> Path:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    return file


@case("source-truncated")
def cut_checkpoint(path: Path) -> tuple[Path, Options]:
    return cut(state(path)), LINEAR


@case("source-truncated")
def cut_safetensors(path: Path) -> tuple[Path, Options]:
    save_file({"weight": torch.zeros(300, 4)}, path / "m.safetensors")
    return cut(path / "m.safetensors"), LINEAR


@case("source-truncated")
def cut_onnx(path: Path) -> tuple[Path, Options]:
    onnx.save(onnx_model(), path / "m.onnx")
    return cut(path / "m.onnx"), {}


@case("source-corrupt")
def cut_legacy_checkpoint(path: Path) -> tuple[Path, Options]:
    torch.save(torch.zeros(1000), path / "m.pt", _use_new_zipfile_serialization=False)
    return cut(path / "m.pt"), LINEAR


@case("source-corrupt")
def safetensors_header(path: Path) -> tuple[Path, Options]:
    header = b'{"weight": {"dtype": "F32"}}'
    (path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return path / "m.safetensors", LINEAR


@case("source-corrupt")
def safetensors_overlap(path: Path) -> tuple[Path, Options]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"weight": entry, "bias": entry}).encode()
    (path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return path / "m.safetensors", LINEAR


# Files that hold code.


@case("source-pickle")
def plain_pickle(path: Path) -> tuple[Path, Options]:
    (path / "m.pt").write_bytes(pickle.dumps(Hostile()))
    return path / "m.pt", LINEAR


@case("source-pickled-module")
def hostile_checkpoint(path: Path) -> tuple[Path, Options]:
    torch.save({"weight": torch.zeros(3, 4), "bias": Hostile()}, path / "m.pt")
    return path / "m.pt", LINEAR


@case("source-pickled-module")
def hostile_legacy_checkpoint(path: Path) -> tuple[Path, Options]:
    torch.save(Hostile(), path / "m.pt", _use_new_zipfile_serialization=False)
    return path / "m.pt", LINEAR


@case("source-pickled-module")
def whole_module(path: Path) -> tuple[Path, Options]:
    torch.save(torch.nn.Linear(4, 3), path / "m.pt")
    return path / "m.pt", {}


@case("source-pickle-failed")
def trusted_without_its_class(path: Path) -> tuple[Path, Options]:
    torch.save(torch.nn.Linear(4, 3), path / "m.pt")
    with zipfile.ZipFile(path / "m.pt") as old, zipfile.ZipFile(path / "n.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry).replace(b"nn.modules.linear", b"nn.modules.liNear"))
    return path / "n.pt", {"trust_pickle": True}


@case("source-torchscript")
def torchscript(path: Path) -> tuple[Path, Options]:
    torch.jit.script(torch.nn.Linear(4, 3)).save(str(path / "m.pt"))
    return path / "m.pt", {}


@case("source-archive-unsafe")
def two_entries_of_one_name(path: Path) -> tuple[Path, Options]:
    file = state(path)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    return file, LINEAR


@case("source-archive-unsafe")
def entry_that_leaves(path: Path) -> tuple[Path, Options]:
    with zipfile.ZipFile(path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"")
        archive.writestr("m/../../evil", b"")
    return path / "m.pt", LINEAR


@case("source-archive-unsafe")
def local_header_that_lies(path: Path) -> tuple[Path, Options]:
    with zipfile.ZipFile(path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"")
    data = bytearray((path / "m.pt").read_bytes())
    data[data.index(b"m/data.pkl") + 2 : data.index(b"m/data.pkl") + 6] = b"evil"
    (path / "m.pt").write_bytes(data)
    return path / "m.pt", LINEAR


# A state dict and its factory.


@case("source-arch-required")
def no_arch(path: Path) -> tuple[Path, Options]:
    return state(path), {}


@case("source-arch-form")
def arch_without_a_colon(path: Path) -> tuple[Path, Options]:
    return state(path), {"arch": "torch.nn.Linear"}


@case("source-arch-import")
def arch_of_no_module(path: Path) -> tuple[Path, Options]:
    return state(path), {"arch": "no_such_module:build"}


@case("source-arch-import")
def arch_of_no_file(path: Path) -> tuple[Path, Options]:
    return state(path), {"arch": "no/such/file.py:build"}


@case("source-arch-import")
def arch_with_a_syntax_error(path: Path) -> tuple[Path, Options]:
    (path / "arch.py").write_text("def build(:\n")
    return state(path), {"arch": "arch.py:build"}


@case("source-arch-missing")
def arch_misspelt(path: Path) -> tuple[Path, Options]:
    return state(path), {"arch": "torch.nn:Liner"}


@case("source-arch-unneeded")
def arch_for_onnx(path: Path) -> tuple[Path, Options]:
    onnx.save(onnx_model(), path / "m.onnx")
    return path / "m.onnx", LINEAR


@case("source-arch-unneeded")
def arch_for_a_whole_module(path: Path) -> tuple[Path, Options]:
    torch.save(torch.nn.Linear(4, 3), path / "m.pt")
    return path / "m.pt", {**LINEAR, "trust_pickle": True}


@case("source-factory-arguments")
def argument_misspelt(path: Path) -> tuple[Path, Options]:
    return state(path), {"arch": "torch.nn:Linear", "arch_args": {"in_feature": 4}}


@case("source-factory-failed")
def factory_raises(path: Path) -> tuple[Path, Options]:
    return state(path), factory(path, "raise KeyError('width')")


@case("source-factory-result")
def factory_gives_a_tuple(path: Path) -> tuple[Path, Options]:
    return state(path), factory(path, "return torch.nn.Linear(4, 3), 1")


@case("source-no-weights")
def only_an_optimizer(path: Path) -> tuple[Path, Options]:
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, path / "m.pt")
    return path / "m.pt", LINEAR


def layers(*prefixes: str) -> dict[str, torch.Tensor]:
    """The weights of a Linear(4, 3) behind each prefix."""
    state: dict[str, torch.Tensor] = {}
    for prefix in prefixes:
        state |= {f"{prefix}weight": torch.zeros(3, 4), f"{prefix}bias": torch.zeros(3)}
    return state


@case("source-weights-key")
def weights_under_no_such_key(path: Path) -> tuple[Path, Options]:
    torch.save({"state_dict": layers("")}, path / "m.pt")
    return path / "m.pt", {**LINEAR, "weights": "state_dct"}


@case("source-weights-ambiguous")
def two_keys_of_the_same_rank(path: Path) -> tuple[Path, Options]:
    torch.save({"student": layers(""), "teacher": layers("")}, path / "m.pt")
    return path / "m.pt", LINEAR


@case("source-weights-ambiguous")
def two_prefixes_that_fit(path: Path) -> tuple[Path, Options]:
    torch.save(layers("model.", "teacher."), path / "m.pt")
    return path / "m.pt", LINEAR


@case("source-weights-mismatch")
def prefix_that_is_not_common(path: Path) -> tuple[Path, Options]:
    torch.save(layers("backbone."), path / "m.pt")
    return path / "m.pt", LINEAR


@case("source-strip-prefix")
def prefix_that_no_name_has(path: Path) -> tuple[Path, Options]:
    torch.save(layers("backbone."), path / "m.pt")
    return path / "m.pt", {**LINEAR, "strip_prefix": "bakbone."}


@case("source-weights-unneeded")
def weights_of_an_onnx_file(path: Path) -> tuple[Path, Options]:
    onnx.save(onnx_model(), path / "m.onnx")
    return path / "m.onnx", {"weights": "ema"}


@case("source-weights-unneeded")
def prefix_of_a_whole_module(path: Path) -> tuple[Path, Options]:
    torch.save(torch.nn.Linear(4, 3), path / "m.pt")
    return path / "m.pt", {"trust_pickle": True, "strip_prefix": "module."}


@case("source-weights-nonfinite")
def tensor_that_overflows_in_float32(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.full((3, 4), 1e300, dtype=torch.float64)), LINEAR


@case("source-hf-missing-weights")
def index_of_a_shard_elsewhere(path: Path) -> tuple[Path, Options]:
    state(path.parent, "outside.pt")
    (path / "m.index.json").write_text(json.dumps({"weight_map": {"weight": "../outside.pt"}}))
    return path / "m.index.json", LINEAR


@case("source-corrupt")
def index_that_names_no_file(path: Path) -> tuple[Path, Options]:
    (path / "m.index.json").write_text(json.dumps({"weight_map": {}}))
    return path / "m.index.json", LINEAR


@case("source-weights-mismatch")
def tensor_missing(path: Path) -> tuple[Path, Options]:
    return state(path, bias=None), LINEAR


@case("source-weights-mismatch")
def tensor_too_many(path: Path) -> tuple[Path, Options]:
    return state(path, extra=torch.zeros(1)), LINEAR


@case("source-weights-mismatch")
def tensor_of_another_shape(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.zeros(4, 3)), LINEAR


@case("source-weights-dtype")
def tensor_of_integers(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.zeros(3, 4, dtype=torch.int8)), LINEAR


@case("source-weights-dtype")
def tensor_that_is_sparse(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.zeros(3, 4).to_sparse()), LINEAR


@case("source-weights-dtype")
def tensor_without_values(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.zeros(3, 4, device="meta")), LINEAR


@case("source-weights-dtype")
def tensor_that_is_nested(path: Path) -> tuple[Path, Options]:
    rows = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    return state(path, weight=rows), LINEAR


@case("source-weights-dtype")
def tensor_of_eight_bits(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.zeros(3, 4).to(torch.float8_e4m3fn)), LINEAR


@case("source-weights-mismatch")
def names_that_are_numbers(path: Path) -> tuple[Path, Options]:
    torch.save({1: torch.zeros(3, 4), 2: torch.zeros(3)}, path / "m.pt")
    return path / "m.pt", LINEAR


@case("source-weights-nonfinite")
def tensor_with_nan(path: Path) -> tuple[Path, Options]:
    return state(path, weight=torch.full((3, 4), float("nan"))), LINEAR


@case("source-weights-unsaved")
def tensor_drawn_at_random(path: Path) -> tuple[Path, Options]:
    body = "net = torch.nn.Linear(4, 3); net.noise = torch.randn(3); return net"
    return state(path), factory(path, body)


# torch.export programs.


def program(path: Path, net: torch.nn.Module | None = None, *inputs: Any) -> Path:
    """A good program with a free batch axis, or one of `net`."""
    if net is None:
        shapes: Any = ({0: torch.export.Dim("batch")},)
        made = torch.export.export(
            torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=shapes
        )
    else:
        made = torch.export.export(net.eval(), inputs)
    torch.export.save(made, path / "good.pt2")
    return path / "good.pt2"


def rewritten(
    path: Path,
    change: Callable[[Any], Any] = lambda content: content,
    *,
    entry: str = "models/model.json",
    add: dict[str, bytes] | None = None,
    drop: str = "",
) -> tuple[Path, Options]:
    """A program with one JSON entry changed, entries added or one dropped."""
    with zipfile.ZipFile(program(path)) as old, PT2ArchiveWriter(str(path / "m.pt2")) as new:
        contents = {name.split("/", 1)[1]: old.read(name) for name in old.namelist()}
        content = json.loads(contents[entry])
        contents[entry] = json.dumps(change(content) or content).encode()
        for name, data in {**contents, **(add or {})}.items():
            if not name.startswith((".data", "byteorder")) and name != drop:
                new.write_bytes(name, data)
    return path / "m.pt2", {}


def pickled(value: Any) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_hostile_sample_inputs_are_never_unpickled(tmp_path: Path) -> None:
    samples = pickled(((Hostile(),), {}))
    file, options = rewritten(tmp_path, add={"data/sample_inputs/model.pt": samples})
    source = load(file, **options)
    assert source.run({"input": np.zeros((3, 4), np.float32)})[0].shape == (3, 3)
    assert not Path(MARKER).exists()
    logging.disable()  # torch's own warning of this has a broken format
    try:
        torch.export.load(file)
    finally:
        logging.disable(logging.NOTSET)
    assert Path(MARKER).exists(), "torch does run it: this test would show nothing otherwise"
    Path(MARKER).unlink()


def test_hostile_guards_are_never_run(tmp_path: Path) -> None:
    def change(content: Any) -> None:
        content["guards_code"] = [f"__import__('os').system({marked()!r}) == 0"]

    file, options = rewritten(tmp_path, change)
    x = np.zeros((3, 4), np.float32)
    assert load(file, **options).run({"input": x})[0].shape == (3, 3)
    assert not Path(MARKER).exists()
    torch.export.load(file).module()(torch.from_numpy(x))
    assert Path(MARKER).exists(), "torch does run it: this test would show nothing otherwise"
    Path(MARKER).unlink()


@case("source-exported-unsafe")
def code_in_a_size(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        values = content["graph_module"]["graph"]["tensor_values"]
        size = values["input"]["sizes"][0]["as_expr"]
        size["expr_str"] = f"__import__('os').system({marked()!r})"

    return rewritten(path, change)


@case("source-exported-unsafe")
def code_in_a_string_in_a_size(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        values = content["graph_module"]["graph"]["tensor_values"]
        size = values["input"]["sizes"][0]["as_expr"]
        size["expr_str"] = f'Max(\'__import__("os").system("{marked()}")\', 2)'

    return rewritten(path, change)


@case("source-exported-unsafe")
def code_in_a_name(path: Path) -> tuple[Path, Options]:
    name = f"input=__import__('os').system({marked()!r})"

    def change(content: Any) -> Any:
        text = json.dumps(content).replace('"name": "input"', f'"name": {json.dumps(name)}')
        return json.loads(text.replace('"input": {"dtype"', f'{json.dumps(name)}: {{"dtype"'))

    return rewritten(path, change)


@case("source-exported-unsafe")
def pickled_weight(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        content["config"]["weight"]["use_pickle"] = True

    entry = "data/weights/model_weights_config.json"
    return rewritten(path, change, entry=entry, add={"data/weights/weight_0": pickled(Hostile())})


@case("source-exported-unsafe")
def legacy_weights(path: Path) -> tuple[Path, Options]:
    return rewritten(path, add={"data/weights/model.pt": pickled(Hostile())})


@case("source-exported-operator")
def operator_of_the_system(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        node = content["graph_module"]["graph"]["nodes"][0]
        node["target"] = "torch.os.system"
        node["inputs"] = [{"name": "", "arg": {"as_string": marked()}, "kind": 1}]

    return rewritten(path, change)


@case("source-exported-operator")
def operator_that_maps_a_file(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        content["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    return rewritten(path, change)


@case("source-exported-compiled")
def compiled(path: Path) -> tuple[Path, Options]:
    return rewritten(path, add={"data/aotinductor/model/model.so": b"\x7fELF"})


@case("source-exported-objects")
def custom_object(path: Path) -> tuple[Path, Options]:
    return rewritten(path, add={"data/constants/custom_obj_0": pickle.dumps(Hostile())})


@case("source-exported-several")
def two_programs(path: Path) -> tuple[Path, Options]:
    return rewritten(path, add={"models/other.json": b"{}"})


@case("source-exported-version")
def program_of_another_schema(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        content["schema_version"]["major"] = 99

    return rewritten(path, change)


@case("source-corrupt")
def program_without_weights(path: Path) -> tuple[Path, Options]:
    return rewritten(path, drop="data/weights/weight_0")


@case("source-corrupt")
def program_nested_deeply(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        for _ in range(300):
            content["graph_module"]["metadata"] = {"x": content["graph_module"]["metadata"]}

    return rewritten(path, change)


@case("source-output-unsupported")
def program_that_names_a_module_to_import(path: Path) -> tuple[Path, Options]:
    def change(content: Any) -> None:
        signature = content["graph_module"]["module_call_graph"][0]["signature"]
        context = {"default_factory_module": "antigravity", "default_factory_name": "fly",
                   "dict_context": ["y"]}  # fmt: skip
        leaf = {"type": None, "context": None, "children_spec": []}
        tree = {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}
        signature["out_spec"] = json.dumps([1, tree])

    return rewritten(path, change)


@case("source-stateful")
def program_with_state(path: Path) -> tuple[Path, Options]:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x * self.count

    return program(path, Counter(), torch.zeros(2)), {}


@case("source-exported-inputs")
def program_with_a_number_as_input(path: Path) -> tuple[Path, Options]:
    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor, factor: int) -> torch.Tensor:
            return x * factor

    return program(path, Scale(), torch.zeros(2), 3), {}


@case("source-weights-nonfinite")
def program_with_nan(path: Path) -> tuple[Path, Options]:
    net = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(net.bias, float("inf"))
    return program(path, net, torch.zeros(2, 4)), {}


# ONNX.


def onnx_model(*nodes: Any, weight: np.ndarray | None = None, domain: str = "") -> onnx.ModelProto:
    """A good x @ w, or one with other nodes or weights."""
    w = np.ones((4, 3), np.float32) if weight is None else weight
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(w, "w")],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def external(path: Path, **entries: str) -> tuple[Path, Options]:
    """A model whose weight lies in w.bin, or where `entries` say."""
    proto = onnx_model()
    if not (path / "w.bin").exists():
        (path / "w.bin").write_bytes(np.ones((4, 3), np.float32).tobytes())
    point_outside(proto.graph.initializer[0], **entries)
    (path / "m.onnx").write_bytes(proto.SerializeToString())
    return path / "m.onnx", {}


def point_outside(tensor: Any, **entries: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)


def test_external_data_in_its_right_place_is_taken(tmp_path: Path) -> None:
    file, _ = external(tmp_path)
    assert load(file).run({"x": np.ones((2, 4), np.float32)})[0].tolist() == [[4.0] * 3] * 2


@case("source-corrupt")
def onnx_broken_inside(path: Path) -> tuple[Path, Options]:
    # ir_version, a graph whose bytes are no message, and an opset.
    (path / "m.onnx").write_bytes(b"\x08\x08\x3a\x04\xff\xff\xff\xff\x42\x02\x10\x11")
    return path / "m.onnx", {}


@case("source-onnx-invalid")
def onnx_with_a_name_from_nowhere(path: Path) -> tuple[Path, Options]:
    onnx.save(onnx_model(helper.make_node("MatMul", ["x", "nowhere"], ["y"])), path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-custom-operator")
def onnx_custom(path: Path) -> tuple[Path, Options]:
    node = helper.make_node("Fancy", ["x", "w"], ["y"], domain="my.ops")
    onnx.save(onnx_model(node, domain="my.ops"), path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-random")
def onnx_with_dropout_in_training_mode(path: Path) -> tuple[Path, Options]:
    model = onnx_model(helper.make_node("Dropout", ["x", "ratio", "training"], ["y"]))
    for name, value in (("ratio", np.float32(0.5)), ("training", np.bool_(True))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.save(model, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-unsupported")
def onnx_unknown_operator(path: Path) -> tuple[Path, Options]:
    node = helper.make_node("NoSuchOp", ["x", "w"], ["y"], domain="com.microsoft")
    onnx.save(onnx_model(node, domain="com.microsoft"), path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-inputs")
def onnx_sequence_input(path: Path) -> tuple[Path, Options]:
    proto = onnx_model(helper.make_node("SequenceAt", ["s", "i"], ["y"]))
    proto.graph.input.append(
        helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["N", 3])
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0), "i"))
    onnx.save(proto, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-inputs")
def onnx_string_input(path: Path) -> tuple[Path, Options]:
    proto = onnx_model(helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT))
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("s", TensorProto.STRING, ["N", 3]))
    onnx.save(proto, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-inputs")
def onnx_without_inputs(path: Path) -> tuple[Path, Options]:
    proto = onnx_model(helper.make_node("Identity", ["w"], ["y"]))
    del proto.graph.input[:]
    onnx.save(proto, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-outputs")
def onnx_with_an_output_twice(path: Path) -> tuple[Path, Options]:
    proto = onnx_model()
    proto.graph.output.append(proto.graph.output[0])
    onnx.save(proto, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-outputs")
def onnx_without_outputs(path: Path) -> tuple[Path, Options]:
    proto = onnx_model()
    del proto.graph.output[:]
    onnx.save(proto, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-output-unsupported")
def onnx_string_output(path: Path) -> tuple[Path, Options]:
    proto = onnx_model(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.STRING, ["N", 4]))
    onnx.save(proto, path / "m.onnx")
    return path / "m.onnx", {}


@case("source-weights-nonfinite")
def onnx_with_infinity(path: Path) -> tuple[Path, Options]:
    onnx.save(onnx_model(weight=np.full((4, 3), np.inf, np.float32)), path / "m.onnx")
    return path / "m.onnx", {}


@case("source-external-missing")
def external_missing(path: Path) -> tuple[Path, Options]:
    return external(path, location="gone.bin")


@case("source-external-path")
def external_above(path: Path) -> tuple[Path, Options]:
    return external(path, location="../w.bin")


@case("source-external-path")
def external_absolute(path: Path) -> tuple[Path, Options]:
    return external(path, location="/etc/passwd")


@case("source-external-path")
def external_symbolic_link(path: Path) -> tuple[Path, Options]:
    (path / "link.bin").symlink_to("/etc/passwd")
    return external(path, location="link.bin")


@case("source-external-path")
def external_hard_link(path: Path) -> tuple[Path, Options]:
    (path / "secret").write_bytes(bytes(48))
    (path / "link.bin").hardlink_to(path / "secret")
    return external(path, location="link.bin")


@case("source-external-path")
def external_pipe(path: Path) -> tuple[Path, Options]:
    os.mkfifo(path / "pipe")
    return external(path, location="pipe")


@case("source-external-range")
def external_beyond_the_end(path: Path) -> tuple[Path, Options]:
    return external(path, offset="16")


@case("source-external-range")
def external_of_another_length(path: Path) -> tuple[Path, Options]:
    return external(path, length="8")


@case("source-external-path")
def external_in_an_attribute(path: Path) -> tuple[Path, Options]:
    value = numpy_helper.from_array(np.ones((4, 3), np.float32), "c")
    point_outside(value, location="../w.bin")
    constant = helper.make_node("Constant", [], ["c"], value=value)
    proto = onnx_model(constant, helper.make_node("MatMul", ["x", "c"], ["y"]))
    (path / "m.onnx").write_bytes(proto.SerializeToString())
    return path / "m.onnx", {}


@case("source-external-path")
def external_in_a_sparse_tensor(path: Path) -> tuple[Path, Options]:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    point_outside(values, location="../w.bin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    proto = onnx_model()
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    (path / "m.onnx").write_bytes(proto.SerializeToString())
    return path / "m.onnx", {}


@case("source-external-path")
def external_in_a_subgraph(path: Path) -> tuple[Path, Options]:
    value = numpy_helper.from_array(np.ones((4, 3), np.float32), "c")
    point_outside(value, location="../w.bin")
    constant = helper.make_node("Constant", [], ["c"], value=value)
    shape = helper.make_tensor_value_info("c", TensorProto.FLOAT, [4, 3])
    branch = helper.make_graph([constant], "branch", [], [shape])
    node = helper.make_node("If", ["on"], ["b"], then_branch=branch, else_branch=branch)
    proto = onnx_model(node, helper.make_node("MatMul", ["x", "b"], ["y"]))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))
    (path / "m.onnx").write_bytes(proto.SerializeToString())
    return path / "m.onnx", {}


# Hugging Face folders.

BERT = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
        "intermediate_size": 8, "max_position_embeddings": 16}  # fmt: skip


def hugging_face(path: Path, **changes: Any) -> tuple[Path, Options]:
    """A folder with a small BERT, and changes to its configuration."""
    import transformers

    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(path / "hf")
    config = json.loads((path / "hf/config.json").read_text())
    (path / "hf/config.json").write_text(json.dumps({**config, **changes}))
    return path / "hf", {}


@case("source-corrupt")
def config_broken(path: Path) -> tuple[Path, Options]:
    (path / "config.json").write_text("{")
    return path, {}


@case("source-hf-code")
def remote_code(path: Path) -> tuple[Path, Options]:
    (path / "hf").mkdir()
    (path / "hf/modeling.py").write_text(f"import os\nos.system({marked()!r})\n")
    return hugging_face(path, auto_map={"AutoModel": "modeling.Evil"})


@case("source-hf-code")
def kernel_from_the_hub(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, _attn_implementation="someone/kernel")


@case("source-hf-code")
def remote_code_inside(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, text_config={"trust_remote_code": True})


@case("source-hf-pickle")
def pickle_only(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(Hostile()))
    return folder, options


@case("source-hf-pickle")
def pickle_named_safetensors(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    (folder / "model.safetensors").write_bytes(pickled(Hostile()))
    return folder, options


@case("source-hf-missing-weights")
def weights_missing(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    (folder / "model.safetensors").unlink()
    return folder, options


@case("source-hf-missing-weights")
def shard_above(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    (folder / "model.safetensors").rename(path / "w.safetensors")
    index = {"weight_map": {"x": "../w.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder, options


@case("source-hf-quantized")
def quantized_already(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, quantization_config={"quant_method": "gptq", "bits": 4})


@case("source-hf-adapter")
def adapter(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    (folder / "adapter_config.json").write_text("{}")
    return folder, options


@case("source-hf-architecture")
def architecture_unknown(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, architectures=["BertForEverything"])


@case("source-hf-architecture")
def architecture_of_another_type(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, architectures=["GPT2Model"])


@case("source-hf-unsupported")
def encoder_and_decoder(path: Path) -> tuple[Path, Options]:
    import transformers

    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(path / "hf")
    return path / "hf", {}


@case("source-hf-inputs")
def two_towers(path: Path) -> tuple[Path, Options]:
    import transformers

    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": 20},
        vision_config={**tower, "image_size": 8, "patch_size": 4},
        projection_dim=4,
    )
    transformers.CLIPModel(config).save_pretrained(path / "hf")
    return path / "hf", {}


@case("source-weights-mismatch")
def head_that_was_not_trained(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, architectures=["BertForSequenceClassification"])


@case("source-hf-oversized")
def a_million_layers(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, num_hidden_layers=10**6)


@case("source-hf-oversized")
def a_million_layers_in_a_list(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, vision_config={"depths": [2, 10**6]})


@case("source-hf-oversized")
def more_modules_than_the_weights_can_fill(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, num_hidden_layers=9_000)


@case("source-hf-oversized")
def a_table_of_a_trillion_positions(path: Path) -> tuple[Path, Options]:
    return hugging_face(path, max_position_embeddings=10**12)


@case("source-hf-oversized")
def a_configuration_without_an_end(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    with (folder / "generation_config.json").open("wb") as file:
        file.truncate(1 << 40)
    return folder, options


@case("source-not-plain")
def a_configuration_that_is_a_device(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    return folder, options


@case("source-not-plain")
def a_pipe_that_transformers_would_read(path: Path) -> tuple[Path, Options]:
    folder, options = hugging_face(path)
    os.mkfifo(folder / "generation_config.json")
    return folder, options


@case("source-archive-unsafe")
def a_checkpoint_that_is_compressed(path: Path) -> tuple[Path, Options]:
    """A thousandth of what it takes in memory."""
    file = state(path, weight=torch.zeros(1 << 20))
    entries = zipfile.ZipFile(file)
    with zipfile.ZipFile(path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in entries.namelist():
            archive.writestr(name, entries.read(name))
    return path / "packed.pt", LINEAR


@case("source-too-many-tensors")
def a_network_of_ten_thousand_tensors(path: Path) -> tuple[Path, Options]:
    names = [f"{i}.{name}" for i in range(5001) for name in ("weight", "bias")]
    shapes = {"weight": (1, 1), "bias": (1,)}
    torch.save({n: torch.zeros(shapes[n.rpartition(".")[2]]) for n in names}, path / "m.pt")
    layers = "(torch.nn.Linear(1, 1) for _ in range(5001))"
    return path / "m.pt", factory(path, f"return torch.nn.Sequential(*{layers})")


@case("source-onnx-unfolds")
def functions_that_double(path: Path) -> tuple[Path, Options]:
    onnx.save(doubling(27), path / "m.onnx")
    return path / "m.onnx", {}


@case("source-onnx-unfolds")
def a_function_that_calls_itself(path: Path) -> tuple[Path, Options]:
    model = doubling(2)
    model.functions[0].node[0].domain, model.functions[0].node[0].op_type = "d", "L1"
    del model.functions[0].node[0].input[1]
    onnx.save(model, path / "m.onnx")
    return path / "m.onnx", {}


def doubling(count: int) -> onnx.ModelProto:
    """Functions L0, L1, ..., each of which calls the one before it twice."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    functions = [
        helper.make_function("d", "L0", ["a"], ["b"],
                             [helper.make_node("Add", ["a", "a"], ["b"])], opsets)
    ]  # fmt: skip
    for i in range(1, count):
        nodes = [
            helper.make_node(f"L{i - 1}", [source], [result], domain="d")
            for source, result in (("a", "t"), ("t", "b"))
        ]
        functions.append(helper.make_function("d", f"L{i}", ["a"], ["b"], nodes, opsets))
    graph = helper.make_graph(
        [helper.make_node(f"L{count - 1}", ["x"], ["y"], domain="d")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def test_functions_that_unfold_a_little_are_taken(tmp_path: Path) -> None:
    onnx.save(doubling(5), tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").run({"x": FED})[0][0, 0] == 2**16


@pytest.mark.parametrize(("code", "make"), CASES, ids=[f"{c}-{f.__name__}" for c, f in CASES])
def test_a_bad_model_has_its_error(tmp_path: Path, code: str, make: Case) -> None:
    path, options = make(tmp_path)
    with pytest.raises(EdgepackError) as caught:
        load(path, **options)
    error = caught.value
    assert error.code == code, str(error)
    assert error.what
    assert error.hint


# Errors that show when the model is run.


def run(tmp_path: Path, body: str, **feeds: np.ndarray) -> str:
    source = load(state(tmp_path), **factory(tmp_path, body))
    with pytest.raises(EdgepackError) as caught:
        source.run(feeds)
    return caught.value.code


FED = np.ones((2, 4), np.float32)
SUBCLASS = "class Net(torch.nn.Linear):\n        def forward(self, x): {}\n    return Net(4, 3)"


def test_a_shape_that_does_not_fit(tmp_path: Path) -> None:
    body = "return torch.nn.Linear(4, 3)"
    assert run(tmp_path, body, x=np.ones((2, 5), np.float32)) == "source-run-failed"


@pytest.mark.parametrize("kind", ["float64", "float16", "uint8"])
def test_samples_of_another_type_than_the_weights(tmp_path: Path, kind: str) -> None:
    source = load(state(tmp_path), **factory(tmp_path, "return torch.nn.Linear(4, 3)"))
    with pytest.raises(EdgepackError) as caught:
        source.run({"x": np.ones((2, 4), kind)})
    hint = f"x is {kind}, the weights are float32: store array.astype('float32')"
    assert (caught.value.code, caught.value.hint) == ("source-run-failed", hint)


def test_an_output_that_is_no_tensor(tmp_path: Path) -> None:
    body = SUBCLASS.format("return super().forward(x), 'label'")
    assert run(tmp_path, body, x=FED) == "source-output-unsupported"


@pytest.mark.parametrize(
    "answer",
    [
        "None",
        "super().forward(x).to(torch.bfloat16)",
        "torch.fft.fft(super().forward(x))",
        "super().forward(x).to_sparse()",
    ],
)
def test_outputs_that_are_no_plain_arrays(tmp_path: Path, answer: str) -> None:
    body = SUBCLASS.format(f"return {answer}")
    assert run(tmp_path, body, x=FED) == "source-output-unsupported"


def test_a_graph_that_draws_random_numbers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("RandomNormalLike", ["p"], ["r"]),
        helper.make_node("Add", ["p", "r"], ["y"]),
    ]
    onnx.save(onnx_model(*nodes), tmp_path / "m.onnx")
    with pytest.raises(EdgepackError) as caught:
        load(tmp_path / "m.onnx").run({"x": FED})
    assert caught.value.code == "source-nondeterministic"


def test_a_network_that_draws_random_numbers(tmp_path: Path) -> None:
    body = SUBCLASS.format("return torch.dropout(super().forward(x) + 1, 0.5, True)")
    # So many values that two draws are never the same.
    fed = np.ones((64, 4), np.float32)
    assert run(tmp_path, body, x=fed) == "source-nondeterministic"


def test_inputs_of_other_names(tmp_path: Path) -> None:
    with pytest.raises(EdgepackError) as caught:
        load(program(tmp_path)).run({"image": FED})
    assert caught.value.code == "source-input-names"


@pytest.mark.parametrize(
    ("signature", "names", "code", "hint"),
    [
        ("query, key", ("x", "y"), "source-inputs-unmatched", "name each input"),
        ("query, key, mask=None", ("query", "key", "musk"), "source-inputs-unmatched", "mask?"),
        ("x, mask=None, **rest", ("x", "maks"), "source-inputs-unmatched", "mean mask?"),
        ("x: torch.Tensor", ("a", "b"), "source-inputs-unmatched", "name each input"),
        ("*inputs", ("a", "b"), "source-inputs-unmatched", "forward(self, a, b)"),
        ("query, key", ("query",), "source-inputs-missing", "--input key:"),
        ("x, mask=None", ("mask",), "source-inputs-missing", "--input x:"),
    ],
)
def test_inputs_that_forward_does_not_take(
    tmp_path: Path, signature: str, names: tuple[str, ...], code: str, hint: str
) -> None:
    body = SUBCLASS.replace("self, x", f"self, {signature}").format("return 0")
    source = load(state(tmp_path), **factory(tmp_path, body))
    with pytest.raises(EdgepackError) as caught:
        bind(source, tuple(Tensor(name, "float32", ("batch", 4)) for name in names))
    assert caught.value.code == code
    assert hint in caught.value.hint


def test_an_environment_that_unmakes_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for file, options in ((state(tmp_path), LINEAR), (program(tmp_path), {})):
        with pytest.raises(EdgepackError) as caught:
            load(file, **options)
        assert caught.value.code == "source-unsafe-environment"


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = state(tmp_path)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(EdgepackError) as caught:
        load(file, **LINEAR)
    assert caught.value.code == "source-unreadable"


def test_every_code_has_a_case() -> None:
    elsewhere = {
        "source-run-failed", "source-output-unsupported", "source-nondeterministic",
        "source-input-names", "source-unsafe-environment", "source-unreadable",
        "source-inputs-unmatched", "source-inputs-missing", "source-live-copy",
    }  # fmt: skip
    folder = Path(edgepack.source.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    codes = set(re.findall(r'^\s*"(source-[a-z-]+)",$', text, re.MULTILINE))
    codes |= set(re.findall(r'SourceError\("(source-[a-z-]+)"', text))
    assert codes - elsewhere == {code for code, _ in CASES} - elsewhere
