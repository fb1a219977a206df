/** One picture and what is said of it. */
import type { Manifest } from "../core";
import { make } from "./dom";
import { heatOverlay } from "./heatmap";
import type { Answer } from "./protocol";
import { percent, seconds, verdict } from "./words";

export type Place = "device" | "server";

export const PLACES: Readonly<Record<Place, string>> = { device: "on this device", server: "on the server" };

export class Card {
  readonly element: HTMLLIElement;
  private readonly frame = make("div", { className: "frame" }, make("span", { className: "hint", textContent: "…" }));
  private readonly body = make("div", { className: "body" });
  private readonly title: HTMLHeadingElement;

  constructor(
    readonly name: string,
    remove: () => void,
  ) {
    this.title = make("h3", { textContent: name });
    this.title.id = `card-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    const close = make("button", { type: "button", className: "quiet", textContent: "Remove" });
    close.setAttribute("aria-label", `Remove ${name}`);
    close.addEventListener("click", remove);
    const article = make(
      "article",
      { className: "card" },
      this.frame,
      make("div", { className: "text" }, make("div", { className: "line" }, this.title, close), this.body),
    );
    article.setAttribute("aria-labelledby", this.title.id);
    this.element = make("li", {}, article);
  }

  waiting(text: string): void {
    this.body.replaceChildren(make("p", { className: "hint", textContent: text }));
    this.element.setAttribute("aria-busy", "true");
  }

  picture(bitmap: ImageBitmap | null): void {
    if (bitmap === null) {
      this.frame.replaceChildren(make("span", { className: "hint", textContent: "No preview" }));
      return;
    }
    const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `The picture ${this.name}`);
    canvas.getContext("bitmaprenderer")?.transferFromImageBitmap(bitmap);
    this.frame.replaceChildren(make("div", { className: "stack" }, canvas));
  }

  /** Show an answer; returns it in one sentence, to be read out. */
  answer(answer: Answer, manifest: Manifest, place: Place): string {
    const { diagnosis, doubtful, reasons } = verdict(answer, manifest);
    const values = manifest.thresholds.values;
    const bars = manifest.labels.map((label, index) =>
      bar(label, answer.probabilities[index] as number, values?.[index] ?? null, label === diagnosis.label),
    );
    const heat = answer.heat[manifest.labels.indexOf(diagnosis.label)];
    const overlaid = heat === undefined ? null : heatOverlay(heat, diagnosis.label);
    if (overlaid !== null) this.frame.querySelector(".stack")?.append(overlaid.overlay);
    const total = seconds(answer.decodeMs + answer.inferenceMs);
    this.body.replaceChildren(
      make(
        "p",
        { className: doubtful ? "verdict doubtful" : "verdict" },
        make("strong", { textContent: diagnosis.label }),
        ` ${percent(diagnosis.probability)}`,
        doubtful ? make("span", { className: "flag", textContent: "Doubtful: ask a specialist" }) : null,
      ),
      make("ul", { className: "bars" }, ...bars),
      make("ul", { className: "reasons" }, ...reasons.map((text) => make("li", { textContent: text }))),
      overlaid?.control ?? "",
      make("p", {
        className: "hint facts",
        textContent:
          `Examined ${PLACES[place]} in ${total} (the model itself: ${seconds(answer.inferenceMs)}) · ` +
          `${manifest.name} · ${manifest.precision}`,
      }),
    );
    this.element.removeAttribute("aria-busy");
    return `${this.name}: ${diagnosis.label}, ${percent(diagnosis.probability)}${doubtful ? ", doubtful" : ""}.`;
  }

  /** Say why there is no answer, and what can be done. */
  failed(message: string, retry: { text: string; act(): void } | null): void {
    const again = retry === null ? "" : make("button", { type: "button", textContent: retry.text });
    if (again !== "") again.addEventListener("click", () => retry?.act());
    this.body.replaceChildren(
      make("p", { className: "failure" }, make("strong", { textContent: "No answer. " }), message),
      again,
    );
    if (this.frame.querySelector("canvas") === null) this.picture(null);
    this.element.removeAttribute("aria-busy");
  }
}

function bar(label: string, probability: number, threshold: number | null, chosen: boolean): HTMLLIElement {
  const fill = make("span", { className: "fill" });
  fill.style.setProperty("width", `${probability * 100}%`);
  const track = make("span", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true");
  let limit: Node | null = null;
  if (threshold !== null) {
    const mark = make("span", { className: "mark" });
    mark.style.setProperty("left", `${threshold * 100}%`);
    track.append(mark);
    limit = make("span", { className: "limit", textContent: `threshold ${percent(threshold)}` });
  }
  return make(
    "li",
    { className: chosen ? "chosen" : "" },
    make("span", { className: "label", textContent: label }),
    make("data", { className: "value", value: String(probability), textContent: percent(probability) }),
    track,
    limit,
  );
}
