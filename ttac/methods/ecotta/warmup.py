"""The warm-up of meta networks while compiling: cross-entropy on source samples, with the statistics of each batch.

The settings are those of Lily-Le/EcoTTA for CIFAR: batches of 64, momentum 0.9, a rate that grows during the first pass
and falls to a fifth from passes 3, 6 and 8 on.  That code also distorts colours.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx_ir as ir

from ttac.errors import UsageError
from ttac.passes.differentiate.heads import Head
from ttac.passes.differentiate.joint import differentiate_loss
from ttac.passes.differentiate.losses import Loss, labelled, mean
from ttac.passes.graph.builder import Builder
from ttac.passes.graph.execute import Executable
from ttac.passes.graph.graph_files import write_graphs
from ttac.passes.graph.sample_set import SampleSet
from ttac.passes.graph.state import StateTensor
from ttac.passes.lower.lower import lower
from ttac.passes.step_graphs.context import Subject

BATCH, MOMENTUM, FALLS = 64, 0.9, (3, 6, 8)
LABELS, LOSS, EPOCHS = "warmup.labels", "warmup.loss", "epochs"

Arrays = dict[str, np.ndarray]


@dataclass
class Progress:
    """Finished passes, and the tensors with their momentum after the last."""

    epochs: int
    values: Arrays
    momentum: Arrays


def labels_of(subject: Subject) -> np.ndarray:
    """The labels of the calibration samples, [n] int64: from the file that the settings name, else predicted.

    `subject.model` predicts them, without meta networks.  Raises UsageError for labels that do not fit the samples.
    """
    samples, file = subject.samples, str(subject.settings["warmup_labels"])
    assert samples is not None and subject.head is not None
    if not file:
        subject.say("the warm-up learns the labels that the model predicts for the calibration data: none are given")
        name = str(subject.model.graph.outputs[0].name)
        state = {tensor.name: tensor.initial for tensor in subject.adaptation.state}
        with _executable(subject, subject.model.clone()) as execute:
            return np.concatenate([execute({**state, **part})[name].argmax(1) for part in samples.batches(BATCH)])
    return _read_labels(file, len(samples), subject.head.classes)


def _read_labels(file: str, count: int, classes: int) -> np.ndarray:
    where = f"`--set warmup_labels={file}`"
    try:
        read = np.load(file)
        labels = read if isinstance(read, np.ndarray) else read["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise UsageError("the labels cannot be read", where=where, hint="an .npy file, or `labels` in .npz") from error
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= classes:
        raise UsageError(
            f"the labels are {labels.dtype} {list(labels.shape)}, and there are {count} samples of {classes} classes",
            where=where,
            hint=f"whole numbers from 0 to {classes - 1}, one for each sample of `--calibration`, in its order",
        )
    return labels.astype(np.int64)


def warmed_up(subject: Subject, state: Sequence[StateTensor], labels: np.ndarray) -> list[StateTensor]:
    """The tensors with their values after the warm-up; `subject.model` is the network that reads them.

    Raises UsageError for a file of another warm-up.
    """
    settings = subject.settings
    epochs, file = int(settings["warmup_epochs"]), str(settings["warmup_file"])
    subject.say(f"the warm-up trains {len(state)} tensors on {len(labels)} samples, {epochs} passes")
    key = _key(subject, state, labels)
    progress = Progress(0, {t.name: t.initial for t in state}, {t.name: np.zeros_like(t.initial) for t in state})
    if file and Path(file).exists():
        progress = _read(Path(file), key)
        subject.say(f"the warm-up goes on after pass {progress.epochs}, from `{file}`")
    if progress.epochs < epochs:
        _train(subject, state, labels, progress, (Path(file), key) if file else None)
    return [replace(tensor, initial=progress.values[tensor.name]) for tensor in state]


def _train(
    subject: Subject,
    state: Sequence[StateTensor],
    labels: np.ndarray,
    progress: Progress,
    kept: tuple[Path, str] | None,
) -> None:
    """Do the passes that `progress` lacks, and write each to the file of `kept`."""
    samples, head, settings = subject.samples, subject.head, subject.settings
    assert samples is not None and head is not None
    copy = subject.model.clone()
    values = {str(value.name): value for value in copy.graph.inputs}
    bound = tuple(replace(tensor, value=values[tensor.name]) for tensor in state)
    joint = differentiate_loss(copy, copy.graph.outputs[0], labels_loss, bound, head)
    assert joint.loss is not None
    copy.graph.outputs[:] = [joint.loss.scalar, *joint.gradients]
    gradients = {p.name: str(g.name) for p, g in zip(joint.parameters, joint.gradients, strict=True)}
    fixed = {tensor.name: tensor.initial for tensor in subject.adaptation.state}
    targets = np.eye(head.classes, dtype=np.float32)[labels]
    epochs, size = int(settings["warmup_epochs"]), min(BATCH, len(labels))
    with _executable(subject, copy) as execute:
        for epoch in range(progress.epochs, epochs):
            order = np.random.RandomState([int(settings["seed"]), epoch]).permutation(len(labels))
            steps = len(labels) // size
            losses = []
            for step in range(steps):
                chosen = order[step * size : (step + 1) * size]
                feeds = {**fixed, **progress.values, **_chosen(samples, chosen), LABELS: targets[chosen]}
                found = execute(feeds)
                rate = float(settings["warmup_lr"]) * ((step + 1) / steps if epoch == 0 else fall(epoch + 1))
                _descend(progress, {name: found[gradient] for name, gradient in gradients.items()}, rate)
                losses.append(float(found[LOSS]))
            progress.epochs = epoch + 1
            subject.say(f"warm-up pass {epoch + 1} of {epochs}: loss {np.mean(losses):.4f}")
            if kept:
                _write(*kept, progress)


def fall(epoch: int) -> float:
    """Factor of the rate in a pass, counted from 1."""
    return float(0.2 ** sum(epoch >= after for after in FALLS))


def _descend(progress: Progress, gradients: Arrays, rate: float) -> None:
    """One step of stochastic gradient descent with momentum, in place."""
    for name, gradient in gradients.items():
        progress.momentum[name] = MOMENTUM * progress.momentum[name] + gradient
        progress.values[name] = (progress.values[name] - rate * progress.momentum[name]).astype(np.float32)


def labels_loss(op: Builder, scores: ir.Value, head: Head) -> Loss:
    """Mean cross-entropy to the labels, which `warmup.labels` [N, classes] holds as ones and zeros."""
    each, labels = labelled(op, scores, LABELS)
    return Loss(scalar=mean(op, each, LOSS), stats={}, head=head, other_inputs=(labels,))


def _chosen(samples: SampleSet, chosen: np.ndarray) -> Arrays:
    """The feeds of the chosen samples."""
    return {
        name: array if (axis := samples.axes[name]) is None else np.ascontiguousarray(array.take(chosen, axis))
        for name, array in samples.arrays.items()
    }


@contextmanager
def _executable(subject: Subject, model: ir.Model) -> Iterator[Executable]:
    """The model in the engine, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ttac-") as folder:
        write_graphs(Path(folder), {"warmup": lower(model, subject.target)})
        yield Executable(Path(folder) / "warmup.onnx")


def _key(subject: Subject, state: Sequence[StateTensor], labels: np.ndarray) -> str:
    """A digest of all that the warm-up depends on but the number of passes."""
    digest = hashlib.sha256(f"{subject.settings['warmup_lr']} {subject.settings['seed']}".encode())
    assert subject.samples is not None
    for array in (labels, subject.samples.main, *(tensor.initial for tensor in state)):
        digest.update(np.ascontiguousarray(array).tobytes())
    for value in subject.model.graph.initializers.values():
        if value.const_value is not None:
            digest.update(value.const_value.numpy().tobytes())
    return digest.hexdigest()


def _read(file: Path, key: str) -> Progress:
    """The progress in a file; raises UsageError for the file of another warm-up."""
    where, hint = f"`--set warmup_file={file}`", "name another file, or delete this one"
    try:
        with np.load(file) as found:
            arrays = {name: found[name] for name in found.files}
        if str(arrays["key"]) != key:
            raise UsageError(
                "the file belongs to another warm-up: model, data or settings differ", where=where, hint=hint
            )
        values, momentum = (
            {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
            for prefix in ("value/", "momentum/")
        )
        return Progress(int(arrays[EPOCHS]), values, momentum)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UsageError("the file holds no warm-up", where=where, hint=hint) from error


def _write(file: Path, key: str, progress: Progress) -> None:
    """Write the progress, so that the file is whole at every moment."""
    arrays: Arrays = {EPOCHS: np.array(progress.epochs), "key": np.array(key)}
    arrays |= {f"value/{name}": array for name, array in progress.values.items()}
    arrays |= {f"momentum/{name}": array for name, array in progress.momentum.items()}
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    partial.replace(file)
