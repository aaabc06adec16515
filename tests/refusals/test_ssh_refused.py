"""Devices that cannot be reached or used: each is one error, and nothing stays on any of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import bundle
from edgepack.device.ssh import Address, Settings, Ssh, parse, remote
from edgepack.errors import DeviceError, SpecError
from edgepack.report import render_matrix
from support.build_cases import Answer, ask, render_text
from support.linear import linear_contents
from support.ssh_server import Server, free_port, host_python

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="not root: no file system can be mounted")


def refused(path: Path, name: str, *options: str) -> dict[str, str]:
    """The error that a device's column holds; the terminal shows all of it."""
    answer = ask("verify", str(path), "--on", f"ssh://{name}", *options)
    assert answer.status == 2
    column = answer.document["devices"][0]
    assert column["name"] == f"ssh://{name}"
    assert not answer.document["passed"]
    error: dict[str, str] = column["error"]
    text = render_text(render_matrix, answer.document)
    for part in ("code", "what", "why", "hint"):
        assert error[part]
        assert error[part].splitlines()[0] in text
    return error


# Addresses


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ssh://board", Address("board")),
        ("ssh://board/", Address("board")),
        ("ssh://pi@board.local:2222", Address("board.local", "pi", 2222)),
        ("ssh://pi@corp.example@10.0.0.7", Address("10.0.0.7", "pi@corp.example")),
        ("ssh://[fe80::1%eth0]:22", Address("[fe80::1%eth0]", "", 22)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse(url) == address
    assert str(address) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("ssh://board/opt/m.edgepack", "/opt/m.edgepack"),
        ("ssh://board/~/m.edgepack", "~/m.edgepack"),
        ("ssh://board/opt/models/", "/opt/models/"),
        ("ssh://board/a%20b%0A%25%3F@c:d", "/a b\n%?@c:d"),
    ],
)
def test_paths(url: str, path: str) -> None:
    assert parse(url, path=True) == Address("board", path=path)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "ssh://"),
        ("board", "does not begin with ssh://"),
        ("http://board", "does not begin with ssh://"),
        ("ssh://", "no host"),
        ("ssh:///opt", "no host"),
        ("ssh://pi@", "no host"),
        ("ssh://:22", "no host"),
        ("ssh://-oProxyCommand=touch x", "not a valid host name"),
        ("ssh://-oProxyCommand=x/", "not a valid host name"),
        ("ssh://-lroot@board", "not a valid user name"),
        ("ssh://@board", "not a valid user name"),
        ("ssh://$(id)@board", "not a valid user name"),
        ("ssh://board;id", "not a valid host name"),
        ("ssh://bo ard", "not a valid host name"),
        ("ssh://b%6Frd", "not a valid host name"),
        ("ssh://[::1", "not a valid URL"),
        ("ssh://[pi]", "not a valid host name"),
        ("ssh://::1", "no host"),
        ("ssh://board:", "not a valid port"),
        ("ssh://board:0", "not a valid port"),
        ("ssh://board:65536", "not a valid port"),
        ("ssh://board:-22", "not a valid port"),
        ("ssh://board:٢٢", "not a valid port"),
        ("ssh://board?x=1", "query or a fragment"),
        ("ssh://board#x", "query or a fragment"),
        ("ssh://board\n", "control character"),
        ("ssh://bo\tard", "control character"),
        ("ssh://board/opt", "it has a path"),
    ],
)
def test_malformed_addresses(url: str, why: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(url)
    assert caught.value.code == "device-url"
    assert why in caught.value.why
    assert "ssh://[USER@]HOST[:PORT]" in caught.value.hint


@pytest.mark.parametrize("url", ["ssh://pi:secret@board", "ssh://pi:se@cret@board:22/x"])
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    for path in (False, True):
        with pytest.raises(SpecError) as caught:
            parse(url, path=path)
        assert caught.value.why == "it contains a password"
        assert "cret" not in str(caught.value)
        assert "ssh-copy-id board" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ssh://board", "no path"),
        ("ssh://board/", "no path"),
        ("ssh://board/a%2", "% without two hex digits"),
        ("ssh://board/a%ff", "not UTF-8"),
        ("ssh://board/a%00b", "no path"),
    ],
)
def test_malformed_paths(url: str, why: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(url, path=True)
    assert why in caught.value.why


@pytest.mark.parametrize("python", ["", "-c", "python3; id", "$(id)", "a b", "p\n"])
def test_a_python_that_a_shell_would_change(python: str) -> None:
    with pytest.raises(SpecError) as caught:
        Settings(python=python)
    assert caught.value.code == "device-python-name"


def test_on_the_command_line(linear_bundle: Path, tmp_path: Path) -> None:
    """Before anything is connected."""
    path = str(linear_bundle)
    for arguments in (("verify", path, "--on"), ("bench", path, "--on"), ("ship", path)):
        assert ask(*arguments, "ssh://-oProxyCommand=x/y").code == "device-url"
    damaged = tmp_path / "damaged.edgepack"
    damaged.write_bytes(linear_bundle.read_bytes()[:-1])
    for arguments in (
        ("verify", str(damaged), "--on", "ssh://b"),
        ("ship", str(damaged), "ssh://b/x"),
    ):
        assert ask(*arguments).code == "bundle-malformed"


def test_options_of_ssh_without_a_device(linear_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgepack", "verify", str(linear_bundle), "--keep"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "error[usage]: --keep is for a device" in done.stderr


def test_without_ssh(linear_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = ask("verify", str(linear_bundle), "--on", "ssh://board")
    assert answer.code == "ssh-missing"
    assert "openssh-client" in answer.document["error"]["hint"]


# Connections


def test_no_connection(server: Server, linear_bundle: Path) -> None:
    folder = server.folder
    server.reach("down", "host", Port=free_port())
    server.reach("nowhere", "host", HostName="no.such.host.invalid")
    server.reach("stranger", "host", UserKnownHostsFile="/dev/null")
    server.reach("changed", "host", UserKnownHostsFile=f'"{folder / "changed_hosts"}"')
    server.reach("denied", "host", IdentityFile=f'"{folder / "other_key"}"')
    for name, code, hint in (
        ("down", "device-unreachable", "ssh -F"),
        ("nowhere", "device-unknown-host", "HostName"),
        ("stranger", "device-host-key", f"ssh -F {server.config} stranger"),
        ("changed", "device-host-key-changed", "ssh-keygen -R"),
        ("denied", "device-denied", "ssh-copy-id"),
    ):
        error = refused(linear_bundle, name)
        assert error["code"] == code
        assert hint in error["hint"]
    # What ssh knew before is all that it knows.
    assert len((folder / "known_hosts").read_text().splitlines()) == 1


def test_a_host_that_never_answers(server: Server, linear_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.reach("silent", "host", Port=listener.getsockname()[1])
        error = refused(linear_bundle, "silent", "--timeout", "1")
    assert error["code"] == "device-unreachable"
    assert "timed out" in error["why"]


def test_an_ssh_config_that_is_none(linear_bundle: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    for text in (None, "Host board\n  Colour blue\n", "Host board\n  Port many\n"):
        if text:
            config.write_text(text)
        error = refused(linear_bundle, "board", "--ssh-config", str(config))
        assert error["code"] == "device-ssh-config"


# What a device lacks


def test_no_python(server: Server, linear_bundle: Path) -> None:
    assert refused(linear_bundle, "empty")["code"] == "device-no-python"
    error = refused(linear_bundle, "host", "--python", "python9")
    assert error["code"] == "device-no-python"
    assert "python9" in error["what"]


def test_no_shell(server: Server, linear_bundle: Path) -> None:
    server.device("nologin", rc="echo This account is currently not available.; exit 1\n")
    error = refused(linear_bundle, "nologin")
    assert error["code"] == "device-shell"
    assert "This account is currently not available." in error["why"]


def test_a_python_that_does_not_start(server: Server, linear_bundle: Path) -> None:
    server.device("broken", "echo libpython3.so: cannot open >&2; exit 127\n")
    error = refused(linear_bundle, "broken")
    assert error["code"] == "device-shell"
    assert "libpython3.so: cannot open" in error["why"]


def packages(folder: Path, **modules: str) -> str:
    """A folder of packages that hide those of this machine."""
    for name, text in modules.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(text)
    return str(folder)


def test_packages_that_a_device_lacks(server: Server, linear_bundle: Path, tmp_path: Path) -> None:
    server.device("bare", host_python("-S"))
    assert refused(linear_bundle, "bare")["code"] == "numpy-missing"
    fault = 'raise ImportError("numpy._core.multiarray failed to import")\n'
    broken = packages(tmp_path / "broken", numpy=fault)
    server.device("wrong-numpy", host_python(packages=broken))
    error = refused(linear_bundle, "wrong-numpy")
    assert error["code"] == "numpy-missing"
    assert "multiarray failed" in error["why"]
    fault = 'raise ImportError("No module named onnxruntime")\n'
    engineless = packages(tmp_path / "engineless", onnxruntime=fault)
    server.device("engineless", host_python(packages=engineless))
    assert refused(linear_bundle, "engineless")["code"] == "engine-missing"


def test_an_engine_of_another_version(server: Server, tmp_path: Path) -> None:
    path, contents = tmp_path / "new.edgepack", linear_contents()
    newer = [variant._replace(needs={"engine_version": "99.0"}) for variant in contents.variants]
    bundle.write(path, replace(contents, variants=newer, built=contents.original))
    error = refused(path, "host")
    assert error["code"] == "engine-version"
    assert "99.0" in error["why"]


# Places


def ship(path: Path, place: str, name: str = "host") -> Answer:
    return ask("ship", str(path), f"ssh://{name}{place}")


def test_no_such_folder(server: Server, linear_bundle: Path, tmp_path: Path) -> None:
    answer = ship(linear_bundle, f"{tmp_path}/none/model.edgepack")
    assert answer.code == "device-path"
    assert f"{tmp_path}/none: there is no such folder" in answer.document["error"]["why"]
    os.mkfifo(tmp_path / "pipe")
    assert ship(linear_bundle, f"{tmp_path}/pipe").code == "device-path"
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


@needs_root
def test_a_full_disk(server: Server, linear_bundle: Path, tmp_path: Path) -> None:
    mount(tmp_path, "size=16k")
    try:
        answer = ship(linear_bundle, f"{tmp_path}/model.edgepack")
        assert answer.status == 2
        assert answer.code == "device-disk-full"
        assert "0.0 MB are free, 0." in answer.document["error"]["why"]
        # It may also fill up in the middle.
        part = tmp_path / "x.part"
        part.touch()
        there = Ssh(parse("ssh://host"), Settings(config=server.config))
        with there, pytest.raises(DeviceError) as caught:
            there.link.call("append", part=str(part), offset=0, stdin=[bytes(1 << 20)])
        assert caught.value.code == "device-disk-full"
        part.unlink()
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def mount(folder: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@needs_root
@pytest.mark.parametrize("options", ["ro", "size=16k"])
def test_a_home_that_takes_nothing(options: str, server: Server, linear_bundle: Path) -> None:
    """It goes to the temporary folder instead."""
    name = f"home-{options.partition('=')[0]}"
    folder = server.device(name, host_python())
    mount(folder / "home", options)
    try:
        with Ssh(parse(f"ssh://{name}"), Settings(config=server.config)) as there:
            path = there.put(linear_bundle)
        assert path.startswith(f"{folder}/tmp/edgepack-{os.geteuid()}/run-")
        assert ask("verify", str(linear_bundle), "--on", f"ssh://{name}").status == 0
        assert list((folder / "tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", folder / "home"], check=True)


@needs_root
def test_a_device_that_takes_nothing_anywhere(server: Server, linear_bundle: Path) -> None:
    """Its file systems are read-only, for its own commands alone."""
    mounts = "".join(
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}; "
        for folder in (server.devices, "/tmp", "/var/tmp")
    )
    rc = "exec /usr/bin/unshare -m /bin/bash -c {}\n".format(
        f"'PATH=/usr/bin:/bin; {mounts} PATH={server.devices}/frozen/bin; "
        'exec sh -c "$SSH_ORIGINAL_COMMAND"\''
    )
    server.device("frozen", host_python(), rc=rc)
    error = refused(linear_bundle, "frozen")
    assert error["code"] == "device-unwritable"
    assert "Read-only file system" in error["why"]
    assert len(error["why"].splitlines()) == 4


@needs_root
def test_a_folder_of_another_user(tmp_path: Path) -> None:
    """Who can write to /tmp can make a folder at the name that ours has there."""
    theirs = tmp_path / "edgepack-0"
    theirs.mkdir()
    remote._own(str(theirs))
    os.chown(theirs, 12345, 12345)
    (tmp_path / "link").symlink_to(tmp_path)
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    for folder in (theirs, tmp_path / "link"):
        with pytest.raises(PermissionError, match="another user"):
            remote._own(str(folder))


def test_leftovers_go_after_a_day(tmp_path: Path) -> None:
    for name in ("run-old", "run-new"):
        (tmp_path / name).mkdir()
    for name in ("old.part", "new.part", "old"):
        (tmp_path / name).touch()
    for name in ("run-old", "old.part", "old"):
        os.utime(tmp_path / name, (0, 0))
    for start, end in (("run-", ""), ("", ".part")):
        remote._sweep(str(tmp_path), start, end)
    assert {path.name for path in tmp_path.iterdir()} == {"run-new", "new.part", "old"}
    shutil.rmtree(tmp_path)
