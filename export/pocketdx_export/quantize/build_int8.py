"""The int8 graph of a run: calibration images, search, report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx

from pocketdx_export.errors import ExportError
from pocketdx_export.quantize.calibration import RunImages
from pocketdx_export.quantize.integer import Quantizer, Recipe
from pocketdx_export.quantize.picture import frontier
from pocketdx_export.quantize.search import Search, impossible, search
from pocketdx_export.quantize.trial import Decisions, Judge, time_in_turns
from pocketdx_runtime.manifest import Quantization

if TYPE_CHECKING:
    from pocketdx_export.material import Calibrated, Material

TABLE_FILE, PICTURE_FILE = "int8_search.json", "int8_search.png"


def build_int8(material: Material) -> tuple[onnx.ModelProto, Quantization]:
    """The graph, and what its manifest says of it.

    Raises:
        ExportError: no images, too few of a class, or no candidate within the budget.
    """
    images, calibrated = material.images, material.calibrated
    if images is None or calibrated is None:
        raise ExportError("int8: needs the run's images to calibrate on; name them with --data, or take --precision w8")
    judge = Judge(material.fp32_graph, images.split("val"), material.run.record.temperature)
    graph, recipe, decisions, tuned = _found(material, calibrated, judge, images)
    quantization = Quantization(
        weights="int8, symmetric, per output channel; sums that x86 makes of two products fit 16 bits",
        activations="uint8 per tensor in integer blocks, float32 elsewhere",
        method="; ".join(
            [
                "weights: least squared error in the outputs",
                f"ranges: {recipe.ranges}",
                *(["cross-layer equalisation"] if recipe.equalized else []),
                *(["bias correction"] if recipe.corrected else []),
                *(["quantization-aware fine-tuning"] if tuned else []),
            ]
        ),
        integer_blocks=recipe.integer,
        float_blocks=tuple(name for name in _blocks(material) if name not in recipe.integer),
        budget={"auc": material.budget.auc, "agreement": material.budget.agreement} if material.budget else {},
        validation={
            "agreement": decisions.agreement,
            "shifted_agreement": decisions.shifted_agreement,
            "expected_agreement": decisions.expected_agreement,
            "sure_agreement": decisions.sure_agreement,
            "auc_loss": decisions.auc_loss,
            "shifted_auc_loss": decisions.shifted_auc_loss,
        },
    )
    return graph, calibrated.described(quantization)


def _found(
    material: Material, calibrated: Calibrated, judge: Judge, images: RunImages
) -> tuple[onnx.ModelProto, Recipe, Decisions, bool]:
    """The graph, its recipe, what it does on validation, and whether the network was fine-tuned for it."""
    quantizer = Quantizer(material.fp32_graph, calibrated.images, calibrated.moments)
    if material.budget is None:
        recipe = Recipe(quantizer.names)
        graph = quantizer.graph(recipe)
        return graph, recipe, judge.decisions(graph), False
    found, graph_or_none = _searched(material, quantizer, judge)
    tuned = False
    if graph_or_none is None and material.qat:
        from pocketdx_export.quantize.qat import fine_tuned_graph

        material.say("int8: the budget cannot be held as the network is; fine-tuning it in 8 bits")
        tuned = True
        quantizer = Quantizer(fine_tuned_graph(material, images), calibrated.images)
        found, graph_or_none = _searched(material, quantizer, judge)
    _report(material, found)
    if graph_or_none is None or found.chosen is None:
        raise impossible(found)
    chosen = found.candidate(found.chosen)
    assert chosen.recipe is not None
    return graph_or_none, chosen.recipe, chosen.decisions, tuned


def _searched(material: Material, quantizer: Quantizer, judge: Judge) -> tuple[Search, onnx.ModelProto | None]:
    assert material.budget is not None
    size = material.fp32_manifest.preprocessing.size
    timer = material.timer or time_in_turns
    return search(material.fp32_graph, quantizer, judge, material.budget, timer, size, material.say)


def _report(material: Material, found: Search) -> None:
    """The path of the search, into the bundle and to the user."""
    content = json.dumps(found.to_dict(), indent=2) + "\n"
    material.reports[TABLE_FILE] = content.encode()
    material.reports[PICTURE_FILE] = frontier(found)
    material.say(found.table())
    material.say(found.advice())


def _blocks(material: Material) -> tuple[str, ...]:
    from pocketdx_export.quantize.blocks import block_names, block_of_nodes

    return block_names(block_of_nodes(material.fp32_graph.graph))
