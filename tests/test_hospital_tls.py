"""tools/hospital: TLS with certificates on both sides, and clients that never say a word."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="pip install -e '.[pacs]'")

from pacs_world import receiving, send, site_of, write_film

from hospital.settings import Site

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes certificates")


def make_authority(folder: Path, name: str) -> Path:
    """NAME.pem and NAME.key of an authority."""
    folder.mkdir(exist_ok=True)
    openssl("req", "-x509", *_NEW, "-subj", f"/CN={name}", "-days", "2", *_files(folder / name))
    return folder / f"{name}.pem"


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _files(stem: Path) -> tuple[str, ...]:
    return "-keyout", f"{stem}.key", "-out", f"{stem}.pem"


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)


def make_certificate(authority: Path, name: str) -> tuple[str, str]:
    """A certificate and key that the authority has signed."""
    stem = authority.parent / name
    request = f"{stem}.csr"
    openssl("req", *_NEW, "-subj", f"/CN={name}", "-keyout", f"{stem}.key", "-out", request)
    signing = ("-CA", str(authority), "-CAkey", str(authority.with_suffix(".key")))
    openssl("x509", "-req", "-in", request, *signing, "-days", "2", "-out", f"{stem}.pem")
    return f"{stem}.pem", f"{stem}.key"


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("papers")
    own, foreign = make_authority(folder, "own"), make_authority(folder, "foreign")
    return {
        "ours": make_certificate(own, "ours"),
        "peer": make_certificate(own, "peer"),
        "foreign": make_certificate(foreign, "stranger"),
        "authority": (str(own), ""),
    }


@pytest.fixture
def site(tmp_path: Path, papers: dict[str, tuple[str, str]]) -> Site:
    certificate, key = papers["ours"]
    told = dict(certificate=certificate, key=key, authorities=papers["authority"][0])
    return site_of(tmp_path, **told)


def client(papers: dict[str, tuple[str, str]], who: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(papers["authority"][0])
    if who:
        context.load_cert_chain(*papers[who])
    return context


def test_only_a_peer_with_a_certificate_of_ours_gets_in(
    site: Site, papers: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    path = write_film(tmp_path / "a.dcm")
    with receiving(site) as door:
        for who in ("foreign", ""):
            assert send(door.port, path, tls_args=(client(papers, who), None)) == []
        assert send(door.port, path) == []  # without TLS
        old = client(papers, "peer")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        assert send(door.port, path, tls_args=(old, None)) == []
        assert not list(site.folders.films.iterdir())
        assert send(door.port, path, tls_args=(client(papers, "peer"), None)) == [0x0000]


def test_silent_clients_hold_up_no_film(
    site: Site, papers: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    path = write_film(tmp_path / "a.dcm")
    with receiving(site) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(30)]
        begun = time.monotonic()
        assert send(door.port, path, tls_args=(client(papers, "peer"), None)) == [0x0000]
        assert time.monotonic() - begun < 1.0
        for line in silent:
            line.close()


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    paper = tmp_path / "paper.pem"
    paper.write_text("nothing")
    site = site_of(tmp_path, certificate=str(paper), key=str(paper), authorities=str(paper))
    with pytest.raises(ValueError, match=r"PEM files.*paper\.pem"):
        site.tls_context(server=True)
