"""Signatures of bundles, made and checked by OpenSSH: `ssh-keygen -Y sign` and `-Y verify`.

A hash protects against accidents: whoever can change a bundle can change the hash beside it, too.
A signature protects against people, as far as the list of keys that it is held against comes from
elsewhere. `NAME.edgepack.sig` is over the whole file, so it holds for every byte that ships, and a
device needs nothing but OpenSSH to check it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgepack import files
from edgepack.errors import BundleError, HostError, SpecError
from edgepack.spec import document

SUFFIX = ".sig"
# Keeps a signature that a key made for something else from passing as one of a bundle.
NAMESPACE = "edgepack"
MAX_BYTES = 1 << 16
HEADER = b"-----BEGIN SSH SIGNATURE-----"
# Names the file of accepted keys where no option does.
VARIABLE = "EDGEPACK_SIGNERS"
POLICY = "policy.toml"


@dataclass(frozen=True)
class Signature:
    """A signature that holds.

    Attributes:
        signer: the identity that the list of accepted keys gives to the key.
        key: the fingerprint of the key.
    """

    signer: str
    key: str

    def to_json(self) -> dict[str, str]:
        """Return it as JSON values."""
        return {"signer": self.signer, "key": self.key}


def fingerprint(key: Path) -> str:
    """Return the fingerprint of a key, which proves before a build that it is one.

    Args:
        key: a private key; or a public one, whose private half an ssh-agent holds.

    Raises HostError where there is no ssh-keygen, SpecError where the file is not a key.
    """
    if not key.is_file():
        raise SpecError(
            "signature-key",
            f"there is no key {key}",
            why="it is not a file",
            hint="ssh-keygen -t ed25519 -f KEY makes one",
        )
    done = _run(["-l", "-f", str(key)])
    if done.returncode != 0:
        raise SpecError(
            "signature-key",
            f"{key} is not a key that OpenSSH reads",
            why=_said(done),
            hint="ssh-keygen -t ed25519 -f KEY makes one",
        )
    return done.stdout.decode("utf-8", "replace").split()[1]


def sign(file: Path, key: Path) -> bytes:
    """Sign a file with a private key, or with the ssh-agent that holds it.

    Raises HostError where there is no ssh-keygen, SpecError where the key cannot be used.
    """
    with file.open("rb") as data:
        done = _run(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], data.fileno())
    if done.returncode != 0 or not done.stdout.startswith(HEADER):
        raise SpecError(
            "signature-key",
            f"{key} cannot sign",
            why=_said(done),
            hint="a key with a passphrase needs a terminal or an ssh-agent; for the agent, give "
            "the public key",
        )
    _require_valid(file, done.stdout)
    return done.stdout


def _require_valid(file: Path, signature: bytes) -> None:
    """Check a new signature as its reader will, whoever's the key is."""
    with tempfile.NamedTemporaryFile(prefix="edgepack-", suffix=SUFFIX) as copy:
        copy.write(signature)
        copy.flush()
        command = ["-Y", "check-novalidate", "-n", NAMESPACE, "-s", copy.name]
        with file.open("rb") as data:
            done = _run(command, data.fileno())
    if done.returncode != 0:
        raise BundleError(
            "signature-mismatch",
            "the new signature does not hold for this bundle",
            why=_said(done),
            hint="sign it again; if this recurs, the disk or the key's hardware is faulty",
        )


def read(signature: Path) -> bytes:
    """Read the file of a signature; empty where there is none.

    Raises BundleError where it is not a signature.
    """
    try:
        with files.open_plain(signature) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _malformed(error.strerror or str(error)) from error
    if len(data) > MAX_BYTES or not data.startswith(HEADER):
        raise _malformed(f"{signature.name} is not what ssh-keygen -Y sign writes")
    return data


def verify(file: Path, signature: bytes, signers: Path) -> Signature:
    """Check the signature of a file against a list of accepted keys.

    Args:
        file: what is signed; it must not change meanwhile.
        signature: as `read` returns it.
        signers: the accepted keys, in the format of ssh-keygen's ALLOWED SIGNERS.

    Raises HostError where there is no ssh-keygen, SpecError where the list cannot be read, and
    BundleError where the signature is missing, malformed, of another key, or of other bytes.
    """
    if not signature:
        raise BundleError(
            "signature-missing",
            "the bundle is not signed",
            why=f"there is no {file.name}{SUFFIX} beside it",
            hint="fetch it from where the bundle was built; `edgepack sign` makes one",
        )
    _require_signers(signers)
    with tempfile.NamedTemporaryFile(prefix="edgepack-", suffix=SUFFIX) as copy:
        copy.write(signature)
        copy.flush()
        for signer in _signers_of(copy.name, signers):
            command = ["-Y", "verify", "-f", str(signers), "-I", signer, "-n", NAMESPACE]
            with file.open("rb") as data:
                done = _run([*command, "-s", copy.name], data.fileno())
            if done.returncode == 0:
                return Signature(signer, done.stdout.decode("utf-8", "replace").split()[-1])
    raise BundleError(
        "signature-mismatch",
        "the signature does not hold for this bundle",
        why=_said(done),
        hint="do not use it; fetch the bundle and its .sig again from where it was built",
    )


def _signers_of(signature: str, signers: Path) -> list[str]:
    """List the identities that may have made a signature; one at least."""
    done = _run(["-Y", "find-principals", "-s", signature, "-f", str(signers)])
    found = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode == 0 and found:
        return found
    said = _said(done)
    if "parse signature" in said:
        raise _malformed(said)
    raise BundleError(
        "signature-foreign",
        "no accepted key made the signature of this bundle",
        why=f"{signers}: {said}",
        hint="do not use the bundle; or add the key, once its owner confirmed it",
    )


def accepted_signers(option: Path | None, required: bool) -> Path | None:
    """Find the list of accepted keys: the option, the environment, or the user's policy.

    Args:
        option: as given on the command line.
        required: whether it is an error that there is none.

    Returns None where no signature is asked for. Raises SpecError.
    """
    policy = _policy()
    named = option or Path(os.environ.get(VARIABLE, "") or policy.signers or "")
    if named != Path():
        return named
    if required or policy.required:
        raise SpecError(
            "signature-signers",
            "a signature is required, and no list of accepted keys is configured",
            why=f"neither --signers nor ${VARIABLE} nor {policy_path()} names one",
            hint="--signers ALLOWED_SIGNERS",
        )
    return None


@dataclass(frozen=True)
class _Policy:
    """The user's policy: the list of accepted keys, and whether there must be one."""

    signers: str = ""
    required: bool = False


def policy_path() -> Path:
    """Return the path of the user's policy file."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edgepack" / POLICY


def _policy() -> _Policy:
    path = policy_path()
    if not path.exists():
        return _Policy()
    stated = document.read(path)
    signers, required = stated.get("signers", ""), stated.get("require_signature", False)
    unknown = sorted(set(stated) - {"signers", "require_signature"})
    if unknown or type(signers) is not str or type(required) is not bool:
        raise SpecError(
            "policy-invalid",
            f"{path} is not a valid policy",
            why=f"unknown keys: {', '.join(unknown)}" if unknown else "a value has the wrong type",
            hint='signers = "PATH" and require_signature = true are all that it may hold',
        )
    # A relative path starts from the policy's folder.
    return _Policy(str(path.parent / Path(signers).expanduser()) if signers else "", required)


def _require_signers(signers: Path) -> None:
    try:
        with signers.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SpecError(
            "signature-signers",
            f"the list of accepted keys cannot be read: {signers}",
            why=error.strerror or str(error),
            hint="each line is IDENTITY KEY-TYPE KEY, as in the public key file",
        ) from error
    if empty:
        raise SpecError(
            "signature-signers",
            f"the list of accepted keys is empty: {signers}",
            hint="each line is IDENTITY KEY-TYPE KEY, as in the public key file",
        )


def _malformed(why: str) -> BundleError:
    return BundleError(
        "signature-malformed",
        "the signature beside the bundle is not intact",
        why=why,
        hint="fetch it again from where the bundle was built",
    )


def _run(arguments: Sequence[str], stdin: int = subprocess.DEVNULL) -> _Done:
    try:
        return subprocess.run(["ssh-keygen", *arguments], stdin=stdin, capture_output=True)
    except FileNotFoundError as error:
        raise HostError(
            "ssh-keygen-missing",
            "bundles are neither signed nor checked without OpenSSH",
            why="there is no ssh-keygen on PATH",
            hint="apt-get install openssh-client",
        ) from error


_Done = subprocess.CompletedProcess[bytes]


def _said(done: _Done) -> str:
    lines = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
    return "\n".join(lines[-4:]) or f"ssh-keygen ended with exit status {done.returncode}"
