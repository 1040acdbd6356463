"""A server from its start to its end, as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from local_server import as_form, photo, problem, wait_until_ready

WATCH = """
import os, sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        place = arguments[0 if event == "socket.getaddrinfo" else 1]
        host = place[0] if isinstance(place, tuple) else place
        if host not in (None, "localhost", "127.0.0.1", "::1") and "/" not in str(host):
            note(f"{event} {host}")

def note(what):
    with open(os.environ["WATCHED"], "a") as file:
        file.write(f"{os.getpid()} {what}\\n")

sys.addaudithook(hook)
note("begins")
"""
"""Python runs it at the start of every process: writes down which other machines are looked up or connected to."""


def test_a_server_from_start_to_end(tiny_model, tmp_path):
    """Loading, another name, overload, slow and lost clients, dead processes, SIGTERM: one after the other.

    All the while it asks no other machine for anything.
    """
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "WATCHED": str(tmp_path / "watched.txt")}
    command = [sys.executable, "-m", "refseg", "serve", "--model", str(tiny_model), "--port", "0"]
    running = subprocess.Popen(
        [*command, "--queue", "4", "--seconds", "8"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        server = running.stdout.readline().strip()
        not_ready_yet(server)
        wait_until_ready(server)
        another_name(server)
        overload(server)
        slow_upload(server)
        client_gone(server)
        dead_process(server)
        stopped_process(server)
        death_while_idle_and_again_while_loading(server, psutil.Process(running.pid))
        accepted_is_finished(server, running)
    finally:
        running.kill()
        running.stdout.close()
    asks_nobody(tmp_path / "watched.txt", environment)


def asks_nobody(record, environment):
    lines = record.read_text().splitlines()
    assert len([line for line in lines if line.endswith(" begins")]) >= 3, "the server, its process, its successor"
    assert [line for line in lines if not line.endswith(" begins")] == []
    subprocess.run([sys.executable, "-c", "import socket; socket.getaddrinfo('x.invalid', 1)"], env=environment)
    assert record.read_text().endswith(" socket.getaddrinfo x.invalid\n"), "it would have been noticed"


def process_of(server) -> psutil.Process:
    (model,) = httpx.get(f"{server}/v1/models").json()["models"]
    return psutil.Process(model["process"])


def not_ready_yet(server):
    assert httpx.get(f"{server}/healthz", timeout=30).status_code == 200
    for response in (
        httpx.get(f"{server}/readyz"),
        httpx.get(f"{server}/v1/models"),
        as_form(server, photo(), ["the dog"]),
    ):
        assert "loaded" in problem(response, 503) and int(response.headers["retry-after"]) > 0


def another_name(server):
    """A web page that points a name of its own at this server gets nothing."""
    for host in ("example.org", "example.org:8000", "localhost.example.org", "[", ""):
        for path in ("healthz", "v1/models", ""):
            assert "REFSEG_HOSTS" in problem(httpx.get(f"{server}/{path}", headers={"Host": host}), 421)
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:8000"):
        assert httpx.get(f"{server}/healthz", headers={"Host": host}).status_code == 200


def overload(server):
    """While the model is held up, four wait, the others are refused at once, and those four are answered."""
    process = process_of(server)
    with ThreadPoolExecutor(12) as pool:
        process.suspend()
        start = time.monotonic()
        asked = [pool.submit(as_form, server, photo(1), ["the dog"]) for _ in range(12)]
        while sum(future.done() for future in asked) < 8 and time.monotonic() - start < 6:
            time.sleep(0.02)
        refused = [future.result() for future in asked if future.done()]
        process.resume()
        statuses = sorted(future.result().status_code for future in asked)
    assert len(refused) == 8 and time.monotonic() - start < 8
    for response in refused:
        assert "later" in problem(response, 503) and int(response.headers["retry-after"]) > 0
    assert statuses == [200] * 4 + [503] * 8


def half_a_request(server):
    host, port = server.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    connection.sendall(b"Content-Length: 100\r\n\r\n{")
    return connection


def slow_upload(server):
    with half_a_request(server) as connection:
        connection.settimeout(12)
        assert b" 408 " in connection.recv(4096)


def client_gone(server):
    for _ in range(6):
        half_a_request(server).close()
    deadline = time.monotonic() + 5
    while "refseg_requests_inside 0.0" not in httpx.get(f"{server}/metrics").text:
        assert time.monotonic() < deadline
    assert as_form(server, photo(1), ["the dog"]).status_code == 200


def dead_process(server):
    """Its request is answered with an error, the next one by its successor."""
    process = process_of(server)
    with ThreadPoolExecutor(1) as pool:
        process.suspend()
        asked = pool.submit(as_form, server, photo(1), ["the dog"])
        time.sleep(0.5)
        process.kill()
        response = asked.result(5)
    assert "died" in problem(response, 503) and int(response.headers["retry-after"]) > 0
    wait_until_ready(server)
    assert process_of(server) != process
    assert as_form(server, photo(1), ["the dog"]).status_code == 200
    assert "refseg_workers_replaced_total 1.0" in httpx.get(f"{server}/metrics").text


def stopped_process(server):
    process = process_of(server)
    process.suspend()
    assert problem(httpx.get(f"{server}/readyz", timeout=30), 503)
    process.resume()
    wait_until_ready(server)
    assert process_of(server) == process


def death_while_idle_and_again_while_loading(server, running):
    """Nothing is asked meanwhile; the server replaces both and does not end."""
    process = process_of(server)
    process.kill()
    deadline, successors = time.monotonic() + 30, []
    while not successors:
        assert time.monotonic() < deadline, "nobody noticed"
        successors = [child for child in running.children() if child != process and "spawn_main" in str(command(child))]
    assert problem(httpx.get(f"{server}/readyz", timeout=30), 503)
    successors[0].kill()
    wait_until_ready(server)
    assert process_of(server) not in (process, successors[0])
    assert as_form(server, photo(1), ["the dog"]).status_code == 200
    assert "refseg_workers_replaced_total 2.0" in httpx.get(f"{server}/metrics").text


def command(process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def accepted_is_finished(server, running):
    process = process_of(server)
    with ThreadPoolExecutor(4) as pool:
        process.suspend()
        asked = [pool.submit(as_form, server, photo(seed), ["the dog"]) for seed in range(4)]
        time.sleep(0.7)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server}/healthz")
        process.resume()
        assert [future.result().status_code for future in asked] == [200] * 4
    assert running.wait(10) == 0
    assert not psutil.wait_procs([process], timeout=5)[1]


def test_a_killed_server_leaves_no_process_behind(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from functools import partial\n"
        "from refseg.serve import Limits, worker\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'))\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    pool.submit(worker.start, partial(time.sleep, 60), '', Limits()).result()\n"
    )
    running = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(running.stdout.readline()))
    time.sleep(3)
    assert worker.is_running()
    running.kill()
    running.wait()
    running.stdout.close()
    assert not psutil.wait_procs([worker], timeout=5)[1]
