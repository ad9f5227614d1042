// Values of decoded JSON: each check returns the value, or refuses the manifest and names the place.

import { refuse } from "./errors.js";
import { Digits } from "./json.js";

const PRINTABLE = /^(?:[^\p{C}\p{Z}]| )+$/u;
const LARGEST = 2 ** 31 - 1;

/** `value` as an object with all keys of `only` and `needs`; with `only`, no keys beyond `only` and `also`. */
export function anObject(value, where, { only = [], also = [], needs = [] } = {}) {
  if (value === null || typeof value !== "object" || Array.isArray(value) || value instanceof Digits) {
    refuse(where, "is not an object");
  }
  const missing = [...only, ...needs].find((key) => !Object.hasOwn(value, key));
  if (missing) refuse(where, `lacks \`${missing}\``);
  const odd = only.length ? Object.keys(value).find((key) => !only.includes(key) && !also.includes(key)) : undefined;
  if (odd !== undefined) refuse(where, `has the unknown key \`${odd}\``);
  return value;
}

/** `value` as a list. */
export function aList(value, where) {
  if (!Array.isArray(value)) refuse(where, "is not a list");
  return value;
}

/** `value` as a string of printable characters that is not empty. */
export function aName(value, where) {
  if (typeof value !== "string" || !PRINTABLE.test(value)) refuse(where, "is not a name");
  return value;
}

/** `value` as a whole number from `low` to `high`. */
export function aCount(value, where, low, high = LARGEST) {
  const fits = value instanceof Digits && value.whole && value.value >= low && value.value <= high;
  if (!fits) refuse(where, `is not a whole number from ${low} to ${high}`);
  return value.value;
}

/** `value` as a SHA-256 in lower-case hexadecimal. */
export function aDigest(value, where) {
  if (typeof value !== "string" || !/^[0-9a-f]{64}$/.test(value)) refuse(where, "is not a SHA-256 in lower-case hexadecimal");
  return value;
}

/** Whether `name` is the name of a file directly inside a folder. */
export function isPlain(name) {
  return PRINTABLE.test(name) && name !== "." && name !== ".." && !/[/\\:]/.test(name);
}

/** `value` as the name of a file directly inside the folder. */
export function aFile(value, where) {
  if (typeof value !== "string" || !isPlain(value)) refuse(where, "names a path, not a plain file inside the folder");
  return value;
}

/** Refuse a name that occurs twice. */
export function checkDistinct(names, where) {
  const twice = names.find((name, number) => names.indexOf(name) !== number);
  if (twice !== undefined) refuse(where, `has \`${twice}\` twice`);
}
