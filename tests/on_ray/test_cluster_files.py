"""Cluster files: Ray's own validator for `ray up`, and the parts of KubeRay's schema that our files use."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, prepare_config, validate_config

from saga_ray.config import RunConfig
from saga_ray.config.keys import model_keys
from saga_ray.on_ray.resources import GROUP_LABEL, GROUPS_VARIABLE

FOLDER = Path(__file__).parents[2] / "cluster"
GROUPS = ["data", "training", "scoring"]
UP = ("laptop", "aws", "gcp")
KUBERAY = ("raycluster", "rayjob", "rayservice")


def _load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, WHOLE, TRUTH = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
NATURAL = {"type": "integer", "minimum": 0}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
RESOURCES = _object(
    requests={"type": "object", "additionalProperties": QUANTITY},
    limits={"type": "object", "additionalProperties": QUANTITY},
)


def _list(items: dict[str, Any], least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least}


CONTAINER = _object(
    ("name", "image"),
    name=TEXT,
    image=TEXT,
    env=_list(_object(("name", "value"), name=TEXT, value=TEXT)),
    ports=_list(_object(("containerPort",), name=TEXT, containerPort=WHOLE)),
    resources=RESOURCES,
    volumeMounts=_list(_object(("name", "mountPath"), name=TEXT, mountPath=TEXT)),
)
POD = _object(
    ("spec",),
    spec=_object(
        ("containers",),
        restartPolicy={"enum": ["Never"]},  # what autoscaler v2 needs: a pod is never taken for another node
        containers=_list(CONTAINER, 1),
        volumes=_list(_object(("name",), name=TEXT, persistentVolumeClaim=_object(("claimName",), claimName=TEXT))),
        tolerations=_list(_object(key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)),
    ),
)
CLUSTER_SPEC = _object(
    ("rayVersion", "headGroupSpec"),
    rayVersion=TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=TRUTH,
    autoscalerOptions=_object(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=WHOLE,
        resources=RESOURCES,
    ),
    headGroupSpec=_object(("rayStartParams", "template"), rayStartParams=TEXTS, labels=TEXTS, template=POD),
    workerGroupSpecs=_list(
        _object(
            ("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=TEXT,
            replicas=NATURAL,
            minReplicas=NATURAL,
            maxReplicas=NATURAL,
            idleTimeoutSeconds=WHOLE,
            labels=TEXTS,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
JOB_SPEC = _object(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished=WHOLE,
    backoffLimit=NATURAL,
    rayClusterSpec=CLUSTER_SPEC,
)
SERVICE_SPEC = _object(("rayClusterConfig",), serveConfigV2=TEXT, rayClusterConfig=CLUSTER_SPEC)
SPECS = {
    "raycluster": ("RayCluster", CLUSTER_SPEC),
    "rayjob": ("RayJob", JOB_SPEC),
    "rayservice": ("RayService", SERVICE_SPEC),
}


def _schema(name: str) -> dict[str, Any]:
    """The `ray.io/v1` kinds, as far as our files go; anything that stands here stands in KubeRay's own schema."""
    kind, spec = SPECS[name]
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_object(("name",), name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
        spec=spec,
    )  # fmt: skip


def _cluster_spec(name: str) -> dict[str, Any]:
    spec = _load(f"kuberay-{name}")["spec"]
    return {"raycluster": spec, "rayjob": spec.get("rayClusterSpec"), "rayservice": spec.get("rayClusterConfig")}[name]


@pytest.mark.parametrize("name", UP)
def test_ray_up_files_pass_rays_own_validator(name: str) -> None:
    validate_config(prepare_config(_load(name)))
    validate_config(fillout_defaults(_load(name)) if name != "laptop" else prepare_config(_load(name)))


@pytest.mark.parametrize("name", ("aws", "gcp"))
def test_clouds_scale_data_training_and_scoring_each_on_their_own(name: str) -> None:
    told = _load(name)
    groups = told["available_node_types"]
    assert list(groups) == ["head", *GROUPS]
    assert groups["head"]["resources"]["CPU"] == 0
    for group in GROUPS:
        assert groups[group]["min_workers"] == 0 < groups[group]["max_workers"]
        assert groups[group]["labels"] == {GROUP_LABEL: group}
        assert bool(groups[group]["resources"].get("GPU")) == (group != "data")
    assert f"{GROUPS_VARIABLE}={','.join(GROUPS)}" in "".join(told["head_start_ray_commands"])


@pytest.mark.parametrize("name", UP)
def test_every_node_starts_with_token_authentication_and_a_loopback_dashboard(name: str) -> None:
    told = _load(name)
    head, worker = told["head_start_ray_commands"], told["worker_start_ray_commands"]
    starts = [command for command in head + worker if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any(path.endswith("auth_token") for path in told["file_mounts"])


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_files_fit_their_kind(name: str) -> None:
    jsonschema.Draft202012Validator(_schema(name)).validate(_load(f"kuberay-{name}"))


@pytest.mark.parametrize("name", KUBERAY)
def test_a_misspelt_key_would_be_noticed(name: str) -> None:
    broken = copy.deepcopy(_load(f"kuberay-{name}"))
    broken["spec"]["enableInTreeAutoScaling"] = True
    assert not jsonschema.Draft202012Validator(_schema(name)).is_valid(broken)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_clusters_scale_three_groups_under_a_token(name: str) -> None:
    spec = _cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token"} and spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert list(groups) == GROUPS
    for group, told in groups.items():
        assert told["labels"] == {GROUP_LABEL: group}
        assert told["minReplicas"] == 0 < told["maxReplicas"]
        limits = told["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert ("nvidia.com/gpu" in limits) == (group != "data")
    env = {e["name"]: e["value"] for e in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    assert env[GROUPS_VARIABLE] == ",".join(GROUPS)


def test_ray_service_builds_the_scorer_from_its_import_path() -> None:
    from ray.serve.schema import ServeDeploySchema

    told = yaml.safe_load(_load("kuberay-rayservice")["spec"]["serveConfigV2"])
    [app] = ServeDeploySchema.model_validate(told).applications
    module, attribute = app.import_path.split(":")
    built = getattr(__import__(module, fromlist=[attribute]), attribute)(app.args)
    [named] = app.deployments
    assert built._bound_deployment.name == named.name
    warm = RunConfig.model_validate_json(built._bound_deployment.init_args[2])
    assert (warm.dataset, warm.recipe) == (app.args["dataset"], app.args["recipe"])


def test_cluster_files_hold_no_knob_of_the_algorithm() -> None:
    knobs = {key for key in model_keys() if key.startswith(("grpo.", "loss.", "optim.", "alignment.", "encoder."))}
    for path in FOLDER.glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert not [key for key in knobs if key in text], path.name


def test_all_files_name_the_ray_version_that_is_installed() -> None:
    import ray

    for path in [*FOLDER.glob("kuberay-*.yaml"), FOLDER / "aws.yaml", FOLDER / "gcp.yaml", FOLDER / "Dockerfile"]:
        text = path.read_text(encoding="utf-8")
        assert f'rayVersion: "{ray.__version__}"' in text or f"rayproject/ray:{ray.__version__}-" in text, path.name
