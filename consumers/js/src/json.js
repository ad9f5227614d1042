// Strict JSON: no key twice in an object, no NaN, limited depth.  The digits of numbers stay readable for the identity.

const DEEPEST = 200;
const NUMBER = /-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const SPACE = /[ \t\n\r]*/y;

/** A number of the text with its digits; `whole` is true for a number without a point and without an exponent. */
export class Digits {
  constructor(text, whole) {
    this.text = text;
    this.whole = whole;
    this.value = Number(text);
  }
}

/** The value of the bytes, with `Digits` for numbers; throws SyntaxError for invalid or ambiguous JSON. */
export function parseStrict(bytes) {
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  let at = 0;
  const fail = (problem) => {
    throw new SyntaxError(`${problem} at character ${at}`);
  };
  const take = (pattern) => {
    pattern.lastIndex = at;
    const match = pattern.exec(text);
    if (match) at += match[0].length;
    return match;
  };
  const list = (end, item) => {
    at += 1;
    take(SPACE);
    if (text[at] === end) return void (at += 1);
    for (;;) {
      item();
      take(SPACE);
      const sign = text[at++];
      if (sign === end) return undefined;
      if (sign !== ",") fail("a list or an object does not end");
      take(SPACE);
    }
  };
  const string = () => JSON.parse((take(STRING) ?? fail("there is no string"))[0]);
  const object = (depth) => {
    const entries = new Map();
    list("}", () => {
      const key = string();
      if (entries.has(key)) fail(`an object has the key ${JSON.stringify(key)} twice`);
      take(SPACE);
      if (text[at++] !== ":") fail("a key has no value");
      entries.set(key, value(depth));
    });
    return Object.assign(Object.create(null), Object.fromEntries(entries));
  };
  const value = (depth) => {
    if (depth > DEEPEST) fail("the nesting is too deep");
    take(SPACE);
    const sign = text[at];
    if (sign === "{") return object(depth + 1);
    if (sign === "[") {
      const items = [];
      list("]", () => items.push(value(depth + 1)));
      return items;
    }
    if (sign === '"') return string();
    for (const [word, meaning] of [["true", true], ["false", false], ["null", null]]) {
      if (text.startsWith(word, at)) {
        at += word.length;
        return meaning;
      }
    }
    const number = take(NUMBER) ?? fail("there is no value");
    return new Digits(number[0], number[1] === undefined && number[2] === undefined);
  };
  const result = value(0);
  take(SPACE);
  if (at !== text.length) fail("text follows the value");
  return result;
}

/** The value without `Digits`: a fraction such as 1.0 becomes NaN where `whole` demands integers. */
export function plain(value) {
  if (value instanceof Digits) return value.value;
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, plain(entry)]));
}

/** The order of Python's strings: by code points. */
export function byCodePoints(a, b) {
  const [x, y] = [Array.from(a, (c) => c.codePointAt(0)), Array.from(b, (c) => c.codePointAt(0))];
  const at = x.findIndex((point, i) => point !== y[i]);
  return at < 0 ? x.length - y.length : x[at] - (y[at] ?? -1);
}

/** JSON as Python's `json.dumps(value, sort_keys=True)` writes it; `comma` and `colon` are the separators. */
export function canonical(value, comma = ", ", colon = ": ") {
  if (value instanceof Digits) return value.text;
  if (typeof value === "string") {
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (c) =>
      c === "\u007f" ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
    );
  }
  if (Array.isArray(value)) return `[${value.map((item) => canonical(item, comma, colon)).join(comma)}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const keys = Object.keys(value).sort(byCodePoints);
  const entries = keys.map((key) => `${canonical(key)}${colon}${canonical(value[key], comma, colon)}`);
  return `{${entries.join(comma)}}`;
}
