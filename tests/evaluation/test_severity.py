"""Delta: colours against published data, and every rule by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation import severity
from lvlm_interp.evaluation.colours import PALETTE, ciede2000, lab_of

# Sharma, Wu and Dalal 2005, Table 1: pairs of CIELAB colours and their difference.
SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, 3.1571, -77.2803), (50, 0, -82.7485), 2.8615),
    ((50, 2.8361, -74.0200), (50, 0, -82.7485), 3.4412),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, -1.1848, -84.8006), (50, 0, -82.7485), 1.0000),
    ((50, -0.9009, -85.5211), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, -1, 2), (50, 0, 0), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0010), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, -0.001, 2.49), (50, 0.0009, -2.49), 4.8045),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((50, 2.5, 0), (58, 24, 15), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((63.0109, -31.0961, -5.8663), (62.8187, -29.7946, -4.0864), 1.2630),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]

# scikit-image 0.26: rgb2lab and deltaE_ciede2000 of two sRGB colours.
SCIKIT_IMAGE = [
    ((197, 215, 20), (132, 248, 207), 28.319813148974095),
    ((155, 244, 183), (111, 71, 144), 61.37295717420708),
    ((37, 169, 241), (51, 181, 222), 8.729648243279392),
    ((7, 47, 204), (0, 252, 170), 73.85654816579262),
    ((148, 94, 96), (95, 16, 133), 30.848416550474248),
]


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_colour_difference_of_the_published_pairs(first, second, expected):
    assert ciede2000(first, second) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("first", "second", "expected"), SCIKIT_IMAGE)
def test_colour_difference_of_another_library(first, second, expected):
    assert ciede2000(lab_of(first), lab_of(second)) == pytest.approx(expected, abs=1e-11)


def test_white_and_black():
    assert lab_of((255, 255, 255))[0] == pytest.approx(100, abs=1e-4)
    assert lab_of((0, 0, 0)) == pytest.approx((0, 0, 0), abs=1e-9)


@given(st.sampled_from(list(PALETTE)), st.sampled_from(list(PALETTE)))
def test_colours_cost_something_and_the_farthest_costs_all(said, true):
    delta = severity.colour(said, true)
    assert (delta == 0) == (said == true) and delta <= 1
    assert max(severity.colour(each, true) for each in PALETTE) == 1


def test_every_other_rule_by_hand():
    assert severity.invented_object(False) == 1 and severity.invented_object(True) == 0.5
    assert severity.count(2, 3) == pytest.approx(1 / 3) and severity.count(0, 4) == 1
    grid = [(float(x), float(y)) for x in range(3) for y in range(3)]
    assert severity.place((2, 2), (0, 0), grid) == 1
    assert severity.place((1, 0), (0, 0), grid) == pytest.approx(1 / math.sqrt(8))
    assert severity.spatial("left", "right") == 1
    assert severity.spatial("left", "above") == pytest.approx(0.5)
    assert severity.spatial("left", (-1.0, 1.0)) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
    assert severity.relation(True) == 1 and severity.relation(False) == 0.5
    assert severity.size(4, 1, [1, 2, 16]) == pytest.approx(0.5)
    assert severity.property_of("metal", "wooden") == 0.5
    assert severity.property_of("hot", "cold", ("cold", "warm", "hot")) == 1
    assert severity.property_of("warm", "cold", ("cold", "warm", "hot")) == 0.5
    grades = [severity.grade(x) for x in (0.1, 1 / 3, 0.34, 2 / 3, 0.7, 1)]
    assert grades == ["minor", "minor", "moderate", "moderate", "major", "major"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: severity.colour("mauve", "red"),
        lambda: severity.count(-1, 2),
        lambda: severity.spatial("behind", "left"),
        lambda: severity.size(1, 1, [1]),
        lambda: severity.property_of("a", "b", ("b",)),
        lambda: severity.grade(0),
        lambda: severity.place((0, 0), (0, 0), [(0.0, 0.0)]),
    ],
)
def test_what_has_no_delta_is_refused(call):
    with pytest.raises(UsageError):
        call()
