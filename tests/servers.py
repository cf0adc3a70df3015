"""Servers that a shared study needs, real ones on this machine: PostgreSQL, Optuna's proxy, a bucket."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PROXY = """
import sys, warnings
warnings.simplefilter("ignore")
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@contextmanager
def serving_postgres(folder: Path, address: str = "") -> Iterator[str]:
    """URL of a server of its own, in Debian's package; it does not run as root.

    It listens on a socket in `folder`, which is made and removed, or at an `address` of this machine.
    """
    if not POSTGRES:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="pip install 'bench[postgres]'")
    folder.mkdir()
    owner = "postgres" if os.geteuid() == 0 else None
    if owner:
        shutil.chown(folder, owner)

    def call(program: str, *arguments: str) -> None:
        command = [str(POSTGRES[-1] / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=owner, cwd="/")

    call("initdb", "--username=bench", "--auth=trust")
    if address:
        (folder / "data" / "pg_hba.conf").write_text("local all all trust\nhost all all samenet trust\n")
    options = f"-c listen_addresses={address} -c unix_socket_directories={folder}"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield f"postgresql://bench@{address}/postgres" + ("" if address else f"?host={folder}")
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@contextmanager
def serving_proxy(file: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """URL of Optuna's proxy of a study in an SQLite file, and its process."""
    pytest.importorskip("grpc", reason="pip install 'bench[grpc]'")
    from optuna.storages import GrpcStorageProxy

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", PROXY, f"sqlite:///{file}", str(port)])
    try:
        with pytest.warns(match="GrpcStorageProxy is experimental"):
            asking = GrpcStorageProxy(host="127.0.0.1", port=port)
        asking.wait_server_ready(timeout=120)
        asking.close()
        yield f"grpc://127.0.0.1:{port}", server
    finally:
        server.kill()
        server.wait()


@contextmanager
def serving_bucket(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket in a stand-in of S3; the environment says where that is, to child processes too."""
    boto3 = pytest.importorskip("boto3", reason="pip install 'bench[s3]'")
    moto = pytest.importorskip("moto.server", reason="pip install 'bench[test]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        patch.setenv(name, "us-east-1")
    try:
        boto3.client("s3").create_bucket(Bucket="trained")
        yield "s3://trained"
    finally:
        server.stop()


@contextmanager
def apart() -> Iterator[tuple[str, str, str]]:
    """Two network namespaces, as two machines are, and the address of this one that both reach.

    A command runs in one of them with `ip netns exec NAME`. Skips where none can be made.
    """
    names = [f"bench{os.getpid()}{end}" for end in "ab"]
    try:
        try:
            for number, name in enumerate(names, start=1):
                connect(name, f"10.213.{number}")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces can be made here: {error}")
        yield names[0], names[1], "10.213.1.1"
    finally:
        for name in names:
            with suppress(OSError, subprocess.CalledProcessError):
                call_ip("netns", "delete", name)


def connect(name: str, network: str) -> None:
    """Make a namespace, .2 of that network, with a cable to .1 here."""
    call_ip("netns", "add", name)
    call_ip("link", "add", f"{name}h", "type", "veth", "peer", "name", name, "netns", name)
    call_ip("address", "add", f"{network}.1/24", "dev", f"{name}h")
    call_ip("link", "set", f"{name}h", "up")
    call_ip("-n", name, "address", "add", f"{network}.2/24", "dev", name)
    call_ip("-n", name, "link", "set", name, "up")
    call_ip("-n", name, "link", "set", "lo", "up")
    call_ip("-n", name, "route", "add", "default", "via", f"{network}.1")


def call_ip(*arguments: str) -> None:
    """Of Debian's iproute2."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
