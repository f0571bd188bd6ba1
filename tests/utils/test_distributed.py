"""Several processes compute what one would: CMI, fitted tables, resume; only the first writes."""

import pytest
import torch
from helpers.textures import IMAGES, data, exact_fit
from helpers.together import together
from torch import nn

from djip_ext import DJIPError, conditional_mutual_information
from djip_ext.metrics import cmi_spectrum, measure_softening
from djip_ext.utils.distributed import by_first, in_step, mean_all, processes, rank, sum_all

BODY = """
from djip_ext import ClassStatistics, DJIPError
def share(batches):
    shares = [tuple(part[rank()::processes()] for part in batch) for batch in batches]
    return [batch for batch in shares if len(batch[0])]

statistics = ClassStatistics(4, 2.0)
logits, labels = torch.load(FOLDER + '/data.pt')
statistics.update(logits[rank()::processes()], labels[rank()::processes()])
cmi = statistics.gather().result()
answer['cmi'] = dict(total=cmi.total, gamma=cmi.gamma)
answer['cmi'] |= dict(counts=cmi.counts.tolist(), centres=cmi.centres.tolist())

from djip_ext.metrics import measure_softening
class Read(torch.nn.Module):
    def forward(self, x):
        return x[:, 0, 0]
pixels = logits[:, None, None].expand(-1, 3, -1, -1)
mine = [(pixels[rank()::processes()], labels[rank()::processes()])]
soft = measure_softening(Read(), mine, 4, lambda z: z.square())
answer['softening'] = [*soft.cmi, *soft.entropy, *soft.others, soft.factor]

from djip_ext.metrics import measure_spectrum
answer['spectrum'] = list(measure_spectrum(Read(), mine, 4, temperatures=(1, 4)).items())

batches = share(data(images=IMAGES))
answer['batches'] = len(batches)
result = exact_fit(batches)
answer['q'] = result.lens.q.tolist()
answer['history'] = [{k: v for k, v in row.items() if k != 'seconds'} for row in result.history]
answer['images'] = result.lens.metadata['images']

class Mortal(Teacher):
    calls = 0
    def forward(self, x):
        Mortal.calls += 1
        if Mortal.calls == 20:
            raise KeyboardInterrupt
        return super().forward(x)
equal = share(data(images=24))
try:
    fit_lens(Mortal(), equal, CLASSES, mean=MEAN, std=STD, checkpoint=FOLDER + '/fit.pth', **QUICK)
except KeyboardInterrupt:
    answer['interrupted'] = len(torch.load(FOLDER + '/fit.pth', weights_only=True)['history'])
answer['whole'] = fit(equal).lens.q.tolist()
by_first(lambda: None)
answer['resumed'] = fit(equal, checkpoint=FOLDER + '/fit.pth').lens.q.tolist()

rows, own = [], FOLDER + f'/{rank()}/fit.pth'
start = JPEGLens(q=8.0 + 4 * rank(), kappa=5.0)
result = fit(equal, lens=start, log=rows.append, rounds=1, checkpoint=own)
answer['first'] = dict(rows=len(rows), written=os.path.exists(own))
answer['first']['q_low'] = result.history[0]['q_low']

from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
x, y = (torch.cat(parts) for parts in zip(*data()))
told = []

class Told(DistributedSampler):
    def set_epoch(self, epoch):
        told.append(epoch)
        super().set_epoch(epoch)

sampler = Told(range(24))
result = fit(DataLoader(TensorDataset(x, y), 4, sampler=sampler), rounds=2)
answer['sampler'] = dict(told=told, epoch=sampler.epoch, images=result.lens.metadata['images'])
answer['sampler']['q'] = result.lens.q.tolist()

def refuse():
    raise DJIPError('no')
refusals = dict(refused=lambda: by_first(refuse))
refusals['literal'] = lambda: fit(equal, variant='literal')
for name, act in refusals.items():
    try:
        act()
    except DJIPError as error:
        answer[name] = str(error)
"""


class Read(nn.Module):
    """The first channel of an image of 1 x 4 pixels, as logits; BODY has the same."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, 0, 0]


@pytest.fixture(scope="module")
def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(31, 4, generator=generator) * 3, torch.randint(4, (31,), generator=generator)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, logits_and_labels: tuple) -> list[dict]:
    """Everything is asked of the same two processes: starting them is what takes the time."""
    folder = tmp_path_factory.mktemp("together")
    torch.save(logits_and_labels, folder / "data.pt")
    return together(folder, 2, f"FOLDER = {str(folder)!r}\n{BODY}")


def test_alone_every_function_is_the_identity() -> None:
    value = torch.randn(3)
    assert (
        (processes(), rank()) == (1, 0) and sum_all(value) is value and mean_all(value, 7) is value
    )
    assert list(in_step([4, 5])) == [4, 5] and by_first(lambda: "x") == "x"


def test_the_spectrum_of_two_processes_is_that_of_one(
    answers: list[dict], logits_and_labels: tuple
) -> None:
    whole = cmi_spectrum(*logits_and_labels, 4, (1, 4))
    first, second = (dict(map(tuple, answer["spectrum"])) for answer in answers)
    assert first == second == {t: pytest.approx(cmi, rel=1e-6) for t, cmi in whole.items()}


def test_class_statistics_of_two_processes_are_those_of_one(
    answers: list[dict], logits_and_labels: tuple
) -> None:
    first, second = (answer["cmi"] for answer in answers)
    whole = conditional_mutual_information(*logits_and_labels, 4, 2.0)
    assert first == second and first["counts"] == whole.counts.tolist()
    assert first["total"] == pytest.approx(whole.total, rel=1e-12) and first[
        "gamma"
    ] == pytest.approx(whole.gamma, rel=1e-12)
    torch.testing.assert_close(torch.tensor(first["centres"], dtype=torch.float64), whole.centres)


def test_the_softening_of_two_processes_is_that_of_one(
    answers: list[dict], logits_and_labels: tuple
) -> None:
    first, second = (answer["softening"] for answer in answers)
    logits, labels = logits_and_labels
    pixels = logits[:, None, None].expand(-1, 3, -1, -1)
    whole = measure_softening(Read(), [(pixels, labels)], 4, torch.square)
    expected = [*whole.cmi, *whole.entropy, *whole.others, whole.factor]
    assert first == second == pytest.approx(expected, rel=1e-12)


def test_the_tables_of_two_processes_are_those_of_one(answers: list[dict]) -> None:
    first, second = answers
    whole = exact_fit(data(images=IMAGES))
    assert (first["batches"], second["batches"], first["images"]) == (4, 3, IMAGES)
    assert first["q"] == second["q"] and first["history"] == second["history"]
    q = torch.tensor(first["q"], dtype=torch.float64)
    torch.testing.assert_close(q, whole.lens.q.detach(), rtol=1e-5, atol=0)
    assert (q / 8 - 1).abs().median() > 0.1  # they did move
    for row, expected in zip(first["history"], whole.history, strict=True):
        for key in ("cmi", "ncmi", "ce", "accuracy", "lam"):
            assert row[key] == pytest.approx(expected[key], rel=1e-5), key


def test_an_interrupted_fit_of_two_processes_resumes_to_the_same_tables(
    answers: list[dict],
) -> None:
    assert answers[0]["interrupted"] == answers[1]["interrupted"] == 2
    assert (
        answers[0]["whole"] == answers[1]["whole"] == answers[0]["resumed"] == answers[1]["resumed"]
    )


def test_only_the_first_process_logs_and_writes_and_all_start_from_its_tables(
    answers: list[dict],
) -> None:
    assert [answer["first"] for answer in answers] == [
        {"rows": 2, "written": True, "q_low": 8.0},
        {"rows": 0, "written": False, "q_low": 8.0},
    ]


def test_torchs_distributed_sampler_is_told_the_round(answers: list[dict]) -> None:
    first, second = (answer["sampler"] for answer in answers)
    assert first == second and set(first["told"]) == {0, 1, 2}
    assert (first["epoch"], first["images"]) == (0, 24)  # the sampler is left as it was


def test_an_error_of_the_first_process_is_raised_in_all(answers: list[dict]) -> None:
    assert [answer["refused"] for answer in answers] == ["no", "no"]
    with pytest.raises(DJIPError, match="no"):
        by_first(lambda: (_ for _ in ()).throw(DJIPError("no")))


def test_the_literal_variant_is_refused_in_a_group(answers: list[dict]) -> None:
    assert all("use fresh" in answer["literal"] for answer in answers)
