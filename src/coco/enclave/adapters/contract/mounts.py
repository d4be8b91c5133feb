"""Where adapters are served: below their mount, a path prefix, and what of that is in another one's way.

Rules:

* HTTP routes, streams and JSON-RPC of an adapter are below its mount. The manifest names one, ``/`` as it stands; the
  genesis of an adapter may name another by the key ``mount``, which is the framework's and which no adapter is given.
* JSON-RPC is served by ``POST`` and over WebSocket: at ``/`` exactly there, at any other mount at every path below it
  that is no route, so that the rest of the path may say more.
* What two adapters would both serve is a clash, and so is what the framework serves itself (``/coco/``). Two adapters
  with one mount may share JSON-RPC, if no method is both's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coco import limits
from coco.enclave.adapters.contract.headers import is_name
from coco.enclave.adapters.contract.routes import Manifest, Route, RouteKind
from coco.errors import ConfigurationError

ROOT = "/"
#: In the genesis of an adapter.
_KEY = "mount"
_FRAMEWORK = "/coco/{rest:path}"
_STREAM = "WEBSOCKET"
_LITERAL = r"[A-Za-z0-9._~!$&'()*+,;=:@%-]+"
_MOUNT = re.compile(rf"(/{_LITERAL})+")
_PATH = re.compile(rf"(/(({_LITERAL}|{{\w+(:\w+)?}})*))+")
_METHOD = re.compile(r"[A-Z]+")
_MOUNT_CHARACTERS_MAX = 128


def own_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An adapter's settings without those of the framework."""
    return {key: value for key, value in settings.items() if key != _KEY}


def mount_of(manifest: Manifest, settings: Mapping[str, Any]) -> str:
    """Where an adapter with these settings is served: ``/``, or a prefix without a slash at its end.

    Raises:
        ConfigurationError: it is no path (``configuration.adapter_mount``), or a route of the manifest cannot be
            (``configuration.adapter_manifest``).
    """
    mount = settings.get(_KEY, manifest.mount)
    is_path = isinstance(mount, str) and len(mount) <= _MOUNT_CHARACTERS_MAX
    if is_path and mount != ROOT:
        mount = mount.removesuffix("/")
        is_path = _MOUNT.fullmatch(mount) is not None
    if not is_path:
        raise ConfigurationError(
            f"the mount of {manifest.name} is no path", code="configuration.adapter_mount", hint='such as "/quorum"'
        )
    for route in manifest.routes:
        _check_route(manifest, route)
    return str(mount)


def below(mount: str, path: str) -> str:
    """The path of a route below a mount."""
    return mount.removesuffix("/") + path


def of_json_rpc(mount: str) -> tuple[str, ...]:
    """Paths at which JSON-RPC is served."""
    return (ROOT,) if mount == ROOT else (mount, mount + "/{rest:path}")


def check_clash(manifest: Manifest, mount: str, others: Sequence[tuple[Manifest, str]]) -> None:
    """Whether an adapter serves nothing twice, and nothing that the framework serves, or one of the others does.

    Args:
        manifest: of the adapter.
        mount: of the adapter.
        others: each with its mount.

    Raises:
        ConfigurationError: it does (``configuration.adapter_clash``).
    """
    _check_alone(manifest, mount)
    for other, others_mount in others:
        _check_pair(manifest, mount, other, others_mount)


def _check_route(manifest: Manifest, route: Route) -> None:
    is_stream = route.kind is RouteKind.STREAM
    if not route.path:
        fits = not (route.method or route.body_bytes_max or is_stream)
    else:
        fits = bool(_METHOD.fullmatch(route.method)) and bool(_PATH.fullmatch(route.path)) and "//" not in route.path
        fits = fits and (route.method == "GET" or not is_stream)
    if not fits or not 0 <= route.body_bytes_max <= limits.BODY_BYTES_MAX or not all(map(is_name, route.headers)):
        raise ConfigurationError(
            f"the route {route.name} of {manifest.name} cannot be served", code="configuration.adapter_manifest"
        )


def _paths(manifest: Manifest, mount: str) -> Iterator[tuple[str, str]]:
    """Method and path of each HTTP route and stream."""
    for route in manifest.routes:
        if route.path:
            yield (_STREAM if route.kind is RouteKind.STREAM else route.method), below(mount, route.path)


def _methods(manifest: Manifest) -> list[str]:
    named = manifest.subscriptions
    methods = [route.name for route in manifest.routes if not route.path]
    return methods if named is None else [*methods, named.subscribe, named.unsubscribe]


def _check_alone(manifest: Manifest, mount: str) -> None:
    methods, paths = _methods(manifest), list(_paths(manifest, mount))
    served = [*methods, *(f"{method} {re.sub(r'{[a-zA-Z_0-9]+', '{', path)}" for method, path in paths)]
    for each in served:
        if served.count(each) > 1:
            raise _clash(manifest, manifest, each)
    rpc = [("POST", path) for path in of_json_rpc(mount) if methods and mount != ROOT]
    for method, path in [*paths, *rpc]:
        if _overlap(path, _FRAMEWORK) or (method, path) == ("POST", ROOT):
            raise ConfigurationError(
                f"{manifest.name} would serve {path}, which is the framework's", code="configuration.adapter_clash"
            )


def _check_pair(manifest: Manifest, mount: str, other: Manifest, others_mount: str) -> None:
    paths, others_paths = list(_paths(manifest, mount)), list(_paths(other, others_mount))
    for method, path in paths:
        for others_method, others_path in others_paths:
            if method == others_method and _overlap(path, others_path):
                raise _clash(other, manifest, f"{method} {path}")
    methods, others_methods = _methods(manifest), _methods(other)
    if mount == others_mount:
        both = set(methods) & set(others_methods)
        if both:
            raise _clash(other, manifest, min(both))
    elif methods and others_methods:
        _check_rest(manifest, of_json_rpc(mount), other, [(_STREAM, path) for path in of_json_rpc(others_mount)])
    if methods:
        _check_rest(manifest, of_json_rpc(mount), other, others_paths)
    if others_methods:
        _check_rest(other, of_json_rpc(others_mount), manifest, paths)


def _check_rest(manifest: Manifest, rpc: Sequence[str], other: Manifest, paths: Sequence[tuple[str, str]]) -> None:
    """JSON-RPC is served at every path below a mount: no other one's route may be there."""
    for method, path in paths:
        if method in ("POST", _STREAM) and any(_overlap(path, everywhere) for everywhere in rpc):
            raise _clash(other, manifest, f"{method} {path}")


def _overlap(path: str, other: str) -> bool:
    """Whether some request fits both; names count as anything, and a name that takes several segments as everything."""
    ours, theirs = path.split("/")[1:], other.split("/")[1:]
    for index in range(max(len(ours), len(theirs))):
        pair = [segments[index] for segments in (ours, theirs) if index < len(segments)]
        if any(":path}" in segment for segment in pair):
            return True
        if len(pair) < 2 or (pair[0] != pair[1] and not any("{" in segment for segment in pair)):
            return False
    return True


def _clash(first: Manifest, second: Manifest, what: str) -> ConfigurationError:
    whose = f"{first.name} and {second.name} both serve" if first is not second else f"{first.name} serves twice"
    return ConfigurationError(
        f"{whose} {what}",
        code="configuration.adapter_clash",
        hint='name another "mount" in the genesis of one of them',
    )
