"""Files of classifiers, and which output answers which label."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from dart_core.checkpoint import save_weights
from dart_core.data.datalist import Row
from dart_core.data.images import write_image
from dart_core.errors import CheckpointError, InputError
from mmtl_octl.classifiers import (
    Classifier,
    build,
    load_classifier,
    outputs_for,
    predict_classifier,
    save_classifier,
    starting_network,
)
from mmtl_octl.pictures import Pictures
from mmtl_octl.xray import ChestNet, SpotTuneChestNet

MODEL = Classifier("ChestNet", {"one": ["a", "b"]}, 32, "patient", "adam", 0, ["one"], size=[4, [1, 1, 1, 1], 8])


def test_files_know_what_they_hold(tmp_path: Path) -> None:
    for kind in ("ChestNet", "SpotTuneChestNet"):
        model = Classifier(kind, {"one": ["a"], "two": ["b", "c"]}, 64, "image", "sgd", 7, ["one"], "two", "octl", 12,
                           [4, [1, 1, 1, 1], 8])  # fmt: skip
        torch.manual_seed(0)
        network = build(model)
        save_classifier(tmp_path, network, model)
        loaded, found = load_classifier(tmp_path)
        assert found == model
        assert type(loaded) is type(network) is {"ChestNet": ChestNet, "SpotTuneChestNet": SpotTuneChestNet}[kind]
        x = torch.rand(2, 1, 32, 32)
        assert torch.equal(loaded.eval()(x), network.eval()(x))
        assert loaded.label_sets == {"one": ("a",), "two": ("b", "c")}
        assert loaded.columns("two") == slice(1, 3)


def test_files_of_something_else(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", torch.nn.Linear(1, 1), {"mmtl-octl": '{"network": "ResidualUNet2d"}'})
    with pytest.raises(CheckpointError, match="is no classifier of mmtl-octl; give a run folder of"):
        load_classifier(tmp_path)
    save_weights(tmp_path / "model.safetensors", torch.nn.Linear(1, 1), {})
    with pytest.raises(CheckpointError, match="is no classifier"):
        load_classifier(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        load_classifier(tmp_path.parent)


def test_fine_tuning_starts_from_the_source_with_a_new_head() -> None:
    torch.manual_seed(0)
    source = build(MODEL)
    assert isinstance(source, ChestNet)
    before = copy.deepcopy(source.state_dict())
    target = Classifier("ChestNet", {"one": ["a", "b"], "two": ["c"]}, 32, "patient", "adam", 0, ["one"], "two",
                        size=MODEL.size)  # fmt: skip
    network = starting_network(target, source)
    assert list(network.label_sets) == ["one", "two"]
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())
    assert list(source.label_sets) == ["one"]
    assert starting_network(target, None)(torch.rand(2, 1, 32, 32)).shape == (2, 3)


def test_outputs_by_data_set_and_by_name() -> None:
    sets = {"one": ("Mass", "Edema"), "two": ("Edema", "Hernia")}
    assert outputs_for(sets, "one") == {"Mass": 0, "Edema": 1}
    assert outputs_for(sets, "two", ("Hernia", "Edema")) == {"Hernia": 3, "Edema": 2}
    assert outputs_for(sets, "two", ("Mass", "Edema")) == {"Edema": 2}  # its own head alone
    assert outputs_for(sets, "three", ("Hernia", "Nodule", "Edema")) == {"Hernia": 3, "Edema": 1}
    assert outputs_for(sets, "three") == {"Mass": 0, "Edema": 1, "Hernia": 3}
    with pytest.raises(InputError, match=r"no output for any label of three \(Nodule\); it knows: Edema, Hernia, Mass"):
        outputs_for(sets, "three", ("Nodule",))


def test_scores_are_those_of_the_whole_picture_whatever_the_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(MODEL)
    network(torch.rand(8, 1, 32, 32))
    rng = np.random.default_rng(0)
    greys = [rng.integers(0, 255, (32, 32), dtype=np.uint8) for _ in range(5)]
    rows = tuple(Row(write_image(tmp_path / f"{i}.png", grey)) for i, grey in enumerate(greys))
    pictures = Pictures("one", ("a", "b"), rows, np.zeros((5, 2), np.float32))
    scores = predict_classifier(network, pictures, 32, batch_size=2)
    assert network.training
    network.eval()
    expected = network(torch.from_numpy(np.stack(greys))[:, None].float() / 255).sigmoid().detach().numpy()
    assert scores.shape == (5, 2)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    np.testing.assert_allclose(predict_classifier(network, pictures, 32, batch_size=5), scores, rtol=1e-4)
