/** A photo: with the phone's own camera app where there is one, else with the camera in this page. */
import { byId } from "./dom";

const dialog = byId("camera", HTMLDialogElement);
const video = byId("video", HTMLVideoElement);
const note = byId("camera-note", HTMLParagraphElement);
const shoot = byId("shoot", HTMLButtonElement);
const capture = byId("capture", HTMLInputElement);

let stream: MediaStream | null = null;
let count = 0;

/** Lets the user take photos; each goes to `use`. */
export function setUpCamera(use: (files: File[]) => void): void {
  byId("take", HTMLButtonElement).addEventListener("click", () => {
    // A phone's camera app focuses, exposes and resolves better than a video frame; no page can match it. Without a
    // secure connection there is no other way either.
    const phone = matchMedia("(pointer: coarse)").matches;
    if (phone || navigator.mediaDevices === undefined) capture.click();
    else void open();
  });
  capture.addEventListener("change", () => {
    use([...(capture.files ?? [])]);
    capture.value = "";
  });
  shoot.addEventListener("click", async () => {
    const file = await frame();
    dialog.close();
    if (file !== null) use([file]);
  });
  byId("camera-close", HTMLButtonElement).addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    video.srcObject = null;
  });
}

async function open(): Promise<void> {
  shoot.disabled = true;
  note.textContent = "Waiting for the camera; your browser may ask whether this page may use it.";
  dialog.showModal();
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1920 }, height: { ideal: 1080 } };
    const granted = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    if (!dialog.open) {
      for (const track of granted.getTracks()) track.stop();
      return;
    }
    stream = granted;
    video.srcObject = granted;
    await video.play();
    note.textContent = "";
    shoot.disabled = false;
    shoot.focus();
  } catch (error) {
    const denied = error instanceof DOMException && error.name === "NotAllowedError";
    note.textContent = denied
      ? "This page may not use the camera. Allow it in the browser's settings for this page, or choose a file."
      : "No camera could be started. Is another program using it? You can choose a file instead.";
  }
}

/** The picture in view, without loss. */
async function frame(): Promise<File | null> {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d", { alpha: false })?.drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/png" });
  count += 1;
  return new File([blob], `Photo ${count}`, { type: "image/png" });
}
