// A bundle in one file: a zip without compression and with only one reading, as `docs/bundle.md` restricts it.

import { damaged } from "./errors.js";
import { isPlain } from "./values.js";

const LOCAL_HEADER = 30;
const ENTRY_HEADER = 46;
const END_RECORD = 22;
const MOST_MEMBERS = 1000;
const MANIFEST = "manifest.json";

/** The files of the bundle in `bytes`: `{ where, read }`; `where` names the bundle in messages. */
export function packed(bytes, where = "the bundle") {
  let members;
  return {
    where,
    async read(name) {
      members ??= checked(bytes, where);
      return members.get(name) ?? damaged("a file of the bundle is missing", `\`${name}\``);
    },
  };
}

function checked(bytes, where) {
  try {
    return membersOf(bytes);
  } catch (error) {
    return damaged(`the bundle's file is not a plain zip: ${error.message}`, `\`${where}\``, undefined, error);
  }
}

function need(holds, problem) {
  if (!holds) throw new Error(problem);
}

function membersOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const short = (at) => view.getUint16(at, true);
  const long = (at) => view.getUint32(at, true);
  need(bytes.length >= END_RECORD && bytes.length < 2 ** 32, `it has ${bytes.length} bytes`);
  const last = bytes.length - END_RECORD;
  const members = new Map();
  let end = 0;
  for (const { name, at, header, size } of directory(bytes, { short, long, last })) {
    const start = header + LOCAL_HEADER + short(at + 28) + (header === end ? short(header + 28) : 0);
    need(header === end && start + size <= long(last + 16), "its members overlap, or bytes between them belong to none");
    const same = (from, to, count) => bytes.subarray(from, from + count).every((byte, place) => byte === bytes[to + place]);
    const repeats = same(header + 6, at + 8, 4) && same(header + 14, at + 16, 14) && same(header + 30, at + 46, short(at + 28));
    need(long(header) === 0x04034b50 && repeats, `the header of \`${name}\` differs from the directory`);
    need(!members.has(name), `\`${name}\` is there twice`);
    members.set(name, bytes.subarray(start, start + size));
    if (name === MANIFEST) need(crc32(members.get(name)) === long(header + 14), `\`${name}\` does not have its checksum`);
    end = start + size;
  }
  need(end === long(last + 16) && members.has(MANIFEST), `its members end before the directory, or it has no \`${MANIFEST}\``);
  return members;
}

/** The entries of the directory, in the order of their local headers. */
function directory(bytes, { short, long, last }) {
  const count = short(last + 8);
  const plain = long(last) === 0x06054b50 && long(last + 4) === 0 && count === short(last + 10) && short(last + 20) === 0;
  need(plain && count > 0 && count <= MOST_MEMBERS, "it does not end with the record of a zip in one part without a comment");
  let at = long(last + 16);
  need(at + long(last + 12) === last, "its directory does not end where the last record begins");
  const entries = [];
  for (let number = 0; number < count; number += 1) {
    need(at + ENTRY_HEADER <= last && long(at) === 0x02014b50 && short(at + 34) === 0, "its directory is damaged");
    const next = at + ENTRY_HEADER + short(at + 28) + short(at + 30) + short(at + 32);
    need(next <= last, "its directory is damaged");
    entries.push(entry(bytes, at, { short, long }));
    at = next;
  }
  need(at === last, "its directory has more bytes than entries");
  return entries.sort((a, b) => a.header - b.header);
}

function entry(bytes, at, { short, long }) {
  const encoded = bytes.subarray(at + ENTRY_HEADER, at + ENTRY_HEADER + short(at + 28));
  const name = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(encoded);
  need(isPlain(name), "a name is no plain file name");
  need((short(at + 8) & ~0x800) === 0, `\`${name}\` is encrypted, or has another flag`);
  need(short(at + 10) === 0 && long(at + 20) === long(at + 24), `\`${name}\` is compressed`);
  need([0, 0o100000].includes(short(at + 40) & 0o170000), `\`${name}\` is a link or another special file`);
  return { name, at, header: long(at + 42), size: long(at + 24) };
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
