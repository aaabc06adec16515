"""A folder's preprocessor_config.json gives the arrays that transformers itself makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack.errors import SpecError
from edgepack.source.huggingface_pictures import read_picture
from support.picture_cases import encode, photographs

transformers = pytest.importorskip("transformers")


def read(folder: Path, config: dict[str, Any]) -> Any:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return read_picture(folder)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViTImageProcessor", {}),
        ("CLIPImageProcessor", {}),
        ("DeiTImageProcessor", {}),
        ("BitImageProcessor", {"size": {"shortest_edge": 97}, "crop_size": 80}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("MobileNetV2ImageProcessor", {"size": {"shortest_edge": 255}}),
        ("EfficientNetImageProcessor", {"size": {"height": 120, "width": 90}}),
        ("MobileViTImageProcessor", {"size": {"shortest_edge": 288}}),
        ("ViTImageProcessor", {"do_normalize": False, "resample": 1}),
        ("ViTImageProcessor", {"do_rescale": False, "do_resize": False}),
    ],
)
def test_the_arrays_are_those_of_transformers(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    processor = getattr(transformers, name)(**options)
    picture = read(tmp_path, processor.to_dict())
    for photograph in photographs():
        # 427 rows give an odd margin in some of these crops.
        (expected,) = processor(photograph, return_tensors="np")["pixel_values"]
        actual = picture.to_array(encode(photograph, "PNG"))
        assert actual.shape == expected.shape
        # Half of a level of a pixel: transformers scales in another order and rounds differently.
        assert np.abs(actual - expected).max() < 0.5 * np.ptp(expected) / 255


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "image_processor_type is 'Pixtral"),
        ({"do_thumbnail": True}, "do_thumbnail is True"),
        ({"rescale_offset": True}, "rescale_offset is True"),
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}"),
        ({"resample": 9}, "resample is 9"),
        ({"image_mean": ["a"]}, "image_mean is ['a']"),
        ({"do_center_crop": True, "size": {"shortest_edge": 200}, "crop_size": 224}, "pads"),
    ],
)
def test_a_step_that_is_not_understood_is_named(
    tmp_path: Path, change: dict[str, Any], cause: str
) -> None:
    config = transformers.ViTImageProcessor().to_dict()
    with pytest.raises(SpecError) as caught:
        read(tmp_path, {**config, **change})
    assert caught.value.code == "preprocessor-unsupported"
    assert cause in caught.value.why


def test_a_folder_without_pictures_has_no_preprocessing(tmp_path: Path) -> None:
    assert read_picture(tmp_path) is None
    audio = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000}
    assert read(tmp_path, audio) is None
