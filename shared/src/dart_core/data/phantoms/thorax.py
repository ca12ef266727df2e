"""The healthy chest of a radiograph: shapes on the detector, and what the beam loses in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dart_core.data.phantoms.shapes import Field, inside, join, smooth_field

_FIELD_OF_VIEW = 345.0  # mm, the longer side of the picture
_RIBS = 10


@dataclass
class Thorax:
    """The shapes of one chest in mm on the detector; u grows to the right of the picture, v downwards.

    `side` is -1 for the patient's right, which is on the left of the picture, and 1 for the left.
    """

    u: Field
    v: Field
    place: tuple[float, float, float, float, float]
    """Pixel size (mm), angle, and shift down and to the right (mm) of the picture, and how much wider the body is."""
    heart: tuple[float, float]
    """Half width and half height."""
    mediastinum: float
    dome: dict[int, float]
    """Height of the diaphragm below the middle of the picture, by side."""
    flat: float
    """How flat the diaphragm is."""
    apex: float
    outer: float
    """Half width of the inside of the chest."""
    breast: float
    lucent: float = 1.0
    """Air in the lungs."""
    thick: float = 1.0
    """Width of the vessels."""
    collapsed: list[tuple[int, float]] = field(default_factory=list)
    """Side and depth (mm) of each pneumothorax."""
    fractured: list[tuple[int, int]] = field(default_factory=list)
    """Side and number of each broken rib."""
    raised: int = 1
    """Side on which a collapsed part of the lung lets the diaphragm rise."""

    @classmethod
    def draw(
        cls, body: np.random.Generator, rng: np.random.Generator, shape: tuple[int, int], zoom: float, bedside: bool
    ) -> Thorax:
        """Draw a healthy chest: `body` gives the anatomy, `rng` the position."""
        pixel = _FIELD_OF_VIEW / max(shape) / zoom
        v, u = (((np.arange(side) - (side - 1) / 2) * pixel).astype(np.float32) for side in (shape[0], shape[1]))
        angle = float(np.deg2rad(rng.normal(0, 3.5 if bedside else 1.5)))
        down, across = (float(value) for value in rng.normal((6, 0), 6))
        vv, uu = np.meshgrid(v - np.float32(down), u - np.float32(across), indexing="ij")
        spread = float(np.clip(body.normal(1.0, 0.06), 0.85, 1.15))
        size = 1.14 if bedside else 1.0
        heart = (float(body.normal(57, 3)) * size, float(body.normal(57, 3)) * size**0.5)
        mediastinum = float(body.normal(27, 2)) * size
        dome = float(body.normal(82, 6)) - (15 if bedside else 0)
        lower = float(body.uniform(4, 12))
        outer, apex = float(body.normal(128, 4)), float(body.normal(-128, 4))
        breast = float(body.uniform(0.06, 0.16)) if body.random() < 0.5 else 0.0
        u_turned = (uu * np.cos(angle) + vv * np.sin(angle)) / spread
        v_turned = vv * np.cos(angle) - uu * np.sin(angle)
        domes = {-1: dome, 1: dome + lower}
        place = (pixel, angle, down, across, spread)
        return cls(u_turned, v_turned, place, heart, mediastinum, domes, 1.0, apex, outer, breast)

    # --- Shapes: distance in mm, positive inside -------------------------------------------------------------------

    def ellipse(self, centre: Sequence[float], half: Sequence[float], power: float = 2.0, angle: float = 0.0) -> Field:
        """An ellipse turned by `angle`; power above 2 is boxier."""
        p, q = self.u - centre[0], self.v - centre[1]
        if angle:
            p, q = p * np.cos(angle) + q * np.sin(angle), q * np.cos(angle) - p * np.sin(angle)
        level = (np.abs(p / half[0]) ** power + np.abs(q / half[1]) ** power) ** (1 / power)
        return np.asarray((1 - level) * min(half), dtype=np.float32)

    def window(self, points: NDArray[Any], margin: float) -> tuple[slice, slice]:
        """The part of the picture (rows, columns) that holds points (u, v) and `margin` mm around them."""
        pixel, angle, down, across, spread = self.place
        (u0, v0), (u1, v1) = points.min(0) - margin, points.max(0) + margin
        corners = np.array([(u * spread, v) for u in (u0, u1) for v in (v0, v1)])
        rows = corners @ (np.sin(angle), np.cos(angle)) + down
        columns = corners @ (np.cos(angle), -np.sin(angle)) + across
        cut = []
        for values, side in zip((rows, columns), self.u.shape, strict=True):
            places = values / pixel + (side - 1) / 2
            cut.append(slice(int(max(0, np.floor(places.min()))), int(max(0, np.ceil(places.max()) + 1))))
        return cut[0], cut[1]

    def stroke(self, points: ArrayLike, width: float) -> Field:
        """Distance inside a line of that half width through points (u, v); far from it just far outside."""
        path = np.asarray(points, dtype=np.float32)
        distance = np.full(self.u.shape, 1e3, dtype=np.float32)
        for start, end in pairwise(path):
            window, near = self._segment(start, end, 3 * width + 8)
            np.minimum(distance[window], near, out=distance[window])
        return np.asarray(width - distance)

    def _segment(
        self, start: NDArray[Any], end: NDArray[Any], margin: float
    ) -> tuple[tuple[slice, slice], NDArray[Any]]:
        """The part of the picture around a straight line, and the distance from it there."""
        window, step = self.window(np.stack([start, end]), margin), end - start
        u, v = self.u[window] - start[0], self.v[window] - start[1]
        along = np.clip((u * step[0] + v * step[1]) / max(float(step @ step), 1e-6), 0, 1)
        return window, np.hypot(u - along * step[0], v - along * step[1])

    def below_dome(self, side: int) -> Field:
        """Distance below the diaphragm of one side."""
        top, across = self.dome[side], (self.u - side * 62) / 66
        return np.asarray(self.v - top - 26 / self.flat * across * across * (1 + 0.35 * across * side))

    def lung(self, side: int) -> Field:
        """Lung of one side, down to the diaphragm."""
        height = 200.0
        shape = self.ellipse(
            (side * 0.53 * self.outer, self.apex + height / 2 + 14), (0.47 * self.outer, height / 2 + 14), 2.5
        )
        rounded = self.ellipse((side * 58, self.apex + 60), (62, 62), 2.2)
        upper = np.where(self.v < self.apex + 60, np.minimum(shape, rounded), shape)
        return np.asarray(np.minimum(upper, -self.below_dome(side)))

    def heart_shape(self) -> Field:
        """Outline of the heart."""
        w, h = self.heart
        return join(
            self.ellipse((0.36 * w, self.dome[1] - 0.62 * h), (w, 0.82 * h), 2.2, 0.5),
            self.ellipse((-8, self.dome[-1] - 0.75 * h), (0.62 * w, 0.8 * h), 2.2),
            12,
        )

    def middle(self) -> Field:
        """Great vessels, spine and what lies between the lungs."""
        width = self.mediastinum * (1 - 0.3 * inside(-95 - self.v, 80)) + 0.06 * np.abs(self.v + 60)
        band = width - np.abs(self.u - 3)
        knob = self.ellipse((4 + 0.85 * self.mediastinum, -50), (17, 18))
        window = self.ellipse((6 + 0.8 * self.mediastinum, -14), (15, 14))
        return np.asarray(join(join(band, knob, 8), window, 8))

    def rib(self, side: int, number: int) -> tuple[Field, Field]:
        """Distance inside the ribs' band, and the share of it that is on the back half."""
        low = self.apex + 20 + 21.5 * number
        half_u = min(34 + 7.5 * number, 0.5 * self.outer)
        centre = (side * (14 + half_u), low + 0.18 * half_u)
        p, q = (self.u - centre[0]) * side, self.v - centre[1]
        tilt = 0.36
        p, q = p * np.cos(tilt) + q * np.sin(tilt), q * np.cos(tilt) - p * np.sin(tilt)
        half_v = 16 + 2.4 * number
        level = np.hypot(p / half_u, q / half_v)
        slope = np.hypot(p / half_u**2, q / half_v**2) / np.maximum(level, 1e-3)
        distance = np.abs(level - 1) / np.maximum(slope, 1e-3)
        back = inside(-q, 10)
        medial = inside(p + 0.45 * half_u, 24)  # in front the bone ends in cartilage
        return np.asarray(4.6 - distance), np.asarray(back + (1 - back) * 0.75 * medial)

    def lungs(self) -> Field:
        """Air along the beam, from 0 to about 1, of both lungs."""
        depth = np.maximum(self.lung(-1), self.lung(1))
        return np.sqrt(np.clip(depth / 42, 0, 1))

    def visible(self, side: int | None = None) -> Field:
        """Share of a pixel that is lung beside heart and mediastinum."""
        depth = np.maximum(self.lung(-1), self.lung(1)) if side is None else self.lung(side)
        hidden = 0.8 * inside(np.maximum(self.heart_shape(), self.middle()), 3)
        return np.asarray(inside(depth, 4) * (1 - hidden))

    def healthy(self, rng: np.random.Generator, bone: float) -> Field:
        """Attenuation (H, W) of the chest; 1 is about the soft tissue in the middle of the body."""
        u, v = self.u, self.v
        contour = np.interp(
            v, (-210, -165, -140, -120, -96, -60, 0, 100, 210), (46, 47, 66, 124, 182, 172, 152, 150, 156)
        )
        wide = (contour - np.abs(u)).astype(np.float32)
        soft = np.sqrt(np.clip(wide / 120, 0, 1)) * (0.86 + 0.16 * inside(v - 60, 120) + 0.06 * self.texture(rng, 120))
        total = soft.astype(np.float32)

        heart, middle, air = self.heart_shape(), self.middle(), self.lungs()
        solid = np.maximum(inside(heart, 4) * np.sqrt(np.clip(heart / 30, 0.35, 1)), 0.9 * inside(middle, 5))
        total -= 0.46 * self.lucent * air * (1 - 0.85 * solid)
        total += 0.10 * solid
        windpipe = np.minimum(9 - np.abs(u - 1), -36 - v)
        bronchi = np.maximum(self.stroke([(1, -38), (-26, -12)], 5), self.stroke([(1, -38), (30, -8)], 4.5))
        total -= 0.13 * inside(np.maximum(windpipe, bronchi), 4)
        total -= 0.26 * inside(self.ellipse((64, self.dome[1] + 32), (24, 11)), 8)  # air in the stomach
        below = np.maximum(np.minimum(self.below_dome(-1), -u), np.minimum(self.below_dome(1), u))
        total += 0.12 * inside(below, 6)

        bony = bone * (1 - 0.7 * inside(below, 6))
        spine = inside(16 - np.abs(u), 4) * (0.75 + 0.25 * np.sin(2 * np.pi * (v + 8) / (21 + 0.02 * v)))
        total += 0.13 * bone * spine
        for side in (-1, 1):
            for number in range(_RIBS):
                band, share = self.rib(side, number)
                if (side, number) in self.fractured:
                    share = share * (1 - inside(7 - np.abs(v - self.break_of(side, number)[1]), 2))
                edge = inside(band, 1.5) * (0.65 + 0.35 * inside(2.2 - band, 1.5))
                total += 0.085 * bony * edge * share
            clavicle = [(side * 13, -96), (side * 45, -108), (side * 88, -118), (side * 134, -132)]
            total += 0.16 * bone * inside(self.stroke(clavicle, 5.5), 2.5)
            blade = self.ellipse((side * 150, -70), (22, 52), 2.4, side * 0.22)
            total += 0.07 * bone * inside(blade, 6) + 0.06 * bone * inside(3 - np.abs(blade), 2)
            total += 0.20 * bone * inside(self.ellipse((side * 176, -112), (24, 26)), 4)
            total += self.breast * inside(self.ellipse((side * 78, 52), (58, 46), 2.2), 16)
            total += 0.17 * self._tree(rng, side)
        total += 0.02 * air * self.texture(rng, 14)
        for side, depth in self.collapsed:
            self._collapse(total, side, depth)
        return np.maximum(total, 0) * inside(wide, 6)

    def _tree(self, rng: np.random.Generator, side: int) -> Field:
        """Vessels of one lung: lines from its root outwards, thinner with distance."""
        root = np.array([side * 30.0, -8.0])
        total = 0.9 * inside(self.ellipse((side * 30, -8), (12, 19), 2, side * 0.3), 14)
        for angle in np.linspace(-1.25, 1.35, 11) + rng.normal(0, 0.06, 11):
            width, place, direction = 3.0 * self.thick, root.copy(), angle
            for _ in range(4):
                length = rng.uniform(17, 26)
                end = place + length * np.array([side * np.cos(direction), np.sin(direction)])
                window, distance = self._segment(place, end, 2.2 * width + 2)
                vessel = (0.4 + 0.13 * width) * inside(width - distance, 2.2 * width)
                total[window] = np.maximum(total[window], vessel)
                place, width = end, width * 0.68
                direction += rng.normal(0, 0.3)
        return np.asarray(total * inside(self.lung(side) - 3, 8))

    def _collapse(self, total: Field, side: int, depth: float) -> None:
        """Air between lung and chest wall: black, without vessels, the edge of the lung a thin white line."""
        lung = self.lung(side)
        upper = inside(self.dome[side] - 20 - self.v, 60)
        edge = lung - depth * (0.35 + 0.65 * inside(-20 - self.v, 90)) * upper
        outside = inside(lung, 3) * inside(-edge, 2) * upper * inside(side * self.u - 20, 8)
        total -= outside * 0.17
        total += 0.20 * inside(1.6 - np.abs(edge), 1.2) * inside(lung - 4, 3) * upper * inside(side * self.u - 24, 8)

    def break_of(self, side: int, number: int) -> tuple[float, float]:
        """Where rib `number` is broken: at its outermost place."""
        half_u = min(34 + 7.5 * number, 0.5 * self.outer)
        reach, tilt = half_u * 0.96, 0.36
        return (
            side * (14 + half_u + reach * np.cos(tilt)),
            self.apex + 20 + 21.5 * number + 0.18 * half_u + reach * np.sin(tilt),
        )

    def texture(self, rng: np.random.Generator, wavelength: float) -> Field:
        """Random field (H, W) of mean 0 and variance 1."""
        axes = [np.arange(side, dtype=np.float32) * np.float32(self.place[0]) for side in self.u.shape]
        flat = [*axes, np.zeros(1, dtype=np.float32)]
        return smooth_field(rng, flat, wavelength, count=32, stretch=(1, 1, 0))[..., 0]
