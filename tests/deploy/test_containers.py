"""The images and how they are put together: pinned, without root, and as safe as what `trident serve` starts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml
from typer.core import TyperGroup

from deploy.cli import app
from deploy.installation import Installation
from deploy.launcher import KEEPALIVE, LaunchPlan, free_ports
from deploy.supervisor import Supervisor
from service.settings import Settings
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
SHARED_DEFAULTS = (
    "model-control-mode",
    "exit-on-error",
    "strict-readiness",
    "log-verbose",
    "disable-auto-complete-config",
    *KEEPALIVE,
)
"""What every start of Triton says alike."""


@dataclass
class Stage:
    """One stage of the Dockerfile."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.lines if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]


def read_dockerfile() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            stages[name] = Stage(name, base)
        else:
            list(stages.values())[-1].lines.append((instruction, rest))
    return stages


STAGES = read_dockerfile()
IMAGES = ("gateway", "triton")


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def read_compose(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), ComposeLoader)


COMPOSE = read_compose("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def options(command: list[str]) -> dict[str, str]:
    """`--name=value` arguments; a bare `--name` is "true"."""
    pairs = (argument.removeprefix("--").partition("=") for argument in command if argument.startswith("--"))
    return {name: value or "true" for name, _, value in pairs}


def parse_command(*arguments: str) -> dict[str, Any]:
    """What `trident` makes of a command line; a usage error where it is wrong."""
    command, rest = typer.main.get_command(app), list(arguments)
    while isinstance(command, TyperGroup):
        context = command.make_context(command.name, list(rest))
        _, command, rest = command.resolve_command(context, rest)
        assert command is not None
    return command.make_context(command.name, rest).params


def seconds(text: str) -> float:
    amount, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return int(amount) * {"s": 1, "m": 60}[unit]


@pytest.mark.parametrize("name", STAGES)
def test_base_images_are_pinned(name: str) -> None:
    base = STAGES[name].base
    assert base in STAGES or re.fullmatch(r"[\w./-]+:[\w.-]*\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", base), base


def test_triton_is_new_enough() -> None:
    """Before 26.11 its batcher used memory that it had freed, and lost cancelled streams."""
    version = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", STAGES["triton"].base)
    assert version is not None
    assert tuple(map(int, version.groups())) >= (26, 11)


@pytest.mark.parametrize("name", IMAGES)
def test_images_do_not_run_as_root(name: str) -> None:
    uid, gid = STAGES[name].last("USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    after = [instruction for instruction, _ in STAGES[name].lines]
    assert "RUN" not in after[after.index("USER") :]


def test_what_is_copied_into_the_build_exists_and_is_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    copied = [source for line in STAGES["build"].all("COPY") for source in line.split()[:-1]]
    assert set(copied) == set(kept)
    assert all((ROOT / each).exists() for each in copied)


def test_the_gateway_has_what_serving_needs_and_no_torch() -> None:
    installs = [line for stage in ("build", "gateway") for line in STAGES[stage].all("RUN") if "pip" in line]
    assert len(installs) == 1
    assert installs[0].endswith("pip install '.[serve]'")


def test_what_is_installed_into_tritons_python_is_pinned() -> None:
    (install,) = (line for line in STAGES["triton"].all("RUN") if "pip" in line)
    packages = [word for word in shlex.split(install) if not word.startswith("-")][2:]
    pinned = dict(each.split("==") for each in packages)
    assert pinned.keys() == {"numpy", "onnxruntime-gpu"}
    assert int(pinned["numpy"].split(".")[0]) < 2, "Triton's Python backend reads empty tensors with a newer one"


def test_the_gateways_command_is_understood() -> None:
    assert json.loads(STAGES["gateway"].last("ENTRYPOINT")) == ["trident"]
    parameters = parse_command(*json.loads(STAGES["gateway"].last("CMD")))
    assert (parameters["host"], parameters["port"]) == ("0.0.0.0", 8000)
    assert parameters["triton_url"] == f"triton:{options(triton_command())['grpc-port']}"


def test_the_repository_is_built_for_tritons_own_onnx_runtime() -> None:
    (line,) = STAGES["repository"].all("RUN")
    for profile in ("gpu", "cpu"):
        words = shlex.split(line.replace('"$PROFILE"', profile))
        assert words[0] == "trident"
        parameters = parse_command(*words[1:])
        assert (parameters["backend"], parameters["profile"]) == ("onnxruntime", profile)
    assert f"--from=repository {parameters['output']} /models" in STAGES["triton"].all("COPY")
    assert options(triton_command())["model-repository"] == "/models"


def triton_command() -> list[str]:
    return json.loads(STAGES["triton"].last("CMD"))


def test_triton_starts_as_safely_as_the_launchers(tmp_path: Path) -> None:
    nothing = Installation(binary=Path("tritonserver"), origin="the tests", backend_folders={}, backends=frozenset())
    plan = LaunchPlan(installation=nothing, repository=tmp_path, grpc_port=1, metrics_port=2, folder=tmp_path)
    launched, contained = options(plan.command(None, "shm")), options(triton_command())
    for name in SHARED_DEFAULTS:
        assert contained[name] == launched[name]
    assert contained["http-address"] == "127.0.0.1", "HTTP is for the health check"
    assert f":{contained['http-port']}/v2/health/ready" in STAGES["triton"].last("HEALTHCHECK")


@pytest.mark.parametrize("name", SERVICES)
def test_containers_give_up_what_they_do_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["pids_limit"] > 0
    assert re.fullmatch(r"\d+[mg]", service["deploy"]["resources"]["limits"]["memory"])
    assert not {"privileged", "cap_add", "pid", "ipc", "network_mode", "devices"} & service.keys()
    assert service.get("user", "1").split(":")[0] not in ("0", "root")
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_versions(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+\.\d+[\w.-]*$", service["image"])
    if "build" in service:
        assert service["build"]["target"] in IMAGES
    else:
        assert service["user"].split(":")[0].isdigit()


def test_only_the_gateway_is_reached_from_elsewhere() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"gateway": ["${PORT:-8000}:8000"], "grafana": ["127.0.0.1:${GRAFANA_PORT:-3000}:3000"]}
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "outside" in service["networks"]} == published.keys()
    assert all("inside" in service["networks"] for service in SERVICES.values())


def test_containers_start_when_what_they_need_is_healthy() -> None:
    needs = {name: service["depends_on"] for name, service in SERVICES.items() if "depends_on" in service}
    healthy = {"condition": "service_healthy"}
    assert needs == {"gateway": {"triton": healthy}, "grafana": {"prometheus": healthy}}
    assert all("test" in service["healthcheck"] for service in SERVICES.values())


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_checked_alike_with_and_without_compose(name: str) -> None:
    line, check = STAGES[name].last("HEALTHCHECK"), SERVICES[name]["healthcheck"]
    timing, command = line.split("CMD", maxsplit=1)
    assert ["CMD", *json.loads(command)] == check["test"]
    given = options(shlex.split(timing))
    assert given == {
        "interval": check["interval"],
        "timeout": check["timeout"],
        "start-period": check["start_period"],
        "retries": str(check["retries"]),
    }
    assert seconds(given["start-period"]) > 120, "as long as Triton may take to become ready"


def test_requests_in_flight_end_before_the_gateway_is_killed() -> None:
    grace_s = float(SERVICES["gateway"]["environment"]["TRIDENT_SERVER__GRACE_S"])
    assert grace_s == Settings.model_fields["server"].default.grace_s
    assert seconds(SERVICES["gateway"]["stop_grace_period"]) >= grace_s + 10


def test_settings_in_the_compose_file_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["gateway"]["environment"].items():
        monkeypatch.setenv(name, value)
        part, field_name = name.removeprefix("TRIDENT_").lower().split("__")
        assert str(getattr(getattr(Settings(), part), field_name)) == str(float(value))


def test_triton_has_its_gpu_and_its_shared_memory() -> None:
    service = SERVICES["triton"]
    assert service["shm_size"] == "1g", "Docker's 64 MB break the Python backend"
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert service["build"]["args"] == {"PROFILE": "gpu"}


def test_without_a_gpu_another_image_is_built_and_none_is_asked_for() -> None:
    (triton,) = read_compose("docker-compose.cpu.yml")["services"].values()
    assert triton["build"] == {"args": {"PROFILE": "cpu"}}
    assert triton["image"] != SERVICES["triton"]["image"]
    assert triton["deploy"]["resources"] == {"reservations": None}


def test_what_is_mounted_exists_and_is_read_only() -> None:
    for service in SERVICES.values():
        for source, *target in (volume.split(":") for volume in service.get("volumes", ())):
            if source.startswith("./"):
                assert (ROOT / source).is_dir()
                assert target[1:] == ["ro"]
            else:
                assert source in COMPOSE["volumes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainedPlan(LaunchPlan):
    """The image's own command line, on free ports."""

    http_port: int

    def command(self, backends: Path | None, shared_memory: str) -> list[str]:
        here = {
            "model-repository": self.repository,
            "grpc-port": self.grpc_port,
            "http-port": self.http_port,
            "metrics-port": self.metrics_port,
            "backend-directory": backends,
            "backend-config": f"python,shm-region-prefix-name={shared_memory}",
        }
        flags = {**options(triton_command()), **here}
        # As in the image: this one takes no value.
        del flags["disable-auto-complete-config"]
        command = [f"--{name}={value}" for name, value in flags.items()]
        return [str(self.installation.binary), *command, "--disable-auto-complete-config"]


def test_triton_understands_the_images_command(
    installation: Installation, nano_repository: Path, tmp_path: Path
) -> None:
    grpc_port, http_port, metrics_port = free_ports(3)
    plan = ContainedPlan(
        installation=installation,
        repository=nano_repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        folder=tmp_path,
    )
    with Supervisor(plan) as supervisor:
        supervisor.wait_until_ready()
        # Triton opens HTTP and metrics after gRPC, by which it is seen to be ready.
        wait_until(lambda: answers(f"http://127.0.0.1:{http_port}/v2/health/ready"), "an answer by HTTP")
        wait_until(lambda: answers(plan.metrics_url), "an answer with metrics")
        assert "nv_inference_request_success" in httpx.get(plan.metrics_url).text


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        return httpx.get(url).status_code == httpx.codes.OK
    except httpx.ConnectError:
        return False


@pytest.mark.skipif(not shutil.which("docker-compose"), reason="needs docker-compose (Debian: apt install it)")
def test_compose_accepts_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    answer = subprocess.run(
        ["docker-compose", "--file", "docker-compose.yml", "config"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    resolved = yaml.safe_load(answer.stdout)["services"]
    assert resolved.keys() == SERVICES.keys()
    (port,) = resolved["gateway"]["ports"]
    assert str(port).startswith("9000:") or int(port["published"]) == 9000
