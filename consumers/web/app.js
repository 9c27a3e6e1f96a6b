// The page: takes a picture by drop, paste, file or camera, hands it to the worker, shows what comes back.
import { openCamera } from "./camera.js";

const TIME_LIMIT = 60_000; // milliseconds for one picture
const MAX_BARS = 10;

const $ = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(1)} %`;

let worker = null;
let classNames = [];
let ready = false;
let broken = ""; // why no model can be had, where none can
let queued = null; // the latest picture, where it came before the worker was free
let current = null; // the picture the worker is at, or was last
let timer = null; // set while the worker is at a picture

startWorker();

function startWorker() {
  ready = false;
  worker = new Worker(`worker.js${location.search}`, { type: "module" }); // ?backend=webgpu or wasm overrules the choice
  worker.onmessage = ({ data }) => HANDLERS[data.type](data);
  worker.onerror = () => HANDLERS.failed({ message: "This page's scripts did not load. Build it with make web." });
}

const HANDLERS = {
  progress({ loaded, total }) {
    $("loading-bar").max = total || 1;
    if (total) $("loading-bar").value = loaded;
    $("loading-text").textContent = `Loading the model … ${(loaded / 1e6).toFixed(0)} MB`;
    if (total && loaded >= total) {
      $("loading-text").textContent = "Starting the model …";
      $("loading-bar").removeAttribute("value");
    }
  },
  ready({ classNames: names, backend, note, bytes }) {
    classNames = names;
    ready = true;
    $("classes").textContent = describeClasses(names);
    const size = `${(bytes / 1e6).toFixed(1)} MB`;
    $("backend").textContent = `Runs on ${backend}; the model is ${size}.${note ? ` ${note}; WebAssembly runs it.` : ""}`;
    if (!$("loading").hidden && !queued) show("waiting");
    finish();
  },
  failed({ message }) {
    broken = message;
    fail("The model is not ready", broken);
  },
  result({ probabilities, width, height, preview, decodeMs, runMs }) {
    stopTimer();
    draw(preview);
    showBars(probabilities);
    const backend = $("backend").textContent.match(/^Runs on ([^;]*)/)[1];
    const times = `decoded in ${Math.ceil(decodeMs)} ms, classified in ${Math.ceil(runMs)} ms`;
    $("facts").textContent = `${width} × ${height} pixels, ${times} by ${backend}`;
    show("result");
    finish();
  },
  error({ message }) {
    stopTimer();
    fail(noAnswer(), message);
    finish();
  },
};

function classify(file) {
  if (broken) return fail("The model is not ready", broken);
  queued = file;
  document.body.dataset.state = "busy";
  runQueued();
}

function runQueued() {
  if (!ready || timer || !queued) return;
  [current, queued] = [queued, null];
  worker.postMessage({ file: current });
  timer = setTimeout(() => {
    worker.terminate();
    stopTimer();
    fail(noAnswer(), `The picture took longer than ${TIME_LIMIT / 1000} seconds and was stopped.`);
    startWorker();
  }, TIME_LIMIT);
}

function stopTimer() {
  clearTimeout(timer);
  timer = null;
}

/** Goes on to a picture that came meanwhile. */
function finish() {
  if (queued) document.body.dataset.state = "busy";
  runQueued();
}

function describeClasses(names) {
  if (names.length > 6) return `The model knows ${names.length} classes.`;
  return `The model tells ${new Intl.ListFormat("en", { type: "conjunction" }).format(names)} apart.`;
}

function show(part) {
  for (const id of ["loading", "waiting", "error", "result"]) $(id).hidden = id !== part;
  document.body.dataset.state = part;
}

function fail(title, message) {
  $("error-title").textContent = title;
  $("error-text").textContent = message;
  showDropZone();
  show("error");
}

const noAnswer = () => (current.name ? `No answer for ${current.name}` : "No answer");

function showDropZone() {
  $("drop").hidden = false;
  $("preview").hidden = true;
}

function draw(bitmap) {
  const canvas = $("preview");
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("bitmaprenderer").transferFromImageBitmap(bitmap);
  $("drop").hidden = true;
  canvas.hidden = false;
}

function showBars(probabilities) {
  const ranked = probabilities.map((value, index) => [value, classNames[index]]).sort(([a], [b]) => b - a);
  const [best, name] = ranked[0];
  $("verdict").replaceChildren(span("name", name), " ", span("value", percent(best)));
  $("bars").replaceChildren(...ranked.slice(0, MAX_BARS).map(([value, label]) => bar(value, label)));
}

function bar(value, label) {
  const item = document.createElement("li");
  const track = span("track", "");
  const fill = span("fill", "");
  fill.style.width = `${100 * value}%`;
  track.append(fill);
  item.append(span("label", label), span("value", percent(value)), track);
  item.dataset.name = label;
  item.dataset.probability = value;
  return item;
}

function span(className, content) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = content;
  return element;
}

function takeFirst(files) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) classify(file);
}

$("file").addEventListener("change", ({ target }) => {
  takeFirst(target.files);
  target.value = ""; // so that choosing the same file again is a change too
});
document.addEventListener("paste", ({ clipboardData }) => takeFirst(clipboardData.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("frame").classList.add("over");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) $("frame").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("frame").classList.remove("over");
  if (event.dataTransfer.files.length) takeFirst(event.dataTransfer.files);
  else fail("No answer", "That was a link, not a file. Save the picture first, or copy and paste it.");
});
$("camera").addEventListener("click", async () => {
  try {
    await openCamera({ onPicture: classify, onOpen: () => ($("drop").hidden = $("preview").hidden = true), onClose: showDropZone });
  } catch (error) {
    fail("No camera", error.message);
  }
});
