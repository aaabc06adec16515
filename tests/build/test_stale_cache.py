"""A network that changed is never served from the cache, whatever it was that changed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgepack import load
from support.build_cases import Answer, Home, build

# The table comes through code that Python's audit hooks do not see; the gain is read in forward.
NETS = """
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

HERE = Path(__file__).parent


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 3)
        table = load_file(HERE / "table.safetensors")["table"]
        self.register_buffer("table", table, persistent=False)
        self.shift = torch.full((3,), float(os.environ.get("SHIFT", "0")))
        scale = float((HERE / "scale.txt").read_text())
        self.act = lambda x: torch.relu(x) * scale

    def forward(self, x):
        return self.act(self.out(x * self.table)) * float(os.environ["GAIN"]) + self.shift
"""
STAGES = ("original", "export", "simplify", "quantize")


def test_whatever_changes_the_network_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    home = Home(tmp_path)
    Path(home / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 3)
    torch.save({f"out.{name}": t for name, t in linear.state_dict().items()}, home / "m.pt")
    x = np.random.default_rng(0).normal(size=(110, 8)).astype(np.float32)
    np.savez(home / "x.npz", x=x)
    values = {"table": 1.0, "scale": 1.0, "SHIFT": 0.0, "GAIN": 1.0}

    def built(**changes: float) -> Answer:
        values.update(changes)
        save_file({"table": torch.full((8,), values["table"])}, home / "table.safetensors")
        Path(home / "scale.txt").write_text(str(values["scale"]))
        for name in ("SHIFT", "GAIN"):
            monkeypatch.setenv(name, str(values[name]))
        options = ["--arch", home / "nets.py:Net"]
        answer = build(home.build("m.pt", *options, calibration="x.npz"), tmp_path / "x.edgepack")
        (found,) = load(tmp_path / "x.edgepack")(x=x[:8]).values()
        with torch.no_grad():
            inner = torch.relu(linear(torch.from_numpy(x[:8]) * values["table"]))
        wanted = (inner * values["scale"] * values["GAIN"] + values["SHIFT"]).numpy()
        assert np.square(found - wanted).mean() < 1e-3 * np.square(wanted).mean(), changes
        return answer

    def computed(answer: Answer) -> list[str]:
        return [name for name in STAGES if answer.stage(name)["status"] == "done"]

    first = built()
    assert computed(built()) == []
    for change in ({"table": 3.0}, {"scale": 2.0}, {"SHIFT": 1.0}):
        answer = built(**change)
        assert computed(answer)[:2] == ["original", "export"], change
        assert not any("another model" in warning for warning in answer.document["warnings"])
    # Nothing but the answers themselves can tell this one.
    answer = built(GAIN=4.0)
    assert computed(answer)[:2] == ["original", "export"]
    assert any("another model" in warning for warning in answer.document["warnings"])
    assert computed(built()) == []
    # And back: what belongs to the first model is still there.
    again = built(table=1.0, scale=1.0, SHIFT=0.0, GAIN=1.0)
    assert computed(again) == []
    assert again.document["bundle"]["content_digest"] == first.document["bundle"]["content_digest"]
