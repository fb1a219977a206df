"""`pocketdx train` and `evaluate` as a user meets them: one line for what is wrong, nothing half-written, no noise."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny_model
from pocketdx_train import cache as caching
from pocketdx_train import fit
from pocketdx_train.run import Run

Fill = Callable[..., Path]
Command = Callable[..., Any]
Spawn = Callable[..., "subprocess.Popen[str]"]
QUICK = ["--weights", "none", "--size", 32, "--epochs", 1, "--batch-size", 8]


def refused(outcome: Any, *says: object) -> None:
    """Exit status 2, one line on stderr that says all this, nothing on stdout."""
    assert outcome.status == 2, outcome
    assert re.fullmatch(r"error: [^\n]+\n", outcome.err), outcome.err
    assert outcome.out == ""
    for text in says:
        assert str(text) in outcome.err


# --- train: bad input ------------------------------------------------------------------------------------------------


def test_bad_data_is_refused_before_anything_is_written(pocketdx: Command, filled: Fill, tmp_path: Path) -> None:
    out = tmp_path / "run"
    empty = tmp_path / "empty"
    empty.mkdir()
    single = filled(tmp_path / "single", {"disk": 3})
    few = filled(tmp_path / "few", {"disk": 2, "stripes": 9})
    (tmp_path / "cells.csv").write_text("path,label\nno.png,a\nnot.png,b\n")
    for data, says in [
        (tmp_path / "no", "no such folder or file"),
        (empty, "put them into one folder per class"),
        (single, "one class only (disk)"),
        (few, "no readable image of disk is left for the test split; add images"),
        (tmp_path / "cells.csv", "none of its 2 images can be read; the first: no.png"),
    ]:
        refused(pocketdx("train", data, "--out", out, *QUICK), says)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith("run")]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--lr", "0"], "--lr 0.0: give above 0"),
        (["--size", "10"], "--size 10: give 32 to 4096 pixels"),
        (["--val", "0.6", "--test", "0.5"], "--test 0.5: give above 0, with --val below 0.9"),
        (["--patient-regex", "("], "(: not a regular expression"),
        (["--weights", "no.safetensors"], "no.safetensors: no such weights file"),
        (["--workers", "-1"], "--workers -1"),
        (["--nodes", "0"], "--nodes 0"),
        (["--accelerator", "cpu", "--devices", "0"], "--devices 0"),
        (["--accelerator", "cpu", "--devices", "many"], "--devices many"),
        (["--resume"], "no unfinished run to go on with; leave --resume out"),
    ],
)
def test_bad_options_are_refused_before_anything_is_decoded_or_written(
    options: list[str], says: str, pocketdx: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_decode", lambda *_: pytest.fail("decoded"))
    kept = tmp_path / "kept"
    refused(pocketdx("train", pictures, "--out", tmp_path / "run", *QUICK, "--cache", kept, *options), says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_line(pocketdx: Command, pictures: Path, tmp_path: Path) -> None:
    refused(pocketdx("train", pictures, "--out", tmp_path / "run", *QUICK, "--accelerator", "gpu"), "--accelerator gpu")
    assert list(tmp_path.iterdir()) == []


def test_options_that_click_knows_to_be_wrong_are_usage_errors(
    pocketdx: Command, pictures: Path, tmp_path: Path
) -> None:
    for options in (
        ["--augment", "wild"],
        ["--epochs", "many"],
        ["--architecture", "resnet18"],
        ["--accelerator", "tpu"],
    ):
        outcome = pocketdx("train", pictures, "--out", tmp_path / "run", *options)
        assert outcome.status == 2
        assert f"Invalid value for '{options[0]}'" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_weights_file_that_does_not_fit_is_refused_before_anything_is_decoded(
    pocketdx: Command, pictures: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"features.0.0.weight": torch.zeros(16, 3, 3, 3)}, weights)
    kept = tmp_path / "kept"
    outcome = pocketdx("train", pictures, "--out", tmp_path / "run", "--weights", weights, "--cache", kept)
    refused(outcome, f"{weights}: not weights of mobilenet_v3_small")
    torch.save({}, tmp_path / "weights.pth")
    outcome = pocketdx("train", pictures, "--out", tmp_path / "run", "--weights", tmp_path / "weights.pth")
    refused(outcome, "weights.pth: a pickle, which can run code; save it again with safetensors")
    assert not kept.exists()


def test_each_of_several_teachers_is_looked_at(
    pocketdx: Command, pictures: Path, finished: fit.Finished, tmp_path: Path
) -> None:
    good, bad = ["--teacher", finished.run.folder], ["--teacher", tmp_path / "nobody"]
    for teachers in (good + bad, bad + good):
        outcome = pocketdx("train", pictures, "--out", tmp_path / "run", *QUICK, *teachers)
        refused(outcome, f"{tmp_path / 'nobody'}: no such run")
    assert not (tmp_path / "run.unfinished").exists()


def test_an_existing_output_is_not_touched_unless_asked(pocketdx: Command, pictures: Path, run_copy: Run) -> None:
    before = {path: path.read_bytes() for path in run_copy.folder.iterdir()}
    refused(pocketdx("train", pictures, "--out", run_copy.folder, *QUICK), f"{run_copy.folder}: exists already")
    assert {path: path.read_bytes() for path in run_copy.folder.iterdir()} == before
    refused(pocketdx("train", pictures, "--out", ".", *QUICK), ".: exists already")
    refused(pocketdx("train", pictures, "--out", pictures, "--force", *QUICK), "not replaced")
    assert pocketdx("train", pictures, "--out", run_copy.folder, "--force", *QUICK).status == 0


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_decoded(
    pocketdx: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_decode", lambda *_: pytest.fail("decoded"))
    (tmp_path / "file").write_text("in the way")
    options = [*QUICK, "--cache", tmp_path / "kept"]
    refused(pocketdx("train", pictures, "--out", tmp_path / "file" / "run", *options), "cannot be written to")
    monkeypatch.setattr(os, "access", lambda path, *_, **__: Path(path) != tmp_path)
    refused(pocketdx("train", pictures, "--out", tmp_path / "run", *options), f"{tmp_path} cannot be written to")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_cache_that_cannot_be_written_is_one_line_with_the_remedy(
    pocketdx: Command, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("in the way")
    outcome = pocketdx("train", pictures, "--out", tmp_path / "run", *QUICK, "--cache", tmp_path / "kept")
    refused(outcome, f"{tmp_path / 'kept'}: decoded images cannot be kept here", "--cache")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_disk_that_is_full_when_the_run_is_written_keeps_the_training_for_a_resume(
    pocketdx: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pocketdx_train.finish._write_predictions", full)
        outcome = pocketdx("train", pictures, "--out", out, *QUICK)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert f"{out}: cannot be written: No space left on device" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.unfinished"]
    assert pocketdx("train", pictures, "--out", out, *QUICK, "--resume").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# --- train: output ---------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_on_stdout_and_holds_the_figures_and_what_was_found_in_the_data(
    pocketdx: Command, pictures: Path, tmp_path: Path
) -> None:
    outcome = pocketdx("train", pictures, "--out", tmp_path / "run", *QUICK, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    printed = json.loads(outcome.out)
    assert printed["run"] == str(tmp_path / "run")
    assert printed["n"] == 16
    assert set(printed["accuracy"]) == {"value", "low", "high"}
    assert printed["data"]["counts"]["test"] == {"disk": 6, "stripes": 10}


def test_people_get_the_data_the_figures_and_what_to_do_next(pocketdx: Command, pictures: Path, tmp_path: Path) -> None:
    outcome = pocketdx("train", pictures, "--out", tmp_path / "run", *QUICK)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("train: 28 images (disk 12, stripes 16)\n")
    assert "balanced accuracy" in outcome.out
    assert f"next: pocketdx export {tmp_path / 'run'} --out BUNDLE" in outcome.out


@pytest.mark.slow
def test_in_a_pipe_a_real_process_says_nothing_on_stderr(spawn: Spawn, pictures: Path, tmp_path: Path) -> None:
    training = spawn("train", pictures, "--out", tmp_path / "run", *QUICK, "--workers", 1, "--json")
    out, err = training.communicate(timeout=120)
    assert (training.returncode, err) == (0, "")
    assert json.loads(out)["split"] == "test"


@pytest.mark.slow
def test_on_a_terminal_progress_is_one_legible_line_an_epoch(
    program: list[str], pictures: Path, tmp_path: Path
) -> None:
    main, terminal = pty.openpty()
    command = [*program, "train", str(pictures), "--out", str(tmp_path / "run"), *map(str, QUICK), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POCKETDX_CACHE": str(tmp_path / "kept"), "COLUMNS": "80"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True, env=environment)
    os.close(terminal)
    screen = b""
    while True:
        try:
            read = os.read(main, 1000)
        except OSError:  # the other end is closed
            break
        screen += read
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["n"] == 16
    drawn = screen.decode().replace("\x1b[K", "").replace("\r\n", "\n")
    lines = [line.split("\r")[-1] for line in drawn.split("\n")]
    assert lines[0] == "decoding 56/56"
    assert re.match(r"epoch 1/1  loss \d\.\d+  val: loss \d\.\d+  AUC \d\.\d+", lines[1])
    assert all(len(line) <= 80 for line in re.split(r"[\r\n]", drawn))


@pytest.mark.slow
@pytest.mark.parametrize("phases", ["one", "two"])
def test_two_processes_train_together_and_leave_one_run(
    phases: str, spawn: Spawn, pictures: Path, finished: fit.Finished, tmp_path: Path
) -> None:
    options = [*QUICK, "--epochs", 2, "--accelerator", "cpu", "--devices", 2]
    if phases == "two":
        options += ["--weights", finished.run.weights, "--epochs", 1, "--head-epochs", 1]
    training = spawn("train", pictures, "--out", tmp_path / "run", *options)
    out, err = training.communicate(timeout=240)
    assert (training.returncode, err) == (0, "")
    assert out.count("train: 28 images") == 1
    assert out.count("balanced accuracy") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    run = Run.open(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 3
    assert all(torch.isfinite(value).all() for value in run.network().state_dict().values())


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_a_runs_figures_are_found_again(pocketdx: Command, finished: fit.Finished, pictures: Path) -> None:
    outcome = pocketdx("evaluate", finished.run.folder, pictures, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    printed = json.loads(outcome.out)
    assert (printed["split"], printed["n"], printed["unreadable"]) == ("test", 16, [])
    kept = json.loads((finished.run.folder / "test_metrics.json").read_text())
    assert printed["confusion"] == kept["confusion"]
    for figure in ("auc", "accuracy", "balanced_accuracy", "f1"):
        assert printed[figure] == pytest.approx(kept[figure])


def test_an_exported_model_is_evaluated_in_onnxruntime(pocketdx: Command, pictures: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model.tiny_model(("disk", "stripes"), 32))
    outcome = pocketdx("evaluate", model, pictures, "--split", "all")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("\nall images\n56 images; 95 % intervals from 2000 bootstrap resamples of images")


def test_a_model_is_refused_its_own_training_data_without_splits(
    pocketdx: Command, filled: Fill, decoded_folder: Callable[..., Any], tmp_path: Path
) -> None:
    data = filled(tmp_path / "data", {"disk": 3, "stripes": 3})
    model = tmp_path / "model.onnx"
    trained_on = decoded_folder(data).fingerprint()
    model.write_bytes(tiny_model.tiny_model(("disk", "stripes"), 32, data_fingerprint=trained_on))
    refused(pocketdx("evaluate", model, data), data, "--split all")


def test_bad_input_to_evaluate_is_one_line(
    pocketdx: Command, finished: fit.Finished, run_copy: Run, pictures: Path, filled: Fill, tmp_path: Path
) -> None:
    other = filled(tmp_path / "other", {"disk": 1, "rings": 1})
    run = finished.run.folder
    refused(pocketdx("evaluate", run, tmp_path / "no"), tmp_path / "no", "no such folder or file")
    refused(pocketdx("evaluate", run, other), other, "does not know: rings; it knows disk, stripes")
    refused(pocketdx("evaluate", tmp_path / "no.onnx", pictures), "no.onnx: no such file")
    (tmp_path / "bad.onnx").write_bytes(b"?")
    refused(pocketdx("evaluate", tmp_path / "bad.onnx", pictures), "bad.onnx")
    refused(pocketdx("evaluate", other, pictures), f"{other}: not a run")
    os.truncate(run_copy.weights, 100)
    refused(pocketdx("evaluate", run_copy.folder, pictures), run_copy.weights, "copy the run again")


def test_unreadable_images_are_named_and_left_out(
    pocketdx: Command, finished: fit.Finished, filled: Fill, tmp_path: Path
) -> None:
    data = filled(tmp_path, {"disk": 2, "stripes": 2}, start=900)
    (data / "disk" / "900.png").write_bytes(b"")
    outcome = pocketdx("evaluate", finished.run.folder, data)
    assert outcome.status == 0
    assert outcome.err.startswith("left out: disk/900.png: ")
    printed = json.loads(pocketdx("evaluate", finished.run.folder, data, "--json").out)
    assert printed["n"] == 3
    assert printed["unreadable"][0].startswith("disk/900.png: ")


# --- cost ------------------------------------------------------------------------------------------------------------


def test_the_commands_module_is_cheap_to_import() -> None:
    code = (
        "import sys, time; start = time.perf_counter(); import pocketdx_train.commands\n"
        "print(time.perf_counter() - start, *sorted({'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)))"
    )
    times = []
    for _ in range(3):
        seconds, *heavy = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert heavy == []
        times.append(float(seconds))
    assert np.min(times) < 0.5
