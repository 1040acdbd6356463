"""`refseg serve`: the HTTP server and its web page."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Annotated

import typer

from refseg.cli.arguments import SHIPPED, Device, Model, load_model
from refseg.errors import RefsegError


def serve(
    model: Model = SHIPPED,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")] = 8000,
    device: Device = "auto",
    max_upload: Annotated[float, typer.Option(help="The largest request, in MB.")] = 20,
    max_pixels: Annotated[float, typer.Option(max=100, help="The largest photograph, in millions of pixels.")] = 50,
    max_expressions: Annotated[int, typer.Option(help="The most expressions of one request.")] = 32,
    queue: Annotated[int, typer.Option(help="The most requests at one time; the next is told to come later.")] = 64,
    seconds: Annotated[float, typer.Option(max=3600, help="The longest time of one request.")] = 30,
    cache_photos: Annotated[int, typer.Option(help="The most encoded photographs that are kept.")] = 64,
    cache_memory: Annotated[float, typer.Option(help="The most memory that they fill, in MB.")] = 512,
    label_studio: Annotated[
        Path | None,
        typer.Option(help="Also be Label Studio's ML backend, for photographs in this folder.", show_default=False),
    ] = None,
) -> None:
    """Serves segmentation over HTTP, and a web page to try it.

    \b
    refseg serve
    refseg serve --model runs/mine --port 9000
    curl -F photo=@street.jpg -F expressions="the red bag" localhost:8000/v1/segment
    refseg serve --label-studio photos             connect http://127.0.0.1:8000/label-studio

    It ends with Ctrl-C or SIGTERM, after it has answered what it accepted.
    """
    from functools import partial

    try:
        import uvicorn

        from refseg.serve import Limits, create_app
        from refseg.serve.label_studio import add_label_studio
    except ImportError as fault:
        raise RefsegError(f'the server needs {fault.name}; pip install "refseg[serve]"') from fault

    limits = Limits(
        upload_bytes=max_upload * 1_000_000,
        pixels=max_pixels * 1_000_000,
        expressions=max_expressions,
        queue=queue,
        seconds=seconds,
        cached_photos=cache_photos,
        cached_bytes=cache_memory * 1_000_000,
    )
    if label_studio is not None and not label_studio.is_dir():
        raise RefsegError(f"there is no folder {label_studio}; give the folder of Label Studio's files")
    app = create_app(partial(load_model, model, device), limits, name=model)
    if label_studio is not None:
        add_label_studio(app, label_studio)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(seconds) + 1,
        )
    )
    app.state.queue.on_fault = partial(setattr, server, "should_exit", True)
    listening = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{shown}:{listening.getsockname()[1]}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises it once more when all is answered
    with listening:
        server.run(sockets=[listening])
    if app.state.queue.fault is not None:
        raise app.state.queue.fault


def _listen(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
        # asyncio does this for sockets of its own alone; else an answer's body waits 40 ms for its head to arrive.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as fault:
        raise RefsegError(
            f"cannot listen on {host} port {port} ({fault.strerror or fault}); choose another with --host or --port"
        ) from fault
