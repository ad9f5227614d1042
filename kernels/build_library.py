"""`python build_library.py`: compile src/*.cpp into the shared library of ttac_kernels; `CXX` names the compiler."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
PACKAGE = HERE / "ttac_kernels"
LIBRARY = PACKAGE / ("libttac_kernels.dylib" if sys.platform == "darwin" else "libttac_kernels.so")
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
LINK = (
    ["-shared"]
    if sys.platform == "darwin"
    else ["-shared", "-static-libstdc++", "-static-libgcc", "-Wl,-s,--exclude-libs,ALL"]
)
X86_TABLES = {
    "kAvx512": ("avx512", ["-march=x86-64-v4", "-mprefer-vector-width=512"]),
    "kAvx2": ("avx2", ["-march=x86-64-v3"]),
}
"""Name of a table of inner loops -> the name of its instructions, and the compiler's options."""


def compiler() -> list[str]:
    """Return the command of the C++ compiler; empty where there is none."""
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    found = next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)
    return [found] if found else []


def version() -> str:
    """Return the version of the package, which the library reports too."""
    names: dict[str, str] = {}
    exec((PACKAGE / "version.py").read_text(), names)
    return names["VERSION"]


def objects_of(folder: Path, extra: Sequence[str], machine: str = "") -> list[str]:
    """Compile the sources for `machine`, the computer's own by default, with `extra` options; return the object files.

    Raises SystemExit if there is no compiler, and subprocess.CalledProcessError if the compiler fails.
    """
    command = compiler()
    if not command:
        raise SystemExit("error: no C++ compiler was found\nhint: install g++, or name one: CXX=/path/to/g++")
    x86 = (machine or platform.machine()) in ("x86_64", "AMD64")
    options = [*command, *COMMON, f'-DTTAC_KERNELS_VERSION="{version()}"', *extra]
    objects: dict[Path, tuple[Path, list[str]]] = {
        folder / f"{path.stem}.o": (path, []) for path in SOURCES.glob("*.cpp") if path.stem != "tables"
    }
    for table, (name, flags) in {"kBaseline": ("baseline", []), **(X86_TABLES if x86 else {})}.items():
        defines = [f"-DTTAC_TABLE={table}", f'-DTTAC_INSTRUCTIONS="{name}"']
        objects[folder / f"{table}.o"] = (SOURCES / "tables.cpp", [*flags, *defines])
    calls = [[*options, *flags, "-c", str(path), "-o", str(made)] for made, (path, flags) in objects.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda call: subprocess.run(call, check=True), calls))
    return [str(made) for made in objects]


def build(output: Path = LIBRARY, extra: Sequence[str] = (), machine: str = "") -> Path:
    """Compile and link the library, and write its digest beside it; return its path."""
    with tempfile.TemporaryDirectory() as folder:
        objects = objects_of(Path(folder), extra, machine)
        subprocess.run([*compiler(), *extra, *objects, *LINK, "-o", f"{output}.new"], check=True)
    digest = hashlib.sha256(Path(f"{output}.new").read_bytes()).hexdigest()
    os.replace(f"{output}.new", output)
    output.with_name("library.sha256").write_text(f"{digest}\n", encoding="ascii")
    return output


def sanitize(kind: str, shapes: str) -> int:
    """Run random shapes of every operator under the sanitizer `kind`, "address,undefined" or "thread".

    Return the exit status.
    """
    extra = [f"-fsanitize={kind}", "-fno-sanitize-recover=all", "-g", "-O1"]
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/sanitize"
        sources = [str(path) for path in (HERE / "sanitize").glob("*.cpp")]
        objects = objects_of(Path(folder), extra)
        subprocess.run([*compiler(), *COMMON, *extra, *sources, *objects, "-pthread", "-o", program], check=True)
        print(f"{kind}:", flush=True)
        return subprocess.run([program, shapes]).returncode


def main() -> int:
    """Do the command's work and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--find-compiler", action="store_true", help="only say by the exit status if there is one")
    parser.add_argument("--sanitize", metavar="SHAPES", help="run random shapes of every operator under sanitizers")
    options = parser.parse_args()
    if options.find_compiler:
        return int(not compiler())
    if options.sanitize:
        return max(sanitize(kind, options.sanitize) for kind in ("address,undefined", "thread"))
    print(build())
    return 0


if __name__ == "__main__":
    sys.exit(main())
