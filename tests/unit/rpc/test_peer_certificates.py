"""Certificates for nodes, as issued and as taken from files."""

import datetime
import ssl
import stat
from types import SimpleNamespace

import pytest
from cryptography import x509

from tests.peer_transports import certificates, files
from vecdb.core.errors import InvalidArgument
from vecdb.rpc.peer_certificates import dns_names, issue, open_peer_certificates
from vecdb.runtime.clock import SystemClock


def load(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_node_is_issued_a_certificate_with_its_name_and_its_hosts(tmp_path):
    written = issue(tmp_path, "prod", ["n1", "n2"], {"n1": ["db1.example", "10.0.0.7", "[::1]"]})
    assert sorted(path.name for path in written) == ["ca.key", "ca.pem", "n1.key", "n1.pem", "n2.key", "n2.pem"]
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    assert dns_names((tmp_path / "n1.pem").read_bytes()) == ["n1.prod.vecdb.internal", "db1.example"]
    found = load(tmp_path / "n1.pem").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one) for one in found.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    authority = load(tmp_path / "ca.pem")
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    now = datetime.datetime.now(datetime.UTC)
    for node in ("n1", "n2"):
        made = load(tmp_path / f"{node}.pem")
        made.verify_directly_issued_by(authority)
        assert made.not_valid_before_utc < now < made.not_valid_after_utc < authority.not_valid_after_utc
        assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / f"{node}.pem", tmp_path / f"{node}.key")


def test_nodes_are_added_under_the_same_authority_and_renewed_when_asked(tmp_path):
    issue(tmp_path, "prod", ["n1"])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert [path.name for path in issue(tmp_path, "prod", ["n1", "n2"])] == ["n2.key", "n2.pem"]
    assert all((tmp_path / name).read_bytes() == data for name, data in before.items())
    assert [path.name for path in issue(tmp_path, "prod", ["n1"], renew=True)] == ["n1.key", "n1.pem"]
    assert (tmp_path / "n1.pem").read_bytes() != before["n1.pem"]
    load(tmp_path / "n1.pem").verify_directly_issued_by(load(tmp_path / "ca.pem"))


@pytest.mark.parametrize(("argument", "given"), [
    ("cluster", {"cluster": "Prod"}), ("node", {"nodes": ["n1", "a.b"]}), ("node", {"nodes": ["../n1"]}),
    ("hosts", {"hosts": {"n9": []}}), ("hosts", {"hosts": {"n1": ["schön.example"]}})])
def test_what_cannot_be_issued_writes_nothing(tmp_path, argument, given):
    with pytest.raises(InvalidArgument) as refused:
        issue(tmp_path / "new", **{"cluster": "prod", "nodes": ["n1"], **given})
    assert refused.value.argument == argument
    assert not (tmp_path / "new").exists()


def test_a_folder_with_another_authority_is_left_alone(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    issue(one, "prod", ["n1"])
    issue(other, "prod", ["n1"])
    with pytest.raises(InvalidArgument, match="another cluster"):
        issue(one, "test", ["n2"])
    (one / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(InvalidArgument, match="does not belong"):
        issue(one, "prod", ["n2"])
    (one / "ca.key").unlink()
    with pytest.raises(InvalidArgument, match="cannot be used"):
        issue(one, "prod", ["n2"])
    (one / "ca.key").write_bytes(b"nonsense")
    with pytest.raises(InvalidArgument, match="cannot be used"):
        issue(one, "prod", ["n2"])
    assert not (one / "n2.pem").exists()


def test_a_nodes_files_are_looked_at_before_they_are_used(tmp_path):
    issue(tmp_path, "prod", ["n1", "n2"])
    assert certificates(tmp_path, "n1").mutual
    nothing = SimpleNamespace(name="prod", cert_file=None, key_file=None, ca_file=None)
    assert open_peer_certificates(nothing, "n1", SystemClock()) is None
    for name in ("cert_file", "key_file", "ca_file"):
        some = files(tmp_path, "n1")
        setattr(some, name, None)
        with pytest.raises(InvalidArgument) as refused:
            open_peer_certificates(some, "n1", SystemClock())
        assert refused.value.argument == f"settings.cluster.{name}"
        setattr(some, name, tmp_path / "absent.pem")
        with pytest.raises(InvalidArgument) as refused:
            open_peer_certificates(some, "n1", SystemClock())
        assert refused.value.argument == f"settings.cluster.{name}"
    for some, node, whose in ((files(tmp_path, "n2"), "n1", "'n1' of cluster 'prod': it is that of 'n2' of"),
                              (files(tmp_path, "n1", "test"), "n1", "'n1' of cluster 'test': it is that of 'n1' of")):
        with pytest.raises(InvalidArgument, match=f"no certificate of this node, {whose} cluster 'prod'"):
            open_peer_certificates(some, node, SystemClock())
    strange = files(tmp_path, "n1")
    strange.cert_file, strange.key_file = tmp_path / "ca.pem", tmp_path / "ca.key"
    with pytest.raises(InvalidArgument, match="it has no DNS name"):
        open_peer_certificates(strange, "n1", SystemClock())
    assert dns_names((tmp_path / "ca.pem").read_bytes()) == dns_names(b"nonsense") == []


def test_another_nodes_certificate_is_not_taken_when_files_change(tmp_path):
    issue(tmp_path, "prod", ["n1", "n2"])
    told = []
    opened = open_peer_certificates(files(tmp_path, "n1"), "n1", SystemClock(),
                                    lambda level, event, **fields: told.append(event))
    for suffix in ("pem", "key"):
        (tmp_path / f"n1.{suffix}").write_bytes((tmp_path / f"n2.{suffix}").read_bytes())
    assert not opened.refresh()
    assert (opened.generation, told) == (1, ["certificates_refused"])
    issue(tmp_path, "prod", ["n1"], renew=True)
    assert opened.refresh()
    assert (opened.generation, told[-1]) == (2, "certificates_loaded")
