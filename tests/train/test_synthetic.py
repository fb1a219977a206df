"""The demo's fields are reproducible, say that they are synthetic, and differ by form rather than by colour."""

import hashlib
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pocketdx_runtime.errors import PocketDxError
from pocketdx_train.errors import DataError
from pocketdx_train.microscope import blurred, sensor_noise, transmitted
from pocketdx_train.smear import NUCLEUS, Dice
from pocketdx_train.synthetic import CLASSES, COMMENT, compose, contact_sheet, draw, generate

PINNED = {"blast": 3769851426, "lymphocyte": 594771394, "neutrophil": 4186944633}
"""CRC-32 of picture 0. A change of the drawing changes these on purpose; a machine must not."""


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("size", [64, 97, 160, 512])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_field_is_rgb_of_the_size_asked_for(kind: str, size: int) -> None:
    picture = draw(kind, 3, size=size)
    assert picture.shape == (size, size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


@pytest.mark.parametrize("kind", CLASSES)
def test_every_machine_draws_the_same(kind: str) -> None:
    assert zlib.crc32(draw(kind, 0).tobytes()) == PINNED[kind]


def test_vector_instructions_change_nothing() -> None:
    from numpy._core import _multiarray_umath as core  # the names this build dispatches on

    features = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    if not features:
        pytest.skip("this NumPy build or machine has no optional vector instructions")
    script = (
        "import zlib; from pocketdx_train.synthetic import CLASSES, draw; "
        "print([zlib.crc32(draw(k, i).tobytes()) for k in CLASSES for i in range(4)])"
    )
    plain = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [zlib.crc32(draw(kind, i).tobytes()) for kind in CLASSES for i in range(4)]
    assert plain.stdout.strip() == str(here)


def test_seed_class_and_index_each_change_the_picture_and_nothing_else_does() -> None:
    first = draw("blast", 5)
    draw("neutrophil", 8)  # drawing leaves no state behind
    assert np.array_equal(draw("blast", 5), first)
    for other in (draw("blast", 6), draw("lymphocyte", 5), draw("blast", 5, seed=1)):
        assert np.abs(other.astype(int) - first).mean() > 5


def test_another_size_shows_the_same_field_at_another_resolution() -> None:
    small, large = draw("neutrophil", 2, size=96), draw("neutrophil", 2, size=192)
    shrunk = np.asarray(Image.fromarray(large).resize((96, 96), Image.Resampling.BOX))
    same = np.corrcoef(small.ravel(), shrunk.ravel())[0, 1]
    other = np.corrcoef(small.ravel(), draw("neutrophil", 3, size=96).ravel())[0, 1]
    assert same > 0.85 > other + 0.2


def test_the_folder_holds_each_class_of_each_split_and_says_that_it_is_synthetic(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = generate(
        tmp_path / "fields",
        per_class={"train": 3, "val": 1, "test": 2},
        size=64,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (made.images, made.classes, made.folder) == (18, CLASSES, tmp_path / "fields")
    assert seen == [(i, 18) for i in range(1, 19)]
    for split, count in made.per_class.items():
        for kind in CLASSES:
            pictures = sorted((made.folder / split / kind).iterdir())
            assert len(pictures) == count
            for path in pictures:
                assert path.name.startswith("synthetic_")
                with Image.open(path) as picture:
                    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))
                    assert picture.info["comment"].decode() == COMMENT
    readme = (made.folder / "README.txt").read_text(encoding="utf-8")
    assert "drawn by a program" in readme
    assert "no diagnostic value" in readme
    assert "train: 3 pictures of each class" in readme
    assert all(kind in readme for kind in CLASSES)


def test_the_files_show_what_was_drawn(tmp_path: Path) -> None:
    made = generate(tmp_path / "fields", per_class={"train": 2}, seed=4)
    with Image.open(made.folder / "train" / "neutrophil" / "synthetic_000001.jpg") as picture:
        saved = np.asarray(picture).astype(int)
    assert np.abs(saved - draw("neutrophil", 1, seed=4)).mean() < 6


def test_asking_for_more_pictures_leaves_the_others_and_no_picture_is_in_two_splits(tmp_path: Path) -> None:
    few = generate(tmp_path / "few", per_class={"train": 2, "test": 2}, size=64)
    more = generate(tmp_path / "more", per_class={"train": 4, "val": 2, "test": 3}, size=64)
    old, new = fingerprint(few.folder), fingerprint(more.folder)
    assert {name: new[name] for name in old if name.endswith(".jpg")} == {
        name: digest for name, digest in old.items() if name.endswith(".jpg")
    }
    assert len(set(new.values())) == len(new)
    names = [Path(name).name for name in new if "/blast/" in name]
    assert len(set(names)) == len(names)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(PocketDxError, match="exists"):
        generate(tmp_path / "mine", per_class={"train": 1}, size=64)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "fields", per_class={"train": 2}, size=64, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"per_class": {"dev": 1}}, "dev: not a split"),
        ({"per_class": {"train": -1}}, "train: -1 pictures"),
        ({"per_class": {"train": 100_000}}, "100000 pictures"),
        ({"per_class": {"train": 0}}, "no picture"),
        ({"per_class": {}}, "no picture"),
        ({"per_class": {"train": 1}, "size": 63}, "63 pixels"),
        ({"per_class": {"train": 1}, "size": 513}, "513 pixels"),
        ({"per_class": {"train": 1}, "seed": -1}, "seed -1"),
    ],
)
def test_an_impossible_order_is_refused_before_anything_is_written(
    options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        generate(tmp_path / "fields", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_mean_colour_and_contrast_do_not_tell_the_classes_apart() -> None:
    each = 120
    pictures = np.stack([draw(kind, i, size=96) for kind in CLASSES for i in range(each)]).astype(float)
    features = np.concatenate([pictures.mean(axis=(1, 2)), pictures.std(axis=(1, 2))], axis=1)
    labels = np.repeat(np.arange(3), each)
    learnt = np.arange(3 * each) % each < 80
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features[learnt], labels[learnt])
    assert model.score(features[~learnt], labels[~learnt]) < 0.75


def test_form_tells_the_classes_apart_before_light_and_stain_are_varied() -> None:
    def nucleus(kind: str, index: int) -> tuple[float, float]:
        """Area in square micrometres, and how far its parts lie apart: 1 for a disc, more if not compact."""
        field, _ = compose(kind, Dice(0, CLASSES.index(kind), index), 160)
        rows, columns = np.mgrid[:160, :160]
        near = np.hypot(rows - 80, columns - 80) < 62
        y, x = np.nonzero((field.stains[NUCLEUS] > 0.3) & near)
        return len(x) / field.scale**2, 2 * np.pi * (x.var() + y.var()) / len(x)

    measured = {kind: np.median([nucleus(kind, i) for i in range(25)], axis=0) for kind in CLASSES}
    assert measured["blast"][0] > 1.5 * measured["lymphocyte"][0]
    assert measured["neutrophil"][1] > 1.5 * max(measured["blast"][1], measured["lymphocyte"][1])


def test_twelve_hundred_fields_take_less_than_twenty_seconds_of_one_core() -> None:
    draw("blast", 0)  # the noise tiles, once
    started = time.process_time()
    for i in range(20):
        for kind in CLASSES:
            draw(kind, i)
    assert (time.process_time() - started) / 60 * 1200 < 20


def test_light_fades_exponentially_with_density() -> None:
    density = np.linspace(0, 2, 50, dtype=np.float32)
    assert np.abs(transmitted(density) - np.exp(-density)).max() < 0.035
    assert np.isfinite(transmitted(np.float32([-100, 100]))).all()


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_the_focus_blurs_by_its_standard_deviation_and_keeps_the_light(sigma: float) -> None:
    point = np.zeros((41, 41), dtype=np.float32)
    point[20, 20] = 1
    spread = blurred(point, sigma)
    rows = np.mgrid[:41, :41][0] - 20
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert np.sqrt((spread * rows**2).sum()) == pytest.approx(sigma, rel=1e-3)


def test_sensor_noise_has_mean_0_and_standard_deviation_1() -> None:
    values = sensor_noise(Dice(1), (3, 200, 200))
    assert abs(values.mean()) < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)


def test_the_contact_sheet_shows_a_captioned_row_for_each_class() -> None:
    sheet = np.asarray(contact_sheet(2, size=64))
    assert sheet.shape == (3 * (64 + 2 + 14) - 2, 2 * 66 - 2, 3)
    for row, kind in enumerate(CLASSES):
        top = row * 80
        assert (sheet[top : top + 14] < 128).any()  # the caption
        assert np.array_equal(sheet[top + 14 : top + 78, 66:130], draw(kind, 1, size=64))
