"""`ttac`, the command line: starts a command and turns errors into exit codes.

| file                         | holds                                                               |
|------------------------------|---------------------------------------------------------------------|
| `terminal`                   | stdout for data, stderr for talk, tables, progress bars, errors     |
| `common_options`             | options and checks that several commands share                      |
| `report_text`                | a report in JSON values as tables and lists                         |
| `bundle_summary`             | the manifest and the report of a bundle, for a person               |
| `compiling`, `inspecting`    | `ttac compile`, `ttac inspect`                                      |
| `viewing`                    | `ttac view`                                                         |
| `running`, `watching`        | `ttac run`, `ttac watch`                                            |
| `evaluating`, `eval_tables`  | `ttac eval`: the options, and the tables that it prints             |
| `recommending`               | `ttac recommend`                                                    |
| `benching`                   | `ttac bench`                                                        |
| `packing`, `baking`          | `ttac pack`, `ttac bake`                                            |
| `demonstrating`              | `ttac demo`                                                         |
| `listing`, `diagnosing`      | `ttac methods` and `ttac targets`, `ttac doctor`                    |
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from ttac.cli import (
    baking,
    compiling,
    demonstrating,
    diagnosing,
    inspecting,
    listing,
    packing,
    running,
    viewing,
    watching,
)
from ttac.cli.common_options import CONTEXT, verbose
from ttac.cli.terminal import FULL, Terminal, writing_stdout
from ttac.errors import RuntimeMissingError, TtacError, UsageError
from ttac.suggest import did_you_mean

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells use it: 128 plus the number of the signal."""

CRASH_HINT = "run again with `-v` for the traceback, and report it"


class Commands(click.Group):
    """A group that keeps its order in the help and answers an unknown command with the nearest name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order in which they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command to run; raises UsageError for an unknown name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UsageError(f"there is no command `{args[0]}`", hint=did_you_mean(args[0], self.commands))
        return super().resolve_command(ctx, args)


class LazyCommand(click.Command):
    """A command whose module is imported at its call, so that the other commands start faster."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of the imported command."""
        command: click.Command = import_module(self.module).COMMAND
        return command.make_context(info_name, args, parent, **extra)


@click.group(cls=Commands, invoke_without_command=True, context_settings=CONTEXT)
@click.version_option(package_name="ttac", prog_name="ttac", message="%(prog)s %(version)s")
@verbose
@click.pass_context
def commands(context: click.Context) -> None:
    """Compile an exported ONNX model into a bundle that adapts itself on the device.

    Results go to stdout, talk and progress to stderr. Exit codes: 0 ok (also when the reader of a pipe stops, as
    `head` does), 1 internal error, 2 usage, 3 model or operator not supported, 4 memory budget not met, 5 environment
    or runtime missing, 6 verification failed, 130 stopped with Ctrl-C.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    compiling.compile_command,
    inspecting.inspect,
    viewing.view,
    running.run,
    watching.watch,
    LazyCommand("eval", "ttac.cli.evaluating", "Compare methods on streams of shifted samples."),
    LazyCommand("recommend", "ttac.cli.recommending", "Choose a method for a model, by trying all of them."),
    LazyCommand("bench", "ttac.cli.benching", "Measure the time and the memory of a step."),
    packing.pack,
    baking.bake,
    listing.methods_command,
    listing.targets_command,
    diagnosing.doctor_command,
    listing.completion,
    demonstrating.demo,
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no exception leaves this function."""
    terminal = Terminal(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = commands.main(args=arguments, prog_name="ttac", standalone_mode=False, obj=terminal)
        with writing_stdout():
            sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except (click.Abort, KeyboardInterrupt):
        terminal.say("interrupted")
        return INTERRUPTED
    except (BrokenPipeError, SystemExit):  # click and rich turn a closed pipe into SystemExit
        discard_stdout()
        return 0
    except Exception as error:
        explanation = explained(error)
        terminal.error(explanation, cause=error)
        return explanation.exit_code


def discard_stdout() -> None:
    """Send the rest of stdout nowhere, so that the interpreter's last flush does not fail on a closed pipe."""
    with suppress(OSError, ValueError):  # a stdout that is no file has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explained(error: Exception) -> TtacError:
    """Return the exception as an error with a place, a way out and an exit code."""
    if isinstance(error, TtacError):
        return error
    if isinstance(error, click.ClickException):
        return wrong_usage(error)
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if name not in ("", "ttac"):
        return RuntimeMissingError(
            f"`{name}` cannot be imported: {error}", hint="`ttac doctor` lists the missing packages"
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return UsageError(error.strerror, where=f"`{error.filename}`", hint="give a path that can be read or written")
    text = " ".join(str(error).split()) or "no message"
    if (isinstance(error, OSError) and error.errno in FULL) or type(error).__name__ == "SafetensorError":
        hint = "free space there, or set `TMPDIR` to a folder with space"
        return UsageError(f"cannot write a temporary file: {text}", where=f"`{tempfile.gettempdir()}`", hint=hint)
    return TtacError(f"internal error, {type(error).__name__}: {text}", hint=CRASH_HINT)


def wrong_usage(error: click.ClickException) -> UsageError:
    """Return click's error in the words of ttac."""
    context = getattr(error, "ctx", None)
    hint = f"see `{context.command_path} --help`" if context is not None else "see `ttac --help`"
    if isinstance(error, click.NoSuchOption):
        known = [name for param in context.command.get_params(context) for name in param.opts] if context else []
        return UsageError(f"there is no option `{error.option_name}`", hint=did_you_mean(error.option_name, known))
    if isinstance(error, click.MissingParameter) and error.param is not None:
        kind = error.param.param_type_name
        name = error.param.human_readable_name if kind == "argument" else error.param.opts[0]
        return UsageError(f"the {kind} `{name}` is missing", hint=hint)
    return UsageError(error.format_message().rstrip(".").replace("'", "`"), hint=hint)
