"""docs/teachers.md: its Python runs on tiny networks, its commands on a tiny folder."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from helpers.folders import hf_folder, make_folders
from helpers.textures import CLASSES, MEAN, STD, Teacher, data
from torch import nn

from djip_ext.bench.models import families
from djip_ext.cli.main import run_command

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "teachers.md").read_text()
QUICK = ", rounds=1, cmi_gain=(1e-4, 1e-3), progress=False)\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def python(word: str) -> str:
    """The one example that holds ``word``, with a short fit and no workers."""
    (found,) = [block for block in blocks("python") if word in block]
    short = re.sub(r"(fit_lens\(.*)\)\n", lambda match: match.group(1) + QUICK, found)
    assert short != found
    return short.replace("num_workers=8", "num_workers=0")


def run(example: str, **scope: object) -> dict:
    exec(compile(example, "teachers.md", "exec"), scope)
    return scope


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folders(tmp_path / "imagenet", classes=5)


def test_timm() -> None:
    pytest.importorskip("timm")
    scope = run(
        python("timm.create_model").replace(
            '"vit_small_patch16_224", pretrained=True', '"test_vit"'
        )
    )
    assert scope["teacher"](torch.randn(1, 3, 160, 160)).shape == (1, 1000) and scope["data"][
        "mean"
    ] == (0.5, 0.5, 0.5)
    assert (
        scope["result"].lens.q.dtype == torch.float32
        and scope["result"].lens.metadata["images"] == 20
    )


def test_hugging_face(tmp_path: Path) -> None:
    name = hf_folder(tmp_path).removeprefix("hf:")
    scope = run(python("AutoImageProcessor").replace("google/vit-base-patch16-224", name))
    assert scope["logits"].shape == (20, 5)
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        seen = scope["teacher"].apply_lens(images)
        assert torch.equal(
            scope["teacher"](images).logits, scope["teacher"].djip_teacher(pixel_values=seen).logits
        ) and not torch.equal(seen, images)


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ResNet34_Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(ResNet34_Weights, "transforms", lambda self: Preset())
    run(python("ResNet34_Weights").replace("resnet34(weights=weights)", "resnet34()"))
    assert Path("resnet34.lens.safetensors").exists()


class Preset(nn.Module):
    """torchvision's preset at a size for tests."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def forward(self, image: object) -> torch.Tensor:
        from torchvision.transforms._presets import ImageClassification

        return ImageClassification(crop_size=32, resize_size=36)(image)


def test_a_script_of_ones_own_in_a_group() -> None:
    x, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{Path('group').resolve()}", rank=0, world_size=1
    )
    try:
        images = torch.utils.data.TensorDataset(x, labels)
        scope = run(
            python("DistributedSampler"),
            images=images,
            teacher=Teacher(),
            num_classes=CLASSES,
            mean=MEAN,
            std=STD,
        )
    finally:
        torch.distributed.destroy_process_group()
    assert Path("fit.pth").exists() and scope["result"].lens.metadata["images"] == 24


def commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line) for line in lines]


def test_the_commands_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("timm")
    tiny, asked = hf_folder(tmp_path), []
    real = families.build

    def build(
        name: str, num_classes: int, pretrained: bool = False, download: bool = False
    ) -> nn.Module:
        asked.append((name, pretrained, download))
        return real(tiny if "vit_small" in name else "timm:test_vit", num_classes)

    monkeypatch.setattr("djip_ext.bench.engine.networks.build", build)
    monkeypatch.setattr(
        "djip_ext.bench.dataset.image_sets.input_spec",
        lambda name, download: families.input_spec(tiny),
    )
    small = [
        "SOLVER.EPOCHS",
        "1",
        "BENCH.WARMUP",
        "0",
        "SOLVER.BATCH_SIZE",
        "10",
        "DATASET.NUM_WORKERS",
        "0",
        "BENCH.DEVICE",
        "cpu",
    ]
    for command in commands()[:3]:
        torch.manual_seed(0)
        assert command[0] == "djip"
        words = [
            str(tmp_path) if word == "/data" else word.replace("configs/", f"{ROOT}/configs/")
            for word in command[1:]
        ]
        run_command(
            [
                *words,
                *small,
                *(["--rounds", "1"] if "fit" in words else []),
            ]
        )
    assert {name for name, *_ in asked} == {
        "timm:vit_small_patch16_224",
        "timm:deit_tiny_patch16_224",
    }
    assert all(pretrained and download for name, pretrained, download in asked if "small" in name)
    assert "note: images for timm:vit_small_patch16_224" in capsys.readouterr().out


def test_torchrun_gets_the_module_and_flags_that_exist() -> None:
    command = commands()[3]
    assert (
        command[:5] == ["torchrun", "--nproc_per_node", "8", "-m", "djip_ext"]
        and len(commands()) == 4
    )
    with pytest.raises(Exception, match="no folder.*data/train"):
        run_command([*command[5:], "BENCH.DEVICE", "cpu"])


def test_every_name_in_the_table_is_known() -> None:
    table = re.findall(r"^\| `(.*?)` ?[|,o]", TEXT, flags=re.MULTILINE)
    assert table[:1] == ["torchvision:resnet34"] and len(table) == 5
    for name in ("torchvision:resnet34", "torchvision:resnet50@IMAGENET1K_V1"):
        assert name in TEXT and families.input_spec(name).size == (224, 224)
    if pytest.importorskip("timm"):
        assert "224x224 cut from a shorter side of 248, bicubic, mean (0.5, 0.5, 0.5)" in str(
            families.input_spec("timm:vit_small_patch16_224")
        )
