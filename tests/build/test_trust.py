"""What vouches for a bundle: edgepack's own loader, a hash beside it, a signature."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import __version__, bundle, signing
from edgepack.bundle import Demands, admit, copy_sealed, loader
from edgepack.device import ready
from edgepack.errors import DeviceError, EdgepackError
from support.build_cases import Answer, Home, ask, edgepack, entry, one_document
from support.bundle_cases import Keys, reseal, run_bundle
from support.linear import linear_contents

# Prints a verdict, and leaves a trace of having run.
HOSTILE = b"""
import sys
open({trace!r}, "w").write("ran")
if "--json" in sys.argv:
    print('{{"passed": true, "format": "edgepack-verdict/1"}}')
else:
    print("verdict: PASS")
sys.exit(0)
"""


@pytest.fixture(scope="module")
def signed(home: Home, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of tiny.onnx, signed by its build; with what stands beside it."""
    output = tmp_path_factory.mktemp("signed") / "tiny.edgepack"
    arguments = home.build("tiny.onnx", "--evaluation", home / "evaluation.npz", "--no-emulate")
    answer = ask(*arguments, "--output", str(output), "--sign", str(keys.key))
    assert answer.status == 0, answer.stderr
    assert answer.document["bundle"]["signed"] == signing.fingerprint(keys.key)
    assert answer.document["bundle"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    return output


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    """The signed bundle, its hash and its signature, in a folder of their own."""
    shutil.copytree(signed.parent, tmp_path / "copy")
    return tmp_path / "copy" / signed.name


def beside(bundle: Path, suffix: str) -> Path:
    return Path(f"{bundle}{suffix}")


def command(name: str, bundle: Path, folder: Path) -> list[str]:
    """A command that reads a bundle, complete but for its options."""
    more = {
        "run": ["--output", str(folder / "out.npz")],
        "bench": ["--length", "smoke"],
        "inspect": ["-q"],
        "ship": [],
        "verify": [],
    }
    place = ["ssh://nobody.invalid/x.edgepack"] if name == "ship" else []
    return [name, str(bundle), *place, *more[name]]


READERS = ("verify", "run", "bench", "inspect", "ship")


# The loader


def hostile(source: Path, folder: Path) -> tuple[Path, Path]:
    """A bundle whose every way into its code is hostile, and the trace that any of them leaves."""
    trace, path = folder / "trace", folder / "hostile.edgepack"
    code = HOSTILE.decode().format(trace=str(trace)).encode()
    names = ("__main__.py", "runtime/cli.py", "runtime/__init__.py", "json.py", "numpy.py")
    reseal(source, path, dict.fromkeys(names, code))
    return path, trace


def test_a_hostile_loader_runs_where_python_runs_the_bundle(
    linear_bundle: Path, tmp_path: Path
) -> None:
    """Otherwise the next test would show nothing."""
    path, trace = hostile(linear_bundle, tmp_path)
    done = run_bundle(path, "verify")
    assert (done.returncode, "verdict: PASS" in done.stdout) == (0, True)
    assert trace.exists()


@pytest.mark.parametrize("name", ["verify", "run", "bench", "inspect", "emulate", "count"])
def test_no_code_in_a_bundle_runs_on_this_host(name: str, built: Path, tmp_path: Path) -> None:
    path, trace = hostile(built, tmp_path)
    arguments = {
        "emulate": ["verify", str(path), "--emulate", "Haswell"],
        "count": ["bench", str(path), "--emulate", "Haswell", "--instructions"],
    }.get(name) or command(name, path, tmp_path)
    if name in ("emulate", "count") and ready("Haswell"):
        pytest.skip("no qemu-x86_64: apt-get install qemu-user")
    answer = ask(*arguments)
    assert not trace.exists()
    if name == "count" and answer.code:
        pytest.skip(f"nothing counts instructions here: {answer.code}")
    assert answer.status == 0, answer.stderr
    assert "matches no release known to this edgepack; it is not run here" in answer.stderr
    trust = answer.document["trust"]
    assert trust["loader"]["release"] is None
    assert trust["loader"]["digest"] not in loader.own_digests()
    if name == "verify":
        assert answer.document["integrity"]["files"] > 50


def test_a_printed_verdict_does_not_replace_a_measured_one(built: Path, tmp_path: Path) -> None:
    path, trace = hostile(built, tmp_path)
    wrong = entry(path, "reference/input-0.npy")
    reseal(path, path.with_name("wrong.edgepack"), {"reference/built-0.npy": wrong})
    answer = ask("verify", str(path.with_name("wrong.edgepack")))
    assert answer.status != 0
    assert not trace.exists()


def test_this_release_s_own_loader_is_recognised(built: Path) -> None:
    answer = ask("inspect", str(built), "-q")
    assert answer.document["trust"]["loader"] == {
        "digest": loader.own(frozenset({loader.Need.TUNE})).digest,
        "release": __version__,
    }
    assert "no release" not in answer.stderr


@pytest.mark.parametrize("name", ["json.py", "runtime/extra.py", "numpy/__init__.py"])
def test_a_module_beside_the_loader_makes_it_another(
    name: str, linear_bundle: Path, tmp_path: Path
) -> None:
    """Python looks into the bundle first, before its own library."""
    path = tmp_path / "x.edgepack"
    reseal(linear_bundle, path, {name: b"pass"})
    with admit(path) as admitted:
        assert admitted.loader.release is None


def test_a_loader_of_an_earlier_release_is_known(
    linear_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.edgepack"
    reseal(linear_bundle, path, {"runtime/extra.py": b"pass"})
    with admit(path) as admitted:
        earlier = admitted.loader.digest
    monkeypatch.setattr(loader, "RELEASES", {earlier: "0.0.9"})
    with admit(path) as admitted:
        assert admitted.loader.release == "0.0.9"


# The report


def forged(source: Path, path: Path) -> None:
    """Figures as somebody would like them, and a page of his own."""
    report = json.loads(entry(source, "report/report.json"))
    for gate in report["quality"]["gates"]:
        gate["measured"] = 99.9
    page = b"<h1>PASS 99.9 dB</h1><script>fetch('http://evil/')</script>"
    reseal(source, path, {
        "report/report.json": json.dumps(report).encode(), "report/report.html": page,
    })  # fmt: skip


def test_a_forged_report_changes_the_digest_of_the_file(signed: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.edgepack"
    forged(signed, path)
    honest, other = (ask("inspect", str(p), "-q").document for p in (signed, path))
    assert honest["index"]["content_digest"] == other["index"]["content_digest"]
    assert honest["trust"]["sha256"] != other["trust"]["sha256"]
    for suffix in (".sha256", ".sig"):
        shutil.copy(beside(signed, suffix), tmp_path)
    assert ask("inspect", str(path)).code == "bundle-checksum"


def test_a_page_is_drawn_from_the_figures_not_copied(signed: Path, tmp_path: Path) -> None:
    path, page = tmp_path / "x.edgepack", tmp_path / "page.html"
    forged(signed, path)
    assert ask("inspect", str(path), "--html", str(page)).status == 0
    text = page.read_text(encoding="utf-8")
    assert "evil" not in text
    assert "<h1>PASS 99.9" not in text
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text


def test_a_report_of_another_bundle_is_refused(signed: Path, tmp_path: Path) -> None:
    report = json.loads(entry(signed, "report/report.json"))
    report["bundle"]["content_digest"] = "0" * 64
    path = tmp_path / "x.edgepack"
    for data, why in (
        (json.dumps(report).encode(), "another bundle"),
        (b"[" * 10_000, "nested deeper"),
        (b'{"bundle": 1, "bundle": 2}', "repeated"),
        (b'{"bundle": NaN}', "NaN"),
    ):
        reseal(signed, path, {"report/report.json": data})
        answer = ask("inspect", str(path))
        assert (answer.status, answer.code) == (2, "bundle-report")
        assert why in answer.document["error"]["why"]


def test_both_digests_are_printed(signed: Path) -> None:
    digest = hashlib.sha256(signed.read_bytes()).hexdigest()
    content = json.loads(entry(signed, "bundle.json"))["content_digest"]
    for done in (edgepack("inspect", str(signed)), run_bundle(signed, "info")):
        assert re.search(rf"^ *content +{content}$", done.stdout, re.MULTILINE)
        assert re.search(rf"^ *sha256 +{digest}$", done.stdout, re.MULTILINE)
    assert f"SHA-256 {digest}" in run_bundle(signed, "verify").stdout


# The hash beside the bundle


def test_sha256sum_checks_what_the_build_wrote(signed: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", f"{signed.name}.sha256"],
        cwd=signed.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{signed.name}: OK\n")


@pytest.mark.parametrize("name", ["a b", "back\\slash", "new\nline", "ü", "-x"])
def test_any_name_is_written_as_sha256sum_writes_it(name: str, tmp_path: Path) -> None:
    from edgepack.bundle import publish
    from edgepack.runtime.bundle.checksum import read_checksum

    path, temporary = tmp_path / name, tmp_path / "temporary"
    temporary.write_bytes(b"contents")
    digest = publish(temporary, path)
    assert read_checksum(str(path)) == digest
    command = ["sha256sum", "--check", "--strict", "--status", f"./{name}.sha256"]
    subprocess.run(command, cwd=tmp_path, check=True)


@pytest.mark.parametrize("arguments", [["verify"], ["info"], ["setup", "env"], ["finish"]])
@pytest.mark.parametrize(
    "text", ["0" * 64 + "  tiny.edgepack\n", "", "not a hash\n", "0" * 63, None]
)
def test_the_loader_refuses_a_bundle_that_the_hash_beside_it_does_not_fit(
    arguments: list[str], text: str | None, copy: Path
) -> None:
    beside(copy, ".sha256").unlink()
    if text is None:
        os.mkfifo(beside(copy, ".sha256"))
    else:
        beside(copy, ".sha256").write_text(text)
    done = run_bundle(copy, *arguments, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "bundle-checksum"


@pytest.mark.parametrize("name", READERS)
def test_so_does_every_command_here(name: str, copy: Path, tmp_path: Path) -> None:
    beside(copy, ".sha256").write_text("0" * 64 + "  tiny.edgepack\n")
    answer = ask(*command(name, copy, tmp_path))
    assert (answer.status, answer.code) == (2, "bundle-checksum")


@pytest.mark.parametrize("name", READERS)
def test_a_hash_that_was_not_expected_is_refused_before_the_file_is_read(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.edgepack"
    path.write_bytes(b"no bundle at all")
    answer = ask(*command(name, path, tmp_path), "--expect", "0" * 64)
    assert (answer.status, answer.code) == (2, "bundle-checksum")
    assert hashlib.sha256(path.read_bytes()).hexdigest() in answer.document["error"]["why"]


def test_the_hash_that_is_expected_is_accepted(signed: Path) -> None:
    digest = hashlib.sha256(signed.read_bytes()).hexdigest()
    answer = ask("verify", str(signed), "--expect", digest.upper())
    assert answer.status == 0, answer.stderr
    assert answer.document["trust"]["sha256"] == digest
    done = edgepack("verify", str(signed), "--expect", digest[:-1], "--json")
    assert (done.returncode, one_document(done.stdout)["error"]["code"]) == (2, "usage")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("size", [0, 1000, -1])
def test_what_is_left_of_a_bundle_is_no_missed_gate(
    name: str, size: int, linear_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.edgepack"
    path.write_bytes(linear_bundle.read_bytes()[:size])
    answer = ask(*command(name, path, tmp_path))
    assert (answer.status, answer.code) == (2, "bundle-malformed")


@pytest.mark.parametrize(
    "data", [b"def broken(:\n", b"\0\0\0", b"raise ImportError('gone')\n", b"import none_such\n"]
)
@pytest.mark.parametrize("name", ["runtime/cli.py", "runtime/streams.py", "runtime/errors.py"])
def test_a_damaged_loader_ends_with_2(
    name: str, data: bytes, linear_bundle: Path, tmp_path: Path
) -> None:
    """Python checks no hash of what it imports, and would end with 1: a missed gate."""
    path = tmp_path / "x.edgepack"
    reseal(linear_bundle, path, {name: data}, seal=False)
    done = run_bundle(path, "verify", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "bundle-damaged"
    assert done.stderr.startswith("error[bundle-damaged]: ")
    assert "Traceback" not in done.stderr


# Signatures


@pytest.mark.parametrize("name", ["verify", "run", "inspect"])
def test_a_signed_bundle_is_accepted(name: str, signed: Path, keys: Keys, tmp_path: Path) -> None:
    options = ["--signers", str(keys.signers), "--require-signature"]
    answer = ask(*command(name, signed, tmp_path), *options)
    assert answer.status == 0, answer.stderr
    assert answer.document["trust"]["signature"] == {
        "signer": "builder@example.org", "key": signing.fingerprint(keys.key),
    }  # fmt: skip
    assert ask(*command(name, signed, tmp_path)).document["trust"]["signature"] is None


def test_openssh_alone_checks_it_on_a_device(signed: Path, keys: Keys, copy: Path) -> None:
    assert 'Good "edgepack" signature for builder@example.org' in keys.verify(signed).stdout
    copy.write_bytes(copy.read_bytes()[:-1] + b"\1")
    assert keys.verify(copy).returncode != 0


def stripped(copy: Path, keys: Keys) -> None:
    beside(copy, ".sig").unlink()


def changed(copy: Path, keys: Keys) -> None:
    """By somebody who makes everything inside, and the hash beside it, consistent again."""
    reseal(copy, copy.with_name("new"), {"report/report.html": b"PASS"})
    copy.with_name("new").replace(copy)
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    beside(copy, ".sha256").write_text(f"{digest}  {copy.name}\n")


def foreign(copy: Path, keys: Keys) -> None:
    beside(copy, ".sig").write_bytes(signing.sign(copy, keys.other))


def of_another_purpose(copy: Path, keys: Keys) -> None:
    with copy.open("rb") as data:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-f", keys.key, "-n", "git"],
            stdin=data, capture_output=True, check=True,
        )  # fmt: skip
    beside(copy, ".sig").write_bytes(done.stdout)


def cut(copy: Path, keys: Keys) -> None:
    path = beside(copy, ".sig")
    path.write_bytes(path.read_bytes()[:80])


def no_signature(copy: Path, keys: Keys) -> None:
    beside(copy, ".sig").write_text("signed, honestly\n")


def a_pipe(copy: Path, keys: Keys) -> None:
    beside(copy, ".sig").unlink()
    os.mkfifo(beside(copy, ".sig"))


FAULTS = {
    stripped: "signature-missing",
    changed: "signature-mismatch",
    foreign: "signature-foreign",
    of_another_purpose: "signature-mismatch",
    cut: "signature-malformed",
    no_signature: "signature-malformed",
    a_pipe: "signature-malformed",
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_what_no_accepted_key_signed_is_refused(
    name: str, fault: object, copy: Path, keys: Keys, tmp_path: Path
) -> None:
    fault(copy, keys)
    answer = ask(*command(name, copy, tmp_path), "--signers", str(keys.signers))
    assert (answer.status, answer.code) == (2, FAULTS[fault])
    assert answer.document["error"]["why"]
    assert not (tmp_path / "out.npz").exists()


def test_a_signature_comes_before_anything_in_the_bundle(keys: Keys, tmp_path: Path) -> None:
    """What is no bundle at all is refused for its signature."""
    path = tmp_path / "x.edgepack"
    path.write_bytes(b"no bundle at all")
    options = ["--signers", str(keys.signers)]
    assert ask("verify", str(path), *options).code == "signature-missing"
    beside(path, ".sig").write_bytes(signing.sign(path, keys.other))
    assert ask("verify", str(path), *options).code == "signature-foreign"
    beside(path, ".sig").write_bytes(signing.sign(path, keys.key))
    assert ask("verify", str(path), *options).code == "bundle-malformed"


def test_keys_that_expired_or_serve_something_else_are_refused(
    copy: Path, keys: Keys, tmp_path: Path
) -> None:
    public = keys.signers.read_text().split(maxsplit=1)[1]
    for option in ('valid-before="20200101"', 'namespaces="git"'):
        signers = tmp_path / "signers"
        signers.write_text(f"builder@example.org {option} {public}")
        answer = ask("verify", str(copy), "--signers", str(signers))
        assert answer.status == 2
        assert answer.code in ("signature-foreign", "signature-mismatch")


def test_what_was_checked_is_what_is_read(copy: Path, keys: Keys) -> None:
    before = copy.read_bytes()
    with admit(copy, Demands(signers=keys.signers)) as admitted:
        copy.write_bytes(b"swapped")
        assert admitted.path.read_bytes() == before
        assert admitted.path.parent.stat().st_mode & 0o777 == 0o700
    assert not admitted.path.exists()


def test_the_environment_and_a_policy_ask_for_signatures(
    copy: Path, keys: Keys, tmp_path: Path
) -> None:
    beside(copy, ".sig").unlink()
    folder = tmp_path / "config" / "edgepack"
    folder.mkdir(parents=True)
    here = {"XDG_CONFIG_HOME": str(folder.parent)}

    def verify(*options: str, **env: str) -> Answer:
        return ask("inspect", "-q", str(copy), *options, env={**here, **env})

    assert verify().status == 0
    assert verify("--require-signature").code == "signature-signers"
    assert verify(EDGEPACK_SIGNERS=str(keys.signers)).code == "signature-missing"
    policy = folder / "policy.toml"
    policy.write_text("require_signature = true\n")
    assert verify().code == "signature-signers"
    policy.write_text(f"signers = {str(keys.signers)!r}\n")
    assert verify().code == "signature-missing"
    # A relative path starts from the policy.
    shutil.copy(keys.signers, folder / "allowed")
    policy.write_text('signers = "allowed"\nrequire_signature = true\n')
    assert verify().code == "signature-missing"
    for text in ("signers = 1\n", "signer = 'x'\n", "require_signature = 'no'\n"):
        policy.write_text(text)
        assert verify().code == "policy-invalid"
    policy.write_text("[")
    assert verify().code == "spec-not-toml"


@pytest.mark.parametrize("text", [None, ""])
def test_a_list_of_keys_that_holds_none(text: str | None, signed: Path, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "signers").write_text(text)
    answer = ask("verify", str(signed), "--signers", str(tmp_path / "signers"))
    assert (answer.status, answer.code) == (2, "signature-signers")


def test_without_openssh(
    copy: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for arguments in (
        ["verify", str(copy), "--signers", str(keys.signers)],
        ["sign", str(copy), "--key", str(keys.key)],
    ):
        answer = ask(*arguments)
        assert (answer.status, answer.code) == (2, "ssh-keygen-missing")
        assert "openssh-client" in answer.document["error"]["hint"]


def test_a_bundle_is_signed_afterwards(copy: Path, keys: Keys) -> None:
    beside(copy, ".sig").unlink()
    answer = ask("sign", str(copy), "--key", str(keys.key))
    assert answer.status == 0, answer.stderr
    assert answer.document["signature"] == str(beside(copy, ".sig"))
    assert answer.document["key"] == signing.fingerprint(keys.key)
    assert keys.verify(copy).returncode == 0


def test_what_is_damaged_or_no_key_is_not_signed(copy: Path, keys: Keys) -> None:
    beside(copy, ".sig").unlink()
    for key in (copy, copy.with_name("none")):
        assert ask("sign", str(copy), "--key", str(key)).code == "signature-key"
    # A draft: no build accepted it.
    draft = copy.with_name("draft.edgepack")
    bundle.write(draft, replace(linear_contents(), quality={}))
    assert ask("sign", str(draft), "--key", str(keys.key)).code == "bundle-rejected"
    copy.write_bytes(copy.read_bytes()[:-1])
    assert ask("sign", str(copy), "--key", str(keys.key)).code == "bundle-malformed"
    assert not beside(copy, ".sig").exists()


def test_a_key_is_checked_before_anything_is_built(home: Home, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key\n")
    arguments = home.build("tiny.onnx", "--output", str(tmp_path / "x.edgepack"))
    answer = ask(*arguments, "--sign", str(tmp_path / "key"))
    assert (answer.status, answer.code) == (2, "signature-key")
    assert "export" not in answer.stderr
    answer = ask(*arguments, "--sign", str(tmp_path / "none"))
    assert answer.code == "signature-key"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_rejected_bundle_has_a_hash_and_no_signature(
    home: Home, keys: Keys, signed: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.toml").write_text("schema = 1\n[gates.quality]\nsnr_db = 300\n")
    output = tmp_path / "x.edgepack"
    arguments = home.build("tiny.onnx", "--manifest", str(tmp_path / "m.toml"), "--no-emulate")
    answer = ask(*arguments, "--output", str(output), "--sign", str(keys.key))
    assert answer.code == "gate-missed"
    aside = "x.rejected.edgepack"
    assert {path.name for path in tmp_path.iterdir()} == {"m.toml", aside, f"{aside}.sha256"}
    command = ["sha256sum", "--check", "--status", f"{aside}.sha256"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_a_build_without_a_key_removes_the_signature_of_the_bundle_before(
    home: Home, copy: Path
) -> None:
    answer = ask(*home.build("tiny.onnx", "--no-emulate"), "--output", str(copy))
    assert answer.status == 0, answer.stderr
    assert "signed" not in answer.document["bundle"]
    assert sorted(path.name for path in copy.parent.iterdir()) == [
        "tiny.edgepack", "tiny.edgepack.sha256",
    ]  # fmt: skip


def test_a_sealed_engine_goes_with_the_copy_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    bundle, copied = tmp_path / "x.edgepack", tmp_path / "private" / "x.edgepack"
    copy_sealed(bundle, copied)
    assert not beside(copied, ".engine").exists()
    beside(bundle, ".engine").write_bytes(b"plan")
    beside(bundle, ".engine").chmod(0o644)
    copy_sealed(bundle, copied)
    assert beside(copied, ".engine").read_bytes() == b"plan"
    beside(bundle, ".engine").chmod(0o666)
    with pytest.raises(DeviceError) as caught:
        copy_sealed(bundle, copied)
    assert caught.value.code == "engine-untrusted"


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        with pytest.raises(EdgepackError) as caught, admit(tmp_path / name, Demands("0" * 64)):
            pass
        assert caught.value.code == "bundle-unreadable"


def test_every_code_file_of_a_bundle_counts_as_its_loader(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if not name.startswith(loader.DATA)}
    assert names - {"bundle.json"} == set(loader.read_files(frozenset({loader.Need.TUNE})))
