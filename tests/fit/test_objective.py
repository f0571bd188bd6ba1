"""Theorem 1, the objective of the fit, against exact CMI differentiated by autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djip_ext import JPEGLens, conditional_mutual_information
from djip_ext.fit.objective import lens_objective, reverse_channel, reverse_loss

C = 4
LAMBDA = 1.7


class Toy:
    """A small float64 teacher with a lens in front, on 24 images of 4 uneven classes."""

    def __init__(self) -> None:
        self.network = (
            nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, C))
            .double()
            .requires_grad_(False)
        )
        self.network[1].weight *= 3
        self.network[3].weight *= 3
        low = F.interpolate(
            torch.rand(24, 3, 3, 3, dtype=torch.float64), size=(8, 8), mode="bilinear"
        )
        self.images = 255 * (0.8 * low + 0.2 * torch.rand(24, 3, 8, 8, dtype=torch.float64))
        self.labels = torch.tensor([0] * 9 + [1] * 7 + [2] * 5 + [3] * 3)[torch.randperm(24)]
        self.lens = JPEGLens(torch.rand(2, 8, 8) * 20 + 5, kappa=4.0).double()

    def logits(self, subset: Tensor | slice = slice(None)) -> Tensor:
        return self.network((self.lens(self.images[subset]) / 255 - 0.5) / 0.25)

    def centres(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        found = conditional_mutual_information(self.logits().detach(), self.labels, C, temperature)
        return found.centres, found.counts

    def cmi(self, temperature: float = 1.0) -> Tensor:
        """Exact CMI with a graph through the centres as well."""
        f = torch.softmax(self.logits() / temperature, 1)
        total = 0.0
        for y in range(C):
            members = f[self.labels == y]
            total = total + (members * (members / members.mean(0)).log()).sum()
        return total / len(f)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.lens.q)[0]


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def stale(toy: Toy) -> Tensor:
    """Log probabilities as they were with other tables."""
    tables, toy.lens.q.data = toy.lens.q.data, toy.lens.q.data * 1.6
    ln_f = torch.log_softmax(toy.logits().detach(), 1)
    toy.lens.q.data = tables
    return ln_f


@pytest.mark.parametrize("temperature", (1.0, 2.5))
def test_gradient_is_that_of_ce_minus_lambda_cmi(toy: Toy, temperature: float) -> None:
    centres, counts = toy.centres(temperature)
    loss, *_ = lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA, temperature)
    exact = F.cross_entropy(toy.logits(), toy.labels) - LAMBDA * toy.cmi(temperature)
    expected = toy.gradient(exact)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(toy.gradient(loss), expected, atol=1e-12, rtol=1e-9)


def test_gradient_is_that_of_ce_minus_lambda_kl_to_fixed_centres(toy: Toy) -> None:
    centres, counts = toy.centres()
    loss, *_ = lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA)
    ln_f = torch.log_softmax(toy.logits(), 1)
    kl = (ln_f.exp() * (ln_f - centres.log()[toy.labels])).sum(1).mean()
    torch.testing.assert_close(
        toy.gradient(loss),
        toy.gradient(F.cross_entropy(toy.logits(), toy.labels) - LAMBDA * kl),
        atol=1e-12,
        rtol=1e-9,
    )


def test_mini_batch_gradients_average_to_the_gradient_over_the_set(toy: Toy) -> None:
    centres, counts = toy.centres()
    parts = [
        len(subset)
        / 24
        * toy.gradient(
            lens_objective(toy.logits(subset), toy.labels[subset], centres, counts, LAMBDA)[0]
        )
        for subset in torch.arange(24).split(7)
    ]
    whole, *_ = lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA)
    torch.testing.assert_close(sum(parts), toy.gradient(whole), atol=1e-12, rtol=1e-9)


def test_reverse_channel_is_a_distribution_over_the_samples_of_a_class(toy: Toy) -> None:
    centres, counts = toy.centres()
    q = reverse_channel(
        torch.log_softmax(toy.logits(), 1), centres.log()[toy.labels], counts.double()[toy.labels]
    ).exp()
    for y in range(C):
        torch.testing.assert_close(
            q[toy.labels == y].sum(0), torch.ones(C, dtype=torch.float64), atol=1e-12, rtol=0
        )


def test_reverse_channel_lets_no_gradient_through(toy: Toy) -> None:
    centres, counts = toy.centres()
    assert not reverse_channel(
        torch.log_softmax(toy.logits(), 1), centres.log()[toy.labels], counts[toy.labels].double()
    ).requires_grad


def bound(toy: Toy, ln_q: Tensor) -> float:
    """H(X | Y) + E sum_i f ln Q."""
    _, counts = toy.centres()
    counts = counts.double()
    entropy = (counts / counts.sum() * counts.log()).sum()
    return (entropy - reverse_loss(torch.log_softmax(toy.logits(), 1), ln_q)).item()


def test_fresh_reverse_channel_attains_cmi(toy: Toy) -> None:
    centres, counts = toy.centres()
    ln_q = reverse_channel(
        torch.log_softmax(toy.logits(), 1), centres.log()[toy.labels], counts.double()[toy.labels]
    )
    assert bound(toy, ln_q) == pytest.approx(toy.cmi().item(), rel=1e-10)


def test_stale_reverse_channel_stays_below_cmi(toy: Toy, stale: Tensor) -> None:
    old = conditional_mutual_information(stale, toy.labels, C)
    ln_q = reverse_channel(stale, old.centres.log()[toy.labels], old.counts.double()[toy.labels])
    assert bound(toy, ln_q) < toy.cmi().item() - 1e-4


def test_divergence_from_stale_centres_is_never_below_cmi(toy: Toy, stale: Tensor) -> None:
    old = conditional_mutual_information(stale, toy.labels, C)
    _, _, kl = lens_objective(toy.logits(), toy.labels, old.centres, old.counts, LAMBDA)
    assert kl.item() > toy.cmi().item() + 1e-5


def test_reports_cross_entropy_and_at_fresh_centres_cmi(toy: Toy) -> None:
    loss, ce, kl = lens_objective(toy.logits(), toy.labels, *toy.centres(), LAMBDA)
    assert ce.item() == pytest.approx(F.cross_entropy(toy.logits(), toy.labels).item())
    assert kl.item() == pytest.approx(toy.cmi().item(), rel=1e-10)
    assert loss.requires_grad and not ce.requires_grad and not kl.requires_grad


@pytest.mark.parametrize("lam, rises", ((1.0, True), (-1.0, False)))
def test_descent_without_cross_entropy_raises_cmi_and_the_opposite_sign_lowers_it(
    toy: Toy, lam: float, rises: bool
) -> None:
    before = toy.cmi().item()
    for _ in range(5):
        loss, *_ = lens_objective(toy.logits(), toy.labels, *toy.centres(), lam, ce_weight=0.0)
        step = toy.gradient(loss)
        toy.lens.q.data -= 0.3 * step / step.abs().max()
    assert toy.cmi().item() > before + 1e-3 if rises else toy.cmi().item() < before - 1e-3


def test_literal_equals_fresh_at_the_first_step(toy: Toy) -> None:
    centres, counts = toy.centres()
    kept = torch.log_softmax(toy.logits().detach(), 1)
    literal, *_ = lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA, ln_f_old=kept)
    fresh, *_ = lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA)
    assert torch.equal(literal, fresh) and torch.equal(toy.gradient(literal), toy.gradient(fresh))


def test_literal_uses_the_kept_predictions_afterwards(toy: Toy, stale: Tensor) -> None:
    centres, counts = toy.centres()
    literal, *_ = lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA, ln_f_old=stale)
    ln_f = torch.log_softmax(toy.logits(), 1)
    ln_q = stale - centres.log()[toy.labels] - counts.double().log()[toy.labels, None]
    expected = (
        F.cross_entropy(toy.logits(), toy.labels) - LAMBDA * (ln_f.exp() * ln_q).sum(1).mean()
    )
    torch.testing.assert_close(toy.gradient(literal), toy.gradient(expected), atol=1e-12, rtol=1e-9)


def test_cross_entropy_weight_scales_the_cross_entropy_alone(toy: Toy) -> None:
    centres, counts = toy.centres()
    without, with_half = (
        lens_objective(toy.logits(), toy.labels, centres, counts, LAMBDA, 2.0, ce_weight=w)
        for w in (0.0, 0.5)
    )
    assert (with_half[0] - without[0]).item() == pytest.approx(0.5 * with_half[1].item())


def test_centre_entries_of_zero_stay_finite() -> None:
    logits = torch.tensor([[90.0, 0.0], [0.0, 90.0]], requires_grad=True)
    loss, _, kl = lens_objective(
        logits,
        torch.tensor([0, 0]),
        torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
        torch.tensor([2, 1]),
        1.0,
    )
    assert (
        loss.isfinite() and kl.isfinite() and torch.autograd.grad(loss, logits)[0].isfinite().all()
    )
