"""An authority of a test's own, and what it certifies: a server on this machine and one client."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

# Not the machine's openssl.cnf, whose extensions would come on top of ours.
CONFIG = "[req]\nprompt = no\ndistinguished_name = name\n[name]\nCN = Wharfinger's tests\n"
AUTHORITY = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
SERVER = ("subjectAltName=DNS:localhost,IP:127.0.0.1", "extendedKeyUsage=serverAuth")
CLIENT = ("extendedKeyUsage=clientAuth",)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


class Certificates:
    """`folder`: where the files lie; made where it is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "openssl.cnf").write_text(CONFIG)
        self.authority = self._pair("authority", AUTHORITY)
        self.server = self._pair("server", SERVER, self.authority)
        self.client = self._pair("client", CLIENT, self.authority)

    def _pair(self, name: str, extensions: tuple[str, ...], signer: Pair | None = None) -> Pair:
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        command = ["openssl", "req", "-x509", "-config", str(self._folder / "openssl.cnf"), "-subj", f"/CN={name}"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"]
        command += ["-keyout", str(pair.key), "-out", str(pair.certificate)]
        command += [text for extension in extensions for text in ("-addext", extension)]
        if signer:
            command += ["-CA", str(signer.certificate), "-CAkey", str(signer.key)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise RuntimeError(f"openssl made no certificate for the {name}: {done.stderr.strip()}")
        return pair
