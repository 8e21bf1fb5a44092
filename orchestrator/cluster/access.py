"""Whether the cluster at RAY_ADDRESS answers and accepts our token: asked once, before Ray joins.

Ray itself repeats for 20 s what the head refuses, and prints each refusal. On a cluster without
tokens, actors of a driver that sends one die for no visible reason.
"""

from __future__ import annotations

import os

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from orchestrator.cluster.token import Token, find_token, given_mode, refusal
from orchestrator.errors import InputError

_ANSWERS_WITHIN_S = 10.0


def accessible(address: str) -> str:
    """The host:port of the cluster at `address`, after agreeing with it whether tokens are sent.

    A token is sent once the cluster has asked for it, so that no other server learns it.

    `address`: RAY_ADDRESS, which is not empty.

    Raises InputError when no cluster answers there, or it does not accept the token.
    """
    mode = given_mode()
    token = None if mode == "disabled" else find_token()
    head = _head(address)
    try:
        _agree_on_tokens(head, address, mode, token)
    except InputError:
        _set_mode(mode)
        raise
    return head


def _agree_on_tokens(head: str, address: str, mode: str | None, token: Token | None) -> None:
    """Set the mode that the cluster uses. `address`: RAY_ADDRESS, for messages."""
    _set_mode("disabled")
    answer = _answer(head)
    if answer == grpc.StatusCode.OK and mode == "token":
        raise InputError(
            f"RAY_ADDRESS: {address}: RAY_AUTH_MODE is token here, but this cluster does not ask "
            "for tokens; start it with RAY_AUTH_MODE=token, or unset that here"
        )
    if answer == grpc.StatusCode.UNAUTHENTICATED and token:
        if token.place != "RAY_AUTH_TOKEN":
            # Ray does not look into the home folder of a process without HOME.
            os.environ["RAY_AUTH_TOKEN_PATH"] = token.place
        _set_mode("token")
        answer = _answer(head)
    if answer == grpc.StatusCode.UNAUTHENTICATED:
        raise refusal(f"RAY_ADDRESS: {address}", mode, token)
    if answer != grpc.StatusCode.OK:
        raise InputError(f"RAY_ADDRESS: no Ray cluster answers at {address!r}")


def _head(address: str) -> str:
    """The host:port that `address` names. Raises InputError."""
    try:
        if "://" not in address and (head := canonicalize_bootstrap_address(address)):
            return head
    except ConnectionError:
        raise InputError(
            f"RAY_ADDRESS: no Ray cluster was found on this machine (RAY_ADDRESS is {address})"
        ) from None
    except (OSError, ValueError):
        pass
    raise InputError(
        "RAY_ADDRESS: must be auto, or the address of a cluster's head, such as 10.0.0.1:6379 "
        f"(got {address!r}); a job server's address is for `datafree submit`"
    )


def _answer(head: str) -> grpc.StatusCode:
    with init_grpc_channel(head, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=_ANSWERS_WITHIN_S
            )
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def _set_mode(mode: str | None) -> None:
    if mode is None:
        os.environ.pop("RAY_AUTH_MODE", None)
    else:
        os.environ["RAY_AUTH_MODE"] = mode
    Config.initialize("")  # Ray read the environment when it was imported
    AuthenticationTokenLoader.instance().reset_cache()
