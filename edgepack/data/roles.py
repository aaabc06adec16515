"""Folders that hold the samples of each role: `train` beside `val`, `calibration.npz`, ..."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

# Names of folders and files for each role, the best first.
ROLE_NAMES = {
    "calibration": ("calibration", "calib", "train", "training"),
    "evaluation": ("evaluation", "val", "valid", "validation", "test"),
    "training": ("training", "train"),
}
_ALL_NAMES = frozenset(chain.from_iterable(ROLE_NAMES.values()))
# Files of samples that a role's name may be the stem of.
_SUFFIXES = (".npz", ".npy", ".csv", ".jsonl", ".txt")


def find_role(folder: Path, role: str) -> Path | None:
    """Return the part of a folder that holds the samples of a role.

    None if the folder is not divided by roles: then it holds samples itself, such as one folder
    for each class.
    """
    # train/ and val/ are roles; train/, val/ and bicycle/ are classes.
    parts: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            parts[entry.name] = entry
        elif entry.suffix.lower() in _SUFFIXES:
            parts.setdefault(entry.stem, entry)
    by_role = {each: _find_part(parts, each) for each in ROLE_NAMES}
    if by_role["calibration"] is None or by_role["evaluation"] is None:
        return None
    if any(path.is_dir() and name not in _ALL_NAMES for name, path in parts.items()):
        return None
    return by_role[role]


def _find_part(parts: dict[str, Path], role: str) -> Path | None:
    for name in ROLE_NAMES[role]:
        if name in parts:
            return parts[name]
    return None
