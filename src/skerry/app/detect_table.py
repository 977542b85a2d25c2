"""What ``skerry detect`` prints of a table: what was read, what was flagged and why, and how good the ranking is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skerry.core.findings import Findings

__all__ = ["print_findings"]

COLUMNS = 12  # whose treatment is told


def print_findings(findings: Findings, explain: bool) -> None:
    """Print findings for a person; lines of text are left to the terminal to wrap, so that a pipe gets them whole."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)

    def line(text: str, style: str = "") -> None:
        console.print(Text(text), style=style, soft_wrap=True)

    shown = findings.flagged
    treated = [c for c in findings.columns if c["kind"] != "numeric" or c["note"]]
    line(f"{findings.source}: {findings.rows:,} rows, {len(findings.columns)} columns -> {findings.features} features")
    for c in treated[:COLUMNS]:
        line(f"  {c['column']}: {c['kind']}, {c['action']}" + (f"; {c['note']}" if c["note"] else ""), "dim")
    if len(treated) > COLUMNS:
        line(f"  and {len(treated) - COLUMNS} more columns (all are in the report)", "dim")
    share = findings.n_flagged / findings.rows
    line(
        f"{findings.n_flagged:,} flagged ({share:.2%}) by {findings.detector}, threshold "
        f"{findings.threshold_rule} = {findings.threshold:.4g}, {findings.seconds:.2f} s",
        "bold",
    )
    if shown:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("row", "score", "p"):
            table.add_column(name, justify="right", no_wrap=True)
        if explain:
            table.add_column("why", overflow="fold")
        for f in shown:
            cells = [f"{f.row}", f"{f.score:.4g}", f"{f.p_value:.2g}"]
            table.add_row(*cells, *([Text("\n".join(f.reasons))] if explain else []))
        console.print(table)
        if len(shown) < findings.n_flagged:
            line(f"... and {findings.n_flagged - len(shown):,} more", "dim")
    if findings.metrics:
        m = findings.metrics
        told = f"AUROC {m['auroc']:.4f}   average precision {m['average_precision']:.4f}"
        if findings.n_flagged:
            told += f"   precision among the {findings.n_flagged:,} flagged {m['precision_at_flagged']:.4f}"
        line(told)
    for note in findings.notes:
        line(f"note: {note}", "dim")
