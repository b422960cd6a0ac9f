"""`byzflow ledger`: are the recorded rounds true?"""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group(name="ledger")
def command() -> None:
    """What nodes have written down about their rounds."""


@command.command(short_help="Compute recorded outputs again, and compare bits.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--inputs", type=click.Path(path_type=Path), help="Folder of the kept arrays. [default: DIR/inputs]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(folder: Path, inputs: Path | None, as_json: bool) -> None:
    """Compute every output in DIR/*.jsonl again and compare bits; exit code 1 if something differs."""
    from byzflow import ledger
    from byzflow.errors import ByzflowError

    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise ByzflowError(f"{folder} holds no ledger: expected files NODE.jsonl, as byzflow.ledger.Ledger writes them")
    if inputs is not None and not inputs.is_dir():
        raise ByzflowError(f"--inputs: {inputs} is no folder: give the one that the ledgers' keep_inputs= named")
    faults = [fault for file in files for fault in ledger.check(file, inputs or folder / ledger.INPUTS)]
    if as_json:
        rows = [{"node": fault.node, "round": fault.round, "what": fault.what} for fault in faults]
        click.echo(json.dumps({"ledgers": len(files), "faults": rows}, indent=2))
    else:
        for fault in faults:
            click.echo(f"node {fault.node}, round {'?' if fault.round is None else fault.round}: {fault.what}")
        if not faults:
            count = sum(1 for file in files for _ in ledger.entries(file))
            true = "every output is what its operator makes of its inputs" if count else "nothing was recorded yet"
            click.echo(f"{len(files)} ledgers, {count} rounds: {true}")
    if faults:
        raise SystemExit(1)
