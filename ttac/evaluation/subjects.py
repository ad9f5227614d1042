"""The models and methods of an evaluation, and the bundles that they need."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ttac import methods, targets
from ttac.errors import UsageError
from ttac.evaluation.cells import Subject, digest
from ttac.options import RULES
from ttac.runtime.bundle import is_bundle, manifest_bytes, read_manifest
from ttac.runtime.hash_check import digest_of
from ttac.settings import resolve, split_assignments

TARGET = RULES["target"].default
"""The target of a compile without the option, whose batch is also the default of `ttac run`."""

SOURCE = "source"


@dataclass(frozen=True)
class MethodSpec:
    """A method with its settings; `label` is the text that named it, such as `tent:lr=0.01`."""

    label: str
    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """The arguments of `ttac.compile` for one subject."""

    model: Path
    arguments: Mapping[str, Any]
    output: Path


def method_specs(labels: Sequence[str], assignments: Mapping[str, Any]) -> list[MethodSpec]:
    """Return the methods that labels such as `tent` or `tent:lr=0.01:optimizer=sgd` name, with all settings.

    `assignments` go to every method that has an option of that name.

    Raises UsageError for an unknown method, an option that no method has, or a method that is named twice.
    """
    specs = []
    for label in labels:
        name, *parts = label.split(":")
        method = methods.find(name)
        shared = {key: value for key, value in assignments.items() if key in {o.name for o in method.options}}
        specs.append(MethodSpec(label, name, resolve(method, {**shared, **split_assignments(parts)})))
    for key in assignments:
        if not any(key in spec.settings for spec in specs):
            problem = f"none of the methods has an option `{key}`"
            raise UsageError(problem, where=f"`--set {key}=...`", hint="`ttac methods NAME` lists a method's options")
    if len({spec.label for spec in specs}) != len(specs):
        raise UsageError("a method is named twice", where="`--methods`", hint="name each one once")
    return specs


def subjects_of(
    paths: Sequence[Path],
    specs: Sequence[MethodSpec],
    batches: Sequence[int],
    options: Mapping[str, Any],
    bundles: Path,
) -> tuple[list[Subject], dict[Path, Recipe]]:
    """Return a subject per bundle, and per model, method and batch, and the recipes of those without a bundle.

    Args:
        options: further arguments of `ttac.compile`, the same for all.
        bundles: folder of the bundles to compile.

    Raises UsageError for a path that is neither model nor bundle, models without methods, or a batch that a bundle is
    not planned for.
    """
    for path in paths:
        if not path.exists():
            hint = "give an `.onnx` file or a bundle"
            raise UsageError("there is no such model or bundle", where=f"`{path}`", hint=hint)
    models = [path for path in paths if not is_bundle(path)]
    if models and not specs:
        raise UsageError("no method is named", where="`--methods`", hint="for example `--methods source,bn,tent`")
    names = dict(zip(models, _distinct(models), strict=True))
    subjects: list[Subject] = []
    recipes: dict[Path, Recipe] = {}
    for model in models:
        for batch in batches or [targets.find(options.get("target") or TARGET).batch]:
            for spec in specs:
                subject, recipe = _to_compile(model, names[model], spec, batch, options, bundles)
                subjects.append(subject)
                recipes[subject.bundle] = recipe
    existing = [path for path in paths if is_bundle(path)]
    subjects.extend(subject for path in existing for subject in _of_bundle(path, existing, batches))
    return subjects, recipes


def compile_subject(recipe: Recipe) -> None:
    """Compile the bundle if it does not exist; raises the errors of `ttac.compile`."""
    if is_bundle(recipe.output):
        return
    from ttac.pipeline import compile_model

    with redirect_stdout(sys.stderr):
        compile_model(recipe.model, output=recipe.output, **recipe.arguments)


def _to_compile(
    model: Path, name: str, spec: MethodSpec, batch: int, options: Mapping[str, Any], bundles: Path
) -> tuple[Subject, Recipe]:
    options = {option: value for option, value in options.items() if not _is_default(option, value)}
    identity = {
        "ttac": metadata.version("ttac"),
        "model": digest_of(model) if model.is_file() else "",
        "method": spec.name,
        "settings": dict(spec.settings),
        "options": {name: _identity_of(name, value) for name, value in options.items()},
    }
    key = digest({**identity, "batch": batch})
    folder = bundles / f"{model.stem}-{spec.name}-{batch}-{key[:8]}.ttac"
    arguments = {**options, "method": spec.name, "settings": dict(spec.settings), "batch": batch}
    subject = Subject(model=name, method=spec.label, batch=batch, identity=identity, bundle=folder)
    return subject, Recipe(model, arguments, folder)


def _of_bundle(path: Path, bundles: Sequence[Path], batches: Sequence[int]) -> list[Subject]:
    """Return one subject per batch of a bundle.

    Its model and method name a bundle; where several bundles have the same two names, its folder replaces the method.
    """
    manifest = read_manifest(path)
    planned = int(manifest["batch"]["planned"])
    for batch in batches:
        if batch > planned:
            problem = f"the bundle is planned for {planned} samples a step"
            raise UsageError(problem, where=f"`{path}`, `--batch {batch}`", hint=f"compile with `--batch {batch}`")
    same = [other for other in bundles if _named(other) == _named(path)]
    model, method = _named(path) if len(same) == 1 else (_named(path)[0], path.name.removesuffix(".ttac"))
    identity = {"ttac": metadata.version("ttac"), "bundle": hashlib.sha256(manifest_bytes(path)).hexdigest()}
    facts: dict[str, Any] = {"model": model, "method": method, "identity": identity, "bundle": path.absolute()}
    return [Subject(batch=batch, **facts) for batch in batches or [planned]]


def _named(bundle: Path) -> tuple[str, str]:
    manifest = read_manifest(bundle)
    return Path(manifest["source"]["file"]).stem, manifest["method"]["name"]


def _distinct(paths: Iterable[Path]) -> list[str]:
    """Return the stem of each file, or its whole path where two stems are equal."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]


def _is_default(option: str, value: Any) -> bool:
    return value is None or (isinstance(value, str) and value == RULES[option].default)


def _identity_of(option: str, value: Any) -> Any:
    """Return a JSON value that identifies an option of `ttac.compile`; for files and samples, a digest."""
    from ttac.evaluation.dataset import content_digest

    if option == "calibration":
        return content_digest(value)
    if option == "target":
        path = Path(value)
        return digest_of(path) if path.suffix == ".toml" and path.is_file() else targets.find(value).name
    return list(value) if isinstance(value, tuple) else value
