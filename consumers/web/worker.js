// Decodes and classifies off the page's own thread, so that the page never freezes and can stop what takes too long.
import { decode } from "./decode.js";
import { ImageError } from "./image-file.js";
import { loadModel } from "./model.js";

const PREVIEW_SIDE = 1024; // pixels, longest side

let model = null;

self.onmessage = async ({ data: { file, previewOnly } }) => {
  const say = (text) => self.postMessage({ type: "step", text });
  try {
    say("decoding …");
    const started = performance.now();
    const image = await decode(file);
    const { width, height } = image;
    if (previewOnly) return sendPreview({ type: "preview" }, image);
    const decoded = performance.now();
    say(`${((width * height) / 1e6).toFixed(1)} megapixels, classifying …`);
    const answer = await model.run(image);
    const times = { decodeMs: decoded - started, runMs: performance.now() - decoded };
    await sendPreview({ type: "result", ...answer, width, height, ...times }, image);
  } catch (error) {
    const message = error instanceof ImageError ? error.message : `The image could not be classified: ${error.message}`;
    self.postMessage({ type: "error", message });
  }
};

async function sendPreview(message, { canvas }) {
  const preview = await scaleDown(canvas);
  self.postMessage({ ...message, preview }, [preview]);
}

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
  const words = new URLSearchParams(self.location.search);
  const onProgress = (loaded, total) => self.postMessage({ type: "progress", loaded, total });
  model = await loadModel(words.get("model"), words.get("backend"), onProgress);
  self.postMessage({ type: "ready", ...model.facts });
} catch (error) {
  self.postMessage({ type: "failed", message: error.message });
}
