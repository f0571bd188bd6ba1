"""Where a fit starts."""

import copy

from djip_ext.errors import DJIPError
from djip_ext.lens.jpeg_lens import JPEGLens


def default_start() -> JPEGLens:
    """Equal steps of 8 with alpha = 5 / q^2: soft enough for a quiet gradient at any step.

    ``docs/defaults.md`` has what else was tried.
    """
    return JPEGLens(q=8.0, kappa=5.0)


def starting_lens(lens: JPEGLens | None) -> JPEGLens:
    """A copy to work on; its teacher-specific metadata are dropped."""
    lens = default_start() if lens is None else copy.deepcopy(lens)
    if lens.hard:
        raise DJIPError(
            "a hard lens has no gradient; fit it soft (hard=False) and set lens.hard = True "
            "afterwards"
        )
    lens.metadata = {}
    return lens.unfreeze()
