"""lambox.config: three places in rising order, every mistake told with place, value and range."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from lambox import capacity, config
from lambox.awssettings import is_server
from lambox.config import SETTINGS, Config, ConfigError, load
from sandbox import functiontoml
from sandbox.confine import cgroup, privilege
from sandbox.functiontoml import KEYS, FunctionDefaults

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str, path: str = "lambox.toml") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def problems(
    flags: dict[str, str] | None = None,
    *,
    file: Path | None = None,
    environ: dict[str, str] | None = None,
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(flags, file=file, environ=environ or {})
    return caught.value.problems


def one(**environ: str) -> str:
    (problem,) = problems(environ=environ)
    return problem


def test_defaults() -> None:
    found = load(environ={})
    assert (found.functions, found.host, found.port) == (Path("functions"), "127.0.0.1", 9000)
    assert (found.region, found.account) == ("us-east-1", "123456789012")
    assert (found.grace_s, found.max_environment_age_s) == (10.0, 7200.0)
    assert (found.account_concurrency, found.freeze_delay_ms) == (1000, 100)
    assert (found.init_timeout_s, found.max_starts) == (10.0, 2 * capacity.cores())
    assert (found.uid_base, found.uid_count, found.allow_weaker) == (None, None, ())
    assert found.memory_budget_mb == max(128, 2 * capacity.memory_mb())
    assert found.defaults == FunctionDefaults()


@pytest.mark.parametrize(
    ("uid", "environ", "expected"),
    [
        (0, {"HOME": "/root"}, "/var/lib/lambox"),
        (1000, {"HOME": "/home/a"}, "/home/a/.local/state/lambox"),
        (1000, {"HOME": "/home/a", "XDG_STATE_HOME": "/state"}, "/state/lambox"),
        (1000, {"HOME": "/home/a", "XDG_STATE_HOME": "no"}, "/home/a/.local/state/lambox"),
    ],
)
def test_state_is_where_the_user_may_write(
    monkeypatch: pytest.MonkeyPatch, uid: int, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(privilege, "owns_files", lambda: uid == 0)
    assert load(environ=environ).state == Path(expected)


def test_no_stranger_is_let_in_by_oversight() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "fe80::1"):
        (problem,) = problems({"host": host})
        assert problem.startswith(f"host = {host}: others can reach this address, and without auth")
        assert 'Hint: auth = "sigv4" or "token"' in problem
        assert load({"host": host, "auth": "none"}, environ={}).auth == "none"
    for host in ("127.0.0.1", "localhost", "127.3.2.1", "::1"):
        assert load({"host": host}, environ={}).auth == "none"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"auth": "sigv4"}, 'auth = "sigv4" is set without auth_keys_file. Hint: set it'),
        ({"auth": "token"}, 'auth = "token" is set without auth_token_file. Hint: set it'),
        ({"auth_keys_file": "k"}, 'auth_keys_file is set without auth. Hint: auth = "sigv4"'),
        ({"auth_token_file": "t"}, 'auth_token_file is set without auth. Hint: auth = "token"'),
        ({"tls_cert": "c"}, "tls_cert is set without tls_key. Hint: set both"),
        ({"tls_key": "k"}, "tls_key is set without tls_cert. Hint: set both"),
        ({"auth": "basic"}, '--auth = "basic": must be "none", "sigv4" or "token"'),
        ({"allowed_hosts": "a b/c"}, "must be a list of host names without port"),
        ({"allowed_hosts": "a:9000"}, "must be a list of host names without port"),
        ({"max_connections": "0"}, "must be a whole number from 1 to 100000"),
    ],
)
def test_what_makes_no_sense_about_callers_is_told(flags: dict[str, str], message: str) -> None:
    (problem,) = problems(flags)
    assert message in problem


def test_flags_win_over_variables_over_the_file() -> None:
    write("port = 1\ngrace_s = 1\ninit_timeout_s = 1\n")
    environ = {"LAMBOX_PORT": "2", "LAMBOX_GRACE_S": "2"}
    found = load({"port": "3"}, environ=environ)
    assert (found.port, found.grace_s, found.init_timeout_s) == (3, 2.0, 1.0)


def test_the_file_is_named_by_flag_or_variable() -> None:
    write("port = 1")
    there = write("port = 2", "etc/mine.toml")
    assert load(environ={"LAMBOX_CONFIG": "etc/mine.toml"}).port == 2
    assert load(file=there, environ={"LAMBOX_CONFIG": "missing.toml"}).port == 2
    assert "there is no such file" in problems(file=Path("missing.toml"))[0]


def test_paths_in_the_file_are_relative_to_it() -> None:
    there = write('functions = "code"\nstate = "/var/state"\n', "etc/mine.toml")
    found = load(file=there, environ={})
    assert (found.functions, found.state) == (Path("etc/code"), Path("/var/state"))
    assert load({"functions": "code"}, file=there, environ={}).functions == Path("code")


def test_where_awss_services_are_is_told_in_botocores_variables_too() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_SQS": "http://q"}
    found = load({"aws_endpoint": "http://mine"}, environ=environ)
    assert (found.aws_endpoint, found.endpoint_sqs, found.endpoint_s3) == (
        "http://mine",
        "http://q",
        None,
    )
    assert load(environ={}).aws_endpoint is None
    ignored = {**environ, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
    assert load(environ=ignored).endpoint_sqs is None


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "ours"),
    [
        ("http://127.0.0.1:9000", "127.0.0.1", 9000, True),
        ("http://localhost:9000/", "127.0.0.1", 9000, True),
        ("http://localhost:9000", "0.0.0.0", 9000, True),
        ("https://[::1]", "::1", 443, True),
        ("http://localhost:4566", "127.0.0.1", 9000, False),
        ("http://10.0.0.1:9000", "127.0.0.1", 9000, False),
        ("http://lambox.example.com:9000", "127.0.0.1", 9000, False),
        ("http://localhost:port", "127.0.0.1", 9000, False),
    ],
)
def test_a_server_knows_its_own_address_where_callers_have_it(
    endpoint: str, host: str, port: int, ours: bool
) -> None:
    assert is_server(endpoint, host, port) is ours


def test_every_setting_has_a_variable_and_a_flag() -> None:
    texts = {
        "functions": "f", "host": "::1", "port": "0", "region": "eu-central-1",
        "account": "000000000001", "state": "s", "grace_s": "0.5", "max_environment_age_s": "60",
        "account_concurrency": "5", "memory_budget_mb": "512", "freeze_delay_ms": "0",
        "init_timeout_s": "2.5", "event_retry_s": "0.5", "uid_base": "200000", "uid_count": "10", "max_starts": "3",
        "nat_range": "10.77.0.0/16",
        "zygote": "false", "pool_min": "1", "pool_max": "2", "preload": "boto3 a.b",
        "tmp": "memory",
        "allow_weaker": "seccomp, cgroups", "seccomp": "log", "fast_lane": "false",
        "auth": "sigv4", "auth_keys_file": "keys", "auth_token_file": "token",
        "allowed_hosts": "Lambox, *.example.com",
        "tls_cert": "cert.pem", "tls_key": "key.pem", "max_connections": "7",
        "max_header_bytes": "8192", "header_timeout_s": "1", "body_timeout_s": "2.5",
        "keep_alive_s": "3",
        "aws_endpoint": "http://127.0.0.1:4566", "endpoint_sqs": "http://q:9324", "endpoint_sns": "http://n",
        "endpoint_eventbridge": "http://e", "endpoint_s3": "https://s3.example.com",
    }  # fmt: skip
    environ = {f"LAMBOX_{name.upper()}": text for name, text in texts.items()}
    assert load(texts, environ={}) == load(environ=environ)
    found = load(environ=environ)
    expected = Config(
        functions=Path("f"), host="::1", port=0, region="eu-central-1", account="000000000001",
        state=Path("s"), grace_s=0.5, max_environment_age_s=60.0, account_concurrency=5,
        memory_budget_mb=512, freeze_delay_ms=0, init_timeout_s=2.5, event_retry_s=0.5, uid_base=200000, uid_count=10,
        nat_range=IPv4Network("10.77.0.0/16"), max_starts=3, zygote=False, pool_min=1, pool_max=2,
        preload=("boto3", "a.b"), tmp="memory", allow_weaker=("seccomp", "cgroups"),
        seccomp="log", fast_lane=False, defaults=FunctionDefaults(),
        auth="sigv4", auth_keys_file=Path("keys"), auth_token_file=Path("token"),
        allowed_hosts=("lambox", ".example.com"), tls_cert=Path("cert.pem"), tls_key=Path("key.pem"),
        max_connections=7, max_header_bytes=8192, header_timeout_s=1.0, body_timeout_s=2.5,
        keep_alive_s=3.0,
        aws_endpoint="http://127.0.0.1:4566", endpoint_sqs="http://q:9324", endpoint_sns="http://n",
        endpoint_eventbridge="http://e", endpoint_s3="https://s3.example.com",
    )  # fmt: skip
    assert found == expected
    assert texts.keys() == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("PORT", "70000", "LAMBOX_PORT = 70000: must be a whole number from 0 to 65535"),
        ("NAT_RANGE", "10.0.0.1/8", 'must be an IPv4 network, such as "10.77.0.0/16"'),
        ("NAT_RANGE", "10.0.0.0/27", "must be a network of /8 to /26"),
        ("PORT", "http", 'LAMBOX_PORT = "http": must be a whole number from 0 to 65535'),
        ("PORT", "true", "LAMBOX_PORT = true: must be a whole number"),
        ("PORT", "", 'LAMBOX_PORT = "": must be a whole number'),
        ("HOST", "example.com", "must be an IP address"),
        ("REGION", "here", "must be a region of AWS"),
        ("ACCOUNT", "42", "must be text of 12 digits"),
        ("STATE", "", "must be the path of a folder"),
        ("GRACE_S", "901", "must be a number of seconds from 0 to 900"),
        ("GRACE_S", "NaN", "must be a number of seconds from 0 to 900"),
        ("INIT_TIMEOUT_S", "0", "must be a number of seconds from 0.1 to 900"),
        ("MEMORY_BUDGET_MB", "64", "must be a whole number of MB from 128"),
        ("ZYGOTE", "maybe", "must be true or false"),
        ("AWS_ENDPOINT", "localhost:4566", "must be an address, such as"),
        ("ENDPOINT_SQS", "http://q:port", "must be an address, such as"),
        ("POOL_MIN", "-1", "must be a whole number from 0"),
        ("PRELOAD", "os; print()", "must be a list of Python modules"),
        ("SECCOMP", "off", 'must be "enforce" or "log"'),
        ("SECCOMP", "LOG", 'must be "enforce" or "log"'),
        ("SECCOMP", "true", 'must be "enforce" or "log"'),
        ("ALLOW_WEAKER", "network", 'must be a list out of "cgroups", "seccomp"'),
    ],
)
def test_wrong_values_are_told_with_the_range(variable: str, text: str, message: str) -> None:
    problem = one(**{f"LAMBOX_{variable}": text})
    assert problem.startswith(f"LAMBOX_{variable}")
    assert message in problem


def test_the_file_is_told_with_its_line() -> None:
    write('# mine\nhost = "127.0.0.1"\nport = "x"\nprot = 9\n\n[defaults]\ntimeout = 901\n')
    assert problems() == (
        'lambox.toml:3: port = "x": must be a whole number from 0 to 65535',
        "lambox.toml:4: prot = 9: unknown setting; did you mean port?",
        "lambox.toml:7: [defaults] timeout = 901: must be a whole number of seconds from 1 to 900",
    )


def test_a_flag_is_told_by_its_name() -> None:
    assert problems({"grace_s": "x"}) == (
        '--grace-s = "x": must be a number of seconds from 0 to 900',
    )


@pytest.mark.parametrize("text", ["port 9000", "port = 1\nport = 2", 'host = "'])
def test_broken_toml_is_told(text: str) -> None:
    write(text)
    assert problems()[0].startswith("lambox.toml: not valid TOML: ")


def test_unknown_variables_are_told_with_the_nearest_known() -> None:
    assert one(LAMBOX_PROT="1") == "LAMBOX_PROT=1: unknown setting; did you mean LAMBOX_PORT?"
    assert "did you mean LAMBOX_DEFAULT_TIMEOUT?" in one(LAMBOX_DEFAULTS_TIMEOUT="1")
    assert "LAMBOX_DEFAULT_TIMEOUT" in one(LAMBOX_123456789="1")


def test_variables_of_others_are_left_alone() -> None:
    environ = {"LAMBOX_CI": "1", "LAMBOX_ENDPOINT": "http://x", "MY_LAMBOX_PORT": "x", "PORT": "x"}
    assert load(environ=environ).port == 9000


def test_uid_count_needs_uid_base() -> None:
    assert "set uid_base too" in one(LAMBOX_UID_COUNT="5")


def test_defaults_of_functions_from_both_places() -> None:
    write(
        "[defaults]\ntimeout = 30\nmemory_size = 256\nfreeze = false\n"
        '[defaults.environment]\nSTAGE = "é\\"\\u007f"\n'
    )
    environ = {
        "LAMBOX_DEFAULT_TIMEOUT": "60",
        "LAMBOX_DEFAULT_IDLE_TIMEOUT": "0.5",
        "LAMBOX_DEFAULT_NETWORK": "host",
        "LAMBOX_DEFAULT_RUNTIME": "python3.12",
    }
    found = load(environ=environ).defaults
    assert (found.timeout, found.memory_size, found.freeze) == (60, 256, False)
    assert (found.idle_timeout, found.network, found.runtime) == (0.5, "host", "python3.12")
    assert dict(found.environment) == {"STAGE": 'é"\x7f'}


def test_defaults_reach_a_function() -> None:
    defaults = load(environ={"LAMBOX_DEFAULT_ENVIRONMENT": '{"STAGE": "dev"}'}).defaults
    assert dict(functiontoml.parse("", defaults=defaults).environment) == {"STAGE": "dev"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]\nhandler = 'a.b'", "unknown setting; known are runtime"),
        ("[defaults]\ntimout = 1", "unknown setting; did you mean timeout?"),
        ("defaults = 1", "must be a table. Hint: write [defaults]"),
        ("[defaults]\ntimeout = [1]", "must be a whole number of seconds"),
        ("[defaults]\ntimeout = 1979-05-27", "must be a whole number of seconds"),
        ("[defaults]\nidle_timeout = inf", "must be a number of seconds from 0 to 86400"),
        ("[defaults]\nenvironment = 1", "must be a table"),
        ("[defaults.environment]\nAB = 1", "[environment] AB = 1: must be text. Hint: write AB"),
        ("[defaults.environment]\nAB = {x = 1}", "must be text"),
    ],
)
def test_wrong_defaults(text: str, message: str) -> None:
    write(text)
    (problem,) = problems()
    assert problem.startswith("lambox.toml:")
    assert message in problem


def test_a_default_by_variable_is_told_by_its_name() -> None:
    assert one(LAMBOX_DEFAULT_TIMEOUT="0") == (
        "LAMBOX_DEFAULT_TIMEOUT: timeout = 0: must be a whole number of seconds from 1 to 900"
    )


def test_all_mistakes_are_told_at_once() -> None:
    write("port = 'x'")
    environ = {"LAMBOX_HOST": "x", "LAMBOX_PROT": "1"}
    assert len(problems({"region": "x"}, environ=environ)) == 4


def test_memory_is_what_the_container_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("max\n")
    (tmp_path / "memory.max").write_text(f"{256 << 20}\n")
    monkeypatch.setattr("sandbox.confine.cgroup_v1.mounted", lambda *_: {"": tmp_path / "a"})
    assert capacity.memory_mb() == 256
    v1 = tmp_path / "memory.stat"
    v1.write_text(f"cache 1\nhierarchical_memory_limit {128 << 20}\n")
    monkeypatch.setattr("sandbox.confine.cgroup_v1.mounted", lambda *_: {"memory": tmp_path})
    assert capacity.memory_mb() == 128
    v1.write_text("hierarchical_memory_limit 9223372036854771712\n")  # none
    monkeypatch.setattr(cgroup, "read_int", lambda _: None)
    assert capacity.memory_mb() > 128


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("configuration.md", [setting.name for setting in SETTINGS]),
        ("configuration.md", [setting.variable for setting in SETTINGS]),
        ("configuration.md", list(config.DEFAULTS)),
        ("function-toml.md", [key.name for key in KEYS]),
    ],
)
def test_the_docs_have_every_row(file: str, names: list[str]) -> None:
    text = (DOCS / file).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_docs_have_what_the_tables_have() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert [one.name for one in SETTINGS if f"| {one.allowed} |" not in text] == []
    assert [one.name for one in SETTINGS if one.doc not in text] == []
