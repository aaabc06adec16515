"""Devices behind a real sshd: an emulated ARM one, and this machine with one fault or another."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import bundle, device, signing
from edgepack.device import Emulated
from edgepack.device.ssh import Settings, Ssh, command, parse
from edgepack.errors import DeviceError
from edgepack.report import render_matrix
from edgepack.runtime.commands.verify import encode_shard
from edgepack.runtime.plain import file_mode
from support.build_cases import Answer, ask, render_text
from support.bundle_cases import Keys
from support.emulation import KEPT, X86_64, prepare
from support.int8_nets import ROOT, build, mixed_onnx
from support.interpreters import find
from support.linear import linear_contents, measured
from support.ssh_server import Server, host_python, proxy

# A device on which every command of a bundle takes long, and which tells that it began.
SLOW = 'case "$*" in *verify*) echo $$ > "$HOME/running"; exec sleep 60;; esac\n'


def on(server: Server, name: str, **settings: Any) -> Ssh:
    """A device of the server."""
    return Ssh(parse(f"ssh://{name}"), Settings(config=server.config, **settings))


def verify(path: Path, *names: str, options: tuple[str, ...] = ()) -> Answer:
    """The command line's matrix of devices."""
    return ask("verify", str(path), *(f"--on=ssh://{name}" for name in names), *options)


def left(folder: Path) -> list[str]:
    """What a device has in its home and its temporary folder."""
    found = [*(folder / "home").rglob("*"), *(folder / "tmp").rglob("*")]
    return sorted(str(path.relative_to(folder)) for path in found if path.is_file())


def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def named(path: Path, what: Path) -> bool:
    """Whether a file of /proc names something; it may be gone."""
    with suppress(OSError):
        return str(what).encode() in path.read_bytes()
    return False


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


@pytest.fixture(scope="session")
def arm(server: Server) -> Iterator[Path]:
    """`ssh://arm`, whose Python is an emulated Cortex-A53's."""
    prepare("cortex-a53")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(KEPT))
        with Emulated("cortex-a53") as cpu:
            packages = shlex.quote(str(cpu.folder / "packages"))
            command = shlex.join([*cpu.interpreter, "-s"])
            yield server.device("arm", f'PYTHONPATH={packages} exec {command} "$@"')


@pytest.fixture(scope="session")
def slow(server: Server) -> Path:
    """`ssh://slow`."""
    return server.device("slow", SLOW + host_python())


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1.5 MB in which no part is like another."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    path.write_bytes(np.random.default_rng(0).bytes(1_500_000))
    return path


@pytest.fixture
def missed(tmp_path: Path) -> Path:
    """A whole bundle whose answers are not those that the build host gave."""
    path = tmp_path / "missed.edgepack"
    contents = linear_contents()
    bundle.write(path, measured(replace(contents, built=[1.5 * contents.original[0]])))
    return path


# A matrix


@X86_64
def test_a_matrix_of_an_ssh_device_and_emulated_cpus(
    server: Server, arm: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An ARM bundle: bit-equal on both ARM devices, and refused by the x86 one."""
    path = build(tmp_path_factory.getbasetemp(), mixed_onnx, target="arm-qnnpack")
    cpus = ("--emulate", "cortex-a53", "--emulate", "Haswell")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPACK_CACHE", str(KEPT))
        answer = verify(path, "arm", options=cpus)
    assert answer.status == 2
    there, emulated, other = answer.document["devices"]
    assert [c["name"] for c in (there, emulated, other)] == ["ssh://arm", *cpus[1::2]]
    assert not there["emulated"]
    assert there["verdict"]["device"]["arch"] == "aarch64"
    for column in (there, emulated):
        assert column["verdict"]["fidelity"]["outputs"]["scores"]["bit_exact"]
    # A device's own speed and memory are its; an emulator's are not.
    assert there["verdict"]["seconds"]["load"] > 0
    assert there["verdict"]["memory"]["peak_rss_bytes"] > 1 << 20
    assert not {"seconds", "memory"} & set(emulated["verdict"])
    assert other["error"]["code"] == "device-arch"
    text = render_text(render_matrix, answer.document)
    assert "ssh://arm " in text
    assert "✓ bit-exact" in text
    assert left(arm) == []


@X86_64
def test_a_bundle_for_another_processor(arm: Path, linear_bundle: Path) -> None:
    answer = verify(linear_bundle, "arm")
    assert answer.status == 2
    assert answer.document["devices"][0]["error"]["code"] == "device-arch"
    assert left(arm) == []


def test_one_unreachable_device_does_not_hide_the_others(
    server: Server, linear_bundle: Path
) -> None:
    answer = verify(linear_bundle, "empty", "host")
    assert answer.status == 2
    first, second = answer.document["devices"]
    assert first["error"]["code"] == "device-no-python"
    assert second["verdict"]["passed"]


def test_a_missed_gate_is_exit_1(server: Server, missed: Path) -> None:
    answer = verify(missed, "host")
    assert answer.status == 1
    assert not answer.document["passed"]
    assert "✗ FAIL" in render_text(render_matrix, answer.document)


# A connection


def test_it_is_one_and_nothing_stays(server: Server, linear_bundle: Path) -> None:
    logins = server.logins()
    with on(server, "host") as there:
        path = there.put(linear_bundle)
        assert Path(path).name == linear_bundle.name
        assert there.link.folder.stat().st_mode & 0o777 == 0o700
        assert (there.link.folder / "c").is_socket()
        document, status = device.ask(there, path, "verify")
    assert status == 0
    assert document["passed"]
    assert server.logins() == logins + 1
    assert left(server.devices / "host") == []
    assert not (server.devices / "host" / "home" / ".cache" / "edgepack").exists()
    assert not there.left
    socket = there.link.folder / "c"
    assert not socket.parent.exists()
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if named(path, socket)]


def test_what_a_login_shell_prints_is_no_answer(server: Server, linear_bundle: Path) -> None:
    """Neither for the verdict, nor for sftp, which then cannot be used."""
    noise = "echo '{\"passed\": false}'; echo; echo Welcome >&2\n"
    folder = server.device("noisy", host_python(), rc=noise)
    answer = verify(linear_bundle, "noisy")
    assert answer.status == 0, answer.stderr
    assert answer.document["devices"][0]["verdict"]["passed"]
    assert "Welcome" not in answer.stderr
    assert left(folder) == []


def test_samples_are_streamed_to_a_bundle(server: Server, linear_bundle: Path) -> None:
    contents = linear_contents()
    shard = {"input-0": contents.reference[0][0], "original-0": contents.original[0][0]}
    pieces = [encode_shard({**shard, "count": np.array(1)}) for _ in range(30)]
    with on(server, "host") as there:
        path = there.put(linear_bundle)
        verdict, _ = device.ask(there, path, "verify", "--evaluation", stdin=iter(pieces))
        assert verdict["quality"]["samples"] == 30
        with pytest.raises(device.device.EdgepackError) as caught:
            device.ask(there, path, "verify", "--evaluation", stdin=iter([pieces[0][:-9]]))
    assert caught.value.code == "evaluation-cut"


def test_a_loader_that_was_killed(server: Server, linear_bundle: Path) -> None:
    server.device("killed", 'case "$*" in *verify*) kill -9 $$;; esac\n' + host_python())
    answer = verify(linear_bundle, "killed")
    error = answer.document["devices"][0]["error"]
    assert error["code"] == "loader-died"
    assert "signal 9" in error["why"]


def test_another_python_there(server: Server, linear_bundle: Path) -> None:
    folder = server.device("venv")
    place = folder / "home" / "venv" / "bin"
    place.mkdir(parents=True)
    (place / "python").write_text(f"#!/bin/sh\n{host_python()}\n")
    (place / "python").chmod(0o755)
    assert verify(linear_bundle, "venv").status == 2
    assert verify(linear_bundle, "venv", options=("--python", "~/venv/bin/python")).status == 0


@pytest.mark.parametrize("version", ["2.7", "3.7"])
def test_an_old_python(version: str, server: Server, linear_bundle: Path) -> None:
    python = find(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    name = f"python{version.replace('.', '')}"
    server.device(name, f'exec {python} "$@"')
    error = verify(linear_bundle, name).document["devices"][0]["error"]
    assert error["code"] == "device-python"
    assert f"python3 is {version}" in error["why"]


# A file


def test_what_is_there_is_not_sent_again(server: Server, large: Path) -> None:
    folder = server.devices / "host"
    with on(server, "host", keep=True) as there:
        assert there.send(large).bytes == large.stat().st_size
    assert len(left(folder)) == 1
    with on(server, "host", keep=True) as there:
        assert there.send(large).bytes == 0
    kept = folder / left(folder)[0]
    kept.write_bytes(bytes(large.stat().st_size))
    with on(server, "host") as there:
        # Not what its name says.
        assert there.send(large).bytes == large.stat().st_size
    assert left(folder) == []


def test_two_commands_use_one_file(server: Server, linear_bundle: Path) -> None:
    with on(server, "host") as second:
        with on(server, "host") as first:
            path, other = first.put(linear_bundle), second.put(linear_bundle)
        assert path != other
        assert not Path(path).exists()
        assert device.ask(second, other, "verify")[1] == 0


def test_a_part_that_is_not_of_this_file(server: Server, large: Path) -> None:
    folder = server.devices / "host"
    with on(server, "host") as there:
        sent = there.send(large)
    cache = Path(sent.final).parent
    cache.mkdir()
    Path(f"{sent.final}.part").write_bytes(b"something else")
    with on(server, "host") as there:
        again = there.send(large)
        assert Path(again.path).read_bytes() == large.read_bytes()
    assert left(folder) == []


def test_without_sftp(server: Server, large: Path) -> None:
    rc = 'case "$SSH_ORIGINAL_COMMAND" in *sftp*) echo no such thing >&2; exit 1;; esac\n'
    folder = server.device("no-sftp", host_python(), rc=rc)
    with on(server, "no-sftp") as there:
        sent = there.send(large)
        assert Path(sent.path).read_bytes() == large.read_bytes()
    assert left(folder) == []


@pytest.mark.parametrize("way", ["host", "no-sftp-cut"])
def test_a_transfer_that_is_cut_goes_on(way: str, server: Server, large: Path) -> None:
    """By sftp and without it; each connection takes less than half of the file."""
    if way != "host":
        server.device(way, host_python(), rc='case "$SSH_ORIGINAL_COMMAND" in *sftp*) exit 1; esac')
    with proxy(server.port, 600_000) as cut:
        server.reach(f"{way}-by-proxy", way, Port=cut.port)
        with on(server, f"{way}-by-proxy") as there:
            sent = there.send(large)
            assert Path(sent.path).read_bytes() == large.read_bytes()
        assert cut.connections >= 3
    assert left(server.devices / way) == []


def test_a_transfer_is_given_up_and_goes_on_another_time(server: Server, large: Path) -> None:
    size, folder = large.stat().st_size, server.devices / "host"
    with proxy(server.port, 700_000, 40_000) as cut:
        server.reach("hopeless", "host", Port=cut.port)
        with pytest.raises(DeviceError) as caught, on(server, "hopeless") as there:
            there.put(large)
        assert caught.value.code == "transfer-cut"
        assert f"of {size:,} bytes are there" in caught.value.why
        assert cut.connections < 10
    part = folder / left(folder)[0]
    assert 200_000 < part.stat().st_size < size
    with on(server, "host") as there:
        assert there.send(large).bytes < size - 200_000
    assert left(folder) == []


# What comes between


@pytest.mark.parametrize("how", ["cut", "silence"])
def test_a_link_that_is_lost_is_no_verdict(
    how: str,
    server: Server,
    slow: Path,
    linear_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it is torn down or no sign of life comes through it any more."""
    alive = f"ServerAliveInterval={command.ALIVE}"
    sooner = ["ServerAliveInterval=1" if option == alive else option for option in command.OPTIONS]
    monkeypatch.setattr(command, "OPTIONS", sooner)
    running = slow / "home" / "running"
    running.unlink(missing_ok=True)
    with proxy(server.port, None) as between:
        server.reach(f"slow-{how}", "slow", Port=between.port)
        with on(server, f"slow-{how}") as there:
            path = there.put(linear_bundle)
            act = getattr(between, how)
            threading.Thread(target=lambda: (until(running.exists), act())).start()
            with pytest.raises(DeviceError) as caught:
                there.run(path, "verify", "--json")
        assert caught.value.code == "device-link-lost"
        assert "while running `verify`" in caught.value.what
        # It was connected anew to clean up, and nothing goes on for nobody.
        assert between.connections == 2
        assert not there.left
        assert left(slow) == ["home/running"]
        until(lambda: gone(int(running.read_text())))
    running.unlink()


def test_a_command_that_takes_too_long(server: Server, slow: Path, linear_bundle: Path) -> None:
    answer = verify(linear_bundle, "slow", options=("--timeout", "2"))
    error = answer.document["devices"][0]["error"]
    assert error["code"] == "device-timeout"
    assert "2 s" in error["why"]
    running = slow / "home" / "running"
    until(lambda: gone(int(running.read_text())))
    running.unlink()
    assert left(slow) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_there(
    number: signal.Signals, server: Server, slow: Path, linear_bundle: Path
) -> None:
    running = slow / "home" / "running"
    running.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgepack", "verify", str(linear_bundle), "--on", "ssh://slow"],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    until(running.exists)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert b"Traceback" not in said
    until(lambda: gone(int(running.read_text())))
    running.unlink()
    assert left(slow) == []


# Other commands


def test_bench_is_the_devices_own(server: Server, linear_bundle: Path, tmp_path: Path) -> None:
    answer = ask("bench", str(linear_bundle), "--on", "ssh://host", "--length", "smoke")
    assert answer.status == 0, answer.stderr
    assert answer.document["model"]["queries"] >= 64
    assert answer.document["device"]["arch"]
    assert "this bundle: p50" not in answer.stderr
    # The other model is sent, too: the engine there does not take this one.
    other = tmp_path / "other.onnx"
    other.write_bytes(b"not a model")
    answer = ask("bench", str(linear_bundle), "--on", "ssh://host", "--against", str(other))
    assert answer.status == 2
    assert answer.code == "engine-refused"
    assert left(server.devices / "host") == []


def ship(path: Path, place: str, *options: str) -> Answer:
    return ask("ship", str(path), f"ssh://host{place}", *options)


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("/model.edgepack", "model.edgepack"),
        ("/", "linear.edgepack"),
        (
            "/-%20a%20%22b%22%20'c'%20%24HOME%0A%25/-x%20%3F.edgepack",
            "- a \"b\" 'c' $HOME\n%/-x ?.edgepack",
        ),
    ],
)
def test_ship(place: str, file: str, server: Server, linear_bundle: Path, tmp_path: Path) -> None:
    final = tmp_path / file
    final.parent.mkdir(exist_ok=True)
    answer = ship(linear_bundle, f"{tmp_path}{place}")
    assert answer.status == 0, answer.stderr
    assert answer.document["path"] == str(final)
    assert answer.document["verdict"]["passed"]
    assert answer.document["sent"] == answer.document["bytes"] == linear_bundle.stat().st_size
    assert final.read_bytes() == linear_bundle.read_bytes()
    assert final.stat().st_mode & 0o777 == file_mode()
    beside = Path(f"{final}.sha256")
    assert sorted(final.parent.iterdir()) == [final, beside]
    assert beside.stat().st_mode & 0o777 == file_mode()
    command = ["sha256sum", "--check", "--strict", "--quiet", "--", beside.name]
    subprocess.run(command, cwd=final.parent, check=True)


def test_a_signature_is_shipped_with_its_bundle_and_goes_with_it(
    server: Server, keys: Keys, linear_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    path, final = tmp_path / "x.edgepack", tmp_path / "there" / "x.edgepack"
    path.write_bytes(linear_bundle.read_bytes())
    signature = signing.sign(path, keys.key)
    Path(f"{path}.sig").write_bytes(signature)
    answer = ship(path, str(final), "--signers", str(keys.signers))
    assert answer.status == 0, answer.stderr
    assert answer.document["trust"]["signature"]["signer"] == "builder@example.org"
    assert keys.verify(final).returncode == 0
    # The next one is not signed, and a signature of the one before would only mislead.
    assert ship(linear_bundle, str(final)).status == 0
    assert sorted(path.name for path in final.parent.iterdir()) == [
        "x.edgepack", "x.edgepack.sha256",
    ]  # fmt: skip


def test_what_is_in_its_place_is_proved_again_and_not_sent(
    server: Server, linear_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model.edgepack"
    place.write_bytes(linear_bundle.read_bytes())
    answer = ship(linear_bundle, str(place))
    assert answer.document["sent"] == 0
    assert answer.document["verdict"]["passed"]
    assert place.read_bytes() == linear_bundle.read_bytes()


def test_ship_to_the_home(server: Server, linear_bundle: Path) -> None:
    answer = ship(linear_bundle, "/~/model.edgepack")
    assert answer.status == 0, answer.stderr
    place = server.devices / "host" / "home" / "model.edgepack"
    assert place.read_bytes() == linear_bundle.read_bytes()
    place.unlink()


def test_nothing_is_shipped_that_is_not_proved(
    server: Server, linear_bundle: Path, missed: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model.edgepack"
    place.write_bytes(linear_bundle.read_bytes())
    answer = ship(missed, str(place))
    assert answer.status == 1
    assert not answer.document["shipped"]
    assert answer.document["path"] == str(place)
    assert place.read_bytes() == linear_bundle.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {place.name, missed.name}
    answer = ship(missed, str(place), "--no-verify")
    assert answer.status == 0
    assert answer.document["verdict"] is None
    assert "warning: not verified on the device" in answer.stderr
    assert place.read_bytes() == missed.read_bytes()


def test_a_link_planted_where_a_part_goes_is_not_followed(
    server: Server, linear_bundle: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    place = tmp_path / "folder" / "model.edgepack"
    place.parent.mkdir()
    with on(server, "host") as there:
        part = Path(there.send(linear_bundle, str(place)).part)
    part.symlink_to(victim)
    assert ship(linear_bundle, str(place)).status == 0
    assert victim.read_bytes() == b"mine"
    assert not place.is_symlink()
    assert sorted(place.parent.iterdir()) == [place, Path(f"{place}.sha256")]
