"""How all pictures look, and how they are written.

Functions that draw return a matplotlib ``Figure``, and :func:`save_figure` writes it.  Nothing
touches pyplot or a user's backend and style.  Blue is the plain teacher, orange the teacher with
the lens (hues of Okabe and Ito, which colour-blind readers can tell apart).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from djip_ext.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DPI = 150
PLAIN, LENS, GOAL, INK, FAINT = "#0072B2", "#D55E00", "#009E73", "#333333", "#BBBBBB"
ARMS = (PLAIN, LENS, GOAL, "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F")
STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 9,
    "text.usetex": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` atomically, in the format that the suffix of ``path`` names.

    Raises:
        DJIPError: it cannot be written.
    """
    kind = Path(path).suffix.lstrip(".")
    return atomic_write(path, lambda p: figure.savefig(p, format=kind, dpi=DPI))


def luminance(colour: Sequence[float]) -> float:
    """How bright a colour (red, green, blue, ...) looks, 0 to 1.

    Text on it is dark above some middle value.
    """
    red, green, blue = colour[:3]
    return 0.3 * red + 0.59 * green + 0.11 * blue
