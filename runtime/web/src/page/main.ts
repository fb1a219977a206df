/** The page: which model, where it runs, which pictures, and their answers. */
import { type ServedModel, diagnoseOnServer, hasEngine, modelNames, servedModel, sourcesOf } from "./api";
import { setUpCamera } from "./camera";
import { Card, PLACES, type Place } from "./card";
import { call, warmUp } from "./device";
import { byId, make } from "./dom";
import { askForKey } from "./key";
import { Fault, type Opened } from "./protocol";
import { showProgress, showStatus } from "./status";

const MODE = "pocketdx.mode";

interface Job {
  readonly file: File;
  readonly card: Card;
  /** Chosen when the picture was added: one that was added for this device is never sent by a later switch. */
  place: Place;
  failure: Fault | null;
}

const cards = byId("cards", HTMLOListElement);
const radios = [...document.querySelectorAll<HTMLInputElement>("input[name=mode]")];
const jobs = new Set<Job>();

let place: Place = localStorage.getItem(MODE) === "server" ? "server" : "device";
let name = "";
let names: readonly string[] = [];
let served: Promise<ServedModel> | null = null;
let opened: Promise<Opened> | null = null;
let queue: Promise<void> = Promise.resolve();

/** Runs `act`, asking for a key as often as the server wants one and the user gives one. */
async function withKey<T>(act: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await act();
    } catch (error) {
      if (!(error instanceof Fault) || error.kind !== "unauthorized" || !(await askForKey())) throw error;
    }
  }
}

function model(): Promise<ServedModel> {
  served ??= withKey(() => servedModel(name)).then(
    (found) => {
      describeModel(found);
      return found;
    },
    (error: unknown) => {
      served = null;
      throw error;
    },
  );
  return served;
}

function describeModel({ manifest }: ServedModel): void {
  byId("model-line", HTMLParagraphElement).textContent = `${manifest.name} · ${manifest.precision} · ${manifest.labels.join(", ")}`;
  const use = manifest.intended_use.replace(/\s*Not a medical device\.?/i, "").trim();
  byId("intended-use", HTMLSpanElement).textContent = use;
  document.title = `${manifest.name} · PocketDx`;
}

/** The model on this device, downloaded and tested; the second call on, the same. */
function onDevice(): Promise<Opened> {
  opened ??= model()
    .then(({ digest }) => withKey(() => call("open", { ...sourcesOf(name, digest), keep: keptDigests() }, showProgress)))
    .catch((error: unknown) => {
      opened = null;
      if (place === "device") showTrouble(error);
      throw error;
    });
  return opened;
}

function keptDigests(): string[] {
  const remembered = names.map((each) => localStorage.getItem(`pocketdx.model.${each}`));
  return remembered.flatMap((each) => (each === null ? [] : [String((JSON.parse(each) as { digest: unknown }).digest)]));
}

/** Make the chosen place ready, and say how it stands. */
async function prepare(): Promise<void> {
  const wanted = place;
  showStatus("busy", wanted === "device" ? "Getting the model ready…" : "Asking the server…");
  try {
    if (wanted === "server") {
      const { remembered } = await model();
      if (remembered) throw new Fault("unreachable", "The server cannot be reached. Check the connection, then try again.");
      if (place === wanted) showStatus("ready", "The server is ready.");
      return;
    }
    const { remembered } = await model();
    const { selfTest } = await onDevice();
    const worst = Math.max(...selfTest.checks.map((each) => each.maxDifference));
    const tested = `Ready. Tested on this device with ${selfTest.images} pictures: the full model's answers to within ${worst.toPrecision(1)}.`;
    const offline = "serviceWorker" in navigator ? " Works without a connection from now on." : "";
    if (place === wanted) showStatus("ready", tested + (remembered ? " There is no connection." : offline));
  } catch (error) {
    if (place === wanted) showTrouble(error);
  }
}

function showTrouble(error: unknown): void {
  const again = make("button", { type: "button", textContent: "Try again" });
  again.addEventListener("click", () => void prepare());
  const other = make("button", { type: "button", textContent: "Use the server instead" });
  other.addEventListener("click", () => choose("server"));
  showStatus("trouble", message(error), place === "device" ? [again, other] : [again]);
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function choose(chosen: Place): void {
  place = chosen;
  localStorage.setItem(MODE, chosen);
  showMode();
  void prepare();
}

function showMode(): void {
  for (const each of radios) each.checked = each.value === place;
  byId("mode-note", HTMLParagraphElement).textContent =
    place === "device"
      ? "Pictures stay on this device: nothing is sent."
      : `Pictures are sent to ${location.host}, which keeps none of them.`;
  for (const job of jobs) if (job.failure !== null) showFailure(job);
}

function showFailure(job: Job): void {
  const act = () => {
    job.place = place;
    enqueue(job);
  };
  // A bad picture stays bad where it was refused, but the server reads kinds of pictures that browsers do not.
  const hopeless = job.failure?.kind === "picture" && place === job.place;
  job.card.failed(job.failure?.message ?? "", hopeless ? null : { text: `Try again ${PLACES[place]}`, act });
}

function add(files: readonly File[]): void {
  for (const file of files) {
    const card = new Card(file.name, () => remove(job));
    const job: Job = { file, card, place, failure: null };
    jobs.add(job);
    cards.append(card.element);
    enqueue(job);
  }
  showCount();
}

function remove(job: Job): void {
  const next = job.card.element.nextElementSibling ?? job.card.element.previousElementSibling;
  job.card.element.remove();
  jobs.delete(job);
  showCount();
  // Focus stays nearby instead of falling back to the top of the page.
  (next?.querySelector("button") ?? byId("answers", HTMLElement)).focus();
}

function showCount(): void {
  byId("empty", HTMLParagraphElement).hidden = jobs.size > 0;
  byId("clear", HTMLButtonElement).hidden = jobs.size < 2;
}

/** One picture at a time, in the order they came. */
function enqueue(job: Job): void {
  job.failure = null;
  job.card.waiting("Waiting…");
  queue = queue.then(async () => {
    if (!jobs.has(job)) return;
    job.card.waiting(`Being examined ${PLACES[job.place]}…`);
    try {
      announce(await (job.place === "device" ? examineHere(job) : examineThere(job)));
      performance.mark("pocketdx:answer");
    } catch (error) {
      job.failure = error instanceof Fault ? error : new Fault("other", message(error));
      showFailure(job);
      announce(`${job.file.name}: no answer. ${job.failure.message}`);
    }
  });
}

async function examineHere({ file, card }: Job): Promise<string> {
  const { manifest } = await onDevice();
  const { answer, picture } = await call("diagnose", file);
  card.picture(picture);
  return card.answer(answer, manifest, "device");
}

async function examineThere({ file, card }: Job): Promise<string> {
  const { digest, manifest } = await model();
  const [shown, answer] = await Promise.allSettled([
    call("preview", file),
    withKey(() => diagnoseOnServer(file, name, digest, manifest)),
  ]);
  card.picture(shown.status === "fulfilled" ? shown.value.picture : null);
  if (answer.status === "rejected") throw answer.reason;
  return card.answer(answer.value, manifest, "server");
}

function announce(text: string): void {
  byId("announcer", HTMLParagraphElement).textContent = text;
}

function setUpInputs(): void {
  const input = byId("files", HTMLInputElement);
  byId("choose", HTMLButtonElement).addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    add([...(input.files ?? [])]);
    input.value = "";
  });
  const drop = byId("drop", HTMLElement);
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    add([...(event.dataTransfer?.files ?? [])]);
  });
  document.addEventListener("paste", (event) => add([...(event.clipboardData?.files ?? [])]));
  byId("clear", HTMLButtonElement).addEventListener("click", () => {
    for (const job of [...jobs]) remove(job);
  });
  setUpCamera(add);
}

async function setUpModels(): Promise<void> {
  names = await withKey(modelNames).catch(() => []);
  const select = byId("model-select", HTMLSelectElement);
  if (names.length < 2) return;
  select.replaceChildren(...names.map((each) => make("option", { value: each, textContent: each })));
  byId("model-choice", HTMLParagraphElement).hidden = false;
  select.addEventListener("change", () => {
    name = select.value;
    served = null;
    opened = null;
    void prepare();
  });
}

/** Without the engine on the server there is nothing to run a model with on this device. */
async function checkEngine(): Promise<void> {
  if (await hasEngine()) return;
  const radio = radios.find((each) => each.value === "device");
  if (radio !== undefined) radio.disabled = true;
  byId("engine-note", HTMLParagraphElement).hidden = false;
  if (place === "device") {
    place = "server"; // not remembered: the user did not choose it
    showMode();
  }
}

async function start(): Promise<void> {
  for (const each of radios) each.addEventListener("change", () => choose(each.value as Place));
  setUpInputs();
  showMode();
  showStatus("busy", "Asking the server…");
  if ("serviceWorker" in navigator) {
    navigator.serviceWorker.register(new URL("sw.js", document.baseURI)).catch(() => undefined); // then not offline
  }
  warmUp();
  void model().catch(() => undefined); // asked while the next answer is on its way; prepare says what is wrong
  await checkEngine();
  await Promise.all([setUpModels(), prepare()]);
}

void start();
