"""Checkpoints as people have them: what can be read is, the rest is one line."""

import argparse
import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from djip_ext.bench.engine.checkpoints import load_weights
from djip_ext.errors import DJIPError
from djip_ext.inputs.checkpoints import read_state, variants

State = dict[str, Tensor]


class Network(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)


class Pickled(nn.Module):
    """A network of which somebody saved the whole object."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 1)


class Options:
    """What a trainer may put beside the weights, of a class that torch does not know."""


@pytest.fixture
def weights() -> State:
    torch.manual_seed(1)
    return Network().state_dict()


def with_prefix(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def check(path: Path | str, weights: State) -> None:
    network = load_weights(Network(), path)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


NAMES = ["model", "state_dict", "model_state_dict", "model_state", "net", "network", "params"]


@pytest.mark.parametrize("name", ["", *NAMES, "module", "a_name_nobody_knows"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_usual_layouts_and_prefixes(tmp_path: Path, weights: State, name: str, prefix: str) -> None:
    state = with_prefix(prefix, weights)
    path = tmp_path / "weights.pth"
    torch.save({name: state, "epoch": 3, "best_acc": 71.5} if name else state, path)
    check(path, weights)


def test_what_stands_beside_the_weights_does_not_matter(tmp_path: Path, weights: State) -> None:
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.fc(torch.ones(4)).sum().backward()
    optimizer.step()
    path = tmp_path / "weights.pth.tar"
    content = {
        "state_dict": weights,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "best": np.float64(71.5),
        "seen": np.arange(3),
        "criterion": {"memory": torch.zeros(3)},
    }
    torch.save(content, path)
    check(path, weights)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    check(path, weights)


def test_lightning_s_checkpoint(tmp_path: Path, weights: State) -> None:
    path = tmp_path / "last.ckpt"
    state = with_prefix("model.", weights) | {"criterion.weight": torch.ones(5)}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2", "loops": {}}, path)
    check(path, weights)


def test_a_distiller_s_checkpoint_names_its_two_networks(tmp_path: Path, weights: State) -> None:
    path = tmp_path / "last.ckpt"
    pair = with_prefix("student.", weights) | with_prefix("teacher.", other(weights))
    torch.save({"state_dict": pair}, path)
    with pytest.raises(DJIPError, match=r"several networks \(student, teacher\); name one as .*#"):
        load_weights(Network(), path)
    check(f"{path}#student", weights)
    check(f"{path}#teacher", other(weights))
    with pytest.raises(DJIPError, match="has no aunt; it holds student, teacher"):
        load_weights(Network(), f"{path}#aunt")
    pair = with_prefix("student.", weights) | with_prefix("teacher.", Network(7).state_dict())
    torch.save({"model": pair}, path)
    with pytest.raises(DJIPError, match="several networks"):  # the same names, though other shapes
        load_weights(Network(), path)


@pytest.mark.parametrize("name", ["model_ema", "state_dict_ema", "ema", "ema_state_dict"])
def test_an_average_beside_the_weights_is_named_and_can_be_chosen(
    tmp_path: Path, weights: State, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    average = with_prefix("module.", other(weights)) | {"n_averaged": torch.tensor(3)}
    torch.save({name: average, "state_dict": weights}, path)
    check(path, weights)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "taken: state_dict" in said and f"{path}#{name}" in said
    check(f"{path}#{name}", other(weights))
    check(f"{path}#ema", other(weights))
    check(f"{path}#state_dict", weights)
    assert capsys.readouterr().err == ""
    torch.save({name: average}, path)  # alone it is taken
    check(path, other(weights))


def test_an_average_within_a_trainer_s_state(tmp_path: Path, weights: State) -> None:
    path = tmp_path / "last.ckpt"
    state = with_prefix("model.", weights) | with_prefix("ema_model.", other(weights))
    torch.save({"state_dict": state}, path)
    check(path, weights)
    check(f"{path}#ema", other(weights))


def test_half_precision_and_old_batchnorms_and_counters(tmp_path: Path, weights: State) -> None:
    rounded = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    old = {k: v for k, v in rounded.items() if not k.endswith("num_batches_tracked")}
    old["conv1.total_ops"] = torch.zeros(1)
    path = tmp_path / "weights.pth"
    torch.save(old, path)
    check(path, {k: v.float() if v.is_floating_point() else v for k, v in rounded.items()})


def test_safetensors_are_told_by_their_content(tmp_path: Path, weights: State) -> None:
    save_file(with_prefix("module.", weights), tmp_path / "weights.bin")
    check(tmp_path / "weights.bin", weights)


def test_a_file_whose_name_holds_the_mark(tmp_path: Path, weights: State) -> None:
    torch.save(weights, tmp_path / "run#3.pth")
    check(tmp_path / "run#3.pth", weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_never_unpickled(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(Pickled(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DJIPError, match="whole pickled module .*Pickled.*state_dict") as caught:
        read_state(path)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_pickled_object_beside_the_weights_is_named(tmp_path: Path, weights: State) -> None:
    path = tmp_path / "net.pth"
    torch.save({"state_dict": weights, "args": Options()}, path)
    with pytest.raises(DJIPError, match="holds a pickled .*Options beside") as caught:
        read_state(path)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def damaged(kind: str, weights: State) -> bytes:
    buffer = io.BytesIO()
    if kind == "another zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("weights/readme.txt", "hello")
        return buffer.getvalue()
    if kind == "arrays":
        np.savez(buffer, a=np.zeros(3))
        return buffer.getvalue()
    if kind == "script":
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), buffer)
        return buffer.getvalue()
    torch.save(weights, buffer, _use_new_zipfile_serialization=kind != "cut off, old")
    content = buffer.getvalue()
    return {
        "cut off": content[: len(content) // 2],
        "cut off, old": content[: len(content) // 2],
        "cut off early": content[:50],
        "empty": b"",
        "web page": b"\n<!DOCTYPE html><html>quota exceeded</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "compressed": gzip.compress(content),
        "keras": b"\x89HDF\r\n\x1a\n" + bytes(600),
        "index": b'{"weight_map": {}}',
        "noise": bytes(range(256)) * 4,
    }[kind]


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("cut off", "cut off or damaged"),
        ("cut off, old", "not a readable checkpoint"),
        ("cut off early", "cut off or damaged"),
        ("empty", "is empty"),
        ("another zip", "zip file that holds weights/readme.txt"),
        ("arrays", "zip file that holds a.npy"),
        ("script", "TorchScript"),
        ("web page", "web page"),
        ("pointer", "git lfs pull"),
        ("compressed", "compressed; unpack"),
        ("keras", "HDF5"),
        ("index", "index of shards"),
        ("noise", "not a readable checkpoint"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, weights: State, kind: str, reason: str) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(damaged(kind, weights))
    with pytest.raises(DJIPError, match=reason) as caught:
        read_state(path)
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and str(path) in message


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], 3.0, {"optimizer": {"state": {}}}])
def test_a_file_without_weights(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(DJIPError, match="holds no weights"):
        read_state(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda s: s.pop("fc.bias"), "it lacks fc.bias;"),
        (lambda s: [s.pop(k) for k in list(s) if k[:2] == "bn"], "it lacks bn1.weight and 3 more;"),
        (lambda s: s.update({"fc2.bias": torch.ones(1)}), "it holds fc2.bias, which the network"),
        (lambda s: s.update({"fc.bias": torch.ones(7)}), "fc.bias is 7, the network's 5"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_what_does_not_fit_is_named_as_in_the_network(
    tmp_path: Path, weights: State, change: Any, reason: str, prefix: str
) -> None:
    change(weights)
    torch.save({"state_dict": with_prefix(prefix, weights)}, tmp_path / "net.pth")
    with pytest.raises(DJIPError, match=reason) as caught:
        load_weights(Network(), tmp_path / "net.pth")
    assert "\n" not in str(caught.value) and "module." not in str(caught.value)


def test_variants_hold_the_network_within(weights: State) -> None:
    state = with_prefix("model.", weights) | {"criterion.weight": torch.ones(1)}
    assert any(list(variant) == list(weights) for variant in variants(state))
