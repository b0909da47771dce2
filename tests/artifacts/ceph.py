"""Ceph's S3 gateway, a production server, from Debian's packages: one monitor, one manager, one OSD in memory.

In: an empty folder. Out: an endpoint on 127.0.0.1 with one user. Invariant: `stop` ends every process it started.
"""

import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool", "monmaptool")
INSTALL = "apt-get install -y --no-install-recommends ceph-mon ceph-mgr ceph-osd radosgw ceph-common"
SECONDS_TO_START = 120
ACCESS_KEY, SECRET_KEY = "TESTACCESSKEY", "test-secret-key-of-the-gateway"

CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {root}/keyring
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_port_min = {low}
ms_bind_port_max = {high}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 4
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 2147483648
mgr_initial_modules =
mgr_standby_modules = false
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_data = {root}/mon
osd_data = {root}/osd/$id
mgr_data = {root}/mgr
run_dir = {root}/run
admin_socket = {root}/run/$cluster-$name.asok
log_file = {root}/log/$name.log
crash_dir = {root}/log
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{rgw}
rgw_data = {root}/rgw
rgw_dns_name = 127.0.0.1
rgw_gc_max_objs = 13
"""

KEYS = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "client.rgw": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "mgr.x": ("mon", "allow *", "osd", "allow *"),
    "osd.0": ("mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"),
}


class Gateway:
    def __init__(self, root: Path) -> None:
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        assert not missing, f"this test needs {', '.join(missing)}. Install with: {INSTALL}"
        self.root = root
        self._daemons: list[subprocess.Popen[bytes]] = []
        # Sockets have short names; a folder of the tests has a long one.
        assert len(str(root)) < 70, f"the folder's name is too long for unix sockets: {root}"

    def start(self) -> str:
        for folder in ("mon", "osd/0", "mgr", "run", "log", "rgw"):
            (self.root / folder).mkdir(parents=True)
        mon2, mon1, rgw = _free_ports(3)
        low = _free_range(24)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        ports = {"mon2": mon2, "mon1": mon1, "rgw": rgw, "low": low, "high": low + 23}
        (self.root / "ceph.conf").write_text(CONFIGURATION.format(fsid=fsid, root=self.root, **ports))
        for new, (name, caps) in enumerate(KEYS.items()):
            pairs = [part for kind, cap in zip(caps[::2], caps[1::2], strict=True) for part in ("--cap", kind, cap)]
            create = ["--create-keyring"] if new == 0 else []
            self._run("ceph-authtool", *create, "--gen-key", "-n", name, *pairs, str(self.root / "keyring"))
        addresses = f"[v2:127.0.0.1:{mon2},v1:127.0.0.1:{mon1}]"
        monmap, keyring = str(self.root / "monmap"), str(self.root / "keyring")
        self._run("monmaptool", "--create", "--addv", "a", addresses, "--fsid", fsid, "--clobber", monmap)
        self._ceph("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "-i", "a")
        self._daemon("ceph-mgr", "-i", "x")
        self._ceph("ceph", "osd", "new", osd, "0")
        self._ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.rgw")
        endpoint = f"http://127.0.0.1:{rgw}"
        self._wait(endpoint)
        user = ["--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}", f"--secret={SECRET_KEY}"]
        self._ceph("radosgw-admin", "user", "create", *user)
        return endpoint

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def _daemon(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self.root / "ceph.conf"), *arguments, "-f"]
        with open(self.root / "log" / f"{program}.out", "wb") as out:
            self._daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def _ceph(self, program: str, *arguments: str) -> None:
        self._run(program, "-c", str(self.root / "ceph.conf"), *arguments)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_START)
        assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr[-2000:]}"

    def _wait(self, endpoint: str) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                urllib.request.urlopen(endpoint, timeout=5).close()
                return
            except OSError:
                for daemon in self._daemons:
                    program = daemon.args[0] if isinstance(daemon.args, list) else daemon.args
                    out = self.root / "log" / f"{program}.out"
                    assert daemon.poll() is None, f"{program} ended: {out.read_text()[-2000:]}"
                assert time.monotonic() < deadline, f"the gateway did not answer in {SECONDS_TO_START} s"
                time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _free_range(count: int) -> int:
    """The first of `count` ports in a row that are free now, below those that the system hands out by itself."""
    for low in range(6900, 32000, count):
        taken = []
        try:
            for port in range(low, low + count):
                taken.append(socket.socket())
                taken[-1].bind(("127.0.0.1", port))
            return low
        except OSError:
            continue
        finally:
            for each in taken:
                each.close()
    raise AssertionError("no free ports")
