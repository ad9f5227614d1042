"""One form of the bundle's graphs in sessions, with the weights that they take as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ttac.runtime.bundle import OpenBundle
from ttac.runtime.commit import State
from ttac.runtime.engine import EngineDevice, EngineSettings
from ttac.runtime.form_table import FormSpec
from ttac.runtime.forms import form_weights
from ttac.runtime.kernel_library import kernel_library
from ttac.runtime.loaded_graph import LoadedGraph
from ttac.runtime.program.bind import bind
from ttac.runtime.program.words import Run, Word, all_words, graphs_of, map_runs
from ttac.runtime.program.world import Tensor, World
from ttac.runtime.records import WEIGHTS
from ttac.runtime.tensors import Tensors, parse_tensors


class LoadedForm:
    """The graphs of a form, and its programs.

    Args:
        settings: of the sessions.
        state: the state tensors, which programs name.
        spec: the form, None for the portable graphs.
    """

    def __init__(
        self,
        folder: Path,
        opened: OpenBundle,
        settings: EngineSettings,
        state: State,
        spec: FormSpec | None = None,
    ) -> None:
        self._folder, self._manifest, self._files = folder, opened.manifest, opened.files
        self._device = EngineDevice(settings.device)
        self.graphs = self._sessions(settings, spec)
        self.weights = self._mapped_weights()
        if spec is not None:
            made = form_weights(self._stored(), spec, folder)
            self.weights |= {name: self._device.resident(array) for name, array in made.items()}
        programs = self._manifest.programs if spec is None else self._respelled()
        world = self.world(state)
        self.programs: Mapping[str, tuple[Word, ...]] = {
            name: bind(words, world, f"programs.{name}") for name, words in programs.items()
        }

    def _respelled(self) -> Mapping[str, tuple[Word, ...]]:
        """The programs with the inputs of this form's graphs; a second run of a graph gives the residuals it has.

        `only` may list more: `bind` fetches no value that nothing reads.
        """
        returned = {output.name for output in self._manifest.outputs}

        def run(word: Run) -> Run:
            graph = self.graphs[word.graph]
            word = replace(word, feed={name: value for name, value in word.feed.items() if name in graph.inputs})
            if word.only is None or returned.issuperset(word.only):
                return word
            first = {*returned, *graph.state, *graph.stats}
            return replace(word, only=tuple(name for name in graph.outputs if name not in first))

        return {name: map_runs(words, run) for name, words in self._manifest.programs.items()}

    def world(self, state: State) -> World:
        """Everything that a program may name, with the committed `state`."""
        return World(
            device=self._device,
            graphs=self.graphs,
            inputs={spec.name: spec.batch_axis for spec in self._manifest.inputs},
            state=state.tensors,
            initial=state.initial,
            weights=self.weights,
        )

    def _mapped_weights(self) -> dict[str, Tensor]:
        """The weights that are graph inputs; all sessions read the same mapped memory."""
        if WEIGHTS not in self._manifest.files:
            return {}
        words = [word for program in self._manifest.programs.values() for word in all_words(program)]
        needed = {name for graph in self.graphs.values() for name in graph.inputs}
        needed |= {name for word in words if isinstance(word, Run) for name in word.feed.values()}
        return {name: self._device.resident(array) for name, array in self._stored().items() if name in needed}

    def _stored(self) -> Tensors:
        """The weights file as arrays."""
        return parse_tensors(self._files.content(WEIGHTS), f"`{self._folder / WEIGHTS}`")[0]

    def _sessions(self, settings: EngineSettings, form: FormSpec | None) -> dict[str, LoadedGraph]:
        needed = {name for words in self._manifest.programs.values() for name in graphs_of(words)}
        # A single graph has no partner for a shared arena, and the arena would keep 17 to 47 MB of loading memory.
        settings = replace(settings, shared_arena=settings.shared_arena and len(needed) > 1)
        if form is not None and form.kernels:
            settings = replace(settings, library=kernel_library(form.kernels).path)
        files = form.graphs if form else {}
        paths = {name: files.get(name, spec.file) for name, spec in self._manifest.graphs.items() if name in needed}
        graphs = {
            name: LoadedGraph(self._files.graph(file), self._manifest.graphs[name], self._manifest, settings)
            for name, file in paths.items()
        }
        self._files.check_paths({*paths.values(), WEIGHTS} & set(self._manifest.files))
        return graphs
