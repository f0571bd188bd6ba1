"""Networks of torchvision, timm and Hugging Face: their own input and weights, our surface."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from helpers.folders import hf_folder, make_folders
from safetensors.torch import save_file
from torch import nn

from djip_ext import ClosedTeacher, fit_lens
from djip_ext.bench.dataset.image_sets import load_image_sets
from djip_ext.bench.distillers import distiller_dict
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_teacher, load_weights
from djip_ext.bench.models import families
from djip_ext.bench.models.classifier import Classifier
from djip_ext.bench.models.families import build, input_spec, torchvision_state
from djip_ext.errors import DJIPError
from djip_ext.lens.io import weight_hash
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.teacher import DJIPTeacher

TIMM, TORCHVISION = "timm:vit_tiny_patch16_224", "torchvision:resnet18"


def test_torchvisions_input_is_that_of_its_weights() -> None:
    spec = input_spec("torchvision:resnet34")
    assert (spec.size, spec.resize, spec.interpolation) == ((224, 224), 256, "bilinear")
    assert spec.mean == (0.485, 0.456, 0.406) and "ResNet34_Weights" in spec.origin
    assert (
        input_spec("torchvision:resnet50").resize == 232
        and input_spec("torchvision:resnet50@IMAGENET1K_V1").resize == 256
    )


def test_timms_input_is_that_of_its_pretrained_cfg() -> None:
    pytest.importorskip("timm")
    spec = input_spec("timm:vit_small_patch16_224")
    assert (spec.mean, spec.std, spec.size, spec.resize, spec.interpolation) == (
        (0.5,) * 3,
        (0.5,) * 3,
        (224, 224),
        248,
        "bicubic",
    )
    assert "augreg" in spec.origin
    assert input_spec("timm:deit_tiny_patch16_224").mean == (0.485, 0.456, 0.406)


def test_timms_input_is_prepared_as_timms_own_transform_does(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    root = make_folders(tmp_path, size=(300, 260))
    cfg = load_cfg(
        None,
        [
            "DATASET.TYPE",
            "imagefolder",
            "BENCH.DATA_ROOT",
            str(root),
            "DISTILLER.TEACHER",
            "timm:vit_small_patch16_224",
        ],
    )
    data = load_image_sets(cfg)[1]
    own = timm.data.create_transform(
        **timm.data.resolve_data_config(
            {}, pretrained_cfg=timm.get_pretrained_cfg("vit_small_patch16_224").to_dict()
        )
    )
    from PIL import Image

    expected = own(Image.open(root / "val" / "n0000" / "0.png"))
    found = (data.pixels(torch.tensor([0]))[0].permute(2, 0, 1) / 255 - 0.5) / 0.5
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "processor, size, resize",
    [
        ({}, (32, 32), (32, 32)),
        (
            {
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
            },
            (32, 32),
            40,
        ),
    ],
)
def test_hugging_faces_input_is_that_of_its_image_processor(
    processor: dict, size: tuple, resize: object, tmp_path: Path
) -> None:
    spec = input_spec(hf_folder(tmp_path, weights=False, image_mean=[0.1, 0.2, 0.3], **processor))
    assert (spec.mean, spec.std, spec.size, spec.resize, spec.interpolation) == (
        (0.1, 0.2, 0.3),
        (0.5,) * 3,
        size,
        resize,
        "bilinear",
    )


def test_a_convnexts_input_follows_its_crop_rule(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ConvNextConfig().save_pretrained(tmp_path)
    transformers.ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875
    ).save_pretrained(tmp_path)
    spec = input_spec(f"hf:{tmp_path}")
    assert (spec.size, spec.resize) == ((224, 224), 256)


def test_a_range_that_the_benchmark_cannot_prepare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="range"):
        input_spec(hf_folder(tmp_path, weights=False, do_rescale=False))


def mobilevit_processor(folder: Path, **processor: object) -> str:
    transformers = pytest.importorskip("transformers")
    transformers.MobileViTConfig().save_pretrained(folder)
    transformers.MobileViTImageProcessor(**processor).save_pretrained(folder)
    return f"hf:{folder}"


def test_a_network_that_takes_blue_before_red_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="blue before red"):
        input_spec(mobilevit_processor(tmp_path))


def test_an_image_processor_that_does_not_normalise_by_default_is_followed(tmp_path: Path) -> None:
    spec = input_spec(mobilevit_processor(tmp_path, do_flip_channel_order=False))
    assert (spec.mean, spec.std, spec.size) == ((0.0,) * 3, (1.0,) * 3, (256, 256))


def test_an_image_processors_nearest_pixel_is_kept(tmp_path: Path) -> None:
    assert input_spec(hf_folder(tmp_path, weights=False, resample=0)).interpolation == "nearest"


def test_a_missing_image_processor_is_named_with_the_cure(tmp_path: Path) -> None:
    name = hf_folder(tmp_path)
    (tmp_path / "tinyvit" / "preprocessor_config.json").unlink()
    with pytest.raises(DJIPError, match="BENCH.MEAN") as caught:
        input_spec(name)
    assert "\n" not in str(caught.value)
    root = make_folders(tmp_path / "data", classes=5)
    own = ["BENCH.MEAN", "[0.5,0.5,0.5]", "BENCH.STD", "[0.5,0.5,0.5]", "BENCH.INPUT_SIZE", 32]
    train, _ = load_image_sets(
        load_cfg(
            None,
            [
                "DATASET.TYPE",
                "imagefolder",
                "BENCH.DATA_ROOT",
                str(root),
                "DISTILLER.TEACHER",
                name,
                *own,
            ],
        )
    )
    assert (train.size, train.mean) == ((32, 32), (0.5, 0.5, 0.5))


def test_what_was_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = make_folders(tmp_path)
    load_image_sets(
        load_cfg(
            None,
            [
                "DATASET.TYPE",
                "imagefolder",
                "BENCH.DATA_ROOT",
                str(root),
                "DISTILLER.TEACHER",
                TORCHVISION,
            ],
        )
    )
    assert (
        "note: images for torchvision:resnet18: 224x224 cut from a shorter side of 256, bilinear, "
        "mean (0.485" in capsys.readouterr().out
    )
    load_image_sets(load_cfg(None, ["DATASET.TYPE", "synthetic", "DISTILLER.TEACHER", TORCHVISION]))
    assert "synthetic's own 32x32" in capsys.readouterr().out


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_torchvision_network_that_scales_its_images_does_so(
    pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import googlenet

    state = googlenet(init_weights=False).state_dict()
    monkeypatch.setattr(families, "torchvision_state", lambda *_: state)
    model = build("torchvision:googlenet", 1000, pretrained=pretrained)
    assert model.network.transform_input is True
    assert torch.equal(model.network.fc.bias, state["fc.bias"]) == pretrained


def test_a_torchvision_vit_has_the_image_size_of_its_weights() -> None:
    for name, side in (("vit_b_16", 224), ("ViT_B_16@IMAGENET1K_SWAG_E2E_V1", 384)):
        with torch.device("meta"):
            model = build(f"torchvision:{name}", 7)
        assert model.network.image_size == side
        assert input_spec(f"torchvision:{name}").size == (side, side)


def test_a_classifier_gives_the_bare_networks_logits_and_the_input_of_its_last_layer() -> None:
    model = build(TORCHVISION, 7).eval()
    x = torch.randn(2, 3, 32, 32)
    logits, features = model(x)
    assert torch.equal(logits, model.network(x)) and logits.shape == (2, 7)
    assert torch.equal(model.network.fc(features["pooled_feat"]), logits)


@pytest.mark.parametrize("family", ["timm", "hf"])
def test_transformers_give_logits_and_pooled_features_too(family: str, tmp_path: Path) -> None:
    if family == "timm":
        pytest.importorskip("timm")
        model, x = build(TIMM, 7).eval(), torch.randn(1, 3, 224, 224)
        expected, head = model.network(x), model.network.head
    else:
        model, x = build(hf_folder(tmp_path), 5, pretrained=True).eval(), torch.randn(1, 3, 32, 32)
        expected, head = model.network(pixel_values=x).logits, model.network.classifier
    logits, features = model(x)
    assert torch.equal(logits, expected)
    torch.testing.assert_close(head(features["pooled_feat"]), logits)


@pytest.mark.parametrize("method", ["AT", "SP", "FITNET", "FT"])
def test_methods_that_need_maps_say_so(method: str) -> None:
    network = build(TORCHVISION, 7)
    with pytest.raises(
        DJIPError, match="needs .*feats, torchvision:resnet18 gives logits and pooled_feat"
    ):
        distiller = distiller_dict[method](network, copy.deepcopy(network), load_cfg(None, []))
        distiller(image=torch.randn(2, 3, 32, 32), target=torch.tensor([0, 1]), epoch=1)


@pytest.mark.parametrize("family", ["timm", "hf"])
def test_images_of_a_wrong_size_are_refused_with_the_cure(family: str, tmp_path: Path) -> None:
    if family == "timm":
        pytest.importorskip("timm")
    model = build(TIMM if family == "timm" else hf_folder(tmp_path), 5)
    with pytest.raises(DJIPError, match="48x48.*INPUT_SIZE") as caught:
        model(torch.randn(1, 3, 48, 48))
    assert "\n" not in str(caught.value)


def test_the_error_of_a_closed_teacher_is_its_own() -> None:
    closed = ClosedTeacher(lambda image: torch.full((len(image), 5), 0.2), 5, name="service")
    with pytest.raises(DJIPError) as caught:
        Classifier(closed, "closed:service.py:teacher", 5)(torch.randn(1, 3, 48, 48))
    assert str(caught.value).startswith("the answers of service are probabilities, not logits")


def test_a_network_without_a_last_linear_layer_gives_logits_only() -> None:
    model = build("torchvision:squeezenet1_1", 7).eval()
    logits, features = model(torch.randn(1, 3, 64, 64))
    assert logits.shape == (1, 7)
    with pytest.raises(DJIPError, match="gives logits;"):
        features["pooled_feat"]


class Uncalled(nn.Module):
    """Uses the weights of its last linear layer without calling it, or calls it by keyword."""

    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.head, self.keyword = nn.Linear(3, 5), keyword

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = x.mean((2, 3))
        return self.head(input=pooled) if self.keyword else pooled @ self.head.weight.T


@pytest.mark.parametrize("keyword", [False, True])
def test_a_network_that_does_not_call_its_last_layer_gives_logits_only(keyword: bool) -> None:
    logits, features = Classifier(Uncalled(keyword), "own", 5)(torch.randn(2, 3, 4, 4))
    assert logits.shape == (2, 5)
    with pytest.raises(DJIPError, match="own gives logits;"):
        features["pooled_feat"]


def test_checkpoints_and_lenses_fit_the_bare_network_too(tmp_path: Path) -> None:
    model = build(TORCHVISION, 7)
    bare = model.network
    assert list(model.state_dict()) == list(bare.state_dict()) and weight_hash(
        model
    ) == weight_hash(bare)
    torch.save({"model": model.state_dict()}, tmp_path / "a.pth")
    save_file(bare.state_dict(), tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        again = load_weights(build(TORCHVISION, 7), tmp_path / name)
        assert weight_hash(again) == weight_hash(model)
    behind = DJIPTeacher(model, JPEGLens(q=4.0), (0.5,) * 3, (0.5,) * 3)
    other = DJIPTeacher(build(TORCHVISION, 7), JPEGLens(q=4.0), (0.5,) * 3, (0.5,) * 3)
    other.load_state_dict(behind.state_dict())
    assert weight_hash(other.djip_teacher) == weight_hash(model)


def test_a_foreign_checkpoint_is_refused_by_the_networks_name(tmp_path: Path) -> None:
    torch.save({"model": build(TORCHVISION, 7).state_dict()}, tmp_path / "seven.pth")
    with pytest.raises(DJIPError, match="does not fit torchvision:resnet18: size mismatch"):
        load_weights(build(TORCHVISION, 5), tmp_path / "seven.pth")
    with pytest.raises(DJIPError, match="does not fit torchvision:resnet34"):
        load_weights(build("torchvision:resnet34", 7), tmp_path / "seven.pth")


def teacher(name: str, num_classes: int, *options: object) -> nn.Module:
    return build_teacher(
        load_cfg(None, ["DATASET.TYPE", "imagefolder", "DISTILLER.TEACHER", name, *options]),
        num_classes,
    )


def test_a_teacher_takes_its_weights_from_a_file_or_its_own_folder(tmp_path: Path) -> None:
    name = hf_folder(tmp_path)
    from_folder = teacher(name, 5)
    assert isinstance(from_folder, Classifier) and not from_folder.training
    save_file(
        {key: 2 * value for key, value in from_folder.state_dict().items()},
        tmp_path / "double.safetensors",
    )
    from_file = teacher(name, 5, "BENCH.TEACHER_CHECKPOINT", str(tmp_path / "double.safetensors"))
    assert torch.equal(from_file.network.classifier.bias, 2 * from_folder.network.classifier.bias)
    assert {parameter.dtype for parameter in from_folder.parameters()} == {torch.float32}


def test_weights_saved_in_half_precision_are_used_in_float32(tmp_path: Path) -> None:
    name = hf_folder(tmp_path)
    transformers = pytest.importorskip("transformers")
    transformers.ViTForImageClassification.from_pretrained(name[3:]).bfloat16().save_pretrained(
        name[3:]
    )
    assert {parameter.dtype for parameter in teacher(name, 5).parameters()} == {torch.float32}


def test_weights_for_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="know 5 classes, the data have 3"):
        teacher(hf_folder(tmp_path), 3)
    with pytest.raises(DJIPError, match="know 1000 classes, the data have 3"):
        teacher(TORCHVISION, 3, "BENCH.DOWNLOAD", True)
    with pytest.raises(DJIPError, match="1000 classes, the data have 3"):
        teacher("ResNet34", 3)


def test_a_folder_that_holds_no_classifier_is_refused(tmp_path: Path) -> None:
    name = hf_folder(tmp_path)
    transformers = pytest.importorskip("transformers")
    transformers.ViTModel(transformers.ViTConfig.from_pretrained(name[3:])).save_pretrained(
        name[3:]
    )
    with pytest.raises(DJIPError, match="lack classifier"):
        teacher(name, 5)


def test_nothing_is_fetched_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("asked the network")
    )
    for name in (TORCHVISION, "ResNet34", "hf:nobody/nothing"):
        with pytest.raises(DJIPError, match="BENCH.DOWNLOAD True") as caught:
            teacher(name, 1000)
        assert "\n" not in str(caught.value)
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(DJIPError, match="BENCH.DOWNLOAD True"):
        teacher(TIMM, 1000)


def test_with_download_the_library_fetches_and_its_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timm = pytest.importorskip("timm")
    asked = []

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        raise OSError("no route\nto host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(DJIPError, match="no weights for timm:vit_tiny_patch16_224 here .no route"):
        teacher(TIMM, 1000, "BENCH.DOWNLOAD", True)
    assert asked == [("vit_tiny_patch16_224", True)]


def test_cached_torchvision_weights_need_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import ResNet18_Weights, resnet18

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = tmp_path / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name
    cached.parent.mkdir()
    network = resnet18()
    torch.save(network.state_dict(), cached)
    assert weight_hash(teacher(TORCHVISION, 1000)) == weight_hash(network)
    assert weight_hash(teacher("ResNet18", 1000)) == weight_hash(network)
    assert torch.equal(torchvision_state("resnet18", download=False)["fc.bias"], network.fc.bias)


@pytest.mark.parametrize("library, name", [("timm", TIMM), ("transformers", "hf:nobody/nothing")])
def test_a_missing_library_is_named_with_its_extra(
    library: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        DJIPError,
        match=rf"{library} is not installed; pip install 'djip_ext\[{name.partition(':')[0]}\]'",
    ):
        input_spec(name)
    with pytest.raises(DJIPError, match="not installed"):
        build(name, 5)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision:nosuch",
        "torchvision:resnet18@V9",
        "torchvision:fcn_resnet50",
        "timm:nosuch",
        "timm:resnet50.nosuchtag",
        "jax:resnet",
        "timm:",
        "resnetty",
    ],
)
def test_an_unknown_network_is_refused_by_name(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    match = name.rpartition(":")[2].partition("@")[0] or name
    with pytest.raises(DJIPError, match=match):
        teacher(name, 5)
    with pytest.raises(DJIPError, match=match):
        input_spec(name)


def test_a_fresh_hugging_face_student_has_the_classes_of_the_data(tmp_path: Path) -> None:
    model = build(hf_folder(tmp_path, weights=False), 9)
    assert model(torch.randn(1, 3, 32, 32))[0].shape == (1, 9)


@pytest.mark.parametrize("family", ["timm", "hf"])
def test_bfloat16_is_for_the_network_and_the_lens_sees_float32(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "timm":
        pytest.importorskip("timm")
    model, side = (
        (build("timm:test_vit", 5), 160)
        if family == "timm"
        else (build(hf_folder(tmp_path), 5, pretrained=True), 32)
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, side, side, generator=generator) * 2 - 1
    batches = [(images, torch.arange(4) % 2)]
    seen, forward = [], JPEGLens.forward
    monkeypatch.setattr(
        JPEGLens,
        "forward",
        lambda lens, *args, **scale: seen.append(forward(lens, *args, **scale)) or seen[-1],
    )
    fits = {}
    for precision in ("float32", "bfloat16"):
        fits[precision] = fit_lens(
            model,
            batches,
            5,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            rounds=1,
            precision=precision,
            progress=False,
        )
    assert {image.dtype for image in seen} == {torch.float32}
    full, low = fits["float32"].before, fits["bfloat16"].before
    assert low.ce != full.ce and low.ce == pytest.approx(full.ce, rel=0.02)
    q = fits["bfloat16"].lens.q
    assert q.dtype == torch.float32 and bool(torch.isfinite(q).all())
    assert (
        fits["bfloat16"].history[1]["q_low"] < 8 < fits["bfloat16"].history[1]["q_high"]
    )  # gradients reached the tables
