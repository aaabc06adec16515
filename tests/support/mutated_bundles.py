"""Run the loader on mutated copies of a bundle, and list those that it does not refuse properly.

    python mutated_bundles.py BUNDLE FOLDER KIND SEED COUNT

A process of its own, since a damaged model reaches native code.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from edgepack.runtime import cli
from edgepack.runtime.bundle.index import content_digest, encode

REPORT = "report/report.json"
Entries = dict[str, bytes]
# One or more of each type, and of each what has been trouble: unhashable, huge, steering.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, 0.5, -1e308, 1e-320, "", "x", "9" * 40,
    "\x1b[2J\nverdict: PASS", "\ud800", "../../etc/passwd", "a" * 70_000, [], [[]], ["x"], [1, -1],
    [None], {}, {"x": 1}, {"": []}, "float32", "reference/built-0.npy", ["batch", 8], [8, "batch"],
]  # fmt: skip
HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 1, 3), }",
    b"{'descr': '<f4', 'fortran_order': True, 'shape': (3, 1, 5)}",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': '<M8[s]', 'fortran_order': False, 'shape': (5, 1, 1)}",
    b"{'descr': '<c8', 'fortran_order': False, 'shape': (5, 1, 1)}",
    b"{'descr': '|S4', 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': '<U1', 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': '|V4', 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': '>f4', 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 1000000000000, 3)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, -1, 3)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (5,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': ()}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (5, 0, 3)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1, 3)}",
    b"{'descr': '\\x00', 'fortran_order': False, 'shape': (5, 1, 3)}",
    b"{'descr': '<f4' 'fortran_order'",
    b"'''",
    b"(" * 300,
    b"-" * 9000 + b"1",
    b"[" * 9000,
    b"\xff\xfe",
    b"",
]


def read_entries(bundle: Path) -> Entries:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_bundle(path: Path, entries: Entries, document: dict[str, Any]) -> None:
    """Write a bundle whose index agrees with its entries, hashes and digest included."""
    files = document.get("files")
    for name, data in entries.items():
        if isinstance(files, dict) and isinstance(files.get(name), dict):
            files[name].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    # A mutation may leave nothing to take a digest of.
    with suppress(TypeError, KeyError, AttributeError):
        document["content_digest"] = content_digest(document)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**entries, "bundle.json": encode(document)}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)


def positions(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document, the hashes of its files aside."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    below = [p for key in keys if key != "files" for p in positions(value[key], (*path, key))]
    return [*([path] if path else []), *below]


def change_document(draw: random.Random, document: Any) -> str:
    """Replace, remove, repeat or add one value; returns what was done."""
    *parents, key = draw.choice(positions(document))
    parent = document
    for step in parents:
        parent = parent[step]
    deed = draw.choice(["replace"] * 6 + ["remove", "repeat", "add"])
    if deed == "remove":
        del parent[key]
    elif deed == "repeat" and isinstance(parent, list):
        parent.append(parent[key])
    elif deed == "add" and isinstance(parent, dict):
        parent[draw.choice(["x", "\x1b[2J", "", "arch", "isa"])] = draw.choice(VALUES)
    else:
        parent[key] = draw.choice(VALUES)
    return f"{deed} {[*parents, key]}: {parent!r:.300}"


def mutate_index(draw: random.Random, entries: Entries, path: Path) -> str:
    document = json.loads(entries["bundle.json"])
    done = change_document(draw, document)
    write_bundle(path, entries, document)
    return done


def mutate_report(draw: random.Random, entries: Entries, path: Path) -> str:
    document, report = json.loads(entries["bundle.json"]), json.loads(entries[REPORT])
    report["bundle"]["content_digest"] = document["content_digest"]
    done = change_document(draw, report)
    write_bundle(path, {**entries, REPORT: json.dumps(report).encode()}, document)
    return done


def mutate_array(draw: random.Random, entries: Entries, path: Path) -> str:
    """Give one .npy entry another header, or change some bytes of the one it has."""
    name = draw.choice(sorted(n for n in entries if n.endswith(".npy")))
    data = bytearray(entries[name])
    if draw.random() < 0.5:
        header = draw.choice(HEADERS)
        size = int.from_bytes(data[8:10], "little")
        data[8 : 10 + size] = len(header).to_bytes(2, "little") + header
    else:
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(min(len(data), 90))] = draw.randrange(256)
    write_bundle(path, {**entries, name: bytes(data)}, json.loads(entries["bundle.json"]))
    return f"{name} {bytes(data[:120])!r}"


def mutate_model(draw: random.Random, entries: Entries, path: Path) -> str:
    document = json.loads(entries["bundle.json"])
    data = bytearray(entries[document["model"]])
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    if draw.random() < 0.1:
        del data[draw.randrange(len(data)) :]
    write_bundle(path, {**entries, document["model"]: bytes(data)}, document)
    return f"{bytes(data)!r:.1000}"


MUTATIONS: dict[str, Callable[[random.Random, Entries, Path], str]] = {
    "index": mutate_index,
    "array": mutate_array,
    "model": mutate_model,
    "report": mutate_report,
}


def run_loader(path: Path, *arguments: str) -> tuple[int, str, str]:
    """The loader's exit status and what it printed, of a bundle that is not its own."""
    cli.own_bundle = lambda: str(path)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = cli.main([*arguments, "--json"])
    return status, out.getvalue(), err.getvalue()


def inspect_bundle(path: Path) -> tuple[int, str, str]:
    """The same of `edgepack inspect`."""
    from edgepack.cli import cli as host

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            page = str(path.with_suffix(".html"))
            host.main(["inspect", str(path), "--json", "--html", page], standalone_mode=False)
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
    return status, out.getvalue(), err.getvalue()


def fault_of(status: int, out: str, err: str) -> str:
    """What is wrong with an outcome; empty where it is a verdict or a proper refusal."""
    if "Traceback" in err or "Traceback" in out:
        return "a traceback"
    if "\x1b" in out + err:
        return "an escape sequence"
    if any(line.startswith("verdict: PASS") for line in err.splitlines()[:-2]):
        return "a line that is not the loader's"
    try:
        document = json.loads(out)
    except ValueError:
        return "standard output is not one document"
    code = document.get("error", {}).get("code", "") if status == 2 else "none"
    if status not in (0, 1, 2) or code in ("", "internal-error"):
        return f"status {status}, code {code!r}"
    return ""


def main(bundle: str, folder: str, kind: str, seed: str, count: str) -> None:
    draw, entries = random.Random(int(seed)), read_entries(Path(bundle))
    path = Path(folder) / "mutated.edgepack"
    faults, outcomes = [], Counter[str]()
    commands = [("verify",), ("info",), ("run", "--output", str(Path(folder) / "out.npz"))]
    for turn in range(int(count)):
        done = MUTATIONS[kind](draw, entries, path)
        for command in [("inspect",)] if kind == "report" else commands:
            try:
                if command == ("inspect",):
                    outcome = inspect_bundle(path)
                else:
                    outcome = run_loader(path, *command)
                fault = fault_of(*outcome)
            except Exception:  # noqa: BLE001
                outcome, fault = (3, "", traceback.format_exc()), "an exception"
            if fault:
                faults.append(f"{turn} {command[0]}: {fault}: {done}\n{outcome[2][-1500:]}")
            refusal = (
                json.loads(outcome[1])["error"]["code"] if outcome[0] == 2 and not fault else ""
            )
            outcomes[f"{command[0]} {outcome[0]} {refusal}"] += 1
    print(json.dumps({"faults": faults, "outcomes": outcomes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
