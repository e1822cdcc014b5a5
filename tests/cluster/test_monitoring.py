"""What Compose gives to Prometheus, by Prometheus' own tool."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.compose import DEPLOY, run
from tests.cluster.tools import PROMTOOL, image_with

pytestmark = pytest.mark.timeout(600)
SETTINGS = "--config.file="


@pytest.fixture(scope="module")
def promtool() -> str:
    return image_with("promtool", PROMTOOL)


def prometheus() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.monitoring.yml").read_text(encoding="utf-8"))[
        "services"]["prometheus"]
    return service


def checked(image: str, what: str, *files: str) -> str:
    """What promtool says of files where Compose mounts them."""
    mounts = [volume for volume in prometheus()["volumes"] if volume.startswith("./")]
    volumes = [part for volume in mounts for part in ("-v", str(DEPLOY / volume.removeprefix("./")))]
    command = ["docker", "run", "--rm", "--network", "none", *volumes, image, "promtool", "check", what, *files]
    return run(command).stdout


def test_prometheus_takes_its_settings_and_the_rules_that_they_name(promtool: str) -> None:
    (settings,) = (one.removeprefix(SETTINGS) for one in prometheus()["command"] if one.startswith(SETTINGS))
    told = checked(promtool, "config", settings)
    for file in (DEPLOY / "prometheus").glob("*.yml"):
        assert str(Path(settings).parent / file.name) in told, f"{file.name}: nothing reads it"


def test_prometheus_takes_every_rule(promtool: str) -> None:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    told = checked(promtool, "rules", "/etc/prometheus/alerts.yml")
    assert f"SUCCESS: {sum(len(group['rules']) for group in groups)} rules found" in told


def test_promtool_refuses_what_is_wrong(promtool: str, tmp_path: Path) -> None:
    """That it was asked at all."""
    wrong = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8").replace("expr: ", "expr: sum by (", 1)
    (tmp_path / "alerts.yml").write_text(wrong, encoding="utf-8")
    done = run(["docker", "run", "--rm", "--network", "none", "-v", f"{tmp_path}:/rules:ro", promtool, "promtool",
                "check", "rules", "/rules/alerts.yml"], check=False)
    assert done.returncode != 0
    assert "FAILED" in done.stdout + done.stderr
