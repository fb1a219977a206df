"""The model: right answers, from any number of threads and processes."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

from pocketdx_runtime import Manifest, Model, Thresholds, image, model, session
from pocketdx_runtime.errors import ImageError, ImageReason, ModelError


@pytest.fixture
def opened(model_bytes: bytes) -> Model:
    return Model(model_bytes)


def noise(seed: int = 0, height: int = 70, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (32, 32), (70, 90), (501, 333)])
def test_the_graph_answers_as_computed_by_hand_on_pictures_of_any_size(
    opened: Model, tiny: ModuleType, shape: tuple[int, int]
) -> None:
    pixels = noise(0, *shape)
    expected = tiny.reference(pixels)
    answers = opened.run(pixels[np.newaxis], tuple(expected))
    assert {name: array.dtype for name, array in answers.items()} == dict.fromkeys(expected, np.dtype("float32"))
    for name, array in expected.items():
        np.testing.assert_allclose(answers[name], array, atol=1e-5, err_msg=name)


def test_a_diagnosis_is_the_graphs_answer_on_the_resized_picture(opened: Model, tiny: ModuleType) -> None:
    pixels = noise()
    (diagnosis,) = opened.diagnose([pixels])
    (expected,) = tiny.reference(image.resize(pixels, 32))["probabilities"]
    assert list(diagnosis.probabilities) == ["NORMAL", "PNEUMONIA"]
    np.testing.assert_allclose(list(diagnosis.probabilities.values()), expected, atol=1e-6)
    assert diagnosis.label == ["NORMAL", "PNEUMONIA"][int(expected.argmax())]
    assert diagnosis.probability == diagnosis.probabilities[diagnosis.label]
    assert diagnosis.above_threshold == (diagnosis.label,)
    assert sum(diagnosis.probabilities.values()) == pytest.approx(1)


def test_paths_bytes_pil_images_and_arrays_of_one_picture_get_one_answer(
    opened: Model, make_png: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make_png(3))
    picture = Image.open(path)
    answers = opened.diagnose([path, str(path), path.read_bytes(), picture, np.asarray(picture)])
    assert answers == [answers[0]] * 5


def test_thresholds_move_the_answer(tiny: ModuleType) -> None:
    pixels = noise()
    by_label = Model(tiny.tiny_model()).diagnose([pixels])[0].probabilities
    low = by_label["PNEUMONIA"] * 0.9
    answer = Model(tiny.tiny_model(thresholds=Thresholds((0.99, low), "by hand"))).diagnose([pixels])[0]
    assert answer.label == "PNEUMONIA"
    assert answer.probability == by_label["PNEUMONIA"]
    assert answer.above_threshold == ("PNEUMONIA",)
    high = Thresholds((by_label["NORMAL"] * 0.9, 0.999), "by hand")
    answer = Model(tiny.tiny_model(thresholds=high)).diagnose([pixels])[0]
    assert (answer.label, answer.above_threshold) == ("NORMAL", ("NORMAL",))


def test_several_labels_may_be_above_their_threshold(tiny: ModuleType) -> None:
    data = tiny.tiny_model(labels="ABCD", thresholds=Thresholds((0.001,) * 4, "by hand"))
    assert Model(data).diagnose([noise()])[0].above_threshold == ("A", "B", "C", "D")


def test_embeddings_are_rows_of_length_1_in_the_order_of_the_pictures(opened: Model) -> None:
    pictures = [noise(seed) for seed in range(5)]
    vectors = opened.embed(pictures)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for picture, vector in zip(pictures, vectors, strict=True):
        np.testing.assert_allclose(opened.embed([picture])[0], vector, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 16])
@pytest.mark.parametrize("threads", [1, None])
def test_the_batch_size_changes_no_answer(model_bytes: bytes, batch_size: int, threads: int | None) -> None:
    pictures = [noise(seed) for seed in range(7)]
    one_by_one = [Model(model_bytes).diagnose([picture])[0] for picture in pictures]
    together = Model(model_bytes, batch_size=batch_size, threads=threads).diagnose(pictures)
    assert [each.label for each in together] == [each.label for each in one_by_one]
    np.testing.assert_allclose(
        [each.probability for each in together], [each.probability for each in one_by_one], atol=1e-6
    )


def test_no_pictures_get_no_answers(opened: Model) -> None:
    assert opened.diagnose([]) == []
    assert opened.embed([]).shape == (0, 8)
    assert opened.embed([]).dtype == np.float32


def test_pictures_are_taken_a_batch_at_a_time(model_bytes: bytes) -> None:
    taken: list[int] = []

    def endless() -> Any:
        for seed in range(10**9):
            taken.append(seed)
            yield noise(seed, 8, 8)

    answers = Model(model_bytes, batch_size=3).diagnose_each(endless())
    for _ in range(4):
        next(answers)
    assert len(taken) == 6


def test_only_the_outputs_asked_for_come_back_in_that_order(opened: Model) -> None:
    answers = opened.run(noise()[np.newaxis], ["embedding", "logits"])
    assert [(name, array.shape) for name, array in answers.items()] == [("embedding", (1, 8)), ("logits", (1, 2))]


def test_a_graph_that_fails_while_it_runs_is_a_model_error(tiny: ModuleType) -> None:
    proto = tiny.tiny_model_proto()
    proto.graph.initializer.append(helper.make_tensor("seven", TensorProto.INT64, [1], [7]))
    for node in proto.graph.node:
        if node.output[0] == "embedding":  # row 7 of a batch that has one
            node.CopyFrom(helper.make_node("Gather", ["vector", "seven"], ["embedding"], axis=0))
    broken = Model(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"^<bytes>: onnxruntime failed to run it: .*Gather"):
        broken.embed([noise()])


# --- bad pictures ----------------------------------------------------------------------------------------------


def test_a_bad_picture_is_named_by_its_path_or_its_place(
    opened: Model, make_png: Callable[..., bytes], tmp_path: Path
) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(make_png()[:-40])
    with pytest.raises(ImageError, match=r"cut\.png: truncated") as refused:
        opened.diagnose([make_png(), path])
    assert refused.value.reason is ImageReason.TRUNCATED
    with pytest.raises(ImageError, match=r"^image 2: "):
        opened.diagnose([make_png(), make_png(), b"not an image"])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_goes_on_after_a_bad_picture(model_bytes: bytes, make_png: Callable[..., bytes], batch_size: int) -> None:
    asked = Model(model_bytes, batch_size=batch_size)
    good = [make_png(seed) for seed in range(3)]
    answers = list(asked.diagnose_each([b"", good[0], b"x", b"y", good[1], good[2], b"z"]))
    assert [isinstance(each, ImageError) for each in answers] == [True, False, True, True, False, False, True]
    assert [answers[1], answers[4], answers[5]] == pytest.approx(asked.diagnose(good))
    vectors = list(asked.embed_each([b"", good[0]]))
    assert isinstance(vectors[0], ImageError)
    assert vectors[1].shape == (8,)


@pytest.mark.parametrize("one", ["a.png", b"bytes", Path("a.png")])
def test_one_picture_where_a_list_belongs_is_a_type_error(opened: Model, one: Any) -> None:
    with pytest.raises(TypeError, match="expected a list of images"):
        opened.diagnose(one)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((1, 3, 4, 4), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
        np.zeros((1, 0, 4, 3), np.uint8),
    ],
)
def test_pixels_of_another_type_or_shape_are_a_value_error(opened: Model, pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^pixels: expected uint8 \[N, H, W, 3\], got"):
        opened.run(pixels, ["logits"])


def test_no_outputs_are_a_value_error(opened: Model) -> None:
    with pytest.raises(ValueError, match="at least one"):
        opened.run(noise()[np.newaxis], [])


# --- the file itself -------------------------------------------------------------------------------------------


def test_a_model_knows_its_name_size_and_digest(model_path: Path, model_bytes: bytes) -> None:
    import hashlib

    opened = Model(model_path)
    assert (opened.name, opened.path) == ("model.onnx", model_path)
    assert opened.digest == hashlib.sha256(model_bytes).hexdigest()
    assert opened.size == len(model_bytes)
    assert isinstance(opened.manifest, Manifest)
    assert [each.name for each in opened.outputs] == ["logits", "probabilities", "embedding"]
    assert (Model(model_bytes).name, Model(model_bytes).path) == ("<bytes>", None)


def test_the_file_is_opened_on_first_need_and_once(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = session.Session.open

    def counting(data: bytes, name: str, threads: int) -> session.Session:
        opened.append(name)
        return real(data, name, threads)

    monkeypatch.setattr(session.Session, "open", counting)
    lazy = Model(model_path)
    assert opened == []
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: lazy.diagnose([noise(seed)]), range(16)))
    assert len(opened) == 1
    assert lazy.load() is lazy
    assert len(opened) == 1


def test_a_file_that_vanished_is_named(model_path: Path) -> None:
    late = Model(model_path)
    model_path.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be read: No such file"):
        late.load()


# --- threads and processes -------------------------------------------------------------------------------------


def test_never_more_threads_than_cpus_granted(model_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(model, "granted_cpus", lambda: 3)
    real = session._session_options

    def spy(threads: int) -> Any:
        options = real(threads)
        given.append(options.intra_op_num_threads)
        assert options.inter_op_num_threads == 1
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        return options

    monkeypatch.setattr(session, "_session_options", spy)
    for asked in (None, 1, 2, 3, 64):
        Model(model_bytes, threads=asked).load()
    assert given == [3, 1, 2, 3, 3]


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_get_the_answers_of_one(model_bytes: bytes, threads: int) -> None:
    shared = Model(model_bytes, threads=threads)
    pictures = [noise(seed) for seed in range(12)]
    alone = [shared.diagnose([picture]) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(lambda picture: shared.diagnose([picture]), pictures)) == alone


def test_it_pickles_without_its_session_and_opens_where_it_arrives(
    model_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(model_path.parent)
    original = Model("model.onnx", threads=1, batch_size=3)
    expected = original.diagnose([noise()])
    packed = pickle.dumps(original)
    assert len(packed) < 1000
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    copy = pickle.loads(packed)
    assert copy.diagnose([noise()]) == expected
    assert (copy.batch_size, copy.threads, repr(copy)) == (3, 1, "Model('model.onnx')")


def test_a_model_made_of_bytes_pickles_too(model_bytes: bytes) -> None:
    copy = pickle.loads(pickle.dumps(Model(model_bytes)))
    assert copy.diagnose([noise()]) == Model(model_bytes).diagnose([noise()])


@pytest.mark.parametrize("method", [m for m in ("spawn", "fork") if m in multiprocessing.get_all_start_methods()])
def test_a_process_pool_gives_the_same_answers(model_path: Path, method: str) -> None:
    opened = Model(model_path, threads=2).load()
    pictures = [[noise(seed)] for seed in range(4)]
    expected = [opened.diagnose(each) for each in pictures]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert list(pool.map(opened.diagnose, pictures, timeout=120)) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_opens_a_session_of_its_own(model_path: Path) -> None:
    # Threads of the parent's session do not exist in the child: to use it, or to close it, crashes or hangs.
    inherited = Model(model_path, threads=2).load()
    before = inherited._opened
    expected = inherited.diagnose([noise()])
    child = os.fork()
    if child == 0:
        try:
            same = inherited.diagnose([noise()]) == expected
            os._exit(0 if same and inherited._opened is not before else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert inherited._opened is before
    assert inherited.diagnose([noise()]) == expected
