"""Inputs are bound to the parameters of forward by name, whatever order they come in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgepack import graph
from edgepack.runtime.tensor import Tensor
from edgepack.source import bind, load
from edgepack.source.binding import (
    bind_in_order,
    bind_inputs,
    describe_defaults,
    describe_renamed,
    match_inputs,
)
from edgepack.source.eager import flatten, name_outputs
from edgepack.stages.code import UserCode

VALUES = {"a": torch.tensor(1.0), "b": torch.tensor(10.0), "c": torch.tensor(100.0)}


def module(forward: Callable[..., Any]) -> nn.Module:
    """A network with this forward."""
    return type("Net", (nn.Module,), {"forward": forward, "__module__": __name__})().eval()


CASES = {
    "by position": lambda self, a, b: a - b,
    "keyword-only": lambda self, *, a, b=None: a - b,
    "positional-only": lambda self, a, /, k=1, b=None: k * a - b,
    "a skipped optional one": lambda self, a, mask=None, b=None: a - b,
    "a dict": lambda self, batch: batch["a"] - batch["b"],
    "a dict and a number": lambda self, batch, scale=1.0: scale * batch["a"] - batch["b"],
    "keywords": lambda self, **inputs: inputs["a"] - inputs["b"],
    "anything": lambda self, *args, **inputs: inputs["a"] - inputs["b"],
    "one and keywords": lambda self, a, **inputs: a - inputs["b"],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_the_order_of_the_inputs_does_not_count(case: str, names: tuple[str, ...]) -> None:
    bound, binding = bind_inputs(module(CASES[case]), names)
    # Passes change deep copies of the module.
    for one in (bound, copy.deepcopy(bound)):
        assert one(*[VALUES[name] for name in binding.order]).item() == -9
        assert type(one).__name__ == "Net"
    fixed = bind_in_order(module(CASES[case]), names)
    assert fixed(*[VALUES[name] for name in names]).item() == -9


def test_an_annotated_dict_takes_a_single_input() -> None:
    def forward(self: Any, batch: dict[str, torch.Tensor] | None = None) -> Any:
        return batch["a"]

    bound, _ = bind_inputs(module(forward), ("a",))
    assert bound(VALUES["a"]).item() == 1


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda self, x: x, "a"),
        (lambda self, x, mask=None: x, "a"),
        (lambda self, *inputs: inputs[0], "a"),
        (lambda self, x=None, b=None: b, "b"),
    ],
)
def test_a_single_input_needs_no_name_of_forward_s(forward: Callable[..., Any], name: str) -> None:
    bound, _ = bind_inputs(module(forward), (name,))
    assert bound(VALUES[name]).item() == VALUES[name].item()


def test_a_forward_set_on_the_instance_is_bound_too() -> None:
    net = module(lambda self, a, b: a - b)
    net.forward = lambda *, a, b: 2 * (a - b)
    bound, binding = bind_inputs(net, ("b", "a"))
    assert bound(*[VALUES[name] for name in binding.order]).item() == -18


def test_defaults_of_optional_inputs_are_described() -> None:
    net = module(lambda self, a, mask=None, temperature=1.0, return_dict=True, mode="x": a)
    _, binding = bind_inputs(net, ("a",))
    assert describe_defaults(binding).endswith("keep their defaults: mask=None, temperature=1.0")


class Keyed(nn.Module):
    def forward(
        self,
        query: torch.Tensor,
        token_type: torch.Tensor | None = None,
        key: torch.Tensor | None = None,
    ) -> torch.Tensor:
        out = 3 * query
        if key is not None:
            out = out - 2 * key
        if token_type is not None:
            out = out + 1
        return out


QUERY, KEY = np.float32([[1, 2]]), np.float32([[10, 30]])
PAIR = tuple(Tensor(name, "float32", ("batch", 2)) for name in ("key", "query"))


def test_torchscript_is_bound_by_name_and_exported_so(tmp_path: Path) -> None:
    torch.jit.script(Keyed().eval()).save(str(tmp_path / "m.pt"))
    source, inputs = bind(load(tmp_path / "m.pt", trust_pickle=True), PAIR)
    assert [tensor.name for tensor in inputs] == ["query", "key"]
    assert "token_type=None" in source.warnings[-1]
    feeds = {"key": KEY, "query": QUERY}
    np.testing.assert_array_equal(source.run(feeds)[0], 3 * QUERY - 2 * KEY)
    model = graph.export_module(source.module, inputs, feeds, 17).model
    np.testing.assert_array_equal(graph.Runner(model).run(feeds)[0], 3 * QUERY - 2 * KEY)
    assert [value.name for value in model.graph.input] == ["query", "key"]


def test_a_program_exported_without_its_optional_input(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, query: Any, mask: Any = None, key: Any = None) -> Any:
            return {
                "out": 3 * query - 2 * key,
                "loss": None,
                "hidden": [query + 1, (key + 1, None)],
            }

    dims = {"query": {0: torch.export.Dim("batch")}, "mask": None}
    tensors = torch.from_numpy(np.repeat(QUERY, 3, 0)), torch.from_numpy(np.repeat(KEY, 3, 0))
    program = torch.export.export(
        Net().eval(), (tensors[0], None), {"key": tensors[1]},
        dynamic_shapes={**dims, "key": dims["query"]},
    )  # fmt: skip
    torch.export.save(program, tmp_path / "m.pt2")
    source, inputs = bind(load(tmp_path / "m.pt2"), load(tmp_path / "m.pt2").inputs)
    assert [tensor.name for tensor in inputs] == ["query", "key"]
    assert source.output_names == ("out", "hidden.0", "hidden.1.0")
    answers = source.run({"key": KEY, "query": QUERY})
    np.testing.assert_array_equal(answers[0], 3 * QUERY - 2 * KEY)
    model = graph.export_program(source.program, 17, inputs, source.output_names).model
    assert [value.name for value in model.graph.input] == ["query", "key"]
    assert [value.name for value in model.graph.output] == list(source.output_names)


def test_a_student_is_bound_as_its_teacher_is(tmp_path: Path) -> None:
    (tmp_path / "student.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, *, key, query):\n"
        "        return {'second': key, 'first': query - key}\n"
        "def make(): return Net()\n"
    )
    code = UserCode(
        torch, (tmp_path,), "distill", inputs=("query", "key"), outputs=("first", "second")
    )
    student = copy.deepcopy(code.build("student.py:make", {}))
    first, second = student(torch.tensor(1.0), torch.tensor(10.0))
    assert (first.item(), second.item()) == (-9, 10)


def test_outputs_keep_their_keys() -> None:
    one, two, three = VALUES.values()
    answer = {"logits": one, "loss": None, "hidden_states": [two, None, (three,)]}
    assert name_outputs(answer) == ("logits", "hidden_states.0", "hidden_states.2.0")
    assert flatten(answer) == (one, two, three)
    assert name_outputs((one, {"aux": two})) == ("output_0", "output_1.aux")
    assert name_outputs({0: one, 1: two}) == ("0", "1")
    assert name_outputs((one, [two])) is None
    assert name_outputs({"a.0": one, "a": [two]}) is None


def test_an_input_of_another_name_is_bound_with_a_note() -> None:
    pair = module(lambda self, query, key: query - key)
    binding = match_inputs(pair, ("query", "kay"))
    assert binding.parameters == {"query": "query", "kay": "key"}
    assert "kay feeds forward's key" in describe_renamed(binding)
    assert not describe_renamed(match_inputs(pair, ("query", "key")))
