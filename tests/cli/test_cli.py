"""The command line as a person sees it: exit code, stdout and stderr together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import Run
from ttac.cli import commands
from ttac.errors import BudgetError, UnsupportedError, VerificationError
from ttac.reports import doctor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("comple x.onnx", "error: there is no command `comple`\n\nhint: did you mean `compile`?\n"),
        ("compile", "error: the argument `MODEL.onnx` is missing\n\nhint: see `ttac compile --help`\n"),
        ("bake b", "error: the option `--state` is missing\n\nhint: see `ttac bake --help`\n"),
        ("compile x.onnx --metod tent", "error: there is no option `--metod`\n\nhint: did you mean `--method`?\n"),
        (
            "compile x.onnx --method tnet",
            "error: there is no method `tnet`\n\nhint: did you mean `tent`? (`ttac methods` lists them)\n",
        ),
        (
            "compile x.onnx --target raspbery-pi4",
            "error: there is no target `raspbery-pi4`\n\nhint: did you mean `raspberry-pi-4`? (`ttac targets` lists "
            "them; `--target FILE.toml` describes another)\n",
        ),
        (
            "compile x.onnx --set lrr=1",
            "error: method `tent` has no option `lrr`\n  at `--set`\n\n"
            "hint: did you mean `lr`? (`ttac methods tent` lists them)\n",
        ),
        (
            "compile x.onnx --set lr",
            "error: a setting is written `name=value`\n  at `--set lr`\n\nhint: for example `--set lr=0.001`\n",
        ),
        (
            "compile x.onnx --memory-budget 64Mb.",
            "error: `64Mb.` is not a size\n  at `--memory-budget`\n\nhint: write it as `64MiB`, `48MB` or `2 GiB`\n",
        ),
        (
            "compile x.onnx --batch 0",
            "error: `0` does not fit\n  at `--batch`\n\nhint: give a whole number, at least 1\n",
        ),
        (
            "compile x.onnx --shape 3x",
            "error: `3x` is not a shape\n  at `--shape`\n\n"
            "hint: write one sample's sizes without the batch, `--shape 3x224x224`\n",
        ),
        ("inspect x.onnx --norms kep", "error: `kep` is no choice\n  at `--norms`\n\nhint: did you mean `keep`?\n"),
        (
            "inspect nothing",
            "error: there is no such model or bundle\n  at `nothing`\n\nhint: give an `.onnx` file or a bundle\n",
        ),
        (
            "run nothing x.npz",
            "error: there is no such bundle\n  at `nothing`\n\n"
            "hint: `ttac compile` prints the path of the bundle it wrote\n",
        ),
        ("run . x.npz", None),
        ("targets --toml", None),
        ("demo extra", "error: Got unexpected extra argument (extra)\n\nhint: see `ttac demo --help`\n"),
    ],
)
def test_wrong_usage_exits_with_two(run: Run, arguments: str, message: str | None) -> None:
    seen = run(*arguments.split())
    assert (seen.code, seen.out) == (2, "")
    assert message is None or seen.err == message
    assert seen.err.startswith("error: ") and "\nhint: " in seen.err and "Traceback" not in seen.err


@pytest.mark.parametrize("name", commands.commands)
def test_a_command_called_by_itself_has_the_same_help_options(name: str) -> None:
    # Click keeps the help option that it makes first, so a command called before could change those of `ttac run`.
    context = commands.commands[name].make_context(name, [], resilient_parsing=True)
    assert context.help_option_names == commands.context_settings["help_option_names"]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], *([name, "-h"] for name in commands.commands)])
def test_help_is_data(run: Run, arguments: list[str]) -> None:
    seen = run(*arguments)
    assert (seen.code, seen.err) == (0, "") and seen.out.startswith("Usage: ttac")


def test_every_command_is_there() -> None:
    assert {"compile", "inspect", "view", "run", "bake", "methods", "targets", "doctor", "demo"} <= set(
        commands.commands
    )


def test_methods(run: Run) -> None:
    seen = run("methods")
    assert (seen.code, seen.err) == (0, "")
    assert [line.split()[0] for line in seen.out.splitlines()][:1] == ["method"]
    (line,) = [line for line in seen.out.splitlines() if line.startswith("tent ")]
    assert line.split()[-1] == "arXiv:2006.10726" and "entropy minimisation over scale and bias of the norms" in line
    assert all(line == line.rstrip() for line in seen.out.splitlines())


def test_one_method_and_its_options(run: Run) -> None:
    seen = run("methods", "tent")
    assert "lr                   0.001    a number, at least 0" in seen.out
    options = json.loads(run("methods", "tent", "--json").out)["options"]
    assert options[0] == {
        "name": "lr",
        "default": 0.001,
        "help": "learning rate",
        "choices": [],
        "low": 0.0,
        "high": None,
        "per_site": False,
    }


def test_targets(run: Run) -> None:
    lines = run("targets").out.splitlines()
    assert lines[0].split() == ["target", "device", "runs", "on", "memory", "batch", "opset", "engine"]
    assert lines[2].startswith("jetson") and lines[2].endswith("CPU      4.00 GiB      8     21  onnxruntime >=1.18,<2")
    assert json.loads(run("targets", "jetson", "--json").out)["memory"] == 4 * 2**30
    assert json.loads(run("targets", "--json").out)[0]["name"] == "cpu"


def test_a_target_of_ones_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(run("targets", "raspberry-pi-5", "--toml").out.replace("2.4 GiB", "1 GiB"))
    assert "memory   1.00 GiB\n" in run("targets", "my.toml").out


def test_an_error_keeps_its_exit_code_and_hides_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (UnsupportedError, BudgetError, VerificationError):

        def refuse(name: str, error: type[Exception] = error) -> None:
            raise error("no", where="here", hint="try")  # type: ignore[call-arg]

        monkeypatch.setattr("ttac.methods.find", refuse)
        seen = run("methods", "tent")
        assert (seen.code, seen.out, seen.err) == (error.exit_code, "", "error: no\n  at here\n\nhint: try\n")
        assert "Traceback" in run("methods", "tent", "-v").err
        assert "Traceback" in run("-v", "methods", "tent").err


def test_an_unforeseen_exception_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(name: str) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("ttac.methods.find", crash)
    seen = run("methods", "tent")
    assert (seen.code, seen.out) == (1, "")
    assert seen.err == (
        "error: internal error, RuntimeError: two lines\n\nhint: run again with `-v` for the traceback, and report it\n"
    )
    assert 'raise RuntimeError("two\\nlines")' in run("methods", "tent", "-v").err


def test_an_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ttac.methods.find", interrupt)
    seen = run("methods", "tent")
    assert (seen.code, seen.out) == (130, "") and seen.err.strip() == "interrupted"


def test_a_missing_package_is_an_environment_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError("No module named 'onnxsim'", name="onnxsim")

    monkeypatch.setattr("ttac.methods.find", absent)
    seen = run("methods", "tent")
    assert seen.code == 5 and seen.err.endswith("hint: `ttac doctor` lists the missing packages\n")


def test_colour_depends_on_the_environment(tmp_path: Path) -> None:
    def errors(**extra: str) -> str:
        bare = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
        command = [sys.executable, "-m", "ttac", "methods", "tnet"]
        done = subprocess.run(command, capture_output=True, text=True, env={**bare, **extra}, cwd=tmp_path, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "\x1b[" not in errors()
    assert "\x1b[1;31merror: " in errors(FORCE_COLOR="1")
    assert "\x1b[1;31m" not in errors(FORCE_COLOR="1", NO_COLOR="1")


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's import and probe in child processes, which take seconds, are left out."""
    monkeypatch.setattr(doctor, "import_failure", lambda: "")
    monkeypatch.setattr(doctor, "engine_block", lambda **_: (16, ""))


@pytest.mark.slow
def test_doctor_imports_the_engine() -> None:
    assert doctor.import_failure() == ""


def test_doctor_reports_an_engine_that_crashes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "import_failure", lambda: "the process ends with signal 4")
    seen = run("doctor")
    assert seen.code == 5
    assert seen.err.startswith("error: engine: it cannot be imported, the process ends with signal 4\n\nhint: `pip")


def test_doctor_reports_an_import_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(code: str, *, seconds: float) -> None:
        raise subprocess.TimeoutExpired("python", seconds)

    monkeypatch.setattr(doctor, "run_code", endless)
    assert doctor.import_failure() == "the import does not end within 120 s"
    assert doctor.engine_block() is None


@pytest.mark.usefixtures("importable")
def test_doctor(run: Run) -> None:
    seen = run("doctor")
    assert seen.code == 0
    assert seen.out.splitlines()[0].split() == ["part", "found", "note"]
    report = json.loads(run("doctor", "--json", "--target", "raspberry-pi-4").out)
    assert report["ok"] and {check["verdict"] for check in report["checks"]} <= {"ok", "info", "warn"}
    assert any(check["part"] == "target raspberry-pi-4" for check in report["checks"])
    assert "-16" in seen.out


@pytest.mark.usefixtures("importable")
def test_doctor_without_a_blocked_layout(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "engine_block", lambda **_: (0, "the engine refuses its blocked layout"))
    assert "refuses its blocked layout" in run("doctor").out
    monkeypatch.setattr(doctor, "engine_block", lambda **_: None)
    assert "blocked" not in run("doctor").out


@pytest.mark.usefixtures("importable")
def test_doctor_without_an_engine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: "" if "onnxruntime" in package else "1.0")
    seen = run("doctor")
    assert seen.code == 5
    assert seen.err == "error: engine: none, nothing can run a bundle\n\nhint: `pip install onnxruntime`\n"


@pytest.mark.usefixtures("importable")
def test_doctor_with_two_engines_and_a_denied_version(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"onnxruntime": "1.21.0", "onnxruntime-gpu": "1.21.0"}
    monkeypatch.setattr(doctor, "installed", lambda package: found.get(package, "" if "onnxr" in package else "1.0"))
    seen = run("doctor", "--target", "raspberry-pi-4")
    assert seen.code == 5 and "illegal instruction" in seen.err
    assert "warning: engine: 2 packages, they overwrite each other's files; keep one\n" in seen.err


@pytest.mark.usefixtures("importable")
def test_doctor_names_the_limits_of_an_engine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: "1.16.3" if package == "onnxruntime" else "1.0")
    monkeypatch.setattr(doctor, "ENGINES", ("onnxruntime",))
    seen = run("doctor", "--target", "cpu")
    assert seen.code == 5 and "needs >=1.18,<2" in seen.err


class FakeNetron(SimpleNamespace):
    served: str = ""
    waited: bool = False

    def start(self, file: str, address: int | None = None, browse: bool = True) -> tuple[str, int]:
        print("Serving")
        self.served, self.browse = file, browse
        return "localhost", address or 8080

    def wait(self) -> None:
        self.waited = True


def test_view_serves_a_graph_of_a_bundle(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netron = FakeNetron()
    monkeypatch.setitem(sys.modules, "netron", netron)
    folder = tmp_path / "b.ttac"
    folder.mkdir()
    for name in ("manifest.json", "forward.onnx", "backward.onnx"):
        (folder / name).write_text("{}")
    seen = run("view", "b.ttac", "backward", "--nodes", "--no-browser", "--port", "8099")
    assert (seen.code, seen.out) == (0, "http://localhost:8099\n")
    assert Path(netron.served) == Path("b.ttac/backward.onnx") and netron.waited and not netron.browse
    assert run("view", "b.ttac", "--nodes").code == 0 and netron.served.endswith("forward.onnx")
    wrong = run("view", "b.ttac", "bakward")
    assert wrong.code == 2 and wrong.err.endswith("hint: did you mean `backward`?\n")


def test_view_without_netron(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "netron", None)
    (tmp_path / "m.onnx").write_bytes(b"")
    seen = run("view", "m.onnx")
    assert (seen.code, seen.err) == (5, "error: `ttac view` needs Netron\n\nhint: `pip install 'ttac[view]'`\n")
