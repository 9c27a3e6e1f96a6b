// The page: takes pictures by drop, paste, file or camera, hands them to the worker one by one, shows what comes back.
import { showAnswer, showHeat, showPreview } from "./answer.js";
import { openCamera } from "./camera.js";
import { addCard, clearCards, markSelected, toCsv, updateCard } from "./gallery.js";

const TIME_LIMIT = 60_000; // milliseconds for one picture

const $ = (id) => document.getElementById(id);

/**
 * A picture of this visit.
 * @typedef {{file: Blob, name: string, result?: object, error?: string, preview?: ImageBitmap, card?: HTMLElement}} Entry
 */

let worker = null;
let model = null; // what the worker says of it, once it is ready
let broken = ""; // why no model can be had, where none can
let entries = []; // in the order they came
let queue = []; // [entry, whether only its preview is wanted], those that wait for the worker
let current = null; // the job the worker is at
let selected = null; // the entry that is shown large
let timer = null;
let numDone = 0; // of the pictures since the worker was last idle

startWorker();
offerModels();

function startWorker() {
  model = null;
  worker = new Worker(`worker.js${location.search}`, { type: "module" }); // ?backend=webgpu or wasm, ?model=NAME
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
  ready(found) {
    model = found;
    $("classes").textContent = describeClasses(model.classNames);
    $("model").textContent = describeModel(model);
    $("backend").textContent = `Runs on ${model.backend}.${model.note ? ` ${model.note}; WebAssembly runs it.` : ""}`;
    $("always-label").hidden = !Object.keys(model.thresholds).length;
    if (!$("loading").hidden && !queue.length) show("waiting");
    runNext();
  },
  failed({ message }) {
    broken = message;
    queue = [];
    fail("The model is not ready", broken);
  },
  step({ text }) {
    $("progress-text").textContent = `${current[0].name || "The picture"}: ${text}`;
  },
  preview({ preview }) {
    const entry = finish();
    entry.preview = preview;
    if (selected === entry) showPreview(entry);
    runNext();
  },
  result({ preview, ...result }) {
    const entry = finish();
    Object.assign(entry, { result, preview, error: undefined });
    updateCard(entry, model, $("always").checked);
    select(entry);
    runNext();
  },
  error({ message }) {
    const entry = finish();
    entry.error = message;
    updateCard(entry, model, $("always").checked);
    select(entry);
    runNext();
  },
};

/** Takes pictures in; each becomes a card of the grid, which is shown from the second on. */
function take(files) {
  if (broken) return fail("The model is not ready", broken);
  for (const file of files) {
    const entry = { file, name: file.name ?? "" };
    entries.push(entry);
    queue.push([entry, false]);
    addCard(entry, () => select(entry));
  }
  $("gallery").hidden = entries.length < 2;
  runNext();
}

function runNext() {
  const waiting = queue.filter(([, previewOnly]) => !previewOnly).length;
  if (current || !model || !queue.length) {
    if (!queue.length && !current) numDone = 0;
    if (queue.length && !model) document.body.dataset.state = "busy";
    if (!queue.length && !current) $("progress").hidden = true;
    return;
  }
  current = queue.shift();
  const [{ file, name }, previewOnly] = current;
  if (!previewOnly) document.body.dataset.state = "busy";
  $("waiting").hidden = true;
  $("progress").hidden = previewOnly;
  $("progress-text").textContent = name;
  $("progress-bar").max = numDone + waiting;
  if (numDone + waiting > 1) $("progress-bar").value = numDone;
  else $("progress-bar").removeAttribute("value");
  worker.postMessage({ file, previewOnly });
  timer = setTimeout(() => {
    worker.terminate();
    HANDLERS.error({ message: `The picture took longer than ${TIME_LIMIT / 1000} seconds and was stopped.` });
    startWorker();
  }, TIME_LIMIT);
}

/** The worker is free again; gives the entry it was at. */
function finish() {
  clearTimeout(timer);
  const [entry] = current;
  current = null;
  numDone += 1;
  $("progress").hidden = true;
  return entry;
}

function select(entry) {
  if (selected && selected !== entry) selected.preview = undefined; // memory: the large ones of all would not fit
  selected = entry;
  markSelected(entry);
  if (entry.error) return fail(entry.name ? `No answer for ${entry.name}` : "No answer", entry.error);
  if (!entry.result) return;
  $("caption").textContent = entry.name;
  $("caption").hidden = !entry.name;
  $("heat").hidden = !entry.result.heatmap;
  $("drop").hidden = true;
  if (entry.preview) showPreview(entry);
  else queue.unshift([entry, true]);
  showAnswer(entry.result, model, $("always").checked);
  show("result");
  if (!entry.preview) runNext();
}

function describeClasses(names) {
  if (names.length > 6) return `The model knows ${names.length} classes.`;
  return `The model tells ${new Intl.ListFormat("en", { type: "conjunction" }).format(names)} apart.`;
}

function describeModel({ name, architecture, recipe, date, bytes, digest }) {
  const when = date && `of ${new Intl.DateTimeFormat("en", { dateStyle: "long", timeStyle: "short" }).format(new Date(date))}`;
  const facts = [architecture, recipe, when, `${(bytes / 1e6).toFixed(1)} MB`, digest && `weights ${digest.slice(0, 8)}`];
  return `${name}: ${facts.filter(Boolean).join(", ")}.`;
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

function showDropZone() {
  $("drop").hidden = false;
  $("preview").hidden = $("caption").hidden = $("heat").hidden = true;
}

async function offerModels() {
  const names = await fetch("models.json").then((response) => (response.ok ? response.json() : []), () => []);
  const chosen = new URLSearchParams(location.search).get("model") ?? names[0];
  $("models").replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  $("models-label").hidden = names.length < 2;
}

$("models").addEventListener("change", ({ target }) => {
  const words = new URLSearchParams(location.search);
  words.set("model", target.value);
  location.search = words;
});
$("file").addEventListener("change", ({ target }) => {
  take([...target.files]);
  target.value = ""; // so that choosing the same file again is a change too
});
$("always").addEventListener("change", ({ target }) => {
  for (const entry of entries) updateCard(entry, model, target.checked);
  if (selected?.result && !$("result").hidden) showAnswer(selected.result, model, target.checked);
});
$("heat").addEventListener("click", ({ target }) => {
  const pressed = target.getAttribute("aria-pressed") !== "true";
  target.setAttribute("aria-pressed", pressed);
  showHeat(pressed);
});
$("csv").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv(entries, model, $("always").checked)], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});
$("clear").addEventListener("click", () => {
  entries = [];
  queue = [];
  selected = null;
  clearCards();
  $("gallery").hidden = true;
  showDropZone();
  if (model && !current) show("waiting");
});
document.addEventListener("paste", ({ clipboardData }) => take([...clipboardData.files]));
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
  if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  else fail("No answer", "That was a link, not a file. Save the picture first, or copy and paste it.");
});
$("camera").addEventListener("click", async () => {
  const onOpen = () => {
    showDropZone();
    $("drop").hidden = true;
    if (model) show("waiting"); // an older picture's answer must not stand beside the live one
  };
  const onClose = () => (selected ? select(selected) : showDropZone());
  try {
    await openCamera({ onPicture: (picture) => take([picture]), onOpen, onClose });
  } catch (error) {
    fail("No camera", error.message);
  }
});
