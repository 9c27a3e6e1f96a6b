// What an image file says of itself, read before any decoder sees it: its kind, its size, whether it is whole.
// Browsers decode what is left of a truncated file and reserve memory for whatever size a header claims.

export class ImageError extends Error {}

export const MAX_PIXELS = 2 ** 26; // as the pipeline's own limit
const MAX_BYTES = 2 ** 28;

/**
 * @param {Uint8Array} bytes a whole file
 * @returns {{format: string, width: number, height: number}} as stored, before any rotation, pixels
 * @throws {ImageError} with a message for the person who chose the file
 */
export function inspect(bytes) {
  if (bytes.length === 0) throw new ImageError("The file is empty.");
  if (bytes.length > MAX_BYTES) throw new ImageError(`The file is larger than ${MAX_BYTES / 2 ** 20} MB.`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kind = KINDS.find(({ matches }) => matches(bytes));
  if (!kind) throw new ImageError("This is not an image this page can read (JPEG, PNG, WebP, GIF, BMP or AVIF).");
  const facts = readOrTruncated(kind, bytes, view);
  if (!facts || facts.width === 0 || facts.height === 0) throw new ImageError(`This ${kind.format} file is damaged.`);
  if (!facts.whole) throw truncated(kind.format);
  if (facts.width * facts.height > MAX_PIXELS) {
    const size = `${facts.width.toLocaleString("en")} × ${facts.height.toLocaleString("en")}`;
    throw new ImageError(`The image is ${size} pixels; the limit is ${Math.floor(MAX_PIXELS / 1e6)} megapixels.`);
  }
  return { format: kind.format, width: facts.width, height: facts.height };
}

function readOrTruncated(kind, bytes, view) {
  try {
    return kind.read(view, bytes);
  } catch (error) {
    if (error instanceof RangeError) throw truncated(kind.format); // read past the end
    throw error;
  }
}

const truncated = (format) => new ImageError(`This ${format} file ends too early: part of it is missing.`);

const ascii = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));

const KINDS = [
  { format: "JPEG", matches: (b) => b[0] === 0xff && b[1] === 0xd8 && b[2] === 0xff, read: readJpeg },
  { format: "PNG", matches: (b) => ascii(b, 0, 8) === "\x89PNG\r\n\x1a\n", read: readPng },
  { format: "GIF", matches: (b) => /^GIF8[79]a$/.test(ascii(b, 0, 6)), read: readGif },
  { format: "WebP", matches: (b) => ascii(b, 0, 4) === "RIFF" && ascii(b, 8, 12) === "WEBP", read: readWebp },
  { format: "BMP", matches: (b) => ascii(b, 0, 2) === "BM", read: readBmp },
  { format: "AVIF", matches: (b) => /avi[fs]/.test(brands(b)), read: readHeif },
  { format: "HEIC", matches: (b) => /hei[cxms]|hev[cx]|mif1|msf1/.test(brands(b)), read: readHeif },
];

/** The kinds that a file of boxes (ISO 14496-12), which AVIF and HEIC both are, says it is of. */
function brands(bytes) {
  return ascii(bytes, 4, 8) === "ftyp" ? ascii(bytes, 8, Math.min(bytes[3], 64)) : "";
}

function readJpeg(view, bytes) {
  let size = null;
  for (let at = 2; ; ) {
    if (view.getUint8(at) !== 0xff) return null;
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) at += 1; // fill byte
    else if (marker === 0xda) return size && { ...size, whole: endsAfter(bytes, at) }; // start of scan
    else {
      const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
      if (isFrame) size = { height: view.getUint16(at + 5), width: view.getUint16(at + 7) };
      at += 2 + view.getUint16(at + 2);
    }
  }
}

/** Inside a scan 0xff is always followed by a stuffed 0 or a restart marker, so this pair is the end and no chance. */
function endsAfter(bytes, start) {
  const end = bytes.lastIndexOf(0xd9);
  for (let at = end; at > start; at = bytes.lastIndexOf(0xd9, at - 1)) if (bytes[at - 1] === 0xff) return true;
  return false;
}

function readPng(view, bytes) {
  if (ascii(bytes, 12, 16) !== "IHDR") return null;
  const size = { width: view.getUint32(16), height: view.getUint32(20) };
  for (let at = 8; ascii(bytes, at + 4, at + 8) !== "IEND"; at += 12 + view.getUint32(at));
  return { ...size, whole: true };
}

function readGif(view, bytes) {
  return { width: view.getUint16(6, true), height: view.getUint16(8, true), whole: bytes.lastIndexOf(0x3b) > 13 };
}

function readWebp(view, bytes) {
  const kind = ascii(bytes, 12, 16);
  const whole = view.getUint32(4, true) + 8 <= bytes.length;
  const uint24 = (at) => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  if (kind === "VP8X") return { width: uint24(24) + 1, height: uint24(27) + 1, whole };
  if (kind === "VP8 ") {
    return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff, whole };
  }
  if (kind !== "VP8L") return null;
  const bits = view.getUint32(21, true);
  return { width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1, whole };
}

function readBmp(view, bytes) {
  const old = view.getUint32(14, true) === 12; // OS/2's header has 16-bit sides
  const width = old ? view.getUint16(18, true) : view.getInt32(18, true);
  const height = old ? view.getUint16(20, true) : view.getInt32(22, true); // negative: rows from the top
  return { width: Math.max(0, width), height: Math.abs(height), whole: view.getUint32(2, true) <= bytes.length };
}

/** The largest of the images in it: the picture itself, beside its thumbnail and tiles. */
function readHeif(view, bytes) {
  let at = 0;
  let size = null;
  while (at < bytes.length) {
    const length = view.getUint32(at) === 1 ? Number(view.getBigUint64(at + 8)) : view.getUint32(at) || bytes.length - at;
    if (length < 8) return null;
    if (ascii(bytes, at + 4, at + 8) === "meta") size = largestExtent(view, bytes, at, Math.min(at + length, bytes.length));
    at += length;
  }
  return size && { ...size, whole: at === bytes.length };
}

function largestExtent(view, bytes, start, end) {
  let [width, height] = [0, 0];
  for (let at = start; at < end - 16; at++) {
    if (ascii(bytes, at, at + 4) !== "ispe") continue;
    const [w, h] = [view.getUint32(at + 8), view.getUint32(at + 12)];
    if (w * h > width * height) [width, height] = [w, h];
  }
  return { width, height };
}
