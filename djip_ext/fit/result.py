"""What a fit returns."""

from dataclasses import dataclass

from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.metrics.measurement import Measurement


@dataclass(frozen=True)
class FitResult:
    """A fitted lens and how it came about.

    Attributes:
        lens: the chosen round's lens, its ``metadata`` filled in.
        before, after: the teacher on the data of the fit, without and with the lens.
        history: one row per round: CMI, CE, accuracy *at its start*, lambda, the range of q.
        chosen: the round whose tables were taken.
        in_band: whether they meet both the target band and the accuracy floor.
    """

    lens: JPEGLens
    before: Measurement
    after: Measurement
    history: list[dict[str, float]]
    chosen: int
    in_band: bool
