// Fetches the ONNX model, chooses what runs it (WebGPU, else WebAssembly) and runs it.
import { readMetadata } from "./onnx-metadata.js";

/**
 * @param {string | null} name one of the server's models; null takes its first
 * @param {string | null} wanted `webgpu` or `wasm`; null chooses
 * @param {(loaded: number, total: number) => void} onProgress bytes so far; total is 0 where unknown
 * @returns {Promise<{facts: object, run: Function}>} what the page may know of the model, and what runs it
 * @throws {Error} with a message for the page's reader
 */
export async function loadModel(name, wanted, onProgress) {
  const { bytes, date } = await fetchModel(name, onProgress);
  const facts = { name: name ?? "model.onnx", date, bytes: bytes.length, note: "", ...readFacts(bytes) };
  if (wanted === "webgpu" || (wanted === null && (await hasGpu()))) {
    try {
      return await start("webgpu", bytes, facts);
    } catch (error) {
      facts.note = `WebGPU could not run this model (${error.message})`;
    }
  }
  try {
    return await start("wasm", bytes, facts);
  } catch (error) {
    throw new Error(`The model does not run here: ${error.message}. Build the page (make web) or export the model again.`);
  }
}

async function fetchModel(name, onProgress) {
  const response = await fetch(name === null ? "model.onnx" : `models/${encodeURIComponent(name)}`).catch(() => null);
  if (!response) throw new Error("The page's server does not answer. Start it with make web and reload.");
  if (response.status === 404 && name !== null) throw new Error(`There is no model ${name}; the page offers those it has.`);
  if (response.status === 404) throw new Error("There is no model yet. Make one with dvc repro export, then reload.");
  if (!response.ok) throw new Error(`The page's server answered ${response.status} for the model.`);
  const total = Number(response.headers.get("Content-Length"));
  const chunks = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    onProgress((loaded += value.length), total);
  }
  const bytes = new Uint8Array(await new Blob(chunks).arrayBuffer());
  return { bytes, date: response.headers.get("Last-Modified") };
}

/** Class names, thresholds and provenance out of the file's metadata; all but the names are optional. */
function readFacts(bytes) {
  try {
    const metadata = readMetadata(bytes);
    const classNames = JSON.parse(metadata.class_names ?? "null");
    if (!Array.isArray(classNames) || !classNames.length) throw new Error("its metadata names no classes");
    const { resize, crop } = JSON.parse(metadata.test_transform ?? "{}");
    return {
      classNames: classNames.map(String),
      thresholds: JSON.parse(metadata.thresholds ?? "{}"),
      crop: resize ? crop / resize : 1, // the share of each side that the model sees
      architecture: metadata.architecture,
      recipe: metadata.recipe,
      digest: metadata.weights_digest,
    };
  } catch (error) {
    throw new Error(`The model file cannot be used: ${error.message}. Export it again: dvc repro export.`);
  }
}

/** Whether there is WebGPU on a real GPU: emulated on the processor it was a hundred times slower than WebAssembly. */
async function hasGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !adapter.info?.isFallbackAdapter;
  } catch {
    return false;
  }
}

/** Only the runtime that is used is fetched: the one with WebGPU is twice as large. */
async function start(provider, bytes, facts) {
  const ort = await import(`./dist/ort.${provider}.min.mjs`);
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [provider] });
  const run = async ({ pixels, width, height }) => {
    const image = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const { probabilities, familiarity, heatmap } = await session.run({ image });
    return {
      probabilities: Array.from(probabilities.data),
      familiarity: familiarity?.data[0],
      heatmap: heatmap && { data: Array.from(heatmap.data), shape: heatmap.dims.slice(1) },
      crop: facts.crop,
    };
  };
  await run({ pixels: new Uint8Array(64 * 64 * 3), width: 64, height: 64 }); // compiles what is compiled lazily
  const { numThreads } = ort.env.wasm;
  const threads = numThreads > 1 ? `${numThreads} threads` : "1 thread";
  return { run, facts: { ...facts, backend: provider === "webgpu" ? "WebGPU" : `WebAssembly, ${threads}` } };
}
