"""`saga-ray`: finds the verb, runs it, and turns what went wrong into a sentence and an exit code."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import click

import saga_ray
from saga_ray.errors import is_ours

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "train": "Train one encoder and add its row to the leaderboard.",
    "sweep": "Search config values with Ray Tune and Optuna.",
    "leaderboard": "Rank what was measured, with intervals.",
    "evaluate": "Measure a finished run again.",
    "study": "Run several methods and write a page about them.",
    "data": "List, get, check, prepare and look into data sets.",
    "vocab": "Show, check and judge the attributes that the MLLM describes.",
    "prompt": "Show what the MLLM is asked, word by word.",
    "mllm": "Ask the frozen MLLM about two pictures.",
    "serve": "Keep a frozen MLLM ready for several runs.",
    "bench": "Measure what this machine reaches.",
    "config": "Show a resolved configuration, or every key.",
    "doctor": "Check this machine.",
}
"""Verbs and what they do: written here too, so that help imports none of them."""


class LazyGroup(click.Group):
    """A group whose verbs live in modules of their own, which are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of a first reading."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb."""
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"saga_ray.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Verbs with their help, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest verb for an unknown one."""
        if args and not args[0].startswith("-") and args[0] not in VERBS:
            from saga_ray.config.keys import check_choice

            raise click.UsageError(str(check_choice("verb", args[0], VERBS)), ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`saga-ray VERB --help` tells more. Results go to standard output, everything else to standard error.",
)
@click.version_option(saga_ray.__version__, prog_name="saga-ray")
@click.option("--debug", is_flag=True, help="Show where an error comes from (may stand anywhere).")
def cli(debug: bool) -> None:
    """Train image retrieval encoders with the gradient of a frozen multimodal LLM, on Ray or in one process.

    Start with: saga-ray train demo
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(list(sys.argv[1:] if args is None else args)))


def run(args: list[str]) -> int:
    """Run the command line; the exit code says what happened: 0 done, 2 a mistake that the message explains, 130 Ctrl-C."""
    debug = "--debug" in args or bool(os.environ.get("SAGA_RAY_DEBUG"))
    _prepare_output(debug)
    try:
        code = cli.main([word for word in args if word != "--debug"], prog_name="saga-ray", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except click.ClickException as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            _say(error.ctx.get_help() if error.ctx else error.format_message())
            return USAGE
        _say(_usage_sentence(error))
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        _say("Interrupted; the same command goes on from the last checkpoint, if there is one.")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # nothing is swallowed: a sentence for a mistake of the user, else the traceback
        return _report(error, debug)


def _report(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
        return USAGE if isinstance(error, ValueError) else FAILED
    if isinstance(error, ValueError) and is_ours(error):
        _say(str(error))
        return USAGE
    if isinstance(error, ModuleNotFoundError) and error.name == "ray":
        _say("Ray is not installed here: add --local to run in this process, or install the package's dependencies")
        return USAGE
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _say(
            f"{error.filename or 'the disk'}: no space left on the device; make room, then type the same command again"
        )
        return FAILED
    traceback.print_exception(error)
    return FAILED


def _usage_sentence(error: click.ClickException) -> str:
    sentence = error.format_message().strip()
    ctx = getattr(error, "ctx", None)
    return f"{sentence} (see {ctx.command_path} --help)" if ctx is not None else sentence


def _say(text: str) -> None:
    # Never through rich: a sentence must not be wrapped, so that it can be searched for and copied.
    print(text, file=sys.stderr, flush=True)


def _prepare_output(debug: bool) -> None:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a letter gets a question mark
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(message)s", level=logging.INFO if debug else logging.WARNING, stream=sys.stderr)
    if not debug:
        # Libraries warn about themselves, not about what was typed.
        warnings.filterwarnings("ignore")
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("RAY_USAGE_STATS_ENABLED", "0")):
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
