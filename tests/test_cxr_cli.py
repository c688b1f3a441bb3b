"""cxr.cli: a documented dataclass as a command."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from cxr.cli import (
    Command,
    Several,
    as_command,
    from_plain,
    parse_command,
    parse_config,
    to_plain,
    write_config,
)
from cxr.rules import RefusedError, refusing
from cxr.workdir import set_up_logging


@dataclass(frozen=True)
class Net:
    """A part.

    Args:
        side: pixels of the input.
        names: of the classes.
        data: a folder, or several.
    """

    side: int = 320
    names: list[str] = field(default_factory=lambda: ["thorax"])
    data: Several = "here"


@dataclass(frozen=True)
class Config:
    """What this command does.

    Args:
        films: files and folders.
        out: folder for results.
        margin: a fraction.
        square: make it square.
        flips: try the mirror image too.
        net: the network.
        crops: folder of crops.
    """

    films: tuple[str, ...] = ()
    out: str = "runs/x"
    margin: float = 0.05
    square: bool = False
    flips: bool | None = None
    net: Net = field(default_factory=Net)
    crops: str | None = None

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"--margin must be 0 or more. Got {self.margin} instead.")


def parse(*argv: str, **options) -> Config:
    options = {"positionals": ("films",), **options}
    return parse_config(Config, argv, "prog FILMS --out runs/x", **options)


def test_nothing_given_is_the_defaults() -> None:
    assert parse() == Config()


def test_flags_and_positionals_of_any_number() -> None:
    config = parse("a", "b.png", "--margin", "0.1", "--net.side", "64", "--net.names", "[x, y]")
    assert config.films == ("a", "b.png")
    assert (config.margin, config.net) == (0.1, Net(64, ["x", "y"]))


@pytest.mark.parametrize(
    ("argv", "square"),
    [
        (("--square", "a"), True),
        (("a", "--square"), True),
        (("--square", "--out", "o", "a"), True),
        (("--square", "false", "a"), False),
        (("--square=true", "a"), True),
        (("a",), False),
    ],
)
def test_switch_stands_alone_or_with_a_value(argv: tuple[str, ...], square: bool) -> None:
    config = parse(*argv)
    assert config.square is square and config.films == ("a",)


def test_optional_switch_takes_null() -> None:
    assert [parse("--flips", v).flips for v in ("true", "false", "null")] == [True, False, None]


def test_bare_flag_has_its_own_value() -> None:
    bare = {"crops": "runs/crops"}
    found = [parse(*argv, bare=bare).crops for argv in (("--crops",), ("--crops", "mine"), ())]
    assert found == ["runs/crops", "mine", None]


def test_flags_override_the_config_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("margin: 0.2\nout: there\nnet: {side: 96}\n")
    config = parse("--config", str(path), "--margin", "0.3")
    assert (config.margin, config.out, config.net.side) == (0.3, "there", 96)


@pytest.mark.parametrize(
    "argv",
    [
        ["--wights", "w"],
        ["--margin", "much"],
        ["--net.side", "1.5"],
        ["--marg", "0.1"],
        ["--margin", "-1"],
        ["--config", "none.yaml"],
        ["--square", "--square=maybe"],
    ],
)
def test_wrong_arguments_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(*argv)
    assert leaving.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["marge: 1\n", "net: {sight: 3}\n", "margin: [1]\n", "margin: -1\n", "margin: null\n"]
)
def test_wrong_config_file_exits_with_2(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as leaving:
        parse("--config", str(path))
    assert leaving.value.code == 2


def test_error_of_the_dataclass_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--margin", "-1")
    assert "--margin must be 0 or more. Got -1.0 instead." in capsys.readouterr().err


def test_help_shows_the_example_and_each_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "What this command does.",
        "example: prog FILMS --out runs/x",
        "a fraction",
        "files and folders",
        "pixels of the input",
    ):
        assert part in text


def test_written_config_is_taken_again(tmp_path: Path) -> None:
    config = Config(margin=0.25, net=Net(128, ["a"]))
    path = tmp_path / "c.yaml"
    write_config(path, config)
    assert parse("--config", str(path)) == config


def test_positionals_come_from_the_config_file_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    write_config(path, Config(films=("a", "b")))
    assert parse("--config", str(path)).films == ("a", "b")


def test_to_plain_is_yaml_and_json_ready() -> None:
    plain = to_plain({1: Net(), "path": Path("a/b"), "t": (1, 2)})
    net = {"side": 320, "names": ["thorax"], "data": "here"}
    assert plain == {"1": net, "path": "a/b", "t": [1, 2]}
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_from_plain_is_the_way_back() -> None:
    assert from_plain(Net, to_plain(Net(64, ["x"]))) == Net(64, ["x"])


@pytest.mark.parametrize("data", [{"side": "wide"}, {"sight": 1}, {"side": None}])
def test_from_plain_refuses_what_does_not_fit(data: dict) -> None:
    with pytest.raises(ValueError, match="Net: "):
        from_plain(Net, data)


def test_from_plain_leaves_what_it_is_given_as_it_is() -> None:
    @dataclass(frozen=True)
    class Tiers:
        tiers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    given = {"tiers": {"urgent": ["nodule"]}}
    assert from_plain(Tiers, given) == Tiers({"urgent": ("nodule",)})
    assert given == {"tiers": {"urgent": ["nodule"]}}


def test_from_plain_gives_the_dataclass_own_error_as_value_error() -> None:
    with pytest.raises(ValueError, match="--margin must be 0 or more"):
        from_plain(Config, {"margin": -1})


@pytest.mark.parametrize(
    ("argv", "data"),
    [
        ([], "here"),
        (["--data", "a: 1"], "a: 1"),
        (["--data", "a", "--data=b"], ["a", "b"]),
        (["--config", "one.yaml", "--data", "a"], "a"),  # what comes later counts
        (["--data", "a", "--config", "one.yaml"], ["c", "d"]),
    ],
)
def test_a_flag_given_again_is_a_list(
    argv: list[str], data: list[str] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("data: [c, d]")
    assert parse_config(Net, argv, "prog").data == data
    Path("one.yaml").write_text("net: {data: [c, d]}")
    nested = [word.replace("--data", "--net.data") for word in argv]
    assert parse_config(Config, nested, "prog").net.data == data
    Path("one.yaml").write_text("data: null")
    for odd in (["--data", "--config"], ["--config", "one.yaml"]):
        with pytest.raises(SystemExit):
            parse_config(Net, odd, "prog")


COMMANDS = {
    "fit": Command(Config, "prog fit a", ("films",)),
    "measure": Command(Net, "prog measure"),
}


def test_first_word_picks_the_command() -> None:
    assert parse_command(COMMANDS, ["fit", "a"], "prog", "about").films == ("a",)
    assert parse_command(COMMANDS, ["measure", "--side", "9"], "prog", "about") == Net(9)


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["fly"], 2), (["--help"], 0)])
def test_missing_or_unknown_word_exits(
    argv: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse_command(COMMANDS, argv, "prog", "about")
    assert leaving.value.code == code
    shown = "".join(capsys.readouterr())
    assert "fit" in shown and "measure" in shown


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RefusedError("side must be even. Got 3."), 2, "side must be even"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), 2, "a.csv: No space left"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "give another --out"),
        (KeyboardInterrupt(), 130, "what is finished is kept"),
    ],
)
def test_command_ends_in_words(
    error: BaseException, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    set_up_logging()
    assert as_command(main)([]) == code
    assert says in " ".join(capsys.readouterr().err.split())


def test_fault_of_our_own_keeps_its_traceback() -> None:
    def main(argv: Sequence[str] | None) -> int:
        raise error

    for error in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "gone")):
        with pytest.raises(type(error)):
            as_command(main)([])


def test_what_a_command_was_given_is_refused_in_words() -> None:
    with pytest.raises(RefusedError, match="no such file"), refusing():
        raise FileNotFoundError("no such file")
