"""What an audit found, as one page for people: it loads nothing, and shows whatever a ledger says as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

#: Characters of one value; a proposal may have a megabyte of rules in it.
_SHOWN_MAX: Final = 400
#: Rows of one table.
_ROWS_MAX: Final = 20_000
_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #1a1a1a }
table { border-collapse: collapse; width: 100%; margin: 1em 0 }
th, td { border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } td:first-child { white-space: nowrap }
.good { background: #e6f4ea; padding: .8em 1em } .bad { background: #fde7e9; padding: .8em 1em }
"""


def html(found: Mapping[str, Any], ledger: str, service: str = "") -> str:
    """The page.

    Args:
        found: as ``coco ledger audit --json`` gives it.
        ledger: what was read.
        service: fingerprint of the service that was expected; empty: none was.
    """
    violations, events = found["violations"], found["events"]
    if violations:
        verdict = f'<p class="bad"><strong>{len(violations)} steps are illegal.</strong> Each is named below.</p>'
    else:
        verdict = '<p class="good"><strong>Every step is legal.</strong></p>'
    facts = [
        ("ledger", ledger),
        ("service expected", service or "none: whoever rewrites a whole ledger goes unnoticed"),
        ("committed up to", found["committed"]),
        ("signed up to", found["last_signed"]),
        ("behind that, without signature", found["unsigned"]),
        (
            "surely not cut before",
            found.get("cut_excluded_up_to") or "nothing was given to compare (--expect, --receipt)",
        ),
        ("signatures", found["signatures"]),
        ("root", found["root"]),
    ]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Audit of a ledger</title><style>{_STYLE}</style></head><body>",
        "<h1>Audit of a ledger</h1>",
        verdict,
        _table(("what", "found"), facts),
    ]
    if violations:
        rows = ((one["seqno"], one.get("step", ""), one["why"]) for one in violations)
        parts += ["<h2>Illegal</h2>", _table(("entry", "step", "why"), rows)]
    parts += ["<h2>Entries</h2>", _table(("step", "entries"), sorted(found.get("steps", {}).items()))]
    told = ((one["seqno"], one["what"], _more(one), one.get("rules", "")[:16]) for one in events)
    parts += ["<h2>What was done</h2>", _table(("entry", "what", "by whom, about what", "rules in force"), told)]
    return "\n".join([*parts, "</body></html>", ""])


def _more(event: Mapping[str, Any]) -> str:
    skipped = ("seqno", "what", "rules")
    return "; ".join(f"{name}: {value}" for name, value in event.items() if name not in skipped)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for number, row in enumerate(rows):
        if number == _ROWS_MAX:
            lines.append(f"<tr><td colspan=9>more than {_ROWS_MAX}: see --json</td></tr>")
            break
        lines.append("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _cell(value: Any) -> str:
    text = str(value)
    return escape(text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}…")
