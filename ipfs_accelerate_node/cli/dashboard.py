"""`dashboard`: a link that opens the daemon's page once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from ipfs_accelerate_node.cli.options import daemon_options
from ipfs_accelerate_node.cli.render import note, print_json
from ipfs_accelerate_node.config_values import is_loopback
from ipfs_accelerate_node.errors import Unavailable

if TYPE_CHECKING:
    from ipfs_accelerate_node.cli.client import Daemon


@click.command()
@click.option(
    "--open", "open_it", is_flag=True,
    help="Open it in a browser, whose command line other users of this machine may see while it starts.",
)  # fmt: skip
@daemon_options
def dashboard(open_it: bool, daemon: Daemon, as_json: bool) -> None:
    """Show the daemon in a browser: models, pins, results, devices, peers.

    Prints a link that works once, within a minute, in a browser on the daemon's machine.
    """
    made = daemon.call("POST", "/api/dashboard")
    url = daemon.url + made["path"]
    if as_json:
        print_json({**made, "url": url})
    else:
        print(url)
        note(f"It opens once, within {made['expires_s']} s; then reload the page as long as you like.")
    if not is_loopback(urlsplit(url).hostname or ""):
        note("A browser session is for the daemon's own machine: use a loopback address, or an SSH tunnel.")
    if open_it:
        import webbrowser

        if not webbrowser.open(url):
            raise Unavailable("no browser was found; open the link in one", code="no_browser")
