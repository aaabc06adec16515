"""`finish`: built, proved, sealed, and then taken by every command; killed, nothing is torn.

On stand-ins for the GPU and for TensorRT (see gpu_standin): what is proved is the loader's part.
Sealing, hashes, locks and kills are real.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgepack import bundle
from edgepack.runtime.bundle.archive import Archive
from edgepack.runtime.plain import file_mode
from support.gpu_standin import GPU, StandIn, tensorrt_contents
from support.linear import linear_contents, linear_onnx, measured

pytestmark = pytest.mark.slow

STRACE = shutil.which("strace")


def sealed(path: Path) -> Path:
    return path.with_name(path.name + ".engine")


def part(path: Path) -> Path:
    return path.with_name(path.name + ".engine.part")


def beside(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def key_of(path: Path) -> dict:
    with zipfile.ZipFile(sealed(path)) as archive:
        found: dict = json.loads(archive.read("key.json"))
    return found


def marks(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_finish_and_everything_after_it(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    before = gpu_standin.run(tensorrt_bundle, "verify", "--json")
    assert before.returncode == 1  # UNVERIFIED: no TensorRT ran
    assert json.loads(before.stdout)["variant"]["name"] == "onnxruntime"
    assert before.stderr.startswith("FALLBACK: running in onnxruntime, not in the engine")
    assert "python3 BUNDLE finish" in before.stderr

    done = gpu_standin.run(tensorrt_bundle, "finish", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["built"]
    assert found["engine"] == str(sealed(tensorrt_bundle))
    assert all(gate["passed"] for gate in found["quality"]["gates"])
    assert beside(tensorrt_bundle) == [tensorrt_bundle.name, tensorrt_bundle.name + ".engine"]
    assert sealed(tensorrt_bundle).stat().st_mode & 0o777 == file_mode()

    after = gpu_standin.run(tensorrt_bundle, "verify", "--json")
    verdict = json.loads(after.stdout)
    assert after.returncode == 0
    assert verdict["variant"] == {
        "name": "tensorrt",
        "engine": "tensorrt",
        "sealed": True,
        "fallback": False,
        "passed_over": [],
    }
    assert verdict["device"]["gpu"] == GPU
    assert "FALLBACK" not in after.stderr
    # onnxruntime was not needed, so it was not loaded (the stand-in's own import aside).
    assert "onnxruntime" not in verdict["device"]
    assert f"TensorRT 10.3.0 on {GPU}" in gpu_standin.run(tensorrt_bundle, "verify").stdout


def test_run_and_bench_with_it(gpu_standin: StandIn, tensorrt_bundle: Path, tmp_path: Path) -> None:
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    output = tmp_path / "out.npz"
    for variant, engine in (("", "tensorrt"), ("onnxruntime", "onnxruntime")):
        done = gpu_standin.run(
            tensorrt_bundle, "run", "--output", str(output), "--variant", variant, "--json"
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["variant"]["engine"] == engine
        assert ("FALLBACK" in done.stderr) == (engine == "onnxruntime")
        weights = linear_onnx()[1]
        feeds = linear_contents().reference[0]
        np.testing.assert_allclose(np.load(output)["y"], feeds @ weights, rtol=1e-5)
    found = gpu_standin.run(
        tensorrt_bundle, "bench-turn", "--queries", "3", "--seconds", "0", "--variant", "tensorrt"
    )
    assert json.loads(found.stdout)["variant"]["engine"] == "tensorrt"


def test_info_tells_which_and_why(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    done = gpu_standin.run(tensorrt_bundle, "info", "--json")
    assert done.returncode == 0
    variant = json.loads(done.stdout)["variant"]
    assert variant["name"] == "onnxruntime"
    assert [passed["code"] for passed in variant["passed_over"]] == ["engine-unfinished"]
    text = gpu_standin.run(tensorrt_bundle, "info").stdout
    assert "skipped: its engine has not been built on this device yet" in text
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    done = gpu_standin.run(tensorrt_bundle, "info")
    assert "runs here, with the engine finished on this device" in done.stdout
    assert "not needed: a better one fits" in done.stdout


def test_a_second_finish_does_nothing(
    gpu_standin: StandIn, tensorrt_bundle: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    before = sealed(tensorrt_bundle).read_bytes()
    part(tensorrt_bundle).write_bytes(b"left by a killed one")
    again = gpu_standin.run(tensorrt_bundle, "finish", "--json", STANDIN_MARK=str(mark))
    assert again.returncode == 0
    assert not json.loads(again.stdout)["built"]
    assert marks(mark) == []
    again = gpu_standin.run(tensorrt_bundle, "finish")
    assert again.stdout.startswith("already finished: ")
    assert sealed(tensorrt_bundle).read_bytes() == before
    assert not part(tensorrt_bundle).exists()


def test_force_builds_anew_with_the_timing_cache(
    gpu_standin: StandIn, tensorrt_bundle: Path, tmp_path: Path
) -> None:
    mark = str(tmp_path / "mark")
    assert gpu_standin.run(tensorrt_bundle, "finish", STANDIN_MARK=mark).returncode == 0
    assert gpu_standin.run(tensorrt_bundle, "finish", "--force", STANDIN_MARK=mark).returncode == 0
    built = [line for line in marks(Path(mark)) if line.startswith("built")]
    assert built == ["built without a timing cache", "built with a timing cache"]


@pytest.mark.parametrize(
    ("variables", "named", "cache"),
    [
        ({"STANDIN_GPU": "Another"}, "gpu: it was built for Stand-in Orin; this is", "without"),
        ({"STANDIN_SMS": "8"}, "multiprocessors: it was built for 16; this is 8", "without"),
        ({"STANDIN_TENSORRT": "10.3.1"}, "tensorrt: it was built for 10.3.0; this is", "without"),
        ({"STANDIN_CAPABILITY": "8.6"}, "compute_capability: it was built for 8.7", "without"),
        ({}, "", ""),
    ],
)
def test_on_another_device_it_is_passed_over_and_built_anew(
    gpu_standin: StandIn,
    tensorrt_bundle: Path,
    tmp_path: Path,
    variables: dict[str, str],
    named: str,
    cache: str,
) -> None:
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    mark = tmp_path / "mark"
    variables = {**variables, "STANDIN_MARK": str(mark)}
    done = gpu_standin.run(tensorrt_bundle, "verify", "--json", **variables)
    assert done.returncode == int(bool(named)), done.stderr
    variant = json.loads(done.stdout)["variant"]
    assert variant["fallback"] == bool(named)
    if not named:
        return
    (passed,) = variant["passed_over"]
    assert passed["code"] == "engine-other"
    assert named in passed["why"]
    assert passed["hint"] == "python3 BUNDLE finish"
    # What is for another device is never deserialised.
    assert marks(mark) == []
    assert gpu_standin.run(tensorrt_bundle, "finish", **variables).returncode == 0
    assert f"built {cache} a timing cache" in marks(mark)
    assert not json.loads(gpu_standin.run(tensorrt_bundle, "verify", "--json", **variables).stdout)[
        "variant"
    ]["fallback"]


def test_a_new_bundle_in_the_old_one_s_place(
    gpu_standin: StandIn, tensorrt_bundle: Path, tmp_path: Path
) -> None:
    """Its engine is another; what was measured on this GPU still saves time."""
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    contents = replace(tensorrt_contents(), name="newer")
    bundle.write(tensorrt_bundle, measured(replace(contents, built=contents.original)))
    done = gpu_standin.run(tensorrt_bundle, "info", "--json")
    (passed,) = json.loads(done.stdout)["variant"]["passed_over"]
    assert "for another bundle" in passed["what"]
    mark = tmp_path / "mark"
    done = gpu_standin.run(tensorrt_bundle, "finish", STANDIN_MARK=str(mark))
    assert done.returncode == 0
    assert "built with a timing cache" in marks(mark)
    assert key_of(tensorrt_bundle)["engine"]["bundle"] != passed["why"]


def test_a_missed_gate_seals_nothing(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    """As INT8 that collapsed: the engine builds and runs, and answers nonsense."""
    done = gpu_standin.run(tensorrt_bundle, "finish", "--json", STANDIN_WRONG="1")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "engine-gate-missed"
    assert "fidelity: FAIL y: SNR 5.7 dB" in error["why"]
    assert beside(tensorrt_bundle) == [tensorrt_bundle.name]
    # Nor does it touch one that was good.
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    before = sealed(tensorrt_bundle).read_bytes()
    missed = gpu_standin.run(tensorrt_bundle, "finish", "--force", STANDIN_WRONG="1")
    assert missed.returncode == 1
    assert sealed(tensorrt_bundle).read_bytes() == before
    assert len(beside(tensorrt_bundle)) == 2


def test_a_bundle_that_needs_no_finish(gpu_standin: StandIn, linear_bundle: Path) -> None:
    done = gpu_standin.run(linear_bundle, "finish", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "nothing-to-finish"
    assert done.stderr.startswith(
        "error[nothing-to-finish]: the bundle has no engine to build on the device\n"
    )


def test_without_a_gpu_verify_falls_back_aloud(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    for variables in ({"STANDIN_GPU": ""}, {"STANDIN_CRASH": "cuInit"}):
        done = gpu_standin.run(tensorrt_bundle, "verify", "--json", **variables)
        assert (done.returncode, json.loads(done.stdout)["verdict"]) == (1, "UNVERIFIED")
        variant = json.loads(done.stdout)["variant"]
        assert (variant["name"], variant["fallback"]) == ("onnxruntime", True)
        assert [passed["code"] for passed in variant["passed_over"]] == ["gpu-missing"]
        assert done.stderr.startswith("FALLBACK: ")


def test_an_engine_that_does_not_start_is_passed_over_too(
    gpu_standin: StandIn, tensorrt_bundle: Path
) -> None:
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    done = gpu_standin.run(tensorrt_bundle, "verify", "--json", STANDIN_FAIL="cudaStreamCreate")
    (passed,) = json.loads(done.stdout)["variant"]["passed_over"]
    assert (passed["code"], done.returncode) == ("cuda-failed", 1)
    forced = gpu_standin.run(
        tensorrt_bundle,
        "verify",
        "--json",
        "--variant",
        "tensorrt",
        STANDIN_FAIL="cudaStreamCreate",
    )
    assert forced.returncode == 2
    assert json.loads(forced.stdout)["error"]["code"] == "cuda-failed"


def test_load_warns_of_a_fallback(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from runtime import load\n"
        "print(load(variant=sys.argv[2]).choice.require_variant().engine)"
    )

    def loaded(variant: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, str(tensorrt_bundle), variant],
            env=gpu_standin.environment(),
            capture_output=True,
            text=True,
        )

    done = loaded("")
    assert done.stdout == "onnxruntime\n"
    assert "RuntimeWarning: FALLBACK: running in onnxruntime" in done.stderr
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    done = loaded("")
    assert (done.stdout, done.stderr) == ("tensorrt\n", "")


POINTS = [
    ("rename", 1),
    ("fsync", 1),
    ("fsync", 2),
    *(("pwrite64,write", count) for count in (1, 2)),
    ("ftruncate", 1),
    ("fchmod", 1),
    ("unlink", 1),
]


@pytest.mark.skipif(STRACE is None, reason="no strace: apt-get install strace")
@pytest.mark.parametrize("before", ["nothing", "an engine"])
@pytest.mark.parametrize(("call", "count"), POINTS)
def test_killed_at_every_point(
    gpu_standin: StandIn, tensorrt_bundle: Path, call: str, count: int, before: str
) -> None:
    """What stands there is the old engine, a whole new one, or none; the next finish works."""
    if before == "an engine":
        assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    old = sealed(tensorrt_bundle).read_bytes() if before == "an engine" else None
    # Calls that touch the folder of the bundle alone.
    command = [
        STRACE, "-f", "-qq", "-o", os.devnull, "-P", str(part(tensorrt_bundle)),
        "-P", str(tensorrt_bundle.parent), "-e", f"trace={call}",
        "-e", f"inject={call}:signal=SIGKILL:when={count}",
        sys.executable, str(tensorrt_bundle), "finish", "--force",
    ]  # fmt: skip
    killed = subprocess.run(
        command, env=gpu_standin.environment(), capture_output=True, text=True, timeout=120
    )
    if call != "unlink" and (call, count) not in (("pwrite64,write", 2),):
        assert killed.returncode == -signal.SIGKILL or killed.returncode == 137, killed.stderr
    there = sealed(tensorrt_bundle)
    if there.exists():
        with Archive(str(there), "key.json") as archive:
            assert len(archive.entries) == 3
        assert old is None or there.read_bytes() == old or key_of(tensorrt_bundle)
    else:
        assert old is None
    # Whatever the kill left, the loader runs, and the next finish leaves two files.
    # Without a sealed engine only the fallback runs, and the verdict is UNVERIFIED.
    status = int(not sealed(tensorrt_bundle).exists())
    assert gpu_standin.run(tensorrt_bundle, "verify").returncode == status
    again = gpu_standin.run(tensorrt_bundle, "finish")
    assert again.returncode == 0, again.stderr
    assert len(beside(tensorrt_bundle)) == 2
    verdict = json.loads(gpu_standin.run(tensorrt_bundle, "verify", "--json").stdout)
    assert verdict["variant"]["sealed"]


@pytest.mark.skipif(STRACE is None, reason="no strace: apt-get install strace")
@pytest.mark.parametrize(
    ("call", "fault", "why"),
    [
        ("write,pwrite64", "ENOSPC", "No space left on device"),
        ("fsync", "EIO", "Input/output error"),
        ("rename", "EACCES", "Permission denied"),
        ("openat", "EROFS", "Read-only file system"),
    ],
)
def test_a_disk_that_fails(
    gpu_standin: StandIn, tensorrt_bundle: Path, tmp_path: Path, call: str, fault: str, why: str
) -> None:
    command = [
        STRACE, "-f", "-qq", "-o", os.devnull, "-P", str(part(tensorrt_bundle)),
        "-e", f"trace={call}", "-e", f"inject={call}:error={fault}:when=1+",
        sys.executable, str(tensorrt_bundle), "finish", "--json",
    ]  # fmt: skip
    mark = tmp_path / "mark"
    environment = gpu_standin.environment(STANDIN_MARK=str(mark))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["why"]) == ("output-unwritable", why)
    # A folder that takes nothing is found out before the build, which may take ten minutes.
    assert bool(marks(mark)) == (call != "openat")
    mark.unlink(missing_ok=True)
    assert beside(tensorrt_bundle) == [tensorrt_bundle.name]
    # Where an engine is there already, nothing needs to be written.
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr


def test_two_at_a_time(gpu_standin: StandIn, tensorrt_bundle: Path) -> None:
    with part(tensorrt_bundle).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = gpu_standin.run(tensorrt_bundle, "finish", "--json")
        assert done.returncode == 2
        assert json.loads(done.stdout)["error"]["code"] == "finish-running"
        assert part(tensorrt_bundle).exists()
    # Its holder is gone: the file is taken over.
    assert gpu_standin.run(tensorrt_bundle, "finish").returncode == 0
    assert len(beside(tensorrt_bundle)) == 2
