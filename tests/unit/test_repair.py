"""What a repair tries: quantizations with layers left float, their order, and the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from edgepack.graph import Runner
from edgepack.ledger import Ledger
from edgepack.metrics.parts import find_parts
from edgepack.passes import repair
from edgepack.passes.protocol import Trials
from edgepack.passes.quantize import QuantizeOptions, make_trials, quantize
from edgepack.passes.repair import find_fewest_floats, rank_layers, requantize_largest, select_feeds
from edgepack.runtime.parity.metrics import Parity
from edgepack.runtime.tensor import Tensor
from support.quantize_nets import Arrays, Net, Steps, gated, images, residual, run, snr_db

LOUD = 300.0


class Told(Steps):
    """A progress that takes words as well."""

    def tell(self, text: str) -> None:
        self.text = text


def outlier(hard: str = "first") -> onnx.ModelProto:
    """Three convolutions and a Gemm, where one layer reads a channel that is far too loud.

    Its weights make the channel as quiet as the others again; in eight bits those are lost.
    """
    net = Net(3)
    x = "x"
    if hard == "last":
        # What the loud part makes is float on its way: nothing before the Gemm is integer.
        pooled = net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 2, 8)))
        flat = net.op("Tanh", net.op("Flatten", pooled, axis=1))
        loud = net.op("Mul", flat, net.constant(np.float32([LOUD] + [1] * 7)))
        weight = net.weights(4, 8)
        weight[:, 0] /= LOUD
        made = net.op("Gemm", loud, net.constant(weight), transB=1)
        return net.model({"x": ["n", 2, 16, 16]}, [made])
    weight = net.weights(8, 2, 3, 3)
    weight[:, 1] /= LOUD
    x = net.op("Conv", x, net.constant(weight), pads=[1] * 4)
    for _ in range(2):
        x = net.conv(net.op("Relu", x), 8, 8)
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", x)), axis=1)
    return net.model({"x": ["n", 2, 16, 16]}, [net.gemm(x, 8, 4)])


def loud(count: int, seed: int = 1) -> np.ndarray:
    """(count, 2, 16, 16), the second channel far louder than the first."""
    fed = images(count, 2, seed=seed)
    fed[:, 1] *= LOUD
    return fed


def trials(model: onnx.ModelProto, fed: np.ndarray, **options: Any) -> Trials:
    return make_trials(model, Arrays(x=fed), QuantizeOptions(**options), Told())


def runs(model: bytes) -> Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]:
    return Runner(model).run


def rank_by_halves(made: Trials, model: onnx.ModelProto, fed: np.ndarray) -> repair.Ranking:
    original = model.SerializeToString()
    (answers,) = runs(original)({"x": fed})
    tensor = Tensor("y", "float32", ("batch", *answers.shape[1:]))
    parts = find_parts(tensor, [answers])
    feeds = [{"x": rows} for rows in np.array_split(fed, 4)]
    return rank_layers(made, original, feeds, runs, lambda: [Parity(tensor, parts)], Told())


def ranked(made: Trials, model: onnx.ModelProto, fed: np.ndarray) -> dict[str, float]:
    ranking = rank_by_halves(made, model, fed)
    assert not ranking.estimated
    return dict(ranking.costs)


PLAIN = {"range": "full", "calibrator": "minmax"}
WAYS = [
    PLAIN,
    {"range": "full"},
    {**PLAIN, "rounding": "nearest", "bias_correction": False},
    {"range": "reduced", "scheme": "qnnpack"},
    {**PLAIN, "scheme": "tensorrt"},
]


@pytest.mark.parametrize("options", WAYS)
@pytest.mark.parametrize("net", [residual, gated])
def test_a_layer_left_float_is_as_if_it_had_been_excluded(
    net: Any, options: dict[str, Any]
) -> None:
    """One calibration serves them all: what is emitted is what a quantization of its own gives.

    But for tensors that are moved to, which keep the quantization of what they are moved from.
    """
    model, fed = net(), images(24)
    made = trials(model, fed, **options)
    whole = made.result()
    assert whole.model == quantize(model, Arrays(x=fed), QuantizeOptions(**options), Steps()).model
    for floats in (made.names[1:2], made.names[:1], made.names[-2:], made.names[2:]):
        found = made.model_with(floats)
        alone = quantize(
            model, Arrays(x=fed), QuantizeOptions(exclude=tuple(floats), **options), Steps()
        ).model
        assert [n.op_type for n in found.graph.node] == [n.op_type for n in alone.graph.node]
        here, there = run(found, {"x": fed[:4]})[0], run(alone, {"x": fed[:4]})[0]
        if made.names[0] not in floats or net is gated:
            assert found == alone
        assert snr_db(there, here) > 25
    # Nothing of that changed what it began with.
    assert made.result().model == whole.model


def test_channels_keep_their_order_where_layers_go_back_to_float() -> None:
    model, fed = residual(), images(24)
    made = trials(model, fed)
    whole = made.result()
    assert whole.details["pair_safe"]["reordered"] > 0
    first = made.names[0]
    found = made.result([first])
    kept = {t.name: t for t in found.model.graph.initializer}
    for tensor in whole.model.graph.initializer:
        if tensor.name.endswith("_quantized") and tensor.name in kept:
            assert tensor == kept[tensor.name]
    assert snr_db(run(model, {"x": fed})[0], run(found.model, {"x": fed})[0]) > 25
    assert found.details["layers_quantized"] == len(made.names) - 1
    (left,) = [x for x in found.details["layers_float"] if x["name"] == first]
    assert left["reason"] == "returned to float to meet the quality gate"


def test_a_skip_branch_that_becomes_one_is_measured_then() -> None:
    """TensorRT: of two layers that are added, the larger keeps the addition; the other is read
    quantized, and that is another one where the larger is float."""
    net = Net()
    x = net.op("Relu", net.conv("x", 3, 8))
    summed = net.op("Add", net.conv(x, 8, 8), net.conv(x, 8, 8, 1))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.conv(net.op("Relu", summed), 8, 4)))
    model, fed = net.model({"x": ["n", 3, 16, 16]}, [x]), images(24)
    options = {"scheme": "tensorrt", "range": "full"}
    made = trials(model, fed, **options)
    large = made.names[1]
    before = {t.name for t in made.model_with(()).graph.initializer}
    found = made.model_with([large])
    assert any(t.name.endswith("_scale") and t.name not in before for t in found.graph.initializer)
    exclude = QuantizeOptions(exclude=(large,), **options)
    assert found == quantize(model, Arrays(x=fed), exclude, Steps()).model


@pytest.mark.parametrize("hard", ["first", "last"])
def test_the_layer_that_reads_a_loud_channel_costs_most(hard: str) -> None:
    model, fed = outlier(hard), loud(32)
    made = trials(model, fed, **PLAIN)
    costs = ranked(made, model, fed)
    worst, second = list(costs.items())[:2]
    assert worst[0] == made.names[0 if hard == "first" else -1]
    assert list(costs.values()) == sorted(costs.values())
    assert worst[1] < second[1] - 10
    expected = run(model, {"x": fed})[0]
    whole = snr_db(expected, run(made.model_with(()), {"x": fed})[0])
    assert snr_db(expected, run(made.model_with([worst[0]]), {"x": fed})[0]) > whole + 10


@pytest.mark.parametrize("options", [{"mode": "weights", "bits": 4}, {"mode": "dynamic"}])
def test_modes_without_ranges_are_ranked_as_well(options: dict[str, Any]) -> None:
    net = Net(4)
    x = net.op("Relu", net.gemm("x", 64, 64))
    x = net.op("Relu", net.gemm(x, 64, 64))
    model = net.model({"x": ["n", 64]}, [net.gemm(x, 64, 8)])
    fed = np.random.default_rng(2).standard_normal((32, 64)).astype(np.float32)
    made = make_trials(model, None, QuantizeOptions(**options), Told())
    costs = ranked(made, model, fed)
    assert set(costs) == set(made.names)
    assert len(made.names) == 3
    assert all(np.isfinite(list(costs.values())))
    expected = run(model, {"x": fed})[0]
    one, three = (
        snr_db(expected, run(made.model_with(floats), {"x": fed})[0])
        for floats in (made.names[1:], ())
    )
    assert one > three


def test_the_rank_does_not_depend_on_the_order_in_the_graph() -> None:
    model, fed = gated(), images(24)
    made = trials(model, fed, **PLAIN)
    costs = ranked(made, model, fed)

    class Backwards:
        names = made.names[::-1]
        model_with, result = made.model_with, made.result

    assert list(ranked(Backwards(), model, fed).items()) == list(costs.items())


def deep(layers: int, hard: Sequence[int]) -> onnx.ModelProto:
    """Linear layers of 16 channels; before the hard ones, the first channel is far too loud."""
    net, x = Net(3), "x"
    for i in range(layers):
        weight = net.weights(16, 16)
        if i in hard:
            x = net.op("Mul", x, net.constant(np.float32([LOUD] + [1] * 15)))
            weight[:, 0] /= LOUD
        x = net.op("Tanh", net.op("Gemm", x, net.constant(weight), transB=1))
    return net.model({"x": ["n", 16]}, [net.gemm(x, 16, 4)])


def test_the_costly_ones_of_many_layers_are_found_with_fewer_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = deep(47, hard=(11, 30))
    fed = np.random.default_rng(2).standard_normal((32, 16)).astype(np.float32)
    made = trials(model, fed, **PLAIN)
    few = rank_by_halves(made, model, fed)
    assert few.runs <= 0.75 * len(made.names)
    assert set(few.costs) == set(made.names)
    assert few.estimated
    monkeypatch.setattr(repair, "MEASURED_EACH", len(made.names))
    each = rank_by_halves(made, model, fed)
    assert (each.runs, each.estimated) == (len(made.names), frozenset())
    # The layer with a loud channel, which costs the most, is measured alone with the same result.
    for name in list(each.costs)[:2]:
        assert name not in few.estimated
        assert few.costs[name] == each.costs[name]
    assert list(few.costs)[:2] == list(each.costs)[:2]


@pytest.mark.parametrize("count", [1, 2, 5, 16, 57])
@pytest.mark.parametrize("needed", [1, 2, 3, 7, 16, 57])
def test_the_search_finds_the_smallest_beginning(count: int, needed: int) -> None:
    order = [f"layer{i}" for i in range(count)]
    asked: list[tuple[str, ...]] = []

    def holds(floats: tuple[str, ...]) -> bool:
        asked.append(floats)
        return len(floats) >= needed

    found = find_fewest_floats(order, holds)
    assert found == (tuple(order[:needed]) if needed <= count else None)
    assert len(asked) == len(set(asked)) <= 2 * int(np.ceil(np.log2(count + 1))) + 1


def test_nothing_to_search_among() -> None:
    assert find_fewest_floats([], lambda floats: True) is None


def test_what_is_not_needed_is_spared_the_largest_first() -> None:
    asked = []

    def holds(floats: tuple[str, ...]) -> bool:
        asked.append(set("abcd") - set(floats))
        return {"b", "d"} <= set(floats)

    assert requantize_largest("abcd", {"a": 1, "b": 9, "c": 5}, holds) == ("b", "d")
    assert asked == [{"b"}, {"c"}, {"a", "c"}]


@pytest.mark.parametrize(
    ("passes", "lost"),
    [
        ("simplify quantize", None),
        ("simplify -quantize", "quantize"),
        ("simplify -prune -quantize", "prune"),
        # What a later pass won back is not lost.
        ("simplify -prune distill", None),
        ("simplify -prune distill -quantize -repair", "quantize"),
        ("simplify -quantize repair", None),
        ("-simplify -prune -quantize", "simplify"),
    ],
)
def test_the_ledger_knows_since_when_a_gate_is_missed(passes: str, lost: str | None) -> None:
    ledger = Ledger(Told())
    with ledger.stage("source"):
        pass
    for name in passes.split():
        with ledger.stage(name.lstrip("-")) as stage:
            stage.set(measured={"missed": [{}] if name.startswith("-") else []})
    with ledger.stage("engine"):
        pass
    found = ledger.find_losing_pass()
    assert (found and found.stage) == lost


@pytest.mark.parametrize("count", [3, 32, 50, 500])
def test_samples_to_rank_on_are_spread_over_the_set(count: int) -> None:
    fed = np.arange(count, dtype=np.float32)[:, None]
    found = np.concatenate([feed["x"] for feed in select_feeds(Arrays(x=fed), count, 4)])
    assert min(count, 32) <= len(found) <= 36
    assert found.max() >= (count - 1) * 0.8
