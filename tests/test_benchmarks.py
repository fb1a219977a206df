"""The benchmarks run: their figures are for benchmarks/RESULTS.md, so here they only have to be taken rightly."""

from __future__ import annotations

import importlib
import io
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = ("phone_photo", "cold_start", "chest_xray", "parity_matrix", "devices", "precisions")
MODULES = (*SCRIPTS, "measure", "synthetic_photo")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`benchmark("cold_start")`: the script as a module; its neighbours are found as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(runpy.run_path(str(Path(__file__).with_name("tiny_model.py")))["tiny_model"]())
    return path


def call(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_explains_itself(script: str) -> None:
    done = call(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python benchmarks/{script}.py" in done.stdout


def test_roads_take_turns_after_a_call_that_is_not_timed(benchmark: Any) -> None:
    order: list[str] = []
    roads = {"a": lambda: (order.append("a"), time.sleep(0.02)), "b": lambda: order.append("b")}
    seconds = benchmark("measure").interleaved(roads, 3)
    assert "".join(order) == "ab" + "ababab"
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert min(seconds["a"]) >= 0.02 > max(seconds["b"])


def test_a_warm_road_is_called_once_more_in_each_turn_and_only_the_second_call_is_timed(benchmark: Any) -> None:
    order: list[str] = []
    naps = iter([0.0, 0.03, 0.0, 0.03, 0.0])
    roads = {"a": lambda: (order.append("a"), time.sleep(next(naps))), "b": lambda: order.append("b")}
    seconds = benchmark("measure").interleaved(roads, 2, warm=True)
    assert "".join(order) == "ab" + "aabb" * 2
    assert max(seconds["a"]) < 0.03


def test_the_ratio_is_the_median_of_pairs_so_that_one_slow_moment_does_not_count(benchmark: Any) -> None:
    assert benchmark("measure").ratio([4.0, 40.0, 4.0], [1.0, 10.0, 2.0]) == 4.0


def test_a_table_is_markdown(benchmark: Any) -> None:
    expected = "| road | ms |\n| --- | ---: |\n| ours | 1 |"
    assert benchmark("measure").table(["road", "ms"], [["ours", "1"]]) == expected


def test_the_circumstances_name_command_cpu_versions_and_no_folder(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/else/cold_start.py", "model.onnx", "two words.jpg"])
    text = benchmark("measure").circumstances(["click", "no-such-package"])
    assert "`python benchmarks/cold_start.py model.onnx 'two words.jpg'`" in text
    assert "CPUs granted" in text
    assert "onnxruntime 1" in text
    assert "click 8" in text
    assert "no-such-package" not in text
    assert "somewhere" not in text


def test_the_drawn_photo_is_the_same_each_time_and_another_for_each_seed(benchmark: Any) -> None:
    photo = benchmark("synthetic_photo").photo
    small = {"width": 640, "height": 480}
    assert photo(1, **small) == photo(1, **small)
    assert photo(1, **small) != photo(2, **small)


def test_the_drawn_photo_is_a_420_jpeg_and_its_detail_makes_the_file_larger(benchmark: Any) -> None:
    photo = benchmark("synthetic_photo").photo
    sizes = []
    for detail in (0.0, 0.5, 1.0):
        data = photo(3, detail=detail, width=640, height=480)
        with Image.open(io.BytesIO(data)) as opened:
            assert (opened.format, opened.size, opened.mode) == ("JPEG", (640, 480), "RGB")
            assert [layer[1:3] for layer in opened.layer] == [(2, 2), (1, 1), (1, 1)]
        sizes.append(len(data))
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_phone_photo_is_measured_by_both_roads_and_their_pictures_agree(benchmark: Any, model_path: Path) -> None:
    from pocketdx_runtime import Model

    module = benchmark("phone_photo")
    data = benchmark("synthetic_photo").photo(0, width=800, height=600)
    calls: list[tuple[bytes, int]] = []
    model = Model(model_path, threads=1)
    outcome = module.measure(model, "small", data, 3, pytorch=lambda *given: calls.append(given))
    assert set(outcome.seconds) == {module.OURS, module.PILLOW, module.TORCH}
    assert calls == [(data, 32)] * 7
    assert outcome.pixel_max <= 4
    assert 0 < outcome.pixel_mean < 0.5
    assert outcome.megapixels == pytest.approx(0.48)
    assert outcome.same_label
    assert outcome.probability < 0.05
    table = module.report([outcome, outcome])
    assert "| small | 0.5 |" in table
    assert table.splitlines()[-1].startswith("| median |")
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_photo_benchmark_takes_a_photo_of_the_users(model_path: Path, tmp_path: Path) -> None:
    photo = tmp_path / "skin.jpg"
    Image.effect_noise((800, 600), 40).convert("RGB").save(photo)
    done = call("phone_photo", model_path, "--photo", photo, "--rounds", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| skin.jpg | 0.5 |" in done.stdout
    assert "CPUs granted" in done.stdout


def test_the_full_decode_is_pillows_own(benchmark: Any) -> None:
    file = io.BytesIO()
    grey = Image.effect_noise((90, 70), 60)
    grey.save(file, "PNG")
    expected = np.asarray(grey.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(benchmark("phone_photo").full_decode(file.getvalue(), 32), expected)


def test_a_process_is_measured_with_its_time_and_its_memory() -> None:
    # From a small process, as the script is one: until it calls exec, a child counts its parent's memory as its own.
    measuring = (
        "import sys; from cold_start import run; "
        "small = run([sys.executable, '-c', 'import time; time.sleep(0.2)']); "
        "large = run([sys.executable, '-c', 'b\"x\" * 600_000_000']); "
        "print(small.seconds, large.megabytes)"
    )
    done = subprocess.run([sys.executable, "-c", measuring], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, done.stdout.split())
    assert 0.2 < seconds < 20
    assert 600 < megabytes < 700


def test_a_process_that_fails_is_not_taken_for_a_fast_one(benchmark: Any) -> None:
    with pytest.raises(SystemExit, match="exit status 3"):
        benchmark("cold_start").run([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_cold_start_is_measured_beside_the_bare_imports(model_path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    Image.effect_noise((64, 64), 60).save(picture)
    done = call("cold_start", model_path, picture, "--rounds", 2)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in done.stdout.splitlines() if "|" in line}
    ours, bare = (float(rows[name][-1]) for name in ("pocketdx predict", "imports alone"))
    assert 20 < bare < ours


RUN = {
    "settings": {"seed": 1},
    "metrics": {"test/auc": {"value": 0.98}, "test/accuracy": {"value": 0.92}},
    "seconds": 600.0,
}


def parity_of(logits: float | None, agreement: float, *, passed: bool = True) -> dict[str, Any]:
    checks = [
        {"name": "logits, max", "road": "runtime", "value": 1e-6},
        {"name": "logits, max", "road": "graph", "value": logits},
        {"name": "logits end to end, max", "road": "runtime", "value": 0.5},
        {"name": "top-1 agreement", "road": "runtime", "value": agreement},
    ]
    cell = {"file": "model.fp32.onnx", "backend": "onnxruntime", "images": 624, "checks": checks}
    return {"cells": [{**cell, "status": "passed" if passed else "failed"}]}


def test_the_chest_xray_row_holds_the_worst_of_both_roads(benchmark: Any) -> None:
    module = benchmark("chest_xray")
    assert module.outcome(RUN, parity_of(3e-6, 1.0)) == module.Outcome(1, 0.98, 0.92, 10.0, 624, 3e-6, 1.0, True)


def test_logits_that_are_no_numbers_do_not_pass_for_small_ones(benchmark: Any) -> None:
    module = benchmark("chest_xray")
    assert "| inf |" in module.report([module.outcome(RUN, parity_of(None, 1.0, passed=False))])


def test_the_chest_xray_table_gives_mean_spread_targets_and_published_figures(benchmark: Any) -> None:
    module = benchmark("chest_xray")
    outcomes = [
        module.Outcome(seed, auc, 0.9, 9.0, 624, 1e-6, 1.0, True) for seed, auc in enumerate((0.97, 0.98, 0.99))
    ]
    table = module.report(outcomes)
    assert "| **mean** | **0.9800** | **0.9000** |" in table
    assert "| standard deviation | 0.0100 | 0.0000 |" in table
    assert "| smallest to largest | 0.9700 to 0.9900 |" in table
    assert "Doerrich" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_recipe_becomes_flags_and_the_defaults_do_not(benchmark: Any, tmp_path: Path) -> None:
    module = benchmark("chest_xray")
    settings = module.settings_for(2, "w.safetensors", tmp_path)
    command = module.train_command(Path("DATA"), tmp_path / "run", settings, [])
    assert command[:4] == ["train", "DATA", "--out", str(tmp_path / "run")]
    flags = list(zip(command[4::2], command[5::2], strict=True))
    given = dict(flags)
    assert given["--seed"] == "2"
    assert given["--weights"] == "w.safetensors"
    assert given["--patient-regex"] == module.RECIPE["patient_regex"]
    assert "--size" not in given
    teachers = [value for name, value in flags if name == "--teacher"]
    assert teachers == [str(tmp_path / f"teacher-{number}") for number in (1, 2, 3)]


def test_teachers_have_seeds_of_their_own_and_the_split_of_their_pupil(benchmark: Any, tmp_path: Path) -> None:
    module = benchmark("chest_xray")
    pupils = [module.settings_for(seed, "w.safetensors", tmp_path) for seed in (0, 1, 2)]
    by_pupil = [module.trainings("run", pupil) for pupil in pupils]
    assert len({each.seed for networks in by_pupil for each in networks.values()}) == 12
    for pupil, networks in zip(pupils, by_pupil, strict=True):
        assert tuple(networks) == (*pupil.teacher, "run")
        *teachers, last = networks.values()
        assert last == pupil
        for each in teachers:
            assert (each.split_seed, each.weights, each.teacher) == (pupil.seed, "w.safetensors", ())


def test_a_training_that_was_stopped_goes_on(benchmark: Any, tmp_path: Path) -> None:
    (tmp_path / "run.unfinished").mkdir()
    (tmp_path / "run.unfinished" / "begun.json").touch()
    module = benchmark("chest_xray")
    settings = module.settings_for(0, "none", tmp_path)
    assert module.train_command(Path("D"), tmp_path / "run", settings, [])[-1] == "--resume"


def test_a_run_with_another_recipe_is_not_taken_for_this_one(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("chest_xray")
    monkeypatch.setattr(module, "pocketdx", lambda _: pytest.fail("teachers are not to be trained for it"))
    settings = module.settings_for(0, "none", tmp_path)
    (tmp_path / "run").mkdir()
    other = asdict(settings) | {"epochs": 77}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": other}))
    with pytest.raises(SystemExit, match="another epochs"):
        module.measure(Path("DATA"), tmp_path, settings, [], [])


def test_a_seed_counts_the_minutes_of_its_teachers_too(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = benchmark("chest_xray")
    settings = module.settings_for(1, "none", tmp_path)
    for folder, each in module.trainings(str(tmp_path / "run"), settings).items():
        Path(folder).mkdir()
        record = {**RUN, "settings": asdict(each)}
        Path(folder, "run.json").write_text(json.dumps(record))
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").touch()
    (tmp_path / "parity.json").write_text(json.dumps(parity_of(1e-6, 1.0)))
    monkeypatch.setattr(module, "pocketdx", pytest.fail)
    assert module.measure(Path("DATA"), tmp_path, settings, [], []).minutes == 4 * 10.0


def save_settled_weights(path: Path) -> None:
    """Random weights, but batch norms that know their inputs: a few steps from nothing would leave huge logits."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v3_small()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean over all batches
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 64, 64))
    save_file(network.state_dict(), path)


@pytest.mark.slow
def test_the_chest_xray_benchmark_trains_three_teachers_and_a_pupil_once_and_then_only_reports(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in {"train": 12, "test": 4}.items():
        for number, (kind, level) in enumerate({"NORMAL": 90, "PNEUMONIA": 160}.items()):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            for each in range(count):
                patient = 100 * number + each + (1000 if split == "test" else 0)
                grey = rng.normal(level, 25, (40, 40)).clip(0, 255).astype(np.uint8)
                Image.fromarray(grey).save(tmp_path / "data" / split / kind / f"person{patient}_virus_1.png")
    save_settled_weights(tmp_path / "w.safetensors")
    arguments = [
        tmp_path / "data",
        "--weights",
        tmp_path / "w.safetensors",
        "--seeds",
        7,
        "--out",
        tmp_path / "out",
        "--workers",
        0,
    ]
    first = call("chest_xray", *arguments, "--cache", tmp_path / "cache")
    assert first.returncode == 0, first.stderr
    assert "| seed 7 |" in first.stdout
    assert "Parity over all 8 test images" in first.stdout
    assert first.stderr.count("pocketdx train ...") == 4

    again = call("chest_xray", *arguments, "--cache", tmp_path / "cache")
    assert again.stdout.splitlines()[:3] == first.stdout.splitlines()[:3]
    assert "pocketdx " not in again.stderr
