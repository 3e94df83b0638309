"""Categorical colours, which must stay apart for readers who lack one kind of cone, and be legible as the colour of text."""

import itertools
import re

import numpy as np
import pytest

from interp_gpt2.views import figures
from interp_gpt2.views.html import asset

# Machado, Oliveira and Fernandes 2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency", severity 1:
# what linear RGB looks like to someone without the cones for long, medium or short waves.
MACHADO = {
    "everyone": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
SRGB_TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
WHITE = [0.95047, 1.0, 1.08883]  # D65
JUST_NOTICEABLE = 2.3  # CIE76; Mahy et al. 1994
APART = 20.0  # of thin lines and small marks, which need much more


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB."""
    xyz = np.array(SRGB_TO_XYZ) @ rgb.clip(0, 1) / WHITE
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """WCAG 2.1."""
    dark, light = sorted(float(linear(colour) @ SRGB_TO_XYZ[1]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def of_page(theme: str) -> tuple[list[str], str]:
    """The colours c1 to c4 of the style sheet, and the paper's. A dark theme stands there twice, and must be the same."""
    blocks = re.findall(r"\{([^{}]*--paper[^{}]*)\}", asset("base.css"))
    blocks = [block for block in blocks if f"color-scheme: {theme};" in block]
    assert len(blocks) == (1 if theme == "light" else 2)
    found = [dict(re.findall(r"--(c[1-4]|paper): (#[0-9a-f]{6})", block)) for block in blocks]
    assert all(each == found[0] for each in found)
    return [found[0][f"c{i}"] for i in range(1, 5)], found[0]["paper"]


def palette(name: str) -> tuple[list[str], str]:
    return (list(figures.COLOURS), "#ffffff") if name == "figures" else of_page(name)


palettes = pytest.mark.parametrize("name", ["figures", "light", "dark"])


def test_the_simulation_confuses_what_dichromats_confuse() -> None:
    """A red and a dark olive, which a protanope cannot tell apart; and white stays white."""

    def seen(colour: str, kind: str) -> np.ndarray:
        return lab(np.array(MACHADO[kind]) @ linear(colour))

    red, green = "#aa0000", "#3b3b00"
    assert np.linalg.norm(seen(red, "everyone") - seen(green, "everyone")) > 50
    assert np.linalg.norm(seen(red, "protanopia") - seen(green, "protanopia")) < 15
    for kind in MACHADO:
        np.testing.assert_allclose(np.sum(MACHADO[kind], axis=1), 1, atol=2e-6)
    assert lab(linear("#ffffff")) == pytest.approx([100, 0, 0], abs=0.02)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@palettes
@pytest.mark.parametrize("kind", MACHADO)
def test_no_two_colours_meet_for_anyone(name: str, kind: str) -> None:
    seen = {colour: lab(np.array(MACHADO[kind]) @ linear(colour)) for colour in palette(name)[0]}
    apart = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert not {pair: round(far, 1) for pair, far in apart.items() if far < APART}
    assert APART > 8 * JUST_NOTICEABLE


@palettes
def test_labels_in_these_colours_can_be_read(name: str) -> None:
    colours, paper = palette(name)
    assert all(contrast(colour, paper) >= 4.5 for colour in colours)
