"""Preprocessing of raw samples: as the manifest says, or the files of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from edgepack import data
from edgepack.ledger import Stage
from edgepack.request import Request
from edgepack.runtime.preprocess.picture import Picture
from edgepack.runtime.preprocess.protocol import Preprocessing
from edgepack.runtime.tensor import Tensor
from edgepack.source.huggingface_pictures import FILE, read_picture
from edgepack.source.model import Source


def choose_preprocessing(
    request: Request, model: Source, inputs: tuple[Tensor, ...], stage: Stage
) -> Preprocessing | None:
    """Return the conversion of the raw samples of a request; None if all of them are arrays.

    Args:
        request: the user's.
        model: a Hugging Face folder brings its tokenizer, or its rate of samples.
        inputs: of the model.
        stage: receives the limits and the rate in words.

    Raises DataError if a conversion cannot be read, or does not fit the model.
    """
    if request.code.preprocess is not None:
        code = data.make_code(request.code.preprocess, inputs)
        stage.note(f"samples are prepared by {code.function.name} of {code.function.file}")
        return code
    if request.preprocessing is not None:
        if isinstance(request.preprocessing, Picture):
            stage.note(f"pictures: {data.describe_picture(request.preprocessing)}")
        return request.preprocessing
    kinds = set()
    for spec in (request.calibration, request.evaluation, request.training):
        if spec:
            kinds.add(data.find_kind(spec))
    folder = model.path if model.kind == "hugging-face" else None
    if "picture" in kinds and folder is not None:
        picture = read_picture(folder)
        if picture is not None:
            stage.note(f"pictures as in {FILE}: {data.describe_picture(picture)}")
        return picture
    if "text" in kinds:
        return _read_text(request, folder, inputs, stage)
    if "audio" in kinds and (folder is not None or request.audio is not None):
        audio = data.read_audio(folder, inputs, request.audio or data.AudioOptions())
        stage.note(data.describe_audio(audio))
        return audio
    return None


def _read_text(
    request: Request, folder: Path | None, inputs: tuple[Tensor, ...], stage: Stage
) -> Preprocessing | None:
    tokenizer = folder
    if request.text.tokenizer:
        tokenizer = Path(request.text.tokenizer)
    if tokenizer is None:
        return None
    text = data.read_text(tokenizer, inputs, request.text)
    stage.note(data.describe_text(text))
    return text


def name_classes(request: Request, model: Source) -> data.Classes:
    """Return the classes of a model: as the user states them, or as its files name them."""
    if request.classes.names:
        return request.classes
    folders = request.classes.folders
    return data.Classes(model.class_names, "id2label in config.json", folders)
