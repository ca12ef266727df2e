"""Every verb on phantoms, and every mistake a person can make: one line, exit status 2, nothing half-written."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dart_core.checkpoint import load_weights
from dart_core.data.phantoms import write_lung_ct
from dart_core.metrics import roc_auc
from dart_core.testing import assert_help_is_light
from united_ssl.commands import throughput
from united_ssl.cubes import CubeRow, read_cubes, write_cubes, write_index
from united_ssl.models import load_model, load_pretrained


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_help_imports_no_torch():
    assert_help_is_light("united_ssl", "pretrain")


# --- pretrain --------------------------------------------------------------------------------------------------------


def test_a_strategy_trains_its_steps_one_after_the_other(pretrained):
    for folder, step, carried in (
        ("step-D", "D", []), ("step-DR", "DR", ["encoder", "head"]), (".", "DRA", ["encoder", "decoder", "head"]),
    ):  # fmt: skip
        metrics = json.loads((pretrained / folder / "metrics.json").read_text())
        assert (metrics["step"], metrics["carried_over"]) == (step, carried)
        for name in ("model.safetensors", "restored.png", "report.html", "metrics.jsonl", "config.yaml"):
            assert (pretrained / folder / name).is_file()
        assert (pretrained / folder / "critic.safetensors").is_file() == (step == "DRA")
    network, model = load_pretrained(pretrained)
    assert (model.name, model.shape, network.training) == ("jigsaw ((D)+R)+A", (16, 16, 16), False)


def test_steps_start_bitwise_where_the_one_before_ended(cubes, tiny, command, tmp_path, monkeypatch):
    import united_ssl.commands

    seen = {}
    train = united_ssl.commands.train_step

    def spy(run, step, task, network, *rest):
        seen[step] = {key: value.clone() for key, value in network.state_dict().items()}
        return train(run, step, task, network, *rest)

    monkeypatch.setattr(united_ssl.commands, "train_step", spy)
    words = ("--pretext", "rotation", "--max-epochs", 1)
    assert command("pretrain", "--cubes", cubes, *tiny, *words, "--steps", "DR", "--out", tmp_path / "DR").status == 0
    init = ("--steps", "DRA", "--init-from", tmp_path / "DR", "--out", tmp_path / "DRA")
    assert command("pretrain", "--cubes", cubes, *tiny, *words, *init).status == 0
    assert list(seen) == ["D", "DR", "DRA"]
    first, second = (load_weights(tmp_path / p / "model.safetensors")[0] for p in ("DR/step-D", "DR"))
    for key, value in seen["DR"].items():
        if key.startswith(("encoder", "head")):
            assert torch.equal(value, first[key])
        else:
            assert torch.equal(value, seen["D"][key])  # the same seed
    assert all(torch.equal(value, second[key]) for key, value in seen["DRA"].items())


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("cubes", ("--pretext", "transvw", "--steps", "DR")),
        ("cubes", ("--pretext", "deep-clustering", "--clusters", 4, "--components", 4, "--steps", "joint")),
        ("cubes", ("--pretext", "rubik", "--permutations", 10, "--steps", "joint", "--adversarial", "log")),
        ("cubes", ("--pretext", "rotation", "--rotations", 24, "--steps", "joint-DR", "--genesis", "--norm", "l1")),
        (
            "large",
            ("--pretext", "rubik", "--form", "as-coded", "--permutations", 10, "--steps", "joint", "--max-epochs", 1,
             "--adversarial", "wgan-gp-as-coded", "--critic-norm", "batch", "--critic-steps", 1, "--fake-in-evaluation"),
        ),
    ],
)  # fmt: skip
def test_pretexts_and_strategies(folder, words, tiny, command, tmp_path, request):
    data = request.getfixturevalue(folder)
    assert command("pretrain", "--cubes", data, *tiny, *words, "--out", tmp_path / "run").status == 0
    network, model = load_pretrained(tmp_path / "run")
    assert model.pretext["pretext"] == words[1]
    x = read_cubes(data).stack([0])
    with torch.no_grad():
        assert network(x)[1].shape == x.shape


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cubes", "nowhere"), "there is no such folder"),
        (("--pretext", "rotation", "--masking"), "--masking is an option of --pretext rubik"),
        (("--pretext", "transvw", "--form", "as-coded"), "no as-coded form of --pretext transvw"),
        (("--pretext", "rubik", "--form", "as-coded"), "sides from 32 on that are multiples of 16"),
        (("--rotations", 24, "--form", "as-coded"), "--rotations 24 is for"),
        (
            ("--genesis", "--form", "as-coded"),
            "as-coded form of --pretext rotation has no transforms of Models Genesis",
        ),
        (("--genesis", "--form", "as-coded", "--pretext", "jigsaw"), "leave --genesis out"),
        (("--minimax",), "--minimax is a form of --adversarial log"),
        (("--halve-every", 3, "--halve-on-plateau", 2), "contradict each other"),
        (("--steps", "joint", "--init-from", "x"), "starts from scratch"),
        (("--init-from", "nowhere"), "no such file"),
        (("--critic-steps", 0), "--critic-steps is 0"),
        (("--permutations", 3000, "--pretext", "jigsaw"), "only 2144 permutations"),
        (("--norm-momentum", 0), "--norm-momentum is 0"),
        (("--width", 0), "--width is 0"),
    ],
)
def test_pretrain_refuses(words, message, cubes, tiny, command, tmp_path):
    finished = command("pretrain", "--cubes", cubes, *tiny, *words, "--out", tmp_path / "run")
    assert finished.status == 2
    assert message in finished.line
    assert not (tmp_path / "run").exists()


def test_words_are_needed_for_transvw(cubes, tiny, command, tmp_path):
    shutil.copytree(cubes, tmp_path / "cubes")
    index = tmp_path / "cubes" / "index.csv"
    rows = rows_of(index)
    index.write_text("file,place,split\n" + "".join(f"{r['file']},{r['place']},{r['split']}\n" for r in rows))
    finished = command(
        "pretrain", "--cubes", tmp_path / "cubes", *tiny, "--pretext", "transvw", "--out", tmp_path / "run"
    )
    assert finished.status == 2
    assert "--words 44" in finished.line


def test_init_from_a_later_step_is_refused(pretrained, cubes, tiny, command, tmp_path):
    finished = command(
        "pretrain", "--cubes", cubes, *tiny, "--steps", "DR", "--init-from", pretrained, "--out", tmp_path / "run"
    )
    assert finished.status == 2
    assert "is DRA, no earlier step of DR" in finished.line
    wider = ("--steps", "DRA", "--init-from", pretrained / "step-DR", "--pretext", "jigsaw", "--permutations", 10)
    finished = command("pretrain", "--cubes", cubes, *tiny, *wider, "--width", 2, "--out", tmp_path / "run")
    assert finished.status == 2
    assert "the encoder of the earlier step has other layers; give the same --width and --up" in finished.line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pretext", "rotation"), "--pretext was jigsaw there and is rotation here"),
        (("--pretext", "jigsaw", "--permutations", 20), "--permutations was 10 there and is 20 here"),
        (("--pretext", "jigsaw", "--permutations", 10, "--genesis"), "--genesis was False there and is True here"),
    ],
)
def test_init_from_another_pretext_task_is_refused(words, message, pretrained, cubes, tiny, command, tmp_path):
    given = ("--steps", "DRA", "--init-from", pretrained / "step-DR", *words, "--out", tmp_path / "run")
    finished = command("pretrain", "--cubes", cubes, *tiny, *given)
    assert finished.status == 2
    assert f"step-DR: {message}; give the pretext task of the earlier step" in finished.line
    assert not (tmp_path / "run").exists()


def test_init_from_other_orders_is_refused(cubes, tiny, command, tmp_path):
    """Those of the as-coded forms are drawn by the seed."""
    words = ("--cubes", cubes, *tiny, "--max-epochs", 1, "--pretext", "jigsaw", "--permutations", 10)
    for form, status in (("as-coded", 2), ("corrected", 0)):
        out = tmp_path / form
        assert command("pretrain", *words, "--form", form, "--steps", "D", "--out", out).status == 0
        given = ("--form", form, "--steps", "DR", "--init-from", out, "--seed", 1, "--out", tmp_path / f"{form}-DR")
        finished = command("pretrain", *words, *given)
        assert finished.status == status
        assert (tmp_path / f"{form}-DR").exists() == (status == 0)
        if status:
            assert "--seed was 0 there and is 1 here" in finished.line


def test_a_part_of_one_cube_has_no_batch_statistics(cubes, tiny, command, tmp_path):
    words = ("--head", "fully_connect", "--steps", "D", "--max-epochs", 1, "--out", tmp_path / "run")
    finished = command("pretrain", "--cubes", cubes, *tiny, "--accumulate", 3, *words)
    assert finished.status == 2
    assert "--head fully_connect normalises over the cubes of a part of a batch, and there is but one" in finished.line
    assert not (tmp_path / "run").exists()
    assert command("pretrain", "--cubes", cubes, *tiny, "--accumulate", 2, *words).status == 0


def test_throughput_is_taken_between_steps_without_validation():
    lines = [
        {"step": 0, "time": 0.0, "loss": 1}, {"step": 2, "time": 4.0, "loss": 1}, {"step": 2, "time": 9.0, "epoch": 1},
        {"step": 4, "time": 10.0, "loss": 1}, {"step": 8, "time": 11.0, "loss": 1},
    ]  # fmt: skip
    assert throughput(lines, 10) == ([2, 8], [5.0, 40.0])


# --- fine-tune, predict, evaluate, export ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(cubes, masked, pretrained, call, tiny, tmp_path_factory) -> dict[str, Path]:
    """Predictions of fine-tuned networks, by name."""
    root = tmp_path_factory.mktemp("tuned")
    found = {}
    for name, folder, words in (
        ("c-random", cubes, ()), ("c-jigsaw", cubes, ("--init", pretrained)),
        ("c-half", cubes, ("--init", pretrained, "--fraction", 0.5)), ("c-random-half", cubes, ("--fraction", 0.5)),
        ("s-random", masked, ("--flips",)),
        ("s-both", masked, ("--init", pretrained)),
        ("s-encoder", masked, ("--init", pretrained / "step-D", "--transfer", "encoder")),
    ):  # fmt: skip
        assert call("fine-tune", "--cubes", folder, *tiny, *words, "--out", root / name) == 0
        found[name] = root / f"{name}-test"
        words = ("--cubes", folder, "--model", root / name, "--device", "cpu", "--out", found[name])
        assert call("predict", *words) == 0
    for step in (".", "step-DR"):
        name = f"restored-{step.strip('.')}"
        words = ("--cubes", cubes, "--model", pretrained / step, "--device", "cpu", "--out", root / name)
        assert call("predict", *words) == 0
        found[name] = root / name
    return found


def test_fine_tuning_starts_bitwise_from_what_is_transferred(
    cubes, masked, pretrained, tiny, command, tmp_path, monkeypatch
):
    import united_ssl.tuning

    started = {}
    train = united_ssl.tuning._train

    def spy(run, given, network, *rest):
        started[run.out.name] = {key: value.clone() for key, value in network.state_dict().items()}
        return train(run, given, network, *rest)

    monkeypatch.setattr(united_ssl.tuning, "_train", spy)
    init = ("--init", pretrained)
    for name, folder, words in (
        ("s-random", masked, ()), ("s-both", masked, init), ("s-encoder", masked, (*init, "--transfer", "encoder")),
        ("c-random", cubes, ()), ("c-encoder", cubes, init),
    ):  # fmt: skip
        given = (*tiny, "--max-epochs", 1, *words, "--out", tmp_path / name)
        assert command("fine-tune", "--cubes", folder, *given).status == 0
    source, _ = load_weights(pretrained / "model.safetensors")
    for name in ("s-both", "s-encoder", "c-encoder"):
        moved = ("encoder.", "decoder.steps.") if name == "s-both" else ("encoder.",)
        fresh = started[f"{name[0]}-random"]  # the same seed
        for key, value in started[name].items():
            assert torch.equal(value, source[key] if key.startswith(moved) else fresh[key]), (name, key)
        for part in ("encoder.", "decoder.steps.")[: 2 if name[0] == "s" else 1]:
            keys = [key for key in source if key.startswith(part) and key.endswith("weight") and source[key].dim() == 5]
            assert keys
            assert all(not torch.equal(source[key], fresh[key]) for key in keys)  # so that the two can be told apart


def test_transfer(tuned, pretrained):
    source, _ = load_weights(pretrained / "model.safetensors")
    for name, task, moved in (("c-jigsaw", "classification", "encoder"), ("s-both", "segmentation", "encoder-decoder")):
        network, model = load_model(tuned[name].with_name(name))
        assert (model.task, model.transfer, model.width) == (task, moved, 1)
        own = network.state_dict()
        shared = [k for k in own if k.startswith(("encoder", "decoder.steps"))]
        assert shared
        assert all(own[k].shape == source[k].shape for k in shared)
    assert load_model(tuned["s-both"].with_name("s-both"))[1].name == "jigsaw ((D)+R)+A, encoder and decoder"
    assert load_model(tuned["s-encoder"].with_name("s-encoder"))[1].name == "jigsaw D, encoder only"
    assert load_model(tuned["c-random"].with_name("c-random"))[1].name == "random"


def test_scores(tuned, masked):
    rows = rows_of(tuned["c-random"] / "predictions.csv")
    assert len(rows) == 8
    labels, scores = (np.array([[float(row[key])] for row in rows]) for key in ("label", "logit"))
    auc = json.loads((tuned["c-random"] / "metrics.json").read_text())["auc"]["test"]
    assert auc == pytest.approx(float(roc_auc(labels, scores)[0]))
    lines = rows_of(tuned["s-random"] / "overlaps.csv")
    assert {line["class"] for line in lines} == {"1", "2"}
    iou = json.loads((tuned["s-random"] / "metrics.json").read_text())["iou"]
    for k, row in enumerate(iou[:2], 1):
        pairs = [(int(r["intersection"]), int(r["union"])) for r in lines if r["class"] == str(k)]
        assert row["pooled"] == pytest.approx(sum(a for a, _ in pairs) / sum(b for _, b in pairs))
        assert row["per_case"] == pytest.approx(np.mean([a / b if b else 1 for a, b in pairs]))


def test_evaluate(tuned, command, tmp_path):
    folders = [tuned[name] for name in tuned]
    finished = command("evaluate", "--predictions", *folders, "--device", "cpu", "--out", tmp_path / "evaluation")
    assert finished.status == 0, finished.err
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    methods = {row["method"] for row in found["over_seeds"]["auc"]}
    assert methods == {"random", "jigsaw ((D)+R)+A"}
    assert {row["task"] for row in found["over_seeds"]["auc"]} == {"cubes: classification"}
    assert "cubes: classification, random" in finished.out
    assert {row["baseline"] for row in found["label_savings"]} == {"random"}
    assert all(row["fid"] >= 0 for row in found["restorations"])
    assert len(rows_of(tmp_path / "evaluation" / "scores.csv")) == 7
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    for words in ("share of the labels", "Frechet distance", "427.6", "Table 3: with and without the decoder"):
        assert words in page


def test_targets_are_told_apart_by_their_cubes(cubes, tuned, command, tmp_path):
    """Two classifications with the same initialisations and seeds, as NCC and ECC in Table 2 and Fig. 3."""
    other = shutil.copytree(cubes, tmp_path / "ECC")
    swapped = {"val": "test", "test": "val", "train": "train"}
    rows = read_cubes(other).rows
    write_index(other, [dataclasses.replace(row, split=swapped[row.split]) for row in rows])
    folders = [tuned["c-random"], tuned["c-jigsaw"]]
    for name in ("c-random", "c-jigsaw"):
        folders.append(tmp_path / name)
        words = ("--model", tuned[name].with_name(name), "--device", "cpu", "--out", folders[-1])
        assert command("predict", "--cubes", other, *words).status == 0
    finished = command("evaluate", "--predictions", *folders, "--device", "cpu", "--out", tmp_path / "evaluation")
    assert finished.status == 0, finished.err
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    rows = {(row["task"], row["method"]): row["mean"] for row in found["over_seeds"]["auc"]}
    assert len(rows) == 4
    for folder, task in zip(folders, ("cubes", "cubes", "ECC", "ECC"), strict=True):
        content = json.loads((folder / "metrics.json").read_text())
        assert rows[f"{task}: classification", content["model"]["name"]] == pytest.approx(content["auc"]["test"])
    assert {(row["task"], row["method"]) for row in found["compared"]["auc"]} == {
        ("cubes: classification", "jigsaw ((D)+R)+A"), ("ECC: classification", "jigsaw ((D)+R)+A")
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "measure"), [("c", "auc"), ("s", "iou")])
def test_test_cubes_alone_are_scored(kind, measure, cubes, masked, tuned, command, tmp_path):
    """Whatever `predict --split` has put beside them."""
    model = tuned[f"{kind}-random"].with_name(f"{kind}-random")
    words = ("--cubes", cubes if kind == "c" else masked, "--model", model, "--device", "cpu")
    scores = {}
    for split in ("all", "val"):
        assert command("predict", *words, "--split", split, "--out", tmp_path / split).status == 0
    for name, folder in (("test", tuned[f"{kind}-random"]), ("all", tmp_path / "all")):
        out = tmp_path / f"evaluation-{name}"
        assert command("evaluate", "--predictions", folder, "--device", "cpu", "--out", out).status == 0
        scores[name] = rows_of(out / "scores.csv")[0]
    for column in (measure, "cubes", *(("iou_per_case",) if kind == "s" else ())):
        assert scores["all"][column] == scores["test"][column]
    assert scores["all"]["cubes"] == "8"
    finished = command("evaluate", "--predictions", tmp_path / "val", "--device", "cpu", "--out", tmp_path / "none")
    assert finished.status == 2
    assert "val: holds no test cube; run `united-ssl predict` with --split test" in finished.line
    assert not (tmp_path / "none").exists()


def test_label_savings_go_to_the_largest_share_of_the_baseline():
    """Shares that the two do not have in common; the baseline's curve over its seeds ends with 0.8."""
    from united_ssl.evaluation import saving_rows

    points = {
        "random": {0.2: (0.5,), 0.6: (0.7,), 0.8: (0.7, 0.9)},
        "ours": {0.2: (0.6,), 0.4: (0.7,), 0.6: (0.9,)},
        "late": {0.8: (0.7,), 1.0: (0.9,)},
        "once": {1.0: (0.9,)},
    }
    results = [
        {"task": "t", "method": name, "fraction": f, "seed": seed, "auc": value}
        for name, curve in points.items() for f, values in curve.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    found = {
        row["method"]: row["saving"] for row in saving_rows(results, "random", "auc") if row["baseline"] == "random"
    }
    assert found == {"ours": pytest.approx(1 - 0.5 / 0.8), "late": pytest.approx(1 - 0.9 / 0.8)}


def test_evaluate_with_an_extractor(tuned, command, tmp_path):
    from onnx import TensorProto, checker, helper, save

    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["square"], ["power"], axes=[2, 3], keepdims=0),
        helper.make_node("Concat", ["mean", "power"], ["features"], axis=1),
    ]
    ends = value("x", TensorProto.FLOAT, ["n", 3, "h", "w"]), value("features", TensorProto.FLOAT, ["n", 6])
    graph = helper.make_graph(nodes, "mean", [ends[0]], [ends[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    save(model, tmp_path / "mean.onnx")
    words = ("--predictions", tuned["restored-"], "--extractor", tmp_path / "mean.onnx", "--device", "cpu")
    assert command("evaluate", *words, "--out", tmp_path / "out").status == 0
    row = json.loads((tmp_path / "out" / "metrics.json").read_text())["restorations"][0]
    sets = [np.load(tuned["restored-"] / f"{name}.npy").astype(float) for name in ("original", "restored")]
    features = [
        np.concatenate(
            [np.repeat(s.mean((1, 2)).reshape(-1, 1), 3, 1), np.repeat((s**2).mean((1, 2)).reshape(-1, 1), 3, 1)], 1
        )
        for s in sets
    ]
    from united_ssl import frechet_distance

    assert row["fid"] == pytest.approx(frechet_distance(*features), rel=1e-3)


def test_export_a_fine_tuned_network(tuned, command, tmp_path):
    import onnxruntime

    finished = command("export", "--model", tuned["c-jigsaw"].with_name("c-jigsaw"), "--out", tmp_path / "net.onnx")
    assert finished.status == 0, finished.err
    network, _ = load_model(tuned["c-jigsaw"].with_name("c-jigsaw"))
    x = torch.rand(5, 1, 16, 16, 16)
    (found,) = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"cube": x.numpy()})
    with torch.no_grad():
        assert np.allclose(found, network(x).numpy(), atol=1e-4)
    assert (
        "is there already"
        in command("export", "--model", tuned["c-jigsaw"].with_name("c-jigsaw"), "--out", tmp_path / "net.onnx").line
    )


def test_export_a_pretrained_network(pretrained, command, tmp_path):
    import onnxruntime

    assert command("export", "--model", pretrained, "--out", tmp_path / "net.onnx").status == 0
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    features, restored = session.run(None, {"cube": np.zeros((2, 1, 16, 16, 16), np.float32)})
    assert features.shape == (2, 16)
    assert restored.shape == (2, 1, 16, 16, 16)


def test_fractions_are_nested():
    from united_ssl.tuning import fraction_of

    small, large = (set(fraction_of(40, f, 3).tolist()) for f in (0.1, 0.4))
    assert len(small) == 4
    assert len(large) == 16
    assert small < large
    assert fraction_of(40, 1.0, 3).tolist() == list(range(40))


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("fine-tune", ("--task", "segmentation"), "some cubes have no masks"),
        ("fine-tune", ("--fraction", 0), "--fraction is 0"),
        ("fine-tune", ("--init", "PRETRAINED", "--width", 2), "--width is 2, that of the pretrained network 1"),
        ("fine-tune", ("--init", "TUNED"), "is a fine-tuned network"),
        ("predict", ("--model", "PRETRAINED/step-D"), "pretrained without restoration"),
        ("predict", ("--model", "nowhere"), "no such file"),
        ("predict", ("--model", "PRETRAINED", "--cubes", "LARGE"), "the cubes have 32 x 32 x 32 voxels, those of the training"),
        ("evaluate", ("--predictions", "PRETRAINED"), "cannot be read as predictions"),
        ("export", ("--model", "PRETRAINED/critic.safetensors"), "is no network of united-ssl"),
    ],
)  # fmt: skip
def test_refusals(verb, words, message, cubes, large, pretrained, tuned, tiny, command, tmp_path):
    places = {"PRETRAINED": pretrained, "TUNED": tuned["c-random"].with_name("c-random"), "LARGE": large}
    given = []
    for word in words:
        name, _, rest = str(word).partition("/")
        given.append(places[name] / rest if name in places else word)
    flags = {
        "fine-tune": ("--cubes", cubes, *tiny), "predict": () if "--cubes" in given else ("--cubes", cubes),
        "evaluate": (), "export": (),
    }[verb]  # fmt: skip
    if verb == "fine-tune" and "--init" in given:
        flags = tuple(w for i, w in enumerate(flags) if w != "--width" and flags[i - 1] != "--width")
    out = tmp_path / ("net.onnx" if verb == "export" else "out")
    finished = command(verb, *flags, *given, "--out", out)
    assert finished.status == 2
    assert message in finished.line
    assert not out.exists()


def test_decoder_of_step_d_is_not_transferred(masked, pretrained, command, tmp_path):
    words = ("--init", pretrained / "step-D", "--device", "cpu", "--out", tmp_path / "run")
    finished = command("fine-tune", "--cubes", masked, *words)
    assert finished.status == 2
    assert "the decoder of a run of step D is untrained; give --transfer encoder" in finished.line


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 3), (0, 5)])
def test_patience_counts_as_keras_does(patience, epochs, cubes, tiny, command, tmp_path, monkeypatch):
    """The first epoch is the best one; the training ends with the last of so many after it."""
    import united_ssl.tuning

    monkeypatch.setattr(united_ssl.tuning, "scores", lambda *given: {"validation_loss": 1.0, "validation_auc": 0.5})
    words = ("--patience", patience, "--max-epochs", 5, "--out", tmp_path / "run")
    assert command("fine-tune", "--cubes", cubes, *tiny, *words).status == 0
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (content["steps"], content["best_epoch"]) == (3 * epochs, 1)


def test_labels_that_do_not_fit(tiny, command, tmp_path):
    values = np.random.default_rng(0).random((4, 16, 16, 16))
    write_cubes(tmp_path / "c" / "a.npy", values)
    for label, message in (("2", "has the label 2"), ("", "has no label"), ("x", "'x' is no label")):
        rows = [
            CubeRow(tmp_path / "c" / "a.npy", i, s, label=label) for i, s in enumerate(("train", "train", "val", "val"))
        ]
        write_index(tmp_path / "c", rows)
        finished = command("fine-tune", "--cubes", tmp_path / "c", *tiny, "--out", tmp_path / "run")
        assert finished.status == 2
        assert message in finished.line


# --- prepare, check-data ---------------------------------------------------------------------------------------------

SMALL = ("--size", 16, 16, 16, "--margin", 8, 8, 4, "--crops", 3)


def test_prepare_luna16(luna16, command, tmp_path):
    finished = command("prepare", "--data", luna16, *SMALL, "--seed", 1, "--out", tmp_path / "cubes")
    assert finished.status == 0, finished.err
    cubes = read_cubes(tmp_path / "cubes")
    assert cubes.shape == (16, 16, 16)
    splits = [row.split for row in cubes.rows]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (15, 6, 0)
    from dart_core.data.volumes import read_volume
    from united_ssl.cubes import crop_accepted, scale_hu

    for i, row in enumerate(cubes.rows[:6]):
        scan = read_volume(row.scan, "LPS").array
        x, y, z = map(int, row.corner)
        assert 8 <= x <= 80 - 16 - 1 - 8
        assert 4 <= z <= 56 - 16 - 4 - 4
        assert np.allclose(cubes.cube(i)[0], scale_hu(scan[x : x + 16, y : y + 16, z : z + 16]), atol=3e-4)
        assert crop_accepted(scan[x : x + 16, y : y + 16, z : z + 19], 16)[0]
    before = {row.file: row.file.stat().st_mtime_ns for row in cubes.rows}
    assert (
        command("prepare", "--data", luna16, *SMALL, "--seed", 1, "--out", tmp_path / "cubes", "--resume").status == 0
    )
    assert before == {file: file.stat().st_mtime_ns for file in before}
    words = ("--train-on-test", "--seed", 1, "--out", tmp_path / "as-coded")
    assert command("prepare", "--data", luna16, *SMALL, *words).status == 0
    assert sum(row.split == "train" for row in read_cubes(tmp_path / "as-coded").rows) == 18


def test_ct_with_too_few_slices(luna16, command, tmp_path):
    for words in ((), ("--words", 2)):
        finished = command(
            "prepare", "--data", luna16, "--size", 16, 16, 48, "--margin", 8, 8, 4, *words, "--out", tmp_path / "cubes"
        )
        assert finished.status == 2
        assert "no scan has room for a cube: " in finished.line
        assert "has 56 slices, cubes of 48 with a margin of 4 need 60; lower --margin or --size" in finished.line
        assert not (tmp_path / "cubes").exists()
    checked = command("check-data", "--data", luna16, "--size", 16, 16, 48, "--margin", 8, 8, 4)
    assert "note: subset0: 88 of 89 scans are missing" in checked.out
    assert checked.status == 2
    assert checked.out.count("has 56 slices") == 8
    assert "8 problems" in checked.out


def test_one_scan_without_room_is_left_out(command, tmp_path):
    for i in range(6):
        values = np.random.default_rng(i).integers(0, 100, (20, 18, 8 if i == 3 else 17)).astype(np.int16)
        (tmp_path / "mr").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "mr" / f"s{i}.nii.gz")
    words = ("--data", tmp_path / "mr", "--size", 16, 16, 16, "--crops", 2, "--out", tmp_path / "cubes")
    finished = command("prepare", *words)
    assert finished.status == 0
    assert "s3.nii.gz: has 8 slices, cubes of 16 with a margin of 0 need 16" in finished.err
    assert len(read_cubes(tmp_path / "cubes")) == 10
    assert json.loads((tmp_path / "cubes" / "metrics.json").read_text())["left_out"] == 1


def test_spacing_missing(luna16, command, tmp_path):
    shutil.copytree(luna16, tmp_path / "luna16")
    header = next((tmp_path / "luna16" / "subset6").glob("*.mhd"))  # cut after those of the training
    lines = [line for line in header.read_text().splitlines() if not line.startswith("ElementSpacing")]
    header.write_text("\n".join(lines) + "\n")
    for words in ((), ("--words", 2)):
        finished = command("prepare", "--data", tmp_path / "luna16", *SMALL, *words, "--out", tmp_path / "cubes")
        assert finished.status == 2
        assert header.name in finished.line
        assert "spacing" in finished.line.lower()
        assert not (tmp_path / "cubes").exists()


def test_prepare_candidates(luna16, command, tmp_path):
    words = ("--target", "NCC", "--size", 16, 16, 8, "--crops", 2, "--out", tmp_path / "ncc")
    assert command("prepare", "--data", luna16, *words).status == 0
    cubes = read_cubes(tmp_path / "ncc")
    assert set(cubes.labels().tolist()) == {0, 1}
    assert {row.split for row in cubes.rows} == {"train", "val", "test"}
    assert sum(row.label == "0" for row in cubes.rows) <= 2 * 8


@pytest.fixture(scope="module")
def livers(tmp_path_factory) -> Path:
    return write_lung_ct(tmp_path_factory.mktemp("liver") / "ct", ("GE",), 5, (48, 48, 32), 0, "liver")


def test_prepare_segmentation(livers, command, tmp_path):
    words = ("--target", "segment", "--size", 16, 16, 16, "--crops", 4, "--out", tmp_path / "cubes")
    assert command("prepare", "--data", livers, *words).status == 0
    cubes = read_cubes(tmp_path / "cubes")
    assert cubes.has_masks
    assert len(cubes) == 20
    assert all(cubes.mask(i).any() for i in range(0, 20, 2))  # every second one is around the liver
    checked = command("check-data", "--data", tmp_path / "cubes")
    assert checked.status == 0
    assert "no problems" in checked.out


def noise_scan(file: Path, seed: int, shape: tuple[int, int, int] = (20, 18, 17)) -> None:
    """A scan of whole grey values from 0 to 99."""
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), file)


def test_dots_in_names_of_scans(command, tmp_path):
    """Only a known ending is cut off: the series of LUNA16 begin alike, and so do scans that are numbered with a dot."""
    import SimpleITK as sitk

    from united_ssl.preparing import open_source

    folder, small = tmp_path / "scans", ("--size", 16, 16, 16, "--crops", 1, "--acceptance", "none")
    for i in range(3):
        noise_scan(folder / f"a.{i}.nii.gz", i)
    noise_scan(folder / "b.NII", 3)
    for i in range(3):
        image = sitk.GetImageFromArray(np.random.default_rng(i).integers(0, 100, (17, 18, 20)).astype(np.int16))
        sitk.WriteImage(image, str(folder / f"1.3.6.1.4.1.{i}.mhd"))
    names = {*(f"1.3.6.1.4.1.{i}" for i in range(3)), *(f"a.{i}" for i in range(3)), "b"}
    rows, _ = open_source(folder)
    assert {row.subject for row in rows} == names
    assert command("prepare", "--data", folder, *small, "--out", tmp_path / "cubes").status == 0
    cubes = read_cubes(tmp_path / "cubes").rows
    assert {row.file.name for row in cubes} == {f"{name}.npy" for name in names}
    assert {row.split for row in cubes} == {"train", "val"}


@pytest.mark.parametrize("words", [(), ("--words", 2, "--scan-size", 16, 16, 16, "--width", 1, "--max-epochs", 1)])
def test_a_truncated_scan_leaves_nothing_behind(words, command, tmp_path):
    folder, small = tmp_path / "scans", ("--size", 16, 16, 16, "--crops", 2, "--device", "cpu")
    for i in range(5):
        noise_scan(folder / f"s{i}.nii.gz", i)
    whole = (folder / "s3.nii.gz").read_bytes()
    (folder / "s3.nii.gz").write_bytes(whole[: len(whole) // 2])  # its header is good
    out = tmp_path / "cubes"
    finished = command("prepare", "--data", folder, *small, *words, "--out", out)
    assert finished.status == 2
    assert "s3.nii.gz" in finished.last_line
    assert not out.exists()
    out.mkdir()
    assert command("prepare", "--data", folder, *small, *words, "--out", out).status == 2
    assert list(out.iterdir()) == []  # the folder was there before


def test_a_truncated_scan_costs_a_resumed_command_nothing(command, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "cubes"
    for i in range(5):
        noise_scan(folder / f"s{i}.nii.gz", i)
    words = ("--data", folder, "--size", 16, 16, 16, "--crops", 2, "--out", out)
    assert command("prepare", *words).status == 0
    (out / "index.csv").unlink()  # stopped before the last scan was cut
    (out / "cubes" / "s4.npy").unlink()
    whole = (folder / "s4.nii.gz").read_bytes()
    (folder / "s4.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert command("prepare", *words, "--resume").status == 2
    assert len(list((out / "cubes").glob("*.npy"))) == 4
    (folder / "s4.nii.gz").write_bytes(whole)
    assert command("prepare", *words, "--resume").status == 0
    assert len(read_cubes(out)) == 10


def test_prepare_a_decathlon_folder(livers, command, tmp_path):
    """It names training and test scans, and no masks for the latter."""
    rows = rows_of(livers)
    for i, row in enumerate(rows):
        for kind, folder in (("image", "imagesTr"), ("mask", "labelsTr")):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(livers.parent / row[kind], tmp_path / folder / f"liver_{i}.nii.gz")
    pairs = [{"image": f"./imagesTr/liver_{i}.nii.gz", "label": f"./labelsTr/liver_{i}.nii.gz"} for i in range(4)]
    content = {"training": pairs, "test": ["./imagesTr/liver_4.nii.gz"]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    words = ("--data", tmp_path, "--size", 16, 16, 16, "--crops", 2)
    finished = command("prepare", *words, "--target", "segment", "--out", tmp_path / "segment")
    assert finished.status == 0, finished.err
    assert "left out: 1 test scans without a mask" in finished.err
    cubes = read_cubes(tmp_path / "segment")
    splits = [row.split for row in cubes.rows]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (6, 2, 0)
    assert cubes.has_masks
    assert (
        command("prepare", *words, "--acceptance", "none", "--margin", 0, 0, 0, "--out", tmp_path / "none").status == 0
    )
    splits = [row.split for row in read_cubes(tmp_path / "none").rows]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (6, 2, 2)
    content["test"] = [{**pairs[3], "image": "./imagesTr/liver_4.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert command("prepare", *words, "--target", "segment", "--out", tmp_path / "tested").status == 0
    cubes = read_cubes(tmp_path / "tested").rows
    assert {row.subject for row in cubes if row.split == "test"} == {"liver_4"}
    subjects = {name: {row.subject for row in cubes if row.split == name} for name in ("train", "val")}
    assert len(subjects["train"]) == 3
    assert len(subjects["val"]) == 1
    assert not subjects["train"] & subjects["val"]
    content["training"] = pairs[:1]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    finished = command("prepare", *words, "--target", "segment", "--out", tmp_path / "few")
    assert finished.status == 2
    assert "1 training subjects cannot be dealt to training and validation" in finished.line
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize("target", ["none", "classify", "segment"])
def test_splits_are_named_for_all_rows_or_for_none(target, command, tmp_path):
    folder = tmp_path / "scans"
    for i in range(6):
        noise_scan(folder / f"s{i}.nii.gz", i)
    entries = [{"image": f"s{i}.nii.gz", "mask": f"s{i}.nii.gz", "label": str(i % 2), "split": ""} for i in range(6)]
    entries[2]["split"] = "val"
    (folder / "list.json").write_text(json.dumps({"training": entries}))
    words = ("--data", folder / "list.json", "--size", 16, 16, 16, "--target", target, "--out", tmp_path / "cubes")
    finished = command("prepare", *words)
    assert finished.status == 2
    assert "some rows name a split and some do not; fill the column split in" in finished.line
    assert not (tmp_path / "cubes").exists()


def test_corners_of_small_scans_are_places_in_the_scan(command, tmp_path):
    """Padded evenly to the size of a cube: 6 voxels before and 6 behind of 4, and 1 before and 2 behind of 13."""
    from dart_core.data.volumes import read_labels, read_volume

    shape, lines = (4, 20, 13), ["image,mask,split"]
    for i, split in enumerate(("train", "val", "test")):
        noise_scan(tmp_path / f"s{i}.nii.gz", i, shape)
        labels = np.random.default_rng(10 + i).integers(0, 3, shape).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / f"m{i}.nii.gz")
        lines.append(f"s{i}.nii.gz,m{i}.nii.gz,{split}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    words = ("--target", "segment", "--size", 16, 16, 16, "--crops", 4, "--out", tmp_path / "cubes")
    assert command("prepare", "--data", tmp_path / "list.csv", *words).status == 0
    cubes = read_cubes(tmp_path / "cubes")
    for i, row in enumerate(cubes.rows):
        volume = read_volume(row.scan, "LPS")
        labels = read_labels(Path(row.scan).with_name(Path(row.scan).name.replace("s", "m", 1)), volume)
        corner = [int(c) for c in row.corner]
        assert (corner[0], corner[2]) == (-6, -1)
        assert 0 <= corner[1] <= 4
        expected = np.zeros((16, 16, 16), np.uint8)
        expected[6:10, :, 1:14] = labels[:, corner[1] : corner[1] + 16]
        assert np.array_equal(cubes.mask(i), expected)


def test_prepare_lits_and_brats(livers, command, tmp_path):
    rows = rows_of(livers)
    lits, brats = tmp_path / "lits", tmp_path / "brats"
    lits.mkdir()
    for number, row in zip((0, 1, 100, 115, 116), rows, strict=True):
        for kind, name in (("image", "volume"), ("mask", "segmentation")):
            shutil.copy(livers.parent / row[kind], lits / f"{name}-{number}.nii.gz")
    for number, row in enumerate(rows * 3):
        case = brats / "HGG" / f"Brats18_X_{number}"
        case.mkdir(parents=True)
        for kind, name in (("image", "flair"), ("mask", "seg")):
            shutil.copy(livers.parent / row[kind], case / f"{case.name}_{name}.nii.gz")
    words = ("--size", 16, 16, 8, "--crops", 2)
    assert command("prepare", "--data", lits, "--target", "LCS", *words, "--out", tmp_path / "LCS").status == 0
    splits = [row.split for row in read_cubes(tmp_path / "LCS").rows]
    assert [splits.count(name) for name in ("train", "val", "test")] == [4, 2, 4]
    assert command("prepare", "--data", brats, "--target", "BMS", *words, "--out", tmp_path / "BMS").status == 0
    cubes = read_cubes(tmp_path / "BMS")
    assert len(cubes) == 30
    assert cubes.shape == (16, 16, 8)


def write_lidc(root: Path, patients: int) -> None:
    """CTs of 40 x 32 x 12 voxels as DICOM series; two of the radiologists outline columns 11 to 19, rows 9 to 17 of slices 4, 5."""
    import SimpleITK as sitk

    corners = "".join(
        f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>"
        for x, y in ((10, 8), (20, 8), (20, 18), (10, 18))
    )
    rois = "".join(f"<roi><imageZposition>{z}</imageZposition>{corners}</roi>" for z in (2.0, 4.5))
    readings = [
        f"<readingSession><unblindedReadNodule><noduleID>{reader}</noduleID>{rois * (reader < 2)}</unblindedReadNodule></readingSession>"
        for reader in range(4)
    ]
    for patient in range(patients):
        folder, series = root / f"LIDC-IDRI-{patient + 1:04d}" / "1.2" / "000001", f"1.2.3.{patient}"
        folder.mkdir(parents=True)
        scan = np.random.default_rng(patient).normal(-850, 30, (12, 32, 40)).astype(np.int16)
        scan[4:6, 9:18, 11:20] = 40
        for k, pixels in enumerate(scan):
            picture = sitk.GetImageFromArray(pixels)
            picture.SetSpacing((0.7, 0.7))
            for tag, text in (
                ("0008|0060", "CT"), ("0020|000d", "1.2"), ("0020|000e", series), ("0008|0018", f"{series}.{k}"),
                ("0020|0032", f"-10\\-12\\{2.5 * k - 8}"), ("0020|0037", "1\\0\\0\\0\\1\\0"), ("0020|0013", str(k + 1)),
            ):  # fmt: skip
                picture.SetMetaData(tag, text)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(folder / f"{k + 1:03d}.dcm"))
            writer.Execute(picture)
        (folder / "outlines.xml").write_text(
            '<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
            f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>{''.join(readings)}</LidcReadMessage>"
        )


def test_prepare_lidc(command, tmp_path):
    write_lidc(tmp_path / "LIDC-IDRI", 5)
    words = ("--data", tmp_path / "LIDC-IDRI", "--target", "NCS", "--size", 16, 16, 8, "--crops", 4)
    finished = command("prepare", *words, "--out", tmp_path / "cubes")
    assert finished.status == 0, finished.err
    cubes = read_cubes(tmp_path / "cubes")
    assert (len(cubes), cubes.shape, cubes.has_masks) == (20, (16, 16, 8), True)
    assert {row.split for row in cubes.rows} == {"train", "val", "test"}
    assert len({row.subject for row in cubes.rows if row.split == "train"}) == 3
    for i, row in enumerate(cubes.rows):
        # Voxels from -1000 to 1000 HU; the nodule alone is bright, and the line itself lies outside of it.
        bright = cubes.cube(i)[0] > 0.4
        assert np.array_equal(cubes.mask(i) > 0, bright)
        corner = np.array([int(c) for c in row.corner])
        ends = np.clip(np.array([20, 18, 6]) - corner, 0, cubes.shape)
        starts = np.clip(np.array([11, 9, 4]) - corner, 0, cubes.shape)
        assert bright.sum() == np.prod(np.maximum(ends - starts, 0))
    assert all(cubes.mask(i).any() for i in range(0, 20, 2))
    outlines = tmp_path / "LIDC-IDRI" / "LIDC-IDRI-0003" / "1.2" / "000001" / "outlines.xml"
    outlines.write_text(outlines.read_text().replace("4.5<", "44.5<"))
    finished = command("prepare", *words, "--out", tmp_path / "wrong")
    assert finished.status == 2
    assert (
        "the outline of 0 at 44.5 mm does not lie in a slice of the scan; give the outlines of this CT" in finished.line
    )
    assert not (tmp_path / "wrong" / "index.csv").exists()


def test_prepare_cubes_as_pe_cad_has_them(command, tmp_path):
    rng = np.random.default_rng(0)
    lines = ["patient,cube,label"]
    for i in range(12):
        image = nibabel.Nifti1Image(rng.integers(-900, 300, (20, 20, 20)).astype(np.int16), np.eye(4))
        nibabel.save(image, tmp_path / f"c{i}.nii.gz")
        lines.append(f"p{i // 2},c{i}.nii.gz,{i % 2}")
    (tmp_path / "candidates.csv").write_text("\n".join(lines) + "\n")
    words = ("--data", tmp_path, "--target", "ECC", "--size", 16, 16, 16, "--out", tmp_path / "ECC")
    assert command("prepare", *words).status == 0
    cubes = read_cubes(tmp_path / "ECC")
    assert sorted(cubes.labels().tolist()) == [0] * 6 + [1] * 6
    assert {row.split for row in cubes.rows} == {"train", "val", "test"}
    assert (cubes.cube(0) <= 1300 / 2000 + 1e-3).all()
    (tmp_path / "list.csv").write_text(
        "image,label\n" + "".join(f"c{i}.nii.gz,{'x' if i == 11 else 1}\n" for i in range(12))
    )
    finished = command(
        "prepare", "--data", tmp_path / "list.csv", "--target", "classify", "--out", tmp_path / "classified"
    )
    assert finished.status == 2
    assert "list.csv, row 13, column label: 'x' is no label; give whole numbers from 0" in finished.line
    assert not (tmp_path / "classified").exists()


def test_prepare_a_folder_of_other_images(command, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(6):
        image = nibabel.Nifti1Image(rng.integers(0, 100, (20, 18, 17)).astype(np.int16), np.eye(4))
        (tmp_path / "mr").mkdir(exist_ok=True)
        nibabel.save(image, tmp_path / "mr" / f"s{i}.nii.gz")
    assert (
        command(
            "prepare", "--data", tmp_path / "mr", "--size", 16, 16, 16, "--crops", 2, "--out", tmp_path / "c"
        ).status
        == 0
    )
    splits = [row.split for row in read_cubes(tmp_path / "c").rows]
    assert (splits.count("train"), splits.count("val")) == (10, 2)
    finished = command(
        "prepare", "--data", tmp_path / "mr", "--size", 16, 16, 16, "--acceptance", "genesis", "--out", tmp_path / "d"
    )
    assert finished.status == 2
    assert "no Hounsfield units" in finished.line


def test_prepare_medmnist(command, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28, 28)).astype(np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 2, (n, 1)).astype(np.uint8)
    np.savez(tmp_path / "m.npz", **arrays)
    assert command("prepare", "--data", tmp_path / "m.npz", "--size", 16, 16, 16, "--out", tmp_path / "c").status == 0
    cubes = read_cubes(tmp_path / "c")
    assert len(cubes) == 9
    assert (
        cubes.labels().tolist()
        == np.concatenate([arrays[f"{s}_labels"].ravel() for s in ("train", "val", "test")]).tolist()
    )
    (tmp_path / "x.npz").write_bytes(b"PK")
    assert "is no MedMNIST file" in command("prepare", "--data", tmp_path / "x.npz", "--out", tmp_path / "d").line


def test_visual_words(luna16, command, tmp_path):
    words = (
        "--words",
        3,
        "--instances",
        4,
        2,
        "--scan-size",
        16,
        16,
        16,
        "--width",
        1,
        "--max-epochs",
        2,
        "--batch-size",
        4,
    )
    finished = command("prepare", "--data", luna16, *SMALL, *words, "--device", "cpu", "--out", tmp_path / "words")
    assert finished.status == 0, finished.err
    cubes = read_cubes(tmp_path / "words")
    splits = [row.split for row in cubes.rows]
    assert splits.count("train") == 3 * 4 * 3
    assert splits.count("val") == 3 * 2
    assert sorted(set(cubes.labels().tolist())) == [0, 1, 2]
    places = {row.label: tuple(map(int, row.corner)) for row in cubes.rows}
    found = list(places.values())
    assert all(max(abs(a - b) for a, b in zip(p, q, strict=True)) >= 5 for i, p in enumerate(found) for q in found[:i])
    run = ("--cubes", tmp_path / "words", "--pretext", "transvw", "--steps", "D", "--width", 1, "--max-epochs", 1)
    assert command("pretrain", *run, "--device", "cpu", "--out", tmp_path / "run").status == 0
    assert load_pretrained(tmp_path / "run")[1].words == 3


def test_the_auto_encoder_has_keras_s_patience(luna16, command, tmp_path, monkeypatch):
    import united_ssl.words

    seen = []
    train = united_ssl.words.fine_tune

    def spy(run, network, optimizer, batches, recipe, **given):
        best = train(
            run, network, optimizer, batches, recipe, **{**given, "validate": lambda net: {"validation_loss": 1.0}}
        )
        seen.append((run.step, batches.size))
        return best

    monkeypatch.setattr(united_ssl.words, "fine_tune", spy)
    words = ("--words", 2, "--instances", 2, 1, "--scan-size", 16, 16, 16, "--width", 1, "--batch-size", 5)
    given = (*words, "--patience", 2, "--max-epochs", 6, "--device", "cpu", "--out", tmp_path / "words")
    assert command("prepare", "--data", luna16, *SMALL, *given).status == 0
    assert seen == [(3, 5)]  # the first epoch is the best one, two follow


def test_the_nearest_scans():
    from united_ssl.words import nearest_scans

    features = np.array([[0.0], [5.0], [1.0], [3.0], [-1.5]])
    assert nearest_scans(features, 0, [0, 1, 2, 3, 4], 3) == [0, 2, 4]
    assert nearest_scans(features, 0, [1, 3], 5) == [3, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--size", 12, 16, 16), "--size is 12 16 16; give multiples of 8"),
        (("--margin", -1, 0, 0), "--margin is negative"),
        (("--words", 3, "--target", "NCC"), "contradict each other"),
        (("--validation", 1), "--validation is 1"),
        (("--target", "LCS"), "this is not the folder of LiTS"),
        (("--words", 30, *SMALL, "--max-epochs", 1, "--width", 1, "--scan-size", 16, 16, 16), "30 words need as many training scans"),
    ],
)  # fmt: skip
def test_prepare_refuses(words, message, luna16, command, tmp_path):
    finished = command("prepare", "--data", luna16, *words, "--device", "cpu", "--out", tmp_path / "out")
    assert finished.status == 2
    assert message in finished.line
    assert not (tmp_path / "out" / "index.csv").exists()


def test_check_data_lists_every_problem(command, tmp_path):
    values = np.random.default_rng(0).random((3, 16, 16, 16))
    values[1] *= 3
    values[2, 0, 0, 0] = np.nan
    write_cubes(tmp_path / "a.npy", values)
    write_index(tmp_path, [CubeRow(tmp_path / "a.npy", i) for i in range(3)])
    finished = command("check-data", "--data", tmp_path)
    assert finished.status == 2
    assert "cube 1 holds values from" in finished.out
    assert "cube 2 holds voxels that are no numbers" in finished.out
    assert "2 problems" in finished.out
