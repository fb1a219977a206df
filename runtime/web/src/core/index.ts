/** The PocketDx runtime for browsers and Node: what the page, parity and the device tests share. */
export { type Diagnosis, decide, diagnose, found } from "./diagnosis";
export { PocketDxError } from "./errors";
export { type PictureFile, inspectPicture } from "./imagefile";
export { type Manifest, MANIFEST_KEY, SCHEMA_VERSION, checkManifest, readManifest } from "./manifest";
export { Model, type OpenOptions, type Output, openModel } from "./model";
export { type NpyArray, readNpz } from "./npz";
export { readMetadata } from "./onnxfile";
export { Squash, resize } from "./resize";
export { type OutputCheck, type Runs, type SelfTest, runSelfTest } from "./selftest";
