"""Folders that hold the samples of each role: `train` beside `val`, `calibration.npz`, ..."""

from __future__ import annotations

from pathlib import Path

# Names of folders and files for each role, the best first.
ROLE_NAMES = {
    "calibration": ("calibration", "calib", "train", "training"),
    "evaluation": ("evaluation", "val", "valid", "validation", "test"),
    "training": ("training", "train"),
}
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
    names = {role: _first(parts, role) for role in ROLE_NAMES}
    if names["calibration"] is None or names["evaluation"] is None:
        return None
    roles = {name for choices in ROLE_NAMES.values() for name in choices}
    if any(path.is_dir() and name not in roles for name, path in parts.items()):
        return None
    return names[role]


def _first(parts: dict[str, Path], role: str) -> Path | None:
    for name in ROLE_NAMES[role]:
        if name in parts:
            return parts[name]
    return None
