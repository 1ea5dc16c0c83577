"""How far apart two colours are to the eye: CIEDE2000 between named colours.

CIE 142-2001; formulas and test data: Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula:
Implementation Notes, Supplementary Test Data, and Mathematical Observations", Color Research and
Application 30(1), 2005, equations 2 to 22. sRGB to CIELAB by IEC 61966-2-1 with the white point
D65 of the 2 degree observer and the primaries of ITU-R BT.709, in the digits that scikit-image has,
so that both give the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

__all__ = ["PALETTE", "ciede2000", "lab_of"]

Lab = tuple[float, float, float]
Rgb = tuple[int, int, int]

PALETTE: Mapping[str, Rgb] = {
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "red": (255, 0, 0),
    "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "orange": (255, 165, 0),
    "purple": (128, 0, 128), "pink": (255, 192, 203), "brown": (165, 42, 42),
}  # fmt: skip
"""The eleven basic colour terms of English (Berlin and Kay 1969), with the sRGB values of CSS."""

_WHITE = (0.95047, 1.0, 1.08883)
_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_25_TO_7 = 25.0**7


@lru_cache(maxsize=4096)
def lab_of(rgb: Rgb) -> Lab:
    """CIELAB of an sRGB colour.

    Args:
        rgb: Red, green, blue from 0 to 255.

    Returns:
        L* from 0 to 100, a* and b*.
    """
    linear = [_linear(channel / 255) for channel in rgb]
    xyz = [sum(m * c for m, c in zip(row, linear, strict=True)) for row in _TO_XYZ]
    fx, fy, fz = (_cube(value / white) for value, white in zip(xyz, _WHITE, strict=True))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def _cube(value: float) -> float:
    return value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116


def ciede2000(first: Lab, second: Lab) -> float:
    """Colour difference of two CIELAB colours, with kL = kC = kH = 1."""
    (l1, a1, b1), (l2, a2, b2) = first, second
    mean_chroma = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    g = 0.5 * (1 - math.sqrt(mean_chroma**7 / (mean_chroma**7 + _25_TO_7)))  # eq. 4
    a1, a2 = (1 + g) * a1, (1 + g) * a2  # eq. 5
    c1, c2 = math.hypot(a1, b1), math.hypot(a2, b2)  # eq. 6
    h1, h2 = _hue(a1, b1), _hue(a2, b2)  # eq. 7
    turn = _turn(h1, h2, c1 * c2)  # eq. 10
    d_l, d_c = l2 - l1, c2 - c1
    d_h = 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn) / 2)  # eq. 11
    return _weighted((l1 + l2) / 2, (c1 + c2) / 2, _mean_hue(h1, h2, c1 * c2), d_l, d_c, d_h)


def _hue(a: float, b: float) -> float:
    return 0.0 if a == b == 0 else math.degrees(math.atan2(b, a)) % 360


def _turn(h1: float, h2: float, chroma: float) -> float:
    if chroma == 0:
        return 0.0
    turn = h2 - h1
    return turn - 360 if turn > 180 else turn + 360 if turn < -180 else turn


def _mean_hue(h1: float, h2: float, chroma: float) -> float:
    """Eq. 14."""
    if chroma == 0:
        return h1 + h2
    if abs(h1 - h2) <= 180:
        return (h1 + h2) / 2
    return (h1 + h2 + 360) / 2 if h1 + h2 < 360 else (h1 + h2 - 360) / 2


def _weighted(light: float, chroma: float, hue: float, d_l: float, d_c: float, d_h: float) -> float:
    """Eq. 15 to 22."""
    t = (
        1
        - 0.17 * math.cos(math.radians(hue - 30))
        + 0.24 * math.cos(math.radians(2 * hue))
        + 0.32 * math.cos(math.radians(3 * hue + 6))
        - 0.20 * math.cos(math.radians(4 * hue - 63))
    )
    turn = 30 * math.exp(-(((hue - 275) / 25) ** 2))
    r_c = 2 * math.sqrt(chroma**7 / (chroma**7 + _25_TO_7))
    away = (light - 50) ** 2
    s_l = 1 + 0.015 * away / math.sqrt(20 + away)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    r_t = -math.sin(math.radians(2 * turn)) * r_c
    l_part, c_part, h_part = d_l / s_l, d_c / s_c, d_h / s_h
    return math.sqrt(l_part**2 + c_part**2 + h_part**2 + r_t * c_part * h_part)
