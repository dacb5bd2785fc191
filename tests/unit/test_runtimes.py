"""rootfs.runtimes, environ, handlers, provision: which runtimes there are, what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from rootfs import provision, provision_node
from rootfs.environ import RESERVED, Credentials, command, function_environment
from rootfs.handlers import NoProgram, detect
from rootfs.runtimes import Runtime, Runtimes, RuntimeUnavailable, discover, node_version

ELF = b"\x7fELF rest"
PYTHON = Runtime("python3.11", "python", "/p/bin/python3.11", "/p", "3.11.7", "/c")
NODE = Runtime("nodejs20.x", "nodejs", "/usr/bin/node", "/usr", "20.20.2")
PROVIDED = Runtime("provided.al2023", "provided")


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ELF)
    path.chmod(0o755)
    return path


def python(prefix: Path, minor: int) -> Path:
    (prefix / f"lib/python3.{minor}").mkdir(parents=True)
    (prefix / f"lib/python3.{minor}/os.py").touch()
    return program(prefix / f"bin/python3.{minor}")


def look(tmp_path: Path, **environ: str) -> Runtimes:
    return discover(
        support=tmp_path / "share",
        environ={"HOME": str(tmp_path), "PATH": "", **environ},
        own_prefix=str(tmp_path / "own"),
        own_minor=11,
        system=(),
    )


def provide(tmp_path: Path, *identifiers: str) -> None:
    for identifier in identifiers:
        (tmp_path / "share" / identifier / "awslambdaric").mkdir(parents=True)


def test_pythons_of_path_pyenv_and_uv_are_found(tmp_path: Path) -> None:
    provide(tmp_path, "python3.11", "python3.12", "python3.13", "python3.14")
    python(tmp_path / "own", 11)
    python(tmp_path / "on-path", 12)
    python(tmp_path / ".pyenv/versions/3.13.0", 13)
    python(tmp_path / ".local/share/uv/python/cpython-3.14.2-linux", 14)
    found = look(tmp_path, PATH=f"{tmp_path}/on-path/bin")
    versions = {r.identifier: r.version for r in found if r.family == "python"}
    assert versions == {
        "python3.11": "3.11",
        "python3.12": "3.12",
        "python3.13": "3.13.0",
        "python3.14": "3.14.2",
    }
    assert found.default == "python3.11"
    assert found.resolve("python3.13").prefix == str(tmp_path / ".pyenv/versions/3.13.0")


def test_the_newest_patch_wins_and_ten_is_more_than_nine(tmp_path: Path) -> None:
    provide(tmp_path, "python3.12")
    python(tmp_path / ".pyenv/versions/3.12.9", 12)
    python(tmp_path / ".pyenv/versions/3.12.10", 12)
    assert look(tmp_path).resolve("python3.12").version == "3.12.10"


def test_the_servers_own_python_wins_over_path(tmp_path: Path) -> None:
    provide(tmp_path, "python3.11")
    python(tmp_path / "own", 11)
    python(tmp_path / "other", 11)
    found = look(tmp_path, PATH=f"{tmp_path}/other/bin")
    assert found.resolve("python3.11").prefix == str(tmp_path / "own")


def test_a_virtual_environments_link_leads_to_its_installation(tmp_path: Path) -> None:
    provide(tmp_path, "python3.12")
    real = python(tmp_path / "real", 12)
    link = tmp_path / "venv/bin/python3.12"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    found = look(tmp_path, PATH=str(link.parent))
    assert found.resolve("python3.12").prefix == str(tmp_path / "real")


def test_pyenvs_shims_are_no_interpreters(tmp_path: Path) -> None:
    shim = program(tmp_path / "shims/python3.12")
    shim.write_text("#!/bin/sh\n")
    assert "python3.12" not in look(tmp_path, PATH=str(shim.parent)).found


def test_a_python_without_client_tells_why(tmp_path: Path) -> None:
    python(tmp_path / "own", 11)
    with pytest.raises(RuntimeUnavailable, match=r"awslambdaric.*not installed.*make setup"):
        look(tmp_path).resolve("python3.11")
    (tmp_path / "share").mkdir()
    (tmp_path / "share/python3.11.problem").write_text("PyPI has no wheel for it\n")
    with pytest.raises(RuntimeUnavailable, match="PyPI has no wheel for it"):
        look(tmp_path).resolve("python3.11")


def test_a_python_without_standard_library_tells_so(tmp_path: Path) -> None:
    provide(tmp_path, "python3.12")
    program(tmp_path / "bin/python3.12")
    with pytest.raises(RuntimeUnavailable, match="no standard library"):
        look(tmp_path, PATH=f"{tmp_path}/bin").resolve("python3.12")


def test_an_absent_runtime_names_what_is_found_and_how_to_mend(tmp_path: Path) -> None:
    provide(tmp_path, "python3.11")
    python(tmp_path / "own", 11)
    found = look(tmp_path)
    with pytest.raises(RuntimeUnavailable) as caught:
        found.resolve("python3.9")
    text = str(caught.value)
    assert "found: python3.11, provided.al2023, provided.al2" in text
    assert "uv python install 3.9" in text
    with pytest.raises(RuntimeUnavailable, match=r"Node\.js 18"):
        found.resolve("nodejs18.x")
    with pytest.raises(RuntimeUnavailable, match=r"provided\.al2023"):
        found.resolve("ruby3.4")


def test_any_provided_runtime_is_there(tmp_path: Path) -> None:
    assert look(tmp_path).resolve("provided.al2029").family == "provided"


def test_nodes_version_is_told_without_running_it(tmp_path: Path) -> None:
    nvm = program(tmp_path / ".nvm/versions/node/v22.3.1/bin/node")
    assert node_version(str(nvm)) == "22.3.1"
    node = program(tmp_path / "n/bin/node")
    header = tmp_path / "n/include/node/node_version.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        "#define NODE_MAJOR_VERSION 20\n#define NODE_MINOR_VERSION 9\n"
        "#define NODE_PATCH_VERSION 1\n"
    )
    found = look(tmp_path, PATH=str(node.parent))
    assert found.resolve("nodejs20.x").version == "20.9.1"
    assert found.resolve("nodejs22.x").version == "22.3.1"
    newest = found.newest("nodejs")
    assert newest is not None
    assert newest.identifier == "nodejs22.x"
    assert "own client" in newest.note


def test_an_unrunnable_node_without_signs_is_left_out(tmp_path: Path) -> None:
    node = program(tmp_path / "n/bin/node")
    assert node_version(str(node)) == ""


def test_a_python_environment_is_awss() -> None:
    env = function_environment(PYTHON, name="f", handler="handler.handler", memory_mb=128)
    assert env["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.11"
    assert env["PYTHONPATH"] == "/var/runtime"
    assert env["PATH"] == "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"
    assert env["LD_LIBRARY_PATH"].startswith("/var/lang/lib:/lib64:")
    assert env["AWS_LAMBDA_LOG_GROUP_NAME"] == "/aws/lambda/f"
    assert env["AWS_LAMBDA_LOG_STREAM_NAME"]
    assert env["_LAMBDA_TELEMETRY_LOG_FD"] == "62"
    assert env["_HANDLER"] == "handler.handler"
    assert "AWS_LAMBDA_RUNTIME_API" not in env


def test_a_json_log_is_told_to_the_function_and_a_text_log_is_not() -> None:
    user = {"AWS_LAMBDA_LOG_LEVEL": "FATAL"}
    told = function_environment(
        PYTHON, name="f", handler="h.h", memory_mb=128, log_level="DEBUG", log_group="/g", user=user
    )
    assert told["AWS_LAMBDA_LOG_FORMAT"] == "JSON"
    assert told["AWS_LAMBDA_LOG_LEVEL"] == "DEBUG"
    assert told["AWS_LAMBDA_LOG_GROUP_NAME"] == "/g"
    text = function_environment(PYTHON, name="f", handler="h.h", memory_mb=128)
    assert not {"AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL"} & text.keys()


def test_provided_has_no_lang_and_no_execution_env() -> None:
    env = function_environment(PROVIDED, name="f", handler="bootstrap", memory_mb=128)
    assert env["AWS_LAMBDA_INITIALIZATION_TYPE"] == "on-demand"
    assert env["PATH"] == "/usr/local/bin:/usr/bin/:/bin:/opt/bin"
    assert env["LD_LIBRARY_PATH"].startswith("/lib64:")
    assert not {"AWS_EXECUTION_ENV", "_LAMBDA_TELEMETRY_LOG_FD", "PYTHONPATH"} & env.keys()


def test_node_path_has_the_major_version() -> None:
    env = function_environment(NODE, name="f", handler="index.handler", memory_mb=128)
    assert env["NODE_PATH"].startswith("/opt/nodejs/node20/node_modules:/opt/nodejs/node_modules:")


def test_the_users_variables_are_under_the_reserved_ones() -> None:
    user = {"LANG": "C", "AWS_REGION": "mars-1", "COLOUR": "blue", "LD_LIBRARY_PATH": "/opt/x"}
    env = function_environment(
        PYTHON,
        name="f",
        handler="h.h",
        memory_mb=256,
        region="eu-west-1",
        credentials=Credentials("id", "secret", "token"),
        user=user,
    )
    assert (env["LANG"], env["COLOUR"], env["AWS_REGION"]) == ("C", "blue", "eu-west-1")
    assert env["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert env["LD_LIBRARY_PATH"] == "/opt/x:/var/lang/lib"
    assert "AWS_LAMBDA_RUNTIME_API" in RESERVED


def test_commands() -> None:
    assert command(PYTHON) == ("/var/lang/bin/python3.11", "-S", "/var/runtime/bootstrap.py")
    assert command(NODE) == ("/var/lang/bin/node", "/var/runtime/index.mjs")
    assert command(PROVIDED) == ("/var/task/bootstrap",)


def test_an_exec_wrapper_gets_the_interpreter_and_its_arguments() -> None:
    environment = {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/wrapper"}
    argv = command(PYTHON, environment=environment)
    assert argv[:3] == ("/bin/sh", "-c", 'exec "$0" "$@"')
    assert argv[3:] == ("/opt/wrapper", *command(PYTHON))
    assert command(PROVIDED, environment=environment) == ("/var/task/bootstrap",)


def test_a_bootstrap_in_a_layer_is_second_choice(tmp_path: Path) -> None:
    code, opt = tmp_path / "code", tmp_path / "opt"
    code.mkdir()
    opt.mkdir()
    assert command(PROVIDED, code=code, opt=opt) == ("/var/task/bootstrap",)
    (opt / "bootstrap").touch()
    assert command(PROVIDED, code=code, opt=opt) == ("/opt/bootstrap",)
    (code / "bootstrap").touch()
    assert command(PROVIDED, code=code, opt=opt) == ("/var/task/bootstrap",)


RUNTIMES = Runtimes({"nodejs20.x": NODE, "python3.11": PYTHON}, "python3.11")


@pytest.mark.parametrize(
    ("file", "runtime", "handler"),
    [
        ("handler.py", "python3.11", "handler.handler"),
        ("index.js", "nodejs20.x", "index.handler"),
        ("index.mjs", "nodejs20.x", "index.handler"),
        ("handler.cjs", "nodejs20.x", "handler.handler"),
    ],
)
def test_files_tell_runtime_and_handler(
    tmp_path: Path, file: str, runtime: str, handler: str
) -> None:
    (tmp_path / file).touch()
    assert detect(tmp_path, RUNTIMES) == (runtime, handler)


def test_a_bootstrap_must_be_executable(tmp_path: Path) -> None:
    bootstrap = tmp_path / "bootstrap"
    bootstrap.touch(0o644)
    with pytest.raises(NoProgram, match=r"chmod a\+x"):
        detect(tmp_path, RUNTIMES)
    bootstrap.chmod(0o755)
    assert detect(tmp_path, RUNTIMES) == ("provided.al2023", "bootstrap")


def test_an_empty_folder_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(NoProgram, match="Hint: add one"):
        detect(tmp_path, RUNTIMES)


def test_a_server_wide_runtime_decides_within_its_family_only(tmp_path: Path) -> None:
    (tmp_path / "index.js").touch()
    assert detect(tmp_path, RUNTIMES, preferred="python3.12")[0] == "nodejs20.x"
    (tmp_path / "handler.py").touch()
    assert detect(tmp_path, RUNTIMES, preferred="python3.12")[0] == "python3.12"
    assert detect(tmp_path, RUNTIMES, runtime="python3.10")[0] == "python3.10"


def test_pips_words_become_reasons() -> None:
    text = "ERROR: Could not find\nERROR: No matching distribution found for awslambdaric==4.2.2"
    assert "PyPI has no wheels of awslambdaric 4.2.2" in provision._reason(text, "3.9")
    text = "WARNING: Retrying (Connection refused)\nERROR: No matching distribution found"
    assert "cannot be reached" in provision._reason(text, "3.11")


def test_old_pythons_are_refused_with_the_reason(tmp_path: Path) -> None:
    old = Runtime("python3.8", "python", "/p/bin/python3.8", "/p", "3.8.18")
    with pytest.raises(provision.ProvisionFailed, match=r"needs Python 3\.10 or newer"):
        provision.provide_python(old, tmp_path, lambda line: None)


def test_why_awss_node_client_is_not_used() -> None:
    assert "requires Node.js >= 22 (here: 20.20.2)" in provision_node.obstacle(NODE)


def test_missing_build_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "cmake" else f"/bin/{tool}")
    node = Runtime("nodejs22.x", "nodejs", "/usr/bin/node", "/usr", "22.1.0")
    assert "cmake is missing" in provision_node.obstacle(node)
