"""Error rates of decoded texts, and the greedy decoding of CTC scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.errors import MetricError
from edgepack.runtime.parity.accuracy import NONE


@dataclass(frozen=True)
class TextMetric:
    """Edits that turn the answers into the labels, as a share of the labels' length.

    Attributes:
        name: name on the command line.
        measure: returns the error rate of all answers from labels and answers, in this order.
        names: of the classes, to decode scores of CTC; empty for results that are texts already.
        higher_is_better: False.
    """

    name: str
    measure: Callable[[list[str], list[str]], float]
    names: tuple[str, ...] = ()
    higher_is_better: bool = False

    def compute(self, outputs: Sequence[object], labels: np.ndarray) -> float:
        """Return the error rate over all samples together.

        Raises MetricError `metric-shape` if the answers or the labels are not texts.
        """
        answers = outputs
        if self.names:
            answers = decode_greedy(np.asarray(outputs[0]), self.names)
        if len(answers) != len(labels):
            raise _misfit(self.name, f"{len(labels)} labels for {len(answers)} texts")
        return self.measure(self._read(labels, "label"), self._read(answers, "answer"))

    def _read(self, texts: Sequence[object] | np.ndarray, kind: str) -> list[str]:
        result = []
        for number, text in enumerate(texts):
            if isinstance(text, np.ndarray) and text.size == 1:
                text = text.item()
            if not isinstance(text, str):
                raise _misfit(self.name, f"{kind} {number} is {type(text).__name__}, not a text")
            result.append(str(text))
        return result


def _misfit(name: str, why: str) -> MetricError:
    return MetricError(
        "metric-shape",
        f"the answers or the labels are not texts, as the metric {name} needs them",
        why=why,
        hint="store texts as labels, and decode the outputs by a postprocess in the manifest",
    )


def character_error_rate(labels: list[str], answers: list[str]) -> float:
    """Return the edits of characters over the characters of all labels, as `jiwer.cer`."""
    import jiwer

    return float(jiwer.cer(labels, answers))


def word_error_rate(labels: list[str], answers: list[str]) -> float:
    """Return the edits of words over the words of all labels, as `jiwer.wer`."""
    import jiwer

    return float(jiwer.wer(labels, answers))


def decode_greedy(scores: np.ndarray, names: Sequence[str]) -> list[str]:
    """Decode scores of CTC: the best class of each step, without repetitions and blanks.

    With the classes ["", "a", "b"], the steps a a blank a b give "aab". The blank is the class
    without a name; if there is one more score than names, it is class 0, as in torch's CTCLoss.
    Graves et al., Connectionist temporal classification (2006).

    Args:
        scores: (samples, steps, classes).
        names: of the classes.

    Raises MetricError `metric-shape` for another shape.
    """
    classes = list(names)
    if scores.ndim == 3 and scores.shape[-1] == len(classes) + 1:
        classes = ["", *classes]
    if scores.ndim != 3 or scores.shape[-1] != len(classes):
        raise MetricError(
            "metric-shape",
            "the output holds no scores of CTC for the class names",
            why=f"its shape is {scores.shape}, for {len(names)} class names",
            hint="scores are (samples, steps, classes); decode others by a postprocess",
        )
    texts = []
    for steps in np.argmax(scores, axis=-1):
        # The steps 1 1 0 1 2 with the classes ["", "a", "b"] are "a" + "" + "a" + "b" = "aab".
        letters, before = [], NONE
        for step in steps.tolist():
            if step != before:
                letters.append(classes[step])
            before = step
        texts.append("".join(letters))
    return texts


TEXT_METRICS = (
    TextMetric("cer", character_error_rate),
    TextMetric("wer", word_error_rate),
)
