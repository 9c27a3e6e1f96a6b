// One picture's answer, large: the picture, what it is, how probable each class is, what the model looked at.
import { decide } from "./decision.js";

const MAX_BARS = 10;

const $ = (id) => document.getElementById(id);
export const percent = (value) => `${(100 * value).toFixed(1)}\u00a0%`;

let shown = null; // the entry whose picture is drawn

/** Draws an entry's preview, with the heat map over it where that is switched on. */
export function showPreview(entry) {
  shown = entry;
  const canvas = $("preview");
  [canvas.width, canvas.height] = [entry.preview.width, entry.preview.height];
  canvas.getContext("2d").drawImage(entry.preview, 0, 0);
  canvas.hidden = false;
  if ($("heat").getAttribute("aria-pressed") === "true") drawHeat(canvas, entry.result);
}

export function showHeat() {
  if (shown?.preview) showPreview(shown);
}

/** The map lies where the model's crop lies in the picture; the least is clear, the most is red. */
function drawHeat(canvas, { heatmap, crop }) {
  if (!heatmap) return;
  const [rows, columns] = heatmap.shape;
  const most = Math.max(...heatmap.data, 1e-9);
  const pixels = new Uint8ClampedArray(rows * columns * 4);
  heatmap.data.forEach((value, index) => pixels.set([230, 30, 20, 190 * Math.max(0, value / most)], 4 * index));
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(new ImageData(pixels, columns, rows), 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  const [start, size] = [(1 - crop) / 2, crop];
  const { width, height } = canvas;
  context.drawImage(small, start * width, start * height, size * width, size * height);
}

export function showAnswer(result, model, always) {
  const { probabilities, familiarity, width, height, decodeMs, runMs } = result;
  const { kind, best, title } = decide(result, model, always);
  const ranked = probabilities.map((value, index) => [value, model.classNames[index]]).sort(([a], [b]) => b - a);
  $("verdict").dataset.kind = kind;
  $("verdict").replaceChildren(span("name", title), " ", ...(kind === "answered" ? [span("value", percent(probabilities[best]))] : []));
  $("doubt").hidden = kind === "answered";
  $("doubt").textContent =
    kind === "unsure"
      ? `Most like ${model.classNames[best]}, but not by as much as this model needs to be right.`
      : "The picture resembles none of the training pictures; the numbers below mean little.";
  $("bars").replaceChildren(...ranked.slice(0, MAX_BARS).map(([value, label]) => bar(value, label)));
  const backend = model.backend;
  const times = `decoded in ${Math.ceil(decodeMs)} ms, classified in ${Math.ceil(runMs)} ms`;
  const familiar = familiarity === undefined ? "" : `, familiarity ${percent(familiarity)}`;
  $("facts").textContent = `${width} × ${height} pixels, ${times} by ${backend}${familiar}`;
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
