// Runs ttac bundles on onnxruntime-node or onnxruntime-web; the caller passes the engine's module.

import { packed } from "./archive.js";
import { damaged } from "./errors.js";

export { Adapter, open } from "./adapter.js";
export { packed } from "./archive.js";
export { TtacError } from "./errors.js";
export { parseTensors } from "./safetensors.js";

/** The bundle at a URL: a folder, if the URL ends with "/", and else one file. */
export function hosted(url, fetcher = fetch) {
  const place = new URL(url, globalThis.location?.href);
  const download = async (address, name) => {
    const response = await fetcher(address);
    if (!response.ok) damaged("a file of the bundle is missing", `\`${name}\``);
    return new Uint8Array(await response.arrayBuffer());
  };
  if (place.pathname.endsWith("/")) return { where: place.href, read: (name) => download(new URL(encodeURIComponent(name), place), name) };
  let file;
  return {
    where: place.href,
    async read(name) {
      file ??= download(place, place.href).then((bytes) => packed(bytes, place.href));
      return (await file).read(name);
    },
  };
}

/** A bundle in memory: file name -> Uint8Array. */
export function inMemory(files) {
  return {
    where: "memory",
    async read(name) {
      return Object.hasOwn(files, name) ? files[name] : damaged("a file of the bundle is missing", `\`${name}\``);
    },
  };
}

