"""A teacher behind its lens for torchdistill; the YAML file names this module as a dependency."""

from tiny import MEAN, STD, lens, network
from torchdistill.models.registry import register_model

import djip_ext


@register_model
def djip_teacher(width: int) -> djip_ext.DJIPTeacher:
    """Build the plain teacher, load its weights here, and put the lens in front of it."""
    return djip_ext.DJIPTeacher(network(width), lens(), MEAN, STD)


@register_model
def tiny_student(width: int) -> object:
    return network(width)
