"""The control ``temperature:K``: the plain teacher's logits divided by K, and nothing else."""

import json
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from djip_ext.bench.dataset import image_sets as dataset
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers import kd
from djip_ext.bench.engine.run import build_model
from djip_ext.cli.main import main
from djip_ext.errors import DJIPError
from djip_ext.experiments.plan import make_plan
from djip_ext.experiments.table import load_table
from djip_ext.lens.io import lens_name, softening
from djip_ext.teacher import DJIPTeacher
from djip_ext.utils.networks import divide_logits

SCALE = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ROOT = Path(__file__).parents[2]


def test_only_the_logits_are_divided() -> None:
    network = build_model("resnet8", 20)
    plain, soft = (DJIPTeacher(network, lens, *SCALE) for lens in ("identity", "temperature:4"))
    image = torch.randn(2, 3, 32, 32)
    (logits, features), (softer, same) = plain(image), soft(image)
    assert torch.equal(softer, logits / 4) and torch.equal(soft.apply_lens(image), image)
    assert features.keys() == same.keys() and torch.equal(
        features["pooled_feat"], same["pooled_feat"]
    )
    assert all(torch.equal(a, b) for a, b in zip(features["feats"], same["feats"], strict=True))


def test_logits_are_divided_wherever_they_are() -> None:
    logits, other = torch.ones(2, 3), torch.ones(2, 5)
    pair = namedtuple("pair", "logits hidden")(logits, other)
    thing = SimpleNamespace(logits=logits, hidden=other)
    for output in (
        logits,
        (logits, other),
        [logits, other],
        {"logits": logits, "hidden": other},
        pair,
        thing,
    ):
        halved = divide_logits(output, 2.0)
        assert type(halved) is type(output)
        found: Tensor = (
            halved
            if output is logits
            else halved["logits"]
            if isinstance(output, dict)
            else getattr(halved, "logits", None)
        )
        assert torch.equal(halved[0] if found is None else found, logits / 2)
    assert torch.equal(thing.logits, logits) and pair.hidden is other
    with pytest.raises(DJIPError, match="needs logits"):
        divide_logits("nothing", 2.0)


def test_a_checkpoint_of_one_control_does_not_resume_with_another() -> None:
    network = nn.Linear(2, 2)
    controls = {
        lens: DJIPTeacher(network, lens, *SCALE)
        for lens in ("identity", "temperature:2", "temperature:4")
    }
    assert len({bytes(teacher.djip_fingerprint.tolist()) for teacher in controls.values()}) == 3
    assert [teacher.djip_id for teacher in controls.values()] == [
        "identity",
        "temperature-2",
        "temperature-4",
    ]
    assert lens_name("temperature:2.0") == "temperature-2"
    with pytest.raises(RuntimeError, match="another lens"):
        controls["temperature:2"].load_state_dict(controls["identity"].state_dict())
    controls["temperature:2"].load_state_dict(
        DJIPTeacher(network, "temperature:2.0", *SCALE).state_dict()
    )


def test_what_is_no_temperature_is_refused_or_a_path() -> None:
    for wrong in (
        "temperature:0",
        "temperature:-1",
        "temperature:warm",
        "temperature:",
        "temperature:nan",
        "temperature:inf",
    ):
        with pytest.raises(DJIPError, match="temperature:K"):
            softening(wrong)
    assert (
        softening("my.safetensors") is None and softening("temperature:2/lens.safetensors") is None
    )


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One epoch of KD on forty images, with a teacher of random weights whose answers are kept."""
    monkeypatch.setattr(dataset, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed))
    save_file(build_model("resnet8", 20).state_dict(), tmp_path / "teacher.safetensors")
    words = [
        "DATASET.TYPE",
        "synthetic",
        "BENCH.DEVICE",
        "cpu",
        "SOLVER.EPOCHS",
        "1",
        "BENCH.VIEWS",
        "2",
        "DISTILLER.TYPE",
        "KD",
    ]
    words += [
        "DISTILLER.TEACHER",
        "resnet8",
        "DISTILLER.STUDENT",
        "resnet8",
        "LOG.PREFIX",
        str(tmp_path),
        "EXPERIMENT.NAME",
        "kd",
    ]
    return [*words, "BENCH.TEACHER_CHECKPOINT", str(tmp_path / "teacher.safetensors")]


def test_its_runs_lie_in_a_folder_of_their_own_and_learn_from_the_divided_logits(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Tensor] = []
    real = kd.kd_loss

    def noted(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
        read.append(z_t)
        return real(z_s, z_t, temperature)

    monkeypatch.setattr(kd, "kd_loss", noted)

    def logits(lens: str, views: str) -> Tensor:
        read.clear()
        more = ["BENCH.VIEWS", views, "EXPERIMENT.NAME", f"views-{views}"]
        main(["train", "--djip-lens", lens, *options, *more])
        name = lens.replace(":", "-")
        folder = tmp_path / "distill" / f"djip-{name}" / f"views-{views}" / "seed-0"
        result = json.loads((folder / "result.json").read_text())
        assert result["lens"] == name and result["about_lens"] == {}
        return torch.cat(read)

    torch.testing.assert_close(logits("temperature:2", "2"), logits("identity", "2") / 2)
    assert len(list((tmp_path / "teacher_cache").glob("*.safetensors"))) == 2
    torch.testing.assert_close(logits("temperature:4", "0"), logits("identity", "0") / 4)


def test_an_arm_of_a_table_may_be_a_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vgg8.pth").touch()
    table = {
        "configs": f"{ROOT}/configs/cifar100/fewshot/{{distiller}}_{{pair}}.yaml",
        "pairs": ["vgg8_resnet8"],
        "distillers": ["KD"],
        "arms": {"plain": "identity", "soft": "temperature:2"},
        "teachers": {"vgg8": "vgg8.pth"},
        "seeds": 1,
    }
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    plain, soft = make_plan(load_table("t.yaml"), "out")
    assert (soft.lens, soft.lens_file, soft.needs) == (
        "temperature:2",
        "",
        (),
    ) and soft.result() is None
    assert soft.words[soft.words.index("--djip-lens") + 1] == "temperature:2"
    assert (plain.cfg().EXPERIMENT.PROJECT, soft.cfg().EXPERIMENT.PROJECT) == (
        "plain/djip-identity",
        "soft/djip-temperature-2",
    )
    for wrong, message in (
        ("temperature:warm", "arm soft is"),
        ("temperature:0", "a positive number"),
    ):
        Path("t.yaml").write_text(
            yaml.safe_dump(table | {"arms": {"plain": "identity", "soft": wrong}}, sort_keys=False)
        )
        with pytest.raises(DJIPError, match=message):
            make_plan(load_table("t.yaml"), "out")
