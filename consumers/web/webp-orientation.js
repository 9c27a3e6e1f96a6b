// Browsers turn JPEG and PNG files upright by their EXIF, but not all turn WebP files (Chromium 156 does not).

/**
 * Read a WebP file's EXIF orientation and hide it, so that no browser applies it a second time.
 * @param {Uint8Array} bytes a whole WebP file; its EXIF chunk's name is overwritten
 * @returns {number} EXIF's 1 to 8; 1 where there is none or it cannot be read
 */
export function takeWebpOrientation(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    if (String.fromCharCode(...bytes.subarray(at, at + 4)) === "EXIF") {
      const orientation = readOrientation(bytes.subarray(at + 8, at + 8 + length));
      bytes.set([0x78, 0x78, 0x78, 0x78], at); // "xxxx": readers skip chunks they do not know
      return orientation;
    }
    at += 8 + length + (length & 1); // chunks are padded to even lengths
  }
  return 1;
}

function readOrientation(exif) {
  const start = String.fromCharCode(...exif.subarray(0, 6)) === "Exif\0\0" ? 6 : 0;
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.length - start);
  try {
    const little = view.getUint16(0) === 0x4949;
    const directory = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(directory, little); entry += 1) {
      const at = directory + 2 + 12 * entry;
      if (view.getUint16(at, little) !== 0x0112) continue;
      const value = view.getUint16(at + 8, little);
      return value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // broken metadata around sound pixels counts as upright
  }
  return 1;
}
