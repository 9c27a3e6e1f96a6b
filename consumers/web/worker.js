// Decodes and classifies off the page's own thread, so that the page never freezes and can stop what takes too long.
import { decode } from "./decode.js";
import { ImageError } from "./image-file.js";
import { loadModel } from "./model.js";

const PREVIEW_SIDE = 1024; // pixels, longest side

let model = null;

self.onmessage = async ({ data: { file } }) => {
  try {
    const started = performance.now();
    const image = await decode(file);
    const decoded = performance.now();
    const probabilities = await model.run(image);
    const finished = performance.now();
    const preview = await scaleDown(image.canvas);
    const { width, height } = image;
    const times = { decodeMs: decoded - started, runMs: finished - decoded };
    self.postMessage({ type: "result", probabilities, width, height, preview, ...times }, [preview]);
  } catch (error) {
    const message = error instanceof ImageError ? error.message : `The image could not be classified: ${error.message}`;
    self.postMessage({ type: "error", message });
  }
};

function scaleDown(canvas) {
  const scale = Math.min(1, PREVIEW_SIDE / Math.max(canvas.width, canvas.height));
  const side = (length) => Math.max(1, Math.round(length * scale));
  return createImageBitmap(canvas, {
    resizeWidth: side(canvas.width),
    resizeHeight: side(canvas.height),
    resizeQuality: "high",
  });
}

try {
  const wanted = new URLSearchParams(self.location.search).get("backend");
  model = await loadModel(wanted, (loaded, total) => self.postMessage({ type: "progress", loaded, total }));
  const { classNames, backend, note, bytes } = model;
  self.postMessage({ type: "ready", classNames, backend, note, bytes });
} catch (error) {
  self.postMessage({ type: "failed", message: error.message });
}
