"""One way to make a command: a documented dataclass becomes flags, a --config file and --help.

Unknown keys and wrong types are errors (exit code 2), as jsonargparse has it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentParser, Namespace

from cxr.rules import DISK, FULL, GONE, RefusedError, in_words, lacks_training
from cxr.workdir import as_plain, log, run_logs, set_up_logging, write_atomic

Config = TypeVar("Config")
Several = list[str] | str  # of a flag that may be given more than once


def build_parser(
    config_class: type[Any],
    prog: str,
    example: str,
    positionals: Sequence[str] = (),
    bare: Mapping[str, str] | None = None,
) -> ArgumentParser:
    """A parser for `config_class`: its docstring is the description, its fields are the flags.
    Fields named in `positionals` become positional arguments that take any number of values. Fields
    (str | None) in `bare` are flags that may stand without a value, and then have that one."""
    bare, (about, docs) = bare or {}, _docs(config_class)
    parser = ArgumentParser(
        prog=prog,
        description=about,
        epilog=f"example:  {example}",
        default_env=False,
        allow_abbrev=False,  # a mistyped flag is an error, not a guess
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="YAML file with any of the options below"
    )
    said: dict[str, Any] = {
        n: {"type": str, "help": docs.get(n, "")} for n in (*positionals, *bare)
    }
    for name in positionals:
        parser.add_argument(name, nargs="*", default=SUPPRESS, metavar=name.upper(), **said[name])
    for name, value in bare.items():
        parser.add_argument(f"--{name}", nargs="?", const=value, default=None, **said[name])
    skip = {*positionals, *bare}
    parser.add_class_arguments(config_class, skip=skip, as_group=False, fail_untyped=True)
    unknown = skip - {f.name for f in dataclasses.fields(config_class)}
    assert not unknown, f"arguments that are no fields: {unknown}"
    return parser


def parse_config(
    config_class: type[Config],
    argv: Sequence[str] | None,
    example: str,
    positionals: Sequence[str] = (),
    bare: Mapping[str, str] | None = None,
    prog: str = "",
) -> Config:
    """Parse `argv` (None: the process's own) into a `config_class`; exits with 2 when it cannot. A
    ValueError from the dataclass' own `__post_init__` is a wrong argument too. The command is what
    the example begins with, or `prog`."""
    set_up_logging()
    named = re.match(r"(python (-m )?)?\S+", example)
    parser = build_parser(config_class, prog or named[0], example, positionals, bare)  # type: ignore[index]
    words = list(sys.argv[1:] if argv is None else argv)
    namespace = parser.parse_args(_gather_lists(parser, _complete_switches(parser, words)))
    try:
        return instantiate(parser, namespace, config_class, positionals)
    except ValueError as error:
        parser.error(str(error))
        raise


def _complete_switches(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """`--square films/` as `--square=true films/`: a switch is known to take no file's name."""
    switches = _options_of(parser, bool)
    return [
        f"{word}=true" if word in switches and after not in (["true"], ["false"]) else word
        for word, after in ((word, words[i + 1 : i + 2]) for i, word in enumerate(words))
    ]


def _options_of(parser: ArgumentParser, kind: Any) -> set[str]:
    """The flags whose values are of this type."""
    ours = (a for a in parser._actions if getattr(a, "_typehint", None) == kind)
    return {option for action in ours for option in action.option_strings}


def _gather_lists(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """`--data A --data B` as `--data=["A", "B"]`, where a flag takes one folder or several."""
    several = _options_of(parser, Several)
    out, given, waiting = list[str](), dict[str, list[str]](), list(words)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        if option in several and (equals or (waiting and not waiting[0].startswith("-"))):
            found = given.setdefault(option, [])
            found.append(value if equals else waiting.pop(0))
            out = [w for w in out if not w.startswith(f"{option}=")]  # the last place: a --config
            word = f"{option}={json.dumps(found) if found[1:] else found[0]}"  # before it gives way
        out.append(word)
    return out


def as_command(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """A command's `main`, which ends in words and not in a traceback: 2 where the work is refused
    or the disk does not take it, 130 after Ctrl-C, else what it returns."""

    @functools.wraps(main)
    def ended(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except KeyboardInterrupt:
            log.warning("stopped; what is finished is kept")
            return 130
        except RefusedError as error:
            log.error("%s", error)
        except ModuleNotFoundError as error:
            if not lacks_training(error):
                raise
            log.error("%s", in_words(error))
        except OSError as error:
            if error.errno not in DISK:
                raise
            if not error.filename:  # as where a library writes
                error.filename = next((h.baseFilename for h in run_logs()), None)
            way = "let it be written, or give another --out"
            if error.errno in FULL:
                way = "free some space"
            elif error.errno in GONE:
                way = "see to its disk or network"
            said = "%s. What is finished is kept: %s, and give the same command again."
            log.error(said, in_words(error), way)
        return 2

    return ended


@dataclasses.dataclass(frozen=True)
class Command:
    """One word of a command that has several, such as `fit` of `python -m classify.screener`.
    `config_class` and `run` (what takes the configuration and returns the exit code) may be named
    as "module:name": only the module of the word that was given is then imported."""

    config_class: type[Any] | str
    example: str
    positionals: Sequence[str] = ()
    run: Callable[[Any], int] | str = ""


def load_named(what: Any) -> Any:
    """What "module:name" names, imported only now; anything but a text as it is."""
    if not isinstance(what, str):
        return what
    module, _, name = what.partition(":")
    return getattr(import_module(module), name)


def parse_command(
    commands: Mapping[str, Command], argv: Sequence[str] | None, prog: str, about: str
) -> Any:
    """Parse `WORD …`: the word picks the Command, the rest is parsed into its dataclass. Exits with
    0 after --help, with 2 for a missing or unknown word."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in commands:
        chosen = commands[words[0]]
        return parse_config(
            load_named(chosen.config_class),
            words[1:],
            chosen.example,
            chosen.positionals,
            prog=f"{prog} {words[0]}",
        )
    parser = ArgumentParser(
        prog=prog,
        description=about,
        allow_abbrev=False,
        default_env=False,
        epilog="example:  " + "   or   ".join(c.example for c in commands.values()),
    )
    parser.add_argument(
        "command", choices=sorted(commands), help="what to do; it has its own --help"
    )
    parser.parse_args(words)  # prints the help, or says which words there are
    parser.error(f"the first word must be one of {', '.join(commands)}.")
    raise SystemExit(2)


def run_command(
    commands: Mapping[str, Command], argv: Sequence[str] | None, prog: str, about: str
) -> int:
    """`parse_command`, then the word's `run`; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    config = parse_command(commands, words, prog, about)
    return int(load_named(commands[words[0]].run)(config))


def instantiate(
    parser: ArgumentParser,
    namespace: Namespace,
    config_class: type[Config],
    positionals: Sequence[str] = (),
) -> Config:
    """The dataclass from parsed values; raises ValueError, the dataclass' own ones included."""
    _check_nulls(parser, namespace)
    names = [f.name for f in dataclasses.fields(config_class)]  # type: ignore[arg-type]
    ready = parser.instantiate(namespace)
    values = {name: ready[name] for name in names if name in ready}
    for name in positionals:
        values[name] = tuple(values.get(name) or ())
    return config_class(**values)


def _check_nulls(parser: ArgumentParser, namespace: Namespace) -> None:
    """jsonargparse lets null pass for a plain number, text or switch that has a default."""
    for action in parser._actions:
        kind = getattr(action, "_typehint", None)
        if action.default in (None, SUPPRESS) or kind not in (int, float, str, bool, Several):
            continue
        if action.dest in namespace and namespace[action.dest] is None:
            name = getattr(kind, "__name__", "str")
            raise ValueError(f"{action.dest} must be a value of type {name}. Got null.")


def as_list(value: Several) -> list[str]:
    """What a flag of `Several` holds, one or many; nothing for the empty text."""
    return [value] if isinstance(value, str) and value else list(value)


def to_plain(config: Any) -> Any:
    """A dataclass (nested too) as plain dicts, lists and strings for JSON or YAML."""
    return as_plain(config, lambda value: str(value) if isinstance(value, Path) else value)


def from_plain(config_class: type[Config], data: dict[str, Any]) -> Config:
    """A dataclass from plain values, checked as on the command line; raises ValueError. The way
    back from a bundle's metadata: an unknown key or a wrong type is an error."""
    parser = _parser_of(config_class)  # type: ignore[arg-type]
    try:
        own = deepcopy(data)  # the parser makes tuples of the lists within dicts where they stand
        return instantiate(parser, parser.parse_object(own), config_class)
    except Exception as error:  # jsonargparse raises several kinds
        raise ValueError(f"{config_class.__name__}: {error}") from error


@functools.cache
def _parser_of(config_class: type[Any]) -> ArgumentParser:
    """Made once a class: reading all docstrings and types takes a good part of a second."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(config_class, as_group=False)
    return parser


def write_config(path: Path, config: Any) -> None:
    """The resolved configuration as YAML that `--config` takes again."""
    write_atomic(path, yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))


def _docs(config_class: type[Any]) -> tuple[str, dict[str, str]]:
    """The dataclass' docstring without its list of fields, and the text of each field in that."""
    from docstring_parser import parse

    parsed = parse(inspect.getdoc(config_class) or "")
    about = " ".join(filter(None, [parsed.short_description, parsed.long_description]))
    return about, {p.arg_name: p.description or "" for p in parsed.params}
