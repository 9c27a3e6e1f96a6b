// An image file -> the pixels the model was trained on: upright, on white, colours as stored (profiles ignored), RGB.
// In Chromium this equals the pipeline's own decode bit for bit, on every pair of a colour value and an alpha.
import { ImageError, inspect } from "./image-file.js";
import { takeWebpOrientation } from "./webp-orientation.js";

/**
 * @param {Blob} file
 * @returns {Promise<{pixels: Uint8Array, width: number, height: number, canvas: OffscreenCanvas}>}
 *   pixels: height × width × 3, row by row
 * @throws {ImageError} when the file is no image, damaged, or too large
 */
export async function decode(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const { format } = inspect(bytes);
  const orientation = format === "WebP" ? takeWebpOrientation(bytes) : 1; // the browser sees to all other formats
  const canvas = layOnWhite(await decodeBitmap(bytes, format), orientation);
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  return { pixels: dropAlpha(data), width, height, canvas };
}

async function decodeBitmap(bytes, format) {
  try {
    return await createImageBitmap(new Blob([bytes]), {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    if (format === "HEIC") throw new ImageError("This browser cannot read HEIC photos. Save it as JPEG and try again.");
    throw new ImageError(`This ${format} file is damaged: the browser cannot decode it.`);
  }
}

/** EXIF's orientations 2 to 8 as canvas transforms of a `w` × `h` image. */
const TRANSFORMS = {
  1: () => [1, 0, 0, 1, 0, 0],
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

function layOnWhite(bitmap, orientation) {
  const { width, height } = bitmap;
  const canvas = orientation < 5 ? new OffscreenCanvas(width, height) : new OffscreenCanvas(height, width);
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory: a GPU may round otherwise
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.setTransform(...TRANSFORMS[orientation](width, height));
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas;
}

function dropAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}
