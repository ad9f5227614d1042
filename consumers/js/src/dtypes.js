// numpy's dtype names, as the manifest has them, and the names of safetensors and of onnxruntime.

const TABLE = [
  // dtype, safetensors, onnxruntime, ONNX element type, bytes, array
  ["float16", "F16", "float16", 10, 2, globalThis.Float16Array ?? Uint16Array],
  ["float32", "F32", "float32", 1, 4, Float32Array],
  ["float64", "F64", "float64", 11, 8, Float64Array],
  ["int8", "I8", "int8", 3, 1, Int8Array],
  ["int16", "I16", "int16", 5, 2, Int16Array],
  ["int32", "I32", "int32", 6, 4, Int32Array],
  ["int64", "I64", "int64", 7, 8, BigInt64Array],
  ["uint8", "U8", "uint8", 2, 1, Uint8Array],
  ["uint16", "U16", "uint16", 4, 2, Uint16Array],
  ["uint32", "U32", "uint32", 12, 4, Uint32Array],
  ["bool", "BOOL", "bool", 9, 1, Uint8Array],
];

/** dtype -> `{ dtype, stored, type, element, size, array }`. */
export const DTYPES = new Map(
  TABLE.map(([dtype, stored, type, element, size, array]) => [dtype, { dtype, stored, type, element, size, array }]),
);
export const BY_STORED = new Map([...DTYPES.values()].map((entry) => [entry.stored, entry]));
export const BY_ELEMENT = new Map([...DTYPES.values()].map((entry) => [entry.element, entry]));

/** The number of elements of a shape. */
export const count = (shape) => shape.reduce((product, size) => product * size, 1);

/** Whether every value is finite; `data` of float16 may be its bits. */
export function isFinite(dtype, data) {
  if (!dtype.startsWith("float")) return true;
  if (dtype === "float16" && data instanceof Uint16Array) return data.every((bits) => (bits & 0x7c00) !== 0x7c00);
  return data.every(Number.isFinite);
}

/** The first element as a number; bits of float16 are converted. */
export function first(tensor) {
  const value = tensor.data[0];
  if (tensor.type !== "float16" || !(tensor.data instanceof Uint16Array)) return Number(value);
  const [sign, exponent, fraction] = [value >> 15 ? -1 : 1, (value >> 10) & 31, value & 1023];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
