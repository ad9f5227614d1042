"""Models and methods as they are asked for, and the bundles that are evaluated."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttac import methods, targets
from ttac.errors import UsageError
from ttac.evaluation.cells import Subject, digest
from ttac.options import RULES
from ttac.runtime.bundle import digest_of, read_manifest
from ttac.settings import resolve, split_assignments

BATCH = 64
"""Samples of a step where neither the user nor a bundle says how many."""

SOURCE = "source"


@dataclass(frozen=True)
class MethodSpec:
    """A method with the settings it was asked for with, under the label it was written as."""

    label: str
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to compile a subject: the arguments of `ttac.compile`."""

    model: Path
    arguments: Mapping[str, Any]
    output: Path


def method_specs(written: Sequence[str], assignments: Mapping[str, Any]) -> list[MethodSpec]:
    """`tent` or `tent:lr=0.01:optimizer=sgd` -> methods with all their settings.

    `assignments` go to every method that has an option of that name.

    Raises UsageError for an unknown method or option, one that no method has, or a method that is named twice.
    """
    found = []
    for label in written:
        name, *parts = label.split(":")
        method = methods.find(name)
        shared = {key: value for key, value in assignments.items() if key in {o.name for o in method.options}}
        found.append(MethodSpec(label, name, resolve(method, {**shared, **split_assignments(parts)})))
    for key in assignments:
        if not any(key in spec.settings for spec in found):
            what = f"none of the methods has an option `{key}`"
            raise UsageError(what, where=f"`--set {key}=...`", hint="`ttac methods NAME` lists a method's options")
    if len({spec.label for spec in found}) != len(found):
        raise UsageError("a method is named twice", where="`--methods`", hint="name each one once")
    return found


def is_bundle(path: Path) -> bool:
    """Whether `path` is a folder with a manifest."""
    return path.is_dir() and (path / "manifest.json").is_file()


def subjects(
    paths: Sequence[Path],
    specs: Sequence[MethodSpec],
    batches: Sequence[int],
    options: Mapping[str, Any],
    bundles: Path,
) -> tuple[list[Subject], dict[Path, Recipe]]:
    """Every bundle, and every model with every method and batch; with how to compile those that are no bundle yet.

    `options` are further arguments of `ttac.compile`, the same for all.

    Raises UsageError for a path that is neither, models without methods, or a batch that a bundle is not planned for.
    """
    for path in paths:
        if not path.exists():
            hint = "give an `.onnx` file or a bundle"
            raise UsageError("there is no such model or bundle", where=f"`{path}`", hint=hint)
    models = [path for path in paths if not is_bundle(path)]
    if models and not specs:
        raise UsageError("no method is named", where="`--methods`", hint="for example `--methods source,bn,tent`")
    names = dict(zip(models, _distinct(models), strict=True))
    found: list[Subject] = []
    recipes: dict[Path, Recipe] = {}
    for model in models:
        for batch in batches or [BATCH]:
            for spec in specs:
                subject, recipe = _to_compile(model, names[model], spec, batch, options, bundles)
                found.append(subject)
                recipes[subject.bundle] = recipe
    given = [path for path in paths if is_bundle(path)]
    found.extend(one for path in given for one in _given(path, given, batches))
    return found, recipes


def compile_subject(recipe: Recipe) -> None:
    """Compile the bundle unless it is there; raises what `ttac.compile` raises."""
    if is_bundle(recipe.output):
        return
    from ttac.pipeline import compile_model

    with redirect_stdout(sys.stderr):
        compile_model(recipe.model, output=recipe.output, **recipe.arguments)


def _to_compile(
    model: Path, name: str, spec: MethodSpec, batch: int, options: Mapping[str, Any], bundles: Path
) -> tuple[Subject, Recipe]:
    import ttac

    options = {option: value for option, value in options.items() if not _is_default(option, value)}
    identity = {
        "ttac": ttac.__version__,
        "model": digest_of(model) if model.is_file() else "",
        "method": spec.name,
        "settings": dict(spec.settings),
        "options": {name: _identity_of(name, value) for name, value in options.items()},
    }
    key = digest({**identity, "batch": batch})
    folder = bundles / f"{model.stem}-{spec.name}-{batch}-{key[:8]}.ttac"
    arguments = {**options, "method": spec.name, "settings": dict(spec.settings), "batch": batch}
    return Subject(name, spec.label, batch, identity, folder), Recipe(model, arguments, folder)


def _given(path: Path, bundles: Sequence[Path], batches: Sequence[int]) -> list[Subject]:
    """A bundle with each of the batches; named by its model and method, or by its folder where those are not enough."""
    import ttac

    manifest = read_manifest(path)
    planned = int(manifest["batch"]["planned"])
    for batch in batches:
        if batch > planned:
            what = f"the bundle is planned for {planned} samples a step"
            raise UsageError(what, where=f"`{path}`, `--batch {batch}`", hint=f"compile with `--batch {batch}`")
    same = [other for other in bundles if _named(other) == _named(path)]
    model, method = _named(path) if len(same) == 1 else (_named(path)[0], path.name.removesuffix(".ttac"))
    identity = {"ttac": ttac.__version__, "bundle": digest_of(path / "manifest.json")}
    return [Subject(model, method, batch, identity, path.absolute()) for batch in batches or [planned]]


def _named(bundle: Path) -> tuple[str, str]:
    manifest = read_manifest(bundle)
    return Path(manifest["source"]["file"]).stem, manifest["method"]["name"]


def _distinct(paths: Iterable[Path]) -> list[str]:
    """Stems of the files; whole paths where two are the same."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]


def _is_default(option: str, value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == RULES[option].default)


def _identity_of(option: str, value: Any) -> Any:
    """What identifies the value of an option of `ttac.compile`: of files and samples their content."""
    from ttac.evaluation.samples import open_source

    if option == "calibration":
        return open_source(value).digest
    if option == "target":
        path = Path(value)
        return digest_of(path) if path.suffix == ".toml" and path.is_file() else targets.find(value).name
    return list(value) if isinstance(value, tuple) else value
