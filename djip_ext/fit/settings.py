"""How a lens is fitted: every number that a fit depends on, checked before it starts."""

import math
import operator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from djip_ext.errors import DJIPError
from djip_ext.lens.jpeg_lens import Q_MAX, Q_MIN

T = TypeVar("T")

IMAGES_OF_A_CLASS = 25  # what a fit needs of each class (docs/performance.md)


def setting(default: T, help: str) -> T:
    """A field with ``default`` whose metadata hold ``help``, the text of its flag."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class FitSettings:
    """How a lens is fitted; ``docs/defaults.md`` records what was tried for each default.

    Numbers may be NumPy's and are kept as plain ones, which a checkpoint can hold.

    Attributes:
        goal: "amplify" raises CMI into the band; "shield" lowers it as far as the accuracy floor
            lets it, so that a student learns less from the answers (CMIM's objective, but for the
            lens of a frozen network): lambda is ``-lam_max``, and the round of the lowest CMI above
            the floor is taken.
        cmi_gain: the band to reach, (low, high) nats of CMI above the plain teacher's. The fit
            steers to its middle and takes the round in it that paid the least cross entropy per nat
            of CMI.
        max_accuracy_drop: percentage points of accuracy that the teacher may lose on the data of
            the fit.
        lam: a fixed lambda; ``None`` lets a controller set it:
            lambda = lam_max clip(missing / (0.25 target), -1, 1), missing = the CMI still to gain.
        lam_max: the controller's largest lambda.
        rounds: alternations of a centre pass and a table pass.
        patience: stop when the round to be taken meets band and floor and none of this many later
            ones was better; 0: never.
        lr: Adam's learning rate for ln q, with cosine decay over the rounds.
        variant: "fresh" (reverse channel from the current prediction), "literal" (from the last
            pass; N x C floats) or "fixed" (centres of the plain teacher, never refreshed: MCMI's
            way).
        gradient: "soft", of the lens as it is, or "straight-through": in the steps on the tables
            coefficients are rounded and the gradient passes through
            (:mod:`djip_ext.lens.straight_through`); what is measured and kept is the lens itself.
        refresh: rounds from one refresh of the centres to the next, for "fresh"; every round is
            measured all the same.
        tables: "two" (luma, chroma: 128 steps) or "one" (64 steps for all channels, from the
            geometric mean of the start's two).
        temperature: T at which CMI is raised and measured.
        q_min: smallest step, in [1e-5, 255]. Coefficients reach 1024, so below 1024 / L the mean of
            bright and dark blocks saturates.
        ce_weight: weight of the cross entropy; 0 leaves CMI alone.
        precision: of the network, "float32" or "bfloat16"; the lens is always float32.
        seed: of the order in which a shuffling loader is read.

    Raises:
        DJIPError: a value that no fit can use; the message names it.
    """

    goal: Literal["amplify", "shield"] = setting(
        "amplify", "raise CMI into the band, or lower it as far as the accuracy floor allows"
    )
    cmi_gain: tuple[float, float] = setting(
        (0.2, 0.4), "band to reach, in nats of CMI above the plain teacher's"
    )
    max_accuracy_drop: float = setting(
        10.0, "percentage points of accuracy that the teacher may lose on the images of the fit"
    )
    lam: float | None = setting(None, "a fixed lambda; without it a controller sets lambda")
    lam_max: float = setting(2.0, "the controller's largest lambda")
    rounds: int = setting(10, "alternations of a pass for the class centres and one for the tables")
    patience: int = setting(
        0, "stop when this many rounds after the best were not better; 0: never"
    )
    lr: float = setting(0.1, "learning rate for ln q, with cosine decay over the rounds")
    variant: Literal["fresh", "literal", "fixed"] = setting(
        "fresh",
        "class centres from the current predictions, from those of the last pass, "
        "or from the plain teacher",
    )
    gradient: Literal["soft", "straight-through"] = setting(
        "soft", "of the soft quantizer, or of rounding taken straight through"
    )
    refresh: int = setting(1, "rounds from one refresh of the class centres to the next")
    tables: Literal["two", "one"] = setting(
        "two", "tables for luma and chroma, or one for all channels"
    )
    temperature: float = setting(1.0, "T at which CMI is raised and measured")
    q_min: float = setting(1.01, "smallest quantization step")
    ce_weight: float = setting(1.0, "weight of the cross entropy; 0 leaves CMI alone")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "of the network; the lens is always float32"
    )
    seed: int = setting(0, "of the order in which the images are read")

    def __post_init__(self) -> None:
        for name in _REAL:
            if name != "lam" or self.lam is not None:
                object.__setattr__(self, name, _real(name, getattr(self, name)))
        for name in _WHOLE:
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        object.__setattr__(self, "cmi_gain", _band(self.cmi_gain))
        choices = {
            "goal": ("amplify", "shield"),
            "variant": ("fresh", "literal", "fixed"),
            "gradient": ("soft", "straight-through"),
            "tables": ("two", "one"),
            "precision": ("float32", "bfloat16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise DJIPError(
                    f"{name} is '{getattr(self, name)}'; choose from {', '.join(allowed)}"
                )
        for name in ("lr", "temperature", "lam_max"):
            if not getattr(self, name) > 0:
                raise DJIPError(f"{name} is {getattr(self, name)}; it must be positive")
        if not Q_MIN <= self.q_min <= Q_MAX:
            raise DJIPError(
                f"q_min is {self.q_min}; the steps of a lens lie within [{Q_MIN:g}, {Q_MAX:g}]"
            )
        if not 0 <= self.max_accuracy_drop <= 100:
            raise DJIPError(
                f"max_accuracy_drop is {self.max_accuracy_drop}; it is in percentage points, from "
                "0 to 100 (no floor)"
            )
        if self.patience < 0:
            raise DJIPError(
                f"patience is {self.patience}; 0 runs all rounds, 3 stops three rounds after the "
                "best"
            )
        if self.refresh < 1 or (self.refresh > 1 and self.variant != "fresh"):
            raise DJIPError(
                f"refresh is {self.refresh} with variant {self.variant}; it must be at least 1, "
                "and more for fresh only"
            )
        if self.rounds < 0:
            raise DJIPError(
                f"rounds is {self.rounds}; 0 only measures the starting tables, 10 is usual"
            )


_REAL = ("max_accuracy_drop", "lam", "lam_max", "lr", "temperature", "q_min", "ce_weight")
_WHOLE = ("rounds", "patience", "refresh", "seed")


def _real(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DJIPError(f"{name} is {value}; it must be a finite number")
    return number


def _whole(name: str, value: Any) -> int:
    try:
        return int(operator.index(value))
    except TypeError as error:
        raise DJIPError(f"{name} is {value}; it must be a whole number") from error


def _band(value: Any) -> tuple[float, float]:
    try:
        low, high = (_real("cmi_gain", nats) for nats in value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low <= high:
        raise DJIPError(f"cmi_gain is {value}; it must be (low, high) in nats with 0 < low <= high")
    return low, high
