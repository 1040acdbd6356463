"""`refseg serve`: the HTTP server and its web page."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.arguments import SHIPPED, Device, Model, Threads, load_model
from refseg.errors import RefsegError

_HOSTS = ("localhost", "127.0.0.1", "::1")


def serve(
    model: Model = SHIPPED,
    host: Annotated[str, typer.Option(help="The address to listen on. 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on. 0 takes a free one.")] = 8000,
    device: Device = "auto",
    threads: Threads = None,
    max_upload: Annotated[
        float | None, typer.Option(help="The largest request, in MB. By default 20.", show_default=False)
    ] = None,
    max_pixels: Annotated[
        float | None,
        typer.Option(max=100, help="The largest photograph, in millions of pixels. By default 50.", show_default=False),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(
            help="The most requests at one time. The next must come later. By default 64.", show_default=False
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(max=3600, help="The longest time for one request, in seconds. By default 30.", show_default=False),
    ] = None,
    label_studio: Annotated[
        Path | None,
        typer.Option(help="Also serve Label Studio, as its ML backend for this folder of photographs."),
    ] = None,
) -> None:
    """Serves segmentation over HTTP, with a web page to try it.

    \b
    refseg serve
    refseg serve --model runs/mine --port 9000
    refseg serve --label-studio photos

    Then open the printed address, or ask from a shell:

    \b
    curl -F photo=@street.jpg -F expressions="the red bag" \\
        localhost:8000/v1/segment

    Label Studio connects to http://127.0.0.1:8000/label-studio.
    More limits are environment variables, such as REFSEG_EXPRESSIONS; docs/serving.md lists them.

    Ctrl-C or SIGTERM ends the server after it has answered what it accepted.
    """
    from functools import partial

    try:
        from refseg.serve import Limits, create_app
        from refseg.serve.connection import http_server, listen
    except ImportError as fault:
        raise RefsegError(f'the server needs {fault.name}; pip install "refseg[serve]"') from fault

    limits = Limits.from_environment(
        upload_bytes=None if max_upload is None else max_upload * 1_000_000,
        pixels=None if max_pixels is None else max_pixels * 1_000_000,
        queue=queue,
        seconds=seconds,
    )
    if label_studio is not None and not label_studio.is_dir():
        raise RefsegError(f"there is no folder {label_studio}; give the folder of Label Studio's files")

    def stop() -> None:
        server.should_exit = True

    load = partial(load_model, model, device, threads=threads)
    app = create_app(load, limits, name=model, label_studio=label_studio, hosts=_allowed_hosts(host), on_fault=stop)
    server = http_server(app, limits.seconds)
    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{shown}:{listening.getsockname()[1]}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises it once more when all is answered
    with listening:
        server.run(sockets=[listening])
    if app.state.queue.fault is not None:
        raise app.state.queue.fault


def _allowed_hosts(host: str) -> set[str]:
    """The names by which requests may call the server; none means any.

    A server on this machine's own address answers only to that machine's names. Otherwise any web page could point a
    name of its own at it and read the answers.
    """
    named = {name.strip().lower() for name in os.environ.get("REFSEG_HOSTS", "").split(",")} - {""}
    return named | {*_HOSTS, host.lower()} if named or host in _HOSTS else set()
