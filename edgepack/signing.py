"""Signatures of bundles by OpenSSH: `ssh-keygen -Y sign` and `-Y verify`.

A hash protects against accidents, because anyone who can change a bundle can also change the hash
beside it. A signature protects against attackers if the list of accepted keys comes from elsewhere.
`NAME.edgepack.sig` covers the whole file, so it holds for every byte that ships, and a device needs
only OpenSSH to check it.
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
from edgepack.spec import toml_reader

SUFFIX = ".sig"
# Prevents the use of a signature that a key made for another purpose, such as a git commit.
NAMESPACE = "edgepack"
MAX_BYTES = 1 << 16
HEADER = b"-----BEGIN SSH SIGNATURE-----"
# Environment variable with the path of the accepted keys, used without an option.
VARIABLE = "EDGEPACK_SIGNERS"
POLICY = "policy.toml"


@dataclass(frozen=True)
class Signature:
    """Valid signature.

    Attributes:
        signer: the identity of the key in the list of accepted keys.
        key: the fingerprint of the key.
    """

    signer: str
    key: str

    def to_json(self) -> dict[str, str]:
        """Return signer and key as JSON values."""
        return {"signer": self.signer, "key": self.key}


def fingerprint(key: Path) -> str:
    """Return the fingerprint of a key; called before a build to validate the key.

    Args:
        key: a private key, or a public one if an ssh-agent has the private half.

    Raises HostError without ssh-keygen, SpecError if the file is not a key.
    """
    if not key.is_file():
        raise SpecError(
            "signature-key",
            f"there is no key {key}",
            why="it is not a file",
            hint="ssh-keygen -t ed25519 -f KEY makes one",
        )
    result = _run(["-l", "-f", str(key)])
    if result.returncode != 0:
        raise SpecError(
            "signature-key",
            f"{key} is not a key that OpenSSH reads",
            why=_last_lines(result),
            hint="ssh-keygen -t ed25519 -f KEY makes one",
        )
    # 256 SHA256:uNiVztksCsDhcc0u9e8BrrkLfNDqyJNPLtHgdXb8pXQ anna@example.org (ED25519)
    return result.stdout.decode("utf-8", "replace").split()[1]


def sign(file: Path, key: Path) -> bytes:
    """Sign a file with a private key, or with the ssh-agent that has it.

    Raises HostError without ssh-keygen, SpecError if the key cannot be used.
    """
    with file.open("rb") as data:
        result = _run(["-Y", "sign", "-f", str(key), "-n", NAMESPACE], data.fileno())
    if result.returncode != 0 or not result.stdout.startswith(HEADER):
        raise SpecError(
            "signature-key",
            f"{key} cannot sign",
            why=_last_lines(result),
            hint="a key with a passphrase needs a terminal or an ssh-agent; for the agent, pass "
            "the public key",
        )
    _require_valid(file, result.stdout)
    return result.stdout


def _require_valid(file: Path, signature: bytes) -> None:
    """Check a new signature like its reader, but accept any key."""
    with tempfile.NamedTemporaryFile(prefix="edgepack-", suffix=SUFFIX) as copy:
        copy.write(signature)
        copy.flush()
        command = ["-Y", "check-novalidate", "-n", NAMESPACE, "-s", copy.name]
        with file.open("rb") as data:
            result = _run(command, data.fileno())
    if result.returncode != 0:
        raise BundleError(
            "signature-mismatch",
            "the new signature does not hold for this bundle",
            why=_last_lines(result),
            hint="sign it again; if this recurs, the disk or the key's hardware is faulty",
        )


def read(signature: Path) -> bytes:
    """Read the file of a signature; return b"" without one.

    Raises BundleError if the file is not a signature.
    """
    try:
        with files.open_plain(signature) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _malformed(error.strerror or str(error)) from error
    # The header excludes a damaged download, for example an HTML page.
    if len(data) > MAX_BYTES or not data.startswith(HEADER):
        raise _malformed(f"{signature.name} is not what ssh-keygen -Y sign writes")
    return data


def verify(file: Path, signature: bytes, signers: Path) -> Signature:
    """Check the signature of a file against a list of accepted keys.

    Args:
        file: the signed file; it must not change meanwhile.
        signature: the result of `read`.
        signers: the accepted keys, in the format of ssh-keygen's ALLOWED SIGNERS.

    Raises HostError without ssh-keygen, SpecError if the list cannot be read, and BundleError if
    the signature is missing, malformed, by another key, or of other bytes.
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
        # A key may be listed under several identities; the first valid one counts.
        for signer in _signers_of(copy.name, signers):
            command = ["-Y", "verify", "-f", str(signers), "-I", signer, "-n", NAMESPACE]
            with file.open("rb") as data:
                result = _run([*command, "-s", copy.name], data.fileno())
            if result.returncode == 0:
                # Good "edgepack" signature for anna@example.org with ED25519 key SHA256:uNiV...
                return Signature(signer, result.stdout.decode("utf-8", "replace").split()[-1])
    raise BundleError(
        "signature-mismatch",
        "the signature does not hold for this bundle",
        why=_last_lines(result),
        hint="do not use it; fetch the bundle and its .sig again from where it was built",
    )


def _signers_of(signature: str, signers: Path) -> list[str]:
    """Return the identities of the key that made a signature; at least one."""
    # The list has a line for each key: anna@example.org,ci@example.org ssh-ed25519 AAAAC3Nza...
    # The signature holds its public key, so ssh-keygen finds the line without a name.
    result = _run(["-Y", "find-principals", "-s", signature, "-f", str(signers)])
    identities = result.stdout.decode("utf-8", "replace").splitlines()
    if result.returncode == 0 and identities:
        return identities
    message = _last_lines(result)
    # ssh-keygen has one exit status for all failures; only its message tells them apart.
    if "parse signature" in message:
        raise _malformed(message)
    raise BundleError(
        "signature-foreign",
        "no accepted key made the signature of this bundle",
        why=f"{signers}: {message}",
        hint="do not use the bundle; or add the key, once its owner confirmed it",
    )


def accepted_signers(option: Path | None, required: bool) -> Path | None:
    """Find the list of accepted keys: the option, the environment, or the user's policy.

    Args:
        option: path from the command line.
        required: raise an error if there is no list.

    Returns None if no signature is required. Raises SpecError.
    """
    policy = _policy()
    path = option or Path(os.environ.get(VARIABLE, "") or policy.signers or "")
    if path != Path():
        return path
    if required or policy.required:
        raise SpecError(
            "signature-signers",
            "a signature is required, and no list of accepted keys is configured",
            why=f"neither --signers nor ${VARIABLE} nor {policy_path()} sets one",
            hint="--signers ALLOWED_SIGNERS",
        )
    return None


@dataclass(frozen=True)
class _Policy:
    """User's policy: the list of accepted keys, and True if signatures are required."""

    signers: str = ""
    required: bool = False


def policy_path() -> Path:
    """Return the path of the user's policy file."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edgepack" / POLICY


def _policy() -> _Policy:
    # ~/.config/edgepack/policy.toml, with keys that lie beside it:
    #     signers = "allowed_signers"
    #     require_signature = true
    path = policy_path()
    if not path.exists():
        return _Policy()
    entries = toml_reader.read(path)
    signers, required = entries.get("signers", ""), entries.get("require_signature", False)
    unknown = sorted(set(entries) - {"signers", "require_signature"})
    if unknown or type(signers) is not str or type(required) is not bool:
        why = "a value has the wrong type"
        if unknown:
            why = f"unknown keys: {', '.join(unknown)}"
        raise SpecError(
            "policy-invalid",
            f"{path} is not a valid policy",
            why=why,
            hint='only signers = "PATH" and require_signature = true are allowed',
        )
    # A relative path is relative to the policy's folder.
    if signers:
        signers = str(path.parent / Path(signers).expanduser())
    return _Policy(signers, required)


def _require_signers(signers: Path) -> None:
    try:
        with signers.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise SpecError(
            "signature-signers",
            f"the list of accepted keys cannot be read: {signers}",
            why=error.strerror or str(error),
            hint="write one IDENTITY KEY-TYPE KEY per line, as in the public key file",
        ) from error
    if empty:
        raise SpecError(
            "signature-signers",
            f"the list of accepted keys is empty: {signers}",
            hint="write one IDENTITY KEY-TYPE KEY per line, as in the public key file",
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
            "signing and checking bundles needs OpenSSH",
            why="ssh-keygen is not on PATH",
            hint="apt-get install openssh-client",
        ) from error


_Done = subprocess.CompletedProcess[bytes]


def _last_lines(result: _Done) -> str:
    lines = (result.stderr or result.stdout).decode("utf-8", "replace").strip().splitlines()
    return "\n".join(lines[-4:]) or f"ssh-keygen ended with exit status {result.returncode}"
