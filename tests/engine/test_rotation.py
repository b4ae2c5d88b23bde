"""Rotation where Port is not the stack's own: the new client secret is given by variable or on a terminal."""

from __future__ import annotations

import os
import pty
import time
from collections.abc import Iterator

import pytest
from tests.engine.project import Project, changes, fresh
from tests.fixtures_localport import LocalPort

from port_webhook_handlers.runtime.secret_file import SecretFile
from port_webhook_localport import control

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPort]:
    """An organisation that the stack knows by address and credentials alone."""
    home = tmp_path_factory.mktemp("elsewhere") / "port"
    port = LocalPort(control.ensure_running(home), home)
    yield port
    port.close()
    control.remove(home)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, elsewhere: LocalPort) -> Iterator[Project]:
    for project in fresh(tmp_path_factory.mktemp("rotation")):
        project.configure({"port-webhook:region": None, "port-webhook:baseUrl": elsewhere.url})
        project.environment["PORT_CLIENT_ID"] = elsewhere.client_id
        project.cli("up", PORT_CLIENT_SECRET=elsewhere.client_secret)
        yield project


def rotated_in_port(elsewhere: LocalPort) -> str:
    """What somebody does in Port's UI; the new secret."""
    new = control.rotate_secret(elsewhere.home, "stage").client_secret
    control.rotate_secret(elsewhere.home, "activate", 600)
    elsewhere.endpoint = control.ensure_running(elsewhere.home)
    return new


def accepted(project: Project) -> list[str]:
    """The signing secrets that the listener accepts now."""
    [key] = project.user_state.glob("port-webhook-stack/*.key")
    return SecretFile(project.state / "secrets" / "store", key).read().active_signing(time.time())


def test_the_new_secret_from_a_variable(project: Project, elsewhere: LocalPort) -> None:
    old = elsewhere.client_secret
    wrong = project.cli(
        "rotate-secret", "--from-env", "NEW", check=False, NEW="wrong-secret-value", PORT_CLIENT_SECRET=old
    )
    assert wrong.code == 1
    assert f"refuses this secret for {elsewhere.client_id}" in wrong.stderr
    assert "wrong-secret-value" not in wrong.text
    assert accepted(project) == [old]
    new = rotated_in_port(elsewhere)
    result = project.cli("rotate-secret", "--from-env", "NEW", NEW=new, PORT_CLIENT_SECRET=old)
    assert "export PORT_CLIENT_SECRET with the new secret from now on" in result.stderr
    assert new not in result.text
    assert accepted(project) == [new, old]
    assert set(changes(project.cli("up", PORT_CLIENT_SECRET=new))) == {"unchanged"}
    project.cli("rotate-secret", "--retire", PORT_CLIENT_SECRET=new)
    assert accepted(project) == [new]
    assert set(changes(project.cli("up", PORT_CLIENT_SECRET=new))) == {"unchanged"}
    run = project.cli(
        *("run", "deploy_microservice", "--entity", "cart", "-i", "version=1.0.0", "--follow"),
        check=False,
        PORT_CLIENT_SECRET=new,
    )
    # There is no such entity in that organisation: the credentials were accepted.
    assert 'identifier "cart" was not found' in run.stderr


def test_the_new_secret_typed_in_goes_encrypted_into_the_stack_file(
    project: Project, elsewhere: LocalPort
) -> None:
    old = elsewhere.client_secret
    file = project.folder / "stacks" / "Pulumi.local.yaml"
    project.cli("rotate-secret", "--from-env", "NEW", NEW=old)
    assert old not in file.read_text(encoding="utf-8")
    assert "port-webhook:clientSecret" in file.read_text(encoding="utf-8")
    new = rotated_in_port(elsewhere)
    code, shown = typed(project, ["rotate-secret", "--overlap", "5m"], new)
    assert code == 0, shown
    assert "New client secret:" in shown
    assert new not in shown
    assert new not in file.read_text(encoding="utf-8")
    assert accepted(project) == [new, old]
    assert set(changes(project.cli("up"))) == {"unchanged"}


def test_nobody_to_ask(project: Project) -> None:
    result = project.cli("rotate-secret", check=False)
    assert "there is no terminal to ask on: give the value by --from-env VARIABLE" in result.stderr


def test_a_stack_that_lists_its_signing_secrets(project: Project) -> None:
    project.configure({"port-webhook-stack:signingSecrets": [{"fromEnv": "SIGNING"}]})
    try:
        result = project.cli("rotate-secret", "--from-env", "NEW", check=False, NEW="x")
        assert "lists its port-webhook-stack:signingSecrets itself" in result.stderr
    finally:
        project.configure({"port-webhook-stack:signingSecrets": None})


def typed(project: Project, arguments: list[str], answer: str) -> tuple[int, str]:
    """Runs a command on a terminal of its own, on which `answer` is typed at the first question."""
    command = str(project.folder / ".venv" / "bin" / "port-webhook")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.folder)
        os.execve(command, [command, *arguments], project.environment)  # noqa: S606
    shown = b""
    asked = False
    try:
        while True:
            try:
                part = os.read(terminal, 65_536)
            except OSError:
                break
            if not part:
                break
            shown += part
            if not asked and b"secret:" in shown:
                asked = True
                os.write(terminal, answer.encode() + b"\n")
    finally:
        os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")
