// Bundles and state files on disk, for Node.js.

import { readFileSync, statSync } from "node:fs";
import { lstat, readFile, realpath, rename, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";

import { packed } from "./archive.js";
import { damaged, usage } from "./errors.js";

/** The bundle at a path: a folder, from which the engine maps the weights, or one file, which is read whole. */
export function bundle(path) {
  if (statSync(path, { throwIfNoEntry: false })?.isFile()) return packed(new Uint8Array(readFileSync(path)), path);
  return {
    where: path,
    path: (name) => join(path, name),
    async read(name) {
      const file = join(path, name);
      const status = await lstat(file).catch(() => null);
      if (name === "manifest.json" && !status) usage("the folder is not a bundle: it has no `manifest.json`", `\`${path}\``, "compile one");
      if (!status) damaged("a file of the bundle is missing", `\`${file}\``);
      if (status.isSymbolicLink() && name === "manifest.json") damaged("the manifest is a symbolic link", `\`${file}\``);
      const target = await realpath(file).catch(() => "");
      if (dirname(target) !== (await realpath(path))) damaged(`\`${name}\` leads out of the bundle's folder`, `\`${path}\``);
      return new Uint8Array(await readFile(target));
    },
  };
}

/** Write the adapter's state to `path`, whole or not at all. */
export async function saveState(adapter, path) {
  const bytes = await adapter.save();
  const temporary = `${resolve(path)}.${process.pid}.tmp`;
  await writeFile(temporary, bytes, { flush: true });
  await rename(temporary, path);
}

/** Restore the adapter's state from `path`. */
export async function restoreState(adapter, path) {
  const bytes = await readFile(path).catch(() => usage("there is no such state", `\`${path}\``, "`saveState` writes one"));
  await adapter.restore(new Uint8Array(bytes), `\`${path}\``);
}
