"""Bundles: reproducible, discovered apart from this process, and refused with one clear message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import port_webhook_handlers
from port_webhook_handlers.bundle import Bundle, BundleError, archive, build
from port_webhook_handlers.runtime import manifest

PACKAGE = Path(port_webhook_handlers.__file__).parent
GREET = """\
from port_webhook_handlers.sdk import Inputs, Run, Success, action

class Greet(Inputs):
    name: str

@action("greet", title="Greet", permissions={"execute": {"roles": ["Member"]}})
def greet(inputs: Greet, run: Run) -> Success:
    return Success(f"Hello {inputs.name}")
"""


def write(path: Path, text: str = GREET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_bundle_of_a_file_and_a_bundled_handler(tmp_path: Path, out: Path) -> None:
    bundle = build([write(tmp_path / "hello.py"), "port_webhook_handlers.bundled.deploy"], out)
    assert set(bundle.routes) == set(bundle.definitions) == {"greet", "deploy_microservice"}
    assert bundle.routes["greet"]["handler"] == "hello:greet"
    assert bundle.routes["greet"]["source"] == "hello.py:6"
    deploy = bundle.routes["deploy_microservice"]
    assert deploy["handler"] == "port_webhook_handlers.bundled.deploy:deploy_microservice"
    assert deploy["source"].startswith("port_webhook_handlers/bundled/deploy/__init__.py:")
    assert bundle.definitions["greet"]["invocationMethod"]["url"] == "route:greet"
    assert bundle.permissions == {"greet": {"execute": {"roles": ["Member"]}}}

    found, digest = manifest.load(bundle.path)
    assert digest == bundle.digest
    assert bundle.path == out / digest.removeprefix("sha256:")[:16]
    manifest.verify_files(bundle.path, found)
    assert {name: route.to_json() for name, route in found.routes.items()} == bundle.routes
    assert {"hello.py", "port_webhook_handlers/sdk/invoke.py", "port_webhook_handlers/py.typed"} <= set(
        found.files
    )
    assert not [name for name in found.files if "__pycache__" in name or "/tests/" in name]
    assert [path.name for path in out.iterdir()] == [bundle.path.name]


def test_the_bundle_runs_by_itself(tmp_path: Path, out: Path) -> None:
    bundle = build([write(tmp_path / "hello.py")], out)
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "from port_webhook_handlers.sdk import invoke\n"
        "assert invoke.__file__.startswith(sys.argv[1]), invoke.__file__\n"
        "invoke.run_request(json.loads(sys.argv[2]), lambda message: print(json.dumps(message)))\n"
    )
    request = {"run": {"id": "r", "action": "greet"}, "inputs": {"name": "you"}, "handler": "hello:greet"}
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", program, str(bundle.path), json.dumps(request)],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["result"]["summary"] == "Hello you"


def test_the_same_files_give_the_same_bundle_anywhere(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from port_webhook_handlers.bundle import archive, build\n"
        "bundle = build([Path(sys.argv[2]), sys.argv[3]], Path(sys.argv[1], 'out'))\n"
        "print(bundle.digest); archive(bundle, Path(sys.argv[1], 'bundle.zip'))\n"
    )
    first, second = tmp_path / "first", tmp_path / "somewhere" / "else"
    shutil.copytree(PACKAGE, first / "port_webhook_handlers", ignore=shutil.ignore_patterns("__pycache__"))
    write(first / "team" / "hello.py")
    write(first / "team" / "data.json", "{}")
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
    write(second / "team" / "__pycache__" / "hello.pyc", "x")
    write(second / "team" / ".hidden", "x")
    write(second / "team" / "tests" / "test_hello.py", "x")
    digests = [
        subprocess.run(
            [
                sys.executable,
                "-I",
                "-c",
                program,
                str(root),
                str(root / "team"),
                "port_webhook_handlers.bundled.deploy",
            ],
            capture_output=True,
            check=True,
            cwd=root,
            env={"PYTHONHASHSEED": "random"},
            umask=umask,
        ).stdout
        for root, umask in ((first, 0o022), (second, 0o077))
    ]
    assert digests[0] == digests[1] != b""
    assert (first / "bundle.zip").read_bytes() == (second / "bundle.zip").read_bytes()
    write(second / "team" / "hello.py", GREET.replace("Hello", "Hi"))
    changed = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            program,
            str(second),
            str(second / "team"),
            "port_webhook_handlers.bundled.deploy",
        ],
        capture_output=True,
        check=True,
    ).stdout
    assert changed != digests[0]


def test_definitions_are_not_part_of_the_manifest(tmp_path: Path, out: Path) -> None:
    bundle = build([write(tmp_path / "hello.py")], out)
    assert bundle.definitions["greet"]["title"] == "Greet"
    assert "Greet" not in (bundle.path / "manifest.json").read_text()


def test_archive_holds_what_the_manifest_names(tmp_path: Path, out: Path) -> None:
    bundle = build([write(tmp_path / "hello.py")], out)
    target = archive(bundle, tmp_path / "made" / "bundle.zip")
    with zipfile.ZipFile(target) as package:
        names = package.namelist()
        assert names == sorted(names)
        assert set(names) == {"manifest.json", *manifest.load(bundle.path)[0].files}
        assert {info.date_time[0] for info in package.infolist()} == {1980}
        package.extractall(tmp_path / "unpacked")
    manifest.verify_files(tmp_path / "unpacked", manifest.load(tmp_path / "unpacked")[0])


def test_building_again_keeps_an_intact_bundle_and_mends_a_broken_one(tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "hello.py")
    bundle = build([source], out)
    inode = bundle.path.stat().st_ino
    assert build([source], out) == bundle
    assert bundle.path.stat().st_ino == inode
    (bundle.path / "hello.py").write_text("changed")
    assert build([source], out) == bundle
    assert (bundle.path / "hello.py").read_text() == GREET


def test_packages_bring_their_modules_and_data(tmp_path: Path, out: Path) -> None:
    package = tmp_path / "team_handlers"
    write(package / "__init__.py", "")
    write(
        package / "hello.py",
        GREET.replace("class Greet", "from team_handlers.words import WORD\nclass Greet"),
    )
    write(package / "words.py", "WORD = 'x'\n")
    write(package / "deep" / "__init__.py", "")
    write(package / "deep" / "bye.py", GREET.replace('"greet"', '"bye"'))
    write(package / "text.json", "{}")
    write(package / "conftest.py", "raise SystemExit")
    bundle = build([package], out)
    assert {route["handler"] for route in bundle.routes.values()} == {
        "team_handlers.hello:greet",
        "team_handlers.deep.bye:greet",
    }
    assert (bundle.path / "team_handlers" / "text.json").exists()
    assert not (bundle.path / "team_handlers" / "conftest.py").exists()


def test_modules_are_found_by_name_without_being_imported(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "named_package" / "__init__.py", "import os; os.environ['IMPORTED_HERE'] = '1'\n")
    write(tmp_path / "named_package" / "hello.py")
    write(tmp_path / "named_package" / "other.py", GREET.replace('"greet"', '"other"'))
    monkeypatch.chdir(tmp_path)
    bundle = build(["named_package.hello"], out)
    assert set(bundle.routes) == {"greet"}
    assert "IMPORTED_HERE" not in os.environ
    assert "named_package" not in sys.modules


def test_discovery_sees_neither_secrets_nor_the_path_of_this_process(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "beside.py", "")
    source = write(
        tmp_path / "hello.py",
        GREET
        + "import os, sys\n"
        + "print('noise on standard output')\n"
        + "assert not {'PORT_CLIENT_SECRET', 'PYTHONPATH', 'HOME'} & set(os.environ), sorted(os.environ)\n"
        + "assert os.path.dirname(__file__) == sys.path[0] == os.getcwd()\n"
        + "try:\n    import beside\nexcept ModuleNotFoundError:\n    pass\nelse:\n    raise AssertionError('beside')\n",
    )
    monkeypatch.setenv("PORT_CLIENT_SECRET", "s3cret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert set(build([source], out).routes) == {"greet"}


def test_imported_handlers_belong_to_their_own_module(tmp_path: Path, out: Path) -> None:
    source = write(
        tmp_path / "hello.py",
        GREET + "from port_webhook_handlers.bundled.deploy import deploy_microservice\nalias = greet\n",
    )
    assert set(build([source], out).routes) == {"greet"}


ERRORS = [
    (
        "import nothing_here\n",
        r"^hello\.py:1: ModuleNotFoundError: No module named 'nothing_here'; modules of your own",
    ),
    ("\nx = 1 / 0\n", r"^hello\.py:2: ZeroDivisionError: division by zero$"),
    ("def x(:\n", r"^hello\.py:1: SyntaxError: invalid syntax$"),
    ("raise SystemExit(2)\n", r"^hello\.py:1: SystemExit: 2$"),
    ("x = 1\n", r"^hello declares no handler; decorate a function"),
    (
        GREET.replace("title", "tile"),
        r"^hello\.py:6: @action 'greet': unknown option tile; did you mean title\?$",
    ),
    (GREET.replace("name: str", "name: set"), r"^hello\.py:3: inputs Greet: name: set is not supported"),
    ("import os\nos._exit(7)\n", r"^importing hello ended the interpreter \(exit 7\)$"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_modules_that_cannot_be_used(text: str, message: str, tmp_path: Path, out: Path) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        build([write(tmp_path / "hello.py", text)], out)
    assert str(tmp_path) not in str(caught.value)
    assert list(out.iterdir()) == []


def test_names_that_do_not_exist(tmp_path: Path, out: Path) -> None:
    for handler, message in [
        ("port_webhook_handlers.bundled.nothing", "bundled are port_webhook_handlers.bundled.deploy"),
        ("no_such_module", "module no_such_module is not found; install"),
        ("port_webhook_localport.nothing", "is not found in port_webhook_localport"),
        ("json", "belongs to Python itself"),
        ("not a module", "neither a module's name nor a path"),
        ("./no/such.py", "does not exist"),
    ]:
        with pytest.raises(BundleError, match=message):
            build([handler], out)
    with pytest.raises(BundleError, match="no handlers are named"):
        build([], out)


@pytest.mark.parametrize("name", ["json.py", "requests.py", "port_webhook_handlers.py"])
def test_files_that_would_hide_a_module(name: str, tmp_path: Path, out: Path) -> None:
    with pytest.raises(BundleError, match="exists already and would be hidden; rename"):
        build([write(tmp_path / name)], out)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-handlers.py", "cannot be imported; rename"),
        ("a.txt", "no Python file"),
        ("p/__init__.py", "give the folder"),
    ],
)
def test_files_that_cannot_be_modules(name: str, message: str, tmp_path: Path, out: Path) -> None:
    with pytest.raises(BundleError, match=message):
        build([write(tmp_path / name)], out)


def test_links_are_followed_to_files_only(tmp_path: Path, out: Path) -> None:
    package = tmp_path / "linked"
    package.mkdir()
    (package / "hello.py").symlink_to(write(tmp_path / "hello.py"))
    bundle = build([package], out)
    assert not (bundle.path / "linked" / "hello.py").is_symlink()
    (package / "again").symlink_to(package)
    with pytest.raises(BundleError, match="could lead in circles"):
        build([package], out)


def test_handlers_and_modules_that_clash(tmp_path: Path, out: Path) -> None:
    one, two = write(tmp_path / "one.py"), write(tmp_path / "two.py")
    with pytest.raises(
        BundleError, match=r"^two\.py:6 and one\.py:6 both declare 'greet'; rename one of them$"
    ):
        build([one, two], out)
    with pytest.raises(BundleError, match="are both imported as one; rename"):
        build([one, write(tmp_path / "other" / "one.py")], out)


def test_bundles_are_comparable(tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "hello.py")
    assert build([source, source], out) == build([str(source)], out)
    assert isinstance(build([source], out), Bundle)


def test_permissions_follow_the_settings_and_the_digest_does_not(tmp_path: Path) -> None:
    def of(**settings: object) -> Bundle:
        return build(["port_webhook_handlers.bundled.deploy"], tmp_path, {"*": settings})

    service = {"namespace": "shop", "image": "cart:{version}"}
    local = of()
    cluster = of(target="kubernetes", services={"cart": service})
    assert (local.kubernetes_permissions, local.aws_permissions) == ({}, {})
    (rule,) = cluster.kubernetes_permissions["deploy_microservice"]
    assert (rule["namespace"], rule["names"]) == ("shop", ["cart"])
    assert local.digest == cluster.digest
    with pytest.raises(BundleError, match=r"handlerSettings of deploy_microservice: services.cart.image"):
        of(target="kubernetes", services={"cart": {"namespace": "shop"}})
