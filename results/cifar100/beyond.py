"""Is there a lens that does more than softening?  Families of lenses before one teacher, KD.

    python results/cifar100/beyond.py [--out FOLDER] [--seeds 5] [--arms draw mean both views]

from the root of the checkout, with CIFAR-100 in ./data.  The students are those of
regime_fifth.yaml at T = 4, where the plain teacher is best softened, and differ from its arm
``plain`` (seed by seed) in what the teacher answers:

* draw: each image in each of its 16 views is seen through a lens of the family, drawn at random;
* mean: the mean of the probabilities (at T = 4) over the whole family;
* both: as draw, a lens for each view, and the *student* sees its images through that lens too;
* views: no lens; the mean of the probabilities over as many views of the image as there are lenses
  in the family: what averaging alone does.

--table takes another table with an arm for the plain teacher at T = 4.  The lenses are not fitted
for its teacher then.

The family: no lens, the fitted lenses gain015 and gain03, JPEG of quality 87, random tables.  Runs
that are there are skipped, interrupted ones go on; a second process takes what the first leaves.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import torch  # noqa: E402
from regime import described  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from yacs.config import CfgNode  # noqa: E402

from djip_ext.bench.dataset.image_sets import get_dataset  # noqa: E402
from djip_ext.bench.dataset.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.device import resolve_device  # noqa: E402
from djip_ext.bench.engine.networks import build_teacher  # noqa: E402
from djip_ext.bench.engine.record import lens_record, run_folder, run_name, run_record  # noqa: E402
from djip_ext.bench.engine.run import build_distiller, scaled_as  # noqa: E402
from djip_ext.bench.engine.teacher_cache import CachedTeacher, cached_teacher  # noqa: E402
from djip_ext.bench.engine.trainer import BaseTrainer  # noqa: E402
from djip_ext.errors import Busy  # noqa: E402
from djip_ext.experiments.plan import Step, make_plan  # noqa: E402
from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.experiments.runs import read_runs  # noqa: E402
from djip_ext.experiments.statistics import summarise  # noqa: E402
from djip_ext.experiments.table import load_table  # noqa: E402
from djip_ext.lens.io import read_lens  # noqa: E402
from djip_ext.lens.jpeg_lens import JPEGLens  # noqa: E402
from djip_ext.lens.normalisation import Normalisation  # noqa: E402
from djip_ext.teacher import DJIPTeacher  # noqa: E402
from djip_ext.utils.files import claimed  # noqa: E402

FAMILY = ("identity", *(str(HERE / f"lenses/{name}.safetensors") for name in
                        ("gain015", "gain03", "jpeg", "random")))  # fmt: skip
ARMS = ("draw", "mean", "both", "views")
TEMPERATURE = 4
DRAW_SEED = 20_000  # of the drawn lenses: the same for all students


def draw(arm: str, views: int, images: int) -> Tensor:
    """The lens of every image in every view, (views, N); of a view as a whole for ``both``."""
    if arm == "both":
        return torch.arange(views)[:, None].expand(-1, images) % len(FAMILY)
    generator = torch.Generator().manual_seed(DRAW_SEED)
    return torch.randint(len(FAMILY), (views, images), generator=generator)


def answers_of(arm: str, kept: list[dict[str, Tensor]], temperature: float) -> dict[str, Tensor]:
    """What the family's teachers answer together: logits (views, N, C)."""
    logits = torch.stack([answer["logits"].float() for answer in kept])
    if arm == "views":  # of the plain teacher, evenly spread over all views
        views = logits.shape[1]
        shifts = [round(number * views / len(kept)) for number in range(len(kept))]
        logits = torch.stack([logits[0].roll(shift, 0) for shift in shifts])
    if arm in ("mean", "views"):
        log_p = torch.log_softmax(logits / temperature, dim=3)
        return {"logits": temperature * (log_p.logsumexp(0) - torch.tensor(float(len(kept))).log())}
    views, images = logits.shape[1:3]
    chosen = draw(arm, views, images)
    return {"logits": logits[chosen, torch.arange(views)[:, None], torch.arange(images)]}


class BehindLenses:
    """The batches of ``loader``, each image through the lens of its view (arm ``both``)."""

    def __init__(
        self, loader: Any, lenses: list[JPEGLens | str], normalisation: Normalisation
    ) -> None:
        self.loader = loader
        self.lenses = lenses
        self.normalisation = normalisation

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "epoch":
            self.loader.epoch = value
        else:
            super().__setattr__(name, value)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        lens = self.lenses[self.loader.epoch % self.loader.views % len(self.lenses)]
        for image, target, index in self.loader:
            if isinstance(lens, JPEGLens):  # the other one is the identity
                with torch.no_grad():
                    image = self.normalisation.through(lens, image)
            yield image, target, index


def ask_family(cfg: CfgNode, plain: nn.Module, loader: DeviceLoader) -> list[dict[str, Tensor]]:
    """What the teacher answers behind each lens of the family; kept in the folder of the runs."""
    folder = Path(cfg.LOG.PREFIX, "teacher_cache")
    kept = []
    for source in FAMILY:
        lens = read_lens(source)
        teacher = DJIPTeacher(plain, lens, loader.data.mean, loader.data.std, any_teacher=True)
        kept.append(cached_teacher(teacher, loader, folder, cfg.BENCH.PRECISION).kept)
    return kept


def settings_of(step: Step, arm: str) -> CfgNode:
    """The configuration of one student."""
    cfg = step.settings()
    cfg.EXPERIMENT.PROJECT = f"{arm}/djip-{arm}"
    cfg.BENCH.DEVICE = str(resolve_device(cfg.BENCH.DEVICE))
    return cfg


def train(step: Step, arm: str) -> float:
    """Train one student and return its accuracy on the test images after the last epoch (%)."""
    cfg = settings_of(step, arm)
    with claimed(run_folder(cfg) / ".lock", str(run_folder(cfg))):
        loader, test_loader, num_data, num_classes = get_dataset(cfg)
        data = loader.data
        plain = build_teacher(cfg, num_classes).to(memory_format=torch.channels_last)
        record = run_record(cfg) | lens_record(plain) | {"lens": arm}
        record["data"] = {"train": data.fingerprint(), "test": test_loader.data.fingerprint()}
        kept = ask_family(cfg, plain, loader)
        distiller = build_distiller(scaled_as(cfg, data), plain, num_data, num_classes)
        distiller.teacher = CachedTeacher(answers_of(arm, kept, cfg.KD.TEMPERATURE), arm)
        if arm == "both":
            lenses = [read_lens(source) for source in FAMILY]
            loader = BehindLenses(loader, lenses, Normalisation(data.mean, data.std))
        trainer = BaseTrainer(run_name(cfg), distiller, loader, test_loader, cfg, record)
        accuracy: float = trainer.train(resume=True)["last_acc"]
        return accuracy


def description(step: Step) -> str:
    """What the answers of every arm are like, over all views, as Markdown."""
    cfg = settings_of(step, "plain")
    loader, _, _, num_classes = get_dataset(cfg)
    plain = build_teacher(cfg, num_classes).to(memory_format=torch.channels_last)
    kept = ask_family(cfg, plain, loader)
    labels = loader.data.labels.repeat(loader.views)
    rows = [[f"answers at T = {TEMPERATURE}", "CMI", "entropy", "cross entropy", "accuracy (%)"]]
    for arm in ("plain", *ARMS):
        answers = kept[0] if arm == "plain" else answers_of(arm, kept, TEMPERATURE)
        found = described(answers["logits"].float().flatten(0, 1), labels, TEMPERATURE)
        numbers = [f"{found[name]:.4f}" for name in ("cmi", "entropy", "ce")]
        rows.append([arm, *numbers, f"{found['accuracy']:.2f}"])
    return markdown_table(rows)


def differences() -> str:
    """What ``mean`` gains over plain and over ``views``, from the kept records, in points.

    The seeds that picked it, 0 to 2, and the later ones apart.
    """
    runs = read_runs(HERE / "tables/beyond")
    accuracy = {(run.project, run.seed): run.result["last_acc"] for run in runs}
    lines = []
    for other, seeds in (("plain", range(3)), ("plain", range(3, 8)), ("views", range(5))):
        paired = [accuracy["mean", seed] - accuracy[other, seed] for seed in seeds]
        found = summarise(paired)
        lines.append(
            f"mean - {other}, seeds {seeds[0]} to {seeds[-1]}: {found.mean:+.2f} "
            f"± {found.half_width:.2f}"
        )
    return "\n".join(lines)


def plain_students(table: str, out: str, temperature: float, seeds: int) -> list[Step]:
    """The students of the plain teacher at that temperature, in the order of their seeds."""
    steps = make_plan(dataclasses.replace(load_table(table), seeds=seeds), out, "")
    students = [step for step in steps if step.lens == "identity"]
    return [step for step in students if temperature == step.settings().KD.TEMPERATURE]


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table", default=str(HERE / "regime_fifth.yaml"), help="of the plain teacher's students"
    )
    parser.add_argument("--out", default="output/beyond", help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="students of each arm")
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS, help="arms to train")
    parser.add_argument(
        "--describe", action="store_true", help="print what the answers are like; train nothing"
    )
    parser.add_argument(
        "--differences", action="store_true", help="print those of mean; train nothing"
    )
    args = parser.parse_args()
    if args.differences:
        print(differences())
        return
    if args.describe:
        print(description(plain_students(args.table, args.out, TEMPERATURE, 1)[0]))
        return
    for step in plain_students(args.table, args.out, TEMPERATURE, args.seeds):
        for arm in args.arms:
            try:
                print(f"{arm}, seed {step.seed}: {train(step, arm):.2f} %", flush=True)
            except Busy:
                print(f"{arm}, seed {step.seed}: another process is at it", flush=True)


if __name__ == "__main__":
    main()
