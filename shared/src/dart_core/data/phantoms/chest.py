"""Chest radiographs with findings: made-up frontal pictures of five made-up data sets, for classification.

A picture is the sum of what the beam passes: body, lungs, heart and great vessels, bones, vessels, breasts. Findings change
the shapes (a wide heart, a flat diaphragm) or add to the sum (an opacity, fluid, a tube). The data sets differ in the way they
take and store pictures, and in what they label: many findings, one, or classes of which each picture has one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog.chestxray14 import LABELS as CHESTXRAY14_LABELS
from dart_core.data.catalog.chexpert import LABELS as CHEXPERT_LABELS
from dart_core.data.catalog.rsna_pneumonia import CLASSES as RSNA_CLASSES
from dart_core.data.catalog.shenzhen import LABEL as SHENZHEN_LABEL
from dart_core.data.catalog.vindr_cxr import LABELS as VINDR_LABELS
from dart_core.data.phantoms.findings import add, change
from dart_core.data.phantoms.scanner import split_of
from dart_core.data.phantoms.shapes import Field
from dart_core.data.phantoms.thorax import Thorax
from dart_core.errors import SettingError


@dataclass(frozen=True)
class ChestSite:
    """How a data set takes and stores its pictures."""

    labels: tuple[str, ...]
    """What it labels."""
    centre: float
    """Attenuation shown as middle grey; 1 is the soft tissue in the middle of the body."""
    width: float
    """Range of attenuation over which grey rises from dark to bright."""
    bone: float
    """Contrast of bone: less at high tube voltage."""
    noise: float
    """Standard deviation of the noise, relative to the whole range of grey."""
    blur: float
    """Standard deviation of the point spread in mm."""
    zoom: float
    """Size of the body in the picture."""
    bedside: float
    """Share of pictures taken in bed, from the front: wider heart, higher diaphragm, tilted body."""
    marker: bool
    """Whether a letter L marks the left side, and the collimator leaves a black border."""
    exclusive: bool = False
    """Whether the labels are classes of which each picture has one."""


CHEST_SITES: dict[str, ChestSite] = {
    "chexpert": ChestSite(CHEXPERT_LABELS, 0.72, 0.72, 1.25, 0.020, 0.9, 0.98, 0.6, False),
    "chestxray14": ChestSite(CHESTXRAY14_LABELS, 0.84, 1.15, 0.85, 0.030, 1.6, 1.06, 0.25, True),
    "shenzhen": ChestSite((SHENZHEN_LABEL,), 0.78, 0.90, 1.05, 0.015, 0.8, 1.02, 0.0, True),
    "vindr-cxr": ChestSite(VINDR_LABELS, 0.80, 1.00, 0.95, 0.022, 1.1, 1.0, 0.1, False),
    "rsna-pneumonia": ChestSite(RSNA_CLASSES, 0.86, 1.10, 0.85, 0.032, 1.6, 1.05, 0.4, True, exclusive=True),
}
"""The made-up data sets, named as CheXpert, ChestX-ray14, Shenzhen, VinDr-CXR and RSNA Pneumonia, with their labels."""

_HEALTHY = ("No Finding", "No finding", "Normal")
_SEEN_AS = {
    "Pleural effusion": ("Pleural Effusion",),
    "Lung tumor": ("Mass",),
    "Other diseases": ("Fibrosis", "Emphysema", "Enlarged Cardiomediastinum"),
    "No Lung Opacity / Not Normal": ("Cardiomegaly", "Mass", "Fibrosis", "Emphysema"),
}
"""Labels that stand for other findings; where there are several, the source of the finding chooses one."""
_KNOWN = list(dict.fromkeys(name for site in CHEST_SITES.values() for name in site.labels))


def chest_xray(
    subject: int,
    site: str,
    findings: Sequence[str] = (),
    shape: tuple[int, int] = (128, 128),
    seed: int = 0,
    visit: int = 0,
) -> NDArray[np.uint8]:
    """Make a frontal chest radiograph.

    Args:
        subject: number of the subject; the healthy anatomy depends on this and `seed` alone.
        site: one of CHEST_SITES.
        findings: what is to be seen; names from the labels of any site. None of them or "No Finding": healthy.
        shape: pixels (H, W).
        seed: changes all subjects.
        visit: pictures of one subject differ in position, and in place and size of the findings.

    Returns:
        uint8 (H, W), the patient's right on the left.

    Raises:
        SettingError: an unknown site or finding, or a side below 16 pixels.
    """
    if site not in CHEST_SITES:
        raise SettingError(f"no data set {site!r}", remedy=f"choose from {', '.join(CHEST_SITES)}")
    if len(shape) != 2 or min(shape) < 16:
        raise SettingError(f"a radiograph of shape {tuple(shape)}", remedy="give two sides of at least 16 pixels")
    _check_findings(findings)
    model, key = CHEST_SITES[site], [seed, subject, visit, 1 + list(CHEST_SITES).index(site)]
    rng = np.random.default_rng(key)
    bedside = bool(rng.random() < model.bedside)
    chest = Thorax.draw(np.random.default_rng([seed, subject]), rng, shape, model.zoom, bedside)
    # A source of its own for each finding: with or without one, everything else in the picture stays the same.
    sources = {name: np.random.default_rng([*key, 1 + _KNOWN.index(name)]) for name in findings}
    shown = {name: _shown(name, source) for name, source in sources.items()}
    for name, source in sources.items():
        change(chest, shown[name], source)
    attenuation = chest.healthy(np.random.default_rng([seed, subject, 1]), model.bone)
    for name, source in sources.items():
        add(chest, shown[name], attenuation, source, model.bone)
    return _expose(model, chest, attenuation, rng)


def _shown(name: str, source: np.random.Generator) -> str:
    choices = _SEEN_AS.get(name, (name,))
    return choices[0] if len(choices) == 1 else choices[int(source.integers(len(choices)))]


def write_chest_xrays(
    folder: str | os.PathLike[str],
    site: str = "chexpert",
    count: int = 60,
    labels: Sequence[str] | None = None,
    shape: tuple[int, int] = (128, 128),
    seed: int = 0,
) -> Path:
    """Write radiographs of one data set as PNG files, with a datalist.

    Every third subject has two pictures. About a quarter of the pictures are healthy (half of them where there is one label);
    the others show one to three findings, and each label is about as frequent as the others, also in a small set. Where
    labels are classes, each picture shows one, all equally often. Of the subjects one fifth (at least
    one, when there are three or more) each is validation and test.

    Args:
        folder: where images/ and datalist.csv go.
        site: one of CHEST_SITES.
        count: number of pictures.
        labels: the label columns; None: those of the site. "No Finding" is 1 where all others are 0, and so is whatever else
            the site calls healthy.
        shape: pixels (H, W).
        seed: changes all pictures.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, subject, site, split, and one of 0 and 1 per label.

    Raises:
        SettingError: an unknown site or label, no picture or no label to write, or too small a shape.
        OutputError: the files cannot be written.
    """
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.images import write_image

    if site not in CHEST_SITES:
        raise SettingError(f"no data set {site!r}", remedy=f"choose from {', '.join(CHEST_SITES)}")
    columns = tuple(dict.fromkeys(CHEST_SITES[site].labels if labels is None else labels))
    _check_findings(columns)
    exclusive = CHEST_SITES[site].exclusive and labels is None
    drawn = [name for name in columns if name not in _HEALTHY or exclusive]
    if count < 1 or not drawn:
        raise SettingError("no picture or no label to write", remedy="give at least one of each")
    folder = Path(folder)
    rng = np.random.default_rng([seed, 1 + list(CHEST_SITES).index(site), len(drawn)])
    deck: list[str] = []
    subjects = [number for number in range(count) for _ in range(2 if number % 3 == 0 else 1)][:count]
    first = 1000 * (1 + list(CHEST_SITES).index(site))
    rows = []
    for place, number in enumerate(subjects):
        wanted = 0 if rng.random() < (0.5 if len(drawn) == 1 else 0.25) else int(rng.integers(1, 4))
        wanted = 1 if exclusive else wanted
        while len(deck) < wanted:  # labels are dealt from shuffled decks, so that none is rare
            deck += [drawn[i] for i in rng.permutation(len(drawn))]
        findings = set(deck[:wanted])
        del deck[:wanted]
        visit = int(place > 0 and subjects[place - 1] == number)
        ordered = [name for name in drawn if name in findings]
        picture = chest_xray(first + number, site, ordered, shape, seed, visit)
        rows.append(
            Row(
                image=write_image(folder / "images" / f"{first + number}_{visit}.png", picture),
                subject=f"phantom{first + number}",
                site=site,
                split=split_of(number, subjects[-1] + 1),
                labels={name: str(int(name in findings or (name in _HEALTHY and not findings))) for name in columns},
            )
        )
    return Datalist(tuple(rows)).write(folder / "datalist.csv")


def _check_findings(findings: Sequence[str]) -> None:
    for name in findings:
        if name not in _KNOWN:
            nearest = difflib.get_close_matches(name, _KNOWN, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise SettingError(f"no finding {name!r}", remedy=f"choose from {', '.join(_KNOWN)}{hint}")


def _expose(model: ChestSite, chest: Thorax, attenuation: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn attenuation into grey: blur, exposure, window, noise, border and marker."""
    from scipy import ndimage

    pixel = abs(float(chest.v[1, 0] - chest.v[0, 0])) or 1.0
    blurred = ndimage.gaussian_filter(attenuation, model.blur / pixel)
    exposure = rng.normal(0, 0.05)
    grey = 1 / (1 + np.exp(-4 * (blurred - model.centre + exposure) / model.width))
    dark = 1 / (1 + np.exp(4 * (model.centre - exposure) / model.width))
    grey = (grey - dark) / (1 - dark) * rng.uniform(0.92, 1.0)
    grey = grey + model.noise * (0.4 + 0.6 * grey) * rng.standard_normal(grey.shape)
    if model.marker:
        height, width = grey.shape
        border = rng.integers(0, max(1, min(grey.shape) // 24), 4) + 1
        frame = np.zeros(grey.shape, dtype=bool)
        frame[border[0] : height - border[1], border[2] : width - border[3]] = True
        size = max(3, min(grey.shape) // 18)
        top, left = height // 12 + border[0], width - width // 9 - border[3]
        stroke = max(1, size // 4)
        grey[top : top + size, left : left + stroke] = 0.96
        grey[top + size - stroke : top + size, left : left + max(2, int(0.65 * size))] = 0.96
        grey = np.where(frame, grey, 0.0)
    return np.asarray(np.rint(255 * np.clip(grey, 0, 1)), dtype=np.uint8)
