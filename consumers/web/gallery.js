// All pictures of this visit as a grid of cards, and as a table to download.
import { percent } from "./answer.js";
import { decide } from "./decision.js";

const THUMB = 320; // pixels, longest side

const $ = (id) => document.getElementById(id);

export function addCard(entry, onSelect) {
  const card = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.append(...["thumb", "file-name", "said"].map((name) => part(name === "thumb" ? "canvas" : "span", name)));
  button.querySelector(".file-name").textContent = entry.name || "picture";
  button.querySelector(".said").textContent = "…";
  button.title = entry.name;
  button.addEventListener("click", onSelect);
  card.append(button);
  entry.card = card;
  $("cards").append(card);
  count();
}

/** Shows what has become of an entry. */
export function updateCard(entry, model, always) {
  const said = entry.card.querySelector(".said");
  if (entry.error) {
    said.textContent = entry.error;
    entry.card.dataset.kind = "error";
  } else if (entry.result) {
    const { kind, best, title } = decide(entry.result, model, always);
    said.textContent = kind === "answered" ? `${title} ${percent(entry.result.probabilities[best])}` : title;
    entry.card.dataset.kind = kind;
    if (entry.preview) drawThumb(entry.card.querySelector(".thumb"), entry.preview);
  }
  count();
}

function drawThumb(canvas, preview) {
  const scale = Math.min(1, THUMB / Math.max(preview.width, preview.height));
  canvas.width = Math.max(1, Math.round(preview.width * scale));
  canvas.height = Math.max(1, Math.round(preview.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(preview, 0, 0, canvas.width, canvas.height);
}

export function markSelected(entry) {
  for (const card of $("cards").children) card.toggleAttribute("data-selected", card === entry.card);
}

export function clearCards() {
  $("cards").replaceChildren();
}

function count() {
  const cards = [...$("cards").children];
  const done = cards.filter(({ dataset }) => dataset.kind).length;
  $("count").textContent = done < cards.length ? `${done} of ${cards.length} pictures` : `${cards.length} pictures`;
}

/** One row a picture, failed ones with the reason; the columns of `predict.py --output`. */
export function toCsv(entries, model, always) {
  const names = model?.classNames ?? [];
  const head = ["image", "class", "decision", "error", "familiarity", ...names.map((name) => `probability:${name}`)];
  const rows = entries.map(({ name, result, error }) => {
    if (!result) return [name, "", "", error ?? "not classified yet"];
    const { kind, best } = decide(result, model, always);
    return [name, names[best], kind, "", result.familiarity ?? "", ...result.probabilities];
  });
  return [head, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}

/** Quoted where it must be; a name that a spreadsheet would take for a formula gets a quote before it. */
function cell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function part(tag, className) {
  const element = document.createElement(tag);
  element.className = className;
  return element;
}
