// Runs ttac bundles on onnxruntime-node or onnxruntime-web; the caller passes the engine's module.

import { damaged } from "./errors.js";

export { Adapter, open } from "./adapter.js";
export { TtacError } from "./errors.js";
export { parseTensors } from "./safetensors.js";

/** The bundle at a URL that ends with "/". */
export function hosted(url, fetcher = fetch) {
  return {
    where: String(url),
    async read(name) {
      const response = await fetcher(new URL(encodeURIComponent(name), new URL(url, globalThis.location?.href)));
      if (!response.ok) damaged("a file of the bundle is missing", `\`${name}\``);
      return new Uint8Array(await response.arrayBuffer());
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

