"""What a lens has done for students so far: the line with which ``djip fit`` ends.

From the tables of results/when_it_helps.md: CIFAR-100, saturated teachers, students that overfit.
"""

from djip_ext.bench.engine.answers import NEED_FEATURES

NO_GAIN_FROM = 2.0
"""The distiller's T from which no lens has helped a student, but for DIST's."""

WHERE = "(results/when_it_helps.md)"


def expectation(distiller: str, temperature: float | None, equal: float | None = None) -> str:
    """One line on what to expect of a lens before the teacher of ``distiller``; "" if unknown.

    Args:
        temperature: at which it reads the teacher's logits; None where it reads features, or
            logits without their scale (LSKD).
        equal: K for which the plain teacher's logits / K are as soft as behind the lens; None:
            unknown.
    """
    if distiller in NEED_FEATURES:
        return f"expect no gain: no lens has helped a distiller that reads features {WHERE}"
    if distiller == "LSKD":
        return f"expect no gain with LSKD: it divides the scale of the logits away {WHERE}"
    if temperature is None:
        return ""
    if distiller == "DIST":
        return (
            "expect little with DIST: no gain of a lens shows at tau = 1, a point at tau = 4, as "
            f"much as JPEG's; temperature:2 gained 2 to 3 {WHERE}"
        )
    if temperature >= NO_GAIN_FROM:
        return (
            f"expect no gain: at T >= {NO_GAIN_FROM:g} no lens has helped a student of "
            f"{distiller} so far, and JPEG by a point at most, at T = 2 {WHERE}"
        )
    if distiller == "DKD":
        return (
            "expect no gain with DKD: it reads what the teacher says of the other classes, which "
            f"a lens leaves as sharp as it was; temperature:2 gained 3 points {WHERE}"
        )
    same = "" if equal is None else f" (here temperature:{equal:.3g})"
    return (
        f"with {distiller} at T = {temperature:g} a lens helps a student that overfits, by "
        f"softening: the plain teacher's logits divided so that they have this entropy{same} do as "
        f"much, temperature:2 more {WHERE}"
    )
