"""How many images make a step of a fit."""

BATCH, STEPS, SMALLEST_BATCH = 64, 40, 8  # images of a step of the fit, steps of a round


def batch_of(images: int) -> int:
    """How many of the ``images`` of a fit make a step, where no size was asked for.

    Ten rounds of ten steps hardly move a very sure teacher; four times as many steps on a quarter
    of the images cost the same passes (docs/defaults.md).
    """
    if images > BATCH * (STEPS - 1):
        return BATCH
    return max(SMALLEST_BATCH, -(-images // STEPS))
