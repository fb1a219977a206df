"""A run opens as it was written; a damaged one is refused by the name of the file that is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketdx_train.errors import CheckpointError
from pocketdx_train.run import Run, digest, unfinished_folder


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        Run.open(folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(content) or content), encoding="utf-8")


def test_a_run_opens_as_it_was_written_and_its_network_is_ready_to_use(run_copy: Run) -> None:
    again = Run.open(run_copy.folder)
    assert again == run_copy
    network = again.network()
    assert not network.training
    assert torch.equal(
        network.backbone.state_dict()["classifier.3.bias"], load_file(again.weights)["classifier.3.bias"]
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("labels") and None, "labels is missing"),
        (lambda r: r.update(surprise=1), "surprise is not a field"),
        (lambda r: r.update(temperature=0.0), "temperature is 0.0"),
        (lambda r: r.update(labels=["a", "a"]), "labels is"),
        (lambda r: r["settings"].update(lr=-1.0), "--lr -1.0"),
        (lambda r: r["preprocessing"].update(std=[0, 0, 0]), "preprocessing.std"),
        (lambda r: [r], "an object with fields"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused_by_file_and_field(
    change: Callable[[Any], Any], says: str, run_copy: Run
) -> None:
    path = run_copy.folder / "run.json"
    edit(path, change)
    message = refused(run_copy.folder)
    assert message.startswith(f"{path}: damaged (")
    assert says in message
    assert "copy the run again or train again" in message


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_record_that_is_no_json_is_refused(content: bytes, run_copy: Run) -> None:
    (run_copy.folder / "run.json").write_bytes(content)
    assert refused(run_copy.folder).startswith(f"{run_copy.folder / 'run.json'}: damaged (")


def test_a_run_of_a_newer_version_asks_for_an_upgrade(run_copy: Run) -> None:
    edit(run_copy.folder / "run.json", lambda r: r.update(schema_version=2, something="new"))
    assert "written by a newer PocketDx; upgrade" in refused(run_copy.folder)


def test_weights_that_are_missing_truncated_or_of_another_run_are_refused(run_copy: Run) -> None:
    weights = {name: value.clone() for name, value in load_file(run_copy.weights).items()}  # it maps the file
    os.truncate(run_copy.weights, 1000)
    assert refused(run_copy.folder).startswith(f"{run_copy.weights}: not the weights that run.json speaks of")
    weights["classifier.3.bias"] += 1e-6
    save_file(weights, run_copy.weights)
    assert "SHA-256 differs" in refused(run_copy.folder)
    run_copy.weights.unlink()
    assert refused(run_copy.folder).startswith(f"{run_copy.weights}: missing")


def test_weights_of_another_architecture_are_refused_even_if_the_digest_is_right(run_copy: Run) -> None:
    save_file({"a": torch.zeros(2)}, run_copy.weights)
    edit(run_copy.folder / "run.json", lambda r: r.update(weights_digest=digest(run_copy.weights)))
    with pytest.raises(CheckpointError, match="not weights of mobilenet_v3_small"):
        Run.open(run_copy.folder).network()


@pytest.mark.parametrize("content", [None, "{", '{"splits": []}', "[]"])
def test_damaged_splits_are_refused_when_they_are_needed(content: str | None, run_copy: Run) -> None:
    path = run_copy.folder / "data.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(CheckpointError) as error:
        Run.open(run_copy.folder).splits()
    assert str(error.value) == f"{path}: missing or damaged; copy the run again"


def test_what_is_no_run_is_told_apart_from_what_is_not_there_and_from_a_bundle(tmp_path: Path) -> None:
    assert "no such run; make one with `pocketdx train" in refused(tmp_path / "no")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "not a run; make one with" in refused(folder)
    (folder / "model.fp32.onnx").touch()
    assert f"an exported bundle, not a run; name one of its files, such as {folder}/model.fp32.onnx" in refused(folder)
    assert "not a run" in refused(Path("/"))


def test_an_unfinished_run_lies_beside_the_run_however_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert unfinished_folder(Path("a.b/run.v1")) == Path("a.b/run.v1.unfinished")
    assert unfinished_folder(Path()) == tmp_path / "here.unfinished"
