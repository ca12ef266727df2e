"""What tables call a method: two methods never share a name, and the paper's keep theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.settings import RunSettings
from sissi.settings import NAMES, Correction, DataSettings, DetectorSettings, Train, Training


def called(correction: Correction | None = None, training: Training | None = None, detection: DetectorSettings | None = None, edges: str = "drop") -> str:  # fmt: skip
    data = DataSettings(Path("source.csv"), Path("target.csv"), edges=edges)
    return Train(RunSettings(Path("run")), data, detection or DetectorSettings(), correction or Correction(), training or Training()).method  # fmt: skip


def test_the_papers_rows():
    assert {row: called(Correction(row)) for row in NAMES} == NAMES
    assert {row: Correction(row).name for row in NAMES} == NAMES
    assert called(Correction(start="never")) == "mixed batch, no correction"
    assert called(training=Training(learn_from="source")) == "source only"


def test_every_change_has_a_name():
    names = [called()]
    for words in (
        {"start": "validation"}, {"start": "validation", "supervised": 9}, {"background": "weak"}, {"paste": "hard"}, {"memorisation": 0.8},
        {"timing": "authors"}, {"fusion": "nms"}, {"views": "one"}, {"authors_tta": True}, {"least_score": 0.1},
        {"fusion_iou": 0.55}, {"skip_score": 0.0},
    ):  # fmt: skip
        names.append(called(Correction(**words)))
    for words in ({"turned": "ellipse"}, {"zoom": (1.5, 2.5)}, {"blur": "gaussian"}, {"augment": False}):
        names.append(called(training=Training(**words)))
        names.append(called(Correction(start="never"), Training(**words)))
        names.append(called(training=Training(learn_from="source", **words)))
    for words in (
        {"detector": "small"}, {"colours": "bgr"}, {"score": 0.1}, {"nms": 0.5}, {"detections": 100}, {"batch_norm": "frozen"},
        {"init": Path("a/model.safetensors")}, {"init": Path("b/model.safetensors")},
        {"init": Path("a/model.safetensors"), "batch_norm": "trained"},
    ):  # fmt: skip
        names.append(called(detection=DetectorSettings(**words)))
    names += [called(edges="clip"), called(training=Training(learn_from="source"), edges="clip")]
    assert len(set(names)) == len(names)


def test_a_change_without_effect_has_none():
    """Such as the fusion's numbers where nothing is fused, or a start by validation that does not take place."""
    for words in ({"supervised": 9}, {"background": "none", "timing": "authors"}, {"fusion": "nms", "skip_score": 0.0}):
        plain = {name: value for name, value in words.items() if name in ("background", "fusion")}
        assert Correction(**words).name == Correction(**plain).name
    assert called(Correction(start="never", memorisation=0.8)) == "mixed batch, no correction"
    assert called(detection=DetectorSettings(batch_norm="trained")) == called()
    weights = Path("coco.pth")
    frozen, auto = (called(detection=DetectorSettings(init=weights, batch_norm=how)) for how in ("frozen", "auto"))
    assert frozen == auto == "A+SISSI (S): from coco.pth"


@pytest.mark.parametrize("row", ["baseline", "plain-a"])
def test_nothing_is_pasted_without_a_background(row):
    with pytest.raises(ValueError, match="--paste hard without a background"):
        Correction(row, paste="hard")
    assert Correction(row, paste="hard", background="weak").blur == "weak"
