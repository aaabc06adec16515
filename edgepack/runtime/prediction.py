"""Predictions for people: feeds from paths, bytes and arrays, and the likeliest classes by name."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence

import numpy as np

from .errors import InputError
from .session.feeds import fixed_batch

if TYPE_CHECKING:
    from .preprocess.protocol import Preprocessing
    from .tensor import Tensor

# Largest distance of a sum of probabilities from 1, for outputs in fp16.
_SUM = 0.01
# Values of an output that are printed.
_SHOWN = 16


@dataclass(frozen=True)
class ClassScore:
    """Class with its score.

    Attributes:
        index: of the class.
        name: of the class; its index in digits if it has no name.
        score: the output's value.
        probability: the score itself where scores are probabilities, else by softmax.
    """

    index: int
    name: str
    score: float
    probability: float


@dataclass(frozen=True, repr=False)
class Prediction:
    """Answer to one sample.

    Attributes:
        outputs: by name, with a batch axis of 1 where they have one.
        top: the likeliest classes, best first; empty for a model without one output of scores.
        result: of the user's postprocess.
        decoded: True if there is a postprocess.
        names: of the classes, for the labels of boxes.
    """

    outputs: Mapping[str, np.ndarray]
    top: Sequence[ClassScore]
    result: object = None
    decoded: bool = False
    names: Sequence[str] = ()

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> List[str]:
        """Return the classes or boxes, best first, or the outputs, as text."""
        if self.decoded:
            return _describe_boxes(self.result, self.names) or [
                json.dumps(_to_json(self.result), ensure_ascii=False)
            ]
        # 83.2 %  Labrador retriever
        lines = [f"{100 * entry.probability:5.1f} %  {entry.name}" for entry in self.top]
        if not lines:
            for name, array in self.outputs.items():
                text = f"{array.dtype} {array.shape}"
                if array.size <= _SHOWN:
                    text = np.array2string(array.reshape(-1), precision=6, separator=", ")
                lines.append(f"{name}: {text}")
        return lines

    def to_json(self) -> Dict[str, object]:
        """Return the classes, or the outputs of a model without any, as JSON values."""
        if self.decoded:
            return {"result": _to_json(self.result)}
        if self.top:
            return {"top": [asdict(entry) for entry in self.top]}
        outputs = {}
        for name, array in self.outputs.items():
            outputs[name] = array.tolist()
        return {"outputs": outputs}


def _describe_boxes(result: object, names: Sequence[str]) -> List[str]:
    """Return a line for each box of a detector, best first; no lines for another result.

    Boxes are left, top, right and bottom in pixels of the model's input:
    `0.873  disc  12 30 55 61`.
    """
    if not isinstance(result, Mapping) or set(result) != {"boxes", "scores", "labels"}:
        return []
    try:
        boxes = np.asarray(result["boxes"], np.float64)
        scores = np.asarray(result["scores"], np.float64)
        labels = np.asarray(result["labels"], np.float64)
    except (TypeError, ValueError):
        # Text, or lists of unequal length.
        return []
    if not np.isfinite(labels).all():
        return []
    if scores.ndim != 1 or boxes.shape != (len(scores), 4) or labels.shape != scores.shape:
        return []
    if not len(scores):
        return ["no boxes"]
    rows = []
    for index in np.argsort(-scores, kind="stable"):
        label = int(labels[index])
        name = names[label] if 0 <= label < len(names) else str(label)
        corners = " ".join(f"{corner:.0f}" for corner in boxes[index])
        rows.append((f"{scores[index]:.3f}", name, corners))
    width = max(len(name) for _, name, _ in rows)
    return [f"{score:>6}  {name:<{width}}  {corners}" for score, name, corners in rows]


def make_feed(
    data: object, inputs: Sequence[Tensor], preprocessing: Optional[Preprocessing]
) -> Dict[str, np.ndarray]:
    """Return a feed of one sample, or of several if `data` is a list.

    Args:
        data: the path of a file, its bytes, or a text if the bundle takes texts, or a tuple of
            two for a model of pairs; a list of these; an array, or arrays by input name, which
            pass through.
        inputs: of the model.
        preprocessing: of the bundle; None if it has none.

    Raises InputError if the data cannot be read or used.
    """
    if isinstance(data, Mapping):
        return dict(data)
    if isinstance(data, np.ndarray):
        if len(inputs) == 1:
            return {inputs[0].name: data}
        raise InputError(
            "input-names",
            "the inputs do not fit",
            why=f"it is a single array, and the model has {len(inputs)} inputs",
            hint="pass arrays by name: the model takes " + "; ".join(map(str, inputs)),
        )
    if preprocessing is None:
        raise InputError(
            "preprocessing-missing",
            "the bundle takes arrays alone",
            why=f"it has no preprocessing for a {type(data).__name__}",
            hint="pass arrays: the model takes " + "; ".join(map(str, inputs)),
        )
    from .preprocess.feed import prepare_samples

    samples = [data]
    # For a model of texts a tuple is a pair of them.
    if isinstance(data, list) or (isinstance(data, tuple) and not preprocessing.takes_text):
        samples = list(data)
    return prepare_samples(preprocessing, samples)


def decode(postprocess: Callable[[object], object], outputs: Mapping[str, np.ndarray]) -> object:
    """Return the result of the user's postprocess for one sample.

    Raises InputError `code-failed` or `code-result`.
    """
    # Copies, since the function may change its arguments.
    results = postprocess({name: array.copy() for name, array in outputs.items()})
    if isinstance(results, (list, tuple)) and len(results) == 1:
        return results[0]
    raise InputError(
        "code-result",
        "the postprocess did not return one result for each sample",
        why=f"it returned {type(results).__name__} for one sample",
        hint="return a list with one result for each sample of the batch",
    )


def _to_json(value: object) -> object:
    """Return a result of the user's as JSON values: arrays as lists, anything unknown as text."""
    if isinstance(value, (np.ndarray, np.generic)):
        return _to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no NaN.
        return str(value)
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return str(value)


def make_single(
    feed: Mapping[str, np.ndarray], inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Dict[str, np.ndarray]:
    """Return the feed of one sample, with the batch axis added where it is missing.

    For an input (batch, 1, 8, 8), an array (1, 8, 8) becomes (1, 1, 8, 8), and one of
    (3, 1, 8, 8) is refused. A model whose inputs and outputs differ in axis 0 has no batch axis.

    Raises InputError if the feed holds several samples.
    """
    firsts = {tensor.shape[:1] for tensor in (*inputs, *outputs)}
    if len(firsts) != 1 or firsts == {()} or set(feed) != {tensor.name for tensor in inputs}:
        return dict(feed)
    if all(feed[tensor.name].ndim == tensor.rank - 1 for tensor in inputs):
        return {name: array[None] for name, array in feed.items()}
    counts = {len(feed[tensor.name]) for tensor in inputs if feed[tensor.name].ndim == tensor.rank}
    if counts and max(counts) > 1:
        raise InputError(
            "input-counts",
            "predict answers one sample",
            why=f"it was given {max(counts)}",
            hint="call it for each sample, predict(x[i]), or call the model on the batch: model(x)",
        )
    return dict(feed)


def fill_batch(feed: Mapping[str, np.ndarray], inputs: Sequence[Tensor]) -> Dict[str, np.ndarray]:
    """Repeat one sample up to the model's fixed batch; a dynamic batch changes nothing."""
    size = fixed_batch(inputs)
    if size is None or any(len(array) != 1 for array in feed.values()):
        return dict(feed)
    return {name: np.repeat(array, size, axis=0) for name, array in feed.items()}


def split_outputs(
    outputs: Mapping[str, np.ndarray], described: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Dict[str, np.ndarray]:
    """Return the outputs of the first sample, with a batch axis of 1."""
    batch_axes = {tensor.shape[0] for tensor in inputs if tensor.shape}
    first = {}
    for tensor in described:
        array = outputs[tensor.name]
        # An output (batch, 10) keeps its first row; one of (5, 4) has no axis of samples.
        if tensor.shape and tensor.shape[0] in batch_axes:
            array = array[:1]
        first[tensor.name] = array
    return first


def find_top(
    outputs: Mapping[str, np.ndarray],
    described: Sequence[Tensor],
    names: Sequence[str],
    count: int,
) -> List[ClassScore]:
    """Return the likeliest classes of one sample, best first.

    Empty unless exactly one output holds the scores of a single decision.

    Args:
        outputs: of one sample.
        described: the model's outputs.
        names: of the classes.
        count: the maximum number of classes.
    """
    deciding = [tensor for tensor in described if tensor.kind == "scores"]
    if len(deciding) != 1:
        return []
    scores = np.asarray(outputs[deciding[0].name], np.float64)
    # (1, 1000) is one decision; (1, 21, 64, 64) are 4096 of them.
    if scores.size != scores.shape[deciding[0].axis]:
        return []
    # Logits 2.0 and 0.0 are shares of 0.88 and 0.12.
    scores = scores.reshape(-1)
    shares = _softmax(scores)
    top = []
    # Of equal scores the first class comes first.
    for index in np.argsort(-scores, kind="stable")[:count]:
        name = names[index] if index < len(names) else str(index)
        top.append(ClassScore(int(index), name, float(scores[index]), float(shares[index])))
    return top


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return probabilities: the scores themselves if they are some already."""
    if scores.min() >= 0 and abs(scores.sum() - 1) <= _SUM:
        return scores
    weights: np.ndarray = np.exp(scores - scores.max())
    probabilities: np.ndarray = weights / weights.sum()
    return probabilities
