// An ONNX file's metadata_props, which onnxruntime-web does not hand out.

/**
 * @param {Uint8Array} bytes a whole .onnx file
 * @returns {Record<string, string>}
 * @throws {Error} when the bytes are no ONNX model
 */
export function readMetadata(bytes) {
  const properties = {};
  let hasGraph = false;
  for (const [field, value] of fields(bytes)) {
    if (field === 7) hasGraph = true; // ModelProto.graph
    if (field !== 14 || !(value instanceof Uint8Array)) continue; // ModelProto.metadata_props
    const entry = Object.fromEntries(fields(value)); // 1: key, 2: value
    properties[text(entry[1])] = text(entry[2]);
  }
  if (!hasGraph) throw new Error("it is no ONNX model");
  return properties;
}

const text = (bytes) => new TextDecoder().decode(bytes ?? new Uint8Array());

/** Protocol Buffers' wire format, one level deep: yields [field number, number or bytes]. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      if (at >= bytes.length || scale > 2 ** 63) throw new Error("it is cut off or no ONNX model");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const [field, wire] = [Math.floor(tag / 8), tag % 8];
    if (wire === 0) {
      yield [field, varint()];
      continue;
    }
    const length = wire === 2 ? varint() : { 1: 8, 5: 4 }[wire];
    if (length === undefined || at + length > bytes.length) throw new Error("it is cut off or no ONNX model");
    yield [field, bytes.subarray(at, (at += length))];
  }
}
