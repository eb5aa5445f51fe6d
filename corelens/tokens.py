"""placeholder"""
from typing import NamedTuple
class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float
