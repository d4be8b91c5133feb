"""Mounts: what is in another adapter's way, and whose early checks the door may use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coco.enclave.adapters.contract import Manifest, Route, RouteKind, mounts
from coco.enclave.api.dispatcher import Dispatcher
from coco.enclave.ordering.registry import AdapterRegistry
from coco.enclave.ordering.subscribers import Subscribers
from coco.errors import ConfigurationError, GovernanceError


def of(*routes: Route, name: str = "a", mount: str = "/") -> Manifest:
    return Manifest(name, "1", routes, (), mount=mount)


def rpc(name: str = "m", kind: RouteKind = RouteKind.QUERY) -> Route:
    return Route(name, kind)


def get(path: str, method: str = "GET") -> Route:
    return Route(path, RouteKind.QUERY, method, path)


def stream(path: str) -> Route:
    return Route(path, RouteKind.STREAM, "GET", path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((rpc(), "/"), (rpc(), "/")),
        ((rpc(), "/a"), (rpc(), "/a")),
        ((rpc(), "/a"), (rpc("other"), "/a/b")),
        ((get("/x"), "/"), (get("/x"), "/")),
        ((get("/x/{key}"), "/"), (get("/x/{name}"), "/")),
        ((get("/x/{key}"), "/"), (get("/x/special"), "/")),
        ((get("/{rest:path}"), "/x"), (get("/y/z"), "/x")),
        ((get("/y"), "/x"), (get("/x/y"), "/")),
        ((rpc(), "/a"), (get("/a/b", "POST"), "/")),
        ((rpc(), "/a"), (stream("/a/b"), "/")),
        ((rpc(), "/a"), (get("/", "POST"), "/a")),
    ],
)
def test_what_two_adapters_would_both_serve_is_a_clash(ours, theirs):
    one, other = (of(route, name=name) for name, (route, _) in (("a", ours), ("b", theirs)))
    for first, second in (((one, ours[1]), (other, theirs[1])), ((other, theirs[1]), (one, ours[1]))):
        with pytest.raises(ConfigurationError) as refused:
            mounts.check_clash(*first, [second])
        assert refused.value.code == "configuration.adapter_clash"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((rpc(), "/"), (rpc(), "/a")),
        ((rpc(), "/a"), (rpc(), "/b")),
        ((rpc(), "/a"), (rpc(), "/ab")),
        ((rpc(), "/a"), (rpc("other"), "/a")),
        ((rpc(), "/"), (get("/x", "POST"), "/")),
        ((rpc(), "/a"), (get("/a/b"), "/")),
        ((get("/x"), "/"), (get("/x", "PUT"), "/")),
        ((get("/x"), "/a"), (get("/x"), "/b")),
        ((get("/x"), "/"), (stream("/x"), "/")),
        ((get("/x/{key}"), "/"), (get("/x/{key}/y"), "/")),
    ],
)
def test_what_differs_lives_side_by_side(ours, theirs):
    mounts.check_clash(of(ours[0]), ours[1], [(of(theirs[0], name="b"), theirs[1])])


@pytest.mark.parametrize(
    ("routes", "mount"),
    [
        ((get("/coco/caller"),), "/"),
        ((get("/{a}/{b}"),), "/"),
        ((get("/x"),), "/coco"),
        ((rpc(),), "/coco"),
        ((rpc(),), "/coco/x"),
        ((get("/", "POST"),), "/"),
        ((rpc(), rpc()), "/"),
        ((get("/x/{a}"), get("/x/{b}")), "/"),
    ],
)
def test_nothing_is_served_twice_or_in_place_of_the_framework(routes, mount):
    with pytest.raises(ConfigurationError) as refused:
        mounts.check_clash(of(*routes), mount, [])
    assert refused.value.code == "configuration.adapter_clash"


@pytest.mark.parametrize("mount", ["", "quorum", "/a//b", "/a b", "/{x}", "/a?b", "//", 7, None, "/" + "a" * 200])
def test_a_mount_is_a_path(mount):
    with pytest.raises(ConfigurationError) as refused:
        mounts.mount_of(of(), {"mount": mount})
    assert refused.value.code == "configuration.adapter_mount"


def test_a_genesis_chooses_the_mount_over_the_manifest():
    assert mounts.mount_of(of(mount="/a"), {}) == "/a"
    assert mounts.mount_of(of(mount="/a"), {"mount": "/b/"}) == "/b"
    assert mounts.mount_of(of(mount="/a"), {"mount": "/"}) == "/"
    assert mounts.own_settings({"mount": "/b", "colour": 1}) == {"colour": 1}


@pytest.mark.parametrize(
    "route",
    [
        Route("r", RouteKind.QUERY, "GET", "x"),
        Route("r", RouteKind.QUERY, "", "/x"),
        Route("r", RouteKind.QUERY, "get", "/x"),
        Route("r", RouteKind.QUERY, "GET", "/x y"),
        Route("r", RouteKind.QUERY, "GET", "/x", ("X-Upper",)),
        Route("r", RouteKind.QUERY, "GET", "/x", body_bytes_max=1 << 40),
        Route("r", RouteKind.QUERY, body_bytes_max=5),
        Route("r", RouteKind.STREAM, "POST", "/x"),
    ],
)
def test_a_route_that_cannot_be_served_is_refused_when_the_adapter_is_made(route):
    with pytest.raises(ConfigurationError) as refused:
        mounts.mount_of(of(route), {})
    assert refused.value.code == "configuration.adapter_manifest"


class Adapter:
    """Of one manifest, with an early check for what it submits."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def manifest(self) -> Manifest:
        return self._manifest

    def early_checks(self) -> dict[str, str]:
        return {"send": f"check of {self._manifest.name}", "unknown": "", "ask": ""}


def test_the_door_checks_early_only_what_is_this_adapters_at_the_root():
    routes = (rpc("send", RouteKind.SUBMIT), rpc("ask"))
    nothing: Any = None
    runtimes: list[Any] = [
        SimpleNamespace(adapter=Adapter(manifest), manifest=manifest, mount=mount)
        for manifest, mount in ((of(*routes, name="q"), "/q"), (of(*routes, name="root"), "/"))
    ]
    service = Dispatcher(nothing, nothing, runtimes)
    checks: list[Any] = [service.early_checks(runtime) for runtime in runtimes]
    assert checks == [{}, {"send": "check of root"}]
    routed = service.rpc_route("send"), service.rpc_route_below("/q", "send"), service.rpc_route_below("/other", "send")
    assert [route and route[0].manifest.name for route in routed] == ["root", "q", None]
    assert service.rpc_mounts == ["/q"]


def protocols(**factories: Manifest) -> AdapterRegistry:
    sequencer: Any = SimpleNamespace(runtimes=[], subscribers=Subscribers())
    nothing: Any = None
    made: Any = {name: lambda _, m=m: Adapter(m) for name, m in factories.items()}
    return AdapterRegistry(made, sequencer, nothing, nothing)


def test_no_vote_brings_adapters_that_are_in_each_others_way():
    made = protocols(a=of(rpc(), name="a"), b=of(rpc(), name="b"), c=of(rpc(), name="c", mount="/c"))
    made.check({"a": {}})
    made.check({"a": {}, "b": {"mount": "/b"}, "c": {}})
    wrong: list[dict[str, dict[str, str]]] = [
        {"a": {}, "b": {}},
        {"a": {"mount": "/c"}, "c": {}},
        {"a": {"mount": "/coco"}},
    ]
    for together in wrong:
        with pytest.raises(GovernanceError) as refused:
            made.check(together)
        assert refused.value.code == "gov.bad_adapter"
    made._sequencer.runtimes.append(SimpleNamespace(manifest=of(rpc(), name="there"), name="there", mount="/"))  # type: ignore[arg-type]
    with pytest.raises(GovernanceError):
        made.check({"a": {}})
    made.check({"c": {}})


def test_a_genesis_with_adapters_in_each_others_way_is_refused():
    made = protocols()
    runtimes: Any = made._sequencer.runtimes
    runtimes += [
        SimpleNamespace(manifest=of(rpc(), name=name), name=name, mount=mount)
        for name, mount in (("a", "/"), ("b", "/b"))
    ]
    made.check_clashes()
    runtimes.append(SimpleNamespace(manifest=of(rpc(), name="c"), name="c", mount="/b"))
    with pytest.raises(ConfigurationError) as refused:
        made.check_clashes()
    assert refused.value.code == "configuration.adapter_clash"
