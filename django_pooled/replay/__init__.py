"""The inputs of a retried function, so that each attempt sees them as the first did.

retry/ alone imports this folder. Nothing of transactions, connections or SQL comes in here.
"""

from __future__ import annotations

from .closures import Surroundings
from .containers import copy_of
from .inputs import Inputs
from .refusal import CannotReplay

__all__ = ["CannotReplay", "Inputs", "Surroundings", "copy_of"]
