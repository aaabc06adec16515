"""torch.export programs: loaded, run on another batch, and stripped of what could run code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgepack.source import load, recognise


class Net(torch.nn.Module):
    """Two inputs, one by keyword; a dict of outputs; every sort of constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("shift", torch.tensor([0.5, 0.5, 0.5]), persistent=False)
        self.offset = torch.full((3,), 2.0)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.fc(x) * self.scale + self.shift
        return {"logits": y * mask, "flat": (y + self.offset).reshape(x.shape[0] * 3)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Net]:
    torch.manual_seed(0)
    net = Net().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        net,
        (torch.randn(2, 4),),
        {"mask": torch.ones(2, 3)},
        dynamic_shapes={"x": {0: batch}, "mask": {0: batch}},
    )
    path = tmp_path_factory.mktemp("exported") / "model.bin"
    with path.open("wb") as file:
        torch.export.save(program, file)
    return path, net


def test_a_program_answers_as_the_network_that_was_exported(exported: tuple[Path, Net]) -> None:
    path, net = exported
    assert recognise(path) == "exported-program"
    source = load(path)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    mask = np.ones((5, 3), np.float32)
    answers = source.run({"mask": mask, "x": x})
    reference = net(torch.from_numpy(x), mask=torch.from_numpy(mask))
    for answer, value in zip(answers, reference.values(), strict=True):
        np.testing.assert_allclose(answer, value.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert source.kind == "exported-program"
    assert source.output_names == ("logits", "flat")
    assert source.parameters == 15


def test_its_inputs_have_named_axes(exported: tuple[Path, Net]) -> None:
    inputs = load(exported[0]).inputs
    assert inputs is not None
    assert list(map(str, inputs)) == ["x:float32:batch,4", "mask:float32:batch,3"]


def test_torch_exports_the_cleaned_program_to_onnx(
    exported: tuple[Path, Net], tmp_path: Path
) -> None:
    import onnxruntime as ort

    source = load(exported[0])
    assert source.program.example_inputs is None
    torch.onnx.export(source.program, f=str(tmp_path / "m.onnx"), dynamo=True, verbose=False)
    session = ort.InferenceSession(str(tmp_path / "m.onnx"))
    feeds = {"x": np.ones((7, 4), np.float32), "mask": np.ones((7, 3), np.float32)}
    for one, two in zip(session.run(None, feeds), source.run(feeds), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_the_digest_does_not_depend_on_the_archive_s_name(
    exported: tuple[Path, Net], tmp_path: Path
) -> None:
    copy = tmp_path / "other.pt2"
    copy.write_bytes(exported[0].read_bytes())
    assert load(copy).digest == load(exported[0]).digest


def test_symbolic_sizes_of_real_networks_pass(tmp_path: Path) -> None:
    class Strided(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv1d(1, 2, 3, stride=2, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.nn.functional.avg_pool1d(self.conv(x), 2, ceil_mode=True)
            return torch.cat([y, y[..., : y.shape[-1] // 2]], dim=-1)

    net = Strided().eval()
    shapes = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},)
    program = torch.export.export(net, (torch.randn(2, 1, 40),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    source = load(tmp_path / "m.pt2")
    assert list(map(str, source.inputs or ())) == ["x:float32:batch,1,x_dim2"]
    x = torch.randn(3, 1, 52)
    np.testing.assert_allclose(
        source.run({"x": x.numpy()})[0], net(x).detach().numpy(), rtol=1e-5, atol=1e-6
    )
