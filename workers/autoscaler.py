"""Whether the cluster has an autoscaler, which may add nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ray
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import _internal_kv_get

_ANSWERS_WITHIN_S = 10


def autoscales() -> bool:
    """Whether an autoscaler runs for the cluster that this process has joined.

    Ray has no public answer. This reads what `ray status` reads.
    """
    # Version 1 keeps its state under this key, and only mirrors the nodes of a cluster that was
    # started by hand. Version 2 reports its own state, and runs only where it was chosen.
    if kept := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        return adds_nodes(json.loads(kept))
    messages: Any = autoscaler_pb2
    raylet: Any = ray._raylet
    client = raylet.GcsClient(ray.get_runtime_context().gcs_address)
    reply = messages.GetClusterStatusReply.FromString(
        client.get_cluster_status(timeout_s=_ANSWERS_WITHIN_S)
    )
    return bool(reply.autoscaling_state.autoscaler_state_version > 0)


def adds_nodes(status: Mapping[str, Any]) -> bool:
    """Whether this state of Ray's autoscaler (version 1), read from the cluster, is of one that
    has node types of its own. The one that only mirrors nodes invents a type for each."""
    report = status.get("autoscaler_report") or status.get("autoscalerReport") or {}
    types = report.get("node_type_mapping") or report.get("nodeTypeMapping") or {}
    return any(kind != f"node_{name}" for name, kind in types.items())
