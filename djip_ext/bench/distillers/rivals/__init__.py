"""What is compared with a lens: other ways to a teacher, or to inputs, that teach better."""

from typing import Any

from djip_ext.bench.distillers._base import Training

methods: dict[str, type[Training]] = {}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {}
"""The configuration node of each method that has one."""
