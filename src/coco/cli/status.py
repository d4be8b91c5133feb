"""``coco status``: a network as one of its nodes sees it, once or as a view that renews itself on a terminal."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from coco import limits
from coco.cli.node import status
from coco.cli.output import console
from coco.host.hints import MAJORITY_LOST

_EVERY_S = 1.0
#: Stage, the number of what passed it, and what that is.
_STAGES = (
    ("check_us", "checked", "transaction"),
    ("execute_us", "batches", "batch"),
    ("seal_us", "batches", "batch"),
    ("sign_us", "signatures", "signature"),
    ("commit_us", "commits", "batch"),
)


def view(found: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> Group:
    """What a person reads: the network, its nodes, and what this node did since ``before``."""
    node, network = found["node"], found["network"]
    health = "[green]ready[/]" if any(row["primary"] for row in network["nodes"].values()) else "[red]no primary[/]"
    head = Text.from_markup(
        f"[bold]{network['network']}[/]  {network['status']}  {health}  view {network['view']}  {network['committed']}"
    )
    nodes = Table(box=None, pad_edge=False)
    for column in ("engine", "status", "role", "address", "node"):
        nodes.add_column(column, style="dim" if column == "node" else "")
    for name, row in network["nodes"].items():
        role = "primary" if row["primary"] else "votes" if row["votes"] else ""
        here = " (this one)" if name == node["node_id"] else ""
        nodes.add_row(str(row["engine"]), row["status"], role, row["address"], name[:16] + here)
    lost = [Text(f"the majority is lost: {why}", style="red"), Text()] if (why := majority_lost(found)) else []
    return Group(head, nodes, Text(), *lost, *_activity(node, before["node"] if before else None, seconds))


def majority_lost(found: dict[str, Any]) -> str:
    """What it means that a node has known of no primary for so long, and what to do; nothing if it has not."""
    network = found["network"]
    if network.get("without_primary_s", 0) < limits.MAJORITY_LOST_SECONDS:
        return ""
    voters = sum(1 for row in network["nodes"].values() if row["votes"])
    return (
        f"{voters} nodes vote, {voters // 2 + 1} must agree, and for {network['without_primary_s']} s {MAJORITY_LOST}"
    )


def _activity(node: dict[str, Any], before: dict[str, Any] | None, seconds: float) -> list[Text | Table]:
    now = {**node["counters"], **node["stages"]}
    then = {**before["counters"], **before["stages"]} if before else dict.fromkeys(now, 0)
    change = {name: value - then.get(name, 0) for name, value in now.items()}
    lines: list[Text | Table] = []
    if before:
        rates = {name: change[name] / seconds for name in ("transactions", "batches", "signatures")}
        lines.append(Text("  ".join(f"{rate:,.0f} {name}/s" for name, rate in rates.items())))
    lines.append(Text(f"refused: {now['refused']:,}   (what waits: coco_pooled and coco_held of /metrics)"))
    stages = Table(box=None, pad_edge=False)
    for column in ("stage", "each", "of a"):
        stages.add_column(column, justify="right" if column == "each" else "left")
    for stage, count, what in _STAGES:
        passed = change.get(count, 0)
        each = f"{change.get(stage, 0) / passed / 1000:.2f} ms" if passed else "-"
        stages.add_row(stage.removesuffix("_us"), each, what)
    return [*lines, stages]


async def watch(host: str, port: int, service: Path) -> None:
    """Renew the view every second until the person ends it.

    Raises:
        CocoError: the node cannot be reached any more.
    """
    before: dict[str, Any] | None = None
    at = time.monotonic()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            found = await status(host, port, service)
            now = time.monotonic()
            live.update(view(found, before, max(now - at, 1e-3)), refresh=True)
            before, at = found, now
            await asyncio.sleep(_EVERY_S)
