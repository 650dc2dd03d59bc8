"""Addresses are paths, objects are read and written whole, and refusals are one line."""

from __future__ import annotations

import copy
import pickle
import stat
import time
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing import buckets, paths
from modality_forcing.buckets import BucketPath
from modality_forcing.errors import StorageFailed, UserError

google_auth = pytest.importorskip("google.auth")  # of the extra gcs

ADDRESS = BucketPath("gs://bucket/a")


def test_address_is_a_path_for_pathlib_and_for_orbax():
    assert isinstance(ADDRESS, Path) and isinstance(ADDRESS, epath.Path)
    assert str(ADDRESS / "b" / "c.txt") == "gs://bucket/a/b/c.txt"
    assert (ADDRESS / "c.txt").with_suffix(".x").name == "c.x"
    assert str((ADDRESS / "b").parent) == "gs://bucket/a"
    copied = pickle.loads(pickle.dumps(ADDRESS))  # noqa: S301  # as loader processes do
    for same in (epath.Path(ADDRESS), copy.deepcopy(ADDRESS), copied):
        assert same == ADDRESS and str(same) == "gs://bucket/a"


def test_absolute_and_resolved_addresses_stay_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ADDRESS.absolute() == ADDRESS.expanduser() == ADDRESS.resolve() == ADDRESS
    assert str((ADDRESS / ".." / "b").resolve()) == "gs://bucket/b"
    assert not ADDRESS.is_symlink()


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\n"), min_size=1, max_size=8)


@settings(max_examples=30)
@given(st.lists(names.filter(lambda name: name not in (".", "..")), max_size=4))
def test_any_spelling_of_an_address_is_the_same_path(parts):
    expected = "/".join(["gs://bucket", *parts])
    for text in (expected, expected + "/", Path(expected), expected.replace("gs:", "GS:", 1)):
        assert str(paths.as_path(text)) == expected
        assert paths.is_address(text)


def test_schemes_that_no_client_reads_are_refused():
    for address in ("http://host/file", "file:///tmp", "memory://a"):
        with pytest.raises(UserError, match=r"not supported; use gs://, s3:// or a path"):
            buckets.as_bucket_path(address)


def test_objects_are_listed_by_folder_and_removed(gs_path, bucket):
    for name in ("x/1", "x/2", "x/below/3", "xy"):
        buckets.write(gs_path / name, name.encode())
    assert buckets.kind(gs_path / "x") == stat.S_IFDIR
    assert buckets.kind(gs_path / "x/1") == stat.S_IFREG
    assert buckets.kind(gs_path / "x/4") is None
    assert buckets.list_dir(gs_path / "x") == [gs_path / "x" / name for name in ("1", "2", "below")]
    assert len(bucket.below(gs_path / "x")) == 3
    assert buckets.size(gs_path / "x/below/3") == len("x/below/3")
    buckets.remove(gs_path / "x/1")
    buckets.remove(gs_path / "x/1")  # nothing there any more
    buckets.remove_tree(gs_path / "x")
    assert bucket.below(gs_path) == [gs_path / "xy"]


def test_each_write_has_another_version(gs_path):
    versions = set()
    for _ in range(3):
        buckets.write(gs_path / "x", b"the same")
        versions.add(buckets.version(gs_path / "x"))
    assert len(versions) == 3


def test_files_are_uploaded_and_downloaded_whole(gs_path, tmp_path):
    (tmp_path / "from").write_bytes(bytes(range(256)) * 1000)
    buckets.upload(tmp_path / "from", gs_path / "x")
    buckets.download(gs_path / "x", tmp_path / "to")
    assert (tmp_path / "to").read_bytes() == (tmp_path / "from").read_bytes()


def test_missing_client_is_one_line_with_the_extra(monkeypatch):
    def refuse(name, *rest):
        if name.startswith(("gcsfs", "s3fs")):
            raise ImportError(name)
        return real(name, *rest)

    real = buckets.importlib.import_module
    buckets._set_up.cache_clear()
    monkeypatch.setattr(buckets.importlib, "import_module", refuse)
    for scheme, extra in {"gs": "gcs", "s3": "s3"}.items():
        with pytest.raises(
            UserError, match=rf"pip install 'modality_forcing\[{extra}\]'"
        ) as caught:
            buckets.check(BucketPath(f"{scheme}://bucket/a"), "choose another --workdir")
        assert caught.value.exit_code == 2
    buckets._set_up.cache_clear()


def test_missing_bucket_is_one_line(bucket):
    for ask in (lambda path: buckets.check(path, "choose another --workdir"), buckets.list_dir):
        with pytest.raises(UserError, match=r"no such .*bucket") as caught:
            ask(BucketPath("gs://nowhere/run"))
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_access_is_one_line_about_credentials(status, bucket, gs_path):
    bucket.fault = lambda method, path: status
    for ask in (lambda path: buckets.check(path, ""), buckets.read, buckets.list_dir):
        bucket.requests.clear()
        with pytest.raises(UserError, match=r"access is denied.*credentials") as caught:
            ask(gs_path)
        assert caught.value.exit_code == 2
        assert len(bucket.requests) == len(set(bucket.requests))  # none is repeated


@pytest.fixture
def google(monkeypatch):
    """Stands for a machine that reaches Google, whose `google.auth.default` a test replaces."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setattr(buckets.fsspec.config, "conf", {})
    buckets._set_up.cache_clear()
    yield lambda default: monkeypatch.setattr(google_auth, "default", default)
    buckets._set_up.cache_clear()


class Expired:
    """Credentials that cannot be used any more."""

    def __init__(self, error: Exception):
        self.error = error

    def refresh(self, request: object) -> None:
        raise self.error


def test_without_credentials_the_machine_is_not_taken_for_one_of_google(bucket, google):
    def default(**_):
        raise google_auth.exceptions.DefaultCredentialsError("none")

    google(default)
    buckets._set_up("gs")
    assert buckets.fsspec.config.conf["gs"]["token"] == "anon"  # public buckets only


def test_expired_credentials_are_one_line_at_once(bucket, google):
    expired = google_auth.exceptions.RefreshError("invalid_grant: Token has been revoked.", {})
    google(lambda **_: (Expired(expired), None))
    start = time.monotonic()
    refused = r"gs://: access is denied \(.*revoked.*gcloud auth application-default login"
    with pytest.raises(UserError, match=refused) as caught:
        buckets.check(BucketPath("gs://nowhere/x"), "")
    assert caught.value.exit_code == 2 and time.monotonic() - start < 5


@pytest.mark.parametrize("passing", ["retryable", "metadata server", "network"])
def test_credentials_out_of_reach_for_now_are_tried_again_later(bucket, google, passing):
    lost = google_auth.exceptions.TransportError("no answer")
    error: Exception = lost
    if passing != "network":
        error = google_auth.exceptions.RefreshError("later", retryable=passing == "retryable")
        error.__cause__ = lost if passing == "metadata server" else None
    google(lambda **_: (Expired(error), None))
    buckets._set_up("gs")
    assert "token" not in buckets.fsspec.config.conf["gs"]


def test_a_bucket_that_does_not_answer_is_reported_in_time(bucket, gs_path, monkeypatch, capfd):
    monkeypatch.setattr(buckets, "_CONTACT_S", 1.0)
    monkeypatch.setattr(buckets, "_LOOKUP_S", 1.0)
    monkeypatch.setattr(buckets, "_PATIENCE_S", 0.3)
    monkeypatch.setattr(buckets, "_reached", set())
    bucket.fault = lambda method, path: 503
    with pytest.raises(UserError, match="no answer in time") as caught:
        buckets.check(gs_path, "choose another --workdir")
    assert caught.value.exit_code == 2  # a name may be wrong
    err = capfd.readouterr().err
    assert err == "gs://bucket: waiting for an answer, for up to 1 s\n"
    buckets._reached.add(BucketPath(bucket.address))
    with pytest.raises(StorageFailed) as caught:
        buckets.kind(gs_path)
    assert caught.value.exit_code == 1  # of a run that has begun: it is tried again


def test_a_short_failure_is_survived(bucket, gs_path):
    answers = iter([503])
    bucket.fault = lambda method, path: next(answers, None)
    buckets.write(gs_path / "x", b"content")
    assert buckets.read(gs_path / "x") == b"content"
