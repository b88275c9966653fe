"""Each attempt of a function sees its inputs as the first did, or there is no further one."""

from __future__ import annotations

from .containers import copy_of
from .inputs import Inputs
from .refusal import CannotReplay

__all__ = ["CannotReplay", "Inputs", "copy_of"]
