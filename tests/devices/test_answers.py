"""The same model on every device: fp32 as PyTorch has it, int8 the same to the last bit wherever integers are exact."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pocketdx_export.backends import Outputs, Pixels
from pocketdx_runtime.manifest import Manifest

from .conftest import Answers, available

ARM = ("arm64-cortex-a72", "arm64-cortex-a76", "arm64-max")
WEB = ("node", "browser-1", "browser-2")
# An emulated processor takes its time: each file on each of them is some ten seconds.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (ARM[0], ARM[2], WEB[1])]


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-plain", ARM[1], WEB[0], WEB[2], *SLOW])
def test_fp32_is_within_1e_4_of_pytorch(name: str, answers: Answers, expected: Outputs) -> None:
    found = answers(name, "fp32")
    assert np.ptp(expected["logits"], axis=0).min() > 1  # else the same answer to all pictures would pass
    for output, values in expected.items():
        assert found[output].dtype == np.float32
        np.testing.assert_allclose(found[output], values, rtol=0, atol=1e-4, err_msg=output)


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), list(combinations(ARM, 2)))
def test_int8_logits_are_the_same_to_the_last_bit_on_all_arm_processors(one: str, other: str, answers: Answers) -> None:
    first, second = answers(one, "int8"), answers(other, "int8")
    np.testing.assert_array_equal(first["logits"], second["logits"])
    # What is float in the graph after them is added up in another order where there is SVE: softmax, length.
    for output in first:
        np.testing.assert_allclose(first[output], second[output], rtol=0, atol=2e-7, err_msg=output)


@pytest.mark.slow
def test_int8_on_arm_is_computed_in_integers(answers: Answers) -> None:
    """The quantized file's answers are not the float file's, so the test above compares integer kernels."""
    difference = answers(ARM[1], "int8")["logits"] - answers(ARM[1], "fp32")["logits"]
    assert 1e-3 < np.abs(difference).max() < 5


@pytest.mark.slow
def test_int8_is_the_same_in_node_and_in_the_browser_with_one_thread_and_with_two(answers: Answers) -> None:
    node, *browsers = (answers(name, "int8") for name in WEB)
    for browser in browsers:
        for output in node:
            np.testing.assert_array_equal(browser[output], node[output], err_msg=output)


@pytest.mark.parametrize(("file", "apart"), [("fp32", 1e-4), ("int8", 0.2)])
def test_onnx_own_evaluator_is_a_second_opinion_on_floats_and_on_integers(
    file: str, apart: float, manifest: Manifest, known: list[Pixels], request: pytest.FixtureRequest
) -> None:
    path, few = request.getfixturevalue(file), known[:2]
    with available("onnx-reference").opened(path, manifest) as run:
        theirs = run(few)["logits"]
    # This int8 file rounds its logits, too, in steps of 0.047: what rounds otherwise before moves them by a few.
    with available("onnxruntime-plain").opened(path, manifest) as run:
        ours = run(few)["logits"]
    assert np.ptp(ours, axis=0).max() > 4 * apart
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=apart)


def test_a_device_answers_again_and_in_the_order_of_the_pictures(
    fp32: Path, manifest: Manifest, pictures: list[Pixels], expected: Outputs
) -> None:
    with available("node").opened(fp32, manifest) as run:
        there, back = run(pictures)["logits"], run(pictures[::-1])["logits"]
        one = run(pictures[1:2])["logits"]
    np.testing.assert_array_equal(back, there[::-1])
    np.testing.assert_array_equal(one, there[1:2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("arm64-cortex-a72", {"asimd"}, {"asimddp", "i8mm", "sve"}),
        ("arm64-cortex-a76", {"asimd", "asimddp"}, {"i8mm", "sve"}),
        ("arm64-max", {"asimd", "asimddp", "i8mm", "bf16", "sve2"}, set()),
    ],
)
def test_a_program_sees_the_instruction_sets_of_its_processor(
    name: str, has: set[str], lacks: set[str], fp32: Path, manifest: Manifest
) -> None:
    with available(name).opened(fp32, manifest) as run:
        about = run.about
    assert about["architecture"] == "aarch64"
    assert has <= set(about["flags"])
    assert not lacks & set(about["flags"])
    assert {"onnxruntime", "numpy", "python", "qemu"} <= about["software"].keys()


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_the_browsers_page_is_isolated_and_says_what_it_runs_in(threads: int, fp32: Path, manifest: Manifest) -> None:
    with available(f"browser-{threads}").opened(fp32, manifest) as run:
        assert run.about["isolated"] is True
        assert run.about["threads"] == threads
        assert {"chromium", "onnxruntime-web"} <= run.about["software"].keys()
