"""mdistiller's surface, name by name: what its tools import and call works here."""

import hashlib
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.folders import make_folders
from torch import Tensor, nn

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.utils import evaluate
from djip_ext.bench.models import imagenet
from djip_ext.errors import DJIPError

# module of mdistiller -> the names that its tools/train.py and tools/eval.py import from it
NAMES = {
    "models": ("cifar_model_dict", "imagenet_model_dict", "tiny_imagenet_model_dict"),
    "distillers": ("distiller_dict", "Vanilla"),
    "dataset": ("get_dataset",),
    "dataset.imagenet": ("get_imagenet_val_loader",),
    "engine": ("trainer_dict",),
    "engine.cfg": ("CFG", "show_cfg"),
    "engine.utils": (
        "AverageMeter",
        "accuracy",
        "adjust_learning_rate",
        "load_checkpoint",
        "log_msg",
        "save_checkpoint",
        "validate",
    ),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Forty training images and a working folder of its own."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(module: str, name: str) -> object:
    return getattr(importlib.import_module(f"djip_ext.bench.{module}"), name)


@pytest.mark.parametrize(
    "module, name", [(m, name) for m, names in NAMES.items() for name in names]
)
def test_the_name_is_there(module: str, name: str) -> None:
    assert imported(module, name) is not None


def test_the_parts_of_mdistillers_train_script_make_a_run(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tools/train.py, step by step, on the CPU."""
    from djip_ext.bench.dataset import get_dataset
    from djip_ext.bench.distillers import distiller_dict
    from djip_ext.bench.engine import trainer_dict
    from djip_ext.bench.engine.cfg import CFG, show_cfg
    from djip_ext.bench.engine.utils import load_checkpoint, save_checkpoint, validate
    from djip_ext.bench.models import cifar_model_dict

    (small / "kd.yaml").write_text(
        "DATASET: {TYPE: synthetic}\n"
        "DISTILLER: {TYPE: KD, TEACHER: resnet8, STUDENT: resnet8}\n"
        "SOLVER: {EPOCHS: 1, BATCH_SIZE: 20}\n"
    )
    cfg = CFG.clone()
    cfg.merge_from_file(str(small / "kd.yaml"))
    cfg.merge_from_list(["SOLVER.LR", "0.01", "BENCH.DEVICE", "cpu"])
    cfg.freeze()
    show_cfg(cfg)
    printed = capsys.readouterr().out
    assert "[INFO] CONFIG:" in printed and "TEMPERATURE: 4" in printed and "CRD" not in printed
    train_loader, val_loader, num_data, num_classes = get_dataset(cfg)
    assert (num_data, num_classes) == (40, 20)
    factory, published = cifar_model_dict[cfg.DISTILLER.TEACHER]
    assert published is None
    save_checkpoint({"model": factory(num_classes=num_classes).state_dict()}, "teacher.pth")
    teacher = factory(num_classes=num_classes)
    teacher.load_state_dict(load_checkpoint("teacher.pth")["model"])
    student = cifar_model_dict[cfg.DISTILLER.STUDENT][0](num_classes=num_classes)
    distiller = nn.DataParallel(distiller_dict[cfg.DISTILLER.TYPE](student, teacher, cfg))
    assert distiller.module.get_extra_parameters() == 0
    trainer = trainer_dict[cfg.SOLVER.TRAINER](
        "distill/kd", distiller, train_loader, val_loader, cfg
    )
    result = trainer.train(resume=False)
    assert (small / "output" / "distill" / "kd" / "student_last.pth").is_file()
    top1, top5, loss = validate(val_loader, distiller)
    assert (top1, loss) == (result["last_acc"], trainer.history[-1]["test_loss"])
    assert top5 == trainer.history[-1]["test_acc_top5"]


def test_the_parts_of_mdistillers_eval_script_evaluate_a_network(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from djip_ext.bench.dataset import get_dataset
    from djip_ext.bench.distillers import Vanilla
    from djip_ext.bench.engine.cfg import CFG
    from djip_ext.bench.engine.utils import validate
    from djip_ext.bench.models import tiny_imagenet_model_dict

    cfg = CFG.clone()
    cfg.DATASET.TYPE = "synthetic"
    cfg.DATASET.TEST.BATCH_SIZE = 16
    _, val_loader, _, num_classes = get_dataset(cfg)
    network, _ = tiny_imagenet_model_dict["MobileNetV2"]
    model = Vanilla(network(num_classes=num_classes)).to(val_loader.device)
    top1, top5, loss = validate(val_loader, nn.DataParallel(model))
    assert f"[EVAL] Top-1:{top1:.3f}| Top-5:{top5:.3f}" in capsys.readouterr().out
    model.eval()
    logits, labels = map(torch.cat, zip(*((model(image=i), y) for i, y in val_loader), strict=True))
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item())
    assert top1 == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert top1 <= top5


def test_imagenets_validation_images_are_found_in_mdistillers_place(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from djip_ext.bench.dataset import imagenet as validation

    make_folders(small / "data" / "imagenet", classes=2, val=3, size=(300, 260))
    monkeypatch.setattr(validation, "WORKERS", 0)
    loader = validation.get_imagenet_val_loader(4)
    images, labels = map(torch.cat, zip(*loader, strict=True))
    assert images.shape == (6, 3, 224, 224) and labels.tolist() == [0, 0, 0, 1, 1, 1]
    mean = (0.1, 0.2, 0.3)
    shifted = validation.get_imagenet_val_loader(4, mean=mean, std=(0.5, 0.5, 0.5))
    assert shifted.data.mean == mean


def slow_evaluation(network: nn.Module, data: ImageSet, loader: DeviceLoader) -> dict[str, float]:
    """One image at a time, float64."""
    loss = hits = hits5 = 0.0
    for i, label in enumerate(data.labels.tolist()):
        z = network(loader.normalise(data.images[i : i + 1]))[0].double()
        loss += -F.log_softmax(z, dim=0)[label].item()
        above = int((z > z[label]).sum())
        hits += above < 1
        hits5 += above < 5
    n = len(data.labels)
    return {"test_loss": loss / n, "test_acc": 100 * hits / n, "test_acc_top5": 100 * hits5 / n}


def test_evaluation_is_that_of_one_image_at_a_time() -> None:
    data = make_synthetic(2, 3)
    loader = DeviceLoader(data, 7)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 20))
    assert evaluate(network, loader) == pytest.approx(slow_evaluation(network, data, loader))
    assert network.training


def slow_accuracy(output: Tensor, target: Tensor, k: int) -> float:
    ranked = [sorted(range(len(z)), key=lambda c, z=z: -z[c])[:k] for z in output.tolist()]
    return 100 * sum(t in r for t, r in zip(target.tolist(), ranked, strict=True)) / len(target)


def test_accuracy_is_a_percentage_for_each_k() -> None:
    from djip_ext.bench.engine.utils import accuracy

    torch.manual_seed(0)
    output = torch.randn(50, 10)
    target = torch.randint(10, (50,))
    top1, top5 = accuracy(output, target, topk=(1, 5))
    assert top1.shape == top5.shape == (1,)
    assert top1.item() == pytest.approx(slow_accuracy(output, target, 1))
    assert top5.item() == pytest.approx(slow_accuracy(output, target, 5))
    assert accuracy(output, target)[0].item() == top1.item()


def test_a_meter_averages_over_samples() -> None:
    from djip_ext.bench.engine.utils import AverageMeter

    meter = AverageMeter()
    meter.update(2.0, n=3)
    meter.update(6.0)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (6.0, 12.0, 4, 3.0)
    meter.reset()
    assert (meter.val, meter.sum, meter.count, meter.avg) == (0, 0, 0, 0)


def test_messages_have_the_colour_of_their_kind() -> None:
    from djip_ext.bench.engine.utils import log_msg

    assert log_msg("Top-1:50", "EVAL") == "\033[31m[EVAL] Top-1:50\033[0m"
    assert log_msg("x").startswith("\033[36m[INFO]")


def test_the_learning_rate_of_an_epoch_reaches_every_group() -> None:
    from djip_ext.bench.engine.cfg import CFG
    from djip_ext.bench.engine.utils import adjust_learning_rate

    weight, bias = nn.Linear(2, 2).parameters()
    optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias]}], lr=1.0)
    assert adjust_learning_rate(151, CFG, optimizer) == pytest.approx(0.005)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(0.005)] * 2


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    from djip_ext.bench.engine.utils import load_checkpoint

    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(Exception, match="weights_only"):
        load_checkpoint(tmp_path / "module.pth")


def test_imagenets_networks_are_called_as_in_mdistiller(monkeypatch: pytest.MonkeyPatch) -> None:
    from djip_ext.bench.models import imagenet_model_dict

    with torch.device("meta"):
        network = imagenet_model_dict["ResNet18"](pretrained=False)
    assert network.fc.out_features == 1000
    asked: list[tuple[str, bool]] = []
    torch.manual_seed(0)
    published = imagenet_model_dict["ResNet18"]().state_dict()

    def state(name: str, download: bool) -> dict[str, Tensor]:
        asked.append((name, download))
        return published

    monkeypatch.setattr(imagenet, "torchvision_state", state)
    loaded = imagenet_model_dict["ResNet18"](pretrained=True)
    assert asked == [("resnet18@IMAGENET1K_V1", False)]  # nothing is fetched unless asked for
    assert torch.equal(loaded.fc.weight, published["fc.weight"])
    with pytest.raises(DJIPError, match="MobileNetV1 has no published weights"):
        imagenet_model_dict["MobileNetV1"](pretrained=True)


def test_tiny_imagenets_mobilenet_has_mdistillers_layout() -> None:
    from djip_ext.bench.models import tiny_imagenet_model_dict

    assert list(tiny_imagenet_model_dict) == ["ResNet18", "MobileNetV2", "ShuffleV2"]
    model = tiny_imagenet_model_dict["MobileNetV2"][0](num_classes=200)
    lines = sorted(f"{key}:{tuple(value.shape)}" for key, value in model.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    # taken from mdistiller a08d46f
    assert (sum(p.numel() for p in model.parameters()), digest) == (2_497_480, "1ffebe20b4a71187")


@pytest.mark.parametrize("name", ["ResNet18", "MobileNetV2", "ShuffleV2"])
def test_tiny_imagenets_networks_give_logits_and_features(name: str) -> None:
    from djip_ext.bench.models import tiny_imagenet_model_dict

    model = tiny_imagenet_model_dict[name][0](num_classes=7).eval()
    logits, feats = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7) and feats["pooled_feat"].dim() == 2
    classifier = model.conv2 if name == "MobileNetV2" else model.linear
    pooled = feats["pooled_feat"]
    expected = F.linear(pooled, classifier.weight.flatten(1), classifier.bias)
    torch.testing.assert_close(logits, expected)
    shapes = [[f.shape for f in feats[key]] for key in ("feats", "preact_feats")]
    assert shapes[0] == shapes[1]
