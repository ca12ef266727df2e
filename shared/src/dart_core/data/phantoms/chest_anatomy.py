"""The chest of a CT: distances to the surfaces of its organs, what is placed in its lungs, and the density of it all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.shapes import Field, Layer, Space, cover, grid_axes, inside, join, rotation, smooth_field

Kind = Literal["solid", "ground glass", "pleural"]
_KINDS: tuple[Kind, ...] = ("solid", "solid", "ground glass", "pleural")

FIELD_OF_VIEW = (360.0, 360.0, 300.0)  # mm, right-left, back-front, bottom-top
CENTRE = (0.0, 0.0, 0.0)  # of the field of view, mm from the middle of the chest
_REFERENCE = (36, 36, 40)  # voxels of the grid on which vessels and nodules are placed
_HU = {
    "lung": 0.0,  # relative to air; its density is drawn
    "fat": -105.0,
    "muscle": 55.0,
    "blood": 42.0,
    "liver": 58.0,
    "spleen": 48.0,
    "bone": 720.0,
    "marrow": 190.0,
    "fluid": 12.0,
    "couch": -120.0,
}
AIR = -1000.0

Tube = tuple[NDArray[np.float64], NDArray[np.float64], float]
"""Start and end in mm, and radius in mm."""


@dataclass(frozen=True, eq=False)
class Nodule:
    """A ball of tissue in a lung."""

    centre: tuple[float, float, float]
    """mm to the right, to the front and upwards from the middle of the scan."""
    diameter: float
    """mm."""
    kind: Kind


class Chest:
    """Distances in mm to the surfaces of one subject's organs, positive inside, on any grid.

    Args:
        key: seed and number of the subject.
        axes: positions in mm of the voxels along each axis.

    All draws are made in the same order whatever the grid, so that two grids show the same subject.
    """

    def __init__(self, key: Sequence[int], axes: Sequence[Field]) -> None:
        rng = np.random.default_rng([*key, 1])
        pitch, roll, yaw = np.deg2rad(rng.normal(scale=(1.5, 1.5, 2.5)).clip(-5, 5))
        turn = rotation(1, 2, pitch) @ rotation(0, 2, roll) @ rotation(0, 1, yaw)
        space = Space(axes, turn, rng.normal(1.0, (0.04, 0.05, 0.03)).clip(0.9, 1.1))
        x, y, z = space.x, space.y, space.z
        self.axes, self.space, self.rng = axes, space, rng
        wander = _texture(rng, axes, 90)
        lumps = _texture(rng, axes, 45)
        self.wander, self.lumps = wander, lumps
        self.stout = stout = float(rng.uniform(0.0, 1.0))
        breath = float(rng.normal(0, 7))  # mm by which the diaphragm stands lower
        self.density = float(rng.normal(-872, 14))  # HU of the lungs at the front

        top = np.clip((z - 70) / 80, 0, 1)
        self.body = _column(x, y + 4, 150 + 16 * stout + 14 * top, 104 + 14 * stout - 16 * top, 2.5) + 1.5 * wander
        self.skin_fat = 7 + 13 * stout + 3 * _texture(rng, axes, 70) - 4 * top
        rise = np.clip((z + 40) / 190, 0, 1)  # the chest narrows towards its top
        self.cavity = _column(x, y, 134 - 62 * rise**2.2, 90 - 40 * rise**2, 2.3) + 0.5 * wander

        right_dome = space.ellipsoid((66, 2, -152 - breath), (74, 86, 96))
        left_dome = space.ellipsoid((-66, 2, -162 - breath), (70, 84, 92))
        self.domes = join(right_dome, left_dome, 12) + 0.8 * wander
        heart = join(space.ellipsoid((-34, 26, -34), (48, 40, 44)), space.ellipsoid((14, 20, -16), (36, 36, 44)), 18)
        self.heart = heart + 0.8 * lumps
        self.vessels = self._great_vessels()
        middle = join(space.ellipsoid((0, -6, 30), (34, 52, 130), 2.2), self.heart + 5, 16)
        middle = np.maximum.reduce([middle, self.vessels + 5, space.ellipsoid((0, -78, 0), (24, 26, 400))])
        pair = np.maximum(*(space.ellipsoid((side * 70, -4, -50), (66, 90, 182), 2.35) for side in (-1, 1)))
        self.lungs = np.minimum.reduce([pair, self.cavity - 3, -middle - 1.5, -self.domes - 2]) + 0.5 * lumps
        abdomen = np.minimum(self.cavity - 4, self.domes - 3)
        self.abdomen = abdomen
        liver = join(
            space.ellipsoid((66, 4, -164 - breath), (82, 88, 104), 2.2),
            space.ellipsoid((-6, 40, -150 - breath), (74, 40, 62)),
            22,
        )
        around_spine = space.ellipsoid((0, -82, 0), (26, 30, 900))
        self.not_belly = np.maximum(around_spine, self.vessels)
        self.liver = np.minimum.reduce([liver + 1.2 * lumps, abdomen, -self.not_belly])
        self.spleen = np.minimum(space.ellipsoid((-92, -36, -150), (34, 44, 52)) + lumps, abdomen)
        stomach = space.ellipsoid((-62, 30, -148), (48, 42, 48)) + lumps
        self.stomach = np.minimum.reduce([stomach, abdomen - 1, -self.spleen - 4, -self.liver - 2])
        self.windpipe = np.maximum.reduce(
            [
                self._stroke(np.array([0.0, -10.0, 47.0]), np.array([2.0, -8.0, 240.0]), 8.5),
                *(self._bronchus(side) for side in (-1, 1)),
            ]
        )

    def _bronchus(self, side: int) -> Field:
        start, end = np.array([0.0, -10.0, 47.0]), np.array([side * 40.0, -12.0, 20.0 if side < 0 else 26.0])
        return self._stroke(start, end, 6.5)

    def _stroke(self, start: NDArray[np.float64], end: NDArray[np.float64], radius: float) -> Field:
        """A tube between two places of the anatomy."""
        along = end - start
        p = [c - float(a) for c, a in zip((self.space.x, self.space.y, self.space.z), start, strict=True)]
        part = np.clip(sum(c * float(d) for c, d in zip(p, along, strict=True)) / float(along @ along), 0, 1)
        square = sum((c - part * float(d)) ** 2 for c, d in zip(p, along, strict=True))
        return np.asarray(radius - np.sqrt(square))

    def _great_vessels(self) -> Field:
        """Aorta, trunk and main branches of the lung artery, superior vena cava."""
        a = np.array
        arch = [
            (14, 26, 10),
            (14, 22, 56),
            (6, 12, 74),
            (-12, -14, 80),
            (-24, -42, 68),
            (-26, -56, 40),
            (-20, -58, -160),
        ]
        tubes = [
            self._stroke(a(p, float), a(q, float), 14.0 if i < 3 else 12.0) for i, (p, q) in enumerate(_pairs(arch))
        ]
        trunk = [(-18, 34, 4), (-16, 24, 38), (2, 6, 40)]
        tubes += [self._stroke(a(p, float), a(q, float), 13.0) for p, q in _pairs(trunk)]
        tubes += [
            self._stroke(a((2.0, 8.0, 40.0)), a((44.0, -8.0, 24.0)), 9.5),
            self._stroke(a((-14.0, 20.0, 40.0)), a((-44.0, -10.0, 28.0)), 9.5),
            self._stroke(a((30.0, 16.0, 0.0)), a((26.0, 12.0, 96.0)), 8.5),
            self._stroke(a((26.0, 12.0, 96.0)), a((60.0, 20.0, 150.0)), 6.0),
            self._stroke(a((26.0, 12.0, 92.0)), a((-44.0, 30.0, 132.0)), 6.0),
            self._stroke(a((4.0, 10.0, 78.0)), a((20.0, 0.0, 150.0)), 6.0),
            self._stroke(a((-14.0, -12.0, 80.0)), a((-26.0, -6.0, 150.0)), 5.0),
        ]
        return np.asarray(np.maximum.reduce(tubes))

    def render(
        self,
        voxel: float,
        vessels: Field,
        airways: Field,
        clots: Field | None,
        nodules: Sequence[Nodule],
        contrast: float,
    ) -> Field:
        """HU of each voxel, before any scanner."""
        in_lungs = inside(self.lungs, voxel)
        layers = self._wall(voxel)
        layers += self._middle(voxel)
        layers += self._belly(voxel)
        layers.append((in_lungs, {"lung": 1.0}))
        tissues = cover(layers)
        lung = tissues.pop("lung")
        total = sum(tissues.values(), np.float32(0))
        hu = AIR * (1 - total - lung)
        for name, share in tissues.items():
            hu = hu + (_HU[name] + (self._enhancement(name, contrast))) * share
        # The lungs lie on their backs: blood makes the lower parts denser. Small vessels are a texture.
        rng = np.random.default_rng(self.rng.integers(2**32))
        weight = self.density - 0.38 * self.space.y + 14 * _texture(rng, self.axes, 40)
        small = inside(_texture(rng, self.axes, 15) - 1.5, 0.8) * inside(self.lungs - 3, 6)
        hu = hu + lung * (weight + 60 * small)
        blood = _HU["blood"] + contrast
        near = inside(self.lungs + 8, 8.0)  # vessels begin in the middle and are drawn in and next to the lungs
        share = inside(vessels, voxel) * near
        hu = hu * (1 - share) + blood * share
        wall, lumen = inside(airways + 1.2, voxel) * near, inside(airways, voxel) * near
        hu = hu * (1 - wall) + 20 * wall
        hu = hu * (1 - lumen) + (AIR + 30) * lumen
        if clots is not None:
            share = inside(np.minimum(clots, np.maximum(vessels, self.vessels)), voxel)
            hu = hu * (1 - share) + 50 * share
        for nodule in nodules:
            box, distance = ball(self.axes, nodule)
            spiky = distance + 0.07 * nodule.diameter * self.lumps[box]
            share = inside(np.minimum(spiky, self.lungs[box] + 1.5), voxel)
            value = -560.0 if nodule.kind == "ground glass" else 45.0
            keep = np.maximum(hu[box], value) if nodule.kind == "ground glass" else value
            hu[box] = hu[box] * (1 - share) + keep * share
        return np.asarray(hu, dtype=np.float32)

    @staticmethod
    def _enhancement(name: str, contrast: float) -> float:
        return contrast * {"blood": 1.0, "liver": 0.3, "spleen": 0.45, "muscle": 0.06}.get(name, 0.0)

    def _wall(self, voxel: float) -> list[Layer]:
        """Couch, skin, fat, muscles, ribs, breastbone, shoulder blades, spine."""
        rng, axes, space = self.rng, self.axes, self.space
        x, y, z = space.x, space.y, space.z
        world_x, world_y = axes[0][:, None, None], axes[1][None, :, None]
        couch = 2.2 - np.abs(world_y + 118 + 14 * self.stout - 0.0011 * world_x**2)
        couch = np.minimum(couch, 168 - np.abs(world_x)) + 0 * axes[2]
        under_skin = np.minimum(self.body - 1.8, self.skin_fat - self.body)
        seams = 1 - inside(np.abs(_texture(rng, axes, 46, stretch=(1, 1, 0.4))) * 8 - 0.7, 1.6)
        fat = np.maximum(inside(under_skin, voxel), 0.6 * seams * inside(self.body - 6, voxel))
        # Ribs fall towards the front; the modulus repeats them every 26 mm.
        height = np.mod(z + 0.42 * y - 0.06 * np.abs(x) + 6, 26) - 13
        shell = self.cavity + 5.5
        ribs = np.minimum(4.2 - np.abs(shell), 5.2 - np.abs(height))
        gap = np.maximum(np.abs(x) - 30, -y)  # cartilage at the front is no bone
        ribs = np.minimum.reduce([ribs, gap, z + 128])
        breast = np.minimum.reduce([space.ellipsoid((0, 88, 20), (17, 7, 78), 2.6), z + 60])
        tilted = np.abs(x)
        blade_u, blade_v = 0.86 * (tilted - 100) + 0.5 * (y + 62), -0.5 * (tilted - 100) + 0.86 * (y + 62)
        blade = 1 - np.sqrt((blade_u / 40) ** 2 + (blade_v / 5) ** 2 + ((z - 70) / 58) ** 2)
        blade = blade * 5
        collar = 1 - np.sqrt(
            ((tilted - 66) / 52) ** 2 + ((y - 44 + 0.3 * tilted - 20) / 6.5) ** 2 + ((z - 112) / 6.5) ** 2
        )
        collar = collar * 6.5
        head_of_arm = space.pair((152, -8, 136), (22, 22, 24))
        bones = np.maximum.reduce([ribs, breast, blade, collar, head_of_arm])
        marrow = inside(bones - 2.0, voxel)
        disc = np.abs(np.mod(z + 4, 27) - 13.5) - 10.5  # above 0 in the discs between vertebrae
        vertebra = space.ellipsoid((0, -72, 0), (19, 15, 900), 2.6)
        spine = np.minimum(vertebra, -disc)
        process = np.minimum(np.maximum.reduce([
            space.ellipsoid((0, -104, 0), (4, 16, 900)), space.ellipsoid((0, -94, 0), (32, 5, 900))
        ]), 6 - np.abs(np.mod(z + 12, 27) - 13.5))  # fmt: skip
        ring = np.minimum(10.5 - np.hypot(x, y + 94), np.hypot(x, y + 94) - 7.5)
        canal = 7.5 - np.hypot(x, y + 94)
        back_bones = np.maximum(process, np.minimum(ring, 9 - np.abs(np.mod(z + 12, 27) - 13.5)))
        spongy = 0.55 + 0.12 * _texture(rng, axes, 9)
        core = inside(spine - 2.0, voxel)
        neck = np.clip((z - 95) / 25, 0, 1)  # above the lungs, muscles take the place of fat
        inner_fat = (1 - 0.25 * inside(_texture(rng, axes, 24) - 0.6, 0.8)) * (1 - neck * (1 - seams))
        return [
            (inside(couch, 2.0), {"couch": 1.0}),
            (inside(self.body, voxel), {"fat": fat, "muscle": 1 - fat}),
            (inside(self.cavity, voxel), {"fat": inner_fat, "muscle": 1 - inner_fat}),
            (inside(bones, voxel) * inside(self.body - 3, voxel), {"bone": 1 - marrow, "marrow": marrow}),
            (inside(vertebra, voxel), {"muscle": 1.0}),
            (inside(spine, voxel), {"bone": (1 - core) * 0.7, "marrow": core * spongy + (1 - core) * 0.3, "fat": core * (1 - spongy)}),
            (inside(back_bones, voxel), {"bone": 0.7, "marrow": 0.3}),
            (inside(canal, voxel), {"fluid": 1.0}),
        ]  # fmt: skip

    def _middle(self, voxel: float) -> list[Layer]:
        """Heart in its fat, great vessels, gullet, windpipe."""
        space = self.space
        chambers = np.maximum.reduce([
            space.ellipsoid((-36, 26, -32), (32, 24, 34)),
            space.ellipsoid((2, 40, -22), (26, 17, 32)),
            space.ellipsoid((30, 14, -14), (18, 22, 26)),
            space.ellipsoid((-10, -14, -4), (26, 16, 24)),
        ])  # fmt: skip
        gullet = space.ellipsoid((-6, -40, 0), (8, 6, 500))
        return [
            (inside(gullet, voxel), {"muscle": 1.0}),
            (inside(self.heart, voxel), {"muscle": 1.0}),
            (inside(np.minimum(chambers, self.heart - 3), voxel), {"blood": 1.0}),
            (inside(self.vessels + 1, voxel), {"muscle": 1.0}),
            (inside(self.vessels, voxel), {"blood": 1.0}),
            (inside(self.windpipe + 1.8, voxel), {"muscle": 1.0}),
            (inside(self.windpipe, voxel), {}),
        ]

    def _belly(self, voxel: float) -> list[Layer]:
        """Diaphragm, liver with its veins, spleen, stomach with gas at its front."""
        rng, axes = self.rng, self.axes
        veins = inside(np.minimum(0.28 - np.abs(_texture(rng, axes, 60)), 0.34 - np.abs(_texture(rng, axes, 60))), 0.2)
        gas = inside(self.space.y - 38, 1.5)
        content = np.clip(0.6 + 0.25 * _texture(rng, axes, 30), 0, 1)
        below = np.minimum(self.domes, self.cavity)
        keep = inside(-self.not_belly, voxel)
        loose = 1 - 0.3 * inside(_texture(rng, axes, 26) - 0.8, 0.6)
        return [
            (inside(below, voxel) * keep, {"muscle": 1.0}),
            (inside(below - 3, voxel) * keep, {"fat": loose, "muscle": 1 - loose}),
            (inside(self.spleen, voxel) * keep, {"spleen": 1.0}),
            (inside(self.stomach, voxel) * keep, {"muscle": 1.0}),
            (inside(self.stomach - 4, voxel) * (1 - gas) * keep, {"fluid": 1 - 0.4 * content, "muscle": 0.4 * content}),
            (inside(self.stomach - 4, voxel) * gas * keep, {}),
            (inside(self.liver, voxel), {"liver": 1 - veins, "blood": veins}),
        ]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is placed in the lungs, in mm; the same for every grid."""

    vessels: list[Tube]
    airways: list[Tube]
    clots: list[Tube]
    nodules: tuple[Nodule, ...]
    lookalikes: NDArray[np.float64]

    @classmethod
    def draw(cls, key: Sequence[int]) -> Plan:
        """The plan of one subject; `key` as for `Chest`."""
        spacing = [length / side for length, side in zip(FIELD_OF_VIEW, _REFERENCE, strict=True)]
        axes = grid_axes(_REFERENCE, spacing, CENTRE)
        lungs = Chest(key, axes).lungs
        rng = np.random.default_rng([*key, 2])
        places = np.argwhere(lungs > 4)
        points = np.stack([axis[i] for axis, i in zip(axes, places.T, strict=True)], axis=1).astype(np.float64)
        depth = lungs[tuple(places.T)]
        vessels, airways, clots, forks = [], [], [], []
        for side in (1, -1):
            own = points[side * points[:, 0] > 0]
            for kind, root in (("artery", (40.0, -8.0, 26.0)), ("vein", (34.0, 0.0, 4.0))):
                start = np.array([side * root[0], root[1], root[2]])
                chosen = (
                    own[rng.permutation(len(own))[:260]] + rng.uniform(-0.5, 0.5, (min(260, len(own)), 3)) * spacing
                )
                tree = _tree(start, chosen, 0.85 if kind == "artery" else 0.8)
                vessels += tree
                if kind == "artery":
                    large = sorted(tree, key=lambda tube: -tube[2])
                    airways += [_beside(tube) for tube in large[:22]]
                    clots += [(a, b, 0.72 * r) for a, b, r in large[1:9]]
                    forks += [tube[1] for tube in large[6:46]]
        # The first clot is a large one, in a main branch.
        right, left = ((12.0, 4.0, 38.0), (44.0, -8.0, 24.0)), ((-20.0, 14.0, 38.0), (-44.0, -10.0, 28.0))
        main = [(np.array(start), np.array(end), 5.0) for start, end in (right, left)]
        main = [main[i] for i in rng.permutation(2)]
        clots = [main[0], *(clots[i] for i in rng.permutation(len(clots))), main[1]]
        nodules = _nodules(rng, points, depth, vessels)
        taken = np.array([nodule.centre for nodule in nodules]).reshape(-1, 3)
        others = [place for place in forks if not len(taken) or np.linalg.norm(taken - place, axis=1).min() > 15]
        kept = [others[i] for i in rng.permutation(len(others))[:24]]
        return cls(vessels, airways, clots, nodules, np.array(kept).reshape(-1, 3))


def _nodules(
    rng: np.random.Generator, points: NDArray[np.float64], depth: Field, vessels: Sequence[Tube]
) -> tuple[Nodule, ...]:
    """One to five, none in another or in a large vessel."""
    found: list[Nodule] = []
    thick = np.array([(a + b) / 2 for a, b, radius in vessels if radius > 3]).reshape(-1, 3)
    count = int(rng.integers(1, 6))
    for i in rng.permutation(len(points)):
        if len(found) == count:
            break
        diameter = float(np.exp(rng.uniform(math.log(6), math.log(24))))
        kind = _KINDS[int(rng.integers(4))]
        place = points[i] + rng.uniform(-3, 3, 3)
        at_wall = depth[i] < 0.5 * diameter + 2
        if at_wall != (kind == "pleural") or depth[i] < 0.2 * diameter:
            continue
        if len(thick) and np.linalg.norm(thick - place, axis=1).min() < 0.5 * diameter + 6:
            continue
        if any(math.dist(place, other.centre) < 0.5 * (diameter + other.diameter) + 8 for other in found):
            continue
        found.append(Nodule((float(place[0]), float(place[1]), float(place[2])), diameter, kind))
    return tuple(found)


def _tree(root: NDArray[np.float64], points: NDArray[np.float64], thinnest: float) -> list[Tube]:
    """Connect points to a root as vessels do: each to the node that makes the way short, thickness from what is behind."""
    order = np.argsort(np.linalg.norm(points - root, axis=1))
    nodes = np.concatenate([root[None], points[order]])
    way, parents = np.zeros(len(nodes)), np.zeros(len(nodes), dtype=int)
    for i in range(1, len(nodes)):
        length = np.linalg.norm(nodes[:i] - nodes[i], axis=1)
        parents[i] = int(np.argmin(length + 0.35 * way[:i]))
        way[i] = way[parents[i]] + length[parents[i]]
    behind = np.ones(len(nodes))
    for i in range(len(nodes) - 1, 0, -1):
        behind[parents[i]] += behind[i]
    # Murray's law: the cube of the radius is what is carried.
    return [(nodes[parents[i]], nodes[i], thinnest * float(behind[i]) ** (1 / 2.8)) for i in range(1, len(nodes))]


def _beside(tube: Tube) -> Tube:
    """The airway next to an artery."""
    start, end, radius = tube
    shift = np.array([0.0, -0.6, 0.8]) * (1.9 * radius + 1)
    return start + shift, end + shift, 0.62 * radius


def _texture(
    rng: np.random.Generator, axes: Sequence[Field], wavelength: float, stretch: Sequence[float] = (1, 1, 1)
) -> Field:
    """A random field of fewer waves than usual, which is enough for what it roughens and twice as fast."""
    return smooth_field(rng, axes, wavelength, count=22, stretch=stretch)


def tubes_distance(axes: Sequence[Field], tubes: Sequence[Tube]) -> Field:
    """Distance to the nearest of some tubes, positive inside; at most some mm away from them, then -9."""
    found = np.full([len(axis) for axis in axes], -9.0, dtype=np.float32)
    for start, end, radius in tubes:
        reach = radius + 6
        box = tuple(
            slice(*np.searchsorted(axis, (min(a, b) - reach, max(a, b) + reach)))
            for axis, a, b in zip(axes, start, end, strict=True)
        )
        part = [axis[piece] for axis, piece in zip(axes, box, strict=True)]
        if not all(len(axis) for axis in part):
            continue
        p = [axis - np.float32(a) for axis, a in zip(np.ix_(*part), start, strict=True)]
        along = (end - start).astype(np.float32)
        share = np.clip(sum(c * d for c, d in zip(p, along, strict=True)) / max(float(along @ along), 1e-6), 0, 1)
        square = sum((c - share * d) ** 2 for c, d in zip(p, along, strict=True))
        np.maximum(found[box], radius - np.sqrt(square), out=found[box])
    return found


def ball(axes: Sequence[Field], nodule: Nodule) -> tuple[tuple[slice, ...], Field]:
    """The part of a grid around a nodule, and the distance to its surface there, positive inside."""
    reach = 0.5 * nodule.diameter + 8
    box = tuple(
        slice(*np.searchsorted(axis, (centre - reach, centre + reach)))
        for axis, centre in zip(axes, nodule.centre, strict=True)
    )
    part = np.ix_(*(axis[piece] for axis, piece in zip(axes, box, strict=True)))
    square = sum((axis - centre) ** 2 for axis, centre in zip(part, nodule.centre, strict=True))
    return box, np.asarray(0.5 * nodule.diameter - np.sqrt(square))


def _column(x: Field, y: Field, half_x: Field | float, half_y: Field | float, power: float) -> Field:
    """Distance (mm, along rays from the middle of each slice) to a tube whose cross-section changes along z."""
    level = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** (1 / power)
    radius = np.hypot(x, y)
    return np.asarray(radius / np.maximum(level, 1e-3) - radius)


def _pairs(places: Sequence[Sequence[float]]) -> list[tuple[Sequence[float], Sequence[float]]]:
    return list(pairwise(places))
