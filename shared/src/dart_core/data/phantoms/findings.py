"""Findings of a radiograph: how each changes the shapes of a chest, and what each adds to the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.shapes import Field, inside
from dart_core.data.phantoms.thorax import Thorax


def change(chest: Thorax, name: str, rng: np.random.Generator) -> None:
    """Change the shapes as a finding does."""
    side = _side(rng)
    match name:
        case "Cardiomegaly":
            factor = rng.uniform(1.35, 1.6)
            chest.heart = (chest.heart[0] * factor, chest.heart[1] * (0.6 + 0.4 * factor))
        case "Enlarged Cardiomediastinum":
            chest.mediastinum *= rng.uniform(1.6, 1.95)
        case "Emphysema":
            chest.dome = {s: d + 24 for s, d in chest.dome.items()}
            chest.flat, chest.lucent, chest.thick = 3.5, 1.28, 0.55
            chest.heart = (chest.heart[0] * 0.78, chest.heart[1])
        case "Atelectasis":
            chest.raised = side
            chest.dome[side] -= float(rng.uniform(16, 28))
        case "Fibrosis":
            chest.dome = {s: d - 12 for s, d in chest.dome.items()}
        case "Edema":
            chest.thick = max(chest.thick, 1.8)
        case "Pneumothorax":
            chest.collapsed.append((side, float(rng.uniform(16, 34))))
        case "Fracture":
            start = int(rng.integers(3, 6))
            chest.fractured += [(side, start + k) for k in range(int(rng.integers(2, 4)))]


def add(chest: Thorax, name: str, total: Field, rng: np.random.Generator, bone: float) -> None:
    """Add what a finding shows, in place."""
    side = _side(rng)
    match name:
        case "Lung Opacity":
            total += 0.30 * _patch(chest, rng, side, (-40, 35), (34, 46), 0.1)
        case "Pneumonia":
            total += 0.34 * _patch(chest, rng, side, (0, 45), (28, 40), 0.6)
        case "Infiltration":
            streaks = inside(np.abs(chest.texture(rng, 22)) - 0.5, 0.7)
            total += 0.30 * _patch(chest, rng, side, (-30, 40), (34, 46), 0.4) * (0.35 + 0.65 * streaks)
        case "Consolidation":
            airways = inside(0.16 - np.abs(chest.texture(rng, 46)), 0.25)
            total += 0.52 * _patch(chest, rng, side, (-70, 40), (34, 42), 0.05) * (1 - 0.25 * airways)
        case "Atelectasis":
            _plates(chest, total, rng)
        case "Edema":
            _edema(chest, total, rng)
        case "Effusion" | "Pleural Effusion":
            _fluid(chest, total, rng, side)
        case "Pleural_Thickening" | "Pleural Other":
            _rind(chest, total, rng, side)
        case "Mass":
            _ball(chest, total, rng, side, rng.uniform(18, 27))
        case "Nodule":
            _ball(chest, total, rng, side, rng.uniform(7, 11))
        case "Lung Lesion":
            _ball(chest, total, rng, side, rng.uniform(9, 24))
        case "Fibrosis":
            net = inside(0.3 - np.abs(chest.texture(rng, 17)), 0.3)
            total += 0.26 * net * chest.visible() * inside(chest.v - 5 + 0.15 * np.abs(chest.u), 60)
        case "Tuberculosis":
            _tuberculosis(chest, total, rng, side)
        case "Hernia":
            shape = chest.ellipse((10, chest.dome[1] - 22), (30, 27))
            total += 0.22 * inside(shape, 4)
            total -= 0.30 * inside(np.minimum(shape - 5, chest.dome[1] - 26 - chest.v), 3)
        case "Fracture":
            for broken_side, number in chest.fractured:
                total += 0.20 * bone * inside(chest.ellipse(chest.break_of(broken_side, number), (9, 8)), 4)
        case "Support Devices":
            _devices(chest, total, rng, side)


def _patch(
    chest: Thorax,
    rng: np.random.Generator,
    side: int,
    height: tuple[float, float],
    size: tuple[float, float],
    rough: float,
) -> Field:
    """An opacity with soft, uneven borders in one lung, from 0 to 1."""
    radius = rng.uniform(*size)
    blob = chest.ellipse((side * rng.uniform(58, 84), rng.uniform(*height)), (radius, radius * rng.uniform(0.8, 1.15)))
    blob = blob + 0.16 * radius * chest.texture(rng, 60)
    texture = 1 - rough * 0.5 * (1 - np.clip(chest.texture(rng, 30), -1, 1))
    return np.asarray(inside(blob + 0.08 * radius, 0.55 * radius) * texture * chest.visible(side))


def _tuberculosis(chest: Thorax, total: Field, rng: np.random.Generator, side: int) -> None:
    """Patches in the upper half of one lung or both, one of them with a cavity."""
    sides = (side,) if rng.random() < 0.5 else (side, -side)
    for each in sides:
        streaks = inside(np.abs(chest.texture(rng, 16)) - 0.35, 0.6)
        total += 0.34 * _patch(chest, rng, each, (-85, -35), (26, 38), 0.5) * (0.45 + 0.55 * streaks)
    radius = rng.uniform(9, 15)
    hole = chest.ellipse((side * rng.uniform(58, 76), rng.uniform(-85, -45)), (radius, radius * rng.uniform(0.8, 1.1)))
    hole = hole + 0.1 * radius * chest.texture(rng, 30)
    total += (0.22 * inside(hole + 5, 3) - 0.36 * inside(hole, 3)) * inside(chest.lung(side), 4)


def _plates(chest: Thorax, total: Field, rng: np.random.Generator) -> None:
    """Bands of collapsed lung above the raised diaphragm."""
    side = chest.raised
    for _ in range(int(rng.integers(2, 4))):
        height, slope = chest.dome[side] - rng.uniform(10, 40), rng.uniform(-0.3, 0.3)
        start, end = rng.uniform(34, 48), rng.uniform(88, 112)
        line = chest.stroke(
            [(side * start, height), (side * end, height + slope * (end - start))], rng.uniform(2.6, 4.5)
        )
        total += 0.30 * inside(line, 3) * chest.visible(side)


def _edema(chest: Thorax, total: Field, rng: np.random.Generator) -> None:
    """Haze around the roots of both lungs, and short lines at the lower borders."""
    for side in (-1, 1):
        wing = chest.ellipse((side * 55, 2), (46, 62), 2) + 3 * chest.texture(rng, 40)
        total += 0.30 * inside(wing, 40) * chest.visible(side) * (0.9 + 0.1 * chest.texture(rng, 24))
        for k in range(4):
            height = chest.dome[side] - 8 - 9 * k
            line = chest.stroke([(side * (chest.outer - 22), height), (side * (chest.outer - 5), height)], 1.0)
            total += 0.14 * inside(line, 1.5) * chest.visible(side)


def _fluid(chest: Thorax, total: Field, rng: np.random.Generator, side: int) -> None:
    """Fluid above the diaphragm; its upper border rises towards the chest wall."""
    level = chest.dome[side] + 14 - rng.uniform(22, 70)
    surface = chest.v - level + 34 * np.clip((side * chest.u - 58) / (chest.outer - 58), 0, 1.2) ** 2
    in_chest = inside(chest.ellipse((side * 0.53 * chest.outer, 0), (0.47 * chest.outer, 170), 2.5), 4)
    amount = inside(surface, 16) * in_chest * (1 - inside(chest.below_dome(side), 8))
    total += 0.50 * amount * (1 - 0.7 * inside(chest.heart_shape(), 4))


def _rind(chest: Thorax, total: Field, rng: np.random.Generator, side: int) -> None:
    """A band along the chest wall, thickest at a height of its own."""
    width = rng.uniform(10, 15)
    around = np.exp(-(((chest.v - rng.uniform(-60, 30)) / rng.uniform(45, 75)) ** 2))
    depth = chest.lung(side)
    lateral = inside(side * chest.u - 52, 10)
    total += 0.34 * inside(np.minimum(depth, width * around - depth), 3) * lateral


def _ball(chest: Thorax, total: Field, rng: np.random.Generator, side: int, radius: float) -> None:
    place = (side * rng.uniform(60, 92), rng.uniform(-75, 30))
    ball = chest.ellipse(place, (radius, radius * rng.uniform(0.85, 1.1))) + 0.06 * radius * chest.texture(rng, radius)
    chord = np.sqrt(np.clip(ball / radius, 0, 1))
    total += (0.22 + 0.14 * min(radius / 20, 1)) * (0.5 * inside(ball, 2.5) + 0.5 * chord) * inside(chest.lung(side), 4)


def _devices(chest: Thorax, total: Field, rng: np.random.Generator, side: int) -> None:
    """Two of: pacemaker, tube in the windpipe, central line, wires of the electrocardiogram."""
    kinds = rng.permutation(4)[:2]
    if 0 in kinds:
        box = chest.ellipse((side * 92, -78), (21, 17), 3.2)
        path = [
            (side * 78, -92),
            (side * 40, -96),
            (-16, -40),
            (-14, 20),
            (14, chest.dome[1] - 14),
            (40, chest.dome[1] - 12),
        ]
        total += 0.75 * inside(box, 2) + 0.42 * inside(chest.stroke(_curve(path), 1.4), 1.4)
    if 1 in kinds:
        total += 0.30 * inside(chest.stroke(_curve([(0, -200), (2, -120), (1, -58)]), 3.0), 1.5)
        total += 0.25 * inside(chest.stroke([(2, -200), (2, -58)], 1.0), 1.2)
    if 2 in kinds:
        path = [(side * 52, -170), (side * 30, -112), (-10, -78), (-19, -30), (-17, 12)]
        total += 0.36 * inside(chest.stroke(_curve(path), 1.5), 1.4)
    if 3 in kinds:
        for _ in range(2):
            start = (rng.uniform(-110, 110), -190.0)
            stop = (rng.uniform(-100, 100), rng.uniform(-30, 70))
            bend = ((start[0] + stop[0]) / 2 + rng.uniform(-40, 40), (start[1] + stop[1]) / 2)
            total += 0.34 * inside(chest.stroke(_curve([start, bend, stop]), 1.2), 1.2)
            total += 0.50 * inside(chest.ellipse(stop, (7, 7)), 1.5)


def _side(rng: np.random.Generator) -> int:
    return -1 if rng.random() < 0.5 else 1


def _curve(points: Sequence[Sequence[float]], steps: int = 14) -> NDArray[Any]:
    """A smooth line through points that does not overshoot them."""
    from scipy.interpolate import PchipInterpolator

    path = np.asarray(points, dtype=float)
    length = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    return np.asarray(PchipInterpolator(length, path)(np.linspace(0, length[-1], steps)))
