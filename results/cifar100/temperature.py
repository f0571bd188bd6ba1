"""What a distiller sees at its temperature: CMI at T = 1, 2, 4 of each teacher of results/.

    python results/cifar100/temperature.py

from the root of the checkout, with CIFAR-100 in ./data, prints it as Markdown.  On the 2,500
images of the 5 % set, which the students learn from, without augmentation; CE and accuracy also on
the test images.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from djip_ext import conditional_mutual_information, load_lens  # noqa: E402
from djip_ext.bench.dataset.image_sets import load_image_sets  # noqa: E402
from djip_ext.bench.dataset.imageset import ImageSet  # noqa: E402
from djip_ext.bench.dataset.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.engine.cfg import load_cfg  # noqa: E402
from djip_ext.bench.engine.run import build_model, load_weights  # noqa: E402
from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.teacher import DJIPTeacher  # noqa: E402
from djip_ext.utils.networks import autocast  # noqa: E402

FOLDER, PRECISION, TEMPERATURES = Path("results/cifar100"), "bfloat16", (1, 2, 4)
ARMS = {
    "plain": ("wrn_16_2", None),
    "lens `gain015`": ("wrn_16_2", "gain015"),
    "lens `gain03`": ("wrn_16_2", "gain03"),
    "JPEG, quality 87": ("wrn_16_2", "jpeg"),
    "random, median 8": ("wrn_16_2", "random"),
    "MCMI, gain 0.3": ("mcmi_gain_0.3", None),
    "all data: plain": ("wrn_16_2_full", None),
    "all data: lens `full`": ("wrn_16_2_full", "full"),
    "all data: JPEG, quality 90": ("wrn_16_2_full", "full_jpeg"),
}


@torch.no_grad()
def answers(teacher: nn.Module, data: ImageSet) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,)."""
    logits = []
    for image, _ in DeviceLoader(data, 250):
        with autocast(image.device, PRECISION):
            logits.append(teacher(image)[0].float())
    return torch.cat(logits), data.labels


def row(name: str, weights: str, lens: str | None, few_shot: ImageSet, test: ImageSet) -> list[str]:
    """The cells of one teacher."""
    network = load_weights(
        build_model("wrn_16_2", 100), FOLDER / "teacher" / f"{weights}.safetensors"
    )
    network = network.to(memory_format=torch.channels_last)
    in_front = "identity" if lens is None else load_lens(FOLDER / "lenses" / f"{lens}.safetensors")
    teacher = DJIPTeacher(network, in_front, few_shot.mean, few_shot.std)
    logits, labels = answers(teacher, few_shot)
    cells = [
        f"{conditional_mutual_information(logits, labels, 100, t).total:.4f}" for t in TEMPERATURES
    ]
    soft = torch.softmax(logits / 4, dim=1)
    cells.append(f"{-(soft * soft.log()).sum(1).mean():.3f}")
    for z, y in ((logits, labels), answers(teacher, test)):
        cells.append(f"{F.cross_entropy(z, y):.4f}")
        cells.append(f"{100 * (z.argmax(1) == y).float().mean():.2f}")
    return [name, *cells]


def main() -> None:
    """Print the table."""
    few_shot, test = load_image_sets(load_cfg(None, ["BENCH.FRACTION", "0.05"]))
    heads = ["teacher", *(f"CMI, T = {t}" for t in TEMPERATURES)]
    heads += ["entropy, T = 4", "CE", "accuracy (%)", "CE, test", "accuracy, test (%)"]
    rows = [row(name, *arm, few_shot, test) for name, arm in ARMS.items()]
    print(markdown_table([heads, *rows]))


if __name__ == "__main__":
    main()
