/** Class evidence laid over the picture, with a slider for how strongly. */
import { make } from "./dom";
import type { Heat } from "./protocol";

/**
 * The overlay and its slider.
 *
 * The network saw the whole picture squashed to a square, so its map covers the whole picture, whatever the aspect.
 * Colours run from nothing at no evidence (or evidence against the label) to yellow at the map's own maximum: the map
 * says where, not how much.
 */
export function heatOverlay(heat: Heat, label: string): { overlay: HTMLCanvasElement; control: HTMLElement } {
  const overlay = make("canvas", { className: "heat", width: heat.width, height: heat.height });
  overlay.setAttribute("aria-hidden", "true");
  const most = heat.data.reduce((a, b) => Math.max(a, b), 0);
  const image = new ImageData(heat.width, heat.height);
  heat.data.forEach((value, index) => {
    const share = most > 0 ? Math.max(0, value) / most : 0;
    image.data.set([255, 70 + 170 * share, 30 * share, 255 * Math.sqrt(share)], index * 4);
  });
  overlay.getContext("2d")?.putImageData(image, 0, 0);
  const slider = make("input", { type: "range", min: "0", max: "100", value: "50" });
  const show = () => overlay.style.setProperty("opacity", String(slider.valueAsNumber / 100));
  slider.addEventListener("input", show);
  show();
  return { overlay, control: make("label", { className: "heat-control" }, `Evidence for ${label} `, slider) };
}
