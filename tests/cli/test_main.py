"""The command as a whole: help that teaches, the version, exit codes, errors without and with traceback."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from unittest.mock import Mock

import pytest

import prefrec as package
from command import prefrec, refused, succeed
from prefrec import cli
from prefrec.cli import ELSEWHERE
from prefrec.cli._options import print_json
from prefrec.pipeline import prepare as prepare_module
from tiny_run import write_recipe

VERBS = (
    "init", "plan", "run", "update", "switch", "prune", "prepare", "audit", "evaluate", "evaluate-adapters",
    "recommend", "rank", "also-bought", "similar", "explain", "report", "export", "chat", "lab", "serve",
)  # fmt: skip
LAB = ("bench", "doctor", "published-json", "study", "tune")


def test_help_names_every_verb():
    out = succeed("--help")
    assert re.findall(r"^│ (\w[\w-]*) {2,}\S", out.partition("Commands")[2], re.MULTILINE) == [*VERBS]
    assert "prefrec run recipes/demo.yaml" in out


@pytest.mark.parametrize("verb", [*(verb for verb in VERBS if verb != "lab"), *(f"lab {verb}" for verb in LAB)])
def test_help_of_a_verb_teaches(verb):
    out = succeed(*verb.split(), "-h")
    assert f"Usage: prefrec {verb}" in out
    assert len(out.split()) > 30
    assert f"prefrec {verb} " in out.partition("Example")[2]


@pytest.mark.parametrize("verb", [*ELSEWHERE])
def test_a_verb_of_a_package_that_is_not_installed_says_what_to_install(verb, monkeypatch):
    homes = {name: home for name, home in cli.homes().items() if name.partition(".")[0] not in ELSEWHERE}
    monkeypatch.setattr(cli, "homes", lambda: homes)
    told = f"error: `prefrec {verb}` is not installed: pip install {ELSEWHERE[verb]} in a clone\n"
    assert refused(verb, "x") == told


def test_help_and_version_import_no_heavy_library():
    """So that they answer in well under a second."""
    code = """
        import sys
        from prefrec.cli import main
        for option in ("--help", "--version"):
            sys.argv = ["prefrec", option]
            main()
            heavy = {"torch", "transformers", "polars", "pydantic", "numpy"}
            print(*(heavy & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert done.stderr == "\n\n"


def test_an_unknown_verb_imports_no_heavy_library():
    code = """
        import contextlib, sys
        from prefrec.cli import main
        sys.argv = ["prefrec", "recomend"]
        with contextlib.suppress(SystemExit):
            main()
        print(*{"torch", "transformers", "polars", "pydantic", "numpy"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, check=True)
    assert (done.stdout, "did you mean recommend?" in done.stderr) == ("\n", True)


@pytest.mark.parametrize("group", [(), ("lab",)])
def test_without_a_verb_the_help_is_shown_with_the_exit_code_of_wrong_usage(group):
    outcome = prefrec(*group)
    assert (outcome.code, outcome.err) == (2, "")
    assert f"Usage: {' '.join(['prefrec', *group])} COMMAND" in outcome.out


def test_the_last_of_a_repeated_option_holds(tmp_path):
    told = refused("evaluate-adapters", tmp_path, "--rows", 0, "--rows", -1)
    assert told == "error: --rows: Input should be greater than or equal to 1 (given: -1)\n"


def test_a_closed_pipe_ends_the_command_without_a_message():
    """As `prefrec --help | head -1` closes it."""
    command = [sys.executable, "-m", "prefrec", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 1)


def test_completion_of_a_shell_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    succeed("--install-completion", "--shell", "bash", "--output", str(tmp_path / "prefrec.bash"))
    script = (tmp_path / "prefrec.bash").read_text()
    assert "recommend" in script
    assert "--history" in script
    assert str(tmp_path / "prefrec.bash") in (tmp_path / ".bashrc").read_text()


def test_version():
    assert succeed("--version") == f"prefrec {package.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run",), "RECIPE requires an argument"),
        (("evaluate-adapters", "data", "--rwos", "3"), "Unknown option: --rwos. Did you mean --rows?"),
    ],
)
def test_wrong_usage_exits_with_2(arguments, message):
    told = refused(*arguments, code=2)
    assert message in " ".join(told.split())
    assert "Traceback" not in told


def test_an_error_is_one_message_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "prefrec", "run", f"{tmp_path}/none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = f"error: recipe {tmp_path}/none.yaml: No such file or directory; a clone has examples in `recipes/`\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


def test_standard_output_may_lack_the_lines_of_tables_and_accents(adapted_run, monkeypatch):
    """As with PYTHONIOENCODING=ascii, or in a shell without a locale."""
    asked = ["prefrec", "recommend", str(adapted_run), "--history", "i7", "--ranker", "popularity"]
    monkeypatch.setattr(sys, "argv", asked)
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(written):
        cli.main()
    assert b"\\u2502 rank" in written.buffer.getvalue()
    strict = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(strict):
        print_json({"title": "Café"})
    strict.flush()
    assert json.loads(strict.buffer.getvalue()) == {"title": "Café"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this needs /dev/full")
def test_a_full_standard_output_is_told():
    command = [sys.executable, "-m", "prefrec", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    said = "error: standard output cannot be written: No space left on device; free some space"
    assert (done.returncode, done.stderr.startswith(said)) == (1, True), done.stderr


@pytest.mark.parametrize("place_of_debug", [0, 2])
def test_debug_shows_the_traceback_wherever_it_stands(tmp_path, place_of_debug):
    arguments = ["run", tmp_path / "none.yaml"]
    arguments.insert(place_of_debug, "--debug")
    told = refused(*arguments)
    assert "Traceback (most recent call last)" in told
    assert "error: recipe" in told


def test_what_we_did_not_foresee_is_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr("prefrec.recipe.load_recipe", Mock(side_effect=ZeroDivisionError("a bug of ours")))
    with pytest.raises(ZeroDivisionError):
        prefrec("run", tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "libtorch_cpu.so: failed"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "9 b",
        ),
    ],
)
def test_too_little_memory_is_one_message(monkeypatch, tmp_path, error, reason):
    monkeypatch.setattr("prefrec.recipe.load_recipe", Mock(side_effect=error))
    said = refused("run", tmp_path / "r.yaml")
    assert said.startswith(f"error: not enough memory ({str(error) or reason}); free some, raise the limit")
    assert reason in said
    with pytest.raises(type(error)):
        prefrec("--debug", "run", tmp_path / "r.yaml")


def test_other_errors_of_their_kinds_are_not_hidden(monkeypatch, tmp_path):
    for error in (ImportError("no module"), RuntimeError("shapes differ")):
        monkeypatch.setattr("prefrec.recipe.load_recipe", Mock(side_effect=error))
        with pytest.raises(type(error)):
            prefrec("run", tmp_path / "r.yaml")


def test_stopped_by_hand(place, tmp_path, monkeypatch):
    # What Python makes of Ctrl-C; a background shell ignores the signal itself.
    monkeypatch.setattr(prepare_module, "prepare", Mock(side_effect=KeyboardInterrupt))
    done = prefrec("run", write_recipe(tmp_path, place.recipe), "--out", tmp_path / "run")
    assert done.code == 130
    assert "stopped; run the same command again to resume" in done.err
    assert "Traceback" not in done.err


def test_bitsandbytes_is_quiet():
    """PEFT imports it where it is installed; on some CPUs it then complains, whatever the command is."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    assert "gemm_4bit" not in prefrec("recommend", "--help").err
