"""Which methods train a network without a teacher."""

TEACHERLESS: frozenset[str] = frozenset({"NONE", "CMIM", "JPEGDL", "LS", "MCMI"})
"""Types that are called with ``(student, cfg, num_classes)``; mdistiller's ``NONE`` takes the
student alone."""


def needs_teacher(kind: str) -> bool:
    """Whether ``DISTILLER.TYPE kind`` is built on a teacher."""
    return kind not in TEACHERLESS
