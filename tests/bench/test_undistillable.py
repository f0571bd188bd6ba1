"""CMIM, the knockoff attacks, rival defences and black-box answers against slow float64 sums."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers import distiller_defaults, distiller_dict
from djip_ext.bench.distillers._centres import class_centres, cmi_of_powers
from djip_ext.bench.distillers.attacks._kl import check_reduction, kl_to_student
from djip_ext.bench.distillers.attacks.erkd import entropy_weighted_loss
from djip_ext.bench.distillers.attacks.ls import smoothed_cross_entropy
from djip_ext.bench.distillers.attacks.mkd import STAY, mapped
from djip_ext.bench.distillers.defences.stingy import sparse_softmax
from djip_ext.bench.engine.answers import BlackBox, parse_answers
from djip_ext.bench.engine.cfg import CFG, load_cfg
from djip_ext.bench.engine.run import build_model, train
from djip_ext.errors import DJIPError
from djip_ext.metrics.cmi import conditional_mutual_information

CLASSES = 4
TARGET = torch.tensor([0, 3, 1, 1, 2, 0])
POWERS = (2.0, 0.5, 0.125)


def noise(*shape: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)


def logits() -> Tensor:
    return noise(len(TARGET), CLASSES, seed=0)


def centres() -> Tensor:
    return torch.softmax(noise(len(POWERS), CLASSES, CLASSES, seed=1), dim=2)


def softmax(z: list[float]) -> list[float]:
    powers = [math.exp(value - max(z)) for value in z]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


class Constant(nn.Module):
    """Answers with fixed logits; its images are their indices."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers)

    def forward(self, image: Tensor) -> tuple[Tensor, dict]:
        return self.answers[image.long()], {"pooled_feat": self.answers}


# --- CMIM ---


def test_cmi_of_every_power_is_the_mean_divergence_from_the_centres() -> None:
    z = logits().tolist()
    q = centres().tolist()
    found = cmi_of_powers(logits(), TARGET, centres(), POWERS)
    for i, power in enumerate(POWERS):
        parts = [
            kl(softmax([power * value for value in row]), q[i][y])
            for row, y in zip(z, TARGET.tolist(), strict=True)
        ]
        assert found[i].item() == pytest.approx(sum(parts) / len(parts), rel=1e-12)


def test_several_powers_equal_one_at_a_time() -> None:
    together = cmi_of_powers(logits(), TARGET, centres(), POWERS)
    alone = [
        cmi_of_powers(logits(), TARGET, centres()[i : i + 1], [power])
        for i, power in enumerate(POWERS)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-14, atol=0)


def test_the_gradient_of_the_cmi_is_that_of_differences() -> None:
    z = logits().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cmi_of_powers(x, TARGET, centres(), POWERS), z)


def test_at_the_class_means_it_is_the_cmi_of_the_set() -> None:
    network = Constant(logits())
    like = torch.zeros(len(POWERS), CLASSES, CLASSES, dtype=torch.float64)
    index = torch.arange(len(TARGET))
    loader = [(index[:2], TARGET[:2]), (index[2:], TARGET[2:])]
    means = class_centres(network, loader, 1, POWERS, like)
    found = cmi_of_powers(logits(), TARGET, means, POWERS)
    for value, power in zip(found.tolist(), POWERS, strict=True):
        whole = conditional_mutual_information(logits(), TARGET, CLASSES, 1 / power)
        assert value == pytest.approx(whole.total, rel=1e-12)


def test_class_means_are_measured_in_eval_mode_and_the_mode_comes_back() -> None:
    network = nn.Sequential(nn.Dropout(0.9), Constant(logits())).train()
    like = torch.zeros(1, CLASSES, CLASSES)
    index = torch.arange(len(TARGET)).double()
    means = class_centres(network, [(index[:2], TARGET[:2])], 1, [1.0], like)
    torch.testing.assert_close(
        means[0, 0].double(), torch.softmax(logits()[0], 0), rtol=1e-6, atol=0
    )
    assert torch.equal(means[0, 1], torch.full((CLASSES,), 0.25))  # no image of that class
    assert network.training and network[0].training


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_the_loss_is_cross_entropy_and_the_weighted_aggregate(aggregate: str) -> None:
    cfg = CFG.clone()
    cfg.CMIM.LAMBDA = 3.0
    cfg.CMIM.AGGREGATE = aggregate
    cfg.CMIM.POWERS = list(POWERS)
    distiller = distiller_dict["CMIM"](Constant(logits()), cfg, CLASSES).train()
    image = torch.arange(len(TARGET))
    distiller.begin_epoch([(image, TARGET)], 1, "float32")
    z, losses = distiller(image=image, target=TARGET)
    cmi = cmi_of_powers(logits(), TARGET, distiller.centres, POWERS)
    assert losses["cmi"].item() == pytest.approx(3 * getattr(cmi, aggregate)().item())
    assert losses["ce"].item() == pytest.approx(F.cross_entropy(z, TARGET).item())
    assert losses["cmi"].requires_grad and not distiller.centres.requires_grad


@pytest.mark.parametrize("change", [{"POWERS": []}, {"POWERS": [0.0]}, {"AGGREGATE": "power"}])
def test_a_wrong_setting_of_cmim_is_refused_by_name(change: dict) -> None:
    cfg = CFG.clone()
    cfg.CMIM.update(change)
    with pytest.raises(DJIPError, match=f"CMIM.{next(iter(change))}"):
        distiller_dict["CMIM"](nn.Identity(), cfg, CLASSES)


# --- attacks and defences ---


def test_smoothed_labels_share_epsilon_among_all_classes() -> None:
    parts = []
    for row, y in zip(logits().tolist(), TARGET.tolist(), strict=True):
        q = [0.3 / CLASSES + (0.7 if i == y else 0) for i in range(CLASSES)]
        p = softmax(row)
        parts.append(-sum(a * math.log(b) for a, b in zip(q, p, strict=True)))
    found = smoothed_cross_entropy(logits(), TARGET, 0.3)
    assert found.item() == pytest.approx(sum(parts) / len(parts), rel=1e-12)


def test_the_mean_is_weaker_than_the_batch_mean_by_the_number_of_classes() -> None:
    p = sparse_softmax(noise(6, CLASSES, seed=2), 2, 4.0)  # zeros are no trouble
    parts = [
        kl(a, softmax([value / 4 for value in row]))
        for a, row in zip(p.tolist(), logits().tolist(), strict=True)
    ]
    found = kl_to_student(p, logits(), 4.0, "batchmean").item()
    assert found == pytest.approx(16 * sum(parts) / len(parts), rel=1e-12)
    assert kl_to_student(p, logits(), 4.0, "mean").item() == pytest.approx(found / CLASSES)
    with pytest.raises(DJIPError, match="HTC.REDUCTION"):
        check_reduction("HTC", "sum")


def test_erkd_weighs_each_image_by_the_entropy_of_the_answer() -> None:
    z_t = noise(6, CLASSES, seed=3)
    parts = []
    for s, t in zip(logits().tolist(), z_t.tolist(), strict=True):
        p = softmax([value / 2 for value in t])
        entropy = -sum(a * math.log(a) for a in p)
        parts.append(entropy * kl(p, softmax([value / 2 for value in s])))
    found = entropy_weighted_loss(logits(), z_t, 2.0)
    assert found.item() == pytest.approx(4 * sum(parts) / len(parts), rel=1e-12)


def test_the_learned_map_is_a_markov_matrix_of_the_class() -> None:
    scores = noise(CLASSES, CLASSES, CLASSES, seed=4)
    z_t = noise(6, CLASSES, seed=3)
    found = mapped(z_t, TARGET, scores, 2.0)
    for row, z, y in zip(found.tolist(), z_t.tolist(), TARGET.tolist(), strict=True):
        p = softmax([value / 2 for value in z])
        markov = [softmax(line) for line in scores[y].tolist()]
        expected = [sum(p[i] * markov[i][j] for i in range(CLASSES)) for j in range(CLASSES)]
        assert row == pytest.approx(expected, rel=1e-12)
        assert sum(row) == pytest.approx(1)


def build(kind: str, teacher: nn.Module) -> nn.Module:
    cfg = CFG.clone()
    student = Constant(logits())
    if kind in ("AVG", "MKD"):
        return distiller_dict[kind](student, teacher, cfg, CLASSES)
    return distiller_dict[kind](student, teacher, cfg)


def test_the_map_starts_near_the_identity_and_is_trained() -> None:
    distiller = build("MKD", Constant(noise(6, CLASSES, seed=3))).double().train()
    markov = torch.softmax(distiller.scores, 2).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(markov, torch.full_like(markov, STAY))
    assert any(p is distiller.scores for p in distiller.get_learnable_parameters())
    _, losses = distiller(image=torch.arange(6), target=TARGET)
    sum(losses.values()).backward()
    assert distiller.scores.grad.abs().max() > 0


def test_avg_matches_the_class_means_of_the_first_epoch() -> None:
    z_t = noise(6, CLASSES, seed=3)
    distiller = build("AVG", Constant(z_t)).train()
    image = torch.arange(6)
    distiller.begin_epoch([(image, TARGET)], 1, "float32")
    means = distiller.averages.clone()
    p = torch.softmax(z_t / 4, 1)
    torch.testing.assert_close(means[1].double(), p[[2, 3]].mean(0), rtol=1e-5, atol=0)
    distiller.begin_epoch([(image[:1], TARGET[:1])], 2, "float32")
    assert torch.equal(means, distiller.averages)
    _, losses = distiller(image=image, target=TARGET)
    expected = 0.9 * kl_to_student(means[TARGET], logits(), 4.0, "batchmean")
    assert losses["loss_kd"].item() == pytest.approx(expected.item())


def test_nasty_is_pushed_away_from_the_plain_network() -> None:
    z_t = noise(6, CLASSES, seed=3)
    distiller = build("NASTY", Constant(z_t)).train()
    z, losses = distiller(image=torch.arange(6), target=TARGET)
    parts = [
        kl(softmax([value / 20 for value in s]), softmax([value / 20 for value in t]))
        for s, t in zip(z.tolist(), z_t.tolist(), strict=True)
    ]
    assert losses["loss_kd"].item() == pytest.approx(-0.004 * 400 * sum(parts) / 6, rel=1e-9)
    (gradient,) = torch.autograd.grad(losses["loss_kd"], distiller.student.answers)
    assert gradient.abs().max() > 0
    assert losses["loss_ce"].item() == pytest.approx(F.cross_entropy(z, TARGET).item())


def test_stingy_learns_from_the_largest_logits_alone() -> None:
    z = torch.tensor([[3.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    a, b = softmax([1.5, 1.0])
    torch.testing.assert_close(sparse_softmax(z, 2, 2.0), torch.tensor([[a, 0, b, 0]]).double())
    assert torch.equal(sparse_softmax(z, 10, 2.0), torch.softmax(z / 2, 1))


# --- answers ---


def answer(rule: str, z: list[float]) -> list[float]:
    return parse_answers(rule).probabilities(torch.tensor([z], dtype=torch.float64))[0].tolist()


def test_answers_are_what_their_rules_say() -> None:
    z = [2.0, 0.0, -1.0, -6.0]
    p = softmax(z)
    assert answer("probabilities", z) == pytest.approx(p)
    assert answer("temperature:4", z) == pytest.approx(softmax([value / 4 for value in z]))
    assert answer("top:1", z) == [1, 0, 0, 0]
    assert answer("top:2", z) == pytest.approx([p[0] / (p[0] + p[1]), p[1] / (p[0] + p[1]), 0, 0])
    coarse = [round(value, 2) for value in p]
    assert coarse[3] == 0
    assert answer("round:2", z) == pytest.approx([value / sum(coarse) for value in coarse])
    assert answer("round:1", [0.0] * 25) == [0.04] * 25  # all round to zero: uniform
    beta, gamma = 0.1, 20.0
    perturbed = []
    for value in p:
        inverse = math.log(value / (1 - value))
        perturbed.append(value - beta * (1 / (1 + math.exp(-gamma * inverse)) - 0.5))
    expected = [value / sum(perturbed) for value in perturbed]
    assert answer("reverse-sigmoid:0.1,20", z) == pytest.approx(expected)


@pytest.mark.parametrize(
    "rule",
    ["logits", "top", "top:0", "top:1.5", "round:0", "round:nan", "temperature:-1"]
    + ["temperature:x", "probabilities:2", "reverse-sigmoid:0.1", "reverse-sigmoid:2,1"],
)
def test_an_unknown_rule_is_refused(rule: str) -> None:
    with pytest.raises(DJIPError, match="BENCH.ANSWERS is"):
        parse_answers(rule)


def test_a_black_box_gives_floored_logarithms_and_no_features() -> None:
    z = logits().float()
    image = torch.arange(6)
    found, features = BlackBox(Constant(z), "probabilities")(image)
    torch.testing.assert_close(found, torch.log_softmax(z, 1))
    assert "pooled_feat" not in features
    with pytest.raises(DJIPError, match="pooled_feat.*BENCH.ANSWERS.*KD, DKD.*HTC"):
        features["pooled_feat"]
    one_hot, _ = BlackBox(Constant(z), "top:1")(image)
    assert one_hot.min().item() == pytest.approx(math.log(1e-12), rel=1e-5)
    tenths, _ = BlackBox(Constant(z), "round:1")(image)
    assert tenths.min().item() == pytest.approx(math.log(0.05), rel=1e-5)


def test_every_type_has_a_node_but_vanilla() -> None:
    assert set(distiller_dict) - set(distiller_defaults) == {"NONE"}
    assert {"CMIM", "NASTY", "STINGY", "LS", "HTC", "ERKD", "AVG", "MKD"} <= set(distiller_dict)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """One epoch on forty images, with a teacher of random weights."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    teacher = tmp_path / "teacher.safetensors"
    save_file(build_model("resnet8", 20).state_dict(), teacher)
    small = ["DATASET.TYPE", "synthetic", "BENCH.DEVICE", "cpu", "SOLVER.EPOCHS", 1]
    small += ["DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8"]
    small += ["SOLVER.BATCH_SIZE", 20, "LOG.PREFIX", str(tmp_path), "DISTILLER.TYPE", "KD"]
    return [*small, "BENCH.TEACHER_CHECKPOINT", str(teacher)]


def test_a_run_behind_a_black_box_says_so_and_keeps_what_is_known_of_the_teacher(
    options: list,
) -> None:
    plain = train(load_cfg(None, [*options, "EXPERIMENT.NAME", "plain"]))
    cfg = load_cfg(None, [*options, "EXPERIMENT.NAME", "top", "BENCH.ANSWERS", "top:1"])
    knockoff = train(cfg)
    assert "ANSWERS: top:1" in knockoff["config"]
    assert (knockoff["teacher_hash"], knockoff["lens"]) == (plain["teacher_hash"], "none")
    weights = [
        torch.load(Path(result["folder"]) / "student_last.pth", weights_only=True)["model"]
        for result in (plain, knockoff)
    ]
    assert not torch.equal(weights[0]["fc.weight"], weights[1]["fc.weight"])
    with pytest.raises(DJIPError, match="another BENCH.ANSWERS"):
        train(load_cfg(None, [*options, "EXPERIMENT.NAME", "top"]), resume=True)


@pytest.mark.parametrize("kind", ["KD", "AVG", "MKD"])
def test_answers_are_kept_apart_by_their_rule(kind: str, options: list, tmp_path: Path) -> None:
    for answers in ("", "top:1", "round:1"):
        name = f"answers-{answers}"
        changes = ["BENCH.VIEWS", 2, "BENCH.ANSWERS", answers, "EXPERIMENT.NAME", name]
        train(load_cfg(None, [*options, "DISTILLER.TYPE", kind, *changes]))
    kept = [load_file(path) for path in (tmp_path / "teacher_cache").glob("*.safetensors")]
    assert len(kept) == 3
    assert sum("pooled_feat" in answers for answers in kept) == 1
    lowest = sorted(round(answers["logits"].float().min().item(), 1) for answers in kept)
    assert lowest[0] == -27.6  # top:1


def test_a_black_box_refuses_methods_that_need_features(options: list) -> None:
    with pytest.raises(DJIPError, match="needs the teacher's feats, but BENCH.ANSWERS"):
        train(load_cfg(None, [*options, "DISTILLER.TYPE", "AT", "BENCH.ANSWERS", "top:1"]))
