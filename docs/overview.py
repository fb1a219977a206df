"""Draw docs/overview.png from what a demo really made: its images, its training, its files, its parity report.

python docs/overview.py build/demo
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from pocketdx_runtime import Model

INK, SOFT, LINE, PAPER = "#1b1f24", "#5b6670", "#c4ccd4", "#f6f8fa"
BLUE, GREEN = "#0b62c4", "#1a7f37"
WIDTH, HEIGHT = 16.0, 7.0
TOP, TALL = 3.05, 3.15
COLUMNS = {"images": (0.3, 3.1), "run": (4.65, 3.1), "bundle": (9.0, 3.1), "device": (13.2, 2.5)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder that `pocketdx demo` made")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("overview.png"))
    options = parser.parse_args()
    draw(options.demo, options.out)


def draw(demo: Path, out: Path) -> None:
    """Draw the picture; nothing on it is made up."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    page.axis("off")
    data, model = demo / "synthetic-smears", Model(demo / "bundle" / "model.fp32.onnx")
    cells = json.loads((demo / "bundle" / "parity.json").read_text("utf-8"))["cells"]
    parity = next(each for each in cells if (each["file"], each["backend"]) == ("model.fp32.onnx", "onnxruntime"))
    for name, (left, width) in COLUMNS.items():
        box(page, left, TOP, width, TALL)
        titles = {"images": "labelled images", "run": "a run", "bundle": "a bundle", "device": "phone or server"}
        page.text(left, TOP + TALL + 0.16, titles[name], fontsize=15, weight="bold")
    images(figure, page, data, model.manifest.labels)
    run(figure, page, demo / "run")
    bundle(page, demo / "bundle", model)
    device(figure, page, data, model)
    for before, after, command in (("images", "run", "train"), ("run", "bundle", "export"), ("bundle", "device", "")):
        (left, width), (right, _) = COLUMNS[before], COLUMNS[after]
        arrow(page, (left + width + 0.08, TOP + TALL / 2), (right - 0.08, TOP + TALL / 2))
        label = f"pocketdx\n{command}" if command else "one file"
        page.text((left + width + right) / 2, TOP + TALL / 2 + 0.14, label, ha="center", fontsize=12, color=BLUE)
    proof(page, parity)
    figure.savefig(out)
    # Enough colours for flat areas and a few tiles, at a fifth of the size.
    Image.open(out).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(out, optimize=True)


def box(page: Axes, left: float, bottom: float, width: float, height: float, **style: Any) -> None:
    """A card with round corners."""
    style = {"facecolor": PAPER, "edgecolor": LINE, "linewidth": 1.4, **style}
    shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.12", **style)
    page.add_patch(shape)


def arrow(page: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = BLUE) -> None:
    """A straight arrow."""
    page.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=20, linewidth=2, color=colour))


def tile(figure: Figure, picture: Path, left: float, bottom: float, side: float) -> None:
    """An image, in the page's units."""
    axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, side / WIDTH, side / HEIGHT))
    axes.imshow(Image.open(picture).resize((200, 200), Image.Resampling.LANCZOS))
    axes.axis("off")


def images(figure: Figure, page: Axes, data: Path, labels: tuple[str, ...]) -> None:
    """Three images of each class."""
    left, _ = COLUMNS["images"]
    side = 0.77
    for row, label in enumerate(labels):
        bottom = TOP + TALL - (row + 1) * 1.03 + 0.01
        page.text(left + 0.2, bottom + side + 0.05, label, fontsize=10.5, color=SOFT)
        for column, picture in enumerate(sorted((data / "test" / label).iterdir())[:3]):
            tile(figure, picture, left + 0.2 + column * 0.95, bottom, side)


def run(figure: Figure, page: Axes, folder: Path) -> None:
    """Validation AUC by epoch, and what the run found on test."""
    left, width = COLUMNS["run"]
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        history = list(csv.DictReader(file))
    inset = ((left + 0.62) / WIDTH, (TOP + 1.45) / HEIGHT, (width - 0.85) / WIDTH, 1.3 / HEIGHT)
    axes = figure.add_axes(inset, facecolor=PAPER)
    axes.plot(
        [float(each["epoch"]) for each in history], [float(each["val_auc"]) for each in history], color=BLUE, lw=2
    )
    axes.tick_params(labelsize=9, colors=SOFT)
    axes.set_title("validation AUC by epoch", fontsize=10.5, color=SOFT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    metrics = json.loads((folder / "run.json").read_text("utf-8"))["metrics"]
    for row, name in enumerate(("auc", "accuracy")):
        found = metrics[f"test/{name}"]
        text = f"test {name.replace('auc', 'AUC')} {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        page.text(left + 0.2, TOP + 0.84 - row * 0.27, text, fontsize=10)
    page.text(left + 0.2, TOP + 0.18, "PyTorch weights (safetensors)", fontsize=10.5, color=SOFT)


def bundle(page: Axes, folder: Path, model: Model) -> None:
    """The model file with its layers, and what lies beside it."""
    left, width = COLUMNS["bundle"]
    assert model.path is not None
    page.text(
        left + 0.2, TOP + TALL - 0.35, f"{model.path.name}, {model.size / 1e6:.1f} MB", fontsize=11.5, weight="bold"
    )
    size = model.manifest.preprocessing.size
    layers = (
        "uint8 pixels of any size",
        f"resize to {size} x {size}, normalise",
        model.manifest.architecture,
        "logits, probabilities, embedding",
    )
    for row, layer in enumerate(layers):
        bottom = TOP + TALL - 0.86 - row * 0.41
        box(page, left + 0.2, bottom, width - 0.4, 0.32, facecolor="white", linewidth=1)
        page.text(left + width / 2, bottom + 0.16, layer, ha="center", va="center", fontsize=10.5)
    beside = sorted((each.name for each in folder.iterdir() if each.suffix != ".onnx"), key=str.lower)
    for row in range(0, len(beside), 2):
        page.text(left + 0.2, TOP + 0.68 - row * 0.13, ", ".join(beside[row : row + 2]), fontsize=10, color=SOFT)


def device(figure: Figure, page: Axes, data: Path, model: Model) -> None:
    """One image, and what the file alone says of it."""
    left, width = COLUMNS["device"]
    label = model.manifest.labels[-1]
    picture = sorted((data / "test" / label).iterdir())[0]
    (answer,) = model.diagnose([picture])
    tile(figure, picture, left + width / 2 - 0.6, TOP + TALL - 1.35, 1.2)
    for row, (name, probability) in enumerate(answer.probabilities.items()):
        bottom = TOP + 1.32 - row * 0.36
        page.add_patch(Rectangle((left + 1.2, bottom), 0.75, 0.18, facecolor="white", edgecolor=LINE))
        page.add_patch(Rectangle((left + 1.2, bottom), 0.75 * probability, 0.18, facecolor=BLUE))
        page.text(left + 2.02, bottom + 0.09, f"{probability:.2f}", va="center", fontsize=10.5)
        weight = "bold" if name == answer.label else "normal"
        page.text(left + 1.12, bottom + 0.09, name, ha="right", va="center", fontsize=10.5, weight=weight)
    page.text(left + 0.2, TOP + 0.18, "onnxruntime, no PyTorch", fontsize=10.5, color=SOFT)


def proof(page: Axes, parity: dict[str, Any]) -> None:
    """The parity report, between the run and the bundle."""
    found = {(check["road"], check["name"]): check for check in parity["checks"]}
    (run_left, run_width), (bundle_left, bundle_width) = COLUMNS["run"], COLUMNS["bundle"]
    left, right = run_left, bundle_left + bundle_width
    colour = GREEN if parity["status"] == "passed" else "#b3261e"
    box(page, left, 0.3, right - left, 1.75, facecolor="white", edgecolor=colour, linewidth=2)
    for middle in (run_left + run_width / 2, bundle_left + bundle_width / 2):
        arrow(page, (middle, TOP - 0.06), (middle, 2.13), colour)
    page.text(left + 0.25, 1.68, "pocketdx parity", fontsize=13, weight="bold", color=BLUE)
    page.text(left + 2.25, 1.68, f"the same {parity['images']} image files through both", fontsize=12, color=SOFT)
    verdict = "PASSED" if parity["status"] == "passed" else "FAILED"
    page.text(right - 0.25, 1.68, verdict, ha="right", fontsize=13, weight="bold", color=colour)
    names = ("grey levels, max", "logits, max", "top-1 agreement")
    questions = ("the right pixels?", "the same numbers?", "the same decisions?")
    for row, (question, name) in enumerate(zip(questions, names, strict=True)):
        bottom = 1.27 - row * 0.36
        cells = [check for (_, each), check in found.items() if each == name]
        worst = (min if cells[0]["at_least"] else max)(cells, key=lambda check: check["value"])
        limit = f"{'at least' if worst['at_least'] else 'at most'} {_plain(worst['tolerance'])}"
        page.text(left + 0.25, bottom, question, fontsize=12)
        page.text(left + 2.9, bottom, name, fontsize=12, color=SOFT)
        page.text(left + 4.9, bottom, _plain(worst["value"]), fontsize=12)
        page.text(right - 0.25, bottom, limit, ha="right", fontsize=12, color=SOFT)


def _plain(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.3g}"


if __name__ == "__main__":
    main()
