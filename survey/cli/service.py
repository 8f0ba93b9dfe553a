"""Commands that stay and answer: serve."""

from __future__ import annotations

from pathlib import Path

import click

from survey.cli._group import main


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--host", default="127.0.0.1", show_default=True, help="A loopback address.")
@click.option("--port", type=click.IntRange(0, 65535), default=8788, show_default=True)
def serve(folder: Path, host: str, port: int) -> None:
    """Answer requests about the fields in a folder over HTTP, on this machine only.

    GET /fields, /fields/NAME/status, /fields/NAME/events, /fields/NAME/lightcurve?event=E00001 (or ra and
    dec, x and y), /fields/NAME/report.html; POST /fields/NAME/run and /fields/NAME/cancel, with the token.
    Reading needs none: whoever is logged in on this machine reads the fields through it, whatever their
    files' modes say.

    \b
    Example:
      survey serve fields
      curl -X POST -H "Authorization: Bearer TOKEN" http://127.0.0.1:8788/fields/bulge/run
    """
    from survey.service.server import Service

    with Service(folder, host, port) as server:
        click.echo(f"{server.url}/fields  token {server.token}", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
