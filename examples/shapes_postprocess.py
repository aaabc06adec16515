"""Boxes from the predictions of the shapes detector: a threshold, and non-maximum suppression."""

import numpy as np

# Boxes of a lower score are left out; those that overlap a better one by more, too.
LEAST, OVERLAP, MOST = 0.05, 0.5, 20
# Pixels of the camera, in which the boxes are predicted, for each of the network's input.
ZOOM = 8


def boxes(outputs):
    """Return, for each picture, a dict of boxes (n, 4), scores (n,) and labels (n,)."""
    return [_decode(prediction) for prediction in outputs["predictions"]]


def _decode(prediction):
    corners, classes = prediction[:4].T / ZOOM, prediction[4:].T
    cells, labels = np.nonzero(classes > LEAST)
    scores = classes[cells, labels]
    order = np.argsort(-scores, kind="stable")
    kept = _suppress(corners[cells[order]], labels[order])[:MOST]
    chosen = order[kept]
    return {
        "boxes": corners[cells[chosen]],
        "scores": scores[chosen],
        "labels": labels[chosen],
    }


def _suppress(corners, labels):
    """Return the positions of boxes, the best first, that overlap no better one of their class."""
    low = np.maximum(corners[:, None, :2], corners[None, :, :2])
    high = np.minimum(corners[:, None, 2:], corners[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    rivals = shared > OVERLAP * (areas[:, None] + areas[None] - shared)
    rivals &= labels[:, None] == labels[None]
    kept = []
    for index in range(len(corners)):
        if not rivals[index, kept].any():
            kept.append(index)
    return kept
