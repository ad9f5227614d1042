"""`ttac`, the command line: one file per group of commands; this one starts them and turns errors into exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from ttac.cli import baking, compiling, demonstrating, diagnosing, inspecting, listing, running, viewing
from ttac.cli.options import CONTEXT, verbose
from ttac.cli.terminal import Terminal
from ttac.errors import RuntimeMissingError, TtacError, UsageError
from ttac.suggest import did_you_mean

INTERRUPTED = 130
CRASH_HINT = "run again with `-v` for the traceback, and report it"


class Commands(click.Group):
    """A group that keeps its order in the help and answers an unknown command with the nearest one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command to run; raises UsageError when there is none of that name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise UsageError(f"there is no command `{args[0]}`", hint=did_you_mean(args[0], self.commands))
        return super().resolve_command(ctx, args)


class Deferred(click.Command):
    """A command whose module, with its many options, is imported when it is called: the others start without it."""

    def __init__(self, name: str, module: str, short_help: str) -> None:
        super().__init__(name, short_help=short_help)
        self.module = module

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of the command itself."""
        command: click.Command = import_module(self.module).COMMAND
        return command.make_context(info_name, args, parent, **extra)


@click.group(cls=Commands, invoke_without_command=True, context_settings=CONTEXT)
@click.version_option(package_name="ttac", prog_name="ttac", message="%(prog)s %(version)s")
@verbose
@click.pass_context
def commands(context: click.Context) -> None:
    """Compile an exported ONNX model into a bundle that adapts itself on the device.

    Results go to stdout, talk and progress to stderr. Exit codes: 0 ok, 1 internal error, 2 usage, 3 model or operator
    not supported, 4 memory budget not met, 5 environment or runtime missing, 6 verification failed.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    compiling.compile_command,
    inspecting.inspect,
    viewing.view,
    running.run,
    Deferred("eval", "ttac.cli.evaluating", "Compare methods on streams of shifted samples."),
    Deferred("bench", "ttac.cli.benching", "Measure what a step costs in time and memory."),
    baking.bake,
    listing.methods_command,
    listing.targets_command,
    diagnosing.doctor_command,
    demonstrating.demo,
):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises but for `SystemExit` of a closed pipe."""
    terminal = Terminal()
    try:
        outcome = commands.main(args=arguments, prog_name="ttac", standalone_mode=False, obj=terminal)
        return outcome if isinstance(outcome, int) else 0
    except (click.Abort, KeyboardInterrupt):
        terminal.say("interrupted")
        return INTERRUPTED
    except Exception as error:
        told = explained(error)
        terminal.error(told, cause=error)
        return told.exit_code


def explained(error: Exception) -> TtacError:
    """Any exception as one with a place, a way out and an exit code."""
    if isinstance(error, TtacError):
        return error
    if isinstance(error, click.ClickException):
        return wrong_usage(error)
    name = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if name not in ("", "ttac"):
        return RuntimeMissingError(f"`{name}` cannot be imported: {error}", hint="`ttac doctor` shows what is missing")
    if isinstance(error, OSError) and error.strerror and error.filename:
        return UsageError(error.strerror, where=f"`{error.filename}`", hint="give a path that can be read or written")
    text = " ".join(str(error).split()) or "no message"
    return TtacError(f"internal error, {type(error).__name__}: {text}", hint=CRASH_HINT)


def wrong_usage(error: click.ClickException) -> UsageError:
    """Click's error in ttac's words."""
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
