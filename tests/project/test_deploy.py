"""What is delivered fits the program: its settings, its port, its commands, its times, its locks."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from store_service import config as settings
from store_service.errors import BadSetting
from store_service.lifecycle import CLEANUP_SECONDS
from store_service.rpc.health import LIVE
from store_service.worker_process import EXIT_SECONDS
from tests.support.repository import ROOT, pinned_version, pins
from tests.support.server_process import run_command
from tests.support.timeouts import scaled_timeout

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
COMPOSE = DEPLOY / "compose.yaml"
UNIT = DEPLOY / "store-service.service"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
PORT = settings.Config.model_fields["listen"].default.rpartition(":")[2]
USER = 10001

each_manifest = pytest.mark.parametrize("manifest", KUBERNETES, ids=lambda path: path.name)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with what follows them, continued lines as one."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def documents(manifest: Path, kind: str = "") -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return [it for it in yaml.safe_load_all(manifest.read_text()) if kind in ("", it["kind"])]


def pod(manifest: Path) -> dict[str, Any]:
    """The pod that a manifest describes."""
    (workload,) = documents(manifest, "StatefulSet") + documents(manifest, "Deployment")
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def pod_annotations(manifest: Path) -> dict[str, str]:
    """What is noted on each pod."""
    (workload,) = documents(manifest, "StatefulSet") + documents(manifest, "Deployment")
    return dict(workload["spec"]["template"]["metadata"]["annotations"])


def container(manifest: Path) -> dict[str, Any]:
    """Its one container."""
    (only,) = pod(manifest)["containers"]
    return dict(only)


def unit() -> dict[str, list[str]]:
    """The settings of the systemd unit. Some occur several times."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def environments() -> dict[str, dict[str, str]]:
    """The variables that each file sets, as the service would see them."""
    (env,) = [rest for name, rest in instructions() if name == "ENV" and "STORE_" in rest]
    secret = "postgresql://store:secret@db/store"
    found = {
        "Dockerfile": dict(word.split("=", 1) for word in shlex.split(env)),
        "unit": dict(word.split("=", 1) for word in unit()["Environment"]),
        "compose": {
            name: re.sub(r"\$\{.*?\}", "secret", value)
            for name, value in yaml.safe_load(COMPOSE.read_text())["services"]["store"]["environment"].items()
        },
    }
    for manifest in KUBERNETES:
        found[manifest.name] = {it["name"]: it.get("value", secret) for it in container(manifest)["env"]}
    return found


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> settings.Config:
    """The settings that a file makes."""
    for variable, value in environments()[name].items():
        monkeypatch.setenv(variable, value)
    return settings.load()


# Settings


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_is_a_setting(path: Path) -> None:
    """A misspelt variable would be ignored."""
    known = {settings.environment_variable(name) for name in settings.Config.model_fields}
    named = set(re.findall(r"\b(?:STORE_[A-Z_]+|DATABASE_URL)\b", path.read_text()))

    assert named <= known


@pytest.mark.parametrize("name", environments())
def test_settings_are_valid_and_listen_publicly(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The service starts with them and is reachable."""
    monkeypatch.chdir(tmp_path)
    if name == "Dockerfile":
        # The operator of the image decides how connections are secured.
        with pytest.raises(BadSetting, match="STORE_TLS_CERT"):
            loaded(name, monkeypatch)
        monkeypatch.setenv("STORE_ALLOW_INSECURE", "true")
    config = loaded(name, monkeypatch)

    assert config.listen == (f"127.0.0.1:{PORT}" if name == "unit" else f"0.0.0.0:{PORT}")


def test_database_file_is_on_the_volume() -> None:
    """Nothing is kept in a container that is thrown away."""
    volumes = [rest for name, rest in instructions() if name == "VOLUME"]
    (mount,) = [it["mountPath"] for it in container(DEPLOY / "kubernetes/sqlite.yaml")["volumeMounts"][:1]]
    of = environments()

    assert volumes == [mount] == ["/data"]
    assert (
        of["Dockerfile"]["DATABASE_URL"] == of["sqlite.yaml"]["DATABASE_URL"] == f"sqlite:///{mount}/store.db"
    )
    assert of["unit"]["DATABASE_URL"] == f"sqlite:////var/lib/{unit()['StateDirectory'][0]}/store.db"
    assert unit()["WorkingDirectory"] == [f"/var/lib/{unit()['StateDirectory'][0]}"]


# Ports


def test_image_and_compose_expose_the_listening_port() -> None:
    """The default one; compose publishes it on loopback only."""
    exposed = [rest for name, rest in instructions() if name == "EXPOSE"]
    published = yaml.safe_load(COMPOSE.read_text())["services"]["store"]["ports"]

    assert exposed == [PORT]
    assert published == [f"127.0.0.1:{PORT}:{PORT}"]


@each_manifest
def test_kubernetes_probes_and_service_use_the_listening_port(manifest: Path) -> None:
    """Probes, service and policy."""
    it = container(manifest)
    (service,) = documents(manifest, "Service")
    (policy,) = documents(manifest, "NetworkPolicy")

    metrics = int(environments()[manifest.name]["STORE_METRICS_LISTEN"].rpartition(":")[2])
    assert it["ports"] == [
        {"name": "grpc", "containerPort": int(PORT)},
        {"name": "metrics", "containerPort": metrics},
    ]
    assert pod_annotations(manifest)["prometheus.io/port"] == str(metrics)
    assert it["startupProbe"]["grpc"] == it["readinessProbe"]["grpc"] == {"port": int(PORT)}
    assert it["livenessProbe"]["grpc"] == {"port": int(PORT), "service": LIVE}
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(int(PORT), "grpc")]
    callers, monitoring = policy["spec"]["ingress"]
    assert (callers["ports"], monitoring["ports"]) == ([{"port": int(PORT)}], [{"port": metrics}])


@each_manifest
def test_liveness_probe_tolerates_pauses_and_outages(manifest: Path) -> None:
    """A pause of some seconds and an unavailable database are no reasons, so LIVE is checked."""
    probe = container(manifest)["livenessProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60
    assert probe["timeoutSeconds"] > 2
    assert "initialDelaySeconds" not in probe  # the startup probe sees to that


# Commands


def commands() -> list[list[str]]:
    """Every call of `store-service` that the files make."""
    rest_of = dict(instructions())
    health = re.search(r"CMD (\[.*\])", rest_of["HEALTHCHECK"])
    assert health is not None
    compose = yaml.safe_load(COMPOSE.read_text())["services"]["store"]
    entrypoint = yaml.safe_load(rest_of["ENTRYPOINT"])
    assert entrypoint == ["store-service"]
    return [
        [*entrypoint, *yaml.safe_load(rest_of["CMD"])],
        yaml.safe_load(health[1]),
        [*entrypoint, *compose["command"]],
        compose["healthcheck"]["test"][1:],
        shlex.split(unit()["ExecStart"][0].rpartition("/")[2]),
        *([*entrypoint, *container(manifest)["args"]] for manifest in KUBERNETES),
    ]


@cache
def help_of(command: str) -> str:
    """What a command says of itself."""
    done = run_command(command, "--help", folder=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_container_commands_exist_with_their_options() -> None:
    called = commands()

    assert [name for _, name, *_ in called].count("serve") == 3 + len(KUBERNETES)
    assert [name for _, name, *_ in called].count("health") == 2
    for program, command, *arguments in called:
        assert program == "store-service"
        for argument in arguments:
            assert argument.partition("=")[0] in help_of(command)


# Stopping


def stop_seconds(config: settings.Config) -> float:
    """What a stop may take, with a second more."""
    return (
        config.shutdown_delay_seconds + config.shutdown_grace_seconds + max(CLEANUP_SECONDS, EXIT_SECONDS) + 1
    )


def test_systemd_grants_the_grace_period(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SIGKILL comes after the time that the service needs to stop."""
    monkeypatch.chdir(tmp_path)
    config = loaded("unit", monkeypatch)

    assert unit()["KillSignal"] == ["SIGTERM"]
    assert float(unit()["TimeoutStopSec"][0]) >= stop_seconds(config)
    assert unit()["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit()["Restart"] == ["on-failure"]


def test_compose_grants_the_grace_period(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The image sets the signal, compose the time."""
    monkeypatch.chdir(tmp_path)
    config = loaded("compose", monkeypatch)
    period = yaml.safe_load(COMPOSE.read_text())["services"]["store"]["stop_grace_period"]

    assert dict(instructions())["STOPSIGNAL"] == "SIGTERM"
    assert float(period.removesuffix("s")) >= stop_seconds(config)


@each_manifest
def test_kubernetes_grants_the_grace_period(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Including the time in which clients learn that the pod is gone."""
    monkeypatch.chdir(tmp_path)
    config = loaded(manifest.name, monkeypatch)

    assert config.shutdown_delay_seconds >= 5
    assert pod(manifest)["terminationGracePeriodSeconds"] >= stop_seconds(config)


def test_compose_restarts_everything_after_a_reboot() -> None:
    """As with "unless-stopped", not "on-failure"."""
    services = yaml.safe_load(COMPOSE.read_text())["services"]

    assert {name: it["restart"] for name, it in services.items()} == dict.fromkeys(
        ("store", "postgres"), "unless-stopped"
    )


# Rights


def test_image_runs_as_a_numeric_user() -> None:
    """Kubernetes can see that it is not root, before anything runs."""
    last_stage = instructions()[[name for name, _ in instructions()].index("FROM", 1) :]

    assert ("USER", f"{USER}:{USER}") in last_stage
    assert f"--uid {USER}" in dict(last_stage)["RUN"]


@each_manifest
def test_pod_has_minimal_privileges(manifest: Path) -> None:
    """Not root, no capabilities, a read-only file system except its volumes, no service account token."""
    whole, own = pod(manifest)["securityContext"], container(manifest)["securityContext"]

    assert (whole["runAsNonRoot"], whole["runAsUser"], whole["fsGroup"]) == (True, USER, USER)
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(manifest)["automountServiceAccountToken"] is False
    mounted = {it["name"] for it in container(manifest)["volumeMounts"]}
    (workload,) = documents(manifest)[:1]
    claimed = {it["metadata"]["name"] for it in workload["spec"].get("volumeClaimTemplates", [])}
    assert mounted == claimed | {it["name"] for it in pod(manifest)["volumes"]}


def test_sqlite_has_one_pod_and_postgresql_several() -> None:
    """A file is served by one process."""
    (stateful,) = documents(DEPLOY / "kubernetes/sqlite.yaml", "StatefulSet")
    (deployment,) = documents(DEPLOY / "kubernetes/postgresql.yaml", "Deployment")

    assert stateful["spec"]["replicas"] == 1
    assert deployment["spec"]["replicas"] > 1
    assert environments()["postgresql.yaml"]["DATABASE_URL"].startswith("postgresql://")


@each_manifest
def test_manifest_objects_reference_each_other(manifest: Path) -> None:
    """Selectors match the pods, and a client can balance over them."""
    (workload, *_) = documents(manifest)
    labels = workload["spec"]["template"]["metadata"]["labels"]
    (service,) = documents(manifest, "Service")
    (policy,) = documents(manifest, "NetworkPolicy")

    assert workload["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert service["spec"]["clusterIP"] == "None"
    assert workload["spec"].get("serviceName", "store") == service["metadata"]["name"] == "store"


def test_ingress_references_the_service() -> None:
    (ingress,) = documents(DEPLOY / "proxies/kubernetes-ingress.yaml")
    (service,) = documents(KUBERNETES[0], "Service")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]

    assert path["backend"]["service"] == {
        "name": service["metadata"]["name"],
        "port": {"number": service["spec"]["ports"][0]["port"]},
    }


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """No setting is misspelt."""
    installed = Path(sys.executable).with_name("store-service")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/store-service/bin/store-service", str(installed)))
    done = subprocess.run(
        ["systemd-analyze", "verify", copy],
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )

    about_us = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_us) == (0, [])


# What is installed


def copied() -> list[tuple[list[str], str]]:
    """What the Dockerfile copies from the repository, and where to."""
    found = [shlex.split(rest) for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    return [(words[:-1], words[-1]) for words in found]


def test_image_sources_are_in_the_build_context() -> None:
    """They exist and are not ignored."""
    let_through = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    sources = {source for group, _ in copied() for source in group}

    assert sources == let_through
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_both_wheels_build_from_the_image_sources(tmp_path: Path) -> None:
    for sources, target in copied():
        for source in sources:
            (tmp_path / target).mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(ROOT / source, tmp_path / target, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    (build,) = [rest for name, rest in instructions() if name == "RUN" and "hatchling" in rest]
    steps = re.findall(
        r"(?:cd (\S+) && )?\S*/python -m (hatchling build -t wheel) -d (\S+?)\)?(?:\s|$)", build
    )

    assert len(steps) == 2
    for folder, command, _ in steps:
        done = subprocess.run(
            [sys.executable, "-m", *command.split(), "-d", tmp_path / "wheels"],
            cwd=tmp_path / folder,
            capture_output=True,
            text=True,
            timeout=scaled_timeout(100),
            check=False,
        )
        assert done.returncode == 0, done.stderr
    built = {path.name.partition("-")[0] for path in (tmp_path / "wheels").glob("*.whl")}
    assert built == {"storeapi", "store_service"}


def test_image_installs_only_locked_packages() -> None:
    """Each `pip install` uses a lock with hashes, or the wheels that were just built."""
    runs = " && ".join(rest for name, rest in instructions() if name == "RUN")
    installs = re.findall(r"pip install (.*?)(?= &&|$)", runs)

    locks = ["requirements/build.txt", "requirements/runtime.txt"]
    assert [it.strip() for it in installs] == [
        *(f"--require-hashes -r {lock}" for lock in locks),
        "--no-deps --no-index /build/wheels/*.whl",
    ]
    for lock in locks:
        for name, pinned in pins(ROOT / lock).items():
            assert "--hash=sha256:" in pinned, name


@pytest.mark.parametrize("lock", ["runtime", "build"])
def test_delivered_versions_are_the_tested_ones(lock: str) -> None:
    """Those of requirements/dev.txt."""
    tested = pins(ROOT / "requirements/dev.txt")
    delivered = pins(ROOT / f"requirements/{lock}.txt")

    assert len(delivered) > 4
    assert {name: pinned_version(it) for name, it in delivered.items()} == {
        name: pinned_version(tested[name]) for name in delivered
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_a_registry_or_an_unversioned_image(path: Path) -> None:
    """Deployers choose the registry; "latest" is not reproducible."""
    text = path.read_text()
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE) + re.findall(
        r"^ *image: (\S+)", text, re.MULTILINE
    )
    built_here = {"store-service"}

    assert [
        it for it in images if it not in built_here and not re.fullmatch(r"[a-z-]+:[0-9][\w.-]*", it)
    ] == []
    assert "index-url" not in text
    assert "://" not in re.sub(r"(postgresql|sqlite|dns|grpcs?|h2c)://", "", text)
